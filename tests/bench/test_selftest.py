"""``netwright verify --selftest``: sound verifiers pass, an unsound one makes it fail, wrong usage says what to do."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from netwright.bench import selftest as bench
from netwright.cli import app
from netwright.models.vision.classic import MLP
from netwright.verify.bounds import Box, ibp
from netwright.verify.soundness import HiddenConfig, by_bounds, exactly
from netwright.verify.verdict import Verdict

QUICK = HiddenConfig(
    steps=60, window=4, restarts=2, attack_steps=1, lr=1e-2, test_every=60, schedule=((0.25, 0), (0.25, 1))
)


def trusting(model: nn.Module, box: Box, labels: Tensor) -> Sequence[Verdict]:
    return [Verdict.HOLDS] * len(labels)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The test itself with little training, in a fresh folder."""
    monkeypatch.chdir(tmp_path)
    full = bench.selftest
    monkeypatch.setattr(bench, "selftest", lambda **options: full(**options, training=QUICK))
    monkeypatch.setattr(
        bench,
        "own_verifiers",
        lambda: {"intervals": by_bounds("ibp"), "CROWN": by_bounds("crown"), "exact": exactly(2)},
    )
    return monkeypatch


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little training plants no network that a bug in the slopes would show on."""
    monkeypatch.setattr(bench, "by_bounds", lambda method, relaxation: trusting)


def test_what_the_test_finds(quick: pytest.MonkeyPatch, caught: None) -> None:
    state = torch.get_rng_state()
    found = bench.selftest(seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.sound
    assert found.caught
    assert found.verdict.startswith("passed")
    assert found.ways.shape == (bench.INSTANCES, 201)
    assert bool((found.ways[:, -1] < 0).any()), "the network is wrong at a planted point"
    names = [(score.verifier, score.network, score.control) for score in found.scores]
    assert names == [
        (verifier, network, verifier == "CROWN with a bug")
        for verifier in ("intervals", "CROWN", "exact", "CROWN with a bug")
        for network in ("linear", "convolution")
    ]
    for score in found.scores:
        numbers = bench.counts(score.report)
        assert min(numbers) >= 0
        assert sum(numbers[:3]) == score.report.unverifiable
        assert sum(numbers[3:]) == score.report.clean == bench.INSTANCES


def test_the_seed_decides(quick: pytest.MonkeyPatch, caught: None) -> None:
    ways = [bench.selftest(seed=seed, verifiers={}).ways for seed in (1, 1, 2)]
    assert torch.equal(ways[0], ways[1])
    assert not torch.equal(ways[0], ways[2])


def test_an_unsound_verifier_is_named(quick: pytest.MonkeyPatch, caught: None) -> None:
    found = bench.selftest(verifiers={"intervals": by_bounds("ibp"), "trusting": trusting})
    assert not found.sound
    assert found.verdict.startswith("UNSOUND: trusting called verified")
    assert found.to_json()["sound"] is False


def test_a_test_that_catches_nothing_is_not_passed(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(bench, "by_bounds", lambda method, relaxation: lambda model, box, labels: ["unknown"] * len(labels))
    found = bench.selftest(verifiers={})
    assert found.sound
    assert not found.caught
    assert found.verdict.startswith("not conclusive")


def test_the_convolution_computes_the_same() -> None:
    torch.manual_seed(0)
    model = MLP(25, (100, 50), 2).double()
    other, x = bench.as_convolution(model), torch.randn(7, 1, 5, 5, dtype=torch.float64)
    assert {type(layer) for layer in other} >= {nn.Conv2d, nn.BatchNorm2d}
    torch.testing.assert_close(other(x), model(x))
    box = Box(x - 0.1, x + 0.1)
    torch.testing.assert_close(ibp(other, box).lower, ibp(model, box).lower)


def test_the_bug_is_the_sign_of_the_intercept() -> None:
    lines = bench.broken_relaxation(torch.tensor([-1.0, 1.0, -2.0]), torch.tensor([3.0, 2.0, -1.0]))
    assert lines.upper_slope.tolist() == [0.75, 1.0, 0.0]
    assert lines.upper_shift.tolist() == [-0.75, 0.0, 0.0]  # as it should be: 0.75
    assert float(lines.upper_slope[0] * 3 + lines.upper_shift[0]) < 3, "the line cuts the ReLU"


def test_the_verb(quick: pytest.MonkeyPatch, caught: None) -> None:
    result = CliRunner().invoke(app, ["verify", "--selftest", "--seed", "1", "--json", "s.json", "--report", "s.html"])
    assert result.exit_code == 0, result.output
    assert "passed: no verifier called verified" in result.output.replace("\n", " ")
    found = json.loads(Path("s.json").read_text())
    assert found["sound"]
    assert found["control_caught"]
    assert found["planted"] == bench.INSTANCES
    assert len(found["scores"]) == 8
    page = Path("s.html").read_text()
    assert "Passed: no verifier called verified" in page
    assert "From an input to its planted counterexample" in page
    assert "CROWN with a bug" in page


def test_an_unsound_verifier_makes_the_verb_fail(quick: pytest.MonkeyPatch, caught: None) -> None:
    quick.setattr(bench, "own_verifiers", lambda: {"trusting": trusting})
    result = CliRunner().invoke(app, ["verify", "--selftest"])
    assert result.exit_code == 1
    assert "UNSOUND" in result.output
    assert Path("netwright-verify.html").exists()
    quick.setattr(bench, "own_verifiers", dict)
    quick.setattr(bench, "by_bounds", lambda method, relaxation: lambda model, box, labels: ["unknown"] * len(labels))
    assert CliRunner().invoke(app, ["verify", "--selftest"]).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say which MODEL to verify, or try the verifiers themselves with --selftest"),
        (["mlp", "--selftest"], "leave out MODEL"),
        (["--selftest", "--radius", "0.1", "--samples", "10"], "leave out --radius, --samples"),
        (["--selftest", "--property", "p.vnnlib"], "leave out --property"),
        (["--selftest", "--data", "digits", "--weights", "w.pt"], "leave out --data, --weights"),
        (["--selftest", "--time-limit", "60s"], "leave out --time-limit"),
        (["--selftest", "--report", "/no/such/folder/r.html"], "choose another file with --report"),
    ],
)
def test_wrong_usage_says_what_to_do(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    result = CliRunner().invoke(app, ["verify", *[a.replace("/no/such/folder", "file") for a in arguments]])
    assert result.exit_code != 0
    assert message in str(result.exception)
