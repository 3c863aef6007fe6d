"""The verbs. Each imports what it needs when it runs, so that ``--help`` and the catalogue answer at once."""

# in this order --help lists the verbs
from netwright.cli import studies  # isort: skip
from netwright.cli import networks  # isort: skip
from netwright.cli import explaining  # isort: skip
from netwright.cli import signals  # isort: skip
from netwright.cli import ideas  # isort: skip
from netwright.cli.app import app, main

__all__ = ["app", "explaining", "ideas", "main", "networks", "signals", "studies"]
