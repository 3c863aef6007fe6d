"""What the fault tests share: rounds, a small study with known results, and a PostgreSQL server of their own.

Every commit runs ten rounds of each; the figures of ``docs/reliability.md`` are from 200::

    NETWRIGHT_FAULT_ROUNDS=200 python -m pytest -n 0 tests/faults -m faults
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("NETWRIGHT_FAULT_ROUNDS", "10"))


@pytest.fixture(autouse=True)
def workers_find_these_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers import what they run by its name; those of Ray look where Python looks."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


@pytest.fixture(scope="session")
def rounds() -> int:
    """How many faults each test injects."""
    return ROUNDS


class Server:
    """A PostgreSQL server on the loopback interface that can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "data"
        self.log = folder / "log"
        self.port = _free_port()
        self.url = f"postgresql://netwright@127.0.0.1:{self.port}/postgres"
        self._run(_program("initdb"), "-D", str(self.folder), "-U", "netwright", "--auth=trust", "-E", "UTF8")

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run(_program("pg_ctl"), "-D", str(self.folder), "-l", str(self.log), "-o", options, "-w", "start")

    def stop(self) -> None:
        self._run(_program("pg_ctl"), "-D", str(self.folder), "-m", "immediate", "-w", "stop")

    def _run(self, *command: str) -> None:
        # the server refuses to run as root
        prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        subprocess.run([*prefix, *command], check=True, cwd="/", stdout=subprocess.DEVNULL, timeout=60)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A server that runs; a test that stops it starts it again."""
    # not below pytest's own folder, which another user may not enter
    with tempfile.TemporaryDirectory(prefix="netwright-postgres-", ignore_cleanup_errors=True) as folder:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
        server = Server(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def database(postgres: Server) -> str:
    """The URL of an empty database."""
    import psycopg

    name = f"study_{time.monotonic_ns()}"
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{postgres.url.rpartition('/')[0]}/{name}"


def _program(name: str) -> str:
    found = shutil.which(name) or next(iter(sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    assert found is not None, f"needs {name} (Debian's package postgresql)"
    return str(found)


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])
