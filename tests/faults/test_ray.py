"""Ray: the same numbers to the bit as local workers, nothing to be reached from outside, and clear refusals."""

import re
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from netwright.bench.compare import Comparison, compare
from netwright.bench.executors import executor_maker
from netwright.bench.on_ray import RayTasks
from netwright.bench.runner import WorkerDied
from netwright.bench.store import Cell, Store
from netwright.checks import InputError

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = pytest.mark.faults


def _study(folder: Path, workers: str) -> Comparison:
    return compare(
        "iris",
        "linear",
        ["gradient-noise"],
        seeds=range(3),
        budget="3epochs",
        store=Store(folder / f"{workers}.db"),
        executor=executor_maker(workers),
    )


def test_one_worker_two_workers_and_ray_give_the_same_numbers_to_the_bit(tmp_path: Path) -> None:
    results = [_study(tmp_path, workers) for workers in ("1", "2", "ray")]
    for result in results:
        assert not result.failed
        for arm, first in zip(result.arms, results[0].arms, strict=True):
            assert {n: s.values for n, s in arm.metrics.items()} == {n: s.values for n, s in first.metrics.items()}
            for seed, curve in arm.curves.items():
                losses = [[record["loss"] for record in c] for c in (curve, first.curves[seed])]
                assert losses[0] == losses[1]


@pytest.fixture
def ray_tasks() -> Iterator[RayTasks]:
    tasks = RayTasks(local_cpus=2)
    yield tasks
    tasks.close()


def _listening() -> dict[tuple[str, int], str]:
    found = {}
    for process in psutil.process_iter(["name"]):
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.ip, connection.laddr.port] = process.info["name"]
        except psutil.Error:
            continue
    return found


def test_a_local_cluster_is_on_the_loopback_interface_alone_and_is_stopped() -> None:
    before = _listening()
    tasks = RayTasks(local_cpus=1)
    tasks.submit(Cell("study", "arm", 0, {}), _pause)
    while not tasks.wait(1.0):
        pass
    opened = {place: name for place, name in _listening().items() if place not in before}
    tasks.close()
    assert opened
    outside = {
        place: name for place, name in opened.items() if place[0] not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")
    }
    assert not outside, outside
    assert not any("dashboard" in name for name in opened.values())
    deadline = time.monotonic() + 20
    while set(_listening()) & set(opened) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not set(_listening()) & set(opened)


def _pause(config: Mapping[str, Any]) -> dict[str, Any]:
    time.sleep(config.get("seconds", 0.1))
    return {"value": 1.0}


def test_what_a_cell_needs_decides_how_many_run_side_by_side() -> None:
    with pytest.raises(InputError, match=r"the Ray cluster has 2 CPUs and 0 GPUs, a cell needs 1 and 0.5"):
        RayTasks(local_cpus=2, gpus=0.5)
    tasks = RayTasks(local_cpus=2, cpus=2)
    assert tasks.slots == 1
    tasks.close()


def test_a_cluster_that_is_not_there_is_said() -> None:
    with pytest.raises(InputError, match=re.escape("cannot reach Ray at 127.0.0.1:1")):
        RayTasks("127.0.0.1:1")


def test_a_cell_that_hangs_on_ray_is_stopped(ray_tasks: RayTasks) -> None:
    ray_tasks.time_limit = 3.0
    ray_tasks.submit(Cell("study", "arm", 0, {"seconds": 1000}), _pause)
    deadline = time.monotonic() + 60
    found = []
    while not found and time.monotonic() < deadline:
        found = ray_tasks.wait(1.0)
    ((_, outcome),) = found
    assert not isinstance(outcome, WorkerDied)
    assert outcome.reason == "it took longer than the limit of 3 s"
