"""Statistics of paired seeds: intervals, corrected comparisons, and the verdict on a claim."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

import numpy as np
from scipy import special

from netwright import checks
from netwright.bench.sequential import HOPELESS, Looks
from netwright.claims import Check, Measurement

Key = TypeVar("Key", bound=Hashable)


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
    half = float(special.stdtrit(len(sample) - 1, (1 + confidence) / 2)) * se
    return Summary(mean, se, (mean - half, mean + half), tuple(sample.tolist()))


def paired_p_value(differences: Sequence[float]) -> float:
    r"""Two-sided p-value of the paired t-test.

    Differences that are all the same have no spread to divide by. On a coarse scale (30 test samples) that happens by
    chance, so they are worth what their signs are: :math:`2^{1-n}`, the sign test's p-value; 1 if they are all 0.
    """
    summary = summarise(differences)
    if summary.se is None or not any(differences):
        return 1.0
    if max(summary.values) - min(summary.values) <= 1e-12 * abs(summary.mean):
        return float(2.0 ** (1 - len(differences)))
    assert summary.se > 0
    return float(2 * special.stdtr(len(differences) - 1, -abs(summary.mean) / summary.se))


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
    """One arm against the baseline in one metric; differences are arm − baseline, paired by seed.

    Attributes:
        difference: The differences; the interval is not corrected for the number of arms, but for the looks, if any.
        p_value: Corrected for the number of arms and for the looks.
        verdict: What follows at the level that was asked for.
    """

    difference: Summary
    p_value: float
    verdict: Difference


def compare_arms(
    arms: Mapping[str, Mapping[int, float]],
    baseline: Mapping[int, float],
    better: str,
    level: float = 0.05,
    looks: Looks | None = None,
) -> dict[str, ArmComparison]:
    """Compare every arm with the baseline, with Holm's correction over the arms.

    Args:
        arms: For each arm, the metric by seed.
        baseline: The metric of the baseline by seed.
        better: ``"higher"`` or ``"lower"``.
        level: Largest probability of calling any arm different when none is.
        looks: After how many seeds, counted from 0, the arms were judged; not given if that is done once, at the end.

    Returns:
        For each arm, the paired difference with its (uncorrected) 95 % interval, the corrected p-value and the verdict.
        An arm that has fewer than two seeds in common with the baseline gets no verdict.
    """
    paired = {
        name: {seed: values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())}
        for name, values in arms.items()
    }
    return compare_differences(paired, better, level, looks)


def compare_differences(
    paired: Mapping[Key, Mapping[int, float]], better: str, level: float = 0.05, looks: Looks | None = None
) -> dict[Key, ArmComparison]:
    """Judge many paired differences, each by seed in rising order, with Holm's correction over all of them.

    The other arguments and the result are those of :func:`compare_arms`.
    """
    paired = {key: differences for key, differences in paired.items() if differences}
    seen = {key: p_values_at(differences, looks) for key, differences in paired.items()}
    raw = {
        key: found[-1] if looks is None else looks.p_value(found)
        for key, found in seen.items()
        if found and len(paired[key]) >= 2
    }
    corrected = dict(zip(raw, holm(list(raw.values())), strict=True))
    sign = 1 if better == "higher" else -1
    comparisons = {}
    for key, differences in paired.items():
        confidence = 0.95 if looks is None or not seen[key] else 1 - looks.critical(len(seen[key]) - 1, 0.05)
        summary = summarise(list(differences.values()), confidence)
        p_value = corrected.get(key, 1.0)
        if key not in corrected:
            verdict = Difference.UNKNOWN
        elif p_value >= level:
            verdict = Difference.NONE_SEEN
        else:
            verdict = Difference.BETTER if sign * summary.mean > 0 else Difference.WORSE
        comparisons[key] = ArmComparison(summary, p_value, verdict)
    return comparisons


def undecided(
    arms: Mapping[str, Mapping[int, float]], baseline: Mapping[int, float], better: str, looks: Looks
) -> list[str]:
    """The arms that should get more seeds: without a verdict, with seeds left, and with a fair chance of a verdict."""
    found = []
    for name, comparison in compare_arms(arms, baseline, better, looks=looks).items():
        seeds = sorted(arms[name].keys() & baseline.keys())
        p_values = p_values_at({seed: arms[name][seed] - baseline[seed] for seed in seeds}, looks)
        look = len(p_values) - 1
        if comparison.verdict in (Difference.BETTER, Difference.WORSE) or look == len(looks.seeds) - 1:
            continue
        if looks.chance_left(p_values[-1], look) >= HOPELESS:
            found.append(name)
    return found


def p_values_at(differences: Mapping[int, float], looks: Looks | None) -> list[float]:
    """The p-value of the paired t-test at every look that there were new seeds for; at the end, without looks."""
    if looks is None:
        return [paired_p_value(list(differences.values()))]
    last = max(differences, default=-1)
    reached = [count for before, count in zip((0, *looks.seeds), looks.seeds, strict=False) if last >= before]
    return [paired_p_value([d for seed, d in differences.items() if seed < count]) for count in reached]


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
    "compare_differences",
    "holm",
    "judge",
    "judge_claim",
    "p_values_at",
    "paired_p_value",
    "summarise",
    "undecided",
]
