"""Tests of the recipe ``feature-merging``: alone and in chains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.compression.masks import Mask
from netwright.cost import count_params
from netwright.data import load
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric


def trainer_for(chain_name: str, model_name: str = "cnn") -> tuple[nn.Module, Trainer]:
    splits, chain = load("digits"), parse_chain(chain_name)
    torch.manual_seed(0)
    model = chain.build(build_model(model_name, splits), splits)
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(splits, Budget(steps=2), Settings(), 0, make_fabric(), chain.make_rule, None, initial)
    trainer.fit(model, chain.training_share)
    return model, trainer


@pytest.mark.parametrize("model_name", ["mlp", "cnn", "resnet-tiny"])
def test_trained_network_loses_channels_and_nothing_is_trained_again(model_name: str) -> None:
    model, trainer = trainer_for("feature-merging[beta=0.95]", model_name)
    finished = parse_chain("feature-merging[beta=0.95,max_ratio=0.5]").finish(model, trainer)
    assert 0.2 * count_params(model) < count_params(finished) < 0.6 * count_params(model)
    assert finished.state_dict().keys() == model.state_dict().keys()
    assert len(trainer.histories) == 1
    assert parse_chain("feature-merging").training_share == 1


def test_masks_of_another_recipe_are_looked_through() -> None:
    for text in ("random-pruning+feature-merging[beta=0.9]", "feature-merging[beta=0.9]+random-pruning"):
        model, trainer = trainer_for(text, "mlp")
        finished = parse_chain(text).finish(model, trainer)
        assert len(Mask.of(finished)) == 0
        assert count_params(finished) < count_params(model)


def test_runs_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["feature-merging[beta=0.9]", "gradient-noise+lottery-ticket[rounds=1]+feature-merging[beta=0.9]"]
    result = compare("digits", "mlp", chains, seeds=(0,), budget="2epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    baseline, *arms = result.arms
    assert all(arm.costs["parameters"] < baseline.costs["parameters"] for arm in arms)


def test_bad_options_and_networks_are_refused_before_training() -> None:
    splits = load("digits")
    plain = build_model("mlp", splits)
    with pytest.raises(ValueError, match=r"option 'beta' of recipe 'feature-merging' must be in \[0, 1\], got 2"):
        parse_chain("feature-merging[beta=2.0]").build(plain, splits)
    with pytest.raises(ValueError, match=r"option 'max_ratio' of recipe 'feature-merging' must be in \(0, 1\], got 0"):
        parse_chain("feature-merging[max_ratio=0.0]").build(plain, splits)
    with pytest.raises(ValueError, match=r"found no channels to merge \(1: they are outputs of the network\)"):
        parse_chain("feature-merging").build(build_model("linear", splits), splits)
    with pytest.raises(ValueError, match=r"found no channels to merge \(0: layer '4' is a PHConv2d"):
        parse_chain("phm[n=2]+feature-merging").build(build_model("cnn", splits), splits)


def test_lottery_tickets_cannot_come_after_it() -> None:
    model, trainer = trainer_for("feature-merging[beta=0.95]", "mlp")
    chain = parse_chain("feature-merging[beta=0.95]+lottery-ticket")
    with pytest.raises(ValueError, match="lottery-ticket goes back to the weights before training"):
        chain.finish(model, replace(trainer, budget=Budget(steps=2)))
