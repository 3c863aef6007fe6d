"""One cell on several devices."""

from pathlib import Path

import pytest

from netwright.bench.compare import compare
from netwright.bench.store import Store

pytestmark = pytest.mark.faults


def test_a_cell_over_two_processes_gives_what_one_gives(tmp_path: Path) -> None:
    shared = {"seeds": range(1), "budget": "2epochs", "store": Store(tmp_path / "runs.db")}
    one = compare("iris", "linear", **shared)  # type: ignore[arg-type]
    two = compare("iris", "linear", devices=2, strategy="ddp", **shared)  # type: ignore[arg-type]
    for metric, summary in one.arms[0].metrics.items():
        assert two.arms[0].metrics[metric].mean == pytest.approx(summary.mean, abs=1e-5)
