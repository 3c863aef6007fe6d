"""Tests of the recipe ``hyperzzw``."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.hypernets.hyperzzw import MagnetKernel
from netwright.hypernets.hyperzzw_conv import HyperZZWConv2d
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, evaluate, fit, make_fabric


@pytest.mark.parametrize(("source", "sides"), [("cnn", [4, 2]), ("resnet-tiny", [8, 8, 4, 2])])
def test_replaces_all_but_stem_and_strides(source: str, sides: list[int]) -> None:
    splits = load("digits")
    model = parse_chain("hyperzzw").build(build_model(source, splits), splits)
    assert [layer.size for layer in model.modules() if isinstance(layer, HyperZZWConv2d)] == sides
    kept = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [conv.stride for conv in kept] == [(1, 1)] + [(2, 2)] * (len(kept) - 1)
    assert kept[0].in_channels == 1
    if source == "cnn":
        fit(model, splits, Budget(steps=12), settings=Settings(lr=0.005))
        assert evaluate(model, splits.val)["accuracy"] > 0.5
    x = splits.test.inputs[:20]
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(model(x)[:3], model(x[:3]), atol=1e-4, rtol=1e-4)  # whatever else is in the batch


def test_options() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    local = parse_chain("hyperzzw[branches=local]").build(plain, splits)
    assert [layer.size for layer in local.modules() if isinstance(layer, HyperZZWConv2d)] == [None, None]
    alone = parse_chain("hyperzzw[branches=global,omega0=30]").build(plain, splits)
    assert [layer.local for layer in alone.modules() if isinstance(layer, HyperZZWConv2d)] == [None, None]
    assert {net.omega0 for net in alone.modules() if isinstance(net, MagnetKernel)} == {30.0}
    with pytest.raises(ValueError, match="unknown branches 'locl'; did you mean 'local'"):
        parse_chain("hyperzzw[branches=locl]").build(plain, splits)
    with pytest.raises(ValueError, match="omega0 must be positive"):
        parse_chain("hyperzzw[omega0=0]").build(plain, splits)


@pytest.mark.parametrize("chain", ["hyperzzw+phm", "hyperzzw+evonorm", "evonorm+hyperzzw", "hyperzzw+random-pruning"])
def test_chains_with_other_layers(chain: str) -> None:
    splits = load("digits")
    model = parse_chain(chain).build(build_model("cnn", splits), splits)
    assert sum(isinstance(layer, HyperZZWConv2d) for layer in model.modules()) == 2
    Trainer(splits, Budget(steps=1), Settings(), 0, make_fabric(), parse_chain(chain).make_rule).fit(model)
    assert torch.isfinite(model(splits.val.inputs[:4])).all()


def test_runs_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "cnn", ["hyperzzw"], seeds=(0,), budget="20steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    assert result.arms[1].metrics["accuracy"].mean > 0.2


def test_a_model_without_such_convolutions_is_refused() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match="found no convolution with an odd kernel ≥ 3, stride 1, padding that keeps"):
        parse_chain("hyperzzw").build(build_model("mlp", splits), splits)
