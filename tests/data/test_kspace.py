"""Tests of ``netwright.data.kspace``."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.data.kspace import two_discs, undersampled


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.floats(0.05, 1), st.integers(4, 20), st.integers(0, 100))
def test_lines_are_kept_or_gone(keep: float, size: int, seed: int) -> None:
    x = torch.randn(4, 1, size, size, dtype=torch.float64, generator=generator(seed))
    found = torch.fft.fft2(undersampled(x, keep, generator(seed)))
    true = torch.fft.fft2(x)
    kept = found.abs().amax(-1) > 1e-9
    assert (kept.sum(-1) == max(1, round(keep * size))).all()
    assert kept[..., 0].all()  # the lowest frequency
    ratio = (found / true)[kept].view(4, -1)
    torch.testing.assert_close(ratio.abs(), torch.ones_like(ratio.real), atol=1e-5, rtol=0)
    # one phase for all of a picture
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5, rtol=0)


def test_everything_kept_is_the_picture_but_for_its_phase() -> None:
    x = torch.rand(3, 2, 8, 8)
    y = undersampled(x, 1.0, generator())
    torch.testing.assert_close(y.abs(), x, atol=1e-5, rtol=1e-5)
    assert not torch.equal(undersampled(x, 0.5, generator(1)), undersampled(x, 0.5, generator(2)))
    assert torch.equal(undersampled(x, 0.5, generator(1)), undersampled(x, 0.5, generator(1)))


def test_discs_are_brighter_by_half_and_noise_is_as_strong_as_asked() -> None:
    clean, noisy = (two_discs(200, 24, noise, generator()) for noise in (0.0, 0.3))
    torch.testing.assert_close(clean.images[:, 0].abs(), 0.5 + 0.5 * clean.masks)
    assert torch.equal(clean.masks, noisy.masks)
    assert 0.02 < clean.masks.mean() < 0.2
    difference = (noisy.images - clean.images).abs().square().mean().sqrt()
    assert difference.item() == pytest.approx(0.3, rel=0.02)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: undersampled(torch.ones(2, 4, 4), 0.4, generator()), r"images must have shape \(samples, channels"),
        (lambda: undersampled(torch.ones(2, 1, 4, 4), 0.0, generator()), r"keep must be in \(0, 1\], got 0.0"),
        (lambda: two_discs(0, 16, 0.1, generator()), "samples must be at least 1"),
        (lambda: two_discs(1, 4, 0.1, generator()), "size must be at least 8"),
        (lambda: two_discs(1, 16, -0.1, generator()), "noise must be at least 0"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
