"""Local complexity against a plain forward pass of the same vertices, and regions on a line against a fine grid."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.analysis.local_complexity import breakpoints_on_segment, frame, local_complexity
from netwright.models.vision.classic import MLP
from netwright.models.vision.preact_resnet import preact_resnet18


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for title, model, points, vertices in (
        ("MLP 784-200-200-200-10, 500 points, 50 vertices", MLP(784, (200,) * 3, 10), torch.randn(500, 1, 28, 28), 50),
        (
            "PreActResNet18, width 16, no normalisation, 16 points, 40 vertices",
            preact_resnet18(16, batch_norm=False),
            torch.randn(16, 3, 32, 32),
            40,
        ),
    ):
        side_by_side(
            f"local complexity: {title}",
            {
                "plain forward pass": plain(model, points, vertices),
                "local_complexity": lambda model=model, points=points, vertices=vertices: local_complexity(
                    model, points, vertices=vertices
                ),
            },
            baseline="plain forward pass",
            rounds=9,
            targets={"local_complexity": 1 / 0.8},
        )
    model, (a, b) = MLP(784, (200,) * 3, 10), torch.randn(2, 1, 28, 28)
    side_by_side(
        "regions on a segment, MLP 784-200-200-200-10",
        {
            "grid of 100,000 patterns": lambda: patterns_on_a_grid(model, a, b, 100_000),
            "breakpoints_on_segment": lambda: breakpoints_on_segment(model, a, b),
        },
        baseline="grid of 100,000 patterns",
        rounds=3,
    )


@torch.no_grad()
def plain(model: nn.Module, points: Tensor, vertices: int) -> Callable[[], None]:
    """The forward pass of all vertices in the batches that ``local_complexity`` makes, vertices given."""
    steps = 0.005 * torch.cat([frame(points, vertices), -frame(points, vertices)])
    batch = max(1, 2**20 // steps.numel()) * vertices
    around = torch.split((points[:, None] + steps).flatten(0, 1), batch)
    model = copy.deepcopy(model).eval()

    @torch.no_grad()
    def run() -> None:
        for part in around:
            model(part)

    return run


@torch.no_grad()
def patterns_on_a_grid(model: nn.Sequential, a: Tensor, b: Tensor, number: int) -> int:
    """Changes of the activation pattern between neighbours of a grid: a lower bound of the regions."""
    h = torch.lerp(a, b, torch.linspace(0, 1, number).view(-1, 1, 1, 1))
    changed = torch.zeros(number - 1, dtype=torch.bool)
    for layer in model:
        if isinstance(layer, nn.ReLU):
            changed |= ((h[1:] > 0) != (h[:-1] > 0)).any(1)
        h = layer(h)
    return int(changed.sum()) + 1


if __name__ == "__main__":
    main()
