"""Classes and slices on their own: where an arm loses although its average does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from netwright.bench.sequential import Looks
from netwright.bench.stats import ArmComparison, Difference, Summary, compare_differences, summarise
from netwright.training import METRICS

# an arm, then the column that divides the samples (None for their classes) and one of its values
_Key = tuple[str, str | None, str]


@dataclass(frozen=True)
class Group:
    """What came out of one arm on one class, or on one value of a slice.

    Attributes:
        by: The column of the slice; ``None`` for a class.
        value: The class, or the value of the column.
        count: Mean number of test samples.
        metrics: Over the seeds that have such samples.
        versus: Comparison with the baseline, corrected over all groups of all arms; empty for the baseline.
    """

    by: str | None
    value: str
    count: float
    metrics: Mapping[str, Summary]
    versus: Mapping[str, ArmComparison]

    @property
    def name(self) -> str:
        """What it is called in reports."""
        return f"class {self.label}" if self.by is None else f"{printable(self.by)} = {self.label}"

    @property
    def label(self) -> str:
        """The value, fit for a terminal."""
        return printable(self.value)


def printable(text: str) -> str:
    """The text with � for what cannot be printed, such as the codes that steer a terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def summarise_groups(
    by_arm: Mapping[str, Mapping[int, Sequence[Mapping[str, Any]]]], looks: Looks | None = None
) -> dict[str, tuple[Group, ...]]:
    """Summaries and comparisons of every group.

    The first arm is the baseline. In each metric Holm's correction is over all arms and groups together, so that the
    probability of calling any group of any arm different when none is stays below 5 %.

    Args:
        by_arm: For each arm and seed, what :func:`netwright.bench.arm.run_arm` says of the groups.
        looks: As for :func:`netwright.bench.stats.compare_arms`.
    """
    found: dict[_Key, dict[int, Mapping[str, Any]]] = {}
    for arm, by_seed in by_arm.items():
        for seed, groups in sorted(by_seed.items()):
            for group in groups:
                found.setdefault((arm, group["by"], group["value"]), {})[seed] = group
    baseline = next(iter(by_arm), "")
    # the order of the data, also for a value that the test part of the first seed does not have
    order = {name: place for place, name in enumerate(dict.fromkeys(key[1:] for key in found))}
    metrics = {name for groups in found.values() for group in groups.values() for name in group if name in METRICS}
    versus = {
        metric: compare_differences(
            {
                key: {
                    seed: group[metric] - found[baseline, *key[1:]][seed][metric]
                    for seed, group in groups.items()
                    if seed in found.get((baseline, *key[1:]), {})
                }
                for key, groups in found.items()
                if key[0] != baseline
            },
            METRICS[metric],
            looks=looks,
        )
        for metric in metrics
    }
    result: dict[str, list[Group]] = {arm: [] for arm in by_arm}
    for key in sorted(found, key=lambda key: order[key[1:]]):
        groups = list(found[key].values())
        result[key[0]].append(
            Group(
                by=key[1],
                value=key[2],
                count=fmean(group["count"] for group in groups),
                metrics={metric: summarise([group[metric] for group in groups]) for metric in sorted(metrics)},
                versus={metric: versus[metric][key] for metric in sorted(metrics) if key in versus[metric]},
            )
        )
    return {arm: tuple(groups) for arm, groups in result.items()}


def worst(groups: Sequence[Group], metric: str) -> list[Group]:
    """For the classes, and for each slice, the group with the worst mean."""
    found: dict[str | None, Group] = {}
    sign = 1 if METRICS[metric] == "higher" else -1
    for group in groups:
        best = found.get(group.by)
        if best is None or sign * group.metrics[metric].mean < sign * best.metrics[metric].mean:
            found[group.by] = group
    return list(found.values())


def largest_loss(groups: Sequence[Group], metric: str) -> Group | None:
    """The group in which the arm falls behind the baseline by most, whether the seeds make it certain or not."""
    sign = 1 if METRICS[metric] == "higher" else -1
    compared = [group for group in groups if metric in group.versus]
    return min(compared, key=lambda group: sign * group.versus[metric].difference.mean, default=None)


def hidden_losses(groups: Sequence[Group], metric: str) -> tuple[Group, ...]:
    """The groups with the verdict *worse*."""
    return tuple(g for g in groups if metric in g.versus and g.versus[metric].verdict == Difference.WORSE)


__all__ = ["Group", "hidden_losses", "largest_loss", "printable", "summarise_groups", "worst"]
