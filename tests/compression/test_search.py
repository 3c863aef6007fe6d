"""Tests of ``netwright.compression.search``."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from netwright.compression.search import (
    Evolution,
    Individual,
    dominates,
    evolve,
    hypervolume,
    non_dominated,
    tournament_winner,
)

points = arrays.arrays(float, st.tuples(st.integers(1, 7), st.integers(1, 4)), elements=st.integers(0, 5))


@given(points)
def test_the_front_is_what_nothing_dominates(scores: np.ndarray) -> None:
    expected = [not any(dominates(other, one) for other in scores) for one in scores]
    assert non_dominated(scores).tolist() == expected
    assert any(expected)


@given(points)
def test_hypervolume_counts_the_unit_cubes_below_the_front(scores: np.ndarray) -> None:
    """With whole numbers the dominated volume is the number of unit cells whose upper corner something dominates."""
    corners = np.stack(np.meshgrid(*[np.arange(1, 6)] * scores.shape[1]), -1).reshape(-1, scores.shape[1])
    covered = (scores[:, None] >= corners[None]).all(-1).any(0).sum()
    assert hypervolume(scores, np.zeros(scores.shape[1])) == pytest.approx(covered)


@given(points)
def test_hypervolume_does_not_depend_on_the_order_of_designs_or_criteria(scores: np.ndarray) -> None:
    zero = np.zeros(scores.shape[1])
    assert hypervolume(scores[::-1, ::-1], zero) == pytest.approx(hypervolume(scores, zero))


def test_hypervolume_above_another_reference() -> None:
    assert hypervolume([(3, 3), (1, 9)], (2, 1)) == 2.0
    assert hypervolume([(1, 1)], (2, 2)) == 0.0


def test_tournaments() -> None:
    """The average winner is not always on the front's best side: it follows the criterion that spreads most."""
    scores = [(0.9, 0.1), (0.5, 0.6), (0.4, 0.5), (0.0, 0.61)]
    winners = {
        criterion: {tournament_winner(scores, random.Random(seed), criterion) for seed in range(50)}
        for criterion in ("pareto", "random", "average")
    }
    assert winners == {"pareto": {0, 1, 3}, "random": {0, 3}, "average": {1}}


def test_the_oldest_leaves_and_rejected_designs_do_not_enter() -> None:
    """A design that gets worse from birth to birth: only ageing makes the search go down with it."""
    births = iter(range(1000))
    found = evolve(
        lambda rng: next(births),
        lambda parent, rng: next(births),
        lambda n: None if n % 5 == 4 else (-float(n),),
        population=3,
        tournament_frac=1.0,
        proceed=lambda tried: tried < 50,
        rng=random.Random(0),
    )
    assert (found.tried, len(found.history)) == (50, 40)
    assert [one.genome for one in found.history] == [n for n in range(50) if n % 5 != 4]
    assert [one.born for one in found.history] == [one.genome for one in found.history]
    assert found.best.genome == 0


def test_offspring_comes_from_the_newest_only() -> None:
    parents = []
    births = iter(range(1000))

    def mutate(parent: int, rng: random.Random) -> int:
        parents.append(parent)
        return next(births)

    evolve(
        lambda rng: next(births),
        mutate,
        lambda n: (-float(n),),
        population=4,
        tournament_frac=1.0,
        proceed=lambda tried: tried < 20,
        rng=random.Random(0),
    )
    # the oldest of the four newest has the best score
    assert parents == list(range(16))


def test_evolution_beats_random_search_on_a_long_string_of_ones() -> None:
    def flip(genome: tuple[int, ...], rng: random.Random) -> tuple[int, ...]:
        index = rng.randrange(len(genome))
        return (*genome[:index], 1 - genome[index], *genome[index + 1 :])

    def draw(rng: random.Random) -> tuple[int, ...]:
        return tuple(rng.randrange(2) for _ in range(30))

    def run(population: int) -> float:
        found = evolve(
            draw,
            flip,
            lambda genome: (float(sum(genome)),),
            population=population,
            tournament_frac=0.3,
            proceed=lambda tried: tried < 400,
            rng=random.Random(1),
        )
        return found.best.scores[0]

    assert run(20) > run(400) + 2  # with a population of all tries nothing is ever bred


def test_the_front_of_a_search() -> None:
    history = tuple(
        Individual(name, scores, 0) for name, scores in (("a", (1.0, 0.0)), ("b", (0.0, 0.5)), ("c", (0.0, 0.0)))
    )
    assert [one.genome for one in Evolution(history, 3).front] == ["a", "b"]
    assert Evolution(history, 3).best.genome == "a"
    assert Evolution((), 3).best is None


def test_bad_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores must have shape \(designs, criteria\), got shape \(2,\)"):
        non_dominated([1, 2])
    with pytest.raises(ValueError, match="scores must be numbers, got nan"):
        non_dominated([(1.0, float("nan"))])
    with pytest.raises(ValueError, match=r"one value for each of the 2 criteria, got shape \(3,\)"):
        hypervolume([(1, 2)], (0, 0, 0))
    with pytest.raises(ValueError, match="unknown criterion 'paretto'; did you mean 'pareto'"):
        tournament_winner([(1,)], random.Random(0), "paretto")
    with pytest.raises(ValueError, match="population must be at least 1"):
        evolve(
            lambda rng: 0,
            lambda n, rng: n,
            lambda n: (0.0,),
            population=0,
            proceed=lambda n: False,
            rng=random.Random(0),
        )
