"""Ray against local workers, resuming a large study, and what the store costs."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import amounts
from netwright.bench.local import WorkerProcesses
from netwright.bench.on_ray import RayTasks
from netwright.bench.runner import Executor, run_cells
from netwright.bench.store import Cell, Outcome, Store

SECONDS = 5.0


def work(config: Mapping[str, Any]) -> dict[str, Any]:
    """Arithmetic for five seconds by the clock of this process alone, whatever else runs."""
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(config["seed"]))
    start, products = time.thread_time(), 0
    while time.thread_time() - start < SECONDS:
        x = torch.tanh(x @ x)
        products += 1
    return {"products": products}


def study(number: int) -> list[Cell]:
    return [Cell("scale", "arm", seed, {"seed": seed}) for seed in range(number)]


def seconds_with(make: Callable[[], Executor], number: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        run_cells(study(number), work, Store(Path(folder) / "runs.db"), make())
        return time.perf_counter() - start


def resume(store: Store, cells: list[Cell]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        finished = store.find(cells)
        left = [cell for cell in cells if cell.key not in finished]
        times.append(time.perf_counter() - start)
        assert len(left) == 10
    return statistics.median(times)


def main() -> None:
    number = 12
    local, on_ray = (
        seconds_with(make, number) for make in (lambda: WorkerProcesses(2), lambda: RayTasks(local_cpus=2))
    )
    amounts(
        f"a study of {number} cells of {SECONDS:g} s, start and stop included",
        {"2 local workers": local, "Ray with 2 CPUs": on_ray},
        baseline="2 local workers",
        targets={"Ray with 2 CPUs": 1.15},
        unit="s",
    )
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "runs.db")
        cells = study(1010)
        curve = [{"step": float(i), "loss": 0.1, "val_accuracy": 0.5, "val_nll": 1.0} for i in range(40)]
        outcome = Outcome("done", {"metrics": {"accuracy": 0.5}, "curve": curve}, seconds=1.0)
        start = time.perf_counter()
        for cell in cells[:1000]:
            store.claim([cell])
            store.save(cell, outcome)
        each = (time.perf_counter() - start) / 1000
        amounts(
            "resuming a study with 1,000 finished cells: what is left?",
            {"a second": 1.0, "find": resume(store, cells)},
            baseline="a second",
            targets={"find": 1.0},
            unit="s",
        )
    amounts(
        "lease and save of a cell, against a cell of one second",
        {"a second": 1.0, "store": each},
        baseline="a second",
        targets={"store": 0.01},
        unit="s",
    )


if __name__ == "__main__":
    main()
