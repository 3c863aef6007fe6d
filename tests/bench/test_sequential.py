"""Tests of ``netwright.bench.sequential`` and of verdicts while seeds are added."""

import numpy as np
import pytest

from netwright.bench.sequential import HOPELESS, Looks
from netwright.bench.stats import Difference, compare_arms, p_values_at, undecided

LOOKS = Looks.up_to(30)


def test_the_usual_schedule() -> None:
    assert LOOKS.seeds == (5, 10, 15, 20, 25, 30)
    assert Looks.up_to(12).seeds == (5, 10, 12)
    assert Looks.up_to(4).seeds == (4,)
    assert Looks.up_to(70).seeds == (5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70)
    assert LOOKS.weights.sum() == pytest.approx(1)


@pytest.mark.parametrize("seeds", [(), (1, 5), (5, 5), (10, 5)])
def test_looks_must_rise(seeds: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="looks must be rising numbers of seeds, at least 2"):
        Looks(seeds)


def test_too_few_seeds_for_a_look() -> None:
    with pytest.raises(ValueError, match="the largest number of seeds must be at least 2, got 1"):
        Looks.up_to(1)


def test_one_look_is_the_plain_test() -> None:
    looks = Looks.up_to(5)
    assert [looks.p_value([p]) for p in (0.0, 0.03, 0.7, 1.0)] == [0.0, 0.03, 0.7, 1.0]
    assert looks.critical(0, 0.05) == pytest.approx(0.05)


def test_the_sequential_p_value_lies_between_the_best_look_and_the_union_bound() -> None:
    rng = np.random.default_rng(1)
    for p_values in rng.uniform(size=(200, 6)) ** 2:
        union = np.min(p_values / LOOKS.weights)
        assert p_values.min() <= LOOKS.p_value(p_values.tolist()) + 0.01
        assert LOOKS.p_value(p_values.tolist()) <= min(union, 1.0)
        assert LOOKS.p_value(p_values.tolist()) <= LOOKS.p_value(p_values[:3].tolist())
    assert LOOKS.p_value([]) == 1.0


@pytest.mark.parametrize("level", [0.05, 0.005])
def test_the_critical_values_keep_the_level_over_all_looks(level: float) -> None:
    # other draws than those of the calibration; t-statistics of normal differences
    rng = np.random.default_rng(7)
    paths = 40_000
    draws = rng.normal(loc=0, scale=3, size=(paths, 30))
    rejected = np.zeros(paths, dtype=bool)
    from scipy import special

    for look, count in enumerate(LOOKS.seeds):
        part = draws[:, :count]
        t = part.mean(1) / (part.std(1, ddof=1) / count**0.5)
        rejected |= 2 * special.stdtr(count - 1, -abs(t)) <= LOOKS.critical(look, level)
    error = (level / paths) ** 0.5
    assert level - 5 * error - 0.03 * level < rejected.mean() < level + 3 * error


def test_critical_values_are_those_of_the_sequential_p_value() -> None:
    for look in range(6):
        limit = LOOKS.critical(look, 0.05)
        before = [1.0] * look
        assert LOOKS.p_value([*before, limit * 0.999]) <= 0.05 < LOOKS.p_value([*before, limit * 1.02])


def test_the_chance_left() -> None:
    assert LOOKS.chance_left(1.0, 0) > HOPELESS  # five seeds never close a case
    assert LOOKS.chance_left(1.0, 3) < HOPELESS
    assert LOOKS.chance_left(0.02, 3) > 0.5
    assert LOOKS.chance_left(0.001, 5) == 1.0
    assert LOOKS.chance_left(0.5, 5) == 0.0


def by_seed(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def test_p_values_at_every_look_that_was_reached() -> None:
    differences = by_seed(np.random.default_rng(0).normal(size=12))
    found = p_values_at(differences, LOOKS)
    assert len(found) == 3  # a look counts from its first new seed: failed seeds do not hide the others
    assert found[0] == p_values_at({s: d for s, d in differences.items() if s < 5}, None)[0]
    assert found[2] == p_values_at(differences, None)[0]


def test_only_open_arms_get_more_seeds() -> None:
    rng = np.random.default_rng(0)
    baseline = rng.normal(size=30)
    noise = rng.normal(size=(4, 30))
    arms = {
        "clear": by_seed((baseline + 5 + 0.1 * noise[0])[:5]),
        "open": by_seed((baseline + 0.5 + noise[1])[:5]),
        "nothing": by_seed((baseline + noise[2] - noise[2][:20].mean())[:20]),
        "spent": by_seed(baseline + 0.5 + noise[3]),
        "failed": {},
    }
    assert undecided(arms, by_seed(baseline), "higher", LOOKS) == ["open"]
    compared = compare_arms(arms, by_seed(baseline), "higher", looks=LOOKS)
    assert compared["clear"].verdict == Difference.BETTER
    assert compared["nothing"].verdict == Difference.NONE_SEEN


def test_the_interval_is_wider_than_that_of_one_look_and_agrees_with_the_verdict() -> None:
    rng = np.random.default_rng(3)
    agreed = 0
    for shift in np.linspace(0, 1.5, 60):
        differences = by_seed(shift + rng.normal(size=10))
        baseline = dict.fromkeys(range(10), 0.0)
        (found,) = compare_arms({"arm": differences}, baseline, "higher", looks=LOOKS).values()
        (plain,) = compare_arms({"arm": differences}, baseline, "higher").values()
        assert found.difference.interval is not None
        assert plain.difference.interval is not None
        assert found.difference.interval[0] < plain.difference.interval[0]
        apart = found.difference.interval[0] > 0 or found.difference.interval[1] < 0
        at_last = p_values_at(differences, LOOKS)[-1] <= LOOKS.critical(1, 0.05)
        assert apart == at_last
        agreed += apart and found.verdict == Difference.BETTER
    assert agreed > 10
