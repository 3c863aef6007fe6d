"""Training, validation and test part: stratified, decided by one seed, official test parts kept."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from netwright import checks
from netwright.data.raw import Indices, Raw
from netwright.data.splits import Task

TEST_FRACTION = 0.2
VAL_FRACTION = 0.2
VAL_FRACTION_BESIDE_OFFICIAL_TEST = 0.1
MOST_VAL_BESIDE_OFFICIAL_TEST = 5000


class Division(NamedTuple):
    """Which samples belong to which part."""

    train: Indices
    val: Indices
    test: Indices


def divide(raw: Raw, *, seed: int, train: int | None = None) -> Division:
    """Divide the samples by the rule that holds for every data set.

    Without an official test part: 60 % training, 20 % validation, 20 % test. With one: it stays the test part, and
    10 % of the training part (at most 5,000 samples) are for validation. An official validation part stays, too.
    Classes keep their shares in every part, and every class is in every part.

    Args:
        raw: The data as read.
        seed: Decides who goes where.
        train: Keep only so many training samples, stratified; the other parts stay as they are.

    Raises:
        InputError: If a class has fewer samples than there are parts to be in, or ``train`` is out of range.
    """
    rng = np.random.default_rng(seed)
    strata = _strata(raw)
    total = len(raw.targets)
    official = [part for part in (raw.val, raw.test) if part is not None]
    rest = np.setdiff1d(np.arange(total), np.concatenate(official)) if official else np.arange(total)
    _enough(raw, strata, rest, parts=3 - len(official))

    test, val = raw.test, raw.val
    if test is None:
        test, rest = _draw(rest, strata, _part(len(rest), TEST_FRACTION, strata[rest]), rng)
    if val is None:
        if raw.test is None:
            count = _part(total, VAL_FRACTION, strata[rest])
        else:
            wanted = min(VAL_FRACTION_BESIDE_OFFICIAL_TEST, MOST_VAL_BESIDE_OFFICIAL_TEST / len(rest))
            count = _part(len(rest), wanted, strata[rest])
        val, rest = _draw(rest, strata, count, rng)
    if train is not None:
        fewest = len(np.unique(strata[rest]))
        if not fewest <= train <= len(rest):
            need = f"at least {fewest} (one per class)" if len(raw.classes) else "at least 1"
            checks.fail(f"train must be {need} and at most the {len(rest)} training samples there are", train)
        rest, _ = _draw(rest, strata, train, rng)
    return Division(np.sort(rest), np.sort(val), np.sort(test))


def allocate(counts: Sequence[int] | NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Share ``total`` out among classes in proportion to ``counts``: every class gets one, none more than it has.

    Largest remainders decide what rounding leaves over. It needs ``len(counts) <= total <= sum(counts)``.
    """
    counts = np.asarray(counts, dtype=np.int64)
    quota = counts * total / counts.sum()
    share: NDArray[np.int64] = np.clip(np.floor(quota).astype(np.int64), 1, counts)
    while (missing := total - share.sum()) != 0:
        step = 1 if missing > 0 else -1
        able = share < counts if step > 0 else share > 1
        gap = np.where(able, step * (quota - share), -np.inf)
        chosen = np.argsort(-gap, kind="stable")[: min(abs(missing), int(able.sum()))]
        share[chosen] += step
    return share


def _strata(raw: Raw) -> NDArray[np.int64]:
    return raw.targets.astype(np.int64) if raw.classes else np.zeros(len(raw.targets), dtype=np.int64)


def _part(total: int, fraction: float, strata: NDArray[np.int64]) -> int:
    return max(round(total * fraction), len(np.unique(strata)))


def _draw(samples: Indices, strata: NDArray[np.int64], count: int, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """``count`` of the samples, stratified, and those that are left."""
    shuffled = rng.permutation(samples)
    _, kinds, sizes = np.unique(strata[shuffled], return_inverse=True, return_counts=True)
    by_kind = np.argsort(kinds, kind="stable")
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(shuffled), dtype=np.int64)
    place[by_kind] = np.arange(len(shuffled)) - np.repeat(starts, sizes)
    chosen = place < allocate(sizes, count)[kinds]
    return shuffled[chosen], shuffled[~chosen]


def _enough(raw: Raw, strata: NDArray[np.int64], samples: Indices, *, parts: int) -> None:
    """Check that every class that there is can be in each of the parts that ``samples`` will be divided into."""
    if not raw.classes:
        if len(samples) < parts:
            checks.fail(f"the data must have at least {parts} samples, one for each part", len(samples))
        return
    counts = np.bincount(strata[samples], minlength=len(raw.classes))
    present = np.bincount(strata, minlength=len(raw.classes)) > 0  # a name may have no samples at all
    rare = [f"{raw.classes[k]!r} ({counts[k]})" for k in np.flatnonzero(present & (counts < parts))]
    if rare:
        shown = ", ".join(rare[:5]) + (f" and {len(rare) - 5} more" if len(rare) > 5 else "")
        number = " (is it a number to predict? then give task='regression')"
        hint = number if raw.task is Task.TABULAR_CLASSIFICATION else ""
        raise checks.InputError(
            f"every class needs at least {parts} samples to be in the training, validation and test part; too few have "
            f"{shown}; leave those classes out or collect more{hint}"
        )


__all__ = ["Division", "allocate", "divide"]
