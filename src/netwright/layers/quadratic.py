"""Quadratic neurons (Fan, Li, Wang, Lai, Wang 2021, arXiv:2110.06081): layers whose outputs are quadratic in the input.

:class:`QuadraticLinear` and :class:`QuadraticConv2d` stand in for torch's layers; :func:`quadraticize` puts them into a
trained network without changing what it computes. Train them with :mod:`netwright.training.relinear`.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.surgery import swap, swapped

Form = Literal["full", "compact"]
FORMS: tuple[Form, ...] = ("full", "compact")
Size = int | Sequence[int]


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
        device, dtype = linear.weight.device, linear.weight.dtype
        bias = linear.bias is not None
        new = cls(linear.in_features, linear.out_features, bias, form=form, device=device, dtype=dtype)
        new._start_from(linear)
        return new

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        square = _of_square(_LinearOfSquare, functional.linear, input, self.weight_b, self.bias_b)
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
        kernel = _pair("kernel_size", kernel_size)
        super().__init__((out_channels, in_channels // groups, *kernel), form, bias, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = _pair("stride", stride)
        self.dilation = _pair("dilation", dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        self.padding = padding if isinstance(padding, str) else _pair("padding", padding)
        self._sides = self._padding_sides()

    @classmethod
    def like(cls, conv: nn.Conv2d, form: Form = "full") -> Self:
        """Replace ``conv`` by a layer that computes the same until it is trained."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            form=form,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
        )
        new._start_from(conv)
        return new

    def _padding_sides(self) -> tuple[int, int, int, int]:
        """Zeros (or what the mode says) at left, right, top and bottom."""
        if self.padding == "valid":
            return 0, 0, 0, 0
        if isinstance(self.padding, str):
            checks.known("padding", self.padding, ("same", "valid"))
            if max(self.stride) > 1:
                checks.fail("padding 'same' needs stride 1", self.stride)
            height, width = (d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))
            return width // 2, width - width // 2, height // 2, height - height // 2
        height, width = self.padding
        return width, width, height, height

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.in_channels)
        left, right, top, bottom = self._sides
        x, padding = input, (top, left)
        if self.padding_mode != "zeros" or left != right or top != bottom:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = functional.pad(input, self._sides, mode=mode), (0, 0)
        geometry = (self.stride, padding, self.dilation, self.groups)
        square = _of_square(_ConvOfSquare, functional.conv2d, x, self.weight_b, self.bias_b, *geometry)
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
    inside = tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    )

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


class _LinearOfSquare(torch.autograd.Function):
    """``linear(x * x, weight, bias)`` that keeps x for the backward pass and not its square."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(input.square(), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            (grad @ weight) * x * 2 if for_input else None,
            flat.t() @ x.reshape(-1, x.shape[-1]).square() if for_weight else None,
            flat.sum(0) if for_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        return _tangent(functional.linear, x, weight, input_t, weight_t, bias_t)


class _ConvOfSquare(torch.autograd.Function):
    """``conv2d(x * x, weight, bias, …)`` that keeps x for the backward pass and not its square."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        return functional.conv2d(input.square(), weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, bias, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else [weight.shape[0]]
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_square, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad,
            x.square(),
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(ctx.needs_input_grad[:3]),
        )
        return None if of_square is None else of_square * x * 2, of_weight, of_bias, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        if bias_t is not None:
            bias_t = bias_t[:, None, None]
        return _tangent(functional.conv2d, x, weight, input_t, weight_t, bias_t, *ctx.geometry)


def _tangent(
    product: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    input_t: Tensor | None,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    *geometry: object,
) -> Tensor:
    """The derivative of ``product(input², weight) + bias`` along the tangents."""
    tangent = torch.zeros((), dtype=input.dtype, device=input.device)
    if input_t is not None:
        tangent = tangent + product(2 * input * input_t, weight, None, *geometry)
    if weight_t is not None:
        tangent = tangent + product(input.square(), weight_t, None, *geometry)
    return tangent if bias_t is None else tangent + bias_t


def _of_square(
    function: type[torch.autograd.Function],
    product: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *geometry: object,
) -> Tensor:
    """``product(input², weight, bias)``; the square is recomputed, not kept, for the backward pass."""
    if torch.compiler.is_compiling():  # the compiler decides itself what to recompute
        return product(input.square(), weight, bias, *geometry)
    x = input.unsqueeze(0) if product is functional.conv2d and input.ndim == 3 else input
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        # a backward pass runs outside of autocast, so that the types have to agree before
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = function.apply(x, weight, bias, *geometry)  # type: ignore[no-untyped-call]
    return output if x.ndim == input.ndim else output.squeeze(0)


def _pair(name: str, size: Size) -> tuple[int, int]:
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2:
        checks.fail(f"{name} must be a number or 2 numbers", size)
    return sizes[0], sizes[1]


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
