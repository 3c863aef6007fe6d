"""Class means, and the covariances within and between classes, gathered in one pass over features of any number.

What measures of class separation such as neural collapse (Papyan, Han, Donoho 2020, arXiv:2008.08186) are made of.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from netwright import checks

_ROWS_AT_ONCE = 2048


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    r"""Means and covariances of features that belong to classes; all in float64.

    Attributes:
        counts: Samples of each class, ``(classes,)``.
        means: Mean feature of each class, ``(classes, width)``.
        global_mean: Mean over all samples, ``(width,)``.
        within: :math:`\Sigma_W = \frac1N \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^\top`, ``(width, width)``.
    """

    counts: Tensor
    means: Tensor
    global_mean: Tensor
    within: Tensor

    @property
    def between(self) -> Tensor:
        r""":math:`\Sigma_B = \frac1K \sum_k (\mu_k - \mu_G)(\mu_k - \mu_G)^\top`, ``(width, width)``."""
        centred = self.means - self.global_mean
        return centred.T @ centred / len(centred)

    def nc1(self) -> Tensor:
        """As the function :func:`nc1`, from the statistics alone."""
        whitener = between_whitener(self.means, self.global_mean)
        if whitener.numel() == 0:
            return self.within.new_full((), torch.inf)
        return (whitener @ self.within * whitener).sum()

    def nc1_trace_ratio(self) -> Tensor:
        """As the function :func:`nc1_trace_ratio`, from the statistics alone."""
        return trace_ratio(self.within.trace(), self.means, self.global_mean)


class ClassMoments:
    """Gathers :class:`ClassStatistics` batch by batch, in memory that does not grow with the number of samples.

    Batches are joined by the update of Chan, Golub, LeVeque (1979), which stays accurate when the classes have all but
    collapsed, where the difference of raw second moments would be rounding error. Memory is O(width²), and a batch
    costs O(samples·width² + classes·width²).

    Args:
        num_classes: Number of classes.
        width: Width of the features.
        device: Where to gather.

    Example:
        >>> moments = ClassMoments(num_classes=2, width=3)
        >>> for _ in range(4):
        ...     moments.update(torch.randn(10, 3), torch.arange(10) % 2)
        >>> moments.statistics().counts
        tensor([20, 20])
    """

    def __init__(self, num_classes: int, width: int, *, device: torch.device | str | None = None) -> None:
        checks.at_least("number of classes", num_classes, 2)
        checks.at_least("width of the features", width, 1)
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.means = torch.zeros(num_classes, width, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(width, width, dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add samples: features ``(samples, width)`` and their classes ``(samples,)``."""
        num_classes, width = self.means.shape
        check_labels(features, labels, num_classes)
        checks.size("features", features, 1, width)
        for rows, classes in chunks(features, labels):
            values, classes = rows.to(self.means.device), classes.to(self.counts.device)
            counts, means = _class_means(values, classes, num_classes)
            residual = values - means.index_select(0, classes)
            self.scatter.addmm_(residual.T, residual)
            self._join(counts, means)

    def merge(self, other: "ClassMoments") -> None:
        """Add all that another one has gathered, for instance another process."""
        if other.means.shape != self.means.shape:
            checks.fail(f"the other moments must have shape {tuple(self.means.shape)}", tuple(other.means.shape))
        self.scatter += other.scatter.to(self.scatter)
        self._join(other.counts.to(self.counts), other.means.to(self.means))

    def _join(self, counts: Tensor, means: Tensor) -> None:
        """Take in samples whose scatter about their own class means is already counted."""
        total = self.counts + counts
        share = counts.to(means) / total.clamp(min=1)
        shift = means - self.means
        self.scatter.addmm_((shift * (self.counts * share)[:, None]).T, shift)
        self.means += share[:, None] * shift
        self.counts = total

    def statistics(self) -> ClassStatistics:
        """What was gathered so far.

        Raises:
            InputError: If a class has no sample yet.
        """
        _check_filled(self.counts)
        samples = self.counts.sum()
        return ClassStatistics(
            self.counts.clone(), self.means.clone(), self.counts.double() @ self.means / samples, self.scatter / samples
        )


def class_statistics(features: Tensor, labels: Tensor, num_classes: int | None = None) -> ClassStatistics:
    """Class means, global mean and the covariances within and between classes.

    Args:
        features: ``(samples, width)``.
        labels: Classes ``(samples,)``, integers from 0.
        num_classes: Number of classes; one more than the largest label if not given.

    Returns:
        See :class:`ClassStatistics`. Nothing larger than ``(width, width)`` is held besides a few thousand samples.

    Raises:
        InputError: If a label is outside of the classes, a class is empty, there is one class only, labels are not as
            many as features, or the width is 0.

    Example:
        >>> statistics = class_statistics(torch.tensor([[0.0], [2.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1]))
        >>> statistics.means.squeeze(1).tolist(), statistics.within.item(), statistics.between.item()
        ([1.0, 5.0], 0.5, 4.0)
    """
    number = check_labels(features, labels, num_classes)
    moments = ClassMoments(number, features.shape[1], device=features.device)
    moments.update(features, labels)
    return moments.statistics()


def check_labels(features: Tensor, labels: Tensor, num_classes: int | None) -> int:
    """Check features ``(samples, width)`` and their classes ``(samples,)``; return the number of classes."""
    checks.dimensions("features", features, "(samples, width)")
    checks.floating_point("features", features)
    checks.dimensions("labels", labels, "(samples)")
    if len(labels) != len(features):
        checks.fail(f"labels must be as many as features ({len(features)})", len(labels))
    checks.at_least("number of samples", len(features), 1)
    checks.at_least("width of the features", features.shape[1], 1)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        checks.fail("labels must be integers", labels.dtype)
    low, high = (int(label) for label in labels.aminmax())
    number = high + 1 if num_classes is None else num_classes
    if low < 0 or high >= number:
        checks.fail(f"labels must be from 0 to {max(0, number - 1)}", low if low < 0 else high)
    checks.at_least("number of classes", number, 2)
    return number


def _check_filled(counts: Tensor) -> None:
    empty = (counts == 0).nonzero().flatten().tolist()
    if empty:
        checks.fail("every class must have a sample", f"none of class {', '.join(map(str, empty[:10]))}")


def _class_means(values: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    counts = labels.bincount(minlength=num_classes)
    sums = torch.zeros(num_classes, values.shape[1], dtype=torch.float64, device=values.device)
    for rows, classes in chunks(values, labels):
        sums = sums.index_add(0, classes, rows)
    if not sums.detach().isfinite().all():
        raise checks.InputError("features must be finite, got an infinite value or one that is no number")
    return counts, sums / counts.clamp(min=1)[:, None]


def class_means(features: Tensor, labels: Tensor, num_classes: int | None) -> tuple[Tensor, Tensor]:
    """Checked means of the classes and of all samples, which autograd can differentiate."""
    number = check_labels(features, labels, num_classes)
    counts, means = _class_means(features, labels.long(), number)
    _check_filled(counts)
    return means, counts.to(means) @ means / len(features)


def chunks(features: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Features in float64 and classes in int64, a few thousand samples at a time."""
    for rows, classes in zip(torch.split(features, _ROWS_AT_ONCE), torch.split(labels, _ROWS_AT_ONCE), strict=True):
        yield rows.double(), classes.long()


def between_whitener(means: Tensor, global_mean: Tensor) -> Tensor:
    r"""A matrix P ``(classes, width)`` with :math:`P^\top P = \Sigma_B^{+}/K`; empty where all means coincide.

    With the centred means as rows of A, :math:`\Sigma_B = A^\top A/K`, thus :math:`P^\top = A^{+}`.
    """
    centred = means - global_mean
    if _coincide(means, centred):
        return centred[:0]
    # the cut-off that a pseudo-inverse of the covariance has, whose eigenvalues are the squares
    tolerance = math.sqrt(max(means.shape) * torch.finfo(means.dtype).eps)
    inverse: Tensor = torch.linalg.pinv(centred, rtol=tolerance)
    return inverse.T


def trace_ratio(within: Tensor, means: Tensor, global_mean: Tensor) -> Tensor:
    """Trace of the covariance within classes over that between them; infinite where all means coincide."""
    centred = means - global_mean
    if _coincide(means, centred):
        return means.new_full((), torch.inf)
    return within / centred.square().sum(1).mean()


def _coincide(means: Tensor, centred: Tensor) -> bool:
    """Whether means differ by no more than rounding."""
    scale = means.detach().abs().max() * math.sqrt(means.shape[1])
    return bool(centred.detach().square().sum(1).max().sqrt() <= 1e-14 * scale)


__all__ = [
    "ClassMoments",
    "ClassStatistics",
    "between_whitener",
    "check_labels",
    "chunks",
    "class_means",
    "class_statistics",
    "trace_ratio",
]
