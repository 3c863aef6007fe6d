"""Judging a comparison several times while its seeds come in, without calling equal arms different more often."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from netwright import checks

STEP = 5
# below this chance of still becoming better or worse, more seeds of an arm are not worth their time
HOPELESS = 0.05
_PATHS = 2**17


@dataclass(frozen=True)
class Looks:
    r"""After how many seeds an arm is judged, and what each of these looks may spend of the error.

    Look :math:`j`, at :math:`n_j` of :math:`n_K` seeds, has the weight :math:`w_j = n_j / \sum_i n_i`. With
    :math:`p_j` the p-value of the paired t-test at that look, the *sequential p-value* after look :math:`k` is

    .. math:: p = F\bigl(\min_{j \le k} p_j / w_j\bigr), \qquad
              F(x) = \Pr\bigl(\min_{j \le K} p_j / w_j \le x\bigr) \text{ without a difference.}

    F depends on nothing unknown: t-statistics of normal differences have the same joint law whatever their variance.
    It is simulated once for a schedule, and two standard errors of the simulation are added. It never exceeds x
    (:math:`\sum_j w_j = 1`, the union bound), so that :math:`\min_j p_j / w_j` itself would do whatever the joint law.
    The p-value holds at whichever look one stops, for whatever reason. For many arms Holm's correction is applied to
    sequential p-values.

    Args:
        seeds: Numbers of seeds, rising; the last one is the most that an arm may use.

    Raises:
        InputError: If they do not rise, or begin below 2.

    Source:
        Jennison and Turnbull 2000, Group Sequential Methods, chapters 2, 4.4 (t-statistics) and 9 (repeated intervals);
        sequential p-values: Liu and Anderson 2008, Journal of the American Statistical Association 103; with Holm's
        correction: Maurer and Bretz 2013, doi:10.1080/19466315.2013.807748.

    Example:
        >>> looks = Looks.up_to(30)
        >>> looks.seeds
        (5, 10, 15, 20, 25, 30)
        >>> looks.p_value([0.2, 0.03, 0.002]) < 0.05
        True
        >>> [round(looks.critical(look, 0.05), 4) < 0.05 for look in range(6)] == [True] * 6
        True
    """

    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds or self.seeds[0] < 2 or any(a >= b for a, b in zip(self.seeds, self.seeds[1:], strict=False)):
            checks.fail("looks must be rising numbers of seeds, at least 2", self.seeds)

    @classmethod
    def up_to(cls, most: int) -> "Looks":
        """The usual schedule: after every five seeds, from 40 on after every quarter more, and after the last one.

        Raises:
            InputError: If ``most`` is below 2.
        """
        checks.at_least("the largest number of seeds", most, 2)
        seeds, look = [], STEP
        while look < most:
            seeds.append(look)
            look += STEP * max(1, look // (4 * STEP))
        return cls((*seeds, most))

    @property
    def weights(self) -> NDArray[np.float64]:
        """What each look may spend, as a fraction of the whole."""
        seeds = np.array(self.seeds, dtype=np.float64)
        weights: NDArray[np.float64] = seeds / seeds.sum()
        return weights

    def p_value(self, p_values: Sequence[float]) -> float:
        """The sequential p-value from those of the looks so far; 1 before the first."""
        if not len(p_values):
            return 1.0
        return self._of_smallest(float(np.min(np.array(p_values) / self.weights[: len(p_values)])))

    def critical(self, look: int, level: float) -> float:
        """The largest p-value of the t-test at ``look`` (counted from 0) whose sequential p-value is at most ``level``.

        One minus it is the confidence of the *repeated interval* at this look: together the intervals of all looks
        cover the true mean with probability 1 − ``level``.
        """
        low, high = level, 1.0 / float(self.weights.min())  # F(x) ≤ x, so that F⁻¹(level) ≥ level
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._of_smallest(middle) <= level else (low, middle)
        return min(float(self.weights[look]) * low, 1.0)

    def chance_left(self, p_value: float, look: int, level: float = 0.05) -> float:
        r"""The chance that an arm without a verdict at ``look`` gets one with all seeds, by what was seen so far.

        With :math:`z` the normal quantile of the p-value of the t-test, :math:`f = n_k / n_K` and nothing known
        beforehand about the true difference, the last look's :math:`z_K` is expected at :math:`z/\sqrt f` with variance
        :math:`(1 - f)/f`. Stopping where this is small cannot raise the error: the levels of the looks were set as if
        nobody ever stopped without a verdict.

        Source:
            Predictive power: Spiegelhalter, Freedman, Blackburn 1986, Controlled Clinical Trials 7.
        """
        fraction = self.seeds[look] / self.seeds[-1]
        needed = float(special.ndtri(1 - self.critical(len(self.seeds) - 1, level) / 2))
        seen = float(special.ndtri(1 - min(max(p_value, 1e-300), 1.0) / 2))
        if fraction == 1:
            return float(seen >= needed)
        spread = math.sqrt((1 - fraction) / fraction)
        expected = seen / math.sqrt(fraction)
        return float(special.ndtr((expected - needed) / spread) + special.ndtr((-expected - needed) / spread))

    def _of_smallest(self, smallest: float) -> float:
        if len(self.seeds) == 1:
            return min(smallest, 1.0)
        minima = _minima(self.seeds)
        share = float(np.searchsorted(minima, smallest, side="right")) / len(minima)
        error = math.sqrt(max(share, 1 / len(minima)) / len(minima))
        return min(smallest, share + 2 * error, 1.0)


@lru_cache(maxsize=8)
def _minima(seeds: tuple[int, ...]) -> NDArray[np.float64]:
    """Sorted draws of min_j p_j / w_j over all looks at normal differences of mean 0."""
    rng = np.random.default_rng(0)
    weights = Looks(seeds).weights
    total, squares, before = np.zeros(_PATHS), np.zeros(_PATHS), 0
    smallest = np.full(_PATHS, np.inf)
    for count, weight in zip(seeds, weights, strict=True):
        more = count - before
        part = rng.normal(scale=np.sqrt(more), size=_PATHS)
        # of normal numbers, the squares about their mean are independent of it
        squares += part**2 / more + (rng.chisquare(more - 1, _PATHS) if more > 1 else 0)
        total += part
        before = count
        variance = (squares - total**2 / count) / (count - 1)
        t = np.abs(total) / np.sqrt(count * variance)
        smallest = np.minimum(smallest, 2 * special.stdtr(count - 1, -t) / weight)
    smallest.sort()
    return smallest


__all__ = ["HOPELESS", "Looks"]
