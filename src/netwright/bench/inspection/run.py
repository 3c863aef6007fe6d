"""Run the sections of an inspection one after the other, and leave the user's network exactly as it was."""

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn

from netwright import checks
from netwright.analysis.capture import capture, run_order
from netwright.bench.inspection.calibration import calibration
from netwright.bench.inspection.collapse import collapse
from netwright.bench.inspection.complexity import complexity
from netwright.bench.inspection.cost import cost
from netwright.bench.inspection.findings import Inspection, NotApplicable, Observer, Section, Subject
from netwright.bench.inspection.landscape import landscape
from netwright.bench.inspection.similarity import similarity
from netwright.bench.inspection.units import units
from netwright.cost import count_macs
from netwright.data.splits import Splits
from netwright.models.baselines import check_outputs

SECTIONS: Mapping[str, Callable[[Subject, Observer], Section]] = {
    "cost": cost,
    "calibration": calibration,
    "units": units,
    "collapse": collapse,
    "complexity": complexity,
    "landscape": landscape,
    "similarity": similarity,
}
# about how long each takes, for the time left
_WEIGHTS = {"cost": 2, "calibration": 4, "units": 8, "collapse": 4, "complexity": 6, "landscape": 30, "similarity": 8}


def inspect(
    model: nn.Module,
    splits: Splits,
    *,
    against: nn.Module | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    console: Console | None = None,
    words: Mapping[str, str] | None = None,
) -> Inspection:
    """Measure what a network is like inside, and how to read it.

    Args:
        model: Any network for the data; it is left exactly as it was: modes, hooks, gradients, buffers. So are the
            random generators of torch, NumPy and Python.
        splits: The data it was trained on.
        against: Another network for the same data, to compare with.
        only: Names of :data:`SECTIONS`; all if not given (``"similarity"`` only with ``against``).
        seed: Decides which samples and directions are drawn.
        console: Where progress is shown; nowhere if not given.
        words: How the user named ``model``, ``weights``, ``data`` and ``against``; for titles and commands.

    Returns:
        Sections with their figures, tables and pictures; a section that does not apply, or fails, says so.

    Raises:
        InputError: If a section is not known, or a network does not fit the data.

    Example:
        >>> from netwright import inspect, load
        >>> splits = load("digits")
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> found = inspect(model, splits, only=["cost"])
        >>> found["cost"]["parameters"]
        2410
    """
    words = words or {}
    for name in only:
        checks.known("section", name, SECTIONS)
    if "similarity" in only and against is None:
        raise checks.InputError("section 'similarity' compares two networks: give the other one (--against)")
    chosen = [name for name in SECTIONS if (name in only if only else name != "similarity" or against is not None)]
    check_outputs(model, splits, "the model")
    if against is not None:
        check_outputs(against, splits, "the model to compare with")
    with _random_states_kept(seed), _progress(console) as progress:
        copies = [None if net is None else _copy(net) for net in (model, against)]
        assert copies[0] is not None
        for net, what in zip(copies, ("the model", "the model to compare with"), strict=True):
            if net is not None:
                _check_finite(net, splits.train.inputs[:64], what)
        macs = count_macs(copies[0], splits.train.inputs[:1])
        total = sum(_WEIGHTS[name] for name in chosen)
        task = progress.add_task("", total=total)
        done = 0.0
        sections = []
        for name in chosen:
            progress.update(task, description=f"{name:11}")
            # each section gets networks that nothing has happened to
            subject = Subject(copy.deepcopy(copies[0]), splits, macs, copy.deepcopy(copies[1]), seed=seed, words=words)
            weight = _WEIGHTS[name]

            def observe(fraction: float, done: float = done, weight: int = weight) -> None:
                progress.update(task, completed=done + weight * fraction)

            torch.manual_seed(seed)
            sections.append(_run(name, subject, observe))
            done += weight
            progress.update(task, completed=done)
    return Inspection(
        model=words.get("model", type(model).__name__),
        weights=words.get("weights", ""),
        data=words.get("data", f"{len(splits.train)} training samples"),
        against="" if against is None else words.get("against", type(against).__name__),
        sections=tuple(sections),
    )


def _run(name: str, subject: Subject, observe: Observer) -> Section:
    start = time.perf_counter()
    try:
        section = SECTIONS[name](subject, observe)
    except NotApplicable as reason:
        section = Section(name, name.capitalize(), skipped=f"left out: {reason}")
    except checks.InputError as reason:
        section = Section(name, name.capitalize(), skipped=f"left out for this network: {reason}")
    except Exception as error:
        section = Section(name, name.capitalize(), skipped=f"failed: {type(error).__name__}: {error}", failed=True)
    return dataclasses.replace(section, seconds=time.perf_counter() - start)


def _check_finite(model: nn.Module, inputs: Tensor, what: str) -> None:
    """Raise InputError, with the first layer that puts out NaN or infinity, if the network does."""
    with torch.no_grad():
        if bool(model(inputs).isfinite().all()):
            return
    names = run_order(model, inputs[:1])
    with capture(model, names) as recorded, torch.no_grad():
        model(inputs)
    first = next((name for name in names if not bool(recorded[name].isfinite().all())), None)
    where = "" if first is None else f"; the first layer that does is {first!r}"
    raise checks.InputError(f"{what} puts out NaN or infinity on its training data{where}")


def _copy(model: nn.Module) -> nn.Module:
    try:
        new = copy.deepcopy(model)
    except Exception as error:
        raise checks.InputError(
            f"the model cannot be copied ({type(error).__name__}: {error}); an inspection works on a copy"
        ) from error
    for parameter in new.parameters():
        parameter.grad = None
    return new.cpu().eval()


@contextmanager
def _random_states_kept(seed: int) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002 - that of the user's code
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)


def _progress(console: Console | None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("left about"),
        TimeRemainingColumn(),
        console=console,
        disable=console is None,
        transient=True,
    )


__all__ = ["SECTIONS", "inspect"]
