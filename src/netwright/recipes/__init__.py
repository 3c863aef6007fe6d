"""Recipes: how an idea is put into somebody else's network.

A recipe changes the model before training (``build``), how it learns (``rule``), or what training left (``finish``).
Recipes chain: ``phm[n=2]+gradient-noise+lottery-ticket`` on the command line, ``phm | noise`` in Python.
"""

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Self

from torch import nn

from netwright import checks
from netwright.data.splits import Splits, Task
from netwright.training import Rule, Trainer

Option = bool | int | float | str

_RECIPE = re.compile(r"\s*([\w-]+)\s*(?:\[([^\[\]]*)\])?\s*")


def keep(model: nn.Module, context: Splits | Trainer, **options: Option) -> nn.Module:  # noqa: ARG001
    """Leave the model as it is."""
    return model


def no_share(**options: Option) -> float:  # noqa: ARG001
    """Spend nothing of the budget after training."""
    return 0.0


@dataclass(frozen=True)
class Recipe:
    """What one idea does to a user's network.

    The three steps get the options as keyword arguments.

    Attributes:
        name: What the user types.
        claim: Slug of the paper.
        summary: What it does, in one line.
        tasks: Where it applies.
        options: Names and defaults of the options; a value given by the user gets the type of the default.
        build: ``(model, splits, **options)``; returns the changed model, before training.
        rule: ``(model, trainer, **options)``; returns the learning rule that replaces plain backprop.
        finish: ``(model, trainer, **options)``; returns the final model, after training.
        finish_share: ``(**options)``; the fraction of the arm's budget that ``finish`` spends on training. The training
            before it gets the rest, so that every arm of a comparison costs the same.
    """

    name: str
    claim: str
    summary: str
    tasks: frozenset[Task]
    options: Mapping[str, Option] = field(default_factory=dict)
    build: Callable[..., nn.Module] = keep
    rule: Callable[..., Rule] | None = None
    finish: Callable[..., nn.Module] = keep
    finish_share: Callable[..., float] = no_share

    def with_options(self, **given: object) -> Self:
        """This recipe with other values of its options.

        Raises:
            InputError: If there is no such option, or a value has the wrong type.
        """
        options = dict(self.options)
        for name, value in given.items():
            if name not in options:
                hint = checks.did_you_mean(name, options)
                raise checks.InputError(f"recipe {self.name!r} has no option {name!r}; {hint}")
            options[name] = _as_type_of(options[name], value, f"option {name!r} of recipe {self.name!r}")
        return replace(self, options=options)

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}[{given}]" if given else self.name

    def __or__(self, other: "Recipe | Chain") -> "Chain":
        return Chain((self,)) | other


@dataclass(frozen=True)
class Chain:
    """Recipes in a row: all ``build`` steps, the one ``rule``, then all ``finish`` steps.

    Raises:
        InputError: If two recipes bring a rule, or the finish steps leave nothing of the budget for training.
    """

    recipes: tuple[Recipe, ...] = ()

    def __post_init__(self) -> None:
        rules = [recipe.name for recipe in self.recipes if recipe.rule is not None]
        if len(rules) > 1:
            names = " and ".join(map(repr, rules))
            raise checks.InputError(f"a chain can have one learning rule, got {len(rules)}: {names}")
        if self.training_share <= 0:
            raise checks.InputError(f"the chain {self} leaves nothing of the budget for training")

    def __or__(self, other: "Recipe | Chain") -> "Chain":
        return Chain(self.recipes + (other.recipes if isinstance(other, Chain) else (other,)))

    def __str__(self) -> str:
        return "+".join(map(str, self.recipes)) or "baseline"

    @property
    def training_share(self) -> float:
        """The fraction of the budget for the training before the finish steps."""
        return 1.0 - sum(recipe.finish_share(**recipe.options) for recipe in self.recipes)

    @property
    def make_rule(self) -> Callable[[nn.Module, Trainer], Rule] | None:
        """Makes the learning rule of the chain; ``None`` for plain backprop."""
        for recipe in self.recipes:
            if recipe.rule is not None:
                return partial(recipe.rule, **recipe.options)
        return None

    def check_task(self, task: Task) -> None:
        """Raise InputError if a recipe does not apply to ``task``."""
        for recipe in self.recipes:
            if task not in recipe.tasks:
                tasks = ", ".join(sorted(recipe.tasks))
                raise checks.InputError(f"recipe {recipe.name!r} is for {tasks}; the data is for {task}")

    def build(self, model: nn.Module, splits: Splits) -> nn.Module:
        """Apply the build steps in order."""
        for recipe in self.recipes:
            model = recipe.build(model, splits, **recipe.options)
        return model

    def finish(self, model: nn.Module, trainer: Trainer) -> nn.Module:
        """Apply the finish steps in order."""
        for recipe in self.recipes:
            model = recipe.finish(model, trainer, **recipe.options)
        return model


@cache
def all_recipes() -> Mapping[str, Recipe]:
    """All recipes of this package by name."""
    recipes: dict[str, Recipe] = {}
    for module in iter_modules(__path__):
        for value in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(value, Recipe) and recipes.setdefault(value.name, value) is not value:
                raise RuntimeError(f"two recipes are called {value.name!r}")
    return recipes


def parse_chain(text: str) -> Chain:
    """Read ``phm[n=2]+gradient-noise``; ``baseline`` is the empty chain.

    Raises:
        InputError: If a recipe or an option is not known, or the text is not of this form.
    """
    if text.strip() == "baseline":
        return Chain()
    parts = [_RECIPE.fullmatch(part) for part in re.split(r"\+(?![^\[]*\])", text)]
    if not all(parts):
        raise checks.InputError(f"recipes must look like phm[n=2]+gradient-noise, got {text!r}")
    chain = Chain()
    for name, options in (part.groups() for part in parts if part):
        checks.known("recipe", name, all_recipes())
        chain |= all_recipes()[name].with_options(**_parse_options(options or ""))
    return chain


def _parse_options(text: str) -> dict[str, Any]:
    options = {}
    for item in filter(None, map(str.strip, text.split(","))):
        name, equals, value = map(str.strip, item.partition("="))
        if not (name.isidentifier() and equals and value):
            raise checks.InputError(f"options must look like [name=value,…], got [{text}]")
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    return options


def _as_type_of(default: Option, value: object, what: str) -> Option:
    kind = type(default)
    if isinstance(value, bool) == (kind is bool):
        if kind is float and isinstance(value, int | float):
            return float(value)
        if isinstance(value, kind):
            return value
    raise checks.InputError(f"{what} must be of type {kind.__name__} (default {default!r}), got {value!r}")


__all__ = ["Chain", "Option", "Recipe", "all_recipes", "keep", "no_share", "parse_chain"]
