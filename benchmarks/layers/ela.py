"""Efficient local attention against a depth-wise convolution and coordinate attention: time of both passes."""

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.layers.ela import ELA, CoordinateAttention


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 64, 56, 56)
    convolution = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), nn.BatchNorm2d(64), nn.SiLU())
    layers: dict[str, nn.Module] = {
        "depth-wise 3×3 + BN + SiLU": convolution,
        "coordinate attention": CoordinateAttention(64),
        **{f"ELA-{variant}": ELA(64, variant) for variant in ("T", "B", "S", "L")},
    }

    def forward(layer: nn.Module) -> Tensor:
        with torch.no_grad():
            output: Tensor = layer(x)
        return output

    def step(layer: nn.Module) -> None:
        layer(x).sum().backward()

    for what, run in (("forward", forward), ("forward and backward", step)):
        for baseline, target in (("depth-wise 3×3 + BN + SiLU", 0.35), ("coordinate attention", 1.0)):
            side_by_side(
                f"{what} of 8×64×56×56, in training mode",
                {name: lambda layer=layer, run=run: run(layer) for name, layer in layers.items()},  # type: ignore[misc]
                baseline=baseline,
                targets={"ELA-T": target} if what == "forward" else None,
            )


if __name__ == "__main__":
    main()
