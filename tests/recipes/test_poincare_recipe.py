"""Tests of the recipe ``poincare``."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.layers.hyperbolic_layers import PoincareConv2d, PoincareLinear
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain


def test_where() -> None:
    splits = load("digits")
    plain = build_model("cnn", splits)
    whole = parse_chain("poincare").build(plain, splits)
    assert not [m for m in whole.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    head = parse_chain("poincare[where=head,c=0.5,init=normal,learn_c=True]").build(plain, splits)
    parts = [m for m in head.modules() if isinstance(m, PoincareLinear | PoincareConv2d)]
    assert len(parts) == 1
    assert parts[0] is list(head.children())[-1]
    assert parts[0].ball.learnable
    assert parts[0].init == "normal"


def test_combines_with_phm() -> None:
    splits = load("digits")
    model = parse_chain("phm+poincare").build(build_model("cnn", splits), splits)
    loss = functional.cross_entropy(model(splits.train.inputs[:8]), splits.train.targets[:8])
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer.step()
    assert model(splits.train.inputs[:8]).isfinite().all()


@pytest.mark.parametrize("chain", ["poincare", "poincare[where=head]+lottery-ticket"])
def test_runs_through_compare(chain: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "mlp", [chain], seeds=(0,), budget="3epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    assert result.arms[1].metrics["accuracy"].mean > 0.2


def test_bad_options() -> None:
    splits = load("digits")
    model = build_model("linear", splits)
    for options, message in (
        ("where=tail", "unknown option 'where' of recipe 'poincare': 'tail'; known are: all, head"),
        ("init=eye", "unknown option 'init' of recipe 'poincare': 'eye'; known are: identity, normal"),
        ("c=0", "option 'c' of recipe 'poincare' must be positive, got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_chain(f"poincare[{options}]").build(model, splits)
    with pytest.raises(ValueError, match="found no linear layer that the Poincaré ball can replace"):
        parse_chain("poincare[where=head]").build(nn.Flatten(), splits)
