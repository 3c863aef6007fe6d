"""Tests of ``netwright.recipes.layers``: what the recipes change, alone and in chains."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.compression.masks import Mask, prunable
from netwright.cost import count_macs, count_params
from netwright.data import load
from netwright.layers.hypercomplex import PHConv2d, PHMLinear
from netwright.layers.quadratic import quadratic_layers
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric


def test_phm_leaves_stem_and_head_and_keeps_the_size_of_signals() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    model = parse_chain("phm").build(plain, splits)
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | PHMLinear | PHConv2d)]
    assert kinds == [nn.Conv2d, PHConv2d, PHConv2d, nn.Linear]
    assert count_params(model) < 0.4 * count_params(plain)
    halved = parse_chain("phm[n=2]").build(plain, splits)
    assert [m.n for m in halved.modules() if isinstance(m, PHConv2d)] == [2, 2]
    assert isinstance(list(halved.modules())[-1], PHMLinear)  # 2 divides the 10 classes


def test_quadratic_starts_as_the_users_model_and_trains_with_relinear() -> None:
    splits = load("digits")
    plain = build_model("mlp", splits)
    chain = parse_chain("quadratic[gamma=0.001,form=compact]")
    model = chain.build(plain, splits)
    x = splits.test.inputs[:8]
    assert torch.equal(model(x), plain(x))
    assert len(quadratic_layers(model)) == 3
    settings = Settings(lr=0.05, optimizer="sgd", schedule="cosine")
    trainer = Trainer(splits, Budget(steps=5), settings, seed=0, fabric=make_fabric(), make_rule=chain.make_rule)
    assert chain.make_rule is not None
    rule = chain.make_rule(model, trainer)
    rates = {group["name"]: group["lr"] for group in rule.optimizer.param_groups}  # type: ignore[attr-defined]
    assert rates == {"rest": 0.05, "square": 0.001}
    trainer.fit(model)
    assert all(layer.weight_b.any() for layer in quadratic_layers(model).values())


@pytest.mark.parametrize(
    "chain",
    ["phm", "phm[n=2]+lottery-ticket", "quadratic", "phm+quadratic", "phm+gradient-noise", "quadratic+random-pruning"],
)
def test_recipes_run_through_compare(chain: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "mlp", [chain], seeds=(0,), budget="6epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    baseline, arm = result.arms
    assert (arm.costs["parameters"] < 0.8 * baseline.costs["parameters"]) == chain.startswith("phm")
    if "noise" not in chain:  # that needs a longer training
        assert arm.metrics["accuracy"].mean > 0.2


def test_pruning_finds_the_filters_and_not_the_algebra() -> None:
    model = nn.Sequential(PHMLinear(16, 16)).eval()
    assert list(prunable(model)) == ["0.filters"]
    x = torch.randn(2, 16)
    with torch.no_grad():
        before = model(x)
        masked = Mask({"0.filters": torch.zeros(4, 4, 4)}).attach_(model)
        torch.testing.assert_close(masked(x), model[0].bias.expand(2, -1))
        assert not torch.allclose(masked(x), before)


def test_multiply_adds() -> None:
    splits = load("digits")
    plain, x = build_model("cnn", splits), splits.test.inputs[:1]
    expected = count_macs(plain, x)
    assert count_macs(parse_chain("quadratic").build(plain, splits), x) == 3 * expected
    model = parse_chain("phm").build(plain, splits)
    building = sum(4 * m.weight.numel() for m in model.modules() if isinstance(m, PHConv2d))
    assert count_macs(model, x) == expected + building
    assert count_macs(model, x) == expected  # the weights are kept


def test_a_model_without_anything_to_change_is_refused() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match="found no linear or convolutional layer whose sizes n = 3 divides"):
        parse_chain("phm[n=3]").build(build_model("linear", splits), splits)
    with pytest.raises(ValueError, match="found no linear layer or 2-D convolution to replace"):
        parse_chain("quadratic").build(nn.Flatten(), splits)
    with pytest.raises(ValueError, match="a chain can have one learning rule"):
        parse_chain("quadratic+gradient-noise")
