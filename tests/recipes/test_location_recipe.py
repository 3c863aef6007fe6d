"""Tests of the recipe ``location-encoder``."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.data import load
from netwright.data.globe import checkerboard
from netwright.layers.hypercomplex import PHMLinear
from netwright.layers.location import Grid
from netwright.layers.location_columns import LocatedNetwork
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, fit


@pytest.fixture
def places(tmp_path: Path) -> Path:
    part = checkerboard(600, support=12, classes=3, test=2).train
    frame = pd.DataFrame(
        {"lat": part.inputs[:, 1].numpy(), "lon": part.inputs[:, 0].numpy(), "noise": torch.randn(600).numpy()}
    )
    frame["zone"] = [f"zone {number}" for number in part.targets.tolist()]
    path = tmp_path / "places.csv"
    frame.to_csv(path, index=False)
    return path


def test_options(places: Path) -> None:
    splits = load(places, target="zone")
    model = parse_chain("location-encoder[legendre_polys=4]").build(build_model("mlp", splits), splits)
    assert isinstance(model, LocatedNetwork)
    assert model.columns.out_features == 17
    model = parse_chain("location-encoder[encoding=grid,lat=lat,lon=lon]").build(build_model("linear", splits), splits)
    assert isinstance(model, LocatedNetwork)
    assert isinstance(model.columns.encoding, Grid)


def test_what_does_not_fit(places: Path) -> None:
    splits = load(places, target="zone")
    mlp = build_model("mlp", splits)
    for chain, message in [
        ("location-encoder[lat=north]", "one column of numbers called north, found none"),
        ("location-encoder[encoding=sphere]", "unknown encoding 'sphere'; did you mean"),
        ("location-encoder[legendre_polys=0]", r"legendre_polys must be in \[1, 200\], got 0"),
        ("phm[n=1]+location-encoder", "put this recipe before those that replace layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_chain(chain).build(mlp, splits)
    with pytest.raises(ValueError, match=r"recipe 'location-encoder' is for tabular-.*; the data is for image"):
        parse_chain("location-encoder").check_task(load("digits").task)


def test_goes_with_other_layers(places: Path) -> None:
    splits = load(places, target="zone", drop=["noise"])
    model = parse_chain("location-encoder+phm").build(build_model("mlp", splits), splits)
    assert isinstance(next(layer for layer in model.modules() if hasattr(layer, "in_features")), PHMLinear)
    before = [p.detach().clone() for p in model.parameters()]
    fit(model, splits, Budget(steps=2), settings=Settings(batch_size=32))
    assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert isinstance(model, nn.Module)


def test_runs_through_compare_and_helps(places: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    chains = ["location-encoder[legendre_polys=5]", "location-encoder+lottery-ticket[rounds=1]"]
    options = {"target": "zone"}
    settings = Settings(lr=0.01)
    result = compare(
        str(places),
        "linear",
        chains,
        data_options=options,
        seeds=(0,),
        budget="20epochs",
        settings=settings,
        store=store,
    )
    assert not result.failed, [arm.failed for arm in result.arms]
    plain, encoded, _ = (arm.metrics["accuracy"].mean for arm in result.arms)
    assert encoded > plain + 0.2
