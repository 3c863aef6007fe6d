"""Recipes that exchange layers of the user's network before training."""

import math
from functools import partial
from typing import cast, get_args

from torch import nn

from netwright import checks
from netwright.analysis.stitching import select_anchors
from netwright.compression.masks import Mask, make_permanent, prunable
from netwright.data.splits import ALL_TASKS, IMAGES, Splits, Task
from netwright.hypernets.hyperzzw_conv import Branches, to_hyperzzw
from netwright.layers.af_kan import AFKANLayer
from netwright.layers.attention import AsMultiheadAttention, Attention
from netwright.layers.ela import ELA, Place, Variant, insert_attention
from netwright.layers.equiangular import generate_ebv, replace_classifier
from netwright.layers.evonorm import Kind, replace_norm_act
from netwright.layers.gpsa import GPSA
from netwright.layers.hypercomplex import to_hypercomplex
from netwright.layers.mix_shift_conv import to_mix_shift
from netwright.layers.quadratic import Form, quadraticize
from netwright.layers.relative import Similarity, to_relative
from netwright.layers.selectable_kan import POOL, Convs, Mixing, Select, fit_grids_, selectable_layers, to_skan
from netwright.models.vision.ms_mlp import STAGE_KERNELS
from netwright.recipes import Recipe
from netwright.surgery import input_shapes, swap, swapped, torch_blocks
from netwright.training import Backprop, Trainer
from netwright.training.relinear import relinear_param_groups
from netwright.training.skan import SelectionSchedule, SelectiveTraining, prune_


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


def _to_hyperzzw(model: nn.Module, splits: Splits, *, branches: Branches, omega0: float) -> nn.Module:
    device = next((parameter.device for parameter in model.parameters()), None)
    return to_hyperzzw(model, splits.train.inputs[:1].to(device), branches, omega0=omega0)


hyperzzw = Recipe(
    name="hyperzzw",
    claim="hyperzzw",
    summary="Kernels written by coordinate networks, local and as large as the map, in size-keeping convolutions past "
    "the stem; branches: both, local or global.",
    tasks=IMAGES,
    options={"branches": "both", "omega0": 2000.0},
    build=_to_hyperzzw,
)


def _mix_shift(model: nn.Module, splits: Splits, *, shift: int, stage: int, fit: bool) -> nn.Module:
    checks.at_least("option 'shift' of recipe 'mix-shift'", shift, 0)
    checks.between("option 'stage' of recipe 'mix-shift'", stage, 1, len(STAGE_KERNELS))
    half = (shift + 1) // 2
    shifts = (-shift, -half, 0, half, shift)
    device = next((parameter.device for parameter in model.parameters()), None)
    return to_mix_shift(model, splits.train.inputs[:2].to(device), shifts, STAGE_KERNELS[stage - 1], fit=fit)


mix_shift = Recipe(
    name="mix-shift",
    claim="ms-mlp",
    summary="Mix-Shift and a 1×1 convolution for every 'same' convolution but the stem; windows as in the paper's "
    "stage; with fit, smaller shifts on maps that are too small for them.",
    tasks=IMAGES,
    options={"shift": 2, "stage": 1, "fit": True},
    build=_mix_shift,
)


def _ebv(model: nn.Module, splits: Splits, *, dim: int, temperature: float) -> nn.Module:
    checks.at_least("option 'dim' of recipe 'ebv'", dim, 2)
    checks.positive("option 'temperature' of recipe 'ebv'", temperature)
    return replace_classifier(model, generate_ebv(splits.outputs, dim).vectors, temperature)


ebv = Recipe(
    name="ebv",
    claim="equiangular-basis",
    summary="A fixed unit vector for each class, nearly orthogonal in dim dimensions, after the last linear layer.",
    tasks=frozenset(task for task in Task if task.is_classification),
    options={"dim": 64, "temperature": 0.07},
    build=_ebv,
)


def _to_skan(
    model: nn.Module,
    splits: Splits,
    *,
    pool: str,
    num_basis: int,
    select: Select,
    mixing: Mixing,
    convs: Convs,
    selective: float,
    prune: float,
    entropy: float,
) -> nn.Module:
    SelectionSchedule(1 - selective - prune, selective, prune)  # checks them
    checks.at_least("entropy", entropy, 0)
    new = to_skan(model, convs=convs, pool=pool.split("/"), num_basis=num_basis, select=select, mixing=mixing)
    return fit_grids_(new, splits.train.inputs[:256])


def _select(
    model: nn.Module,
    trainer: Trainer,
    *,
    selective: float,
    prune: float,
    entropy: float,
    **options: object,  # noqa: ARG001
) -> SelectiveTraining:
    optimizer = trainer.optimizer(model)
    share = selective / (1 - prune)  # the last phase is the training that follows pruning
    return SelectiveTraining(
        model,
        optimizer,
        schedule=SelectionSchedule(1 - share, share, 0.0),
        steps=trainer.max_steps,
        seconds=trainer.budget.seconds,
        entropy=entropy,
        fabric=trainer.fabric,
        scheduler=trainer.scheduler(optimizer),
    )


def _prune_families(model: nn.Module, trainer: Trainer, *, prune: float, **options: object) -> nn.Module:  # noqa: ARG001
    make_permanent(model)
    for layer in selectable_layers(model).values():
        if layer.phase == "full":  # the weights of an early epoch were the best
            layer.select_()
    prune_(model)
    if prune > 0:
        # weights that another recipe has pruned are not to grow again
        zeros = {name: weight != 0 for name, weight in prunable(model).items() if not weight.all()}
        Mask(zeros).attach_(model)
        trainer.fit(model, prune)
    return make_permanent(model)


def _prune_share(*, prune: float, **options: object) -> float:  # noqa: ARG001
    return prune


s_kan = Recipe(
    name="s-kan",
    claim="s-kan",
    summary="KAN layers that select their functions, for all linear layers but the last, or else for convolutions.",
    tasks=ALL_TASKS,
    options={
        "pool": "/".join(POOL),
        "num_basis": 8,
        "select": "node",
        "mixing": "softmax",
        "convs": "auto",
        "selective": 0.4,
        "prune": 0.2,
        "entropy": 0.0,
    },
    build=_to_skan,
    rule=_select,
    finish=_prune_families,
    finish_share=_prune_share,
)


def _ela(model: nn.Module, splits: Splits, *, variant: Variant, place: str) -> nn.Module:  # noqa: ARG001
    checks.known("variant of ELA", variant, get_args(Variant))
    places: tuple[Place, ...] = get_args(Place)
    checks.known("place", place, ("auto", *places))

    def make(channels: int) -> ELA:
        return ELA(channels, variant, norm_groups="auto")

    if place == "auto":
        try:
            return insert_attention(model, make, "branch_end")
        except checks.InputError:
            place = "norm"
    return insert_attention(model, make, cast("Place", place))


ela = Recipe(
    name="ela",
    claim="ela",
    summary="Efficient local attention, variant T, B, S or L, at the end of every residual branch, or after every norm "
    "of a network without blocks; place: auto, branch_end, block_end, depthwise, norm.",
    tasks=IMAGES,
    options={"variant": "T", "place": "auto"},
    build=_ela,
)


def _af_kan(
    model: nn.Module,
    splits: Splits,  # noqa: ARG001
    *,
    grid: int,
    order: int,
    activation: str,
    func: str,
    reduction: str,
) -> nn.Module:
    inside = torch_blocks(model)
    make = partial(AFKANLayer.like, grid=grid, order=order, activation=activation, func=func, reduction=reduction)
    new = swap(model, {nn.Linear: make}, where=lambda name, _: not name.startswith(inside))
    if not swapped(new):
        raise checks.InputError("recipe 'af-kan' replaces linear layers; the network has none that can be replaced")
    return new


af_kan = Recipe(
    name="af-kan",
    claim="af-kan",
    summary="KAN layers from pairs of activations, reduced by attention, for all linear layers; about the same size.",
    tasks=ALL_TASKS,
    options={"grid": 3, "order": 3, "activation": "silu", "func": "quad1", "reduction": "global"},
    build=_af_kan,
)


def _relative(
    model: nn.Module, splits: Splits, *, anchors: int, similarity: Similarity, refresh_every: int
) -> nn.Module:
    checks.between("option 'anchors' of recipe 'relative'", anchors, 1, len(splits.train))
    checks.at_least("option 'refresh_every' of recipe 'relative'", refresh_every, 1)
    chosen = select_anchors(splits.train.inputs, anchors, "stratified", splits.train.targets)
    return to_relative(model, splits.train.inputs[chosen], similarity, refresh_every=refresh_every)


relative = Recipe(
    name="relative",
    claim="relative-representations",
    summary="A last linear layer that sees how similar the features are to those of anchors, samples of the training "
    "part; similarity: cosine, euclidean, l1, angular, basis_change; each step encodes the anchors, too.",
    tasks=frozenset(task for task in Task if task.is_classification),
    options={"anchors": 300, "similarity": "cosine", "refresh_every": 1},
    build=_relative,
)


__all__ = [
    "af_kan",
    "ebv",
    "ela",
    "evonorm",
    "gpsa",
    "hyperzzw",
    "mix_shift",
    "phm",
    "quadratic",
    "relative",
    "s_kan",
]
