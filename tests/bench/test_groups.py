"""Tests of ``netwright.bench.groups``: classes and slices, and the losses that an average hides."""

from typing import Any

import numpy as np

from netwright.bench.groups import Group, hidden_losses, largest_loss, summarise_groups, worst
from netwright.bench.stats import Difference, summarise

SEEDS = range(6)


def row(by: str | None, value: str, accuracy: float, count: float = 20) -> dict[str, Any]:
    return {"by": by, "value": value, "count": count, "accuracy": accuracy, "nll": 1 - accuracy}


def measured() -> dict[str, dict[int, list[dict[str, Any]]]]:
    """An arm that gains in class a what it loses in class b."""
    rng = np.random.default_rng(0)
    result: dict[str, dict[int, list[dict[str, Any]]]] = {"baseline": {}, "arm": {}}
    for seed in SEEDS:
        a, b, c = 0.8 + 0.02 * rng.normal(size=3)
        jitter = 0.005 * rng.normal(size=3)
        result["baseline"][seed] = [row(None, "a", a), row(None, "b", b), row("plan", "basic", c, 40)]
        result["arm"][seed] = [
            row(None, "a", a + 0.1 + jitter[0]),
            row(None, "b", b - 0.1 + jitter[1]),
            row("plan", "basic", c + jitter[2], 40),
        ]
    for seed in (1, 2):  # a value that not every test part has
        for arm in ("baseline", "arm"):
            result[arm][seed].append(row("plan", "plus", 0.7 + 0.01 * seed, 2))
    return result


def test_groups_are_compared_with_the_same_group_of_the_baseline() -> None:
    found = summarise_groups(measured())
    assert [group.name for group in found["arm"]] == ["class a", "class b", "plan = basic", "plan = plus"]
    a, b, basic, plus = found["arm"]
    assert a.versus["accuracy"].verdict == Difference.BETTER
    assert b.versus["accuracy"].verdict == b.versus["nll"].verdict == Difference.WORSE
    assert basic.versus["accuracy"].verdict == Difference.NONE_SEEN
    assert (basic.count, plus.count, len(plus.metrics["accuracy"].values)) == (40, 2, 2)
    assert hidden_losses(found["arm"], "accuracy") == (b,)
    assert largest_loss(found["arm"], "accuracy") == b
    assert worst(found["arm"], "accuracy") == [b, plus]
    assert all(not group.versus for group in found["baseline"])
    assert largest_loss(found["baseline"], "accuracy") is None


def test_the_correction_is_over_all_groups_of_all_arms() -> None:
    few = summarise_groups(measured())["arm"]
    more = measured()
    for index in range(8):
        more[f"other {index}"] = {seed: [dict(g) for g in groups] for seed, groups in measured()["baseline"].items()}
    many = summarise_groups(more)["arm"]
    assert many[1].versus["accuracy"].p_value > few[1].versus["accuracy"].p_value


def test_an_arm_or_a_baseline_without_finished_seeds() -> None:
    alone = summarise_groups({"baseline": {}, "arm": measured()["arm"]})
    assert alone["baseline"] == ()
    assert all(not group.versus for group in alone["arm"])
    assert summarise_groups({"baseline": {}}) == {"baseline": ()}


def test_names_do_not_steer_a_terminal() -> None:
    group = Group("a\x1b[2J", "b\n", 1, {"accuracy": summarise([1.0])}, {})
    assert group.name == "a\ufffd[2J = b\ufffd"
    assert Group(None, "7", 1, {}, {}).name == "class 7"
