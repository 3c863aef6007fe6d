"""Tests of the recipe ``subspace``: alone, in chains, and through compare."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.cost import count_params
from netwright.data import load
from netwright.layers.hypercomplex import PHConv2d
from netwright.models.baselines import build_model, check_outputs
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, make_fabric
from netwright.training.subspace import SubspaceModel


def test_the_vector_alone_is_trained_and_batch_norm_keeps_its_statistics() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    chain = parse_chain("subspace[dim=60,projection=sparse]")
    model = chain.build(plain, splits)
    assert isinstance(model, SubspaceModel)
    assert (model.dim, model.projection, model.size) == (60, "sparse", count_params(plain))
    trainer = Trainer(splits, Budget(steps=3), Settings(lr=0.1), seed=0, fabric=make_fabric())
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    start = norm.running_mean.clone()
    trainer.fit(model)
    assert [tuple(p.shape) for p in model.parameters()] == [(60,)]
    assert model.theta_d.count_nonzero() == 60
    assert not torch.equal(norm.running_mean, start)
    other = chain.build(plain, splits)
    assert isinstance(other, SubspaceModel)
    assert other.seed != model.seed


@pytest.mark.parametrize("rule", ["", "+gradient-noise"])
def test_chains_with_other_layers_and_rules(rule: str) -> None:
    splits = load("digits")
    chain = parse_chain(f"phm+subspace[dim=100]{rule}")
    model = chain.build(build_model("cnn", splits), splits)
    assert sum(isinstance(module, PHConv2d) for module in model.modules()) == 2
    assert count_params(model) == 100
    trainer = Trainer(splits, Budget(steps=2), Settings(lr=0.1), 0, make_fabric(), make_rule=chain.make_rule)
    x = splits.test.inputs[:8]
    with torch.no_grad():
        before = model.eval()(x)
    trainer.fit(model)
    with torch.no_grad():
        assert not torch.allclose(model.eval()(x), before)
        torch.testing.assert_close(model(x), model.materialize()(x))


def test_what_does_not_fit_together_says_so() -> None:
    splits = load("digits")
    plain = build_model("mlp", splits)
    model = parse_chain("subspace+phm[n=2]").build(plain, splits)
    with pytest.raises(ValueError, match=r"was replaced after the network was put into a subspace.*put subspace last"):
        check_outputs(model, splits, "the model")
    with pytest.raises(
        ValueError, match=r"'1\.weight' is not what its module reads, perhaps because of an attached mask"
    ):
        parse_chain("random-pruning+subspace").build(plain, splits)
    with pytest.raises(ValueError, match="nothing to prune"):
        parse_chain("subspace+random-pruning").build(plain, splits)
    with pytest.raises(ValueError, match=r"dim must be in \[1, 650\], the number of trainable parameters, got 750"):
        parse_chain("subspace").build(build_model("linear", splits), splits)
    with pytest.raises(ValueError, match="unknown projection 'fast'; did you mean 'fastfood'"):
        parse_chain("subspace[projection=fast]").build(plain, splits)
    with pytest.raises(ValueError, match="found no trainable parameter"):
        parse_chain("subspace").build(nn.Flatten(), splits)


def test_it_runs_through_compare(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chain = "subspace[dim=400]"
    result = compare("digits", "mlp", [chain], seeds=(0,), budget="4epochs", settings=Settings(lr=0.05), store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    _, arm = result.arms
    assert arm.costs["parameters"] == 400
    assert arm.metrics["accuracy"].mean > 0.7
