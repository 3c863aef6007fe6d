"""Masked training, magnitude pruning, mask drawing and the density solver against what else one would do."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from benchmarks.timing import side_by_side
from netwright.compression.densities import erk
from netwright.compression.lottery import magnitude_mask
from netwright.compression.masks import Mask, shapes_of
from netwright.compression.random_pruning import random_prune
from netwright.models.vision.classic import MLP, lenet_300_100


def training_step(model: nn.Module, make: type[torch.optim.Optimizer], batch_size: int) -> Callable[[], None]:
    x, y = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))
    optimizer = make(model.parameters(), lr=1e-4)  # type: ignore[call-arg]

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def with_torch_prune(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear):
            prune.random_unstructured(module, "weight", amount=0.8)
    return model


def masked(model: nn.Module) -> nn.Module:
    random_prune(model, 0.2)
    return model


def main() -> None:
    torch.manual_seed(0)
    networks = {
        "LeNet-300-100, batch 60": (lenet_300_100, 60),
        "1M parameters (784-640-640-100-10), batch 128": (lambda: MLP(784, (640, 640, 100), 10), 128),
    }
    for title, (make, batch_size) in networks.items():
        for optimizer in (torch.optim.Adam, torch.optim.SGD):
            side_by_side(
                f"training step, {optimizer.__name__}, {title}",
                {
                    "dense": training_step(make(), optimizer, batch_size),
                    "masked": training_step(masked(make()), optimizer, batch_size),
                    "torch.nn.utils.prune": training_step(with_torch_prune(make()), optimizer, batch_size),
                },
                baseline="dense",
                rounds=200,
                targets={"masked": 1.1},
            )

    weight = torch.randn(10_000, 1_000)
    dense = Mask({"w": torch.ones_like(weight, dtype=torch.bool)})
    side_by_side(
        "prune the smallest 20 % of 1e7 weights",
        {
            "torch.sort of the magnitudes": lambda: weight.abs().flatten().sort(),
            "magnitude_mask": lambda: magnitude_mask({"w": weight}, dense, 0.2),
        },
        baseline="torch.sort of the magnitudes",
        rounds=5,
        targets={"magnitude_mask": 0.5},
    )

    shapes = {str(index): (64 + index, 64, 3, 3) for index in range(200)}
    side_by_side("densities (ERK) of 200 layers", {"erk": lambda: erk(shapes, 0.1)}, baseline="erk")
    lenet = shapes_of(lenet_300_100())
    densities = erk(lenet, 0.1)
    side_by_side(
        "draw a mask for LeNet-300-100",
        {
            "Bernoulli": lambda: Mask.random(lenet, densities, exact=False),
            "exact count": lambda: Mask.random(lenet, densities),
        },
        baseline="Bernoulli",
    )


if __name__ == "__main__":
    main()
