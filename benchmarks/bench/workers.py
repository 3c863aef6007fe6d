"""``compare`` with two workers against one on the study of ``make demo``, start of the workers included."""

import sys
import tempfile
import time
from pathlib import Path

from netwright.bench.compare import compare
from netwright.bench.store import Store

TRIES = [
    "phm[n=2]",
    "gradient-noise",
    "quadratic",
    "random-pruning",
    "lottery-ticket",
    "phm[n=2]+lottery-ticket",
]


def seconds(workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        compare("digits", "mlp", TRIES, budget="40epochs", workers=workers, store=Store(Path(folder) / "runs.db"))
        return time.perf_counter() - start


def main() -> None:
    one, two = seconds(1), seconds(2)
    print(f"1 worker {one:.1f} s, 2 workers {two:.1f} s: {one / two:.2f}× the throughput  target ≥ 1.70")
    sys.exit(one / two < 1.7)


if __name__ == "__main__":
    main()
