"""Random digitally modulated signals at complex baseband: linear with root-raised-cosine pulses, GMSK and 2-FSK."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

_BT, _GMSK_SPAN = 0.3, 4  # bandwidth of the Gaussian filter times symbol time, and symbols that its pulse lasts

_CONSTELLATIONS = {
    "bpsk": [1, -1],
    "qpsk": [complex(re, im) for re in (-1, 1) for im in (-1, 1)],
    "8psk": [complex(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)],
    "8qam": [complex(re, im) for re in (-3, -1, 1, 3) for im in (-1, 1)],
    "16qam": [complex(re, im) for re in (-3, -1, 1, 3) for im in (-3, -1, 1, 3)],
}


class _Phase(NamedTuple):
    """A modulation of the phase: 2 h, symbols that a pulse of frequency lasts, and symbols a second per hertz."""

    turn: float
    span: int
    rate: float


# GMSK has 99 % of its power within 0.92 of the symbol rate, 2-FSK within Carson's band nearly all
_PHASE = {"gmsk": _Phase(1.0, _GMSK_SPAN, 1.0), "2fsk": _Phase(2.0, 1, 0.5)}

MODULATIONS = (*_CONSTELLATIONS, *_PHASE)


def waveforms(
    modulation: str,
    rows: int,
    samples: int,
    bandwidth: float,
    *,
    roll_off: float = 0.35,
    span: int = 10,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Independent signals of one modulation and one bandwidth around frequency 0, with mean power 1.

    .. math:: s(t) = \sum_k a_k h(t/T - k), \qquad s(t) = \exp\Big(2\pi i h \int^t \sum_k a_k g(\tau/T - k) d\tau/T\Big)

    for linear modulations with 1/T = bandwidth / (1 + roll-off), and for those of the phase with 1/T = bandwidth (GMSK,
    BT = 0.3) or half of it (2-FSK, tones at ± bandwidth / 4). Each has its own symbols, timing and phase.

    Args:
        modulation: One of ``MODULATIONS``.
        rows: How many.
        samples: Length of each.
        bandwidth: As a fraction of the sampling rate.
        roll_off: Of the root-raised-cosine pulse.
        span: Symbols that this pulse lasts.
        generator: Source of randomness.

    Returns:
        ``(rows, samples)``, complex64.
    """
    phase = _PHASE.get(modulation)
    rate = bandwidth * phase.rate if phase is not None else bandwidth / (1 + roll_off)  # symbols a sample
    length = samples + math.ceil(1 / rate)  # a whole symbol more, so that the window may start anywhere in one
    if phase is None:
        points = torch.tensor(_CONSTELLATIONS[modulation], dtype=torch.complex64)
        signal = _superpose(points, rows, length, rate, span, lambda t: rrc(t, roll_off), generator)
    else:
        bits = torch.tensor([-1.0, 1.0])
        pulse = _gaussian_pulse if modulation == "gmsk" else _rectangular_pulse
        frequency = _superpose(bits, rows, length, rate, phase.span, pulse, generator)
        angle = (math.pi * phase.turn * rate) * frequency.double().cumsum(1)
        signal = torch.polar(torch.ones((), dtype=torch.float64), angle).to(torch.complex64)
    start = torch.randint(length - samples + 1, (rows, 1), generator=generator)
    signal = signal.gather(1, start + torch.arange(samples))
    turn = torch.rand(rows, 1, generator=generator) * (2 * math.pi)
    power = signal.abs().square().mean(1, keepdim=True)
    return signal * torch.polar(power.rsqrt(), turn)


def _superpose(
    alphabet: Tensor,
    rows: int,
    length: int,
    rate: float,
    span: int,
    pulse: Callable[[Tensor], Tensor],
    generator: torch.Generator | None,
) -> Tensor:
    """Random symbols, each times the pulse around its time: ``(rows, length)``."""
    time = torch.arange(length, dtype=torch.float64) * rate
    current = time.floor().long()
    number = int(current[-1]) + span
    symbols = alphabet[torch.randint(len(alphabet), (rows, number), generator=generator)]
    before = (span - 1) // 2  # symbols that began earlier and still sound
    signal = alphabet.new_zeros(rows, length)
    for step in range(-before, span - before):
        weight = pulse(time - current - step).float()
        signal.addcmul_(symbols.index_select(1, current + (step + before)), weight.to(alphabet.dtype))
    return signal


def rrc(time: Tensor, roll_off: float) -> Tensor:
    r"""Root-raised-cosine pulse of unit energy, with time in symbols.

    .. math:: h(t) = \frac{\sin(\pi t (1-\alpha)) + 4 \alpha t \cos(\pi t (1+\alpha))}{\pi t (1 - (4 \alpha t)^2)}
    """
    top = torch.sin(math.pi * time * (1 - roll_off)) + 4 * roll_off * time * torch.cos(math.pi * time * (1 + roll_off))
    bottom = math.pi * time * (1 - (4 * roll_off * time).square())
    pulse = top / bottom
    pulse = torch.where(time.abs() < 1e-9, 1 - roll_off + 4 * roll_off / math.pi, pulse)
    if roll_off == 0:
        return pulse
    angle = math.pi / (4 * roll_off)
    limit = (1 + 2 / math.pi) * math.sin(angle) + (1 - 2 / math.pi) * math.cos(angle)
    singular = ((4 * roll_off * time).abs() - 1).abs() < 1e-9
    at_singular = torch.full_like(pulse, roll_off / math.sqrt(2) * limit)
    return torch.where(singular, at_singular, pulse)


def _gaussian_pulse(time: Tensor) -> Tensor:
    """A symbol of frequency behind a Gaussian filter; its integral is ½."""
    width = 2 * math.pi * _BT / math.sqrt(2 * math.log(2))
    pulse: Tensor = torch.special.erf(width * (time + 0.5)) - torch.special.erf(width * (time - 0.5))
    return pulse / 4


def _rectangular_pulse(time: Tensor) -> Tensor:
    """A symbol of frequency as it is; its integral is ½."""
    return torch.where((time >= 0) & (time < 1), 0.5, 0.0)


__all__ = ["MODULATIONS", "rrc", "waveforms"]
