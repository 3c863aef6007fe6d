"""What a reader hands over: data as it stands in the file, before it is divided and normalised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from netwright.data.splits import Task

if TYPE_CHECKING:  # most sources need no pandas, and it takes half a second to import
    import pandas as pd

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Raw:
    """A data set as it was read.

    Attributes:
        inputs: Images ``(samples, channels, height, width)``, numbers ``(samples, features)``, a table with columns of
            any kind, or the numbers of the nodes of a graph ``(samples,)``.
        targets: Classes ``(samples,)`` as int64, or values ``(samples, outputs)`` as float64.
        task: What is to be predicted from what.
        classes: Names of the classes in the order of their numbers; empty for regression.
        columns: Names of the columns of a table of numbers.
        val: Which samples the publisher of the data keeps for validation, if any.
        test: Which samples the publisher of the data keeps for testing, if any.
        features: Features of all nodes of a graph ``(nodes, features)``.
        edges: Edges of a graph ``(2, number)``.
        slices: For each column that the user names, what each sample has there: see :mod:`netwright.data.slices`.
    """

    inputs: NDArray[Any] | pd.DataFrame
    targets: NDArray[np.int64] | NDArray[np.float64]
    task: Task
    classes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    val: Indices | None = None
    test: Indices | None = None
    features: NDArray[np.float32] | None = None
    edges: NDArray[np.int64] | None = None
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)


__all__ = ["Indices", "Raw"]
