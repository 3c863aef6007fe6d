"""What ``netwright plan`` says of networks whose theory is known, and that it leaves them alone."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from netwright.bench.findings import Findings
from netwright.bench.findings_report import write_report
from netwright.bench.planning import SECTIONS, plan
from netwright.cli import app
from netwright.data import Splits, Task, load
from netwright.theory.critical_init import critical_init_


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits", seed=0, train=300)


def perceptron(act: type[nn.Module], depth: int = 4, width: int = 200) -> nn.Sequential:
    torch.manual_seed(0)
    sizes = [64] + [width] * depth
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, 10))


@pytest.fixture(scope="module")
def found(digits: Splits) -> Findings:
    return plan(perceptron(nn.ReLU), digits)


def test_every_section_has_figures_with_a_reading(found: Findings) -> None:
    assert [section.name for section in found.sections] == list(SECTIONS)
    for section in found.sections:
        assert not section.skipped
        for finding in section.findings:
            assert finding.reading.count(";") >= 2
            assert finding.reading.endswith(".")


def test_gradients_shrink_by_what_the_weights_say(found: Findings) -> None:
    # torch's own weights have C_W = 1/3; a ReLU passes half of them
    assert found["initialisation"]["gradient, factor per layer"] == pytest.approx(1 / 6, rel=0.1)
    assert found["initialisation"]["gradient with critical weights, factor per layer"] == pytest.approx(1, abs=0.15)
    assert "--try critical-init" in found["initialisation"].findings[0].advice


def test_critical_weights_are_recognised(digits: Splits) -> None:
    model = perceptron(nn.ReLU)
    critical_init_(model)
    section = plan(model, digits, only=["initialisation", "depth"])
    assert section["initialisation"].findings[0].advice == "nothing is to be done"
    assert section["depth"]["layers that the first weights can carry"] > 50


def test_depth_follows_the_depth_scale_and_the_width(found: Findings, digits: Splits) -> None:
    assert found["depth"]["layers that the first weights can carry"] == pytest.approx(6 / math.log(6), rel=0.05)
    wide = plan(perceptron(nn.ReLU, width=800), digits, only=["depth"])["depth"]
    narrow = found["depth"]
    name = "spread between draws of the weights"
    assert narrow[name] == pytest.approx(2 * wide[name])
    assert wide["best depth for this width"] == pytest.approx(4 * narrow["best depth for this width"])


def test_the_kernel_limit_beats_the_linear_model_on_digits(found: Findings) -> None:
    section = found["limit"]
    linear = section["accuracy of a linear model, validation part"]
    assert section["accuracy of the tangent kernel, validation part"] > linear + 0.02
    assert section["forecast against measurement"] == pytest.approx(1, abs=0.25)
    assert 0.1 < section["error that twice the data would take away"] < 0.7


def test_the_forecast_by_width_meets_the_network_itself(found: Findings) -> None:
    assert found["width"]["forecast against measurement, width"] == pytest.approx(1, abs=0.3)


def test_a_network_without_a_critical_point_is_told_so(digits: Splits) -> None:
    section = plan(perceptron(nn.Sigmoid), digits, only=["initialisation", "depth"])
    assert "no critical point" in section["initialisation"].findings[0].reading
    assert "no critical point" in section["depth"].skipped


def test_networks_that_cannot_be_read_are_linearised(digits: Splits) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
    )
    section = plan(model, digits, only=["limit", "width"])
    assert "linearised" in section["limit"].title
    assert section["limit"]["accuracy of the tangent kernel, validation part"] > 0.8
    assert section["width"].skipped


def test_regression_is_in_the_users_units() -> None:
    torch.manual_seed(0)
    section = plan(nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1)), load("diabetes"), only=["limit"])
    assert 40 < section["limit"]["RMSE of the NNGP kernel, validation part"] < 75


def test_the_network_is_left_as_it_was(digits: Splits) -> None:
    model = perceptron(nn.ReLU).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    plan(model, digits, only=["initialisation", "depth", "width"])
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bad_input(digits: Splits) -> None:
    with pytest.raises(ValueError, match="unknown section 'widht'; did you mean 'width'"):
        plan(perceptron(nn.ReLU), digits, only=["widht"])
    with pytest.raises(ValueError, match="the nodes of a graph do"):
        plan(perceptron(nn.ReLU), dataclasses.replace(digits, task=Task.NODE_CLASSIFICATION))


def test_report_escapes_what_users_write(found: Findings, tmp_path: Path) -> None:
    write_report(found, tmp_path / "plan.html", command="netwright plan '<b>'")
    page = (tmp_path / "plan.html").read_text()
    assert "&lt;b&gt;" in page
    assert "What does theory say of Sequential, before training?" in page


def test_the_verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        app, ["plan", "mlp", "--data", "iris", "--only", "depth,initialisation", "--json", "p.json"]
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "netwright-plan.html").exists()
    assert set(json.loads((tmp_path / "p.json").read_text())["sections"]) == {"depth", "initialisation"}
