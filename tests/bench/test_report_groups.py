"""Tests of the report: classes, slices and calibration are in it, and names are text whatever they hold."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from netwright.bench.arm import Study
from netwright.bench.compare import Arm, Comparison, compare
from netwright.bench.groups import summarise_groups
from netwright.bench.report import write_report
from netwright.bench.report_groups import MOST_GROUPS, differences_by_group, reliability_diagrams
from netwright.bench.sequential import Looks
from netwright.bench.stats import compare_arms, summarise
from netwright.bench.store import Store

HOSTILE = ("<img src=x onerror=alert(1)>", "</script><b>", "\"'><svg onload=alert(2)>", "%{x}{{7*7}}")


def hostile_table(path: Path) -> Path:
    lines = [f'months,"{HOSTILE[0]}",churn']
    lines += [f"{i},{HOSTILE[1 + i % 3].replace(chr(34), '')},{'<i>yes' if i % 2 else 'no'}" for i in range(60)]
    path.write_text("\n".join(lines))
    return path


def test_names_from_the_data_are_text(tmp_path: Path) -> None:
    table = hostile_table(tmp_path / "t.csv")
    options = {"target": "churn", "slices": (HOSTILE[0],)}
    store = Store(tmp_path / "runs.db")
    result = compare(
        str(table), "linear", ["gradient-noise"], seeds=range(2), budget="1steps", data_options=options, store=store
    )
    assert [group.by for group in result.arms[0].groups] == [None, None, *[HOSTILE[0]] * 3]
    write_report(result, tmp_path / "report.html", command="netwright")
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<script>/\*\*.*?</script>", "", report, count=1, flags=re.DOTALL)  # plotly's own source
    for foreign in ("<img", "<svg", "<i>", "</script><b>", "7*7}}49"):
        assert foreign not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "%{x}{{7*7}}" in page
    assert len(re.findall("<script", page)) == len(re.findall("</script>", page))


def comparison(groups: int = 2, looks: Looks | None = None) -> Comparison:
    """Two arms: ``even`` loses in its last class what it gains in the others; ``bad`` loses everywhere."""
    rng = np.random.default_rng(0)
    seeds = range(6)

    def rows(shifts: list[float]) -> dict[int, list[dict[str, Any]]]:
        return {
            seed: [
                {"by": None, "value": str(i), "count": 9, "accuracy": 0.5 + shift + 0.01 * rng.normal()}
                for i, shift in enumerate(shifts)
            ]
            for seed in seeds
        }

    gains = {
        "baseline": [0.0] * groups,
        "even": [0.2 / (groups - 1)] * (groups - 1) + [-0.2],
        "bad": [-0.3] * groups,
    }
    found = {arm: rows(shifts) for arm, shifts in gains.items()}
    whole = {
        arm: {seed: float(np.mean([row["accuracy"] for row in by_seed[seed]])) for seed in seeds}
        for arm, by_seed in found.items()
    }
    by_group = summarise_groups(found)
    versus = compare_arms({arm: whole[arm] for arm in ("even", "bad")}, whole["baseline"], "higher")
    reliability = {"count": [0.0, 4.0, 6.0], "confidence": [0.0, 2.4, 5.4], "right": [0.0, 2.0, 6.0]}
    arms = tuple(
        Arm(
            arm,
            {"accuracy": summarise(list(whole[arm].values()))},
            dict.fromkeys(("nonzero", "macs", "latency_1", "train_seconds", "parameters"), 1.0)
            | dict.fromkeys(("saved_bytes", "peak_bytes", "latency_64"), 1.0),
            {"accuracy": versus[arm]} if arm in versus else {},
            dict.fromkeys(seeds, ()),
            {},
            by_group[arm],
            reliability,
        )
        for arm in gains
    )
    return Comparison(Study("iris"), tuple(seeds), "accuracy", arms, looks)


def test_a_loss_that_the_average_hides_is_said(tmp_path: Path) -> None:
    result = comparison()
    even, bad = result.arms[1:]
    assert [group.name for group in result.hidden_losses(even)] == ["class 1"]
    assert result.hidden_losses(bad) == ()  # its average says it
    assert "even loses in class 1, although not on average." in str(result.table().caption)
    write_report(result, tmp_path / "r.html", command="netwright")
    report = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "bad was worse than the baseline; even was not seen to differ from it. even loses in class 1" in report
    assert '<td><span class="worse">class 1</span></td>' in report
    (loss,) = [arm["hidden_losses"] for arm in result.to_json()["arms"] if arm["name"] == "even"]
    assert loss == [{"by": None, "value": "1"}]


def test_a_report_without_a_baseline_that_finished(tmp_path: Path) -> None:
    result = comparison()
    failed = Arm("baseline", {}, {}, {}, {}, dict.fromkeys(range(6), "no memory"))
    alone = [
        replace(arm, versus={}, groups=tuple(replace(g, versus={}) for g in arm.groups)) for arm in result.arms[1:]
    ]
    write_report(replace(result, arms=(failed, *alone)), tmp_path / "r.html", command="netwright")
    report = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "all 6 seeds failed" in report
    assert "worst class" in report


def test_seeds_that_were_added_are_said(tmp_path: Path) -> None:
    result = comparison(looks=Looks((3, 6)))
    write_report(result, tmp_path / "r.html", command="netwright")
    report = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "the arms were judged after 3, 6 seeds" in report
    assert "<th>seeds</th>" in report
    assert result.to_json()["looks"] == [3, 6]


def test_many_groups_are_cut_to_the_largest_differences() -> None:
    result = comparison(groups=MOST_GROUPS + 5)
    figure = differences_by_group(result, result.arms, {arm.name: "#000000" for arm in result.arms})
    assert len(figure.layout.yaxis.ticktext) == MOST_GROUPS
    assert f"class {MOST_GROUPS + 4}" in figure.layout.yaxis.ticktext  # in which one arm loses most
    assert "the 40 largest" in figure.layout.meta


def test_a_reliability_diagram_has_a_point_for_every_bin_with_samples() -> None:
    arms = comparison().arms
    figure = reliability_diagrams(arms, {arm.name: "#000000" for arm in arms})
    points = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert len(points) == len(arms)
    assert points[0].x == pytest.approx([0.6, 0.9])
    assert points[0].y == pytest.approx([0.5, 1.0])
