"""Search over discrete designs: Pareto relation, hypervolume, tournament evolution with ageing.

A design is anything hashable or not; the functions see its scores only, of which *larger is better*.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from netwright import checks

Genome = TypeVar("Genome")
Criterion = Literal["pareto", "random", "average"]


def dominates(a: ArrayLike, b: ArrayLike) -> bool:
    """Whether scores ``a`` are at least as good as ``b`` in all criteria and better in one.

    Example:
        >>> dominates((0.9, 0.5), (0.8, 0.5)), dominates((0.9, 0.4), (0.8, 0.5))
        (True, False)
    """
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    return bool((first >= second).all() and (first > second).any())


def non_dominated(scores: ArrayLike) -> NDArray[np.bool_]:
    """Which designs no other one dominates: the Pareto front.

    Args:
        scores: ``(designs, criteria)``, larger is better.

    Returns:
        Mask ``(designs,)``; of equal designs all are on the front or none.

    Example:
        >>> non_dominated([(1, 3), (2, 2), (1, 2), (3, 1)]).tolist()
        [True, True, False, True]
    """
    points = _as_points("scores", scores)
    at_least = (points[:, None] >= points[None]).all(-1)
    better = (points[:, None] > points[None]).any(-1)
    return ~np.asarray((at_least & better).any(0))


def hypervolume(scores: ArrayLike, reference: ArrayLike) -> float:
    r"""Volume that a set of designs dominates above a reference point, exactly.

    .. math:: \lambda\Big(\bigcup_i \{z : r \le z \le s_i\}\Big)

    Slices along the last criterion and recurses on the others (hypervolume by slicing objectives).

    Args:
        scores: ``(designs, criteria)``, larger is better; what is below the reference in some criterion counts nothing.
        reference: ``(criteria,)``, the worst corner.

    Source:
        While, Hingston, Barone, Huband 2006, "A faster algorithm for calculating hypervolume".

    Example:
        >>> hypervolume([(1, 3), (2, 2), (3, 1)], (0, 0))
        6.0
    """
    points = _as_points("scores", scores)
    corner = np.asarray(reference, dtype=float)
    if corner.shape != points.shape[1:]:
        checks.fail(
            f"reference must have one value for each of the {points.shape[1]} criteria", f"shape {corner.shape}"
        )
    above = points[(points > corner).all(1)] - corner
    return _volume(above)


def _volume(points: NDArray[np.float64]) -> float:
    if len(points) == 0:
        return 0.0
    if points.shape[1] == 1:
        return float(points.max())
    points = points[non_dominated(points)]
    heights = np.unique(points[:, -1])
    thickness = np.diff(heights, prepend=0.0)
    slices = (_volume(points[points[:, -1] >= height, :-1]) for height in heights)
    return float(sum(depth * area for depth, area in zip(thickness, slices, strict=True)))


def tournament_winner(scores: ArrayLike, rng: random.Random, criterion: Criterion = "pareto") -> int:
    """Which of the competing designs wins.

    Args:
        scores: ``(designs, criteria)``, larger is better.
        rng: Source of randomness.
        criterion: ``"pareto"``: a random one of those that no other dominates; ``"random"``: the best in a criterion
            drawn at random; ``"average"``: the best mean, which favours the criterion whose scores spread most.

    Returns:
        Its index.

    Source:
        Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967.
    """
    checks.known("criterion", criterion, ("pareto", "random", "average"))
    points = _as_points("scores", scores)
    if criterion == "pareto":
        return int(rng.choice(np.flatnonzero(non_dominated(points)).tolist()))
    values = points.mean(1) if criterion == "average" else points[:, rng.randrange(points.shape[1])]
    return int(rng.choice(np.flatnonzero(values == values.max()).tolist()))


@dataclass(frozen=True)
class Individual(Generic[Genome]):
    """A design that was evaluated.

    Attributes:
        genome: The design.
        scores: One for each criterion, larger is better.
        born: How many designs were tried before it, rejected ones included.
    """

    genome: Genome
    scores: tuple[float, ...]
    born: int


@dataclass(frozen=True)
class Evolution(Generic[Genome]):
    """What an evolution found.

    Attributes:
        history: All designs that were evaluated, in order.
        tried: How many designs were made, rejected ones included.
    """

    history: tuple[Individual[Genome], ...]
    tried: int

    @property
    def front(self) -> tuple[Individual[Genome], ...]:
        """The designs that no other one dominates."""
        if not self.history:
            return ()
        mask = non_dominated([one.scores for one in self.history])
        return tuple(one for one, best in zip(self.history, mask, strict=True) if best)

    @property
    def best(self) -> Individual[Genome] | None:
        """The design of the front with the largest mean score; ``None`` if all were rejected."""
        return max(self.front, key=lambda one: sum(one.scores), default=None)


def evolve(
    random_genome: Callable[[random.Random], Genome],
    mutate: Callable[[Genome, random.Random], Genome],
    evaluate: Callable[[Genome], tuple[float, ...] | None],
    *,
    population: int,
    tournament_frac: float = 0.05,
    criterion: Criterion = "pareto",
    proceed: Callable[[int], bool],
    rng: random.Random,
) -> Evolution[Genome]:
    """Tournament evolution on a sliding window of the newest designs.

    A population is drawn at random. Then, again and again, a random part of it competes, a mutant of the winner is
    evaluated and enters, and the oldest member leaves. A design that ``evaluate`` rejects does not enter.

    Args:
        random_genome: Draws a design.
        mutate: Makes a new design from an old one, which it leaves as it is.
        evaluate: Its scores, larger is better; ``None`` to reject it.
        population: Size of the window.
        tournament_frac: Part of the population that competes, at least two designs.
        criterion: See :func:`tournament_winner`.
        proceed: ``proceed(tried)`` says whether to try one more design: the budget.
        rng: Source of all randomness.

    Source:
        Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967; ageing as in Real, Aggarwal, Huang, Le 2018,
        arXiv:1802.01548.

    Example:
        >>> found = evolve(
        ...     lambda rng: rng.randrange(100), lambda n, rng: n + rng.choice((-1, 1)), lambda n: (-abs(n - 50),),
        ...     population=20, tournament_frac=0.5, proceed=lambda tried: tried < 300, rng=random.Random(0),
        ... )
        >>> found.best.genome
        50
    """
    checks.at_least("population", population, 1)
    checks.between("tournament_frac", tournament_frac, 0, 1, open_low=True)
    size = min(population, max(2, round(tournament_frac * population)))
    history: list[Individual[Genome]] = []
    tried = 0
    while proceed(tried):
        window = history[-population:]
        if len(window) < population:
            genome = random_genome(rng)
        else:
            rivals = rng.sample(window, size)
            winner = tournament_winner([rival.scores for rival in rivals], rng, criterion)
            genome = mutate(rivals[winner].genome, rng)
        scores = evaluate(genome)
        if scores is not None:
            history.append(Individual(genome, scores, tried))
        tried += 1
    return Evolution(tuple(history), tried)


def _as_points(name: str, scores: ArrayLike | Sequence[Sequence[float]]) -> NDArray[np.float64]:
    points = np.asarray(scores, dtype=float)
    if points.ndim != 2 or points.shape[1] == 0:
        checks.fail(f"{name} must have shape (designs, criteria)", f"shape {points.shape}")
    if np.isnan(points).any():
        checks.fail(f"{name} must be numbers", "nan")
    return points


__all__ = [
    "Criterion",
    "Evolution",
    "Individual",
    "dominates",
    "evolve",
    "hypervolume",
    "non_dominated",
    "tournament_winner",
]
