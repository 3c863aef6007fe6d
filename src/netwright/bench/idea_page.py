"""The page of one idea: what it says, a picture of it at work, and the evidence with its curves."""

import html
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import plotly.graph_objects as go

from netwright.bench.catalogue import Entry, usage_example
from netwright.bench.pages import COLOURS, picture, styled, write_page
from netwright.claims import SCALES, Claim, import_claim


def write_idea_page(entry: Entry, path: Path, *, command: str) -> None:
    """Write the page of an idea; its picture is drawn anew, which may take half a minute.

    Args:
        entry: The idea.
        path: The HTML file.
        command: What the user typed.
    """
    claim = entry.claim
    module, _, name = claim.parts[0].rpartition(".")
    example = usage_example(claim.parts[0])
    scales = [scale for scale in reversed(SCALES) if scale in entry.evidence]
    curves = [picture(figure) for figure in _curves(entry.evidence[scales[0]])] if scales else []
    write_page(
        path,
        "idea.html.j2",
        entry=entry,
        claim=claim,
        example=f">>> from netwright.{module} import {name}\n{example}" if example else "",
        drawn=_drawn(claim),
        curves=curves,
        scales=scales,
        command=command,
    )


def _drawn(claim: Claim) -> tuple[str, str] | None:
    """The picture that the claim's ``draw()`` makes, if it has one."""
    draw = getattr(import_claim(claim.slug), "draw", None)
    if draw is None:
        return None
    figure: go.Figure = draw()
    title = figure.layout.title.text or claim.title
    x, y = (axis.title.text for axis in (figure.layout.xaxis, figure.layout.yaxis))
    height = figure.layout.height or 520
    styled(figure.update_layout(title=None), title, x, y)
    # panels have their titles above them, and a legend is as far below in a tall picture as in a low one
    top = 40 if figure.layout.annotations else 15
    return picture(figure.update_layout(height=height, margin_t=top, legend_y=-90 / height))


def _curves(found: Mapping[str, Any]) -> Iterator[go.Figure]:
    """One figure for each quantity that was measured along something; lines are means over seeds."""
    values: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in found["measurements"]:
        if "at" in row:
            values[row["metric"]][row["arm"]][row["at"]].append(row["value"])
    for metric, arms in values.items():
        figure = go.Figure()
        for number, (arm, points) in enumerate(arms.items()):
            places = sorted(points)
            figure.add_scatter(
                x=places,
                y=[fmean(points[place]) for place in places],
                name=html.escape(arm),
                mode="lines+markers" if len(places) < 30 else "lines",
                line={"color": COLOURS[number % len(COLOURS)]},
                hovertemplate="%{x:.4g}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
        places = sorted({place for points in arms.values() for place in points})
        if places[0] > 0 and places[-1] / places[0] >= 30:
            figure.update_xaxes(type="log")
        yield styled(figure, metric, "", metric)


__all__ = ["write_idea_page"]
