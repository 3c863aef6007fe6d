"""Pictures of a report that look below the average: classes and slices, and how sure a network is."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from netwright.bench.compare import BASELINE, Arm, Comparison
from netwright.bench.pages import styled
from netwright.training import METRICS

MOST_GROUPS = 40
_COLUMNS = 3


def differences_by_group(result: Comparison, arms: Sequence[Arm], colour: Mapping[str, str]) -> go.Figure:
    """Difference to the baseline in every class and slice, with its interval; the largest ones if there are many."""
    metric = result.group_metric
    found = {
        arm.name: {group.name: group.versus[metric] for group in arm.groups if metric in group.versus} for arm in arms
    }
    names = list(dict.fromkeys(name for by_group in found.values() for name in by_group))

    def size(name: str) -> float:
        return max(abs(by_group[name].difference.mean) for by_group in found.values() if name in by_group)

    shown = set(sorted(names, key=size, reverse=True)[:MOST_GROUPS])
    place = {name: index for index, name in enumerate(name for name in names if name in shown)}
    figure = go.Figure()
    tried = [arm for arm in arms if found[arm.name]]
    for index, arm in enumerate(tried):
        chosen = {name: versus for name, versus in found[arm.name].items() if name in place}
        intervals = [versus.difference.interval for versus in chosen.values()]
        shift = 0.6 * ((index + 0.5) / len(tried) - 0.5)
        figure.add_scatter(
            x=[versus.difference.mean for versus in chosen.values()],
            y=[place[name] + shift for name in chosen],
            error_x={"type": "data", "array": [(i[1] - i[0]) / 2 if i else 0.0 for i in intervals], "thickness": 1.5},
            customdata=[html.escape(name) for name in chosen],
            mode="markers",
            name=html.escape(arm.name),
            marker={"color": colour[arm.name], "size": 9},
            hovertemplate="%{customdata}: %{x:.4g}<extra>%{fullData.name}</extra>",
        )
    figure.add_vline(x=0, line_dash="dot", line_color="#888888")
    more = f", the {MOST_GROUPS} largest" if len(names) > MOST_GROUPS else ""
    title = f"Difference to the baseline in {metric} by class and slice ({METRICS[metric]} is better){more}"
    return (
        styled(figure, title, "difference", "")
        .update_layout(height=160 + (18 + 8 * len(tried)) * len(place))
        .update_yaxes(
            automargin=True,
            tickvals=list(place.values()),
            ticktext=[html.escape(name if len(name) <= 40 else f"{name[:39]}…") for name in place],
            range=[len(place) - 0.4, -0.6],
        )
    )


def reliability_diagrams(arms: Sequence[Arm], colour: Mapping[str, str]) -> go.Figure:
    """Accuracy against confidence, an arm beside the other, all seeds together; the baseline is in each as a line."""
    columns = min(_COLUMNS, len(arms))
    rows = -(-len(arms) // columns)
    titles = [html.escape(arm.name if len(arm.name) <= 40 else f"{arm.name[:39]}…") for arm in arms]
    figure = make_subplots(
        rows, columns, subplot_titles=titles, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03
    )
    baseline = next((arm for arm in arms if arm.name == BASELINE), None)
    for index, arm in enumerate(arms):
        at = {"row": index // columns + 1, "col": index % columns + 1}
        figure.add_scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": "#888888", "dash": "dot"}, hoverinfo="skip", **at
        )
        if baseline is not None and arm is not baseline:
            x, y, _ = _points(baseline)
            figure.add_scatter(x=x, y=y, mode="lines", line={"color": "#888888", "width": 1}, hoverinfo="skip", **at)
        x, y, counts = _points(arm)
        figure.add_scatter(
            x=x,
            y=y,
            customdata=counts,
            mode="lines+markers",
            line={"color": colour[arm.name]},
            marker={"size": [4 + 14 * (count / sum(counts)) ** 0.5 for count in counts]},
            hovertemplate="confidence %{x:.2f}, right %{y:.2f}, %{customdata:.0f} samples<extra></extra>",
            **at,
        )
    return (
        styled(figure, "Calibration: how often each network is right where it is how sure", "", "")
        .update_layout(showlegend=False, height=120 + 260 * rows, margin={"t": 40})
        .update_xaxes(range=[0, 1.02], title_text="confidence", row=rows)
        .update_yaxes(range=[0, 1.02], title_text="accuracy", col=1)
    )


def _points(arm: Arm) -> tuple[list[float], list[float], list[float]]:
    """Mean confidence, accuracy and number of samples of every bin that has samples."""
    bins = zip(arm.reliability["count"], arm.reliability["confidence"], arm.reliability["right"], strict=True)
    full = [(confidence / count, right / count, count) for count, confidence, right in bins if count]
    return [x for x, _, _ in full], [y for _, y, _ in full], [count for _, _, count in full]


__all__ = ["MOST_GROUPS", "differences_by_group", "reliability_diagrams"]
