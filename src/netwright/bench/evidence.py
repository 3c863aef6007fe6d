"""What an evidence file must look like: a JSON schema, and the check of a file that somebody else may have made."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from netwright import checks
from netwright.claims import SCALES

# whatever is shown on a terminal must not steer it
_TEXT = {
    "type": "string",
    "pattern": r"^[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*$",
    "maxLength": 1000,
}
_NUMBER = {"type": "number"}
_SEEDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_VERDICT = {"enum": ["holds", "refuted", "inconclusive", None]}

EVIDENCE: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Evidence of one claim at one scale",
    "type": "object",
    "required": ["slug", "verdict", "scale", "seeds", "seconds", "checks", "failed", "made_with", "measurements"],
    "additionalProperties": False,
    "properties": {
        "slug": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
        "verdict": _VERDICT,
        "scale": {"enum": list(SCALES)},
        "seeds": _SEEDS | {"minItems": 1},
        "seconds": _NUMBER | {"minimum": 0},
        "checks": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "verdict", "metric", "arms", "difference", "interval"],
                "additionalProperties": False,
                "properties": {
                    "name": _TEXT,
                    "verdict": _VERDICT,
                    "metric": _TEXT,
                    "arms": {
                        "type": "object",
                        "propertyNames": _TEXT,
                        "additionalProperties": {
                            "type": "object",
                            "required": ["mean", "se", "values"],
                            "additionalProperties": False,
                            "properties": {
                                "mean": _NUMBER,
                                "se": {"type": ["number", "null"]},
                                "values": {"type": "array", "items": _NUMBER, "minItems": 1},
                            },
                        },
                    },
                    "difference": _NUMBER,
                    "interval": {"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2},
                },
            },
        },
        "failed": {"type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": _TEXT},
        "made_with": {"type": "object", "propertyNames": _TEXT, "additionalProperties": _TEXT},
        "measurements": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["seed", "arm", "metric", "value"],
                "additionalProperties": False,
                "properties": {
                    "seed": {"type": "integer", "minimum": 0},
                    "arm": _TEXT,
                    "metric": _TEXT,
                    "value": _NUMBER,
                    "at": _NUMBER,
                },
            },
        },
    },
}

_LARGEST = 1e300

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def load_evidence(path: Path) -> dict[str, Any]:
    """Read an evidence file ``<scale>/<slug>.json``; one that somebody else made can at worst be wrong.

    Raises:
        InputError: If it is no JSON, does not follow :data:`EVIDENCE`, or is of another claim or scale than its path
            says; the message says where.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise checks.InputError(f"the evidence {path} cannot be read: {error}") from error
    wrong = violation(found, EVIDENCE)
    if wrong is None and (found["scale"], found["slug"]) != (path.parent.name, path.stem):
        wrong = f"it is evidence of {found['slug']!r} at the scale {found['scale']!r}, against its place"
    if wrong is not None:
        raise checks.InputError(f"the evidence {path} is not as `netwright reproduce` writes it: {wrong}")
    return dict(found)


def violation(value: Any, schema: Mapping[str, Any], where: str = "") -> str | None:
    """The first place where ``value`` breaks ``schema``, and how; ``None`` if it does not.

    Understands what :data:`EVIDENCE` uses of JSON Schema (2020-12): ``type``, ``enum``, ``pattern``, ``maxLength``,
    ``minimum``, ``minItems``, ``maxItems``, ``items``, ``required``, ``properties``, ``propertyNames`` and
    ``additionalProperties``, with patterns that are anchored at both ends. Numbers have to be finite, which JSON
    demands and Python's reader does not.

    Example:
        >>> violation({"a": [1, "2"]}, {"properties": {"a": {"items": {"type": "integer"}}}})
        'a[1] must be of type integer'
    """
    here = where or "the file"
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if (kinds and not any(isinstance(value, _TYPES[kind]) for kind in kinds)) or (kinds and isinstance(value, bool)):
        return f"{here} must be of type {' or '.join(kinds)}"
    if "enum" in schema and not any(value == known and type(value) is type(known) for known in schema["enum"]):
        return f"{here} must be one of {', '.join(map(str, schema['enum']))}"
    if isinstance(value, int | float) and not abs(value) < _LARGEST:
        return f"{here} must be finite"
    if isinstance(value, int | float) and value < schema.get("minimum", -math.inf):
        return f"{here} must be at least {schema['minimum']}"
    if isinstance(value, str):
        return _text_violation(value, schema, here)
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
            return f"{here} has {len(value)} items"
        found = (violation(item, schema.get("items", {}), f"{where}[{index}]") for index, item in enumerate(value))
        return next(filter(None, found), None)
    return _object_violation(value, schema, where) if isinstance(value, dict) else None


def _text_violation(value: str, schema: Mapping[str, Any], here: str) -> str | None:
    if len(value) > schema.get("maxLength", math.inf):
        return f"{here} is longer than {schema['maxLength']} characters"
    # as in JSON Schema, and not in Python, $ is the end and not a line break before it
    if "pattern" in schema and re.fullmatch(schema["pattern"], value) is None:
        return f"{here} must match {schema['pattern']}, got {value[:100]!r}"
    return None


def _object_violation(value: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> str | None:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
    for name in schema.get("required", ()):
        if name not in value:
            return f"{where or 'the file'} has no {name!r}"
    for name, item in value.items():
        wrong = violation(name, schema.get("propertyNames", {}), f"the name of an entry of {where or 'the file'}")
        if wrong is None and name not in known and others is False:
            wrong = f"{where or 'the file'} has an unknown entry {name[:100]!r}"
        if wrong is None:
            wrong = violation(item, known.get(name, others or {}), f"{where}.{name}".lstrip("."))
        if wrong is not None:
            return wrong
    return None


__all__ = ["EVIDENCE", "load_evidence", "violation"]
