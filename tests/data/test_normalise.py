"""Tests of ``netwright.data.normalise``."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.checks import InputError
from netwright.data.normalise import scale_of_columns, scale_of_images, scale_of_targets


@given(seed=st.integers(0, 20), scale=st.floats(1e-3, 1e3), shift=st.floats(-1e3, 1e3))
def test_only_training_rows_count(seed: int, scale: float, shift: float) -> None:
    """No leak: whatever the other rows hold, the training rows come out the same, with mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    table, train = rng.normal(shift, scale, (40, 3)), np.arange(0, 40, 2)
    spoiled = table.copy()
    spoiled[1::2] = rng.normal(1e6, 1e6, (20, 3))
    normal = scale_of_columns(table, train).columns(table, ("a", "b", "c"))[train]
    torch.testing.assert_close(
        normal, scale_of_columns(spoiled, train).columns(spoiled, ("a", "b", "c"))[train], rtol=0, atol=0
    )
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.var(0, correction=0), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64, np.int64])
def test_only_training_images_count(dtype: type) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (20, 3, 5, 4)).astype(dtype)
    train = np.arange(10)
    spoiled = images.copy()
    spoiled[10:] = 255
    normal = scale_of_images(images, train).images(images[train])
    torch.testing.assert_close(normal, scale_of_images(spoiled, train).images(spoiled[train]), rtol=0, atol=0)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-3, rtol=0)
    torch.testing.assert_close(normal.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_bytes_have_the_statistics_of_floats() -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 2, 7, 7)).astype(np.uint8)
    counted, computed = (scale_of_images(x, np.arange(6)) for x in (images, images.astype(np.float64)))
    np.testing.assert_allclose(counted.mean, computed.mean)
    np.testing.assert_allclose(counted.std, computed.std)


def test_what_is_constant_in_training_is_0_everywhere() -> None:
    table = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 3.0], [99.0, 4.0]])
    normal = scale_of_columns(table, np.arange(3)).columns(table, ("a", "b"))
    assert normal[:, 0].tolist() == [0, 0, 0, 0]
    images = np.full((4, 1, 2, 2), 7, dtype=np.uint8)
    images[3] = 9
    for pixels in (images, images.astype(np.float32)):
        assert not scale_of_images(pixels, np.arange(3)).images(pixels).any()


def test_large_numbers_that_differ_little() -> None:
    """Subtracting in float32 would leave nothing of them."""
    table = 1e9 + np.arange(5.0)[:, None]
    normal = scale_of_columns(table, np.arange(5)).columns(table, ("year",))
    torch.testing.assert_close(normal[:, 0], (torch.arange(5) - 2) / 2**0.5)


def test_numbers_too_large_to_be_normalised() -> None:
    table = np.array([[1.0, 1e200], [2.0, -1e200], [3.0, 0.0]])
    with pytest.raises(InputError, match=r"column 'mass' has numbers too large .* got up to 1e\+200"):
        scale_of_columns(table, np.arange(3)).columns(table, ("age", "mass"))
    with pytest.raises(InputError, match="the target has numbers too large"):
        scale_of_targets(table[:, 1:], np.arange(3))


def test_targets_have_one_unit() -> None:
    values = np.array([[0.0, 0.0], [2.0, 20.0], [0.0, 0.0], [2.0, 20.0], [500.0, 500.0]])
    scale = scale_of_targets(values, np.arange(4))
    assert scale.std.tolist() == pytest.approx([np.sqrt((1 + 100) / 2)] * 2)
    normal = scale.columns(values[:4], ("y", "y"))
    torch.testing.assert_close(normal.mean(0), torch.zeros(2))
    restored = normal.double() * scale.std[0] + torch.from_numpy(scale.mean)
    torch.testing.assert_close(restored, torch.from_numpy(values[:4]), rtol=1e-6, atol=1e-5)


def test_a_target_must_vary() -> None:
    with pytest.raises(InputError, match="more than one value in the training part, got only 3"):
        scale_of_targets(np.array([[3.0], [3.0], [4.0]]), np.arange(2))
