"""From targets as a user writes them to class numbers, and whether they are classes at all."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from netwright import checks

MOST_CLASSES_OF_NUMBERS = 20


def is_regression(targets: NDArray[Any]) -> bool:
    """Whether targets look like numbers to predict: not all whole, or more than 20 different ones."""
    if targets.dtype.kind not in "iuf":
        return False
    whole = targets.dtype.kind != "f" or bool((targets == np.round(targets)).all())
    return not whole or len(np.unique(targets)) > MOST_CLASSES_OF_NUMBERS


def encode_labels(labels: NDArray[Any], names: NDArray[Any] | None = None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Number the classes in the order of their labels.

    Args:
        labels: Numbers or text ``(samples,)``.
        names: What the classes are called, where labels are numbers from 0 on.

    Returns:
        Class numbers ``(samples,)`` and the names of the classes.

    Raises:
        InputError: If there is only one class, or labels and names do not fit together.
    """
    if labels.ndim != 1:
        checks.fail(
            "classes must have shape (samples,), one number or name a sample (for rows of 0 and 1 take argmax(1))",
            f"shape {labels.shape}",
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    levels, numbers = np.unique(labels, return_inverse=True)
    if len(levels) < 2:
        checks.fail("the target must have at least two classes to tell apart", f"only {_name(levels.tolist()[0])!r}")
    if names is None or labels.dtype.kind not in "iuf":
        return numbers.astype(np.int64), tuple(_name(level) for level in levels.tolist())
    if names.ndim != 1 or levels[0] < 0 or levels[-1] >= len(names) or (levels != np.round(levels)).any():
        checks.fail(
            f"labels must be numbers from 0 to {len(names) - 1}, as 'classes' has {len(names)} names",
            f"{_name(levels[0].item())} to {_name(levels[-1].item())}",
        )
    return labels.astype(np.int64), tuple(str(name) for name in names)


def _name(level: object) -> str:
    return str(int(level)) if isinstance(level, float) and level.is_integer() else str(level)


__all__ = ["encode_labels", "is_regression"]
