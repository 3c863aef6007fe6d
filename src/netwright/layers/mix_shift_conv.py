"""Mix-Shift (Zheng et al. 2022, arXiv:2202.06510) in the place of convolutions.

:func:`mix_shift_like` replaces one, :func:`to_mix_shift` all of a network that keep pixels at their places.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._geometry import conv_arguments, is_depthwise, keeps_places
from netwright.layers.mix_shift import KERNELS, SHIFTS, MixShift, check_map, check_windows, weight_power
from netwright.surgery import input_shapes, swap, swapped


def mix_shift_like(
    conv: nn.Conv2d, shifts: Sequence[int] = SHIFTS, kernels: Sequence[int] = KERNELS
) -> MixShift | nn.Sequential:
    """Replace a convolution: Mix-Shift over its input channels, then a 1×1 convolution that has its stride and groups.

    For a depth-wise convolution there is nothing but Mix-Shift, and a selection of pixels if it has a stride. Signals
    keep their size: the new weights have the power of the old ones. The bias is taken over.

    Args:
        conv: Undilated, padded with zeros so that pixels keep their places, at least 3×3.
        shifts: See :class:`netwright.layers.mix_shift.MixShift`.
        kernels: See :class:`netwright.layers.mix_shift.MixShift`.

    Raises:
        InputError: If ``conv`` is another convolution, or has fewer input channels than there are chunks.

    Example:
        >>> mix_shift_like(nn.Conv2d(16, 32, 3, stride=2, padding=1))
        Sequential(
          (0): MixShift(16, shifts=(-2, -1, 0, 1, 2), kernels=(1, 1, 3, 5, 7), bias=False)
          (1): Conv2d(16, 32, kernel_size=(1, 1), stride=(2, 2))
        )
    """
    if not keeps_places(conv):
        checks.fail("conv must be undilated, at least 3×3 and padded with zeros to keep pixels at their places", conv)
    if is_depthwise(conv):
        mix = MixShift.like_depthwise(conv, shifts, kernels)
        # pooling over one pixel selects pixels as the stride did
        return mix if conv.stride == (1, 1) else nn.Sequential(mix, nn.MaxPool2d(1, conv.stride))
    place = conv.weight
    mix = MixShift(conv.in_channels, shifts, kernels, bias=False, device=place.device, dtype=place.dtype)
    point = nn.Conv2d(**{**conv_arguments(conv), "kernel_size": 1, "padding": 0})
    with torch.no_grad():
        power = weight_power(conv.weight) / conv.weight.shape[1] / mix.power()
        point.weight.uniform_(-1, 1).mul_((3 * power).sqrt())
        if point.bias is not None and conv.bias is not None:
            point.bias.copy_(conv.bias)
    mix.requires_grad_(conv.weight.requires_grad)
    point.weight.requires_grad_(conv.weight.requires_grad)
    if point.bias is not None and conv.bias is not None:
        point.bias.requires_grad_(conv.bias.requires_grad)
    return nn.Sequential(mix, point)


def to_mix_shift(
    model: nn.Module,
    example: Tensor,
    shifts: Sequence[int] = SHIFTS,
    kernels: Sequence[int] = KERNELS,
    *,
    fit: bool = False,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of ``model`` with Mix-Shift for every spatial convolution that keeps pixels at their places.

    These are undilated, at least 3×3, and padded with zeros by half of their size; they may have a stride. Convolutions
    with fewer input channels than chunks stay, such as the stem, and those that the example does not reach.

    Args:
        model: Any module.
        example: An input of the model; from it the sizes of the maps are read.
        shifts: See :class:`netwright.layers.mix_shift.MixShift`.
        kernels: See :class:`netwright.layers.mix_shift.MixShift`.
        fit: Whether a layer whose map is not larger than a shift gets the largest shift that fits; if not, that is an
            error.
        where: Which of these convolutions to replace; all, if not given. See :func:`netwright.surgery.swap`.

    Raises:
        InputError: If no convolution can be replaced, or a shift does not fit a map.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))
        >>> to_mix_shift(model, torch.zeros(1, 1, 8, 8))[2]
        MixShift(8, shifts=(-2, -1, 0, 1, 2), kernels=(1, 1, 3, 5, 7), bias=True)
    """
    check_windows(shifts, kernels)
    maps = {name: (shape[-2], shape[-1]) for name, shape in input_shapes(model, example, nn.Conv2d).items()}
    limits: dict[nn.Module, int] = {}

    def takes(name: str, conv: nn.Module) -> bool:
        if not isinstance(conv, nn.Conv2d) or not keeps_places(conv) or conv.in_channels < len(shifts):
            return False
        if name not in maps or not (where is None or where(name, conv)):
            return False
        if not fit:
            check_map(shifts, maps[name], f"the map of layer {name!r}")
        limits[conv] = min(maps[name]) - 1
        return True

    def make(conv: nn.Conv2d) -> nn.Module:
        limit = limits[conv]
        return mix_shift_like(conv, [max(-limit, min(limit, shift)) for shift in shifts], kernels)

    new = swap(model, {nn.Conv2d: make}, takes)
    if not swapped(new):
        raise checks.InputError(
            "found no undilated convolution of 3×3 or more, padded to keep the size of the map, with at least "
            f"{len(shifts)} input channels, got a {type(model).__name__}"
        )
    return new


__all__ = ["mix_shift_like", "to_mix_shift"]
