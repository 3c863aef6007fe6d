"""Tests of the recipe ``complex``: on the models that have names, in chains, through compare."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.cost import count_params
from netwright.data import load
from netwright.layers.complex import ComplexConv2d, ComplexLinear
from netwright.layers.complex_activations import ZReLU
from netwright.layers.complex_network import FromComplex
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet-tiny"])
def test_named_models(name: str) -> None:
    splits = load("digits")
    plain = build_model(name, splits)
    model = parse_chain("complex[activation=zrelu]").build(plain, splits)
    assert not any(isinstance(m, nn.Linear | nn.Conv2d | nn.ReLU) for m in model.modules())
    assert any(isinstance(m, ZReLU) for m in model.modules())
    assert count_params(model) == pytest.approx(2 * count_params(plain), rel=0.02)
    x = splits.test.inputs[:4]
    assert model(x).shape == plain(x).shape
    if name != "mlp":
        spectral = parse_chain("complex[inputs=fft,whiten=False]").build(plain, splits)
        assert spectral(x).shape == plain(x).shape


def test_regression_reads_the_real_part() -> None:
    splits = load("diabetes")
    model = parse_chain("complex").build(build_model("mlp", splits), splits)
    assert [m.how for m in model.modules() if isinstance(m, FromComplex)] == ["real"]
    with pytest.raises(ValueError, match="readout=abs of recipe 'complex' cannot give negative values"):
        parse_chain("complex[readout=abs]").build(build_model("mlp", splits), splits)


@pytest.mark.parametrize("chain", ["complex+lottery-ticket", "complex+gradient-noise"])
def test_chains_train(chain: str) -> None:
    splits = load("digits")
    recipes = parse_chain(chain)
    model = recipes.build(build_model("cnn", splits), splits)
    trainer = Trainer(splits, Budget(steps=4), Settings(), seed=0, fabric=make_fabric(), make_rule=recipes.make_rule)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer.fit(model)
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert len(changed) == len(before)
    layers = [m for m in model.modules() if isinstance(m, ComplexConv2d | ComplexLinear)]
    assert all(m.weight_imag.any() for m in layers)


def test_runs_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "mlp", ["complex"], seeds=(0,), budget="2epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    baseline, arm = result.arms
    assert arm.costs["parameters"] == pytest.approx(2 * baseline.costs["parameters"])
    assert arm.metrics["accuracy"].mean > 0.5


@pytest.mark.parametrize(
    ("chain", "model", "message"),
    [
        ("complex[activation=swish]", "mlp", "unknown complex activation 'swish'"),
        ("complex[inputs=dct]", "cnn", "unknown option 'inputs' of recipe 'complex' 'dct'; known are: fft, zero"),
        ("complex[readout=phase]", "cnn", "unknown option 'readout' of recipe 'complex' 'phase'"),
        ("complex[inputs=fft]", "mlp-on-a-table", "inputs='fft' needs pictures"),
        ("complex", "vit-tiny", "does not run with complex numbers"),
        ("complex", "nothing", "replaces linear and convolutional layers"),
    ],
)
def test_bad_input(chain: str, model: str, message: str) -> None:
    splits = load("iris" if model == "mlp-on-a-table" else "digits")
    network = nn.Flatten() if model == "nothing" else build_model(model.split("-on-")[0], splits)
    with pytest.raises(ValueError, match=message):
        parse_chain(chain).build(network, splits)
