"""The progress bar of long work."""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LEFT = (TextColumn("left about"), TimeRemainingColumn())


def progress_bar(console: Console | None, *counts: ProgressColumn, left: Sequence[ProgressColumn] = LEFT) -> Progress:
    """What is being done, a bar, ``counts``, and the time that it has taken and will take; gone when it is done.

    Args:
        console: Where it is shown; nowhere if not given.
        counts: Columns that say how far it is.
        left: Columns with the time left.
    """
    # what is being done may have a name of the user's in it, with brackets
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *counts, TimeElapsedColumn(), *left)
    return Progress(*columns, console=console, disable=console is None, transient=True)


__all__ = ["progress_bar"]
