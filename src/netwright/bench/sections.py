"""Run the sections of a report one after the other, and leave the user's network exactly as it was."""

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from netwright import checks
from netwright.analysis.capture import capture, run_order
from netwright.bench.findings import Findings, NotApplicable, Observer, Section, Subject
from netwright.bench.progress import progress_bar
from netwright.cost import count_macs
from netwright.data.splits import Splits
from netwright.models.baselines import check_outputs


class Part(NamedTuple):
    """What makes one section, and about how long it takes beside the others, for the time left."""

    make: Callable[[Subject, Observer], Section]
    weight: float


def run_sections(
    question: str,
    parts: Mapping[str, Part],
    model: nn.Module,
    splits: Splits,
    *,
    against: nn.Module | None = None,
    only: Sequence[str] = (),
    seed: int = 0,
    console: Console | None = None,
    words: Mapping[str, str] | None = None,
) -> Findings:
    """Make the sections that were asked for.

    Args:
        question: What they answer.
        parts: All sections that there are, by name.
        model: Any network for the data; it is left exactly as it was: modes, hooks, gradients, buffers. So are the
            random generators of torch, NumPy and Python.
        splits: The data.
        against: Another network for the same data, to compare with.
        only: Names of parts; all if not given.
        seed: Decides every draw.
        console: Where progress is shown; nowhere if not given.
        words: How the user named ``model``, ``weights``, ``data`` and ``against``; for titles and commands.

    Raises:
        InputError: If a section is not known, or a network does not fit the data.
    """
    words = words or {}
    for name in only:
        checks.known("section", name, parts)
    check_outputs(model, splits, "the model")
    if against is not None:
        check_outputs(against, splits, "the model to compare with")
    with _random_states_kept(seed), progress_bar(console) as progress:
        own, other = _copy(model), None if against is None else _copy(against)
        _check_finite(own, splits.train.inputs[:64], "the model")
        if other is not None:
            _check_finite(other, splits.train.inputs[:64], "the model to compare with")
        macs = count_macs(own, splits.train.inputs[:1])
        chosen = {name: part for name, part in parts.items() if name in only or not only}
        task = progress.add_task("", total=sum(part.weight for part in chosen.values()))
        done = 0.0
        sections = []
        for name, part in chosen.items():
            progress.update(task, description=f"{name:14}")
            # each section gets networks that nothing has happened to
            subject = Subject(copy.deepcopy(own), splits, macs, copy.deepcopy(other), seed=seed, words=words)

            def observe(fraction: float, done: float = done, weight: float = part.weight) -> None:
                progress.update(task, completed=done + weight * fraction)

            torch.manual_seed(seed)
            sections.append(_run(name, part, subject, observe))
            done += part.weight
            progress.update(task, completed=done)
    return Findings(
        question=question,
        model=words.get("model", type(model).__name__),
        weights=words.get("weights", ""),
        data=words.get("data", f"{len(splits.train)} training samples"),
        against="" if against is None else words.get("against", type(against).__name__),
        sections=tuple(sections),
    )


def _run(name: str, part: Part, subject: Subject, observe: Observer) -> Section:
    start = time.perf_counter()
    try:
        section = part.make(subject, observe)
    except NotApplicable as reason:
        section = Section(name, _title(name), skipped=f"left out: {reason}")
    except checks.InputError as reason:
        section = Section(name, _title(name), skipped=f"left out for this network: {reason}")
    except Exception as error:
        section = Section(name, _title(name), skipped=f"failed: {type(error).__name__}: {error}", failed=True)
    return dataclasses.replace(section, seconds=time.perf_counter() - start)


def _title(name: str) -> str:
    return name.replace("-", " ").capitalize()


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
            f"the model cannot be copied ({type(error).__name__}: {error}); this works on a copy"
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


__all__ = ["Part", "run_sections"]
