"""Run the cells of a study that are not in the store yet, side by side, and keep each as soon as it is finished."""

import signal
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from netwright import checks
from netwright.bench.processes import worker_context
from netwright.bench.store import Cell, Outcome, Store

Work = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class Executor(Protocol):
    """Where cells run. Local processes are one implementation; a cluster can be another."""

    def run(self, cells: Sequence[Cell], work: Work) -> Iterator[tuple[Cell, Outcome]]:
        """Yield every cell with its outcome, in the order in which they finish."""
        ...


class LocalExecutor:
    """Runs cells in ``workers`` processes of this machine, one torch thread each; with one worker in this process."""

    def __init__(self, workers: int = 1) -> None:
        checks.at_least("workers", workers, 1)
        self.workers = workers
        self.context = worker_context() if workers > 1 else None

    def run(self, cells: Sequence[Cell], work: Work) -> Iterator[tuple[Cell, Outcome]]:
        """Yield every cell with its outcome, in the order in which they finish."""
        if self.workers == 1 or len(cells) == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for cell in cells:
                    yield cell, attempt(work, cell.config)
            finally:
                torch.set_num_threads(threads)
            return
        pool = ProcessPoolExecutor(min(self.workers, len(cells)), self.context, initializer=_start_worker)
        try:
            running: dict[Future[Outcome], Cell] = {pool.submit(attempt, work, c.config): c for c in cells}
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), _outcome_of(future)
        finally:
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def attempt(work: Work, config: Mapping[str, Any]) -> Outcome:
    """Do the work of one cell; an error becomes a failed outcome with its reason."""
    start = time.perf_counter()
    try:
        return Outcome("done", work(config), seconds=time.perf_counter() - start)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return Outcome("failed", {"traceback": traceback.format_exc()}, reason, time.perf_counter() - start)


def run_cells(
    cells: Sequence[Cell],
    work: Work,
    store: Store,
    executor: Executor,
    *,
    console: Console | None = None,
    retry_failed: bool = False,
) -> dict[str, Outcome]:
    """Run what is not finished, keep it, and return the outcomes of all cells by key.

    Args:
        cells: The study.
        work: Does one cell: configuration in, result out, both JSON values; a function of a module.
        store: Where finished cells are.
        executor: Where unfinished cells run.
        console: Where progress is shown; nowhere if not given.
        retry_failed: Run cells again that failed before.

    Raises:
        checks.Interrupted: On Ctrl-C. What is finished is kept.
    """
    finished = store.find(cells)
    if retry_failed:
        finished = {key: outcome for key, outcome in finished.items() if outcome.status == "done"}
    left = [cell for cell in cells if cell.key not in finished]
    if not left:
        return finished
    progress = _progress_bar(console)
    seconds = [outcome.seconds for outcome in finished.values() if outcome.seconds > 0]
    workers = getattr(executor, "workers", 1)
    with progress:
        task = progress.add_task(_doing(left[0]), total=len(cells), completed=len(finished), left="")
        try:
            for cell, outcome in executor.run(left, work):
                if outcome.reason == _WORKER_DIED:
                    continue  # nothing is known about this cell: it stays open
                store.save(cell, outcome)
                finished[cell.key] = outcome
                seconds.append(outcome.seconds)
                remaining = (len(cells) - len(finished)) * statistics.fmean(seconds) / workers
                progress.update(task, advance=1, description=_doing(cell), left=_duration(remaining))
                if outcome.status == "failed":
                    progress.console.print(f"[red]failed[/] {cell.arm}, seed {cell.seed}: {outcome.reason}")
        except KeyboardInterrupt:
            kept = len(store.find(cells))  # the interrupt may have come between saving a cell and counting it
            raise checks.Interrupted(
                f"stopped: {kept} of {len(cells)} cells are finished and kept; run the same command to go on"
            ) from None
    if len(finished) < len(cells):
        lost = len(cells) - len(finished)
        raise RuntimeError(f"{_WORKER_DIED}: {lost} cells are not finished; run the same command to go on")
    return finished


_WORKER_DIED = "a worker process died (out of memory, or killed)"


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    torch.set_num_threads(1)


def _outcome_of(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenProcessPool:
        return Outcome("failed", {}, _WORKER_DIED)


def _progress_bar(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
        disable=console is None,
        transient=True,
    )


def _doing(cell: Cell) -> str:
    return f"{cell.study}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"about {minutes}:{rest:02d} left"


__all__ = ["Executor", "LocalExecutor", "Work", "attempt", "run_cells"]
