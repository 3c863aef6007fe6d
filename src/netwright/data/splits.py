"""What every loader returns: a training, a validation and a test part, held in memory as tensors."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple, Self

import torch
from torch import Tensor

from netwright import checks

_BATCHES_AT_ONCE = 32


class Task(StrEnum):
    """What is to be predicted from what; a recipe says to which of these it applies."""

    IMAGE_CLASSIFICATION = "image-classification"
    TABULAR_CLASSIFICATION = "tabular-classification"
    TABULAR_REGRESSION = "tabular-regression"
    NODE_CLASSIFICATION = "node-classification"

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return self is not Task.TABULAR_REGRESSION


ALL_TASKS = frozenset(Task)
IMAGES = frozenset({Task.IMAGE_CLASSIFICATION})
TABLES = frozenset({Task.TABULAR_CLASSIFICATION, Task.TABULAR_REGRESSION})


class Batch(NamedTuple):
    """Inputs ``(batch, *input_shape)`` and their targets: classes ``(batch,)`` or values ``(batch, outputs)``."""

    inputs: Tensor
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data.

    Attributes:
        inputs: ``(samples, *input_shape)``, normalised with the statistics of the training part; for a graph the
            numbers of the nodes ``(samples,)``, int64.
        targets: Classes ``(samples,)`` as int64, or values ``(samples, outputs)`` in units of ``target_std``.
        target_std: What one unit of a regression target is in the user's units; errors are reported in the latter.
    """

    inputs: Tensor
    targets: Tensor
    target_std: float = 1.0

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            checks.fail(f"targets must be as many as inputs ({len(self.inputs)})", len(self.targets))

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def is_classification(self) -> bool:
        """Whether the targets are classes."""
        return not self.targets.is_floating_point()

    def take(self, indices: Tensor) -> Self:
        """The part of these samples that ``indices`` names, in that order."""
        return replace(self, inputs=self.inputs[indices], targets=self.targets[indices])

    def batches(
        self, batch_size: int, generator: torch.Generator | None = None, *, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """Batches of one pass over the data: shuffled by ``generator``, in order without one.

        The last batch may be smaller. With several processes each takes its share of every batch, and a batch that has
        no sample for some of them is left out.
        """
        if generator is None:
            chunks = iter([self])
        else:
            # samples are gathered for many batches at once, which is faster than for each, and bounded in memory
            order = torch.randperm(len(self), generator=generator).to(self.inputs.device)
            chunks = (self.take(indices) for indices in torch.split(order, _BATCHES_AT_ONCE * batch_size))
        for chunk in chunks:
            for start in range(0, len(chunk), batch_size):
                if len(chunk) - start < world_size:
                    break
                mine = slice(start + rank, start + batch_size, world_size)
                yield Batch(chunk.inputs[mine], chunk.targets[mine])


@dataclass(frozen=True, eq=False)
class Slice:
    """A column whose values divide the test part into subgroups.

    Attributes:
        name: What the user calls it.
        levels: The values.
        numbers: For each sample of the test part, the number of its value ``(samples,)``, int64.
    """

    name: str
    levels: tuple[str, ...]
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set, divided.

    Attributes:
        name: What the user called it.
        train: For learning; all statistics of normalisation come from here.
        val: For choosing: early stopping, hyper-parameters.
        test: For reporting; it is read once, at the end.
        task: What is to be predicted from what.
        input_shape: Shape of one sample, without the batch: ``(channels, height, width)`` or ``(features,)``; for a
            graph that of the features of a node.
        classes: Names of the classes in the order of their numbers; empty for regression.
        columns: Names of the input features of a table.
        categories: For each column of categories in the user's table, which features it became, one a level; they are
            called ``column=level``, and are 0 or 1.
        edges: Edges ``(2, number)`` of a graph whose nodes are the samples, else ``None``.
        features: Features ``(nodes, features)`` of all nodes of that graph, also of those in no part, else ``None``.
        slices: Subgroups of the test part that the user asked for.
        mean: What was taken off each channel of pictures or column of a table, float64; ``None`` if nothing was, or if
            the inputs were changed by :meth:`map`.
        std: What they were divided by then; a channel or column with 0 is 0 everywhere.
    """

    name: str
    train: Split
    val: Split
    test: Split
    task: Task
    input_shape: tuple[int, ...]
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    categories: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    edges: Tensor | None = None
    features: Tensor | None = None
    slices: tuple[Slice, ...] = ()
    mean: Tensor | None = None
    std: Tensor | None = None

    @property
    def outputs(self) -> int:
        """How many numbers a network has to give for one sample."""
        return len(self.classes) if self.classes else self.train.targets.shape[1]

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Apply ``function`` to the inputs of all three parts, for instance to make pictures smaller.

        For a graph it is applied to the features of the nodes.
        """
        if self.features is not None:
            features = function(self.features)
            return replace(self, features=features, input_shape=tuple(features.shape[1:]))
        parts = {
            part: replace(getattr(self, part), inputs=function(getattr(self, part).inputs))
            for part in ("train", "val", "test")
        }
        return replace(self, input_shape=tuple(parts["train"].inputs.shape[1:]), mean=None, std=None, **parts)

    def normalised(self, inputs: Tensor) -> Tensor:
        """Inputs ``(samples, *input_shape)`` in the user's units as the network takes them."""
        mean, std = self._statistics()
        return torch.where(std > 0, (inputs - mean) / std, 0.0).float()

    def in_user_units(self, inputs: Tensor) -> Tensor:
        """The inverse of :meth:`normalised`, float64: pictures in their own brightness, tables in their own units."""
        mean, std = self._statistics()
        return inputs * std + mean

    def _statistics(self) -> tuple[Tensor, Tensor]:
        if self.mean is None or self.std is None:
            raise checks.InputError("these inputs were not normalised, or were changed since: their units are lost")
        shape = (1, -1, *[1] * (len(self.input_shape) - 1))
        return self.mean.view(shape), self.std.view(shape)


__all__ = ["ALL_TASKS", "IMAGES", "TABLES", "Batch", "Slice", "Split", "Splits", "Task"]
