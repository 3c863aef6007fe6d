"""What every arm of a comparison trains with; handed to the recipes, so that each spends the same budget alike."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from netwright.data.splits import Splits
from netwright.training.budget import Budget, Settings
from netwright.training.fit import History, fit, make_backprop
from netwright.training.rules import Rule


@dataclass(frozen=True, eq=False)
class Trainer:
    """The data, the budget, the optimiser and the rule of one arm under one seed.

    Attributes:
        splits: The data.
        budget: What the whole arm may spend; in a rule, what this round of training may spend.
        settings: Optimiser, learning rate, batch size.
        seed: Order of the data.
        fabric: Device, precision and distribution.
        make_rule: Makes the learning rule for a model; plain backprop if not given.
        patience: Evaluations without a better validation loss after which training stops.
        initial_state: The weights before training, by name.
        histories: What happened in each round of training so far.
    """

    splits: Splits
    budget: Budget
    settings: Settings
    seed: int
    fabric: Fabric
    make_rule: Callable[[nn.Module, "Trainer"], Rule] | None = None
    patience: int | None = None
    initial_state: Mapping[str, Tensor] = field(default_factory=dict)
    histories: list[History] = field(default_factory=list)

    @property
    def max_steps(self) -> int | None:
        """Updates in the budget; ``None`` if only seconds limit it."""
        return self.budget.max_steps(math.ceil(len(self.splits.train) / self.settings.batch_size))

    def optimizer(self, model: nn.Module) -> Optimizer:
        """The optimiser of the settings over the parameters of ``model`` that are not frozen."""
        return self.settings.make_optimizer(p for p in model.parameters() if p.requires_grad)

    def scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The learning-rate schedule of the settings over the budget."""
        return self.settings.make_scheduler(optimizer, self.max_steps)

    def fit(self, model: nn.Module, share: float = 1.0) -> History:
        """Train ``model`` in place on this share of the budget, with the rule of the arm."""
        part = replace(self, budget=self.budget.share(share)) if share < 1 else self
        rule: Rule
        if self.make_rule is None:
            rule = make_backprop(model, self.settings, part.max_steps, self.fabric)
        else:
            rule = self.make_rule(model, part)
        history = fit(
            model,
            self.splits,
            part.budget,
            rule,
            settings=self.settings,
            seed=self.seed,
            fabric=self.fabric,
            patience=self.patience,
        )
        self.histories.append(history)
        return history


__all__ = ["Trainer"]
