"""What all reports share: one HTML file that opens offline, in light and dark, with pictures that fit both."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from netwright import checks

# Okabe and Ito's palette, which stays apart for colour-blind readers and on light and dark ground
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C00", "#7F7F7F")
_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("netwright.bench"), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
_CONFIG = {"displayModeBar": False, "responsive": True}


def check_writable(path: Path, option: str = "--report") -> None:
    """Find out before a long run that its report could not be written.

    Raises:
        InputError: If ``path`` cannot be written; it names the ``option`` that says where.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        raise checks.InputError(f"cannot write {path}: {error.strerror}; choose another file with {option}") from error


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fill a template of this package, which extends ``page.html.j2``, and write it."""
    text = _ENVIRONMENT.get_template(template).render(plotly=get_plotlyjs(), made=made_with(), **values)
    path.write_text(text, encoding="utf-8")


def picture(figure: go.Figure) -> tuple[str, str]:
    """Title and HTML of a figure."""
    return figure.layout.meta, figure.to_html(full_html=False, include_plotlyjs=False, config=_CONFIG)


def styled(figure: go.Figure, title: str, x: str, y: str) -> go.Figure:
    """Give a figure its title, axes and the colours of the page."""
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


def made_with() -> Mapping[str, str]:
    """When, with which versions and on what a page was made."""
    packages = ("netwright", "torch", "lightning-fabric", "numpy", "scipy", "scikit-learn")
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "Python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


__all__ = ["COLOURS", "check_writable", "made_with", "picture", "styled", "write_page"]
