"""MS-MLP (Zheng et al. 2022, arXiv:2202.06510): a pyramid of blocks that mix space by Mix-Shift alone.

:class:`MSMLP` classifies pictures, and gives the maps of its stages to networks for dense prediction;
:func:`ms_mlp` has the published sizes. The maps are ``(batch, channels, height, width)``, kept channels last in memory.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.mix_shift import KERNELS, SHIFTS, MixShift, check_map
from netwright.models.vision.vit import DropPath, LayerScale, Mlp

STAGE_KERNELS = (KERNELS, (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7))

Size = Literal["tiny", "small", "base"]

# name -> width of the first stage, blocks of the stages, rate of stochastic depth
SIZES: dict[Size, tuple[int, tuple[int, ...], float]] = {
    "tiny": (96, (3, 3, 9, 3), 0.1),
    "small": (96, (3, 3, 27, 3), 0.4),
    "base": (128, (3, 3, 27, 3), 0.5),
}


class MixShiftBlock(nn.Module):
    r"""Residual block :math:`x + \gamma \cdot \mathrm{mlp}(\mathrm{norm}(\mathrm{mixshift}(x)))`.

    There is no norm before Mix-Shift; the norm after it is over the channels of each pixel, and so is the MLP.

    Args:
        dim: Channels of the maps ``(batch, dim, height, width)``.
        shifts: See :class:`netwright.layers.mix_shift.MixShift`.
        kernels: See :class:`netwright.layers.mix_shift.MixShift`.
        mlp_ratio: Width of the MLP's hidden layer, as a multiple of ``dim``.
        drop_path: Rate of stochastic depth.
        layer_scale: Initial value of γ, a factor for each channel.

    Source:
        arXiv:2202.06510, figure 3.

    Example:
        >>> MixShiftBlock(20)(torch.randn(2, 20, 8, 8)).shape
        torch.Size([2, 20, 8, 8])
    """

    def __init__(
        self,
        dim: int,
        shifts: Sequence[int] = SHIFTS,
        kernels: Sequence[int] = KERNELS,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float = 1e-6,
    ) -> None:
        super().__init__()
        checks.positive("mlp_ratio", mlp_ratio)
        self.mix = MixShift(dim, shifts, kernels)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.scale = LayerScale(dim, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, input: Tensor) -> Tensor:
        pixels = self.mix(input).permute(0, 2, 3, 1)
        branch: Tensor = self.drop_path(self.scale(self.mlp(self.norm(pixels))))
        return input + branch.permute(0, 3, 1, 2)


class MSMLP(nn.Module):
    """Patches, stages of :class:`MixShiftBlock` on maps that halve while their channels double, a linear classifier.

    The classifier sees the mean of the last map, normalised. For dense prediction, :meth:`features` gives the last map
    of every stage, which ``pyramid=True`` equips with a norm each. Pictures of other sizes than ``image_size`` are
    taken as long as they can be halved as often.

    Args:
        embed_dim: Channels of the first stage.
        depths: Blocks of each stage.
        shifts: See :class:`netwright.layers.mix_shift.MixShift`.
        kernels: The same for each stage.
        num_classes: Outputs ``(batch, num_classes)``; with 0 the output is what the classifier would see.
        image_size: Height and width of the pictures, or one number for both; what does not fit them is refused early.
        patch_size: Height and width of a patch.
        drop_path_rate: Rate of stochastic depth in the last block; it rises linearly from 0 in the first.
        in_channels: Channels of the pictures ``(batch, in_channels, height, width)``.
        mlp_ratio: See :class:`MixShiftBlock`.
        layer_scale: See :class:`MixShiftBlock`.
        pyramid: Whether each map of :meth:`features` has a norm.

    Raises:
        InputError: If there are not as many kernels as stages, the height or the width of the pictures is not divisible
            by ``patch_size`` · 2^(stages − 1), or the map of a stage is not larger than the shifts.

    Source:
        arXiv:2202.06510, section 3 and table 1. The authors train for 300 epochs with AdamW as Swin is trained. The
        norms of the pyramid are where Swin and ConvNeXt have them as backbones of detectors.

    Example:
        >>> model = MSMLP(20, (1, 2), kernels=((1, 1, 3, 5, 7), (1, 3, 3, 5, 7)), num_classes=10, image_size=32)
        >>> pictures = torch.randn(2, 3, 32, 32)
        >>> model(pictures).shape, [tuple(one.shape) for one in model.features(pictures)]
        (torch.Size([2, 10]), [(2, 20, 8, 8), (2, 40, 4, 4)])
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: Sequence[int] = (3, 3, 9, 3),
        shifts: Sequence[int] = SHIFTS,
        kernels: Sequence[Sequence[int]] = STAGE_KERNELS,
        num_classes: int = 1000,
        image_size: int | tuple[int, int] = 224,
        patch_size: int = 4,
        drop_path_rate: float = 0.1,
        *,
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        layer_scale: float = 1e-6,
        pyramid: bool = False,
    ) -> None:
        super().__init__()
        checks.at_least("number of stages", len(depths), 1)
        checks.at_least("num_classes", num_classes, 0)
        checks.at_least("patch_size", patch_size, 1)
        if len(kernels) != len(depths):
            checks.fail(f"kernels must be given for each of the {len(depths)} stages", f"{len(kernels)} of them")
        self.shifts = tuple(shifts)
        self.coarsest = patch_size * 2 ** (len(depths) - 1)
        self._check_size((image_size, image_size) if isinstance(image_size, int) else image_size)
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        widths = [embed_dim * 2**stage for stage in range(len(depths))]
        self.patches = nn.ModuleList()
        self.stages = nn.ModuleList()
        before, patch = in_channels, patch_size
        for width, depth, windows in zip(widths, depths, kernels, strict=True):
            self.patches.append(_Patches(before, width, patch))
            self.stages.append(
                nn.Sequential(
                    *(MixShiftBlock(width, shifts, windows, mlp_ratio, rates.pop(0), layer_scale) for _ in range(depth))
                )
            )
            before, patch = width, 2
        self.stage_norms = nn.ModuleList(nn.LayerNorm(w, eps=1e-6) if pyramid else nn.Identity() for w in widths)
        self.norm = nn.LayerNorm(before, eps=1e-6)
        self.classifier = nn.Linear(before, num_classes) if num_classes else nn.Identity()
        self.apply(_init_linear)

    def forward(self, input: Tensor) -> Tensor:
        last = self._maps(input)[-1]
        output: Tensor = self.classifier(self.norm(last.mean((2, 3))))
        return output

    def features(self, input: Tensor) -> list[Tensor]:
        """The last map of every stage, ``(batch, channels, height, width)`` each, fine to coarse."""
        pixels = (last.permute(0, 2, 3, 1) for last in self._maps(input))
        return [norm(last).permute(0, 3, 1, 2) for norm, last in zip(self.stage_norms, pixels, strict=True)]

    def _maps(self, input: Tensor) -> list[Tensor]:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        self._check_size((input.shape[-2], input.shape[-1]))
        current = input.contiguous(memory_format=torch.channels_last)
        maps = []
        for patches, stage in zip(self.patches, self.stages, strict=True):
            current = stage(patches(current))
            maps.append(current)
        return maps

    def _check_size(self, size: tuple[int, int]) -> None:
        height, width = size
        if height % self.coarsest or width % self.coarsest or min(size) < 1:
            checks.fail(f"height and width of the pictures must be divisible by {self.coarsest}", f"{height}×{width}")
        check_map(self.shifts, (height // self.coarsest, width // self.coarsest), "the map of the last stage")


class _Patches(nn.Module):
    """Patches as pixels of a coarser map, and a norm over their channels."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.projection(input).permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2)


def ms_mlp(size: Size = "tiny", **options: Any) -> MSMLP:
    """MS-MLP of a published size; ``options`` are further arguments of :class:`MSMLP`.

    ========  ==========  ===============  ===============  ==========  ===================
    size      embed_dim   depths           drop_path_rate   parameters  top-1 of the paper
    ========  ==========  ===============  ===============  ==========  ===================
    tiny      96          3, 3, 9, 3       0.1              28,656,232  82.1 %
    small     96          3, 3, 27, 3      0.4              50,303,752  83.4 %
    base      128         3, 3, 27, 3      0.5              88,696,792  83.8 %
    ========  ==========  ===============  ===============  ==========  ===================

    Example:
        >>> with torch.device("meta"):
        ...     model = ms_mlp("tiny")
        >>> sum(parameter.numel() for parameter in model.parameters())
        28656232
    """
    checks.known("size", size, SIZES)
    embed_dim, depths, drop_path_rate = SIZES[size]
    return MSMLP(embed_dim, depths, **{"drop_path_rate": drop_path_rate, **options})


def _init_linear(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


__all__ = ["MSMLP", "SIZES", "STAGE_KERNELS", "MixShiftBlock", "ms_mlp"]
