"""Recipes that make a network smaller."""

import copy

from torch import nn

from netwright import checks
from netwright.compression.lottery import Scope, fractions_for, magnitude_mask
from netwright.compression.masks import Mask, make_permanent, prunable
from netwright.compression.random_pruning import random_prune, scoring_batch
from netwright.data.splits import ALL_TASKS, Splits
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
    if initial.keys() != model.state_dict().keys():
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
