"""A picture of an explanation by prototypical parts: this part of the picture looks like that part of another one."""

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from netwright import checks
from netwright.explain._part_explanations import Explanation, Part

_COLOURS = {"trivial": "#1b7f3b", "support": "#c2410c"}
_OTHER = "#1d4ed8"


def explanation_figure(
    explanation: Explanation, classes: Sequence[str] = (), *, parts: int = 5, title: str | None = None
) -> go.Figure:
    """Draw the parts that speak most for the class, one a column: the picture above, the source of the prototype below.

    Boxes go around the twentieth of each picture that is most similar to the prototype; a dotted one shows the place of
    the patch itself. Over each column stands what the prototype adds to the logit.

    Args:
        explanation: What ``explain`` of a network of :mod:`netwright.explain.protopnet` gave.
        classes: The names of the classes; their numbers if not given.
        parts: How many columns, at most.
        title: Instead of one that names the class and its logit.

    Raises:
        InputError: If ``parts`` is less than 1.

    Example:
        >>> import torch
        >>> from netwright.explain.protopnet import ProtoPNet
        >>> model = ProtoPNet(torch.nn.Conv2d(3, 16, 3), num_classes=2, per_class=2, dim=8)
        >>> figure = explanation_figure(model.explain(torch.rand(1, 3, 12, 12)), ("cat", "dog"))
        >>> figure.data[0].type, figure.data[1].text
        ('image', ('no push yet',))
    """
    checks.at_least("parts", parts, 1)
    shown = [part for part in explanation.parts[:parts] if part.contribution > 0] or explanation.parts[:1]
    figure = make_subplots(
        rows=2,
        cols=len(shown),
        row_titles=["this", "looks like that"],
        column_titles=[_heading(part, classes) for part in shown],
        horizontal_spacing=0.02,
        vertical_spacing=0.06,
    )
    for column, part in enumerate(shown, start=1):
        colour = _COLOURS.get(part.head, _OTHER)
        _draw(figure, 1, column, explanation.picture, part.region, part.box, colour)
        if part.source_picture is not None and part.source_region is not None and part.source_box is not None:
            _draw(figure, 2, column, part.source_picture, part.source_region, part.source_box, colour)
        else:
            what = "no push yet" if part.source is None else f"picture {part.source} was not kept"
            figure.add_scatter(
                x=[0.5], y=[0.5], mode="text", text=[what], hoverinfo="skip", showlegend=False, row=2, col=column
            )
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, constrain="domain")
    for number in range(1, 2 * len(shown) + 1):
        figure.update_layout({f"yaxis{number}": {"scaleanchor": f"x{number}"}})
    rest = explanation.rest + sum(part.contribution for part in explanation.parts[len(shown) :])
    figure.update_layout(
        title=title
        or f"{_name(explanation.label, classes)}: logit {explanation.logit:.2f}, {rest:+.2f} of it by other prototypes",
        height=520,
        showlegend=False,
    )
    return figure


def _heading(part: Part, classes: Sequence[str]) -> str:
    return (
        f"<b>{part.contribution:+.2f}</b> = {part.activation:.2f} × {part.weight:.2f}<br>"
        f"{part.head}, {_name(part.label, classes)}"
    )


def _name(label: int, classes: Sequence[str]) -> str:
    return html.escape(classes[label]) if label < len(classes) else f"class {label}"


def _draw(
    figure: go.Figure,
    row: int,
    column: int,
    picture: Tensor,
    region: tuple[int, ...],
    box: tuple[int, ...],
    colour: str,
) -> None:
    """A picture with two boxes; pixels have whole numbers in their middle."""
    figure.add_trace(go.Image(z=_colours(picture), hoverinfo="skip"), row=row, col=column)
    for (left, top, right, bottom), line in (
        (region, {"color": colour, "width": 3}),
        (box, {"color": colour, "width": 2, "dash": "dot"}),
    ):
        figure.add_shape(
            type="rect",
            x0=left - 0.5,
            y0=top - 0.5,
            x1=right - 0.5,
            y1=bottom - 0.5,
            line=line,
            row=row,
            col=column,
        )


def _colours(picture: Tensor) -> np.ndarray:
    """Red, green and blue from 0 to 255; a picture with another number of channels than 3 becomes grey."""
    values = picture.detach().double().cpu()
    values = values if len(values) == 3 else values.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp(min=1e-12)
    return (255 * scaled).round().permute(1, 2, 0).numpy().astype(np.uint8)


__all__ = ["explanation_figure"]
