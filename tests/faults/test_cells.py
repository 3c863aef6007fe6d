"""Cells that hang, eat all memory, raise, return NaN or print without end: recorded, and the study goes on."""

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from netwright import checks
from netwright.bench.local import WorkerProcesses, local_executor
from netwright.bench.runner import Executor, run_cells
from netwright.bench.store import Cell, Store

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = pytest.mark.faults


def misbehave(config: Mapping[str, Any]) -> dict[str, Any]:
    """A cell for each kind of trouble."""
    kind = config["kind"]
    print(f"about to {kind}", flush=True)
    if kind == "hang":
        time.sleep(1000)
    elif kind == "eat":
        held = [torch.ones(2**20, 25) for _ in range(50)]  # 5 GB
        return {"value": len(held)}
    elif kind == "raise":
        raise ValueError("no luck")
    elif kind == "nan":
        return {"metrics": {"accuracy": 0.5, "nll": float("nan")}}
    elif kind == "print":
        for line in range(1_000_000):
            print("line", line)
        os.write(1, b"the end of it\n")
        raise RuntimeError("after a million lines")
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"value": 1.0}


KINDS = ("hang", "eat", "raise", "nan", "print", "die", "work")
EXPECTED = {
    "hang": "it took longer than the limit of 15 s",
    "raise": "ValueError: no luck",
    "nan": "the result is not finite: metrics.nll is nan",
    "print": "RuntimeError: after a million lines",
    "die": "its worker process was killed by SIGKILL (out of memory?), 3 times",
}


def cells() -> list[Cell]:
    return [Cell("trouble", kind, 0, {"kind": kind}) for kind in KINDS]


def test_every_kind_of_trouble_is_recorded_and_the_study_goes_on(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    make = lambda: WorkerProcesses(2, time_limit=15.0, memory_limit=2**30)  # noqa: E731
    found = run_cells(cells(), misbehave, store, make())
    outcomes = {cell.arm: found[cell.key] for cell in cells()}
    assert outcomes["work"].result == {"value": 1.0}
    for kind, reason in EXPECTED.items():
        assert outcomes[kind].status == "failed"
        assert outcomes[kind].reason == reason
    assert outcomes["eat"].status == "failed"
    assert "memory" in outcomes["eat"].reason.lower() or "SIGKILL" in outcomes["eat"].reason
    assert "about to hang" in outcomes["hang"].result["output"]
    assert "about to die" in outcomes["die"].result["output"]
    assert outcomes["print"].result["output"].endswith("the end of it\n")
    assert len(outcomes["print"].result["output"]) <= 4000
    assert store.find(cells()) == found
    # the same command asks for nothing again; --retry-failed does
    assert run_cells(cells(), _mended, store, make()) == found
    again = run_cells(cells(), _mended, store, make(), retry_failed=True)
    assert {again[cell.key].status for cell in cells()} == {"done"}


def _mended(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": 2.0}


def _slow(config: Mapping[str, Any]) -> dict[str, Any]:
    time.sleep(0.5)
    return {"value": 1.0}


def _slow_cells() -> list[Cell]:
    return [Cell("slow", "arm", seed, {"seed": seed}) for seed in range(8)]


@pytest.mark.parametrize("make", [local_executor, lambda: WorkerProcesses(2)], ids=["in process", "two workers"])
@pytest.mark.parametrize("presses", [1, 2])
def test_control_c(tmp_path: Path, make: Any, presses: int) -> None:
    store = Store(tmp_path / "runs.db")
    executor: Executor = make()
    before = signal.getsignal(signal.SIGINT)  # shells ignore it in what they run in the background

    def press() -> None:
        while not store.find(_slow_cells()):
            time.sleep(0.02)
        for _ in range(presses):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(checks.Interrupted, match="run the same command to go on"):
        run_cells(_slow_cells(), _slow, store, executor)
    thread.join()
    kept = len(store.find(_slow_cells()))
    if presses == 1:
        # what ran was finished, nothing was begun anew
        assert 1 < kept <= 1 + 2 * executor.slots
    assert 1 <= kept < 8
    assert signal.getsignal(signal.SIGINT) is before
    assert len(run_cells(_slow_cells(), _slow, store, make())) == 8
