"""``kill -9`` of workers, of the parent and of Ray workers: every cell once, and the table of an undisturbed run."""

import json
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from netwright.bench.local import WorkerProcesses
from netwright.bench.on_ray import RayTasks
from netwright.bench.runner import Executor, run_cells
from netwright.bench.store import Store

sys.path.insert(0, str(Path(__file__).parent))
import study

pytestmark = pytest.mark.faults


def _workers_of_this_process() -> list[psutil.Process]:
    """Processes of the pool: what the fork server, a child of this process, has started."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if "forkserver" in " ".join(child.cmdline()) and child.ppid() != psutil.Process().pid:
                found.append(child)
        except psutil.Error:
            continue
    return found


def _ray_workers() -> list[psutil.Process]:
    processes = psutil.process_iter(["cmdline"])
    return [process for process in processes if "ray::_attempt" in " ".join(process.info["cmdline"] or [])]


def _killed_while(run: Callable[[], None], victims: Callable[[], list[psutil.Process]], rounds: int) -> int:
    """Kill a random victim at random moments until ``run`` is over or so many were hit; how many were."""
    over = threading.Event()
    killed = 0
    rng = random.Random(0)

    def kill() -> None:
        nonlocal killed
        while killed < rounds and not over.wait(rng.uniform(0.05, 0.4)):
            alive = victims()
            if alive:
                rng.choice(alive).kill()
                killed += 1

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run()
    over.set()
    thread.join()
    return killed


def _check(store: Path | str, number: int) -> None:
    cells = study.cells(number)
    outcomes = Store(store).find(cells)
    assert len(outcomes) == number
    assert {str(cell.seed): outcomes[cell.key].result.get("value") for cell in cells} == study.table(number)


def _disturbed(
    folder: Path,
    make: Callable[[], Executor],
    victims: Callable[[], list[psutil.Process]],
    rounds: int,
    cells: int = 40,
) -> None:
    """Studies of some cells, one after the other, until so many kills are done; each is checked."""
    killed, number = 0, 0
    while killed < rounds:
        number += 1
        store = folder / f"runs{number}.db"

        def run(store: Path = store) -> None:
            run_cells(study.cells(cells), study.work, Store(store), make())

        killed += _killed_while(run, victims, rounds - killed)
        # a cell whose worker was killed three times is recorded as failed, and mended by --retry-failed
        run_cells(study.cells(cells), study.work, Store(store), make(), retry_failed=True)
        _check(store, cells)


def test_workers_are_killed(tmp_path: Path, rounds: int) -> None:
    _disturbed(tmp_path, lambda: WorkerProcesses(2), _workers_of_this_process, rounds)


def test_ray_workers_are_killed(tmp_path: Path, rounds: int) -> None:
    _disturbed(tmp_path, lambda: RayTasks(local_cpus=2), _ray_workers, rounds, cells=300)


def test_the_parent_is_killed(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(0)
    killed = 0
    number = 0
    longest = 4.0
    while killed < rounds:
        number += 1
        store, out = tmp_path / f"runs{number}.db", tmp_path / f"out{number}.json"
        command = [sys.executable, str(Path(study.__file__)), str(store), str(out), "2", "60"]
        while not out.exists():
            start = time.monotonic()
            process = subprocess.Popen(command)
            try:
                # the last round ends undisturbed
                process.wait(timeout=rng.uniform(0.3, longest) if killed < rounds else 120)
                longest = max(4.0, time.monotonic() - start)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
        assert json.loads(out.read_text()) == study.table(60)
        _check(store, 60)
        rows = sqlite3.connect(store).execute("SELECT key FROM cells").fetchall()
        assert max(Counter(rows).values()) == 1
        assert sqlite3.connect(store).execute("SELECT count(*) FROM leases").fetchone() == (0,)
    _assert_no_orphans(str(tmp_path))


def _assert_no_orphans(folder: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        left = [p for p in psutil.process_iter(["cmdline"]) if folder in " ".join(p.info["cmdline"] or [])]
        if not left:
            return
        time.sleep(0.2)
    raise AssertionError(f"{len(left)} processes outlived their parent")
