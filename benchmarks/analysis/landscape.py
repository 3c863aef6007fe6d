"""Planes of losses against those of the loss-landscapes package, whose loop the reference implementation has, too."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.analysis.landscape import Directions, plane
from netwright.models.vision.classic import MLP, lenet_5


def compare(title: str, model: nn.Module, shape: tuple[int, ...], steps: int, target: float | None = 0.5) -> None:
    try:
        import loss_landscapes
        from loss_landscapes.metrics import Loss
    except ImportError:
        print("loss-landscapes is not installed")
        return
    data = torch.randn(shape), torch.arange(shape[0]) % 10
    theirs, metric = copy.deepcopy(model), Loss(functional.cross_entropy, *data)

    def ours() -> object:
        directions = Directions.random(model).normalised(model, "layer")
        return plane(model, functional.cross_entropy, data, directions, steps=steps)

    candidates: dict[str, Callable[[], object]] = {
        "loss-landscapes": lambda: loss_landscapes.random_plane(theirs, metric, 1, steps, "layer", deepcopy_model=True),
        "netwright": ours,
    }
    side_by_side(
        f"{steps} × {steps} losses: {title}",
        candidates,
        baseline="loss-landscapes",
        rounds=3,
        targets=None if target is None else {"netwright": target},
    )


def main() -> None:
    torch.manual_seed(0)
    # a point costs the same on every grid; 2,048 pictures are what the reference's loader takes
    compare("LeNet-5, 2,048 pictures", lenet_5(), (2_048, 1, 28, 28), 6)
    compare("LeNet-5, 64 pictures", lenet_5(), (64, 1, 28, 28), 40)
    compare("MLP 64-64-32-10, 256 samples", MLP(64, (64, 32), 10), (256, 64), 40, target=None)


if __name__ == "__main__":
    main()
