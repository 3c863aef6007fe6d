"""Relative projection against a linear layer of equal shape, and what the anchors cost in a training step."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.layers.relative import RelativeNetwork, RelativeProjection


def infer(layer: nn.Module, input: Tensor) -> Callable[[], Tensor]:
    layer.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return layer(input)

    return run


def step(model: nn.Module, input: Tensor) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad()
        model(input).sum().backward()

    return run


def main() -> None:
    torch.manual_seed(0)
    for batch, features, anchors in ((128, 500, 500), (512, 500, 500), (512, 1024, 500)):
        x = torch.randn(batch, features)
        side_by_side(
            f"{features} features, {anchors} anchors, batch {batch}: eval",
            {
                "nn.Linear": infer(nn.Linear(features, anchors), x),
                "cosines to anchors": infer(RelativeProjection(torch.randn(anchors, features)), x),
            },
            baseline="nn.Linear",
            rounds=200,
            targets={"cosines to anchors": 1 / 0.95},
        )

    batch, anchors = 128, 300
    x, samples = torch.randn(batch, 784), torch.randn(anchors, 784)

    def network(**options: int) -> nn.Module:
        encoder = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 128))
        return RelativeNetwork(encoder, RelativeProjection(anchors), nn.Linear(anchors, 10), samples, **options)

    absolute = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 128), nn.Linear(128, 10))
    side_by_side(
        f"MLP with {anchors} anchors, batch {batch}: training step",
        {
            "absolute": step(absolute, x),
            "anchors in the batch": step(network(), x),
            "anchors in a pass of their own": step(network(together=False), x),
            "the same every 4 steps": step(network(together=False, refresh_every=4), x),
        },
        baseline="absolute",
        rounds=40,
        targets={"anchors in the batch": (batch + anchors) / batch},
    )


if __name__ == "__main__":
    main()
