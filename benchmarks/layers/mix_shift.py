"""Mix-Shift in eval mode, where it is one convolution, against the loop over its chunks; its block and its network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.layers.mix_shift import MixShift
from netwright.models.vision.ms_mlp import STAGE_KERNELS, MixShiftBlock, ms_mlp


class Loop(nn.Module):
    """The usual way: roll each chunk, convolve it, concatenate either direction, and sum."""

    def __init__(self, layer: MixShift) -> None:
        super().__init__()
        self.chunks, self.shifts = list(layer.chunks), layer.shifts
        self.sideways = nn.ModuleList(map(self._conv, layer.horizontal))
        self.upright = nn.ModuleList(map(self._conv, layer.vertical))

    @staticmethod
    def _conv(weight: Tensor) -> nn.Conv2d:
        channels, size = len(weight), weight.shape[-1]
        conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels)
        conv.weight = nn.Parameter(weight.detach())
        return conv

    def forward(self, input: Tensor) -> Tensor:
        chunks = input.split(self.chunks, 1)
        sides = [c(x.roll(s, 3)) for c, x, s in zip(self.sideways, chunks, self.shifts, strict=True)]
        upright = [c(x.roll(s, 2)) for c, x, s in zip(self.upright, chunks, self.shifts, strict=True)]
        return torch.cat(sides, 1) + torch.cat(upright, 1)


class ConvNeXtBlock(nn.Module):
    """The same block with one 7×7 depth-wise convolution (Liu et al. 2022, arXiv:2201.03545) instead of Mix-Shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.rest = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, input: Tensor) -> Tensor:
        return input + self.rest(self.conv(input).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def infer(layer: nn.Module, input: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return layer(input)

    return run


def step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        layer(input).sum().backward()

    return run


def compare(batch: int, dim: int, size: int, kernels: tuple[int, ...], layout: str, target: float | None) -> None:
    maps = torch.randn(batch, dim, size, size)
    if layout == "channels last":
        maps = maps.contiguous(memory_format=torch.channels_last)
    layer = MixShift(dim, kernels=kernels)
    loop, chunks, fused = Loop(layer), MixShift(dim, kernels=kernels), layer.eval()
    side_by_side(
        f"forward, {size}×{size}×{dim}, batch {batch}, kernels {kernels}, {layout}",
        {
            "loop over chunks": infer(loop, maps),
            "MixShift, training mode": infer(chunks, maps),
            "MixShift, eval mode": infer(fused, maps),
        },
        baseline="loop over chunks",
        targets=None if target is None else {"MixShift, eval mode": target},
    )


def main() -> None:
    for layout in ("channels first", "channels last"):
        for batch in (1, 8):
            compare(batch, 96, 56, STAGE_KERNELS[0], layout, target=0.67)
    for dim, size, kernels in zip((192, 384, 768), (28, 14, 7), STAGE_KERNELS[1:], strict=True):
        compare(8, dim, size, kernels, "channels last", target=None)
    layer = MixShift(96)
    maps = torch.randn(8, 96, 56, 56).contiguous(memory_format=torch.channels_last)
    side_by_side(
        "training step, 56×56×96, batch 8",
        {"loop over chunks": step(Loop(layer), maps), "MixShift": step(layer, maps)},
        baseline="loop over chunks",
        rounds=10,
    )
    side_by_side(
        "block in eval mode, 56×56×96, batch 8",
        {
            "ConvNeXt block": infer(ConvNeXtBlock(96).eval(), maps),
            "MixShiftBlock": infer(MixShiftBlock(96).eval(), maps),
        },
        baseline="ConvNeXt block",
    )
    picture = torch.randn(1, 3, 224, 224)
    side_by_side(
        "MS-MLP tiny, one picture of 224×224",
        {"training mode": infer(ms_mlp("tiny"), picture), "eval mode": infer(ms_mlp("tiny").eval(), picture)},
        baseline="training mode",
        rounds=10,
    )


if __name__ == "__main__":
    main()
