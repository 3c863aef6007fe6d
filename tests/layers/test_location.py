"""Tests of ``netwright.layers.location``: the encodings beside spherical harmonics, FCNet."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from netwright.cost import count_params
from netwright.data.globe import uniform_on_sphere
from netwright.layers._lonlat import over_the_poles, wrap_longitude
from netwright.layers.location import ENCODINGS, FCNet, make_encoding

DOUBLE = torch.float64
SIZES = {"direct": 2, "cartesian3d": 3, "wrap": 4, "grid": 32, "sphere-c": 24, "sphere-c-plus": 48, "sphere-m": 40,
         "sphere-m-plus": 64, "theory": 48, "spherical-harmonics": 16}  # fmt: skip
SMOOTH = ("cartesian3d", "wrap", "spherical-harmonics")
every_encoding = pytest.mark.parametrize("name", sorted(ENCODINGS))


def make(name: str) -> torch.nn.Module:
    options = {"legendre_polys": 4} if name == "spherical-harmonics" else {"frequencies": 8, "min_radius": 2.0}
    return make_encoding(name, **({} if SIZES[name] < 5 else options)).double()


def by_hand(name: str, lon: float, lat: float) -> list[float]:
    """The formulas of the papers, one number at a time."""
    sin, cos, a, b = math.sin, math.cos, math.radians(lon), math.radians(lat)
    radii = [2 * 180 ** (s / 7) for s in range(8)]
    u, v = [lon / r for r in radii], [lat / r for r in radii]
    grid = [*map(cos, u), *map(sin, u), *map(cos, v), *map(sin, v)]
    c = [f for i in range(8) for f in (sin(v[i]), cos(v[i]) * cos(u[i]), cos(v[i]) * sin(u[i]))]
    m = [
        f
        for i in range(8)
        for f in (sin(v[i]), cos(v[i]) * cos(a), cos(b) * cos(u[i]), cos(v[i]) * sin(a), cos(b) * sin(u[i]))
    ]
    directions = [(1, 0), (-0.5, math.sqrt(3) / 2), (-0.5, -math.sqrt(3) / 2)]
    without_sin = [*map(cos, u), *map(sin, u), *map(cos, v)]  # Grid adds these to the others
    return {
        "direct": [a, b],
        "cartesian3d": [cos(b) * cos(a), cos(b) * sin(a), sin(b)],
        "wrap": [cos(a), sin(a), cos(b), sin(b)],
        "grid": grid,
        "sphere-c": c,
        "sphere-c-plus": c + without_sin,
        "sphere-m": m,
        "sphere-m-plus": m + without_sin,
        "theory": [f((x * lon + y * lat) / r) for f in (sin, cos) for x, y in directions for r in radii],
    }[name]


@pytest.mark.parametrize("name", sorted(SIZES.keys() - {"spherical-harmonics"}))
def test_is_the_formula(name: str) -> None:
    for lon, lat in [(13.4, 52.5), (-70.7, -33.4), (179.0, 89.0)]:
        found = make(name)(torch.tensor([[lon, lat]], dtype=DOUBLE))[0]
        # the order within an encoding is free
        expected = torch.tensor(by_hand(name, lon, lat), dtype=DOUBLE)
        torch.testing.assert_close(found.sort().values, expected.sort().values, atol=1e-12, rtol=1e-12)


@every_encoding
def test_what_all_share(name: str) -> None:
    encoding = make(name)
    lonlat = uniform_on_sphere(7)
    assert encoding(lonlat).shape == (7, encoding.out_features) == (7, SIZES[name])
    # periodic: whole turns do not matter
    torch.testing.assert_close(encoding(lonlat + torch.tensor([720.0, 0.0])), encoding(lonlat), atol=1e-10, rtol=0)
    assert torch.autograd.gradcheck(encoding, lonlat.requires_grad_())
    assert encoding(torch.empty(3, 2, device="meta")).shape == (3, SIZES[name])
    if name in ("wrap", "sphere-m-plus"):
        compiled = torch.compile(encoding, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(lonlat), encoding(lonlat))
    assert not encoding.state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoding.float()(lonlat.float()).dtype == torch.float32
    for wrong, message in [
        (torch.zeros(2), r"lonlat must have shape \(N, 2\)"),
        (torch.zeros(2, 3), "dimension 1 of lonlat must have size 2"),
        (torch.tensor([[0.0, 91.0]]), r"latitudes .* must be in \[-90, 90\] degrees, got 91"),
        (torch.tensor([[math.nan, 9.0]]), "longitudes .* must be finite, got nan"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoding(wrong)


@every_encoding
def test_who_has_artefacts(name: str) -> None:
    """Only those that live on the sphere do not tear the date line; of these Wrap tells places of a pole apart."""
    encoding = make(name)
    line = encoding(torch.tensor([[-180.0, 20.0], [180.0, 20.0]], dtype=DOUBLE))
    pole = encoding(torch.tensor([[-50.0, 90.0], [100.0, 90.0]], dtype=DOUBLE))
    torn, smeared = ((ends[0] - ends[1]).abs().max().item() > 1e-9 for ends in (line, pole))
    assert torn == (name not in SMOOTH)
    assert smeared == (name not in ("cartesian3d", "spherical-harmonics"))


def test_longitudes_are_wrapped_without_rounding() -> None:
    lon = torch.tensor([-180.0, 180.0, 540.0, -540.0, 1e-7, -1e-7, 179.99998, 181.0])
    expected = torch.tensor([180.0, 180.0, 180.0, 180.0, 1e-7, -1e-7, 179.99998, -179.0])
    assert torch.equal(wrap_longitude(lon), expected)


def test_over_the_poles_is_the_same_point() -> None:
    lonlat = torch.stack([torch.rand(200, dtype=DOUBLE) * 360, torch.rand(200, dtype=DOUBLE) * 2000 - 1000], 1)

    def point(lonlat: Tensor) -> Tensor:
        lon, lat = torch.deg2rad(lonlat).unbind(1)
        return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1)

    folded = over_the_poles(lonlat)
    assert folded[:, 1].abs().max() <= 90
    torch.testing.assert_close(point(folded), point(lonlat), atol=1e-12, rtol=0)
    inside = lonlat[:, 1].abs() <= 90
    assert torch.equal(folded[inside], lonlat[inside])


def test_fcnet(tmp_path: Path) -> None:
    net = FCNet(100, 64, 16, device="meta")
    assert count_params(net) == 100 * 64 + 64 + 8 * (64 * 64 + 64) + 64 * 16
    net = FCNet(3, 5, 2, dtype=DOUBLE).eval()
    x = torch.randn(4, 3, dtype=DOUBLE, requires_grad=True)
    hidden = net.entry[0](x).relu()
    for block in net.blocks:
        hidden = hidden + block[3](block[0](hidden).relu()).relu()
    torch.testing.assert_close(net(x), hidden @ net.readout.weight.T)
    assert torch.autograd.gradcheck(net, x)
    first, second = net.train()(x), net(x)
    assert not torch.equal(first, second)  # dropout
    save_model(net, str(tmp_path / "net.safetensors"))
    other = FCNet(3, 5, 2, dtype=DOUBLE)
    load_model(other, str(tmp_path / "net.safetensors"))
    assert torch.equal(other.eval()(x), net.eval()(x))
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        FCNet(3, 5, 2, dropout=1)
    for name, sizes in {"in_features": (0, 5, 2), "hidden": (3, 0, 2), "out_features": (3, 5, 0)}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            FCNet(*sizes)
    with pytest.raises(ValueError, match="blocks must be at least 0, got -1"):
        FCNet(3, 5, 2, blocks=-1)


def test_what_does_not_work() -> None:
    with pytest.raises(ValueError, match=r"unknown encoding 'spherec'; did you mean 'sphere-c'\?"):
        make_encoding("spherec")
    with pytest.raises(ValueError, match="unknown option of encoding 'grid' 'min_radios'; did you mean 'min_radius'"):
        make_encoding("grid", min_radios=3)
    with pytest.raises(ValueError, match="unknown option of encoding 'wrap' 'frequencies'; none is known here"):
        make_encoding("wrap", frequencies=3)
    with pytest.raises(ValueError, match="frequencies must be at least 2, got 1"):
        make_encoding("theory", frequencies=1)
    with pytest.raises(ValueError, match="min_radius must be positive, got 0"):
        make_encoding("grid", min_radius=0)
    for high in (10.0, 5.0, math.inf):
        with pytest.raises(ValueError, match=r"max_radius must be larger than min_radius = 10\.0"):
            make_encoding("grid", max_radius=high)
