"""Tests of ``netwright.bench.catalogue``, ``netwright.claims`` and ``netwright.bench.source``."""

from importlib import import_module

import pytest

from netwright.bench.catalogue import catalogue, usage_example
from netwright.bench.source import code_digest
from netwright.claims import import_claim, read_claims

SLUGS = sorted(read_claims())


@pytest.mark.parametrize("slug", SLUGS)
def test_the_literal_is_what_the_module_has(slug: str) -> None:
    module = import_claim(slug)
    assert read_claims()[slug] == module.CLAIM
    assert module.CLAIM.slug == slug


@pytest.mark.parametrize("slug", SLUGS)
def test_parts_exist_and_the_first_has_an_example(slug: str) -> None:
    claim = read_claims()[slug]
    for part in claim.parts:
        module, _, name = part.rpartition(".")
        assert hasattr(import_module(f"netwright.{module}"), name), part
    assert ">>>" in usage_example(claim.parts[0])
    assert claim.parts[0].startswith(f"{claim.room}.")


@pytest.mark.parametrize("slug", SLUGS)
def test_committed_evidence_belongs_to_the_claim(slug: str) -> None:
    entry = catalogue()[slug]
    assert {"quick", "full"} <= entry.evidence.keys()
    for scale, found in entry.evidence.items():
        assert (found["slug"], found["scale"]) == (slug, scale)
        assert len(found["seeds"]) >= 3
        assert [check["name"] for check in found["checks"]] == [check.name for check in entry.claim.checks]
        if found["verdict"] == "refuted":
            assert entry.claim.note, "a refuted claim needs our best explanation"


def test_the_digest_follows_imports() -> None:
    assert code_digest("netwright.cost") != code_digest("netwright.surgery")
    assert code_digest("netwright.cost", "netwright.surgery") == code_digest("netwright.cost")  # which imports surgery
    assert code_digest("netwright.claims") != code_digest("netwright.checks")
