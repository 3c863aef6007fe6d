"""Executors of this machine: in this process, or in worker processes with limits of time and memory."""

import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool

from netwright import checks
from netwright.bench.processes import worker_context
from netwright.bench.runner import Executor, Work, WorkerDied, attempt
from netwright.bench.store import Cell, Outcome

# what is kept of what a cell prints
_OUTPUT_BYTES = 4000


def local_executor(workers: int = 1, *, time_limit: float | None = None, memory_limit: int | None = None) -> Executor:
    """Where cells run on this machine.

    Args:
        workers: Processes side by side, one torch thread each; with 1 and no limits cells run in this process.
        time_limit: Seconds after which a cell is stopped.
        memory_limit: Bytes of memory that a worker may allocate (on Linux).

    Raises:
        InputError: If a number is not positive.
    """
    checks.at_least("workers", workers, 1)
    if workers == 1 and time_limit is None and memory_limit is None:
        return InProcess()
    return WorkerProcesses(workers, time_limit=time_limit, memory_limit=memory_limit)


class InProcess:
    """Runs cells one after the other in this process, with one torch thread."""

    slots = 1

    def __init__(self) -> None:
        self._next: tuple[Cell, Work] | None = None

    def submit(self, cell: Cell, work: Work) -> None:
        """Take a cell on; it runs in :meth:`wait`."""
        self._next = cell, work

    def wait(self, seconds: float) -> list[tuple[Cell, Outcome | WorkerDied]]:  # noqa: ARG002 - it is never idle
        """Run the cell that was submitted."""
        if self._next is None:
            return []
        (cell, work), self._next = self._next, None
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return [(cell, attempt(work, cell.config))]
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing runs between calls."""


class WorkerProcesses:
    """Runs cells in processes of this machine, one torch thread each.

    What a cell prints is kept away from the terminal; the end of it is kept with a cell that fails. A worker ends with
    the process that started it, even if that is killed.
    """

    def __init__(self, workers: int, *, time_limit: float | None = None, memory_limit: int | None = None) -> None:
        checks.at_least("workers", workers, 1)
        for name, limit in {"time_limit": time_limit, "memory_limit": memory_limit}.items():
            if limit is not None:
                checks.positive(name, limit)
        self.slots = workers
        self.time_limit = time_limit
        self._folder = Path(tempfile.mkdtemp(prefix="netwright-"))
        self._pool = ProcessPool(
            workers, context=worker_context(), initializer=_start_worker, initargs=(os.getpid(), memory_limit)
        )
        self._running: dict[Future[Outcome], tuple[Cell, Path]] = {}
        self._number = 0

    def submit(self, cell: Cell, work: Work) -> None:
        """Start a cell in a worker that is free."""
        self._number += 1
        output = self._folder / str(self._number)
        future = self._pool.schedule(_attempt_in_worker, args=(work, cell.config, str(output)), timeout=self.time_limit)
        self._running[future] = cell, output

    def wait(self, seconds: float) -> list[tuple[Cell, Outcome | WorkerDied]]:
        """Cells that have finished, were stopped, or whose worker died."""
        done = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED).done
        return [self._outcome(future) for future in done]

    def close(self) -> None:
        """Kill the workers."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _outcome(self, future: Future[Outcome]) -> tuple[Cell, Outcome | WorkerDied]:
        cell, output = self._running.pop(future)
        try:
            outcome = future.result()
        except TimeoutError:
            reason = f"it took longer than the limit of {self.time_limit:g} s"
            outcome = Outcome("failed", {}, reason, float(self.time_limit or 0))
        except ProcessExpired as error:
            return cell, WorkerDied(_how_it_died(error.exitcode))
        except Exception as error:  # what it returned could not be sent
            outcome = Outcome("failed", {}, f"{type(error).__name__}: {error}")
        if outcome.status == "failed":
            said = _end_of(output)
            if said:
                outcome = Outcome("failed", {**outcome.result, "output": said}, outcome.reason, outcome.seconds)
        output.unlink(missing_ok=True)
        return cell, outcome


def _attempt_in_worker(work: Work, config: Mapping[str, Any], output: str) -> Outcome:
    with _Printed(Path(output)):
        return attempt(work, config)


def _start_worker(parent: int, memory_limit: int | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)
    if memory_limit is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    threading.Thread(target=_end_with, args=(parent,), name="parent", daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when the one that uses it is gone."""
    while True:
        time.sleep(1.0)
        try:
            os.kill(parent, 0)
        except ProcessLookupError:
            os._exit(1)


class _Printed:
    """Sends what this process prints into a file that keeps the end of it only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.before = os.dup(1), os.dup(2)
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.close(writing)
        self.thread = threading.Thread(target=self._keep, args=(reading,), daemon=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in zip((1, 2), self.before, strict=True):
            os.dup2(old, number)
            os.close(old)
        # a process that the cell started may hold the pipe open
        self.thread.join(timeout=1.0)

    def _keep(self, reading: int) -> None:
        kept = b""
        with self.path.open("wb", buffering=0) as file:
            while chunk := os.read(reading, 65536):
                kept = (kept + chunk)[-_OUTPUT_BYTES:]
                file.seek(0)
                file.truncate()
                file.write(kept)
        os.close(reading)


def _end_of(output: Path) -> str:
    try:
        return output.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _how_it_died(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return f"its worker process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"its worker process ended with exit code {code}"


__all__ = ["InProcess", "WorkerProcesses", "local_executor"]
