"""Quadratic layers against torch's of equal shape: a training step, and the bytes kept for the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.cost import saved_bytes
from netwright.layers.quadratic import QuadraticConv2d, QuadraticLinear


class ThreeConvolutions(nn.Module):
    """The bare expression with three separate layers."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.r, self.g, self.b = (type(conv)(conv.in_channels, conv.out_channels, 3, padding=1) for _ in range(3))

    def forward(self, input: Tensor) -> Tensor:
        return self.r(input) * self.g(input) + self.b(input.square())


def step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        layer(input).sum().backward()

    return run


def main() -> None:
    for batch, channels, size in ((64, 16, 32), (64, 32, 16), (64, 64, 8)):
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        full, compact = QuadraticConv2d.like(conv), QuadraticConv2d.like(conv, form="compact")
        bare = ThreeConvolutions(conv)
        x = torch.randn(batch, channels, size, size, requires_grad=True)
        side_by_side(
            f"3×3 convolution, {channels} channels, {size}×{size}, batch {batch}: training step",
            {
                "torch": step(conv, x),
                "three convolutions": step(bare, x),
                "full": step(full, x),
                "compact": step(compact, x),
            },
            baseline="torch",
            targets={"full": 2.6},
        )
        one = x.numel() * x.element_size()
        for name, layer in {"three convolutions": bare, "full": full, "compact": compact}.items():
            print(f"  {name}: keeps {saved_bytes(layer, x) / one:.2f} activations besides the input")
    linear = nn.Linear(512, 512)
    x = torch.randn(128, 512, requires_grad=True)
    side_by_side(
        "linear 512 to 512, batch 128: training step",
        {"torch": step(linear, x), "full": step(QuadraticLinear.like(linear), x)},
        baseline="torch",
        targets={"full": 2.6},
    )


if __name__ == "__main__":
    main()
