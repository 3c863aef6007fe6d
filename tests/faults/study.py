"""A small study with known results, to be killed: ``python study.py STORE OUT [WORKERS] [CELLS]``."""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netwright.bench.local import local_executor
from netwright.bench.runner import run_cells
from netwright.bench.store import Cell, Store

SECONDS = 0.03


def work(config: Mapping[str, Any]) -> dict[str, Any]:
    """A cell that takes a moment and leaves a trace of having run."""
    time.sleep(SECONDS)
    if config.get("trace"):
        with Path(config["trace"]).open("a", encoding="utf-8") as file:
            file.write(f"{config['seed']} {os.getpid()}\n")
    return {"value": config["seed"] ** 2 / 7}


def cells(number: int, trace: str = "") -> list[Cell]:
    return [Cell("small study", "arm", seed, {"seed": seed, "trace": trace}) for seed in range(number)]


def table(number: int) -> dict[str, float]:
    """What an undisturbed run gives."""
    return {str(seed): seed**2 / 7 for seed in range(number)}


def main() -> None:
    store, out = sys.argv[1:3]
    workers, number = (int(argument) for argument in [*sys.argv[3:], "2", "24"][:2])
    study = cells(number)
    outcomes = run_cells(study, work, Store(store), local_executor(workers))
    found = {str(cell.seed): outcomes[cell.key].result["value"] for cell in study}
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    # workers import what they run by its name
    sys.path.insert(0, str(Path(__file__).parent))
    import study as own

    own.main()
