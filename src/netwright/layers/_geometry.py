"""What layers that stand in for torch's have to know of these: arguments to rebuild them, sizes, sides of padding."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from netwright import checks

Size = int | Sequence[int]


def linear_arguments(linear: nn.Linear) -> dict[str, Any]:
    """Keyword arguments that make a layer of the shape, device and type of ``linear``."""
    return {
        "in_features": linear.in_features,
        "out_features": linear.out_features,
        "bias": linear.bias is not None,
        "device": linear.weight.device,
        "dtype": linear.weight.dtype,
    }


def conv_arguments(conv: _ConvNd) -> dict[str, Any]:
    """Keyword arguments that make a (transposed) convolution of the geometry, device and type of ``conv``."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "device": conv.weight.device,
        "dtype": conv.weight.dtype,
        **({"output_padding": conv.output_padding} if conv.transposed else {"padding_mode": conv.padding_mode}),
    }


def sizes(name: str, size: Size, dims: int) -> tuple[int, ...]:
    """One number for each of ``dims`` axes.

    Raises:
        InputError: If there are more or fewer.
    """
    each = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(each) != dims:
        checks.fail(f"{name} must be a number or {dims} numbers", size)
    return each


def padding_sides(
    padding: str | tuple[int, ...], kernel_size: tuple[int, ...], dilation: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[int, ...]:
    """The sides of a convolution's padding as ``functional.pad`` takes them: before and after, the last axis first.

    Raises:
        InputError: If the padding is a word but not ``"same"`` or ``"valid"``, or ``"same"`` meets a stride.
    """
    if isinstance(padding, tuple):
        return tuple(side for size in reversed(padding) for side in (size, size))
    checks.known("padding", padding, ("same", "valid"))
    if padding == "valid":
        return (0,) * (2 * len(kernel_size))
    if max(stride) > 1:
        checks.fail("padding 'same' needs stride 1", stride)
    totals = [d * (k - 1) for d, k in zip(reversed(dilation), reversed(kernel_size), strict=True)]
    return tuple(side for total in totals for side in (total // 2, total - total // 2))


def keeps_places(conv: nn.Conv2d) -> bool:
    """Whether output pixel (i, j) of an undilated convolution of 3×3 or more is centred at (stride·i, stride·j)."""
    centred = conv.padding == "same" or (
        all(k % 2 for k in conv.kernel_size) and conv.padding == tuple(k // 2 for k in conv.kernel_size)
    )
    return centred and conv.dilation == (1, 1) and min(conv.kernel_size) >= 3 and conv.padding_mode == "zeros"


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each channel is convolved for itself."""
    return conv.groups == conv.in_channels == conv.out_channels


__all__ = ["Size", "conv_arguments", "is_depthwise", "keeps_places", "linear_arguments", "padding_sides", "sizes"]
