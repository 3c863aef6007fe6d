"""Tests of ``netwright.bench.compare`` and ``netwright.bench.arm``: fairness, resuming, Pareto front."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from netwright.bench.arm import Study, build_arm, run_arm
from netwright.bench.compare import Arm, Comparison, compare, until_settled
from netwright.bench.local import InProcess
from netwright.bench.sequential import Looks
from netwright.bench.stats import summarise
from netwright.bench.store import Outcome, Store
from netwright.recipes import Chain, parse_chain
from netwright.training import Budget

TIMES = {"train_seconds", "latency_1", "latency_64"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs.db")


def run(study: Study, arm: str, seed: int = 0) -> dict[str, Any]:
    return run_arm(study.cell(str(parse_chain(arm)), seed).config)


def without_times(result: Any) -> Any:
    if isinstance(result, dict):
        return {key: without_times(value) for key, value in result.items() if key not in TIMES | {"seconds"}}
    return [without_times(value) for value in result] if isinstance(result, list) else result


def test_one_and_two_workers_give_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    results = []
    for workers in (1, 2):
        own = Store(tmp_path / f"{workers}.db")
        result = compare(
            "digits", "mlp", ["gradient-noise"], seeds=(3, 4), budget="20steps", workers=workers, store=own
        )
        results.append(
            [(arm.name, arm.metrics, [without_times(curve) for curve in arm.curves.values()]) for arm in result.arms]
        )
    assert results[0] == results[1]


def test_arms_of_a_seed_start_from_the_same_weights_and_see_the_same_data() -> None:
    study = Study("digits", "cnn")
    baseline, splits = build_arm(study, Chain(), seed=7)
    noisy, same = build_arm(study, parse_chain("gradient-noise"), seed=7)
    other, others = build_arm(study, Chain(), seed=8)
    for a, b, c in zip(baseline.parameters(), noisy.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)
    assert torch.equal(splits.test.inputs, same.test.inputs)
    assert not torch.equal(splits.test.inputs, others.test.inputs)


@pytest.mark.parametrize(
    "arm", ["baseline", "lottery-ticket[rounds=1]", "lottery-ticket[rounds=3]", "phm+lottery-ticket"]
)
def test_every_arm_spends_the_same_budget(arm: str) -> None:
    curve = run(Study("digits", "mlp", Budget(steps=80)), arm)["curve"]
    assert curve[-1]["step"] == 80
    assert [record["step"] for record in curve] == sorted({record["step"] for record in curve})


def test_a_run_can_be_repeated_to_the_bit() -> None:
    study = Study("digits", "cnn", Budget(steps=5))
    assert without_times(run(study, "evonorm")) == without_times(run(study, "evonorm"))


def test_costs_are_those_of_the_final_network() -> None:
    study = Study("digits", "mlp", Budget(steps=8))
    dense, pruned = (run(study, arm)["costs"] for arm in ("baseline", "lottery-ticket[density=0.1]"))
    assert dense["parameters"] == pruned["parameters"] == 64 * 128 + 128 * 128 + 1280 + 266
    assert dense["macs"] == 64 * 128 + 128 * 128 + 1280
    assert pruned["nonzero"] <= 0.1 * (64 * 128 + 128 * 128 + 1280) + 266 + 1
    assert dense["saved_bytes"] >= 2 * 64 * 128 * 4
    assert all(value > 0 for value in dense.values())


def test_whatever_decides_a_result_is_in_its_key(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef build(): return nn.Linear(4, 3)\n")
    model = f"{tmp_path / 'net.py'}:build"
    keys = {Study("iris", model).cell("baseline", 0).key, Study("iris", model).cell("baseline", 1).key}
    keys.add(Study("iris", model, Budget(epochs=3)).cell("baseline", 0).key)
    keys.add(Study("wine", model).cell("baseline", 0).key)
    keys.add(Study("iris", model).cell("gradient-noise[eta=0.3,gamma=0.55]", 0).key)
    keys.add(Study("iris", model).cell("gradient-noise[eta=1.0,gamma=0.55]", 0).key)
    (tmp_path / "net.py").write_text("from torch import nn\ndef build(): return nn.Linear(4, 3, bias=False)\n")
    keys.add(Study("iris", model).cell("baseline", 0).key)
    assert len(keys) == 7


def test_two_names_of_the_same_arm_are_run_once(store: Store) -> None:
    tries = ["gradient-noise", "gradient-noise[gamma=0.55]"]
    result = compare("iris", "linear", tries, seeds=range(2), budget="2steps", store=store)
    assert [arm.name for arm in result.arms] == ["baseline", *tries]
    assert result.arms[1].metrics == result.arms[2].metrics
    cells = [result.study.cell(str(parse_chain(name)), seed) for name in ("baseline", *tries) for seed in range(2)]
    assert len(store.find(cells)) == 4


def test_regression_and_its_metrics(store: Store) -> None:
    result = compare("diabetes", "mlp", ["quadratic"], seeds=range(2), budget="3epochs", metric="r2", store=store)
    assert set(result.arms[0].metrics) == {"rmse", "r2", "noisy_rmse"}
    assert result.metric == "r2"


def test_early_stopping_ends_an_arm_before_its_budget() -> None:
    study = Study("iris", "mlp", Budget(epochs=400), patience=3)
    assert run(study, "baseline")["curve"][-1]["epoch"] < 400


def test_the_pareto_front_leaves_out_what_is_beaten_in_both() -> None:
    def arm(name: str, accuracy: float, nonzero: float) -> Arm:
        return Arm(name, {"accuracy": summarise([accuracy, accuracy])}, {"nonzero": nonzero}, {}, {}, {})

    arms = (arm("a", 0.9, 100), arm("b", 0.8, 50), arm("c", 0.8, 60), arm("d", 0.95, 300), arm("e", 0.9, 100))
    result = Comparison(Study("iris"), (0, 1), "accuracy", (*arms, Arm("gone", {}, {}, {}, {}, {0: "why"})))
    assert result.pareto() == ("a", "b", "d", "e")


def test_seeds_are_added_until_the_verdicts_are_settled() -> None:
    asked: list[tuple[list[str], range]] = []
    shift = {"baseline": 0.0, "clear": 0.5, "later": 0.06, "equal": 0.0}
    rng = np.random.default_rng(2)

    def run(arms: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, Outcome]]:
        asked.append((list(arms), range(seeds[0], seeds[-1] + 1)))
        return {
            arm: {s: Outcome("done", {"metrics": {"accuracy": shift[arm] + 0.05 * rng.normal()}}) for s in seeds}
            for arm in arms
        }

    found = until_settled(run, list(shift), "accuracy", Looks.up_to(30))
    assert asked[0] == (list(shift), range(5))
    assert asked[1] == (["baseline", "later", "equal"], range(5, 10))  # what has a verdict gets no more seeds
    wanted = [set(arms) for arms, _ in asked]
    assert all(later <= earlier for earlier, later in itertools.pairwise(wanted))
    assert all("baseline" in arms for arms in wanted)
    assert len(found["clear"]) == 5
    assert 10 <= len(found["equal"]) < 30  # given up
    assert list(found["baseline"]) == list(range(asked[-1][1].stop))


def test_added_seeds_are_the_same_cells_as_ever(store: Store) -> None:
    def run(seeds: Any) -> Comparison:
        return compare("iris", "linear", ["gradient-noise"], seeds=seeds, max_seeds=7, budget="1steps", store=store)

    result = run("auto")
    assert result.looks == Looks((5, 7))
    assert "corrected for looking after 5, 7 seeds" in str(result.table().caption)
    plain = run(result.seeds)
    assert [arm.metrics for arm in plain.arms] == [arm.metrics for arm in result.arms]
    assert run("auto") == result  # times included: nothing was run again


def test_auto_goes_on_with_warm_workers_and_closes_them_once(store: Store) -> None:
    class Counting(InProcess):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    executor = Counting()
    options = {"max_seeds": 6, "budget": "1steps", "store": store, "executor": lambda: executor}
    compare("iris", "linear", ["gradient-noise"], seeds="auto", **options)  # type: ignore[arg-type]
    assert executor.closed == 1


def test_what_auto_refuses(store: Store) -> None:
    with pytest.raises(ValueError, match="the largest number of seeds must be at least 2, got 1"):
        compare("iris", "linear", seeds="auto", max_seeds=1, store=store)
    with pytest.raises(ValueError, match=r"unknown choice of seeds 'atuo'; did you mean 'auto'\?"):
        compare("iris", "linear", seeds="atuo", store=store)  # type: ignore[arg-type]


def test_groups_add_up_to_the_whole() -> None:
    study = Study("diabetes", "linear", Budget(steps=3), data_options={"slices": ["sex"]})
    found = run(study, "baseline")
    total = sum(group["count"] for group in found["groups"])
    squared = sum(group["count"] * group["rmse"] ** 2 for group in found["groups"]) / total
    assert squared**0.5 == pytest.approx(found["metrics"]["rmse"])
    assert found["reliability"] == {}

    found = run(Study("iris", "linear", Budget(steps=3)), "baseline")
    assert [group["value"] for group in found["groups"]] == ["setosa", "versicolor", "virginica"]
    for metric in ("accuracy", "nll", "brier"):
        mean = sum(group["count"] * group[metric] for group in found["groups"]) / 30
        assert mean == pytest.approx(found["metrics"][metric], rel=1e-5)
    assert sum(found["reliability"]["count"]) == 30
    assert sum(found["reliability"]["right"]) / 30 == pytest.approx(found["metrics"]["accuracy"])
    gaps = (abs(a - b) for a, b in zip(found["reliability"]["confidence"], found["reliability"]["right"], strict=True))
    assert sum(gaps) / 30 == pytest.approx(found["metrics"]["ece"])


def test_groups_are_compared_in_the_metric_that_decides_if_it_is_a_mean(store: Store) -> None:
    for metric, expected in {"nll": "nll", "ece": "accuracy", "accuracy": "accuracy"}.items():
        result = compare(
            "iris", "linear", ["gradient-noise"], seeds=range(2), budget="1steps", metric=metric, store=store
        )
        assert result.group_metric == expected
        assert [group.name for group in result.arms[1].groups] == [
            "class setosa",
            "class versicolor",
            "class virginica",
        ]


def test_no_seed_is_an_error(store: Store) -> None:
    with pytest.raises(ValueError, match="a comparison needs at least one seed, got none"):
        compare("iris", "linear", seeds=(), store=store)
