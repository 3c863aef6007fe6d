"""Recipes that make a network smaller."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression.binary import to_biper
from netwright.compression.channels import channel_graph
from netwright.compression.feature_merging import iterative_feature_merging, mergeable
from netwright.compression.lottery import Scope, fractions_for, magnitude_mask
from netwright.compression.masks import Mask, make_permanent, prunable
from netwright.compression.random_pruning import random_prune, scoring_batch
from netwright.data.splits import ALL_TASKS, IMAGES, TABLES, Splits
from netwright.layers.biper import set_stage
from netwright.recipes import Recipe
from netwright.training import Trainer


def _random_pruning(model: nn.Module, splits: Splits, *, density: float, allocation: str) -> nn.Module:
    model = copy.deepcopy(model)
    random_prune(model, density, allocation, batch=scoring_batch(splits))
    return model


def _without_masks(model: nn.Module, trainer: Trainer, **options: object) -> nn.Module:  # noqa: ARG001
    return make_permanent(model)


random_pruning = Recipe(
    name="random-pruning",
    claim="random-pruning",
    summary="Prune at random before training, with densities that suit the layers, and train sparse.",
    tasks=ALL_TASKS,
    options={"density": 0.2, "allocation": "erk"},
    build=_random_pruning,
    finish=_without_masks,
)


def _lottery_ticket(model: nn.Module, trainer: Trainer, *, density: float, rounds: int, scope: Scope) -> nn.Module:
    initial = trainer.initial_state
    if not _is_same_network(initial, model.state_dict()):
        raise checks.InputError(
            "lottery-ticket goes back to the weights before training, but the network has others now; "
            "put it before the recipes that change the network after training"
        )
    model = make_permanent(copy.deepcopy(model))
    # what is zero before and after training is dead already, for instance by random-pruning
    mask = Mask({name: (weight != 0) | (initial[name].to(weight) != 0) for name, weight in prunable(model).items()})
    fractions = fractions_for(mask, density, rounds, scope)
    share = _lottery_share(density=density, rounds=rounds, scope=scope) / rounds
    for _ in range(rounds):
        mask = magnitude_mask(dict(model.named_parameters()), mask, fractions, scope)
        make_permanent(model).load_state_dict(dict(initial))
        mask.attach_(model)
        trainer.fit(model, share)
    return make_permanent(model)


def _is_same_network(initial: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> bool:
    """Whether the weights of ``initial`` make the same network, and its layers are in the state they were in."""
    return initial.keys() == now.keys() and all(
        torch.equal(initial[name], now[name])
        if name.endswith("_extra_state")
        else initial[name].shape == now[name].shape
        for name in now
    )


def _lottery_share(*, density: float, rounds: int, scope: str) -> float:  # noqa: ARG001
    """The first training and the one after every pruning take the same time."""
    return rounds / (rounds + 1)


lottery_ticket = Recipe(
    name="lottery-ticket",
    claim="lottery-ticket",
    summary="Prune the smallest weights in rounds, and train what is left from its first weights again.",
    tasks=ALL_TASKS,
    options={"density": 0.2, "rounds": 3, "scope": "layer"},
    finish=_lottery_ticket,
    finish_share=_lottery_share,
)


def _to_biper(model: nn.Module, splits: Splits, *, freq: float, stage1: float, stage2_lr: float) -> nn.Module:  # noqa: ARG001
    device = next((parameter.device for parameter in model.parameters()), None)
    return to_biper(model, splits.train.inputs[:64].to(device), freq)


def _second_stage(model: nn.Module, trainer: Trainer, *, freq: float, stage1: float, stage2_lr: float) -> nn.Module:  # noqa: ARG001
    settings = trainer.settings
    # the authors divide the weight decay by ten, whatever the network
    gentler = replace(settings, lr=settings.lr * stage2_lr, weight_decay=settings.weight_decay / 10)
    set_stage(model, 2)
    replace(trainer, settings=gentler).fit(model, 1 - stage1)
    return model


def _second_share(*, freq: float, stage1: float, stage2_lr: float) -> float:
    checks.positive("option 'freq' of recipe 'biper'", freq)
    checks.between("option 'stage1' of recipe 'biper'", stage1, 0, 1, open_low=True, open_high=True)
    checks.positive("option 'stage2_lr' of recipe 'biper'", stage2_lr)
    return 1 - stage1


biper = Recipe(
    name="biper",
    claim="biper",
    summary="Binary weights and inputs between the first and the last layer, Hardtanh for ReLU: stage1 of the budget "
    "with the sine of the weights, the rest with its sign.",
    tasks=ALL_TASKS,
    options={"freq": 20.0, "stage1": 0.67, "stage2_lr": 0.18},  # the authors' 600 of 900 epochs, and 0.0037 / 0.021
    build=_to_biper,
    finish=_second_stage,
    finish_share=_second_share,
)


def _check_mergeable(model: nn.Module, splits: Splits, *, beta: float, max_ratio: float) -> nn.Module:
    """Find out before training, not after it, whether there will be anything to merge."""
    checks.between("option 'beta' of recipe 'feature-merging'", beta, 0, 1)
    checks.between("option 'max_ratio' of recipe 'feature-merging'", max_ratio, 0, 1, open_low=True)
    mergeable(channel_graph(make_permanent(copy.deepcopy(model)), splits.train.inputs[:1]))
    return model


def _feature_merging(model: nn.Module, trainer: Trainer, *, beta: float, max_ratio: float) -> nn.Module:
    # masks of a recipe that comes later in the chain are no part of the network
    model = make_permanent(copy.deepcopy(model))
    return iterative_feature_merging(model, beta, max_ratio, example_input=trainer.splits.train.inputs[:1]).model


feature_merging = Recipe(
    name="feature-merging",
    claim="iterative-feature-merging",
    summary="Merge channels with nearly the same weights after training, without training again.",
    tasks=IMAGES | TABLES,
    options={"beta": 0.1, "max_ratio": 1.0},
    build=_check_mergeable,
    finish=_feature_merging,
)
