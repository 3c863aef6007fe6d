"""Tests of ``netwright.analysis.speech``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from netwright.analysis.speech import erle, sdr, si_sdr

DOUBLE = torch.float64


@given(db=st.floats(-20, 40), scale=st.floats(0.01, 100.0))
def test_noise_at_right_angles_gives_its_own_ratio(db: float, scale: float) -> None:
    """With <s, n> = 0 and |s| = |n|, SI-SDR of scale (s + g n) is -20 log10 g for any scale; SDR sees the scale."""
    s, n = torch.linalg.qr(torch.randn(500, 2, dtype=DOUBLE)).Q.T
    gain = 10 ** (-db / 20)
    assert si_sdr(scale * (s + gain * n), s).item() == pytest.approx(db, abs=1e-9)
    assert sdr(s + gain * n, s).item() == pytest.approx(db, abs=1e-9)
    assert sdr(s + gain * n, s) <= si_sdr(s + gain * n, s) + 1e-9
    expected = -10 * math.log10((1 - scale) ** 2 + (scale * gain) ** 2)
    assert sdr(scale * (s + gain * n), s).item() == pytest.approx(expected, abs=1e-8)


def test_erle_by_hand_whole_and_over_time() -> None:
    y = torch.randn(2, 3, 1000, dtype=DOUBLE)
    left = torch.cat([0.1 * y[..., :500], 0.01 * y[..., 500:]], -1)
    torch.testing.assert_close(
        erle(y, left, window=250), torch.tensor([20.0, 20, 40, 40], dtype=DOUBLE).expand(2, 3, 4)
    )
    energies = (y.square().sum(-1) / left.square().sum(-1)).log10() * 10
    torch.testing.assert_close(erle(y, left), energies)
    assert erle(y, torch.zeros_like(y)).isposinf().all()


def test_gradients() -> None:
    s, e = torch.randn(2, 2, 6, dtype=DOUBLE)
    e.requires_grad_()
    for ratio in (sdr, si_sdr):
        assert gradcheck(lambda e, ratio=ratio: ratio(e, s), (e,))
    assert gradcheck(lambda e: erle(s, e), (e,))


def test_what_is_refused() -> None:
    s = torch.randn(2, 10)
    for ratio in (sdr, si_sdr):
        with pytest.raises(ValueError, match=r"every target must have a signal.*got a silent one"):
            ratio(s, torch.stack([s[0], torch.zeros(10)]))
        with pytest.raises(ValueError, match=r"shape of target \(2, 10\), got \(2, 9\)"):
            ratio(s[:, :9], s)
    with pytest.raises(ValueError, match=r"shape of mic \(2, 10\), got \(1, 10\)"):
        erle(s, s[:1])
    with pytest.raises(ValueError, match=r"window must be in \[1, 10\], got 11"):
        erle(s, s, window=11)
    with pytest.raises(ValueError, match=r"mic must be of a floating-point type, got torch.int64"):
        erle(s.long(), s)
