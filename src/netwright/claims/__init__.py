"""Claims: what a paper says, and the small experiment that re-checks it.

One file a paper, named after its slug. Each has a literal ``CLAIM`` and a generator ``run(trial)`` that yields the
measurements of one seed. It never judges: ``netwright.bench.stats`` does, in the same way for all. A file may also
have ``draw()``, which returns a plotly figure of the method at work, made within 20 seconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, Protocol, TypeVar

from netwright import checks

Scale = Literal["smoke", "quick", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "quick", "full")

T = TypeVar("T")


@dataclass(frozen=True)
class Check:
    """One inequality or identity that the measurements of a claim have to meet.

    With ``exactly``, every seed's value of ``metric`` under ``arm`` has to be within ``tolerance`` of it. Else the
    differences arm − baseline, paired by seed, have to be above ``margin`` (``better="higher"``) or below it
    (``better="lower"``) with 95 % confidence, one-sided; a ``baseline`` that is a number is compared with every seed.

    Attributes:
        name: What is checked, in a few words.
        metric: Name of the measured quantity.
        arm: The arm that the paper speaks for.
        baseline: The arm, or the number, that it is compared with.
        better: Which direction of the difference speaks for the paper.
        margin: What the difference has to exceed: −0.02 with ``better="higher"`` reads "loses at most 0.02".
        exactly: The value that a count, an identity or a formula must have.
        tolerance: Largest absolute deviation from ``exactly``.
    """

    name: str
    metric: str
    arm: str
    baseline: str | float | None = None
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    exactly: float | None = None
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        if (self.exactly is None) == (self.baseline is None):
            raise checks.InputError(f"check {self.name!r} needs either a baseline or an exact value")


@dataclass(frozen=True)
class Claim:
    """What a paper says, and which checks decide whether it holds here.

    Attributes:
        slug: Name in the catalogue; the file is called the same, with underscores.
        title: Title of the paper.
        arxiv: Its arXiv identifier, or an empty string.
        year: Year of the first publication.
        room: Sub-package that holds the part.
        says: The claim, in one sentence.
        parts: What implements it, as dotted names below ``netwright``; the first one's docstring has the usage example.
        checks: All of them must hold.
        note: Our best explanation where a check comes out against the paper, and what differs from its setting.
    """

    slug: str
    title: str
    arxiv: str
    year: int
    room: str
    says: str
    parts: tuple[str, ...]
    checks: tuple[Check, ...]
    note: str = ""


@dataclass(frozen=True)
class Measurement:
    """One number of one arm under one seed; ``at`` is its place on the horizontal axis if it belongs to a curve."""

    arm: str
    metric: str
    value: float
    at: float | None = None


@dataclass(frozen=True)
class Trial:
    """One run of a claim: a seed, a scale, a device."""

    seed: int
    scale: Scale
    device: str = "cpu"

    def seed_everything(self) -> None:
        """Seed the random generators of torch, NumPy and Python; call it before each arm, so that all start alike."""
        import random

        import numpy as np
        import torch

        random.seed(self.seed)
        np.random.seed(self.seed)  # noqa: NPY002 - for libraries that draw from the global generator
        torch.manual_seed(self.seed)

    def pick(self, *, smoke: T, quick: T, full: T) -> T:
        """The size that belongs to the scale of this trial."""
        return {"smoke": smoke, "quick": quick, "full": full}[self.scale]


class ClaimModule(Protocol):
    """A file of this package."""

    CLAIM: Claim
    run: Callable[[Trial], Iterator[Measurement]]


_LITERAL = re.compile(r"^CLAIM = Claim\($.*?^\)$", re.MULTILINE | re.DOTALL)


def read_claims() -> dict[str, Claim]:
    """All claims by slug, read from the literals in the files of this package without importing what these import."""
    claims = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        literal = _LITERAL.search(path.read_text(encoding="utf-8"))
        if literal is None:
            raise RuntimeError(f"{path.name} has no literal 'CLAIM = Claim(…)' at the start of a line")
        names: dict[str, Claim] = {}
        exec(literal.group(), {"Claim": Claim, "Check": Check}, names)  # noqa: S102 - a file of this package
        claims[names["CLAIM"].slug] = names["CLAIM"]
    return claims


def import_claim(slug: str) -> ClaimModule:
    """The module of one claim.

    Raises:
        InputError: If there is none of that slug; the message offers a close match.
    """
    checks.known("claim", slug, read_claims())
    module: ClaimModule = import_module(f"{__name__}.{slug.replace('-', '_')}")
    return module


__all__ = [
    "SCALES",
    "Check",
    "Claim",
    "ClaimModule",
    "Measurement",
    "Scale",
    "Trial",
    "import_claim",
    "read_claims",
]
