"""How long to train, and with what optimiser: the same for every arm of a comparison."""

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from netwright import checks

_UNITS = {"epochs": 1.0, "epoch": 1.0, "steps": 1.0, "step": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """How long to train: passes over the data, updates, or seconds; whichever ends first.

    Epochs may be fractions: 2.5 epochs end in the middle of the third pass.

    Example:
        >>> Budget.parse("20epochs"), Budget.parse("1.5min").seconds
        (Budget(epochs=20.0, steps=None, seconds=None), 90.0)
    """

    epochs: float | None = None
    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {unit: value for unit, value in asdict(self).items() if value is not None}
        if not given:
            raise checks.InputError("a budget needs epochs, steps or seconds, got none of them")
        for unit, value in given.items():
            checks.positive(f"budget in {unit}", value)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``20epochs``, ``500steps``, ``90s``, ``5min`` or ``1h``."""
        match = re.fullmatch(r"\s*([0-9.]+)\s*([a-z]+)\s*", text)
        if match is None or match[2] not in _UNITS or match[1].count(".") > 1:
            raise checks.InputError(f"budget must look like 20epochs, 500steps, 90s, 5min or 1h, got {text!r}")
        number, unit = float(match[1]), match[2]
        if unit.startswith("epoch"):
            return cls(epochs=number)
        if unit.startswith("step"):
            if number != int(number):
                raise checks.InputError(f"budget in steps must be a whole number, got {text!r}")
            return cls(steps=int(number))
        return cls(seconds=number * _UNITS[unit])

    def share(self, fraction: float) -> Self:
        """This fraction of the budget; at least one step is left."""
        checks.between("fraction of a budget", fraction, 0, 1, open_low=True)
        return replace(
            self,
            epochs=self.epochs and self.epochs * fraction,
            steps=self.steps and max(1, round(self.steps * fraction)),
            seconds=self.seconds and self.seconds * fraction,
        )

    def max_steps(self, steps_per_epoch: int) -> int | None:
        """The number of updates after which the budget is spent; ``None`` if only seconds limit it."""
        limits = [self.steps] if self.steps is not None else []
        if self.epochs is not None:
            limits.append(max(1, round(self.epochs * steps_per_epoch)))
        return min(limits, default=None)

    def __str__(self) -> str:
        return ", ".join(f"{value:g} {unit}" for unit, value in asdict(self).items() if value is not None)


@dataclass(frozen=True)
class Settings:
    """The optimiser and its numbers.

    Attributes:
        optimizer: ``"adam"``, ``"adamw"`` or ``"sgd"``.
        lr: Learning rate.
        momentum: Of SGD.
        nesterov: Whether SGD looks ahead.
        weight_decay: L2 penalty (``adam``, ``sgd``) or decoupled decay (``adamw``).
        batch_size: Samples an update.
        schedule: Learning rate over the budget: constant, or half a cosine down to 0.
        warmup: Fraction of the budget over which the learning rate rises linearly from 0.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    batch_size: int = 64
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 0.0

    def __post_init__(self) -> None:
        checks.known("optimizer", self.optimizer, ("adam", "adamw", "sgd"))
        checks.known("schedule", self.schedule, ("constant", "cosine"))
        checks.positive("lr", self.lr)
        checks.between("momentum", self.momentum, 0, 1, open_high=True)
        checks.at_least("weight_decay", self.weight_decay, 0)
        checks.at_least("batch_size", self.batch_size, 1)
        checks.between("warmup", self.warmup, 0, 1, open_high=True)

    def make_optimizer(self, parameters: Iterable[Tensor] | Iterable[dict[str, object]]) -> Optimizer:
        """The optimiser for these parameters or parameter groups."""
        if self.optimizer == "sgd":
            return SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
            )
        kind = Adam if self.optimizer == "adam" else AdamW
        return kind(parameters, lr=self.lr, weight_decay=self.weight_decay)

    def make_scheduler(self, optimizer: Optimizer, steps: int | None) -> torch.optim.lr_scheduler.LambdaLR | None:
        """The learning-rate schedule over ``steps`` updates; ``None`` where it stays constant.

        Raises:
            InputError: If the rate has to change over a budget that is given in seconds alone.
        """
        if self.schedule == "constant" and self.warmup == 0:
            return None
        if steps is None:
            raise checks.InputError("a learning-rate schedule needs a budget in epochs or steps, got one in seconds")
        warm = self.warmup * steps

        def factor(step: int) -> float:
            if step < warm:
                return (step + 1) / warm if warm >= 1 else 1.0
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1.0, steps - warm)))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


__all__ = ["Budget", "Settings"]
