"""The report of an inspection: one HTML file that opens offline."""

from pathlib import Path

from netwright.bench.inspection.findings import Inspection, number
from netwright.bench.pages import picture, write_page
from netwright.claims import read_claims


def write_report(inspection: Inspection, path: Path, *, command: str) -> None:
    """Write the report of an inspection.

    Args:
        inspection: What was found.
        path: The HTML file.
        command: What the user typed, so that it can be typed again.
    """
    write_page(
        path,
        "inspect.html.j2",
        inspection=inspection,
        sections=[(section, [picture(plot) for plot in section.plots]) for section in inspection.sections],
        claims=read_claims(),
        number=number,
        command=command,
    )


__all__ = ["write_report"]
