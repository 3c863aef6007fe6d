"""EvoNorm against batch and group normalisation with an activation: time of forward and backward, and saved memory."""

import torch
from torch import nn

from benchmarks.timing import amounts, side_by_side
from netwright.cost import saved_bytes
from netwright.layers.evonorm import EvoNormB0, EvoNormS0

SHAPES = ((32, 64, 32, 32), (128, 16, 32, 32))


def main() -> None:
    torch.manual_seed(0)
    for shape in SHAPES:
        channels = shape[1]
        x = torch.randn(shape, requires_grad=True)
        grad = torch.randn(shape)
        layers = {
            "GroupNorm + SiLU": nn.Sequential(nn.GroupNorm(8, channels), nn.SiLU()),
            "BatchNorm2d + ReLU": nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU()),
            "EvoNormS0": EvoNormS0(channels, groups=8),
            "EvoNormB0": EvoNormB0(channels),
        }

        def pass_through(layer: nn.Module, x: torch.Tensor = x, grad: torch.Tensor = grad) -> None:
            # fresh gradients, as in a training step; to add them to old ones would only time the addition
            torch.autograd.grad(layer(x), [x, *layer.parameters()], grad)

        side_by_side(
            f"forward and backward on {shape}",
            {name: lambda layer=layer: pass_through(layer) for name, layer in layers.items()},  # type: ignore[misc]
            baseline="GroupNorm + SiLU",
            targets={"EvoNormS0": 1.5},
        )
        # the input counts: each of the layers keeps it
        size = x.numel() * x.element_size()
        amounts(
            f"memory kept for backward on {shape}",
            {name: (saved_bytes(layer, x) + size) / 2**20 for name, layer in layers.items()},
            baseline="GroupNorm + SiLU",
            targets={"EvoNormS0": 1.2},
            unit="MiB",
        )


if __name__ == "__main__":
    main()
