"""Quadratic neurons (Fan, Li, Wang, Lai, Wang 2021, arXiv:2110.06081): layers whose outputs are quadratic in the input.

:class:`QuadraticLinear` and :class:`QuadraticConv2d` stand in for torch's layers; :func:`quadraticize` puts them into a
trained network without changing what it computes. Train them with :mod:`netwright.training.relinear`.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import Size, conv_arguments, linear_arguments, padding_sides, sizes
from netwright.layers._quadratic import ConvOfSquare, LinearOfSquare, of_square
from netwright.surgery import swap, swapped, torch_blocks

Form = Literal["full", "compact"]
FORMS: tuple[Form, ...] = ("full", "compact")


class _Quadratic(nn.Module):
    """The parameters of both forms and their ReLinear start; a subclass says what a product with a weight is.

    The gate (g) and the square (b) start as zeros with the gate's bias at 1, so that the layer is a conventional one.
    """

    weight_r: nn.Parameter
    weight_g: nn.Parameter | None
    weight_b: nn.Parameter
    bias_r: nn.Parameter | None
    bias_g: nn.Parameter | None
    bias_b: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        form: Form,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        checks.known("form", form, FORMS)
        self.form = form

        def new(shape: tuple[int, ...], wanted: bool = True) -> nn.Parameter | None:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype)) if wanted else None

        full = form == "full"
        for name, size, wanted in (
            ("weight_r", shape, True),
            ("weight_g", shape, full),
            ("weight_b", shape, True),
            ("bias_r", shape[:1], bias),
            ("bias_g", shape[:1], full),  # also without other biases: at 1 it is what lets the linear path through
            ("bias_b", shape[:1], bias),
        ):
            self.register_parameter(name, new(size, wanted))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """ReLinear's start: Kaiming-normal w_r, b_r from U(±1/√fan_in), w_g = 0, b_g = 1, w_b = 0, c = 0."""
        nn.init.kaiming_normal_(self.weight_r)
        if self.bias_r is not None:
            bound = 1 / math.sqrt(self.weight_r[0].numel())
            nn.init.uniform_(self.bias_r, -bound, bound)
        for parameter in (self.weight_g, self.weight_b, self.bias_b):
            if parameter is not None:
                nn.init.zeros_(parameter)
        if self.bias_g is not None:
            nn.init.ones_(self.bias_g)

    def _start_from(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Compute what ``layer`` computes; what is frozen there is frozen here."""
        self.weight_r.data.copy_(layer.weight)
        if self.bias_r is not None and layer.bias is not None:
            self.bias_r.data.copy_(layer.bias)
            self.bias_r.requires_grad_(layer.bias.requires_grad)
        for parameter in (self.weight_r, self.weight_g, self.weight_b, self.bias_g, self.bias_b):
            if parameter is not None:
                parameter.requires_grad_(layer.weight.requires_grad)


class QuadraticLinear(_Quadratic):
    r"""A layer of quadratic neurons, without the activation.

    .. math::
        \text{full: } (W_r x + b_r) \odot (W_g x + b_g) + W_b (x \odot x) + c \qquad
        \text{compact: } W_r x + b_r + W_b (x \odot x) + c

    The parameters are ``weight_r``, ``weight_g``, ``weight_b``, ``bias_r``, ``bias_g`` and ``bias_b`` (the equation's
    c): three times, or twice, those of a linear layer. It starts as a conventional layer (w_g = 0, b_g = 1, w_b = 0).

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        bias: Whether there are b_r and c; b_g is always there.
        form: ``"full"``, or ``"compact"`` without the interaction of inputs.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If the form is not known.

    Source:
        arXiv:2110.06081, equation 1 and section IV.

    Example:
        >>> linear = nn.Linear(8, 4)
        >>> layer = QuadraticLinear.like(linear)
        >>> x = torch.randn(2, 8)
        >>> torch.allclose(layer(x), linear(x)), sum(p.numel() for p in layer.parameters())
        (True, 108)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        form: Form = "full",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("in_features", in_features, 1)
        checks.at_least("out_features", out_features, 1)
        super().__init__((out_features, in_features), form, bias, device, dtype)
        self.in_features = in_features
        self.out_features = out_features

    @classmethod
    def like(cls, linear: nn.Linear, form: Form = "full") -> Self:
        """Replace ``linear`` by a layer that computes the same until it is trained."""
        new = cls(**linear_arguments(linear), form=form)
        new._start_from(linear)
        return new

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        square = of_square(LinearOfSquare, functional.linear, input, self.weight_b, self.bias_b)
        if self.weight_g is None:
            return square + functional.linear(input, self.weight_r, self.bias_r)
        r = functional.linear(input, self.weight_r, self.bias_r)
        return torch.addcmul(square, r, functional.linear(input, self.weight_g, self.bias_g))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, form={self.form!r}, bias={self.bias_r is not None}"


class QuadraticConv2d(_Quadratic):
    """Quadratic neurons with shared weights: :class:`QuadraticLinear` with each product a convolution.

    Takes what :class:`torch.nn.Conv2d` takes, and maps ``(batch, in_channels, height, width)`` to ``(batch,
    out_channels, height', width')`` as it does.

    Example:
        >>> QuadraticConv2d(3, 8, 3, padding=1)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        form: Form = "full",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("groups", groups, 1)
        checks.divisible("in_channels", in_channels, "groups", groups)
        checks.divisible("out_channels", out_channels, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        kernel = sizes("kernel_size", kernel_size, 2)
        super().__init__((out_channels, in_channels // groups, *kernel), form, bias, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = sizes("stride", stride, 2)
        self.dilation = sizes("dilation", dilation, 2)
        self.groups = groups
        self.padding_mode = padding_mode
        self.padding = padding if isinstance(padding, str) else sizes("padding", padding, 2)
        self._sides = padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)

    @classmethod
    def like(cls, conv: nn.Conv2d, form: Form = "full") -> Self:
        """Replace ``conv`` by a layer that computes the same until it is trained."""
        new = cls(**conv_arguments(conv), form=form)
        new._start_from(conv)
        return new

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.in_channels)
        left, right, top, bottom = self._sides
        x, padding = input, (top, left)
        if self.padding_mode != "zeros" or left != right or top != bottom:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = functional.pad(input, self._sides, mode=mode), (0, 0)
        geometry = (self.stride, padding, self.dilation, self.groups)
        square = of_square(ConvOfSquare, functional.conv2d, x, self.weight_b, self.bias_b, *geometry)
        r = functional.conv2d(x, self.weight_r, self.bias_r, *geometry)
        if self.weight_g is None:
            return square + r
        # one convolution of twice the width for both factors is no faster on CPUs: its backward pass copies more
        return torch.addcmul(square, r, functional.conv2d(x, self.weight_g, self.bias_g, *geometry))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, form={self.form!r}, "
            f"bias={self.bias_r is not None}"
        )


def quadraticize(
    model: nn.Module, form: Form = "full", *, where: Callable[[str, nn.Module], bool] | None = None
) -> nn.Module:
    """A copy of ``model`` with quadratic neurons in place of all linear layers and 2-D convolutions.

    The copy computes what the model computes until it is trained, so that also a trained model can be converted. The
    layers of torch's own attention and transformer blocks stay: these blocks read the weights of their layers.

    Args:
        model: Any module.
        form: ``"full"`` or ``"compact"``.
        where: Which of these layers to replace; all, if not given. See :func:`netwright.surgery.swap`.

    Raises:
        InputError: If no layer can be replaced, or the form is not known.

    Example:
        >>> quadraticize(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), form="compact")
        Sequential(
          (0): QuadraticLinear(4, 8, form='compact', bias=True)
          (1): ReLU()
        )
    """
    checks.known("form", form, FORMS)
    inside = torch_blocks(model)

    def chosen(name: str, layer: nn.Module) -> bool:
        return not name.startswith(inside) and (where is None or where(name, layer))

    makers: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.Linear: partial(QuadraticLinear.like, form=form),
        nn.Conv2d: partial(QuadraticConv2d.like, form=form),
    }
    new = swap(model, makers, chosen)
    if not swapped(new):
        raise checks.InputError(f"found no linear layer or 2-D convolution to replace, got a {type(model).__name__}")
    return new


def quadratic_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The quadratic layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _Quadratic)}


@torch.no_grad()
def gaussian_init_(model: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw w_r, w_g and w_b of all quadratic layers alike, Kaiming-normal, with all biases 0: what ReLinear replaces.

    The output of every neuron is then of degree two in its input from the start, that of L layers of degree 2^L, and
    deep networks explode.

    Args:
        model: A network with quadratic layers, changed in place and returned.
        generator: Source of randomness; torch's own if not given.
    """
    for layer in quadratic_layers(model).values():
        for name, parameter in layer.named_parameters(recurse=False):
            if name.startswith("weight"):
                nn.init.kaiming_normal_(parameter, generator=generator)
            else:
                nn.init.zeros_(parameter)
    return model


def piece_degree(depth: int) -> int:
    """Degree of the polynomial pieces of ``depth`` quadratic layers with ReLU between: 2^depth; else it is 1.

    Source:
        arXiv:2110.06081, section III.

    Example:
        >>> piece_degree(3)
        8
    """
    checks.at_least("depth", depth, 0)
    return int(2**depth)


__all__ = [
    "FORMS",
    "Form",
    "QuadraticConv2d",
    "QuadraticLinear",
    "gaussian_init_",
    "piece_degree",
    "quadratic_layers",
    "quadraticize",
]
