"""How well the occupied parts of a line are found: overlap of bins, and segments matched one to one.

The measures of CMuSeNet (2025, arXiv:2506.11048) for bands of a spectrum; they serve any masks ``(..., bins)``, such as
speech in time. ``occupied`` makes masks from scores; ``complex_iou``, ``segments``, ``match_segments``,
``segment_scores`` and ``mean_by_level`` judge them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from netwright import checks

Rule = Literal["or", "and", "real"]


def occupied(scores: Tensor, threshold: float = 0.5, *, rule: Rule = "or", dilate: int = 0) -> Tensor:
    """Which bins the scores call occupied.

    Args:
        scores: ``(..., bins)``, complex or real; booleans are taken as they are.
        threshold: A part of a score above it speaks for the bin.
        rule: Whether one part of a complex score suffices (``"or"``), both must speak (``"and"``), or the real part
            decides (``"real"``).
        dilate: Bins by which every segment is widened on either side.

    Returns:
        ``(..., bins)``, boolean.

    Raises:
        InputError: If the rule is unknown or ``dilate`` negative.
    """
    checks.known("rule", rule, get_args(Rule))
    checks.at_least("dilate", dilate, 0)
    if scores.dtype == torch.bool:
        mask = scores
    elif not scores.is_complex():
        mask = scores > threshold
    elif rule == "or":
        mask = (scores.real > threshold) | (scores.imag > threshold)
    elif rule == "and":
        mask = (scores.real > threshold) & (scores.imag > threshold)
    else:
        mask = scores.real > threshold
    if dilate == 0:
        return mask
    line = mask.reshape(-1, 1, mask.shape[-1]).float()
    return functional.max_pool1d(line, 2 * dilate + 1, stride=1, padding=dilate).view(mask.shape) > 0


def complex_iou(pred: Tensor, target: Tensor, threshold: float = 0.5, *, rule: Rule = "or", dilate: int = 0) -> Tensor:
    r"""Intersection over union of the occupied bins of each line.

    .. math:: \mathrm{IoU} = \frac{|P \cap T|}{|P \cup T|}, \qquad P = \{j : \Re z_j > \theta \vee \Im z_j > \theta\}

    Args:
        pred: Scores ``(..., bins)``, see :func:`occupied`.
        target: Which bins are occupied ``(..., bins)``, boolean or 0 and 1.
        threshold: θ.
        rule: See :func:`occupied`.
        dilate: See :func:`occupied`.

    Returns:
        ``(...)``, float64; 1 where nothing is occupied and nothing was found.

    Raises:
        InputError: As :func:`occupied`, or if the shapes differ.

    Source:
        arXiv:2506.11048.

    Example:
        >>> scores = torch.tensor([0.9 + 0.1j, 0.2 + 0.8j, 0.1 + 0.1j, 0.7 + 0.7j])
        >>> truth = torch.tensor([True, True, False, False])
        >>> [round(complex_iou(scores, truth, rule=rule).item(), 3) for rule in ("or", "and", "real")]
        [0.667, 0.0, 0.333]
    """
    found, truth = _masks(pred, target, threshold, rule, dilate)
    union = (found | truth).sum(-1).double()
    return torch.where(union > 0, (found & truth).sum(-1) / union.clamp_min(1), 1.0)


def bin_accuracy(pred: Tensor, target: Tensor, threshold: float = 0.5, *, rule: Rule = "or", dilate: int = 0) -> Tensor:
    """Fraction of the bins of each line that are called rightly ``(...)``; arguments as :func:`complex_iou`."""
    found, truth = _masks(pred, target, threshold, rule, dilate)
    return (found == truth).double().mean(-1)


def _masks(pred: Tensor, target: Tensor, threshold: float, rule: Rule, dilate: int) -> tuple[Tensor, Tensor]:
    if pred.shape != target.shape:
        checks.fail(f"target must have the shape of the scores, {tuple(pred.shape)}", tuple(target.shape))
    return occupied(pred, threshold, rule=rule, dilate=dilate), target.bool()


def segments(mask: Tensor) -> Tensor:
    """Runs of occupied bins.

    Args:
        mask: ``(bins,)`` or ``(lines, bins)``, boolean or 0 and 1.

    Returns:
        First bin and the bin after the last ``(segments, 2)``; for several lines the number of the line before them
        ``(segments, 3)``. In ascending order.

    Raises:
        InputError: If the mask has another number of dimensions.

    Example:
        >>> segments(torch.tensor([1, 1, 0, 0, 1, 0])).tolist()
        [[0, 2], [4, 5]]
    """
    checks.dimensions("mask", mask, "(bins,)", "(lines, bins)")
    # a bin of nothing at both ends closes every run within its line
    steps = functional.pad(mask.reshape(-1, mask.shape[-1]).to(torch.int8), (1, 1)).diff()
    first, last = (steps == 1).nonzero(), (steps == -1).nonzero()
    found = torch.cat([first, last[:, 1:]], dim=1)
    return found if mask.ndim == 2 else found[:, 1:]


def interval_iou(found: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of all pairs of intervals ``(n, 2)`` and ``(m, 2)``: ``(n, m)``, float64."""
    first = torch.maximum(found[:, None, 0], truth[None, :, 0])
    last = torch.minimum(found[:, None, 1], truth[None, :, 1])
    common = (last - first).clamp_min(0).double()
    lengths = (found[:, 1] - found[:, 0])[:, None] + (truth[:, 1] - truth[:, 0])[None]
    return common / (lengths - common)


@dataclass(frozen=True, eq=False)
class Matching:
    """Segments that belong together.

    Attributes:
        found: Numbers of the found segments ``(pairs,)``.
        truth: Numbers of the true segments that they are matched with ``(pairs,)``.
        iou: Intersection over union of each pair ``(pairs,)``, above 0.
    """

    found: Tensor
    truth: Tensor
    iou: Tensor


def match_segments(found: Tensor, truth: Tensor) -> Matching:
    """Match found segments with true ones, one to one, so that the sum of their IoU is as large as possible.

    Args:
        found: First bin and the bin after the last of each found segment ``(n, 2)``; they may overlap.
        truth: Of each true segment ``(m, 2)``.

    Returns:
        The pairs that overlap, in the order of the found segments.

    Raises:
        InputError: If the shapes are others or a segment ends before it starts.

    Source:
        Kuhn 1955 (the Hungarian method), as solved by ``scipy.optimize.linear_sum_assignment``.

    Example:
        >>> matching = match_segments(torch.tensor([[0, 4], [5, 9]]), torch.tensor([[5, 10], [20, 30]]))
        >>> matching.found.tolist(), matching.truth.tolist(), matching.iou.tolist()
        ([1], [0], [0.8])
    """
    for name, intervals in (("found", found), ("truth", truth)):
        checks.dimensions(name, intervals, "(segments, 2)")
        checks.size(name, intervals, 1, 2)
        if (intervals[:, 1] <= intervals[:, 0]).any():
            checks.fail(f"segments of {name} must end after they start", intervals.tolist())
    iou = interval_iou(found, truth)
    rows, columns = (torch.from_numpy(side) for side in linear_sum_assignment(iou.cpu().numpy(), maximize=True))
    values = iou.cpu()[rows, columns]
    overlap = values > 0
    return Matching(rows[overlap], columns[overlap], values[overlap])


@dataclass(frozen=True, eq=False)
class SegmentScores:
    """How many segments were found, for each threshold on their IoU.

    Attributes:
        thresholds: Of the IoU from which a matched pair counts.
        recall: Fraction of the true segments that have a found one ``(thresholds,)``; not a number if there are none.
        precision: Fraction of the found segments that have a true one ``(thresholds,)``; likewise.
        mean_iou: Sum of the IoU of all pairs over the number of true segments.
    """

    thresholds: tuple[float, ...]
    recall: Tensor
    precision: Tensor
    mean_iou: float


def segment_scores(pred: Tensor, target: Tensor, thresholds: Sequence[float] = (0.5, 0.7, 0.9)) -> SegmentScores:
    """Match the segments of each line, and count over all lines.

    Args:
        pred: Which bins were found occupied ``(lines, bins)``, boolean; see :func:`occupied`.
        target: Which are ``(lines, bins)``, boolean or 0 and 1.
        thresholds: Of the IoU.

    Raises:
        InputError: If the shapes differ or are others, or a threshold is not in (0, 1].

    Example:
        >>> truth = torch.tensor([[1, 1, 1, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0]]).bool()
        >>> found = torch.tensor([[1, 1, 1, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, 0, 0]]).bool()
        >>> segment_scores(found, truth).recall.tolist()
        [1.0, 1.0, 0.5]
    """
    checks.dimensions("pred", pred, "(lines, bins)")
    if pred.shape != target.shape:
        checks.fail(f"target must have the shape of pred, {tuple(pred.shape)}", tuple(target.shape))
    for threshold in thresholds:
        checks.between("threshold", threshold, 0, 1, open_low=True)
    found, truth = segments(pred).cpu(), segments(target).cpu()
    lines = len(pred)
    by_line = zip(
        torch.split(found[:, 1:], torch.bincount(found[:, 0], minlength=lines).tolist()),
        torch.split(truth[:, 1:], torch.bincount(truth[:, 0], minlength=lines).tolist()),
        strict=True,
    )
    pairs = [match_segments(ours, theirs).iou for ours, theirs in by_line if len(ours) and len(theirs)]
    iou = torch.cat([*pairs, torch.empty(0, dtype=torch.float64)])
    hits = (iou[None] >= torch.tensor(thresholds, dtype=torch.float64)[:, None]).sum(1).double()
    mean_iou = float(iou.sum()) / len(truth) if len(truth) else float("nan")
    return SegmentScores(tuple(thresholds), hits / len(truth), hits / len(found), mean_iou)


def mean_by_level(values: Tensor, levels: Tensor) -> list[tuple[float, float]]:
    """Mean of ``values (n,)`` at each value of ``levels (n,)``, such as the SNR; ascending.

    Example:
        >>> mean_by_level(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([5.0, -5.0, 5.0]))
        [(-5.0, 2.0), (5.0, 3.5)]
    """
    if values.shape != levels.shape or values.ndim != 1:
        checks.fail("values and levels must have one shape (n,)", f"{tuple(values.shape)} and {tuple(levels.shape)}")
    level, number = torch.unique(levels, return_inverse=True)
    sums = torch.zeros(len(level), dtype=torch.float64, device=values.device).index_add_(0, number, values.double())
    return list(zip(level.tolist(), (sums / torch.bincount(number)).tolist(), strict=True))


__all__ = [
    "Matching",
    "SegmentScores",
    "bin_accuracy",
    "complex_iou",
    "interval_iou",
    "match_segments",
    "mean_by_level",
    "occupied",
    "segment_scores",
    "segments",
]
