"""Tests of ``netwright.bench.evidence``: a file that somebody else made can at worst be wrong."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from netwright.bench.catalogue import evidence_folder
from netwright.bench.evidence import EVIDENCE, load_evidence, violation

FILES = sorted(evidence_folder().glob("*/*.json"))
GOOD: dict[str, Any] = json.loads((evidence_folder() / "quick" / "phnn.json").read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_evidence_follows_the_schema(path: Path) -> None:
    assert load_evidence(path)["slug"] == path.stem


def write(folder: Path, text: str) -> Path:
    path = folder / "quick" / "phnn.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


BROKEN: list[tuple[list[Any], Any, str]] = [
    (["slug"], "../phnn", r"slug must match"),
    (["slug"], "phnn\n", r"slug must match"),
    (["slug"], "evonorm", r"evidence of 'evonorm' at the scale 'quick', against its place"),
    (["scale"], "full", r"against its place"),
    (["scale"], "huge", r"scale must be one of smoke, quick, full"),
    (["verdict"], "proved", r"verdict must be one of holds, refuted, inconclusive, None"),
    (["verdict"], 0, r"verdict must be one of"),
    (["seeds"], [], r"seeds has 0 items"),
    (["seeds"], [0, True], r"seeds\[1\] must be of type integer"),
    (["seeds", 0], -1, r"seeds\[0\] must be at least 0"),
    (["seconds"], "1", r"seconds must be of type number"),
    (["seconds"], float("nan"), r"seconds must be finite"),
    (["checks", 0, "difference"], float("inf"), r"checks\[0\].difference must be finite"),
    (["checks", 0, "difference"], 10**400, r"checks\[0\].difference must be finite"),
    (["checks", 0, "interval"], [0.0], r"checks\[0\].interval has 1 items"),
    (["checks", 0, "name"], "a\x1b[2Jb", r"checks\[0\].name must match"),
    (["checks", 0, "name"], "\ud800", r"checks\[0\].name must match"),
    (["checks", 0, "name"], "a" * 1001, r"checks\[0\].name is longer than 1000 characters"),
    (["checks", 0, "arms"], {"a\nb": {}}, r"the name of an entry of checks\[0\].arms must match"),
    (["checks", 0, "arms"], {"a": {"mean": 1}}, r"checks\[0\].arms.a has no 'se'"),
    (["checks", 0], [], r"checks\[0\] must be of type object"),
    (["extra"], 1, r"the file has an unknown entry 'extra'"),
    (["measurements", 0, "value"], None, r"measurements\[0\].value must be of type number"),
    (["made_with", "torch"], 2.0, r"made_with.torch must be of type string"),
]


@pytest.mark.parametrize(("place", "value", "message"), BROKEN, ids=[f"{c[0]}={str(c[1])[:12]!r}" for c in BROKEN])
def test_what_is_refused(place: list[Any], value: object, message: str, tmp_path: Path) -> None:
    broken = copy.deepcopy(GOOD)
    inner = broken
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        load_evidence(write(tmp_path, json.dumps(broken)))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"slug": 1' + "0" * 5000 + "}", "\x00"])
def test_what_is_no_evidence_at_all(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"phnn.json (cannot be read|is not as `netwright reproduce` writes it)"):
        load_evidence(write(tmp_path, text))


def test_each_required_entry_is_required() -> None:
    for name in EVIDENCE["required"]:
        assert violation({k: v for k, v in GOOD.items() if k != name}, EVIDENCE) == f"the file has no {name!r}"


def test_the_schema_is_one() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(EVIDENCE)
    jsonschema.validate(GOOD, EVIDENCE)
