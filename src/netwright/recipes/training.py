"""Recipes that change how a network learns."""

from torch import nn

from netwright.data.splits import ALL_TASKS
from netwright.recipes import Recipe
from netwright.training import Backprop, Trainer
from netwright.training.gradient_noise import GradientNoise


def _gradient_noise(model: nn.Module, trainer: Trainer, *, eta: float, gamma: float) -> Backprop:
    optimizer = GradientNoise(trainer.optimizer(model), eta, gamma)
    return Backprop(model, optimizer, fabric=trainer.fabric, scheduler=trainer.scheduler(optimizer))


gradient_noise = Recipe(
    name="gradient-noise",
    claim="gradient-noise",
    summary="Add annealed Gaussian noise to the gradient before every update.",
    tasks=ALL_TASKS,
    options={"eta": 0.01, "gamma": 0.55},  # the mildest of the paper's three: others can drown a small gradient
    rule=_gradient_noise,
)
