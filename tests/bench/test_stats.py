"""Tests of ``netwright.bench.stats``."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from netwright.bench.stats import (
    Difference,
    Verdict,
    compare_arms,
    holm,
    judge,
    judge_claim,
    paired_p_value,
    summarise,
)
from netwright.claims import Check, Measurement

finite = st.floats(-1e3, 1e3)


@given(st.lists(finite, min_size=2, max_size=12))
def test_the_interval_is_students(values: list[float]) -> None:
    summary = summarise(values)
    assert summary.interval is not None
    if np.std(values) > 1e-6:
        expected = scipy_stats.t.interval(0.95, len(values) - 1, np.mean(values), scipy_stats.sem(values))
        np.testing.assert_allclose(summary.interval, expected, rtol=1e-6, atol=1e-9)


@given(st.lists(st.tuples(finite, finite), min_size=3, max_size=10))
def test_the_p_value_is_scipys(pairs: list[tuple[float, float]]) -> None:
    differences = [a - b for a, b in pairs]
    if np.std(differences) > 1e-6:
        expected = scipy_stats.ttest_rel(*zip(*pairs, strict=True)).pvalue
        assert math.isclose(paired_p_value(differences), expected, rel_tol=1e-6, abs_tol=1e-9)


def test_p_values_without_spread() -> None:
    assert paired_p_value([0.0, 0.0, 0.0]) == 1.0
    assert paired_p_value([1.0]) == 1.0


@pytest.mark.parametrize("count", [2, 5, 9])
def test_equal_differences_are_worth_their_signs(count: int) -> None:
    assert paired_p_value([1 / 30] * count) == 2.0 ** (1 - count)
    assert paired_p_value([0.1 + 0.2 - 0.3 + 1.0] * (count - 1) + [1.0]) == 2.0 ** (1 - count)  # rounding is no spread


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_nothing_and_bonferroni(p_values: list[float]) -> None:
    for raw, corrected in zip(p_values, holm(p_values), strict=True):
        assert raw <= corrected <= min(1.0, raw * len(p_values)) + 1e-12


def test_arms_are_better_worse_or_not_told_apart() -> None:
    baseline = {seed: 0.8 + 0.01 * seed for seed in range(5)}
    jitter = [0.001, -0.001, 0.002, 0.0, -0.002]
    arms = {
        "up": {seed: value + 0.05 + jitter[seed] for seed, value in baseline.items()},
        "down": {seed: value - 0.05 + jitter[seed] for seed, value in baseline.items()},
        "same": {seed: value + jitter[seed] for seed, value in baseline.items()},
        "short": {0: 0.9},
        "gone": {},
    }
    higher = {name: found.verdict for name, found in compare_arms(arms, baseline, "higher").items()}
    assert higher == {
        "up": Difference.BETTER,
        "down": Difference.WORSE,
        "same": Difference.NONE_SEEN,
        "short": Difference.UNKNOWN,
    }
    lower = compare_arms(arms, baseline, "lower")
    assert (lower["up"].verdict, lower["down"].verdict) == (Difference.WORSE, Difference.BETTER)


def test_the_correction_takes_account_of_the_number_of_arms() -> None:
    baseline = dict.fromkeys(range(5), 0.0)
    arm = dict(enumerate([0.1, 0.3, 0.2, 0.05, 0.28]))  # p = 0.02
    assert compare_arms({"arm": arm}, baseline, "higher")["arm"].verdict == Difference.BETTER
    noise = {f"noise {i}": {s: (-1.0) ** s * (s + i) for s in range(5)} for i in range(5)}
    assert compare_arms({"arm": arm, **noise}, baseline, "higher")["arm"].verdict == Difference.NONE_SEEN


def measured(arm: list[float], baseline: list[float]) -> dict[int, list[Measurement]]:
    return {
        seed: [
            Measurement("arm", "score", a),
            Measurement("baseline", "score", b),
            Measurement("arm", "score", 7, at=1),
        ]
        for seed, (a, b) in enumerate(zip(arm, baseline, strict=True))
    }


@pytest.mark.parametrize(
    ("arm", "better", "margin", "verdict"),
    [
        ([1.1, 1.2, 1.15], "higher", 0.0, Verdict.HOLDS),
        ([1.1, 1.2, 1.15], "higher", 0.5, Verdict.REFUTED),
        ([1.1, 0.9, 1.0], "higher", 0.0, Verdict.INCONCLUSIVE),
        ([1.0, 1.0, 1.0], "higher", 0.0, Verdict.INCONCLUSIVE),  # equal is no gain
        ([1.0, 1.0, 1.0], "higher", -0.01, Verdict.HOLDS),
        ([0.8, 0.9, 0.85], "lower", 0.0, Verdict.HOLDS),
        ([0.8, 0.9, 0.85], "lower", -0.5, Verdict.REFUTED),
        ([1.01, 1.02, 1.0], "lower", 0.2, Verdict.HOLDS),
        ([1.1], "higher", 0.0, Verdict.INCONCLUSIVE),
    ],
)
def test_verdict_of_a_comparison(arm: list[float], better: str, margin: float, verdict: Verdict) -> None:
    for baseline in ("baseline", 1.0):
        check = Check("c", metric="score", arm="arm", baseline=baseline, better=better, margin=margin)
        assert judge(check, measured(arm, [1.0] * len(arm))).verdict == verdict


def test_limits_are_one_sided() -> None:
    values = [0.1, 0.3, 0.2, 0.25]
    result = judge(Check("c", metric="score", arm="arm", baseline="baseline"), measured(values, [0.0] * 4))
    expected = np.mean(values) - scipy_stats.t.ppf(0.95, 3) * scipy_stats.sem(values)
    assert result.interval is not None
    assert result.interval[0] == pytest.approx(expected)


@pytest.mark.parametrize(("value", "verdict"), [(5.0, Verdict.HOLDS), (5.05, Verdict.HOLDS), (5.2, Verdict.REFUTED)])
def test_verdict_of_an_exact_check(value: float, verdict: Verdict) -> None:
    check = Check("c", metric="score", arm="arm", exactly=5.0, tolerance=0.1)
    assert judge(check, measured([5.0, value], [0.0, 0.0])).verdict == verdict


def test_a_claim_is_as_good_as_its_worst_check() -> None:
    checks = {
        better: judge(Check("c", metric="score", arm="arm", baseline=1.0, better=better), measured([1.1, 1.12], [0, 0]))
        for better in ("higher", "lower")
    }
    unsure = judge(Check("c", metric="score", arm="arm", baseline=1.1), measured([1.0, 1.2], [0, 0]))
    assert judge_claim([checks["higher"]]) == Verdict.HOLDS
    assert judge_claim([checks["higher"], unsure]) == Verdict.INCONCLUSIVE
    assert judge_claim([checks["higher"], unsure, checks["lower"]]) == Verdict.REFUTED


def test_what_was_not_measured_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"seed 0 has no measurement of 'score' for arm 'other'"):
        judge(Check("c", metric="score", arm="arm", baseline="other"), measured([1.0], [1.0]))
    with pytest.raises(ValueError, match="'score' of arm 'arm' must be finite, got nan"):
        judge(Check("c", metric="score", arm="arm", baseline=0.0), measured([math.nan], [1.0]))


def test_a_check_needs_one_yardstick() -> None:
    for wrong in ({}, {"baseline": 1.0, "exactly": 1.0}):
        with pytest.raises(ValueError, match="needs either a baseline or an exact value"):
            Check("c", metric="m", arm="a", **wrong)
