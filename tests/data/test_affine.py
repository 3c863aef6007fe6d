"""Tests of ``netwright.data.affine``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.data.affine import random_affine


def test_mirrored_or_not() -> None:
    x = torch.rand(400, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    found = random_affine(x, 0, 0, generator=torch.Generator().manual_seed(0))
    same = torch.isclose(found, x, atol=1e-5).flatten(1).all(1)
    mirrored = torch.isclose(found, x.flip(3), atol=1e-5).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 160 < same.sum() < 240
    torch.testing.assert_close(random_affine(x, 0, 0, flip=0), x, atol=1e-5, rtol=0)


@given(degrees=st.floats(0, 180), seed=st.integers(0, 99))
def test_a_rotation_moves_a_spot_along_a_circle(degrees: float, seed: int) -> None:
    """The centre of mass of a smooth spot keeps its distance to the middle, in pixels."""
    rows, columns = torch.arange(61.0) - 30, torch.arange(81.0) - 40
    spot = torch.exp(-((rows[:, None] - 3) ** 2 + (columns - 12) ** 2) / 18)[None, None].double()
    found = random_affine(spot, degrees, 0, 0, generator=torch.Generator().manual_seed(seed))[0, 0]
    mass = found / found.sum()
    row, column = (mass.sum(1) @ rows.double()).item(), (mass.sum(0) @ columns.double()).item()
    assert math.hypot(row, column) == pytest.approx(math.hypot(3, 12), abs=0.05)
    turned = math.degrees(math.atan2(row, column) - math.atan2(3, 12))
    assert min(abs(turned), 360 - abs(turned)) <= degrees + 0.5


@given(shear=st.floats(0, 40), seed=st.integers(0, 99))
def test_a_shear_keeps_rows(shear: float, seed: int) -> None:
    rows, columns = torch.arange(61.0) - 30, torch.arange(81.0) - 40
    spot = torch.exp(-((rows[:, None] - 10) ** 2 + (columns - 5) ** 2) / 18)[None, None].double()
    found = random_affine(spot, 0, shear, 0, generator=torch.Generator().manual_seed(seed))[0, 0]
    mass = found / found.sum()
    assert (mass.sum(1) @ rows.double()).item() == pytest.approx(10, abs=0.05)
    moved = abs((mass.sum(0) @ columns.double()).item() - 5)
    assert moved <= 10 * math.tan(math.radians(shear)) + 0.05


def test_every_picture_moves_by_its_own_and_zeros_come_in() -> None:
    x = torch.ones(6, 1, 20, 20)
    found = random_affine(x)
    assert len({one.numpy().tobytes() for one in found}) == 6
    assert (found[:, :, 8:12, 8:12] > 0.99).all()
    assert found.min() == 0
    again = [random_affine(x, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*again)


def spot(row: float, column: float, width: float) -> torch.Tensor:
    rows, columns = torch.arange(61.0) - 30, torch.arange(81.0) - 40
    return torch.exp(-((rows[:, None] - row) ** 2 + (columns - column) ** 2) / (2 * width**2))[None, None].double()


def middle(picture: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass, from the middle."""
    mass = picture[0, 0] / picture.sum()
    rows, columns = torch.arange(61.0).double() - 30, torch.arange(81.0).double() - 40
    return (mass.sum(1) @ rows).item(), (mass.sum(0) @ columns).item()


@given(low=st.floats(0.7, 1.0), grow=st.floats(1.0, 1.5), seed=st.integers(0, 99))
def test_a_scale_moves_a_spot_away_from_the_middle(low: float, grow: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found = random_affine(spot(6, 10, 2.5), 0, 0, 0, scale=(low, low * grow), generator=generator)
    row, column = middle(found)
    for factor in (row / 6, column / 10):
        assert low - 0.02 <= factor <= low * grow + 0.02
    area = (found.sum() / spot(6, 10, 2.5).sum()).item()
    assert area == pytest.approx(row / 6 * column / 10, rel=0.02)


@given(shift=st.floats(0, 8), degrees=st.floats(0, 90), seed=st.integers(0, 99))
def test_a_shift_is_in_pixels_also_of_turned_pictures(shift: float, degrees: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    row, column = middle(random_affine(spot(0, 0, 2.5), degrees, 0, 0, shift=shift, generator=generator))
    assert abs(row) <= shift + 0.05
    assert abs(column) <= shift + 0.05
    whole = random_affine(spot(0, 0, 2.5).expand(50, -1, -1, -1), 0, 0, 0, shift=5.0)
    assert max(abs(middle(one[None])[1]) for one in whole) > 2.5


def test_what_is_not_asked_for_draws_no_random_numbers() -> None:
    x = torch.rand(4, 1, 9, 9)
    used, expected = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    random_affine(x, generator=used)
    torch.rand(3, 4, generator=expected, dtype=torch.float64)
    assert torch.equal(used.get_state(), expected.get_state())


def test_bad_input() -> None:
    x = torch.rand(2, 1, 4, 4)
    with pytest.raises(ValueError, match=r"images must have shape \(batch, channels, height, width\)"):
        random_affine(x[0])
    with pytest.raises(ValueError, match="images must be of a floating-point type"):
        random_affine(x.long())
    with pytest.raises(ValueError, match="degrees must be at least 0, got -1"):
        random_affine(x, -1)
    with pytest.raises(ValueError, match=r"shear must be in \[0, 90\), got 90"):
        random_affine(x, shear=90)
    with pytest.raises(ValueError, match=r"flip must be in \[0, 1\], got 2"):
        random_affine(x, flip=2)
    with pytest.raises(ValueError, match="the smallest scale must be positive, got 0"):
        random_affine(x, scale=(0, 1))
    with pytest.raises(ValueError, match=r"the largest scale must be at least 1.2, got 0.8"):
        random_affine(x, scale=(1.2, 0.8))
    with pytest.raises(ValueError, match="shift must be at least 0, got -1"):
        random_affine(x, shift=-1)
