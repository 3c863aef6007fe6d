"""Hypercomplex layers against torch's of equal shape: a training step, and a forward pass in eval mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.layers.hypercomplex import PHConv2d, PHMLinear


def step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        layer(input).sum().backward()

    return run


def infer(layer: nn.Module, input: Tensor) -> Callable[[], Tensor]:
    layer.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return layer(input)

    return run


def compare(title: str, real: nn.Module, hypercomplex: nn.Module, input: Tensor, target: float | None = None) -> None:
    input.requires_grad_()
    side_by_side(
        f"{title}: training step",
        {"torch": step(real, input), "hypercomplex": step(hypercomplex, input)},
        baseline="torch",
        targets=None if target is None else {"hypercomplex": target},
    )
    side_by_side(
        f"{title}: eval",
        {"torch": infer(real, input), "hypercomplex": infer(hypercomplex, input)},
        baseline="torch",
        rounds=100,
        targets={"hypercomplex": 1.02},
    )


def main() -> None:
    for batch, channels, size in ((8, 64, 32), (32, 64, 16), (32, 128, 8)):
        compare(
            f"3×3 convolution, {channels} channels, {size}×{size}, batch {batch}, n = 4",
            nn.Conv2d(channels, channels, 3, padding=1),
            PHConv2d(channels, channels, 3, padding=1),
            torch.randn(batch, channels, size, size),
            target=1.25,
        )
    compare("linear 512 to 512, batch 128, n = 4", nn.Linear(512, 512), PHMLinear(512, 512), torch.randn(128, 512))


if __name__ == "__main__":
    main()
