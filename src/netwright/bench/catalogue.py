"""What Netwright holds: read from source files and committed evidence, without importing torch."""

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from netwright.bench.evidence import load_evidence
from netwright.claims import SCALES, Claim, Scale, read_claims

_PACKAGE = Path(__file__).parent.parent


@dataclass(frozen=True)
class RecipeEntry:
    """What the catalogue says about a recipe."""

    name: str
    claim: str
    summary: str


@dataclass(frozen=True)
class Entry:
    """One idea: its claim, its recipes, and the committed evidence at each scale."""

    claim: Claim
    recipes: tuple[RecipeEntry, ...]
    evidence: dict[Scale, dict[str, Any]]

    @property
    def verdict(self) -> str:
        """The verdict at the largest scale that has been run."""
        for scale in reversed(SCALES):
            if scale in self.evidence:
                return f"{self.evidence[scale]['verdict']} ({scale})"
        return "not run yet"

    def matches(self, text: str) -> bool:
        """Whether all words of ``text`` occur in the slug, the title, the claim, the parts or the recipes."""
        claim = self.claim
        names = (*claim.parts, *(f"{recipe.name} {recipe.summary}" for recipe in self.recipes))
        haystack = " ".join((claim.slug, claim.title, claim.says, claim.arxiv, *names)).lower()
        return all(word in haystack for word in text.lower().split())

    def to_json(self) -> dict[str, Any]:
        """The entry as JSON values."""
        claim = self.claim
        return {
            "slug": claim.slug,
            "title": claim.title,
            "arxiv": claim.arxiv,
            "year": claim.year,
            "room": claim.room,
            "says": claim.says,
            "parts": [f"netwright.{part}" for part in claim.parts],
            "recipes": [{"name": recipe.name, "summary": recipe.summary} for recipe in self.recipes],
            "verdicts": {scale: found["verdict"] for scale, found in self.evidence.items()},
            "note": claim.note,
        }


@cache
def catalogue() -> dict[str, Entry]:
    """All ideas by slug."""
    recipes = read_recipes()
    return {
        slug: Entry(claim, tuple(r for r in recipes if r.claim == slug), read_evidence(slug))
        for slug, claim in read_claims().items()
    }


def read_recipes() -> list[RecipeEntry]:
    """All recipes, read from the ``Recipe(…)`` calls in the source of the recipes package."""
    entries = []
    for path in sorted((_PACKAGE / "recipes").glob("[!_]*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Recipe":
                given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                entries.append(RecipeEntry(*(str(given[name]) for name in ("name", "claim", "summary"))))
    return entries


def read_evidence(slug: str) -> dict[Scale, dict[str, Any]]:
    """The committed results of one claim by scale.

    Raises:
        InputError: If a file is not as ``netwright reproduce`` writes it.
    """
    found = {}
    for scale in SCALES:
        path = evidence_folder() / scale / f"{slug}.json"
        if path.is_file():
            found[scale] = load_evidence(path)
    return found


def evidence_folder() -> Path:
    """Where committed results are: in the installed package, else in the checkout."""
    installed = _PACKAGE / "evidence"
    return installed if installed.is_dir() else _PACKAGE.parent.parent / "evidence"


def usage_example(part: str) -> str:
    """The ``Example:`` of the docstring of a part, as code without prompts; empty if it has none.

    Args:
        part: Dotted name below ``netwright``, such as ``layers.evonorm.EvoNormS0``.
    """
    module, _, name = part.rpartition(".")
    spec = find_spec(f"netwright.{module}") if (_PACKAGE / Path(*module.split("."))).parent.is_dir() else None
    if spec is None or spec.origin is None:
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            lines = (ast.get_docstring(node) or "").partition("Example:")[2].splitlines()
            return "\n".join(line.strip() for line in lines if line.strip())
    return ""


__all__ = ["Entry", "RecipeEntry", "catalogue", "evidence_folder", "read_evidence", "read_recipes", "usage_example"]
