"""The one training loop of the library: any rule, any budget, early stopping on the validation part only."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from netwright import checks
from netwright.data.splits import Batch, Splits
from netwright.training.budget import Budget, Settings
from netwright.training.evaluation import evaluate
from netwright.training.rules import Backprop, Rule, make_fabric

Record = dict[str, float]
Observer = Callable[[Record], None]


class Diverged(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass
class History:
    """What happened during training.

    Attributes:
        records: One entry an evaluation: ``step``, ``epoch``, ``seconds``, mean training ``loss`` since the last one
            and the validation metrics as ``val_…``.
        steps: Number of updates.
        seconds: Time of training, without evaluations.
        best_step: Step whose weights the model has now, if training was stopped early.
    """

    records: list[Record] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    best_step: int | None = None


def fit(
    model: nn.Module,
    splits: Splits,
    budget: Budget,
    rule: Rule | None = None,
    *,
    settings: Settings | None = None,
    seed: int = 0,
    fabric: Fabric | None = None,
    device: str = "cpu",
    evaluate_every: int | None = None,
    patience: int | None = None,
    observer: Observer | None = None,
) -> History:
    """Train ``model`` in place until the budget is spent.

    Args:
        model: The network.
        splits: The data; only ``train`` and ``val`` are read.
        budget: How long.
        rule: What one update does; :class:`Backprop` with ``settings`` if not given.
        settings: Optimiser, learning rate, batch size (the latter also with a rule of one's own).
        seed: Decides the order of the data and nothing else.
        fabric: Device, precision and distribution; made from ``device`` if not given.
        device: Fabric's name of the accelerator.
        evaluate_every: Steps between evaluations on the validation part; one epoch if not given.
        patience: Stop after so many evaluations without a lower validation loss, and go back to the best weights.
        observer: Called with every record as it is made, for progress bars and curves.

    Raises:
        Diverged: If the loss becomes infinite or not a number; it says at which step.

    Example:
        >>> from netwright.data import load
        >>> splits = load("digits")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> history = fit(model, splits, Budget(epochs=2), settings=Settings(lr=0.01))
        >>> len(history.records), history.records[-1]["val_accuracy"] > 0.8
        (2, True)
    """
    settings = settings or Settings()
    fabric = fabric or make_fabric(device)
    steps_per_epoch = math.ceil(len(splits.train) / settings.batch_size)
    max_steps = budget.max_steps(steps_per_epoch)
    if rule is None:
        rule = make_backprop(model, settings, max_steps, fabric)
    interval = evaluate_every or steps_per_epoch
    checks.at_least("evaluate_every", interval, 1)

    history = History()
    best = _Best(patience)
    generator = torch.Generator().manual_seed(seed)
    losses = _MeanLoss()
    model.train()
    started = time.perf_counter()
    spent = False
    while not spent:
        for batch in splits.train.batches(
            settings.batch_size, generator, rank=fabric.global_rank, world_size=fabric.world_size
        ):
            losses.add(rule.step(_on_device(batch, fabric))["loss"])
            history.steps += 1
            spent = history.steps == max_steps or (
                budget.seconds is not None and history.seconds + time.perf_counter() - started >= budget.seconds
            )
            if history.steps % interval and not spent:
                continue
            mean_loss = losses.take(history.steps)
            history.seconds += time.perf_counter() - started
            record = {
                "step": float(history.steps),
                "epoch": history.steps / steps_per_epoch,
                "seconds": history.seconds,
                "loss": mean_loss,
                **{f"val_{name}": value for name, value in evaluate(model, splits.val).items()},
            }
            history.records.append(record)
            if observer is not None:
                observer(record)
            spent = best.is_over(model, record) or spent
            started = time.perf_counter()
            if spent:
                break
    if patience is not None:
        history.best_step = best.restore(model)
    return history


def make_backprop(model: nn.Module, settings: Settings, max_steps: int | None, fabric: Fabric) -> Backprop:
    """Plain backprop as ``settings`` describe it, over a budget of ``max_steps`` updates."""
    optimizer = settings.make_optimizer(p for p in model.parameters() if p.requires_grad)
    return Backprop(model, optimizer, fabric=fabric, scheduler=settings.make_scheduler(optimizer, max_steps))


def _on_device(batch: Batch, fabric: Fabric) -> Batch:
    if fabric.device.type == "cpu":
        return batch
    return Batch(fabric.to_device(batch.inputs), fabric.to_device(batch.targets))


class _MeanLoss:
    """Sums losses without waiting for the device, and looks at them only when the mean is taken."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, loss: Tensor | float) -> None:
        self.total = self.total + loss
        self.count += 1

    def take(self, step: int) -> float:
        mean = float(self.total) / self.count
        if not math.isfinite(mean):
            raise Diverged(f"the loss became {mean} between steps {step - self.count + 1} and {step}")
        self.total, self.count = 0.0, 0
        return mean


class _Best:
    """The weights with the lowest validation loss so far."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.loss = math.inf
        self.step: int | None = None
        self.state: dict[str, Tensor] = {}
        self.waited = 0

    def is_over(self, model: nn.Module, record: Record) -> bool:
        if self.patience is None:
            return False
        loss = record["val_nll"] if "val_nll" in record else record["val_rmse"]
        if loss < self.loss:
            self.loss, self.step, self.waited = loss, int(record["step"]), 0
            self.state = copy.deepcopy(model.state_dict())
        else:
            self.waited += 1
        return self.waited >= self.patience

    def restore(self, model: nn.Module) -> int | None:
        if self.step is not None:
            model.load_state_dict(self.state)
        return self.step


__all__ = ["Diverged", "History", "Observer", "Record", "fit", "make_backprop"]
