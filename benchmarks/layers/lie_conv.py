"""How much of a forward pass goes into the kernels of a network over SL(2), drawn anew in every pass or kept."""

import torch
from torch import nn

from benchmarks.timing import side_by_side
from netwright.layers.lie_conv import GroupConv2d
from netwright.layers.liegroups import SL
from netwright.models.vision.lie_resnet import LieResNet

WIDTH, SAMPLES = 40, 8


def whole(batch: int, rounds: int) -> None:
    """The published network; 50 % is the target for what the kernels may take."""
    network, x = LieResNet(SL(2), SAMPLES, WIDTH).eval(), torch.randn(batch, 1, 40, 40)
    convs = [layer for layer in network.modules() if isinstance(layer, GroupConv2d)]

    def kernels() -> None:
        """All of them: lift, both of the block, the last."""
        first, last = network.samples()
        network.lift.weight(first)
        for conv in convs:
            conv.weight(first, last if conv is network.conv else first)

    with torch.no_grad():
        side_by_side(
            f"network over SL(2), width {WIDTH}, {SAMPLES} samples, batch {batch} of 40×40",
            {"forward pass": lambda: network(x), "kernels of a forward pass": kernels},
            baseline="forward pass",
            rounds=rounds,
            targets={"kernels of a forward pass": 0.5},
        )


def kept() -> None:
    redrawn, fixed = (LieResNet(SL(2), SAMPLES, 8, redraw=redraw).eval() for redraw in (True, False))
    x = torch.randn(1, 1, 40, 40)
    with torch.no_grad():
        side_by_side(
            f"one picture, width 8, {SAMPLES} samples: samples of every pass, or fixed ones with kept kernels",
            {"drawn anew": lambda: redrawn(x), "kept": lambda: fixed(x)},
            baseline="drawn anew",
            rounds=20,
        )


def point_by_point(layer: GroupConv2d, points: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """The kernel network at all pairs of pixels and relations, with the first layer applied to each pair."""
    shape = (*relations.shape[:2], points.shape[-2], -1)
    pairs = torch.cat((points.expand(*shape), relations.expand(*shape)), -1)
    linear: nn.Module = layer.kernel
    out: torch.Tensor = linear(pairs.flatten(0, 2))
    return out


def parts() -> None:
    layer = GroupConv2d(SL(2), 16, 8, 8, 5)
    samples = layer.sample()
    relations = layer.group.chart(samples.inverse[:, None] @ samples.g)[:, :, None]
    points = (layer.grid @ samples.inverse.mT)[:, None]
    with torch.no_grad():
        whole, split = point_by_point(layer, points, relations), layer.kernel(points, relations)
        torch.testing.assert_close(whole.view_as(split), split, atol=1e-5, rtol=1e-4)
        side_by_side(
            "kernel network of a 5×5 group convolution, 16 samples in and out, 8 channels",
            {
                "first layer for each pair": lambda: point_by_point(layer, points, relations),
                "first layer in parts": lambda: layer.kernel(points, relations),
            },
            baseline="first layer for each pair",
            rounds=20,
        )


def main() -> None:
    torch.manual_seed(0)
    whole(1, 8)
    whole(8, 4)
    kept()
    parts()


if __name__ == "__main__":
    main()
