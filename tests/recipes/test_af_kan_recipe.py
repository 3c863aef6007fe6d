"""Tests of the recipe ``af-kan``."""

from pathlib import Path

import pytest
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.cost import count_params
from netwright.data import load
from netwright.layers.af_kan import AFKANLayer
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain


def test_all_linear_layers_are_replaced() -> None:
    splits = load("digits")
    plain = build_model("mlp", splits)
    model = parse_chain("af-kan[func=prod,reduction=spatial,grid=2]").build(plain, splits)
    layers = [module for module in model.modules() if isinstance(module, AFKANLayer)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [(64, 128), (128, 128), (128, 10)]
    assert {(layer.func, len(layer.low)) for layer in layers} == {("prod", 5)}
    assert count_params(model) < 1.05 * count_params(plain)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.Linear(8, 10))
    model = parse_chain("af-kan").build(encoder, splits)
    assert [type(module) for module in model][1::2] == [AFKANLayer] * 2
    assert not any(isinstance(module, AFKANLayer) for module in model[2].modules())  # its code reads their weights


def test_what_does_not_fit() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match="recipe 'af-kan' replaces linear layers; the network has none"):
        parse_chain("af-kan").build(nn.Flatten(), splits)
    for chain, message in (
        ("af-kan[func=cubic3]", "unknown func 'cubic3'; choose one of quad1, "),
        ("af-kan[reduction=mean]", "unknown reduction 'mean'; choose one of global, "),
        ("af-kan[activation=swish]", "unknown activation 'swish'; choose one of softplus, "),
        ("af-kan[grid=0]", "grid must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_chain(chain).build(build_model("mlp", splits), splits)


def test_runs_through_compare_with_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["af-kan", "ebv+af-kan+lottery-ticket[rounds=1]"]
    result = compare("digits", "mlp", chains, seeds=(0,), budget="8steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
