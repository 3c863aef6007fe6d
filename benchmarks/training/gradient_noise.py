"""Gradient noise against the plain optimiser: time of a whole training step, and of drawing the noise."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.models.vision.classic import MLP, lenet_300_100
from netwright.training.gradient_noise import GradientNoise, add_gradient_noise_


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> Callable[[], None]:
    x, y = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    torch.manual_seed(0)
    networks = {
        "LeNet-300-100, batch 60": (lenet_300_100, 60),
        "1M parameters (784-640-640-100-10), batch 128": (lambda: MLP(784, (640, 640, 100), 10), 128),
    }
    for title, (make, batch_size) in networks.items():
        steps = {}
        for name in ("SGD", "GradientNoise(SGD)", "GradientNoise(SGD), draw=exact"):
            model = make()
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
            if name != "SGD":
                optimizer = GradientNoise(optimizer, draw="exact" if "exact" in name else "table")
            steps[name] = training_step(model, optimizer, batch_size)
        side_by_side(title, steps, baseline="SGD", rounds=200, targets={"GradientNoise(SGD)": 1.3})

    weights = [torch.zeros(1000, requires_grad=True) for _ in range(1000)]
    for weight in weights:
        weight.grad = torch.zeros(1000)

    def one_by_one() -> None:
        for weight in weights:
            assert weight.grad is not None
            weight.grad.add_(torch.normal(0.0, 0.1, weight.shape))

    side_by_side(
        "noise for 1,000 tensors of 1,000",
        {"torch.normal for each": one_by_one, "add_gradient_noise_": lambda: add_gradient_noise_(weights, 0)},
        baseline="torch.normal for each",
    )


if __name__ == "__main__":
    main()
