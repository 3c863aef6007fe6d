"""The report of a comparison: one HTML file that opens offline."""

import html
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import plotly.graph_objects as go

from netwright.bench.compare import COSTS, Arm, Comparison
from netwright.bench.groups import largest_loss, worst
from netwright.bench.pages import COLOURS, picture, styled, write_page
from netwright.bench.report_groups import differences_by_group, reliability_diagrams
from netwright.bench.stats import Difference
from netwright.training import METRICS


def write_report(result: Comparison, path: Path, *, command: str) -> None:
    """Write the report of a comparison.

    Args:
        result: What came out.
        path: The HTML file.
        command: What the user typed, so that it can be typed again.
    """
    finished = [arm for arm in result.arms if arm.metrics]
    colour = {arm.name: COLOURS[index % len(COLOURS)] for index, arm in enumerate(result.arms)}
    figures = []
    if finished:
        figures = [_differences(result, finished, colour), _curves(result, finished, colour)]
        figures += [_accuracy_against(result, finished, colour, cost) for cost in ("nonzero", "macs", "latency_1")]
    grouped = [arm for arm in finished if arm.groups]
    compared = any(group.versus for arm in grouped for group in arm.groups)
    group_figures = [differences_by_group(result, grouped, colour)] if compared else []
    groups = {arm.name: {(group.by, group.value): group for group in arm.groups} for arm in grouped}
    sure = [arm for arm in finished if arm.reliability]
    calibration = picture(reliability_diagrams(sure, colour)) if sure else None
    write_page(
        path,
        "report.html.j2",
        result=result,
        finished=finished,
        metrics=list(finished[0].metrics) if finished else [],
        better=METRICS,
        costs=COSTS,
        front=result.pareto() if finished else (),
        sentence=_sentence(result),
        figures=[picture(figure) for figure in figures],
        grouped=grouped,
        group_figures=[picture(figure) for figure in group_figures],
        groups=groups,
        every_group={key: group for found in groups.values() for key, group in found.items()},
        divisions=list(dict.fromkeys(group.by for arm in grouped for group in arm.groups)),
        worst={arm.name: {group.by: group for group in worst(arm.groups, result.group_metric)} for arm in grouped},
        loss={arm.name: largest_loss(arm.groups, result.group_metric) for arm in grouped},
        calibration=calibration,
        command=command,
    )


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
    hidden = [
        f" {arm.name} loses in {_enumerate([group.name for group in lost[:5]])}"
        f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}, although not on average."
        for arm in result.arms[1:]
        if (lost := result.hidden_losses(arm))
    ]
    over = f"Over up to {seeds}" if result.looks else f"Over {seeds}"
    outcome = "; ".join(said) or "there is nothing to compare"
    return f"{over} seeds, in {result.metric} on the test part: {outcome}.{''.join(hidden)}"


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
        styled(figure, f"Difference to the baseline in {result.metric} ({better} is better)", "difference", "")
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
    return styled(figure, f"Learning curves: {metric[4:]} on the validation part, mean of seeds", "epoch", metric[4:])


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
    return styled(figure, f"{result.metric} against {COSTS[cost]}", COSTS[cost], result.metric)


__all__ = ["write_report"]
