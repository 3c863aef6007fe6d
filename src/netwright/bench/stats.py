"""Statistics of paired seeds: intervals, corrected comparisons, and the verdict on a claim."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from scipy import stats

from netwright import checks
from netwright.claims import Check, Measurement


class Verdict(StrEnum):
    """What the seeds say about a claim."""

    HOLDS = "holds"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


class Difference(StrEnum):
    """What the seeds say about an arm of a comparison against its baseline."""

    BETTER = "better"
    WORSE = "worse"
    NONE_SEEN = "no difference seen"
    UNKNOWN = "too few seeds"


@dataclass(frozen=True)
class Summary:
    """Mean over seeds, its standard error, and the interval that covers the true mean with the stated confidence."""

    mean: float
    se: float | None
    interval: tuple[float, float] | None
    values: tuple[float, ...]


def summarise(values: Sequence[float], confidence: float = 0.95) -> Summary:
    r"""Mean and Student's interval over seeds.

    .. math:: \bar x \pm t_{n-1,\,(1+c)/2} \, s / \sqrt n

    With one seed there is neither standard error nor interval.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    if len(sample) < 2:
        return Summary(mean, None, None, tuple(sample.tolist()))
    se = float(sample.std(ddof=1) / math.sqrt(len(sample)))
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1)) * se
    return Summary(mean, se, (mean - half, mean + half), tuple(sample.tolist()))


def paired_p_value(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired t-test; differences that are all the same are certain unless they are 0."""
    summary = summarise(differences)
    if summary.se is None:
        return 1.0
    if summary.se == 0:
        return 1.0 if summary.mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(summary.mean) / summary.se, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for many comparisons (Holm 1979): the family-wise error stays below the level asked for."""
    count = len(p_values)
    corrected = [0.0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        corrected[index] = running
    return corrected


@dataclass(frozen=True)
class ArmComparison:
    """One arm against the baseline in one metric; differences are arm − baseline, paired by seed."""

    difference: Summary
    p_value: float
    verdict: Difference


def compare_arms(
    arms: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float], better: str, level: float = 0.05
) -> dict[str, ArmComparison]:
    """Compare every arm with the baseline, with Holm's correction over the arms.

    Args:
        arms: For each arm, the metric by seed.
        baseline: The metric of the baseline by seed.
        better: ``"higher"`` or ``"lower"``.
        level: Largest probability of calling any arm different when none is.

    Returns:
        For each arm, the paired difference with its (uncorrected) 95 % interval, the corrected p-value and the verdict.
        An arm that has fewer than two seeds in common with the baseline gets no verdict.
    """
    paired = {
        name: [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
        for name, values in arms.items()
    }
    tested = [name for name, differences in paired.items() if len(differences) >= 2]
    corrected = dict(zip(tested, holm([paired_p_value(paired[name]) for name in tested]), strict=True))
    sign = 1 if better == "higher" else -1
    comparisons = {}
    for name, differences in paired.items():
        if not differences:
            continue
        summary = summarise(differences)
        p_value = corrected.get(name, 1.0)
        if name not in corrected:
            verdict = Difference.UNKNOWN
        elif p_value >= level:
            verdict = Difference.NONE_SEEN
        else:
            verdict = Difference.BETTER if sign * summary.mean > 0 else Difference.WORSE
        comparisons[name] = ArmComparison(summary, p_value, verdict)
    return comparisons


@dataclass(frozen=True)
class CheckResult:
    """The verdict on one check, and what it rests on.

    ``interval`` holds the two one-sided 95 % limits of the mean difference (or of the value, for exact checks the
    smallest and largest deviation).
    """

    check: Check
    verdict: Verdict
    arms: Mapping[str, Summary]
    difference: float
    interval: tuple[float, float] | None


def judge(check: Check, measurements: Mapping[int, Iterable[Measurement]]) -> CheckResult:
    """Decide one check from the measurements of every seed.

    A comparison *holds* when the one-sided 95 % limit of the mean difference lies strictly beyond the margin on the
    side of the claim, is *refuted* when the limit of the other side lies strictly beyond it on the wrong side, and is
    *inconclusive* otherwise or with fewer than two seeds. An exact check holds when every seed is within the tolerance,
    else it is refuted.

    Raises:
        RuntimeError: If the claim did not measure what its check needs.
    """
    values = {seed: _values(check.metric, found) for seed, found in measurements.items()}
    needed = [check.arm, *([check.baseline] if isinstance(check.baseline, str) else [])]
    for seed, by_arm in values.items():
        for arm in needed:
            if arm not in by_arm:
                raise RuntimeError(f"seed {seed} has no measurement of {check.metric!r} for arm {arm!r}")
    arms = {arm: summarise([by_arm[arm] for by_arm in values.values()]) for arm in needed}

    if check.exactly is not None:
        deviations = [value - check.exactly for value in arms[check.arm].values]
        within = all(abs(deviation) <= check.tolerance for deviation in deviations)
        verdict = Verdict.HOLDS if within else Verdict.REFUTED
        worst = max(deviations, key=abs)
        return CheckResult(check, verdict, arms, worst, (min(deviations), max(deviations)))

    if isinstance(check.baseline, str):
        differences = [by_arm[check.arm] - by_arm[check.baseline] for by_arm in values.values()]
    else:
        assert check.baseline is not None
        differences = [by_arm[check.arm] - check.baseline for by_arm in values.values()]
    summary = summarise(differences, confidence=0.90)  # each end is a one-sided 95 % limit
    return CheckResult(check, _verdict(check, summary), arms, summary.mean, summary.interval)


def judge_claim(results: Sequence[CheckResult]) -> Verdict:
    """A claim holds when all its checks hold, is refuted when one is, and is inconclusive otherwise."""
    verdicts = {result.verdict for result in results}
    if Verdict.REFUTED in verdicts:
        return Verdict.REFUTED
    return Verdict.HOLDS if verdicts == {Verdict.HOLDS} else Verdict.INCONCLUSIVE


def _verdict(check: Check, summary: Summary) -> Verdict:
    if summary.interval is None:
        return Verdict.INCONCLUSIVE
    low, high = summary.interval
    if check.better == "lower":
        low, high, margin = -high, -low, -check.margin
    else:
        margin = check.margin
    if low > margin:
        return Verdict.HOLDS
    return Verdict.REFUTED if high < margin else Verdict.INCONCLUSIVE


def _values(metric: str, measurements: Iterable[Measurement]) -> dict[str, float]:
    values: dict[str, float] = {}
    for found in measurements:
        if found.metric == metric and found.at is None:
            if not math.isfinite(found.value):
                checks.fail(f"{metric!r} of arm {found.arm!r} must be finite", found.value)
            values[found.arm] = found.value
    return values


__all__ = [
    "ArmComparison",
    "CheckResult",
    "Difference",
    "Summary",
    "Verdict",
    "compare_arms",
    "holm",
    "judge",
    "judge_claim",
    "paired_p_value",
    "summarise",
]
