"""What is this network like? ``netwright inspect`` measures it and says how to read each figure."""

from netwright.bench.inspection.findings import Finding, Inspection, Listing, Section
from netwright.bench.inspection.report import write_report
from netwright.bench.inspection.run import SECTIONS, inspect

__all__ = ["SECTIONS", "Finding", "Inspection", "Listing", "Section", "inspect", "write_report"]
