"""Tests of ``netwright.data.globe``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from netwright.data.globe import (
    checkerboard,
    fibonacci_lattice,
    great_circle,
    latitude_bands,
    nearest,
    species_sightings,
    uniform_on_sphere,
)


def points(lonlat: Tensor) -> Tensor:
    lon, lat = torch.deg2rad(lonlat.double()).unbind(1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], 1)


def test_the_lattice_is_the_formula_and_even() -> None:
    lattice = fibonacci_lattice(200)
    golden = (1 + math.sqrt(5)) / 2
    for row, i in ((0, -100), (101, 1), (199, 99)):
        lon = 360 * (i % golden) / golden
        assert lattice[row, 0].item() == pytest.approx(lon - 360 if lon > 180 else lon)
        assert lattice[row, 1].item() == pytest.approx(math.degrees(math.asin(2 * i / 201)))
    assert points(lattice).mean(0).norm() < 0.01
    distance = great_circle(lattice[:, None], lattice) + 9 * torch.eye(200)
    gaps = distance.min(1).values
    assert gaps.std() / gaps.mean() < 0.1  # as far from each other everywhere
    for wrong, message in [(0, "points must be at least 2"), (7, "points must be divisible by 2 = 2")]:
        with pytest.raises(ValueError, match=message):
            fibonacci_lattice(wrong)


def test_uniform_by_area() -> None:
    places = uniform_on_sphere(20_000, torch.Generator().manual_seed(0))
    height = torch.deg2rad(places[:, 1]).sin()
    assert (torch.histc(height, 10, -1, 1) / 20_000 - 0.1).abs().max() < 0.01
    assert (torch.histc(places[:, 0], 10, -180, 180) / 20_000 - 0.1).abs().max() < 0.01


@given(st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90))
def test_great_circle_is_the_angle(lon: float, lat: float, other_lon: float, other_lat: float) -> None:
    first, second = torch.tensor([[lon, lat], [other_lon, other_lat]], dtype=torch.float64)
    a, b = points(torch.stack([first, second]))
    angle = math.atan2(torch.linalg.cross(a, b).norm().item(), (a @ b).item())
    assert great_circle(first, second).item() == pytest.approx(angle, abs=1e-7)


def test_the_nearest_is_nearest() -> None:
    places, support = uniform_on_sphere(5_000), fibonacci_lattice(60)
    expected = great_circle(places[:, None], support).argmin(1)
    assert torch.equal(nearest(places, support), expected)


def test_checkerboard() -> None:
    splits = checkerboard(3_000, support=100, classes=16, test=2_000, seed=3)
    assert [len(part) for part in (splits.train, splits.val, splits.test)] == [3_000, 3_000, 2_000]
    assert splits.columns == ("longitude", "latitude")
    cells = fibonacci_lattice(100)
    for part in (splits.train, splits.test):
        number = great_circle(part.inputs.double()[:, None], cells).argmin(1)
        assert torch.equal(part.targets, (number - 50) % 16)
    assert torch.equal(splits.test.inputs, fibonacci_lattice(2_000).float())
    same, other = (checkerboard(300, support=100, test=200, seed=seed) for seed in (3, 4))
    assert not torch.equal(same.train.inputs, other.train.inputs)
    assert not torch.equal(same.train.inputs, same.val.inputs)
    share = splits.test.targets.bincount() / 2_000
    assert share.min() > 0.04  # cells are about as large, 6 or 7 of each class
    with pytest.raises(ValueError, match=r"classes must be in \[2, 100\], got 101"):
        checkerboard(100, support=100, classes=101)


def test_bands() -> None:
    lonlat = torch.tensor([[0.0, -90.0], [0.0, -60.0], [0.0, 59.9], [0.0, 60.0], [0.0, 90.0]])
    assert latitude_bands(lonlat, [-60, 60]).tolist() == [0, 1, 1, 2, 2]


def test_sightings_are_uniform_in_the_range() -> None:
    seen = species_sightings(40_000, 4, imbalance=8, generator=torch.Generator().manual_seed(1))
    counts = seen.species.bincount().double()
    torch.testing.assert_close(
        counts / counts[0], torch.tensor([1, 0.5, 0.25, 0.125], dtype=torch.float64), atol=0.03, rtol=0
    )
    assert seen.occurs(seen.lonlat)[torch.arange(40_000), seen.species].all()
    for species in range(2):
        mine = seen.lonlat[seen.species == species].double()
        distance = great_circle(mine, seen.centres[species])
        limit = torch.deg2rad(seen.radii[species])
        area = (1 - distance.cos()) / (1 - limit.cos())  # share of the circle within that distance
        assert (torch.histc(area, 5, 0, 1) / len(mine) - 0.2).abs().max() < 0.02
        middle = points(mine).mean(0)
        assert great_circle(seen.centres[species], _place(middle)).item() < 0.02
    for options, message in [
        ({"radii": (20.0, 10.0)}, r"radii must be rising, in \(0, 180\] degrees"),
        ({"imbalance": 0.5}, "imbalance must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            species_sightings(10, 2, **options)  # type: ignore[arg-type]


def _place(vector: Tensor) -> Tensor:
    x, y, z = vector.tolist()
    return torch.tensor([math.degrees(math.atan2(y, x)), math.degrees(math.atan2(z, math.hypot(x, y)))]).double()
