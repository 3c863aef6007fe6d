"""Answer whether properties of a network hold, one after the other, and draw the counterexamples."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import torch
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import MofNCompleteColumn
from rich.table import Table
from torch import Tensor, nn

from netwright import checks
from netwright.bench.pages import picture, styled, write_page
from netwright.bench.progress import progress_bar
from netwright.data.splits import Split, Splits
from netwright.training import predict
from netwright.verify.decide import decide
from netwright.verify.property import Property, robustness
from netwright.verify.verdict import Verdict, VerificationResult

_DRAWN = 12


@dataclass(frozen=True, eq=False)
class Question:
    """A property to decide.

    Attributes:
        name: What the user calls it.
        prop: The property.
        centre: The input around which it lies, if there is one, for the picture.
    """

    name: str
    prop: Property
    centre: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What became of a question.

    Attributes:
        question: The question.
        result: The verdict, with a counterexample if it is *violated*.
        outputs: What the network makes of the counterexample.
    """

    question: Question
    result: VerificationResult
    outputs: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        witness = self.result.witness
        return {
            "property": self.question.name,
            "verdict": str(self.result.verdict),
            "seconds": self.result.seconds,
            "nodes": self.result.nodes,
            "reason": self.result.reason or None,
            "counterexample": None if witness is None else witness.tolist(),
            "outputs": None if self.outputs is None else self.outputs.tolist(),
        }


def around_samples(model: nn.Module, splits: Splits, radius: float, samples: int, seed: int = 0) -> list[Question]:
    """Whether the class stays the same within a radius of samples of the test part that the network gets right.

    The radius is in units of the normalised inputs; inputs stay within the range that they have in the training part.

    Raises:
        InputError: If the data has no classes, the radius is negative, or the network is right on none of the samples.
    """
    checks.at_least("radius", radius, 0)
    checks.at_least("samples", samples, 1)
    if not splits.task.is_classification or not splits.test.inputs.is_floating_point():
        raise checks.InputError(
            "a radius is about the class of inputs that are measurements; give a --property instead"
        )
    right = predict(model, splits.test.inputs).argmax(-1).cpu() == splits.test.targets
    chosen = right.nonzero().flatten()
    if not len(chosen):
        raise checks.InputError("the network gets no sample of the test part right, so there is nothing to verify")
    order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))
    chosen = chosen[order][:samples]
    low, high = _range(splits.train)
    questions = []
    for index in chosen.tolist():
        x, label = splits.test.inputs[index], int(splits.test.targets[index])
        # a sample of the test part may lie a little outside of the range
        lo, hi = torch.minimum(low, x), torch.maximum(high, x)
        prop = robustness(x, label, radius, len(splits.classes), lo=lo, hi=hi)
        questions.append(Question(f"test sample {index}, class {splits.classes[label]}", prop, x))
    return questions


def verify(
    model: nn.Module,
    questions: Sequence[Question],
    input_shape: tuple[int, ...],
    *,
    time_limit: float = 60.0,
    console: Console | None = None,
) -> Iterator[Answer]:
    """Decide questions one by one; the network is left as it is.

    Args:
        model: A feed-forward or convolutional ReLU network.
        questions: What to decide.
        input_shape: Shape of one input.
        time_limit: In seconds, for each question.
        console: Where progress is shown; nowhere if not given.

    Raises:
        InputError: If the network cannot be read, or a property does not fit it.
    """
    checks.positive("time_limit", time_limit)
    with progress_bar(console, MofNCompleteColumn()) as progress:
        task = progress.add_task("", total=len(questions))
        for number, question in enumerate(questions):
            progress.update(task, description=escape(question.name[-40:]))

            def observe(share: float, number: int = number) -> None:
                progress.update(task, completed=number + share)

            result = decide(model, question.prop, input_shape, time_limit=time_limit, observer=observe)
            outputs = None
            if result.witness is not None:
                outputs = predict(model, result.witness.unsqueeze(0))[0]
            progress.update(task, completed=number + 1)
            yield Answer(question, result, outputs)


def table(answers: Iterable[Answer]) -> Table:
    """The answers, for a terminal."""
    colours = {Verdict.HOLDS: "green", Verdict.VIOLATED: "red", Verdict.UNKNOWN: "yellow"}
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("property", overflow="fold")
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("seconds", justify="right")
    shown.add_column("", overflow="fold")
    for answer in answers:
        result = answer.result
        says = result.reason
        if answer.outputs is not None:
            says = f"counterexample of class {int(answer.outputs.argmax())}"
        colour = colours[result.verdict]
        shown.add_row(
            escape(answer.question.name), f"[{colour}]{result.verdict}[/]", f"{result.seconds:.1f}", escape(says)
        )
    return shown


def write_report(answers: Sequence[Answer], path: Path, *, model: str, command: str) -> None:
    """One HTML page: the table, and the first counterexamples drawn beside what they were made of."""
    counts = {verdict: sum(answer.result.verdict is verdict for answer in answers) for verdict in Verdict}
    plots = [picture(plot) for plot in _plots(answers)]
    write_page(path, "verify.html.j2", answers=answers, counts=counts, plots=plots, model=model, command=command)


def _plots(answers: Sequence[Answer]) -> Iterator[go.Figure]:
    for answer in [answer for answer in answers if answer.result.witness is not None][:_DRAWN]:
        witness = answer.result.witness
        assert witness is not None
        panels = {"counterexample": witness}
        if answer.question.centre is not None:
            panels = {"sample": answer.question.centre, **panels, "difference": witness - answer.question.centre}
        drawn = {name: _as_picture(values) for name, values in panels.items()}
        title = answer.question.name
        if all(part is not None for part in drawn.values()):
            yield _side_by_side(title, {name: part for name, part in drawn.items() if part is not None})
        else:
            figure = go.Figure()
            for name, values in panels.items():
                figure.add_bar(y=values.flatten().tolist(), name=name)
            yield styled(figure, title, "input", "value")


def _side_by_side(title: str, drawn: Mapping[str, Tensor]) -> go.Figure:
    figure = go.Figure()
    for number, (name, values) in enumerate(drawn.items(), start=1):
        at = "" if number == 1 else str(number)
        figure.add_heatmap(
            z=values.flip(0).tolist(), xaxis=f"x{at}", yaxis=f"y{at}", showscale=False, name=name, hoverinfo="z",
            colorscale="RdBu" if name == "difference" else "gray", zmid=0 if name == "difference" else None,
        )  # fmt: skip
        width = 1 / len(drawn)
        axis = {
            "domain": [(number - 1) * width, number * width - 0.03],
            "showticklabels": False,
            "showgrid": False,
            "title": name,
        }
        figure.update_layout(
            {f"xaxis{at}": axis, f"yaxis{at}": {"showticklabels": False, "showgrid": False, "scaleanchor": f"x{at}"}}
        )
    styled(figure, title, "", "")
    return figure.update_layout(xaxis_title=next(iter(drawn)), height=260)


def _as_picture(values: Tensor) -> Tensor | None:
    """One channel of a picture: the mean of the channels, or a flat input of square length folded."""
    if values.ndim == 3:
        return values.mean(0)
    side = math.isqrt(values.numel())
    return values.reshape(side, side) if side * side == values.numel() and side > 4 else None


def _range(part: Split) -> tuple[Tensor, Tensor]:
    """Least and largest value of every channel or column of the training part, for each entry of an input."""
    inputs = part.inputs
    others = (0, 2, 3) if inputs.ndim == 4 else (0,)
    low, high = inputs.amin(others, keepdim=True), inputs.amax(others, keepdim=True)
    return low.expand_as(inputs[:1])[0], high.expand_as(inputs[:1])[0]


__all__ = ["Answer", "Question", "around_samples", "table", "verify", "write_report"]
