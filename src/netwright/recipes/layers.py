"""Recipes that exchange layers of the user's network before training."""

from torch import nn

from netwright.data.splits import ALL_TASKS, IMAGES, Splits
from netwright.layers.evonorm import Kind, replace_norm_act
from netwright.layers.hypercomplex import to_hypercomplex
from netwright.layers.quadratic import Form, quadraticize
from netwright.recipes import Recipe
from netwright.training import Backprop, Trainer
from netwright.training.relinear import relinear_param_groups


def _to_hypercomplex(model: nn.Module, splits: Splits, *, n: int) -> nn.Module:  # noqa: ARG001
    return to_hypercomplex(model, n)


phm = Recipe(
    name="phm",
    claim="phnn",
    summary="Hypercomplex layers: about 1/n of the parameters in every linear and convolutional layer that n divides.",
    tasks=ALL_TASKS,
    options={"n": 4},
    build=_to_hypercomplex,
)


def _quadraticize(model: nn.Module, splits: Splits, *, form: Form, gamma: float) -> nn.Module:  # noqa: ARG001
    return quadraticize(model, form)


def _relinear(model: nn.Module, trainer: Trainer, *, form: Form, gamma: float) -> Backprop:  # noqa: ARG001
    settings = trainer.settings
    groups = relinear_param_groups(model, settings.lr, gamma_g=gamma, gamma_b=gamma)
    optimizer = settings.make_optimizer(groups)
    return Backprop(model, optimizer, fabric=trainer.fabric, scheduler=trainer.scheduler(optimizer))


quadratic = Recipe(
    name="quadratic",
    claim="quadratic-nets",
    summary="Quadratic neurons in all linear layers and 2-D convolutions; gamma is the learning rate of the new terms.",
    tasks=ALL_TASKS,
    options={"form": "full", "gamma": 1e-5},
    build=_quadraticize,
    rule=_relinear,
)


def _replace_norm_act(model: nn.Module, splits: Splits, *, kind: Kind, groups: int) -> nn.Module:  # noqa: ARG001
    return replace_norm_act(model, kind, groups)


evonorm = Recipe(
    name="evonorm",
    claim="evonorm",
    summary="EvoNorm instead of every 2-D normalisation and the activation after it: kind S0, S1, S2, B0, B1 or B2.",
    tasks=IMAGES,
    options={"kind": "S0", "groups": 8},
    build=_replace_norm_act,
)


__all__ = ["evonorm", "phm", "quadratic"]
