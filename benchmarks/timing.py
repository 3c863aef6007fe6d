"""Compare candidates side by side in one run: print what was found, keep it for the table in docs/performance.md."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Row(NamedTuple):
    """One candidate against its baseline: ``ratio`` of time, or of another amount."""

    title: str
    candidate: str
    baseline: str
    ratio: float
    target: float | None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "met" if self.ratio <= self.target else "MISSED"


rows: list[Row] = []  # all that this process has measured; `python -m benchmarks` makes a table of it


def side_by_side(
    title: str,
    candidates: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 30,
    targets: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Print the median time of every candidate and its ratio to the baseline; return the ratios.

    The candidates run in turns, so that a busy machine slows all of them alike.

    Args:
        title: What is measured.
        candidates: Name to a function without arguments.
        baseline: Name of the candidate that the others are compared with.
        rounds: How often each is timed; before that each runs three times untimed.
        targets: Largest ratio that a candidate should have.
    """
    torch.set_num_threads(1)
    for candidate in candidates.values():
        for _ in range(3):
            candidate()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.disable()
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - start)
    gc.enable()
    medians = {name: f"{statistics.median(values) * 1e3:9.3f} ms" for name, values in seconds.items()}
    # the median of per-round ratios is steadier than the ratio of medians
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds[baseline], strict=True))
        for name, values in seconds.items()
    }
    _report(title, medians, ratios, baseline, targets or {})
    return ratios


def amounts(
    title: str,
    values: Mapping[str, float],
    *,
    baseline: str,
    targets: Mapping[str, float] | None = None,
    unit: str = "bytes",
) -> dict[str, float]:
    """As :func:`side_by_side`, for amounts that were measured in another way, such as memory."""
    ratios = {name: value / values[baseline] for name, value in values.items()}
    shown = {name: f"{value:9,.0f} {unit}" for name, value in values.items()}
    _report(title, shown, ratios, baseline, targets or {})
    return ratios


def _report(
    title: str, shown: Mapping[str, str], ratios: Mapping[str, float], baseline: str, targets: Mapping[str, float]
) -> None:
    print(f"\n{title}")
    for name, value in shown.items():
        row = Row(title, name, baseline, ratios[name], targets.get(name))
        if name != baseline:
            rows.append(row)
        goal = "" if row.target is None else f"  target ≤ {row.target:.2f}  {row.verdict}"
        print(f"  {name:<40} {value}  {row.ratio:6.2f}×{goal}", flush=True)
