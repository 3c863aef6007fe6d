"""Tests of ``netwright.models.fields.location_encoder``."""

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from netwright.cost import count_params
from netwright.data.globe import checkerboard, uniform_on_sphere
from netwright.layers.location import ENCODINGS
from netwright.models.fields.location_encoder import LocationEncoder, Network
from netwright.training import Budget, Settings, evaluate, fit

NETWORKS: tuple[Network, ...] = get_args(Network)


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert count_params(LocationEncoder(out_features=1)) == 10_689
        assert count_params(LocationEncoder(network="linear", legendre_polys=20)) == 401
        assert count_params(LocationEncoder("grid", "fcnet", 16, frequencies=16)) == 64 * 64 + 64 + 8 * 4160 + 1024


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("encoding", sorted(ENCODINGS))
def test_every_pair(encoding: str, network: Network) -> None:
    model = LocationEncoder(encoding, network, 3, hidden=8)
    lonlat = uniform_on_sphere(6).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(lonlat).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


def test_keeps_its_result(tmp_path: Path) -> None:
    lonlat = uniform_on_sphere(6)
    model, other = (LocationEncoder("grid", "siren", 3, dtype=torch.float64) for _ in range(2))
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert torch.equal(model(lonlat), other(lonlat))
    assert torch.autograd.gradcheck(model, lonlat[:2].requires_grad_())
    compiled = torch.compile(LocationEncoder(), fullgraph=True, backend="eager")
    assert compiled(lonlat.detach().float()).shape == (6, 1)


def test_learns_the_checkerboard() -> None:
    splits = checkerboard(1_000, support=20, classes=4, test=1_000)
    model = LocationEncoder(out_features=4, legendre_polys=6, hidden=32)
    fit(model, splits, Budget(epochs=12), settings=Settings(lr=3e-3, batch_size=100))
    assert evaluate(model, splits.test)["accuracy"] > 0.75


def test_an_encoding_of_ones_own_has_no_weight_decay() -> None:
    class Learned(nn.Module):
        out_features = 5

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 5)

        def forward(self, lonlat: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.linear(lonlat)
            return out

    model = LocationEncoder(Learned(), "linear", 3)
    groups = model.param_groups(weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 2]
    torch.optim.Adam(groups)
    with pytest.raises(ValueError, match="options belong to an encoding that is given by its name"):
        LocationEncoder(Learned(), frequencies=3)
    with pytest.raises(
        ValueError, match="an encoding must have out_features, the size of what it returns, got Identity"
    ):
        LocationEncoder(nn.Identity())


def test_what_does_not_work() -> None:
    with pytest.raises(ValueError, match="unknown network 'sirene'; did you mean 'siren'"):
        LocationEncoder(network="sirene")  # type: ignore[arg-type]
    for network in NETWORKS:
        with pytest.raises(ValueError, match="out_features must be at least 1, got 0"):
            LocationEncoder(network=network, out_features=0)
    with pytest.raises(ValueError, match="unknown encoding 'harmonics'"):
        LocationEncoder("harmonics")
    with pytest.raises(ValueError, match=r"lonlat must have shape \(N, 2\)"):
        LocationEncoder()(torch.zeros(2))
