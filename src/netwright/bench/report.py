"""The report of a comparison: one HTML file that opens offline."""

import html
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from netwright import checks
from netwright.bench.compare import COSTS, Arm, Comparison
from netwright.bench.stats import Difference
from netwright.training import METRICS

# Okabe and Ito's palette, which stays apart for colour-blind readers and on light and dark ground
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F7F7F")
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("netwright.bench"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)


def check_writable(path: Path) -> None:
    """Find out before a long run that its report could not be written.

    Raises:
        InputError: If ``path`` cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        raise checks.InputError(f"cannot write {path}: {error.strerror}; choose another file with --report") from error


def write_report(result: Comparison, path: Path, *, command: str) -> None:
    """Write the report of a comparison.

    Args:
        result: What came out.
        path: The HTML file.
        command: What the user typed, so that it can be typed again.
    """
    finished = [arm for arm in result.arms if arm.metrics]
    colour = {arm.name: _COLOURS[index % len(_COLOURS)] for index, arm in enumerate(result.arms)}
    figures = []
    if finished:
        figures = [_differences(result, finished, colour), _curves(result, finished, colour)]
        figures += [_accuracy_against(result, finished, colour, cost) for cost in ("nonzero", "macs", "latency_1")]
    text = _ENVIRONMENT.get_template("report.html.j2").render(
        result=result,
        finished=finished,
        metrics=list(finished[0].metrics) if finished else [],
        better=METRICS,
        costs=COSTS,
        front=result.pareto() if finished else (),
        sentence=_sentence(result),
        figures=[
            (figure.layout.meta, figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG))
            for figure in figures
        ],
        plotly=get_plotlyjs(),
        command=command,
        made=_made_with(),
    )
    path.write_text(text, encoding="utf-8")


_CONFIG = {"displayModeBar": False, "responsive": True}


def _sentence(result: Comparison) -> str:
    """The outcome in plain words."""
    verdicts: dict[Difference, list[str]] = {kind: [] for kind in Difference}
    for arm in result.arms[1:]:
        if result.metric in arm.versus:
            verdicts[arm.versus[result.metric].verdict].append(arm.name)
    seeds = len(result.seeds)
    if seeds < 2:
        return "One seed was run, so there are no intervals and no verdicts; run at least two, better five."
    said = [
        f"{_enumerate(names)} {'was' if len(names) == 1 else 'were'} {words}"
        for kind, words in (
            (Difference.BETTER, "better than the baseline"),
            (Difference.WORSE, "worse than the baseline"),
            (Difference.NONE_SEEN, "not seen to differ from it"),
        )
        if (names := verdicts[kind])
    ]
    return (
        f"Over {seeds} seeds, in {result.metric} on the test part: {'; '.join(said) or 'there is nothing to compare'}."
    )


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _differences(result: Comparison, arms: Sequence[Arm], colour: dict[str, str]) -> go.Figure:
    figure = go.Figure()
    for arm in reversed(arms[1:] if len(arms) > 1 else arms):
        versus = arm.versus.get(result.metric)
        summary = arm.metrics[result.metric] if versus is None else versus.difference
        name = html.escape(arm.name)
        figure.add_scatter(
            x=summary.values,
            y=[name] * len(summary.values),
            mode="markers",
            marker={"color": colour[arm.name], "opacity": 0.45, "size": 8},
            hovertemplate="%{x:.4g}<extra>one seed</extra>",
        )
        half = None if summary.interval is None else (summary.interval[1] - summary.interval[0]) / 2
        figure.add_scatter(
            x=[summary.mean],
            y=[name],
            mode="markers",
            marker={"color": colour[arm.name], "size": 12, "symbol": "diamond"},
            error_x=None if half is None else {"type": "data", "array": [half], "thickness": 2},
            hovertemplate="mean %{x:.4g}<extra>95 % interval</extra>",
        )
    figure.add_vline(x=0, line_dash="dot", line_color="#888888")
    better = METRICS[result.metric]
    return (
        _styled(figure, f"Difference to the baseline in {result.metric} ({better} is better)", "difference", "")
        .update_layout(showlegend=False, height=110 + 60 * len(arms))
        .update_yaxes(automargin=True)
    )


def _curves(result: Comparison, arms: Sequence[Arm], colour: dict[str, str]) -> go.Figure:
    metric = f"val_{result.metric}".replace("noisy_", "")
    figure = go.Figure()
    for arm in arms:
        curves = list(arm.curves.values())
        length = min(map(len, curves))
        if length == 0 or metric not in curves[0][0]:
            continue
        epochs = [record["epoch"] for record in curves[0][:length]]
        means = [fmean(curve[index][metric] for curve in curves) for index in range(length)]
        figure.add_scatter(
            x=epochs,
            y=means,
            name=html.escape(arm.name),
            mode="lines+markers" if length < 30 else "lines",
            line={"color": colour[arm.name]},
            hovertemplate="epoch %{x:.3g}: %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    return _styled(figure, f"Learning curves: {metric[4:]} on the validation part, mean of seeds", "epoch", metric[4:])


def _accuracy_against(result: Comparison, arms: Sequence[Arm], colour: dict[str, str], cost: str) -> go.Figure:
    figure = go.Figure()
    front = result.pareto(cost)
    line = sorted((arm.costs[cost], arm.metrics[result.metric].mean) for arm in arms if arm.name in front)
    figure.add_scatter(
        x=[x for x, _ in line],
        y=[y for _, y in line],
        mode="lines",
        line={"color": "#888888", "dash": "dot"},
        name="Pareto front",
        hoverinfo="skip",
    )
    for arm in arms:
        summary = arm.metrics[result.metric]
        half = None if summary.interval is None else (summary.interval[1] - summary.interval[0]) / 2
        figure.add_scatter(
            x=[arm.costs[cost]],
            y=[summary.mean],
            error_y=None if half is None else {"type": "data", "array": [half], "thickness": 1.5},
            mode="markers",
            name=html.escape(arm.name),
            marker={"color": colour[arm.name], "size": 12, "symbol": "diamond" if arm.name in front else "circle"},
            hovertemplate="%{x:.4s}, %{y:.4g}<extra>%{fullData.name}</extra>",
        )
    return _styled(figure, f"{result.metric} against {COSTS[cost]}", COSTS[cost], result.metric)


def _styled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    # the page's own colours come through; its script sets those of text and grid for light and dark
    return figure.update_layout(
        meta=title,
        font_family="system-ui, sans-serif",
        xaxis_title=x,
        yaxis_title=y,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 15, "t": 15, "b": 50},
        legend={"orientation": "h", "y": -0.25},
        autosize=True,
        height=430,
        hoverlabel={"namelength": -1},
    )


def _made_with() -> dict[str, str]:
    packages = ("netwright", "torch", "lightning-fabric", "numpy", "scipy", "scikit-learn")
    made: dict[str, Any] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }
    return made


__all__ = ["check_writable", "write_report"]
