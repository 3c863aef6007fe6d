"""Time candidates side by side in one run: interleaved rounds, so that a busy machine slows all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping

import torch


def side_by_side(
    title: str,
    candidates: Mapping[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 30,
    targets: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Print the median time of every candidate and its ratio to the baseline; return the ratios.

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
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    # the median of per-round ratios is steadier than the ratio of medians
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, seconds[baseline], strict=True))
        for name, values in seconds.items()
    }
    print(f"\n{title}")
    for name, median in medians.items():
        target = (targets or {}).get(name)
        goal = "" if target is None else f"  target ≤ {target:.2f}  {'met' if ratios[name] <= target else 'MISSED'}"
        print(f"  {name:<40} {median * 1e3:9.3f} ms  {ratios[name]:6.2f}×{goal}")
    return ratios
