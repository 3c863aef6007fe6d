"""Tests of the recipe ``ebv``."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.layers.equiangular import EBVHead
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain


def test_the_last_linear_layer_is_replaced() -> None:
    splits = load("digits")
    model = parse_chain("ebv[dim=7,temperature=0.5]").build(build_model("mlp", splits), splits)
    head = list(model.modules())[-2]
    assert isinstance(head, EBVHead)
    assert (head.num_classes, head.basis.shape[1], head.temperature) == (10, 7, 0.5)
    torch.manual_seed(4)
    first = parse_chain("ebv").build(build_model("mlp", splits), splits)
    torch.manual_seed(4)
    second = parse_chain("ebv").build(build_model("mlp", splits), splits)
    x = splits.test.inputs[:3]
    assert torch.equal(first(x), second(x))


def test_what_does_not_fit() -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match=r"must end in an nn\.Linear for its classes, found none"):
        parse_chain("ebv").build(nn.Flatten(), splits)
    with pytest.raises(ValueError, match="option 'dim' of recipe 'ebv' must be at least 2, got 1"):
        parse_chain("ebv[dim=1]").build(build_model("mlp", splits), splits)
    with pytest.raises(ValueError, match="option 'temperature' of recipe 'ebv' must be positive"):
        parse_chain("ebv[temperature=0]").build(build_model("mlp", splits), splits)
    regression = load("diabetes")
    with pytest.raises(ValueError, match=r"recipe 'ebv' is for .*; the data is for tabular-regression"):
        parse_chain("ebv").check_task(regression.task)


def test_runs_through_compare_with_others(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["ebv", "phm+ebv[dim=16]+lottery-ticket[rounds=1]"]
    result = compare("digits", "mlp", chains, seeds=(0,), budget="4epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
