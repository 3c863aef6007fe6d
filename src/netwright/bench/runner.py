"""Run the cells of a study that are not in the store yet, side by side, and keep each as soon as it is finished."""

import math
import signal
import statistics
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from netwright import checks
from netwright.bench.progress import progress_bar
from netwright.bench.store import Cell, Outcome, Store

Work = Callable[[Mapping[str, Any]], Mapping[str, Any]]

# how often a cell is started before it counts as one that kills its worker
ATTEMPTS = 3
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class WorkerDied:
    """The process that ran a cell is gone.

    Attributes:
        how: What became of it.
        output: The end of what the cell printed, as far as it is known.
    """

    how: str
    output: str = ""


class Executor(Protocol):
    """Where cells run: local processes, or a cluster."""

    @property
    def slots(self) -> int:
        """How many cells it runs side by side."""
        ...

    def submit(self, cell: Cell, work: Work) -> None:
        """Start a cell, or take it on to start it as soon as there is room."""
        ...

    def wait(self, seconds: float) -> list[tuple[Cell, Outcome | WorkerDied]]:
        """What has finished since the last call; waits for the first for so many seconds at most."""
        ...

    def close(self) -> None:
        """Stop everything that still runs, at once."""
        ...


def attempt(work: Work, config: Mapping[str, Any]) -> Outcome:
    """Do the work of one cell; an error, or a result that is not finite, becomes a failed outcome with its reason."""
    start = time.perf_counter()
    try:
        result = work(config)
        where = _not_finite(result)
        if where is not None:
            reason = f"the result is not finite: {where}"
            return Outcome("failed", {}, reason, seconds=time.perf_counter() - start)
        return Outcome("done", result, seconds=time.perf_counter() - start)
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

    Other processes may run the same study on the same store: each cell is run by one of them. The first Ctrl-C lets
    what runs finish, the second one stops it.

    Args:
        cells: The study.
        work: Does one cell: configuration in, result out, both JSON values; a function of a module.
        store: Where finished cells are.
        executor: Where unfinished cells run; it is closed at the end. It is not touched before if there are none.
        console: Where progress is shown; nowhere if not given.
        retry_failed: Run cells again that failed before.

    Raises:
        checks.Interrupted: On Ctrl-C. What is finished is kept.
        StoreLost: If the store stops answering.
    """
    finished = store.find(cells)
    if retry_failed:
        finished = {key: outcome for key, outcome in finished.items() if outcome.status == "done"}
    try:
        if len(finished) < len(cells):
            with store.heartbeat(), _interrupts() as interrupts:
                bar = progress_bar(console, MofNCompleteColumn(), left=[TextColumn("{task.fields[left]}")])
                _Run(cells, work, store, executor, finished, retry_failed, interrupts).go(bar)
    finally:
        executor.close()
    return finished


class _Run:
    """One process's part in a study."""

    def __init__(
        self,
        cells: Sequence[Cell],
        work: Work,
        store: Store,
        executor: Executor,
        finished: dict[str, Outcome],
        retry_failed: bool,
        interrupts: "_Interrupts",
    ) -> None:
        self.cells, self.work, self.store, self.executor = cells, work, store, executor
        self.finished, self.retry_failed, self.interrupts = finished, retry_failed, interrupts
        self.waiting = [cell for cell in cells if cell.key not in finished]
        self.running: dict[str, Cell] = {}
        self.deaths: Counter[str] = Counter()
        self.seconds = [outcome.seconds for outcome in finished.values() if outcome.seconds > 0]

    def go(self, progress: Progress) -> None:
        def say() -> None:
            number = len(self.running)
            cells = f"{number} running cell{'' if number == 1 else 's'}"
            progress.console.print(f"finishing {cells}; Ctrl-C again to stop now")

        self.interrupts.say = say
        with progress:
            task = progress.add_task(self.cells[0].study, total=len(self.cells), completed=len(self.finished), left="")
            try:
                while self.waiting or self.running:
                    if self.interrupts.asked and not self.running:
                        raise KeyboardInterrupt
                    self._start_some()
                    for cell, outcome in self._wait():
                        progress.update(
                            task, completed=len(self.finished), description=cell.study, left=self._time_left()
                        )
                        if outcome.status == "failed":
                            progress.console.print(
                                f"[red]failed[/] {escape(f'{cell.arm}, seed {cell.seed}: {outcome.reason}')}",
                                soft_wrap=True,
                            )
            except KeyboardInterrupt:
                self.executor.close()
                kept = len(self.store.find(self.cells))  # the interrupt may have come between saving and counting
                raise checks.Interrupted(
                    f"stopped: {kept} of {len(self.cells)} cells are finished and kept; run the same command to go on"
                ) from None

    def _start_some(self) -> None:
        while self.waiting and len(self.running) < self.executor.slots and not self.interrupts.asked:
            cell = self.store.claim(self.waiting, again=self.retry_failed)
            if cell is None:
                return
            self.waiting.remove(cell)
            self.running[cell.key] = cell
            self.executor.submit(cell, self.work)

    def _wait(self) -> Iterator[tuple[Cell, Outcome]]:
        """What this process has finished, else what others have."""
        if not self.running:
            time.sleep(_POLL_SECONDS)
            yield from self._found_elsewhere()
            return
        for cell, found in self.executor.wait(_POLL_SECONDS):
            del self.running[cell.key]
            if isinstance(found, WorkerDied):
                self.deaths[cell.key] += 1
                if self.deaths[cell.key] < ATTEMPTS:
                    self.running[cell.key] = cell
                    self.executor.submit(cell, self.work)
                    continue
                found = Outcome("failed", {"output": found.output}, f"{found.how}, {ATTEMPTS} times")
            self.store.save(cell, found)
            self.finished[cell.key] = found
            self.seconds.append(found.seconds)
            yield cell, found

    def _found_elsewhere(self) -> Iterator[tuple[Cell, Outcome]]:
        outcomes = self.store.find(self.waiting)
        for cell in list(self.waiting):
            outcome = outcomes.get(cell.key)
            if outcome is not None and (outcome.status == "done" or not self.retry_failed):
                self.waiting.remove(cell)
                self.finished[cell.key] = outcome
                yield cell, outcome

    def _time_left(self) -> str:
        left = len(self.cells) - len(self.finished)
        seconds = left * statistics.fmean(self.seconds or [0.0]) / self.executor.slots
        minutes, rest = divmod(round(seconds), 60)
        return f"about {minutes}:{rest:02d} left"


class _Interrupts:
    """How often Ctrl-C was pressed: the first time asks to finish, the second one stops."""

    def __init__(self) -> None:
        self.asked = False
        self.say: Callable[[], None] = lambda: None

    def __call__(self, number: int, frame: object) -> None:  # noqa: ARG002 - the signature of a signal handler
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say()


@contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    interrupts = _Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = signal.signal(signal.SIGINT, interrupts)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _not_finite(value: Any, name: str = "") -> str | None:
    """Where in a result the first number is that is not finite, and what it is."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{name} is {value}"
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    found = (_not_finite(item, f"{name}.{key}".lstrip(".")) for key, item in items)
    return next((where for where in found if where is not None), None)


__all__ = ["ATTEMPTS", "Executor", "Work", "WorkerDied", "attempt", "run_cells"]
