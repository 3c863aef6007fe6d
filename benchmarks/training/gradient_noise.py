"""Gradient noise against the plain optimiser: time of a whole training step."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.models.vision.classic import MLP, lenet_300_100
from netwright.training.gradient_noise import GradientNoise


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> Callable[[], None]:
    x, y = torch.randn(batch_size, 784), torch.randint(10, (batch_size,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def noise_one_by_one(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad.add_(torch.normal(0.0, 0.1, parameter.shape))


def main() -> None:
    torch.manual_seed(0)
    networks = {
        "LeNet-300-100, batch 60": (lenet_300_100, 60),
        "1M parameters (784-640-640-100-10), batch 128": (lambda: MLP(784, (640, 640, 100), 10), 128),
    }
    for title, (make, batch_size) in networks.items():
        steps = {}
        for name in ("SGD", "GradientNoise(SGD)", "torch.normal for each tensor"):
            model = make()
            optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
            if name.startswith("GradientNoise"):
                optimizer = GradientNoise(optimizer)
            elif name.startswith("torch.normal"):
                optimizer.register_step_pre_hook(noise_one_by_one)
            steps[name] = training_step(model, optimizer, batch_size)
        side_by_side(title, steps, baseline="SGD", rounds=200, targets={"GradientNoise(SGD)": 1.3})


if __name__ == "__main__":
    main()
