"""Tests of the recipe ``ela``."""

from pathlib import Path

import pytest
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.layers.ela import ELA
from netwright.layers.evonorm import EvoNormS0
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain


def layers(model: nn.Module) -> list[ELA]:
    return [module for module in model.modules() if isinstance(module, ELA)]


def test_the_place_suits_the_network() -> None:
    splits = load("digits")
    for name, channels in (("resnet-tiny", [16, 32, 64]), ("cnn", [32, 64, 64])):
        model = parse_chain("ela[variant=B]").build(build_model(name, splits), splits)
        assert [layer.channels for layer in layers(model)] == channels
        assert layers(model)[0].strips[0].kernel_size == (7,)
    ends = parse_chain("ela[place=block_end]").build(build_model("resnet-tiny", splits), splits)
    assert len(layers(ends)) == 3
    both = parse_chain("ela+evonorm").build(build_model("resnet-tiny", splits), splits)
    assert len(layers(both)) == 3
    assert any(isinstance(module, EvoNormS0) for module in both.modules())


def test_what_does_not_fit() -> None:
    splits = load("digits")
    for chain, model, message in (
        ("ela", "mlp", r"no place 'norm' for attention: no BatchNorm2d, GroupNorm or InstanceNorm2d was found"),
        ("ela[place=block_end]", "cnn", "no place 'block_end' for attention: no block of two convolutions"),
        ("ela[place=end]", "cnn", "unknown place 'end'"),
        ("ela[variant=X]", "cnn", "unknown variant of ELA 'X'; known are: B, L, S, T"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_chain(chain).build(build_model(model, splits), splits)


def test_runs_through_compare_with_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "cnn", ["ela+phm+lottery-ticket[rounds=1]"], seeds=(0,), budget="4steps", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
