"""Real data in, one :class:`Splits` out."""

from netwright.data.fingerprint import fingerprint
from netwright.data.loading import known_sets, load
from netwright.data.splits import ALL_TASKS, IMAGES, TABLES, Batch, Slice, Split, Splits, Task

__all__ = [
    "ALL_TASKS",
    "IMAGES",
    "TABLES",
    "Batch",
    "Slice",
    "Split",
    "Splits",
    "Task",
    "fingerprint",
    "known_sets",
    "load",
]
