"""What layers with binary weights share: the signs of their input, and the sizes of the layer they stand in for."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import Size, padding_sides, sizes
from netwright.layers.straight_through import binary_sign, sign_poly

_EPS = 1e-5


class _RescaledSign(torch.autograd.Function):
    """sign(a) of a = x / σ with σ = √(variance + 1e-5) of each sample, differentiated as if it was max(0, 2 − 2|a|).

    In one piece it saves x and two numbers a sample, and makes a third of the temporaries.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, dims: int) -> tuple[Tensor, Tensor, Tensor]:
        axes = tuple(range(-dims, 0))
        number = math.prod(input.shape[-dims:])
        wide = torch.promote_types(input.dtype, torch.float32)
        # 15 times faster than torch.var. It is inexact where the mean is thousands of σ, but there |a| > 1 in any case
        mean = input.mean(axes, keepdim=True, dtype=wide)
        square = torch.linalg.vector_norm(input, dim=axes, keepdim=True, dtype=wide).square() / number
        variance = (square - mean.square()).clamp(min=0) * (number / max(1, number - 1))
        return binary_sign(input), (variance + _EPS).sqrt().to(input.dtype), mean.to(input.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor, Tensor]) -> None:
        input, ctx.dims = inputs  # noqa: A001
        _, deviation, mean = output
        ctx.mark_non_differentiable(deviation, mean)
        ctx.save_for_backward(input, deviation, mean)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, None]:
        x, deviation, mean = ctx.saved_tensors
        slope = x.abs().mul_(-2 / deviation.square()).add_(2 / deviation).relu_()
        direct = gradient * slope
        # σ depends on x, too: ∂σ/∂x = (x − mean) / (σ (n − 1))
        number = math.prod(x.shape[-ctx.dims :])
        rows = (*x.shape[: -ctx.dims], 1, number)
        product = (direct.reshape(rows) @ x.reshape(rows).mT).view_as(deviation)
        share = product / (-max(1, number - 1) * deviation.square())
        return torch.addcmul(direct, x, share).sub_(share * mean), None


def binary_input(input: Tensor, dims: int, *, rescale: bool) -> Tensor:
    """The signs of a layer's input, with the surrogate gradient max(0, 2 − 2|a|).

    Args:
        input: ``(*, …)``, of which one sample has ``dims`` dimensions.
        dims: 3 for pictures, 1 for vectors.
        rescale: Divide every sample by √(variance + 1e-5) first. That changes no sign, only where the surrogate is
            wide, so that it is done in training alone.

    Source:
        arXiv:2404.01278, section 3; the surrogate from Bi-Real Net, arXiv:1808.00278.
    """
    if not torch.is_grad_enabled():  # autograd's bookkeeping costs as much as the signs
        return binary_sign(input)
    if not rescale:
        return sign_poly(input)
    signs: Tensor = _RescaledSign.apply(input, dims)[0]  # type: ignore[no-untyped-call]
    return signs


class BinaryConv2d(nn.Module):
    """A 2-D convolution of the signs of its input; a subclass says what ``scaled_weight`` is.

    Zeros that pad the input are zeros, not signs.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        binarize_input: bool = True,
    ) -> None:
        super().__init__()
        checks.at_least("groups", groups, 1)
        checks.divisible("in_channels", in_channels, "groups", groups)
        checks.divisible("out_channels", out_channels, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = sizes("kernel_size", kernel_size, 2)
        self.stride = sizes("stride", stride, 2)
        self.padding = padding if isinstance(padding, str) else sizes("padding", padding, 2)
        self.dilation = sizes("dilation", dilation, 2)
        self.groups = groups
        self.padding_mode = padding_mode
        self.binarize_input = binarize_input
        self.sides = padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)

    @property
    def scaled_weight(self) -> Tensor:
        """The weight of the convolution, shape ``(out_channels, in_channels / groups, height, width)``."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.in_channels)
        checks.floating_point("input", input)
        return self._convolve(self._signs(input))

    def _signs(self, input: Tensor) -> Tensor:
        return binary_input(input, 3, rescale=self.training) if self.binarize_input else input

    def _convolve(self, input: Tensor) -> Tensor:
        return self._conv2d(input, self.scaled_weight, self.bias)

    def _conv2d(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        padded, padding = self._padded(input)
        return functional.conv2d(padded, weight, bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, input: Tensor) -> tuple[Tensor, tuple[int, ...] | str]:
        """The input, padded if torch's convolution cannot do it itself, and the padding that is left for that to do."""
        if self.padding_mode == "zeros" or not any(self.sides):
            return input, self.padding
        return functional.pad(input, self.sides, mode=self.padding_mode), (0, 0)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"binarize_input={self.binarize_input}"
        )


class BinaryLinear(nn.Module):
    """A linear layer on the signs of its input; a subclass says what ``scaled_weight`` is."""

    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, binarize_input: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.binarize_input = binarize_input

    @property
    def scaled_weight(self) -> Tensor:
        """The weight, shape ``(out_features, in_features)``."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        checks.floating_point("input", input)
        return self._multiply(self._signs(input))

    def _signs(self, input: Tensor) -> Tensor:
        return binary_input(input, 1, rescale=self.training) if self.binarize_input else input

    def _multiply(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.scaled_weight, self.bias)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, "
            f"binarize_input={self.binarize_input}"
        )


__all__ = ["BinaryConv2d", "BinaryLinear", "binary_input"]
