"""What was found about a network: figures with their reading, tables and pictures, section by section."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import plotly.graph_objects as go
import torch
from rich import box
from rich.markup import escape
from rich.table import Table
from torch import nn

from netwright import checks
from netwright.data.splits import Split, Splits

# called with the fraction of a section that is done
Observer = Callable[[float], None]
Cell = str | int | float

_PROSE = 40  # letters


class NotApplicable(Exception):
    """A section that has nothing to say about this network or data; the message says why."""


@dataclass(frozen=True)
class Finding:
    """One figure and how to read it.

    Attributes:
        name: What was measured.
        value: The figure.
        means: What it says, in plain words.
        usual: What it is in most networks.
        advice: What to do about it.
        unit: ``"%"`` for fractions, else what stands behind the number.
        idea: Slug of the paper that it comes from, if there is one.
    """

    name: str
    value: float
    means: str
    usual: str
    advice: str
    unit: str = ""
    idea: str = ""

    @property
    def text(self) -> str:
        """The figure as people read it."""
        if self.unit == "%":
            return f"{self.value:.1%}"
        return f"{number(self.value)} {self.unit}".rstrip()

    @property
    def reading(self) -> str:
        """The one sentence that goes with the figure."""
        return f"{self.means}; {self.usual}; {self.advice}."


@dataclass(frozen=True)
class Listing:
    """A table."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def is_prose(self) -> bool:
        """Whether there are sentences in it, which must be broken into lines."""
        return any(isinstance(cell, str) and len(cell) > _PROSE for row in self.rows for cell in row)

    def table(self) -> Table:
        """It, for a terminal."""
        table = Table(title=escape(self.title), box=box.SIMPLE_HEAD, title_justify="left")
        for heading in self.headings:
            table.add_column(escape(heading), overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(number(cell)) for cell in row))
        return table


@dataclass(frozen=True)
class Photograph:
    """A picture made of pixels.

    Attributes:
        caption: What it shows.
        png: The file.
    """

    caption: str
    png: bytes

    @property
    def address(self) -> str:
        """The picture itself as a ``data:`` address, so that a page needs no other file."""
        return f"data:image/png;base64,{b64encode(self.png).decode()}"


@dataclass(frozen=True)
class Section:
    """What one section of the report holds.

    Attributes:
        name: What ``--only`` calls it.
        title: Its heading.
        findings: Figures.
        listings: Tables.
        plots: Diagrams.
        photographs: Pictures made of pixels.
        skipped: Why there is nothing of this, if so.
        failed: Whether that is an error.
        seconds: How long it took.
    """

    name: str
    title: str
    findings: tuple[Finding, ...] = ()
    listings: tuple[Listing, ...] = ()
    plots: tuple[go.Figure, ...] = ()
    photographs: tuple[Photograph, ...] = ()
    skipped: str = ""
    failed: bool = False
    seconds: float = 0.0

    def __getitem__(self, name: str) -> float:
        """The value of the finding of this name."""
        values = {finding.name: finding.value for finding in self.findings}
        checks.known(f"finding of section {self.name!r}", name, values)
        return values[name]


@dataclass(frozen=True)
class Findings:
    """What was found about a network; ``found["collapse"]["NC1, training part"]`` is one figure.

    Attributes:
        question: What was asked.
        model: What was looked at, in the user's words.
        weights: The file of its weights, or an empty string.
        data: On which data.
        against: What it was compared with, or an empty string.
        sections: What was found.
    """

    question: str
    model: str
    weights: str
    data: str
    against: str
    sections: tuple[Section, ...]

    def __getitem__(self, name: str) -> Section:
        sections = {section.name: section for section in self.sections}
        checks.known("section", name, sections)
        return sections[name]

    @property
    def failed(self) -> bool:
        """Whether a section ended with an error."""
        return any(section.failed for section in self.sections)

    def to_json(self) -> dict[str, Any]:
        """All but the pictures as JSON values."""
        return {
            "model": self.model,
            "weights": self.weights or None,
            "data": self.data,
            "against": self.against or None,
            "sections": {
                section.name: {
                    "findings": {
                        finding.name: {
                            "value": finding.value,
                            "unit": finding.unit,
                            "reading": finding.reading,
                            "idea": finding.idea or None,
                        }
                        for finding in section.findings
                    },
                    "tables": [
                        {"title": table.title, "headings": list(table.headings), "rows": [list(r) for r in table.rows]}
                        for table in section.listings
                    ],
                    "skipped": section.skipped or None,
                    "failed": section.failed,
                    "seconds": section.seconds,
                }
                for section in self.sections
            },
        }

    def table(self) -> Table:
        """The figures, for a terminal."""
        table = Table(title=escape(f"{self.model} on {self.data}"), box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("", no_wrap=True)
        table.add_column("figure", overflow="fold")
        table.add_column("", justify="right", no_wrap=True)
        for section in self.sections:
            if section.skipped:
                colour = "red" if section.failed else "dim"
                table.add_row(section.name, f"[{colour}]{escape(section.skipped)}[/]", "")
            for index, finding in enumerate(section.findings):
                table.add_row("" if index else section.name, escape(finding.name), escape(finding.text))
            table.add_section()
        return table


@dataclass(frozen=True)
class Subject:
    """What the sections look at.

    Attributes:
        model: The network, in eval mode; a copy, so that nothing that happens to it reaches the user's.
        splits: The data.
        macs: Multiply-adds of one sample.
        other: The network that it is compared with, a copy in eval mode too.
        seed: Decides every draw.
        words: How the user named model, weights and data, for commands to run.
    """

    model: nn.Module
    splits: Splits
    macs: int
    other: nn.Module | None = None
    seed: int = 0
    words: Mapping[str, str] = field(default_factory=dict)

    def generator(self) -> torch.Generator:
        """A fresh generator of random numbers."""
        return torch.Generator().manual_seed(self.seed)

    def sample(self, part: Split, most: int, *, passes: float = 1.0, work: float = 2e11, least: int = 32) -> Split:
        """At most ``most`` samples of a part of the data, drawn at random, fewer for costly networks.

        Args:
            part: Part of the data.
            most: Largest number of samples.
            passes: How often each will go through the network.
            work: Multiply-adds that may be spent.
            least: Smallest number of samples, whatever they cost.
        """
        affordable = int(work / max(self.macs * passes, 1))
        count = min(len(part), most, max(least, affordable))
        return part.take(torch.randperm(len(part), generator=self.generator())[:count])


def number(value: Cell) -> str:
    """A number as people read it: whole ones with separators, others with three digits."""
    if isinstance(value, str):
        return value
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.3g}"


def rows(table: Iterable[Iterable[Cell]]) -> tuple[tuple[Cell, ...], ...]:
    """Rows of a :class:`Listing`."""
    return tuple(tuple(row) for row in table)


__all__ = [
    "Cell",
    "Finding",
    "Findings",
    "Listing",
    "NotApplicable",
    "Observer",
    "Photograph",
    "Section",
    "Subject",
    "number",
    "rows",
]
