"""Tests of ``netwright.training.losses.speech``."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from netwright.analysis.speech import sdr, si_sdr
from netwright.models.signals.aec import STFTPair
from netwright.training.losses.speech import compressed_spectrum_loss, sdr_loss, si_sdr_loss, staged_loss

DOUBLE = torch.float64
Loss = Callable[..., Tensor]


@pytest.mark.parametrize(("loss", "metric"), [(sdr_loss, sdr), (si_sdr_loss, si_sdr)])
def test_losses_are_the_metrics_but_for_silence_and_the_limit(loss: Loss, metric: Loss) -> None:
    s, e = torch.randn(2, 4, 300, dtype=DOUBLE)
    torch.testing.assert_close(loss(e, s, limit=None), -metric(e, s).mean())
    with_silence = torch.cat([s, torch.zeros(2, 300, dtype=DOUBLE)])
    more = torch.cat([e, torch.randn(2, 300, dtype=DOUBLE)])
    torch.testing.assert_close(loss(more, with_silence, limit=None), -metric(e, s).mean())
    assert loss(e, torch.zeros_like(s)).item() == 0
    assert loss(s, s, limit=30.0).item() == pytest.approx(-30, abs=1e-6)
    assert loss(e, s) > loss(e, s, limit=None), "the limit costs everybody something"


def test_only_one_of_them_minds_the_level() -> None:
    s, e = torch.randn(2, 4, 300, dtype=DOUBLE)
    torch.testing.assert_close(si_sdr_loss(5 * (s + 0.1 * e), s), si_sdr_loss(s + 0.1 * e, s))
    assert sdr_loss(5 * (s + 0.1 * e), s) > sdr_loss(s + 0.1 * e, s) + 20


def test_compressed_spectrum_by_hand() -> None:
    S, E = torch.randn(2, 3, 2, 5, 7, dtype=DOUBLE)
    z, w = (torch.complex(*x.unbind(1)) for x in (E, S))
    c = 0.3
    sizes = (z.abs() ** c - w.abs() ** c).square().mean()
    both = (z.abs() ** (c - 1) * z - w.abs() ** (c - 1) * w).abs().square().mean()
    for weight in (0.0, 0.3, 1.0):
        expected = (1 - weight) * sizes + weight * both
        torch.testing.assert_close(
            compressed_spectrum_loss(E, S, complex_weight=weight), expected, atol=1e-6, rtol=1e-5
        )
    # a turn of the phase alone costs the complex part alone
    turned = torch.stack([-S[:, 1], S[:, 0]], 1)
    assert compressed_spectrum_loss(turned, S, complex_weight=0.0).item() == pytest.approx(0, abs=1e-12)
    assert compressed_spectrum_loss(turned, S) > 0.1


def test_stages_add_up_and_loud_counts_as_quiet() -> None:
    stft = STFTPair(32, 16, dtype=DOUBLE)
    s, n, e = torch.randn(3, 2, 200, dtype=DOUBLE)
    mic = s + n
    one = staged_loss([(e, s)], stft, reference=mic)
    two = staged_loss([(e, s), (e + n, s + n)], stft, reference=mic)
    torch.testing.assert_close(two, one + staged_loss([(e + n, s + n)], stft, reference=mic))
    torch.testing.assert_close(staged_loss([(7 * e, 7 * s)], stft, reference=7 * mic), one)
    plain = compressed_spectrum_loss(stft(e), stft(s)) + 0.5 * sdr_loss(e, s)
    torch.testing.assert_close(staged_loss([(e, s)], stft, sdr_weight=0.5), plain)


def test_gradients_also_at_silence() -> None:
    stft = STFTPair(8, 4, dtype=DOUBLE)
    s = torch.randn(2, 12, dtype=DOUBLE)
    s[1] = 0
    e = torch.randn(2, 12, dtype=DOUBLE, requires_grad=True)
    assert gradcheck(lambda e: staged_loss([(e, s)], stft, reference=s + 1), (e,))
    silent = torch.zeros(2, 12, dtype=DOUBLE, requires_grad=True)
    staged_loss([(silent, s)], stft).backward()
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_what_is_refused() -> None:
    s = torch.randn(2, 10)
    with pytest.raises(ValueError, match=r"shape of target \(2, 10\), got \(2, 9\)"):
        si_sdr_loss(s[:, :9], s)
    with pytest.raises(ValueError, match=r"\(batch, 2, bins, frames\), got shape \(2, 10\)"):
        compressed_spectrum_loss(s, s)
    S = torch.randn(2, 2, 5, 6)
    with pytest.raises(ValueError, match=r"power must be in \(0, 1\], got 0"):
        compressed_spectrum_loss(S, S, power=0)
    with pytest.raises(ValueError, match=r"complex_weight must be in \[0, 1\], got 2"):
        compressed_spectrum_loss(S, S, complex_weight=2)
    with pytest.raises(ValueError, match=r"number of stages must be at least 1, got 0"):
        staged_loss([], STFTPair(8, 4))
