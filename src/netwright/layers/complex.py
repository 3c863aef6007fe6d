"""Complex layers (arXiv:2302.04584; Trabelsi et al. 2018, arXiv:1705.09792): linear, convolutions, dropout, init.

They take and give complex tensors; weight and bias are kept as real and imaginary part, two real parameters of torch's
shape each. So they count as what they are, twice the numbers of a real layer, and everything that works on real
parameters works on them: ``model.double()``, optimisers, pruning, safetensors.
"""

import math
from functools import partial
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.layers._complex import (
    Gauss,
    Geometry,
    full_precision,
    needs_plain_formula,
    plain_gauss,
    stacked_convolution,
)
from netwright.layers._complex_init import Criterion, Kind, complex_init_
from netwright.layers._geometry import Size, conv_arguments, linear_arguments, padding_sides, sizes

# up to this many products for each number of the input and of the output, one real convolution of twice the channels is
# faster than three of the channels: with so few, the passes that make and use the three are not free
STACKED = 250


class _ComplexWeight(nn.Module):
    """Real and imaginary part of weight and bias."""

    weight_real: nn.Parameter
    weight_imag: nn.Parameter
    bias_real: nn.Parameter | None
    bias_imag: nn.Parameter | None
    groups: int = 1
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        shape: tuple[int, ...],
        out_features: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        dtype = None if dtype is None else dtype.to_real()
        for part in ("real", "imag"):
            weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(f"weight_{part}", weight)
            shift = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
            self.register_parameter(f"bias_{part}", shift)

    @property
    def weight(self) -> Tensor:
        """The complex weight, of the shape that torch's layer has."""
        return torch.complex(self.weight_real, self.weight_imag)

    @property
    def bias(self) -> Tensor | None:
        """The complex bias, or none."""
        if self.bias_real is None or self.bias_imag is None:
            return None
        return torch.complex(self.bias_real, self.bias_imag)

    @torch.no_grad()
    def reset_parameters(
        self, criterion: Criterion = "he", kind: Kind = "rayleigh", generator: torch.Generator | None = None
    ) -> None:
        """Draw the weight by :func:`complex_init_`; the bias is zero."""
        weight = self.weight
        complex_init_(weight, criterion, kind, groups=self.groups, transposed=self.transposed, generator=generator)
        self.weight_real.copy_(weight.real)
        self.weight_imag.copy_(weight.imag)
        for bias in (self.bias_real, self.bias_imag):
            if bias is not None:
                bias.zero_()

    @torch.no_grad()
    def _take_over(self, layer: nn.Linear | _ConvNd) -> Self:
        """Scale the weight to the mean square of a real layer's, take its bias, and whether these are trained."""
        target, mine = layer.weight.square().mean(), self.weight_real.square().mean() + self.weight_imag.square().mean()
        scale = (target / mine).sqrt()
        for weight in (self.weight_real, self.weight_imag):
            weight.mul_(scale)
            weight.requires_grad_(layer.weight.requires_grad)
        if self.bias_real is not None and self.bias_imag is not None and layer.bias is not None:
            self.bias_real.copy_(layer.bias)
            self.bias_real.requires_grad_(layer.bias.requires_grad)
            self.bias_imag.requires_grad_(layer.bias.requires_grad)
        return self


class ComplexLinear(_ComplexWeight):
    r"""Linear layer :math:`y = x W^\top + b` of complex numbers: 2·(in·out + out) real parameters.

    Args:
        in_features: Size of the last dimension of the complex input ``(*, in_features)``.
        out_features: Size of the last dimension of the complex output ``(*, out_features)``.
        bias: Whether there is a bias b.
        device: Where the parameters are.
        dtype: Type of the parts, or the complex type: ``torch.float64`` and ``torch.complex128`` mean the same.

    Raises:
        InputError: If the input is real or has other features.

    Source:
        arXiv:1705.09792, section 3.2.

    Example:
        >>> layer = ComplexLinear(8, 4)
        >>> layer(torch.randn(5, 8, dtype=torch.complex64)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 4]), 72)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("in_features", in_features, 1)
        checks.at_least("out_features", out_features, 1)
        super().__init__((out_features, in_features), out_features, bias, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.reset_parameters()

    @classmethod
    def like(cls, linear: nn.Linear) -> Self:
        """Replace ``linear``: the same features, bias and mean square of the weights; new weights."""
        return cls(**linear_arguments(linear))._take_over(linear)

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        checks.size("input", input, -1, self.in_features)
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias_real is not None}"


class _ComplexConv(_ComplexWeight):
    """What convolutions share: geometry and its checks."""

    dims: ClassVar[int]

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
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        output_padding: Size = 0,
    ) -> None:
        checks.at_least("groups", groups, 1)
        checks.at_least("in_channels", in_channels, 1)
        checks.at_least("out_channels", out_channels, 1)
        checks.divisible("in_channels", in_channels, "groups", groups)
        checks.divisible("out_channels", out_channels, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        each = partial(sizes, dims=self.dims)
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        kernel = each("kernel_size", kernel_size)
        super().__init__((first, second // groups, *kernel), out_channels, bias, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = each("stride", stride)
        self.padding = padding if isinstance(padding, str) else each("padding", padding)
        self.dilation = each("dilation", dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)  # checks them
        self._geometry = Geometry(
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            each("output_padding", output_padding),
            groups,
            padding_mode,
            kernel,
        )
        self._stacked = groups == 1 and min(in_channels, out_channels) * math.prod(kernel) <= STACKED
        self.reset_parameters()

    @classmethod
    def like(cls, conv: _ConvNd) -> Self:
        """Replace ``conv``: the same geometry, bias and mean square of the weights; new weights."""
        return cls(**conv_arguments(conv))._take_over(conv)

    def forward(self, input: Tensor) -> Tensor:
        axes = ("length", "height, width", "depth, height, width")[self.dims - 1]
        checks.complex_valued("input", input)
        checks.dimensions("input", input, f"(batch, channels, {axes})", f"(channels, {axes})")
        channel_dim = -1 - self.dims
        checks.size("input", input, channel_dim, self.in_channels)
        weights = (self.weight_real, self.weight_imag, self.bias_real, self.bias_imag)
        with full_precision(input):
            if self._stacked:
                return stacked_convolution(input, *weights, self._geometry)
            if isinstance(self.padding, str) or self.padding_mode != "zeros" or needs_plain_formula(input):
                return plain_gauss(input, *weights, self._geometry)
            batched = input if input.ndim == self.dims + 2 else input.unsqueeze(0)
            output: Tensor = Gauss.apply(batched, *weights, self._geometry)  # type: ignore[no-untyped-call]
            return output if batched is input else output.squeeze(0)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias_real is not None}"
        )


class ComplexConv1d(_ComplexConv):
    """Convolution of complex ``(batch, in_channels, length)``; arguments as :class:`ComplexConv2d`."""

    dims = 1


class ComplexConv2d(_ComplexConv):
    r"""Convolution of complex numbers.

    .. math:: y = (W_r * x_r - W_i * x_i + b_r) + i\,(W_r * x_i + W_i * x_r + b_i)

    Takes what :class:`torch.nn.Conv2d` takes, and maps complex ``(batch, in_channels, height, width)`` to complex
    ``(batch, out_channels, height', width')`` as it does. It has twice the real parameters of that. Three real
    convolutions give the four products (Gauss), or one of twice the channels where there are few. Under autocast it
    stays in full precision.

    Args:
        in_channels: Complex channels of the input.
        out_channels: Complex channels of the output.
        kernel_size: As in torch.
        stride: As in torch.
        padding: As in torch.
        dilation: As in torch.
        groups: As in torch.
        bias: As in torch.
        padding_mode: As in torch.
        device: Where the parameters are.
        dtype: Type of the parts, or the complex type: ``torch.float64`` and ``torch.complex128`` mean the same.

    Raises:
        InputError: If ``groups`` does not divide the channels, or the input is real or has other channels.

    Source:
        arXiv:1705.09792, section 3.2.

    Example:
        >>> layer = ComplexConv2d(1, 8, 3, padding=1)
        >>> layer(torch.randn(2, 1, 16, 16, dtype=torch.complex64)).dtype, sum(p.numel() for p in layer.parameters())
        (torch.complex64, 160)
    """

    dims = 2


class ComplexConv3d(_ComplexConv):
    """Convolution of complex ``(batch, in_channels, depth, height, width)``; arguments as :class:`ComplexConv2d`."""

    dims = 3


class ComplexConvTranspose2d(_ComplexConv):
    """Transposed convolution of complex numbers; torch's arguments, else as :class:`ComplexConv2d`.

    Example:
        >>> ComplexConvTranspose2d(8, 4, 2, stride=2)(torch.randn(1, 8, 5, 5, dtype=torch.complex64)).shape
        torch.Size([1, 4, 10, 10])
    """

    dims = 2
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            device=device,
            dtype=dtype,
            output_padding=output_padding,
        )
        self.output_padding = sizes("output_padding", output_padding, self.dims)


class ComplexDropout(nn.Module):
    """Set complex numbers to zero, both parts at once, with probability ``p``, and divide the others by 1 − p.

    Args:
        p: Probability, 0 ≤ p < 1.

    Example:
        >>> ComplexDropout(0.5)(torch.full((1000,), 1 + 2j)).real.unique()
        tensor([0., 2.])
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        checks.between("p", p, 0, 1, open_high=True)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        if not self.training or self.p == 0:
            return input
        return input * functional.dropout(torch.ones_like(input.real), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


__all__ = [
    "ComplexConv1d",
    "ComplexConv2d",
    "ComplexConv3d",
    "ComplexConvTranspose2d",
    "ComplexDropout",
    "ComplexLinear",
    "Criterion",
    "Kind",
    "complex_init_",
]
