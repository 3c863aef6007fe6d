"""Learning rules: what one update does with one batch. Plain backprop is the first of them."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import Precision
from lightning_fabric.strategies.single_device import SingleDeviceStrategy
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from netwright.data.splits import Batch

Loss = Callable[[Tensor, Tensor], Tensor]


class Rule(Protocol):
    """One update of a model from one batch."""

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """Update the model and return what was measured; ``"loss"`` must be among it."""
        ...


def task_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy for classes ``(batch,)``, mean squared error for values ``(batch, outputs)``."""
    if targets.is_floating_point():
        return functional.mse_loss(outputs, targets)
    return functional.cross_entropy(outputs, targets)


class Backprop:
    """Gradient descent on the loss of the batch.

    Args:
        model: The network.
        optimizer: Any torch optimiser over its parameters.
        fabric: Device, precision and distribution; the CPU in single precision if not given.
        loss: ``loss(outputs, targets)`` as a scalar; :func:`task_loss` if not given.
        scheduler: Stepped after every update.
        clip_norm: Largest norm of the gradient, if it is to be clipped.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        fabric: Fabric | None = None,
        loss: Loss = task_loss,
        scheduler: LRScheduler | None = None,
        clip_norm: float | None = None,
    ) -> None:
        self.fabric = fabric or make_fabric()
        self.model: Any = self.fabric.to_device(model)
        self.optimizer: Any = optimizer
        self.backward: Callable[[Tensor], None] = torch.autograd.backward
        if not _is_plain(self.fabric):
            self.model, self.optimizer = self.fabric.setup(model, optimizer)
            self.backward = self.fabric.backward
        self.loss = loss
        self.scheduler = scheduler
        self.clip_norm = clip_norm

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One forward pass, one backward pass, one update."""
        loss = self.loss(self.model(batch.inputs), batch.targets)
        self.optimizer.zero_grad()
        self.backward(loss)
        if self.clip_norm is not None:
            self._clip(self.clip_norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return {"loss": loss.detach()}

    def _clip(self, norm: float) -> None:
        if _is_plain(self.fabric):
            nn.utils.clip_grad_norm_(self.model.parameters(), norm)
        else:
            self.fabric.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)


def _is_plain(fabric: Fabric) -> bool:
    """Whether there is one device in single precision, where Fabric's wrappers change nothing but cost time."""
    strategy = fabric.strategy
    return isinstance(strategy, SingleDeviceStrategy) and type(strategy.precision) is Precision


def make_fabric(
    accelerator: str = "cpu", *, devices: int = 1, precision: str = "32-true", strategy: str = "auto"
) -> Fabric:
    """A Lightning Fabric: where and in which precision a model is trained.

    Args:
        accelerator: ``"cpu"``, ``"cuda"`` or ``"auto"``.
        devices: How many of them.
        precision: Fabric's names: ``"32-true"``, ``"64-true"``, ``"bf16-mixed"``, ``"16-mixed"``, …
        strategy: Fabric's names: ``"auto"``, ``"ddp"``, ``"fsdp"``.
    """
    fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision, strategy=strategy)  # type: ignore[arg-type]
    if devices > 1 or strategy != "auto":
        fabric.launch()
    torch.set_float32_matmul_precision("highest")
    return fabric


__all__ = ["Backprop", "Loss", "Rule", "make_fabric", "task_loss"]
