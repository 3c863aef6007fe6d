"""Recipes that exchange layers of the user's network before training."""

import math

from torch import nn

from netwright import checks
from netwright.data.splits import ALL_TASKS, IMAGES, Splits
from netwright.layers.attention import AsMultiheadAttention, Attention
from netwright.layers.evonorm import Kind, replace_norm_act
from netwright.layers.gpsa import GPSA
from netwright.layers.hypercomplex import to_hypercomplex
from netwright.layers.quadratic import Form, quadraticize
from netwright.recipes import Recipe
from netwright.surgery import input_shapes, swap
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


def _gpsa(model: nn.Module, splits: Splits, *, share: float, locality_strength: float) -> nn.Module:
    checks.between("option 'share' of recipe 'gpsa'", share, 0, 1, open_low=True)
    checks.positive("option 'locality_strength' of recipe 'gpsa'", locality_strength)
    kinds = (Attention, nn.MultiheadAttention)
    shapes = input_shapes(model, splits.train.inputs[:2], kinds)  # in the order of the forward pass
    if not shapes:
        raise checks.InputError(
            "recipe 'gpsa' replaces self-attention (nn.MultiheadAttention, or netwright.layers.attention.Attention); "
            "the network uses none"
        )
    chosen = list(shapes)[: max(1, round(share * len(shapes)))]
    prefix = max(_prefix_tokens(model.get_submodule(name), name, shapes[name]) for name in chosen)

    def local(attention: Attention | nn.MultiheadAttention) -> nn.Module:
        layer = GPSA.like(attention, locality_strength=locality_strength, prefix_tokens=prefix)
        if isinstance(attention, nn.MultiheadAttention):
            return AsMultiheadAttention(layer, attention.batch_first)
        return layer

    return swap(model, dict.fromkeys(kinds, local), where=lambda name, _: name in chosen)


def _prefix_tokens(attention: nn.Module, name: str, shape: tuple[int, ...]) -> int:
    """Tokens before those that fill a square: none, a class token, or a class and a distillation token."""
    sequence_first = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
    tokens = shape[0] if sequence_first or len(shape) == 2 else shape[1]
    for prefix in range(3):
        if tokens > prefix and math.isqrt(tokens - prefix) ** 2 == tokens - prefix:
            return prefix
    raise checks.InputError(
        f"recipe 'gpsa' needs patches in a square, after at most 2 other tokens; {name!r} gets {tokens} tokens"
    )


gpsa = Recipe(
    name="gpsa",
    claim="convit",
    summary="Self-attention over patches that starts as a convolution, in the first share of the attention layers.",
    tasks=IMAGES,
    options={"share": 0.8, "locality_strength": 1.0},
    build=_gpsa,
)


__all__ = ["evonorm", "gpsa", "phm", "quadratic"]
