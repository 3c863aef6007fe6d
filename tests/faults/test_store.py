"""A store that is damaged, read-only, full or away: a clear message, nothing lost, and the same command goes on."""

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from netwright.bench import store as stores
from netwright.bench.local import WorkerProcesses, local_executor
from netwright.bench.runner import run_cells
from netwright.bench.store import SCHEMA_VERSION, Cell, Outcome, Store, StoreLost
from netwright.checks import InputError

sys.path.insert(0, str(Path(__file__).parent))
import study

from conftest import Server

pytestmark = pytest.mark.faults


def _finish(store: Store, number: int) -> None:
    for cell in study.cells(number):
        store.save(cell, Outcome("done", study.work(cell.config)))


def test_a_truncated_file_is_refused_or_gone_on_with(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(0)
    for number in range(rounds):
        path = tmp_path / f"{number}.db"
        store = Store(path)
        _finish(store, 4)
        store.close()
        whole = path.read_bytes()
        path.write_bytes(whole[: rng.randrange(len(whole))])
        complaint = ""
        try:
            outcomes = run_cells(study.cells(6), study.work, Store(path), local_executor())
        except (InputError, StoreLost) as error:
            complaint = str(error)
        else:
            found = {str(cell.seed): outcomes[cell.key].result["value"] for cell in study.cells(6)}
            assert found == study.table(6)
        if complaint:
            assert str(path) in complaint
            assert re.search("malformed|not a database|no such table|disk I/O", complaint), complaint


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    path.write_bytes(os.urandom(5000))
    with pytest.raises(InputError, match=r"cannot open the store .*not a database; choose another with --store"):
        Store(path)


def test_garbage_in_the_middle_of_a_study_is_said(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = Store(path)
    cells = study.cells(4)

    def overwrite(config: Mapping[str, Any]) -> dict[str, Any]:
        if config["seed"] == 2:
            store.close()
            for file in tmp_path.glob("runs.db*"):
                file.write_bytes(b"no database at all" * 1000)
        return study.work(config)

    with pytest.raises(StoreLost, match=r"cannot be used any more: .*not a database.*run the same command to go on"):
        run_cells(cells, overwrite, store, local_executor())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let its root mount")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_is_said_and_the_study_goes_on_with_room(small_disk: Path) -> None:
    path = small_disk / "runs.db"

    def large(config: Mapping[str, Any]) -> dict[str, Any]:
        return study.work(config) | {"ballast": "x" * 100_000}

    cells = study.cells(20)
    with pytest.raises(StoreLost, match=r"cannot be used any more: .*full.*what was finished before is kept"):
        run_cells(cells, large, Store(path), local_executor())
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    store = Store(path)
    kept = len(store.find(cells))
    assert 1 <= kept < 20
    ran = []

    def count(config: Mapping[str, Any]) -> dict[str, Any]:
        ran.append(config["seed"])
        return study.work(config)

    outcomes = run_cells(cells, count, store, local_executor())
    assert len(ran) == 20 - kept
    assert {str(cell.seed): outcomes[cell.key].result["value"] for cell in cells} == study.table(20)


def test_a_read_only_store_is_refused_before_anything_runs(small_disk: Path) -> None:
    path = small_disk / "runs.db"
    store = Store(path)
    _finish(store, 2)
    store.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(InputError, match=r"cannot open the store .*choose another with --store"):
        Store(path)


# PostgreSQL


def test_a_study_on_postgres(database: str) -> None:
    cells = study.cells(6)
    outcomes = run_cells(cells, study.work, Store(database), WorkerProcesses(2))
    assert {str(cell.seed): outcomes[cell.key].result["value"] for cell in cells} == study.table(6)
    again = Store(database)
    assert again.find(cells) == outcomes
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT version FROM schema").fetchall() == [(SCHEMA_VERSION,)]
        assert connection.execute("SELECT count(*) FROM leases").fetchall() == [(0,)]


def test_a_newer_database_is_refused_and_an_older_one_migrated(database: str, tmp_path: Path) -> None:
    for url in (database, str(tmp_path / "old.db")):
        store = Store(url)
        _finish(store, 2)
        with store.engine.begin() as connection:
            # what version 1 looked like
            connection.execute(sa.text("DROP TABLE leases"))
            connection.execute(sa.text("UPDATE schema SET version = 1"))
        store.close()
        migrated = Store(url)
        assert len(migrated.find(study.cells(3))) == 2
        assert len(run_cells(study.cells(3), study.work, migrated, local_executor())) == 3
        with migrated.engine.begin() as connection:
            connection.execute(sa.text("UPDATE schema SET version = 99"))
        with pytest.raises(InputError, match=f"has schema 99, this version of Netwright knows {SCHEMA_VERSION}"):
            Store(url)


def test_many_create_one_database_at_the_same_time(database: str) -> None:
    errors: list[BaseException] = []

    def open_it() -> None:
        try:
            Store(database).find(study.cells(1))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_server_that_comes_back_is_waited_for(postgres: Server, database: str, rounds: int) -> None:
    rng = random.Random(0)
    stops = max(2, rounds // 5)
    cells = study.cells(12)
    for number in range(stops):
        chosen = [Cell(cell.study, f"round {number}", cell.seed, cell.config) for cell in cells]
        store = Store(database, patience=30)

        def interrupt() -> None:
            time.sleep(rng.uniform(0.0, 0.4))
            postgres.stop()
            time.sleep(rng.uniform(0.1, 1.5))
            postgres.start()

        thread = threading.Thread(target=interrupt)
        thread.start()
        outcomes = run_cells(chosen, study.work, store, WorkerProcesses(2))
        thread.join()
        assert {str(cell.seed): outcomes[cell.key].result["value"] for cell in chosen} == study.table(12)
        assert Store(database).find(chosen) == outcomes


def test_a_server_that_stays_away_is_said(postgres: Server, database: str) -> None:
    store = Store(database, patience=1.0)
    postgres.stop()
    try:
        with pytest.raises(
            StoreLost, match=r"cannot be used any more: .*asked for .* s.*run the same command to go on"
        ):
            run_cells(study.cells(2), study.work, store, local_executor())
        with pytest.raises(InputError, match=r"cannot open the store postgresql.*choose another with --store"):
            Store(database)
    finally:
        postgres.start()


def test_a_password_is_not_shown() -> None:
    with pytest.raises(InputError, match=r"me:\*\*\*@") as error:
        Store("postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


# several processes on one store


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_processes_share_a_study_and_no_cell_runs_twice(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "runs.db") if kind == "sqlite" else request.getfixturevalue("database")
    trace = tmp_path / "trace"
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import study; "
        "from netwright.bench.store import Store; from netwright.bench.runner import run_cells; "
        "from netwright.bench.local import local_executor; "
        "cells = study.cells(60, sys.argv[3]); "
        "found = run_cells(cells, study.work, Store(sys.argv[2]), local_executor()); "
        "print(json.dumps([found[c.key].result['value'] for c in cells]))"
    )
    command = [sys.executable, "-c", script, str(Path(__file__).parent), url, str(trace)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    tables = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(tables)) == 1
    ran = [line.split() for line in trace.read_text().splitlines()]
    assert sorted(int(seed) for seed, _ in ran) == list(range(60))
    assert len({pid for _, pid in ran}) > 1


def test_a_lease_whose_owner_died_is_taken_over_at_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs.db")
    cells = study.cells(2)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import study; from netwright.bench.store import Store; "
        "Store(sys.argv[2]).claim(study.cells(2))"
    )
    subprocess.run([sys.executable, "-c", script, str(Path(__file__).parent), str(tmp_path / "runs.db")], check=True)
    assert store.claim(cells) == cells[0]


def test_a_lease_from_elsewhere_lasts_until_it_is_over(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = Store(database), Store(database)
    other.owner = '["another machine", 1, 0.0, "00"]'
    cells = study.cells(2)
    assert other.claim(cells) == cells[0]
    assert mine.claim(cells) == cells[1]
    assert mine.claim(cells) is None
    with other.engine.begin() as connection:
        connection.execute(sa.text("UPDATE leases SET expires = expires - 61 WHERE owner LIKE '%another%'"))
    assert mine.claim(cells) == cells[0]
    # what the first owner finishes late changes nothing
    mine.save(cells[0], Outcome("done", {"value": 1.0}))
    other.save(cells[0], Outcome("done", {"value": 2.0}))
    assert mine.find(cells)[cells[0].key].result == {"value": 1.0}


def test_a_heartbeat_keeps_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(stores, "_HEARTBEAT_SECONDS", 0.1)
    mine, other = Store(tmp_path / "runs.db"), Store(tmp_path / "runs.db")
    cells = study.cells(1)
    with mine.heartbeat():
        assert mine.claim(cells) == cells[0]
        time.sleep(1.2)
        assert other.claim(cells) is None
    assert other.claim(cells) == cells[0]
