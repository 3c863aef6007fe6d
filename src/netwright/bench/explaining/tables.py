"""Which features a classifier of tables looks at, and the rules that say what it answers."""

import html
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from netwright import checks
from netwright.bench.findings import Cell, Finding, Findings, Listing, Section, rows
from netwright.bench.pages import COLOURS, styled
from netwright.data.splits import Splits, Task
from netwright.explain.black_box import BlackBox
from netwright.explain.blackbox_surrogate import Counterfactual, SurrogateExplainer
from netwright.explain.decision_rules import Condition
from netwright.explain.remote import Command, Endpoint

_SHOWN_FEATURES = 20
_SHOWN_RULES = 20

Remote = Command | Endpoint


@dataclass(frozen=True)
class Column:
    """A column as it stands in the user's file.

    Attributes:
        name: Its name.
        places: Which features of the network it became.
        levels: For categories, what each of these features stands for.
    """

    name: str
    places: tuple[int, ...]
    levels: tuple[str, ...] = ()


def table_columns(splits: Splits) -> tuple[Column, ...]:
    """The columns of the user's table, in which categories are one column each again."""
    if splits.task not in (Task.TABULAR_CLASSIFICATION, Task.TABULAR_REGRESSION) or len(splits.input_shape) != 1:
        checks.fail("rules need a table", f"{splits.task} with inputs of shape {splits.input_shape}")
    names = splits.columns or tuple(f"x{index}" for index in range(splits.input_shape[0]))
    category_of = {places[0]: (name, places) for name, places in splits.categories.items()}
    within = {place for places in splits.categories.values() for place in places}
    columns = []
    for place, feature in enumerate(names):
        if place in category_of:
            name, places = category_of[place]
            columns.append(Column(name, places, tuple(names[p].removeprefix(f"{name}=") for p in places)))
        elif place not in within:
            columns.append(Column(feature, (place,)))
    return tuple(columns)


def explain_table(
    source: nn.Module | Remote,
    splits: Splits,
    *,
    top_k: int | None = None,
    samples: int = 5,
    max_rows: int = 20_000,
    seed: int = 0,
    console: Console | None = None,
    words: Mapping[str, str] | None = None,
) -> Findings:
    """Which features a classifier looks at, rules that say what it answers, and reasons for single answers.

    It is asked about the samples of the validation and test part, on which it was not trained, and about variations of
    them.

    Args:
        source: A network for ``splits``, or a classifier that is asked from outside.
        splits: A table with classes.
        top_k: How many features the rules may use; the fewest that do not lose more than a hundredth if not given.
        samples: For how many samples the answer is explained.
        max_rows: Most rows that the classifier may be asked.
        seed: Decides every draw.
        console: Where progress is shown; nowhere if not given.
        words: How the user named ``model``, ``weights`` and ``data``.

    Raises:
        InputError: If the data are no table with classes, or the classifier cannot be asked.
    """
    columns = table_columns(splits)
    if not splits.task.is_classification:
        raise checks.InputError("explain reads answers that are classes; this data is for regression")
    checks.at_least("number of samples", samples, 0)
    words = words or {}
    inputs = torch.cat([splits.test.inputs, splits.val.inputs])
    truths = torch.cat([splits.test.targets, splits.val.targets])
    start = time.perf_counter()
    with Progress(console=console, disable=console is None, transient=True) as progress:
        task = progress.add_task("rows asked", total=None)
        box = BlackBox(
            source if isinstance(source, nn.Module) else _asking(source, splits, columns, progress, task),
            max_rows=max_rows,
            batch_rows=1000 if isinstance(source, Endpoint) else 8192,
        )
        explainer = SurrogateExplainer(
            box, top_k=top_k, feature_names=[_feature(splits, i) for i in range(inputs.shape[1])],
            class_names=splits.classes, seed=seed,
        ).fit(inputs, truths)  # fmt: skip
        reasons = _reasons(explainer, splits, columns, samples)
    sections = [
        _features(explainer, splits, time.perf_counter() - start),
        _rules(explainer, splits, columns),
        Section("samples", "Single answers", listings=(reasons,)),
    ]
    if not isinstance(source, nn.Module):
        sections.append(_sent(source, columns, inputs))
    model = words.get("model", type(source).__name__)
    return Findings(
        f"Why does {model} answer as it does?", model, words.get("weights", ""), words.get("data", splits.name), "",
        tuple(sections),
    )  # fmt: skip


def user_rows(inputs: NDArray[Any], splits: Splits, columns: Sequence[Column]) -> list[list[float | str]]:
    """Normalised rows in the units and columns of the user's table; of a category the level with the largest entry."""
    own = splits.in_user_units(torch.from_numpy(inputs)).numpy()
    found: list[list[float | str]] = [[] for _ in own]
    for column in columns:
        values = own[:, column.places]
        if column.levels:
            for row, level in zip(found, values.argmax(1), strict=True):
                row.append(column.levels[level])
        else:
            middle = 0.0 if splits.mean is None else float(splits.mean[column.places[0]])
            for row, value in zip(found, values[:, 0].tolist(), strict=True):
                row.append(_without_rounding(value, middle))
    return found


def _without_rounding(value: float, mean: float) -> float:
    """A value with the digits that are left of it after it was normalised in float32: 37, not 36.999998."""
    error = 2 * float(np.finfo(np.float32).eps) * max(abs(value), abs(mean))
    return value if error == 0 else round(value, math.floor(-math.log10(error)))


def _asking(
    source: Remote, splits: Splits, columns: Sequence[Column], progress: Progress, task: Any
) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    def ask(inputs: NDArray[Any]) -> NDArray[np.float64]:
        answers = source(user_rows(inputs, splits, columns))
        progress.update(task, advance=len(inputs))
        return answers

    return ask


def _features(explainer: SurrogateExplainer, splits: Splits, seconds: float) -> Section:
    fidelity = explainer.fidelity()
    k, number = len(explainer.top_features_), len(explainer.importances_)
    commonest = explainer.answers_.bincount().max().item() / len(explainer.answers_)
    findings = (
        Finding(
            "features that the rules use", k,
            f"A tree needs {k} of {number} features to answer as the classifier does",
            "many tables have a few features that decide most answers",
            "look at these first; the others change few answers",
            idea="blackbox-surrogate",
        ),
        Finding(
            "agreement of the rules", fidelity.agreement,
            f"On {fidelity.samples} samples that the tree did not see it answers as the classifier does for "
            f"{fidelity.agreement:.1%}",
            f"always naming the commonest answer would agree for {commonest:.1%}",
            "believe the rules as far as this goes beyond that",
            unit="%", idea="blackbox-surrogate",
        ),
    )  # fmt: skip
    probes = list(explainer.probe_scores_)
    order = explainer.importances_.argsort(descending=True, stable=True)[:_SHOWN_FEATURES].tolist()
    table = [
        (
            place + 1,
            _feature(splits, feature),
            float(explainer.importances_[feature]),
            *(_score(float(explainer.probe_scores_[probe][feature])) for probe in probes),
        )
        for place, feature in enumerate(order)
    ]
    listing = Listing("Features", ("rank", "feature", "importance (mean rank)", *probes), rows(table))
    return Section(
        "features", "What it looks at", findings, (listing,), (_bars(explainer, splits, order), _curve(explainer)),
        seconds=seconds,
    )  # fmt: skip


def _score(value: float) -> Cell:
    return "not probed" if math.isnan(value) else value


def _bars(explainer: SurrogateExplainer, splits: Splits, order: Sequence[int]) -> go.Figure:
    figure = go.Figure()
    names = [html.escape(_feature(splits, feature)) for feature in order]
    figure.add_bar(
        x=[float(explainer.importances_[feature]) for feature in order], y=names, orientation="h",
        marker_color=COLOURS[0],
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True)
    return styled(figure, "The features it looks at most", "importance: mean rank, 1 is first in all probes", "")


def _curve(explainer: SurrogateExplainer) -> go.Figure:
    curve = explainer.fidelity_curve()
    figure = go.Figure()
    figure.add_scatter(x=list(curve), y=list(curve.values()), mode="lines+markers", line={"color": COLOURS[0]})
    return styled(figure, "How many features the rules need", "features", "agreement, by cross-validation")


def _rules(explainer: SurrogateExplainer, splits: Splits, columns: Sequence[Column]) -> Section:
    found = explainer.rules()
    table = [
        (
            rule.name or f"class {rule.label}",
            " and ".join(_words(condition, splits, columns) for condition in rule.conditions) or "always",
            f"{rule.support:.1%}",
            f"{rule.confidence:.1%}",
        )
        for rule in found[:_SHOWN_RULES]
    ]
    more = f" (the {_SHOWN_RULES} of {len(found)} that cover most)" if len(found) > _SHOWN_RULES else ""
    headings = ("it answers", "if", "share of the samples", "answered so there")
    return Section("rules", "What it answers", listings=(Listing(f"Rules{more}", headings, rows(table)),))


def _reasons(explainer: SurrogateExplainer, splits: Splits, columns: Sequence[Column], samples: int) -> Listing:
    order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(explainer.seed))[:samples]
    return Listing(
        "Why, and what would change the answer",
        ("test sample", "true", "answered", "because", "the rules agree", "adds most", "answered else after"),
        rows(_reason(explainer, splits, columns, int(index)) for index in order),
    )


def _reason(explainer: SurrogateExplainer, splits: Splits, columns: Sequence[Column], index: int) -> Iterator[Cell]:
    sample = splits.test.inputs[index]
    found = explainer.explain(sample)
    most = found.contributions.abs().argsort(descending=True)[:3].tolist()
    yield index
    yield splits.classes[int(splits.test.targets[index])]
    yield f"{splits.classes[found.label]} ({found.probabilities[found.label]:.0%})"
    yield " and ".join(_words(condition, splits, columns) for condition in _joined(found.path)) or "always"
    yield "yes" if found.agrees else "no"
    yield ", ".join(f"{_feature(splits, f)} {found.contributions[f]:+.2f}" for f in most if found.contributions[f])
    others = found.probabilities.clone()
    others[found.label] = -1
    yield _changes(explainer.counterfactual(sample, int(others.argmax())), splits, columns)


def _changes(found: Counterfactual | None, splits: Splits, columns: Sequence[Column]) -> str:
    if found is None:
        return "nothing within 3 changes"
    parts = []
    for change in found.changes:
        column = _column(columns, change.feature)
        if column.levels:
            level = column.levels[column.places.index(change.feature)]
            parts.append(f"{column.name} {'becomes' if change.after > change.before else 'is no longer'} {level}")
        else:
            before, after = (_own(splits, change.feature, value) for value in (change.before, change.after))
            parts.append(f"{column.name}: {_figure(before)} → {_figure(after)}")
    sure = "" if found.confirmed else " (not confirmed: it stays as it is)"
    return f"{splits.classes[found.target]} after {', '.join(parts)}{sure}"


def _sent(source: Remote, columns: Sequence[Column], inputs: Tensor) -> Section:
    sent = source.sent
    unseen = torch.zeros(len(inputs), dtype=torch.bool)
    for column in columns:
        if column.levels:  # a level that the training part has not is 0 everywhere
            unseen |= (inputs[:, list(column.places)] == 0).all(1)
    table = (
        ("to", sent.to),
        ("requests", sent.requests),
        ("of these repeated after a failure", sent.repeated),
        ("rows", sent.rows),
        ("bytes", sent.bytes),
        ("columns", ", ".join(column.name for column in columns)),
        ("samples sent with another category, as theirs is not in the training part", int(unseen.sum())),
        ("seconds", round(sent.seconds, 2)),
    )
    return Section("sent", "What was sent", listings=(Listing("", ("what", ""), rows(table)),))


def _joined(path: Sequence[Condition]) -> Iterator[Condition]:
    """One condition for each feature of a path, in which a feature may be asked for several times."""
    by_feature: dict[int, list[Condition]] = {}
    for condition in path:
        by_feature.setdefault(condition.feature, []).append(condition)
    for feature, met in by_feature.items():
        yield Condition(feature, max(c.low for c in met), min(c.high for c in met), met[0].name)


def _words(condition: Condition, splits: Splits, columns: Sequence[Column]) -> str:
    """A condition of a rule in the user's units."""
    column = _column(columns, condition.feature)
    if column.levels:
        level = column.levels[column.places.index(condition.feature)]
        return f"{column.name} is {level}" if condition.low > -np.inf else f"{column.name} is not {level}"
    low, high = (_own(splits, condition.feature, value) for value in (condition.low, condition.high))
    if math.isinf(high):
        return f"{column.name} > {_figure(low)}"
    return (
        f"{_figure(low)} < {column.name} ≤ {_figure(high)}"
        if math.isfinite(low)
        else f"{column.name} ≤ {_figure(high)}"
    )


def _figure(value: float) -> str:
    """Four digits, but whole numbers up to a million as people write them."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.4g}"


def _own(splits: Splits, feature: int, value: float) -> float:
    """A normalised value in the user's units."""
    if splits.mean is None or splits.std is None:
        return value
    return value * float(splits.std[feature] or 1.0) + float(splits.mean[feature])


def _column(columns: Sequence[Column], feature: int) -> Column:
    return next(column for column in columns if feature in column.places)


def _feature(splits: Splits, feature: int) -> str:
    return splits.columns[feature] if splits.columns else f"x{feature}"


__all__ = ["Column", "explain_table", "table_columns", "user_rows"]
