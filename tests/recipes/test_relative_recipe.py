"""Tests of the recipe ``relative``."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.layers.hypercomplex import PHMLinear
from netwright.layers.relative import RelativeNetwork
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, fit


def test_anchors_are_training_samples_of_all_classes() -> None:
    splits = load("digits")
    model = parse_chain("relative[anchors=50,similarity=l1]").build(build_model("cnn", splits), splits)
    assert isinstance(model, RelativeNetwork)
    assert (model.projection.similarity, model.together, model.decoder.in_features) == ("l1", True, 50)
    same = (model.anchors.flatten(1)[:, None] == splits.train.inputs.flatten(1)).all(-1)
    classes = splits.train.targets[same.float().argmax(1)]
    assert bool(same.any(1).all())
    assert classes.bincount().tolist() == [5] * 10


def test_what_does_not_fit() -> None:
    splits = load("digits")
    mlp = build_model("mlp", splits)
    for chain, model, message in [
        ("relative", nn.Flatten(), r"must end in an nn\.Linear, found none"),
        ("ebv+relative", mlp, "the last one, .* is followed by more"),
        ("relative[anchors=0]", mlp, r"option 'anchors' of recipe 'relative' must be in \[1, \d+\], got 0"),
        ("relative[anchors=99999]", mlp, r"option 'anchors' of recipe 'relative' must be in \[1, \d+\], got 99999"),
        ("relative[refresh_every=0]", mlp, "option 'refresh_every' of recipe 'relative' must be at least 1"),
        ("relative[similarity=cos]", mlp, "unknown similarity 'cos'; did you mean"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_chain(chain).build(model, splits)
    with pytest.raises(ValueError, match=r"recipe 'relative' is for .*; the data is for tabular-regression"):
        parse_chain("relative").check_task(load("diabetes").task)


@pytest.mark.parametrize("chain", ["phm+relative[anchors=20]", "relative[anchors=20]+phm[n=2]"])
def test_goes_with_other_layers(chain: str) -> None:
    splits = load("digits", train=100)
    model = parse_chain(chain).build(build_model("mlp", splits), splits)
    assert any(isinstance(layer, PHMLinear) for layer in model.modules())
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, splits, Budget(steps=2), settings=Settings(batch_size=32))
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_runs_through_compare_with_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["relative[anchors=60,refresh_every=4]", "relative[anchors=60]+lottery-ticket[rounds=1]"]
    result = compare("digits", "mlp", chains, seeds=(0,), budget="2epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    assert result.arms[1].metrics["accuracy"].mean > 0.5
