"""An executor for several runs of cells in a row, whose workers stay warm between them."""

from netwright.bench.runner import Executor, Work, WorkerDied
from netwright.bench.store import Cell, Outcome


class KeptExecutor:
    """Passes everything on to ``executor``, which the end of a run does not close unless something still runs."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.slots = executor.slots
        self._running = 0

    def submit(self, cell: Cell, work: Work) -> None:
        """Start a cell."""
        self._running += 1
        self.executor.submit(cell, work)

    def wait(self, seconds: float) -> list[tuple[Cell, Outcome | WorkerDied]]:
        """What has finished."""
        found = self.executor.wait(seconds)
        self._running -= len(found)
        return found

    def close(self) -> None:
        """Stop what still runs; nothing, after a run that came to its end."""
        if self._running:
            self.executor.close()

    def close_for_good(self) -> None:
        """Close the executor."""
        self.executor.close()


__all__ = ["KeptExecutor"]
