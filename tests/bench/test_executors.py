"""Which executor the user's words ask for, cells over several processes, and what changed between two runs."""

from pathlib import Path

import pytest

from netwright.bench.compare import compare
from netwright.bench.executors import executor_maker, parse_bytes
from netwright.bench.local import InProcess, WorkerProcesses
from netwright.bench.runner import attempt
from netwright.bench.store import Store
from netwright.checks import InputError


def test_one_worker_without_limits_is_this_process() -> None:
    assert isinstance(executor_maker("1")(), InProcess)
    limited = executor_maker("1", time_limit="90s", memory_limit="1.5GB")()
    assert isinstance(limited, WorkerProcesses)
    assert limited.time_limit == 90
    limited.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": "many"}, "workers must be a number or 'ray', got 'many'"),
        ({"workers": "0"}, "workers must be at least 1, got 0"),
        ({"workers": "2", "ray_address": "auto"}, "a Ray address needs --workers ray"),
        ({"workers": "ray", "memory_limit": "4GB"}, "a memory limit is for local workers"),
        ({"time_limit": "20epochs"}, "a time limit must be a time such as 90s or 10min, got '20epochs'"),
        ({"memory_limit": "much"}, "memory must look like 500MB or 4GB, got 'much'"),
    ],
)
def test_what_does_not_fit_is_said(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        executor_maker(**options)  # type: ignore[arg-type]


def test_bytes() -> None:
    assert [parse_bytes(text) for text in ("100", "2K", "500MB", "4 gb")] == [100, 2048, 500 * 2**20, 4 * 2**30]


def test_a_result_that_is_not_finite_is_a_failure() -> None:
    outcome = attempt(lambda config: {"curve": [{"loss": 1.0}, {"loss": float("inf")}]}, {})
    assert outcome.status == "failed"
    assert outcome.reason == "the result is not finite: curve.1.loss is inf"


def test_a_changed_model_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    monkeypatch.chdir(tmp_path)
    model = tmp_path / "net.py"
    said = []
    for width in (3, 4, 4):
        model.write_text(
            "from torch import nn\n"
            f"def build():\n    return nn.Sequential(nn.Linear(4, {width}), nn.Linear({width}, 3))\n"
        )
        console = Console(record=True, width=200)
        compare("iris", "net.py:build", seeds=range(2), budget="1epochs", store=Store("runs.db"), console=console)
        said.append(console.export_text())
    message = "the model file has changed since 2 cells of this study were run: they are kept, but do not count now"
    assert [message in text for text in said] == [False, True, False]


def test_strategies_are_checked() -> None:
    with pytest.raises(InputError, match="unknown strategy 'dpp'; did you mean 'ddp'"):
        compare("iris", "linear", strategy="dpp")
