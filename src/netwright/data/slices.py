"""Subgroups of the samples that the user names: the values of a column, whether the network sees that column or not."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from netwright import checks
from netwright.data.raw import Indices
from netwright.data.splits import Slice

MOST_VALUES = 50
MISSING = "(missing)"


def as_values(column: NDArray[Any], name: str, where: object) -> NDArray[np.str_]:
    """The values of a column as text, one a sample.

    Whole numbers are written without a point, and what is missing as ``(missing)``.

    Args:
        column: One entry a sample: numbers, text, true and false.
        name: What the user calls it.
        where: What it stands in, for messages.

    Raises:
        InputError: If there are not between 2 and 50 different values; numbers have to be brought into ranges first.
    """
    if column.ndim != 1:
        checks.fail(f"the slice {name!r} of {where} must have one value for each sample", f"shape {column.shape}")
    if column.dtype.kind in "fc":
        texts = [MISSING if np.isnan(value) else f"{value:g}" for value in column.tolist()]
    else:
        texts = [MISSING if value is None or value != value else str(value) for value in column.tolist()]
    values = np.array(texts, dtype=np.str_)
    different = len(np.unique(values))
    if not 2 <= different <= MOST_VALUES:
        hint = "; bring numbers into a few ranges first" if different > MOST_VALUES else ""
        checks.fail(f"the slice {name!r} of {where} must have 2 to {MOST_VALUES} different values{hint}", different)
    return values


def slices_of_test(values: Mapping[str, NDArray[np.str_]], test: Indices) -> tuple[Slice, ...]:
    """The slices of the test part; their levels are those of the whole data, in the order of numbers or of the text."""
    found = []
    for name, column in values.items():
        levels = sorted(set(column.tolist()), key=_order)
        number = {level: index for index, level in enumerate(levels)}
        numbers = torch.tensor([number[value] for value in column[test].tolist()], dtype=torch.int64)
        found.append(Slice(name, tuple(levels), numbers))
    return tuple(found)


def check_names(names: Sequence[str], columns: Sequence[str], where: object) -> None:
    """Check that all slices are columns."""
    for name in names:
        if name not in columns:
            raise checks.InputError(f"{where} has no column {name!r} for a slice; {checks.did_you_mean(name, columns)}")


def _order(level: str) -> tuple[bool, float, str]:
    try:
        return False, float(level), level
    except ValueError:
        return True, 0.0, level


__all__ = ["MISSING", "MOST_VALUES", "as_values", "check_names", "slices_of_test"]
