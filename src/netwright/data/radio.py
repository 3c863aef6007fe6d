"""Wideband radio recordings with known contents, as the ones CMuSeNet (2025, arXiv:2506.11048) was trained on.

Several modulated signals share a band without overlap, each behind its own channel, with noise; the truth is which bins
of the spectrum are occupied. ``WidebandIQ`` draws ``Recordings``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.data._waveforms import MODULATIONS, waveforms

CHANNELS = ("awgn", "rician", "rayleigh")
_WAVES = 8  # sinusoids that make up a fading path
_ROWS = 1 << 21  # samples of signals that are made at once
_TRIES = 1000


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings and the truth about them.

    Attributes:
        iq: Samples ``(recordings, samples)``, complex64.
        mask: Whether a bin of the shifted spectrum is occupied ``(recordings, fft_size)``; bin j is at the frequency
            (j − fft_size // 2) · sample_rate / fft_size.
        snr_db: Mean power of the weakest signal over that of the noise in the whole band ``(recordings,)``.
        channel: Number of its channel in ``CHANNELS`` ``(recordings,)``.
        recording: Of each signal, the number of the recording that it is in ``(signals,)``, ascending.
        center: Its centre frequency in Hz ``(signals,)``, float64.
        bandwidth: Its bandwidth in Hz ``(signals,)``, float64.
        power_db: Its mean power ``(signals,)``, before fading.
        modulation: Number of its modulation in ``MODULATIONS`` ``(signals,)``.
    """

    iq: Tensor
    mask: Tensor
    snr_db: Tensor
    channel: Tensor
    recording: Tensor
    center: Tensor
    bandwidth: Tensor
    power_db: Tensor
    modulation: Tensor

    def __len__(self) -> int:
        return len(self.iq)

    def divide(self, *sizes: int) -> Iterator[Self]:
        """Parts of so many recordings, one after the other.

        Raises:
            InputError: If the parts are more than all.
        """
        if sum(sizes) > len(self):
            checks.fail(f"parts must be at most {len(self)} recordings together", sum(sizes))
        edges = torch.tensor([0, *sizes]).cumsum(0)
        # signals are in the order of their recordings
        places = torch.searchsorted(self.recording, edges).tolist()
        for start, stop, first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), places, places[1:], strict=False):
            mine, signals = slice(start, stop), slice(first, end)
            yield type(self)(
                self.iq[mine],
                self.mask[mine],
                self.snr_db[mine],
                self.channel[mine],
                self.recording[signals] - start,
                self.center[signals],
                self.bandwidth[signals],
                self.power_db[signals],
                self.modulation[signals],
            )


@dataclass(frozen=True)
class WidebandIQ:
    r"""Draws recordings of several signals in one wide band.

    .. math:: x(t) = \sum_k \sqrt{P_k} \sum_p g_{kp}(t) \, s_k(t - d_p) \, e^{2 \pi i f_k t} + n(t)

    Bandwidths, powers, modulations are uniform over the given values; carriers f_k uniform over all placements in
    which bands keep the guard between them, half of it to the edges. Noise n is white, its power is that of the weakest
    signal (before fading) less the SNR. The gains g of a fading channel have mean power 1 over all paths: Gaussian
    (Rayleigh), with a steady part on the first path (Rician), or 1 (AWGN). They change in time after Clarke and Jakes.
    A bin belongs to the mask from ⌊(f_k − b_k/2) N/f_s⌋ to ⌈(f_k + b_k/2) N/f_s⌉, both included.

    Args:
        fft_size: N, bins of the mask.
        samples: Length of a recording; ``fft_size`` if not given.
        sample_rate: f_s in Hz.
        signals: Least and largest number of signals.
        bandwidths: b, in Hz.
        powers_db: Lowest and highest power.
        modulations: Of ``MODULATIONS``.
        snr_db: Levels of the SNR.
        channels: Of ``CHANNELS``.
        guard: Room between bands, in Hz.
        roll_off: Of the root-raised-cosine pulses.
        span: Symbols that a pulse lasts.
        path_delays: d, in seconds, rounded to samples.
        path_gains_db: Mean power of the paths.
        doppler: Largest Doppler shift in Hz.
        rician_k: Power of the steady part over that of the rest of the first path.

    Raises:
        InputError: If a value is out of range or unknown, or if so many signals cannot fit the band.

    Source:
        The data of arXiv:2506.11048. Channel profile, Doppler shift and the bandwidths of GMSK and 2-FSK are ours.

    Example:
        >>> radio = WidebandIQ(fft_size=1024)
        >>> found = radio.draw(8, generator=torch.Generator().manual_seed(0))
        >>> found.iq.shape, found.iq.dtype, found.mask.shape
        (torch.Size([8, 1024]), torch.complex64, torch.Size([8, 1024]))
    """

    fft_size: int = 16384
    samples: int | None = None
    sample_rate: float = 20e6
    signals: tuple[int, int] = (1, 10)
    bandwidths: tuple[float, ...] = (0.1e6, 0.2e6, 0.5e6, 1e6, 2e6)
    powers_db: tuple[float, float] = (0.0, 20.0)
    modulations: tuple[str, ...] = MODULATIONS
    snr_db: tuple[float, ...] = (-20.0, -15.0, -10.0, -5.0, 0.0, 5.0, 10.0)
    channels: tuple[str, ...] = CHANNELS
    guard: float = 0.1e6
    roll_off: float = 0.35
    span: int = 10
    path_delays: tuple[float, ...] = (0.0, 1e-7, 3e-7)
    path_gains_db: tuple[float, ...] = (0.0, -3.0, -6.0)
    doppler: float = 100.0
    rician_k: float = 3.0

    def __post_init__(self) -> None:
        checks.at_least("fft_size", self.fft_size, 1)
        checks.at_least("samples", self.length, self.fft_size)
        checks.positive("sample_rate", self.sample_rate)
        checks.between("roll_off", self.roll_off, 0, 1)
        checks.at_least("span", self.span, 1)
        checks.at_least("doppler", self.doppler, 0)
        checks.at_least("rician_k", self.rician_k, 0)
        checks.at_least("guard", self.guard, 0)
        for name in ("bandwidths", "snr_db", "modulations", "channels", "path_delays"):
            if not getattr(self, name):
                checks.fail(f"{name} must name at least one", "none")
        for bandwidth in self.bandwidths:
            checks.between("bandwidth", bandwidth, 0, self.sample_rate, open_low=True)
        for name in self.modulations:
            checks.known("modulation", name, MODULATIONS)
        for name in self.channels:
            checks.known("channel", name, CHANNELS)
        if not 1 <= self.signals[0] <= self.signals[1]:
            checks.fail("signals must be a least and a largest number, 1 or more", self.signals)
        if not self.powers_db[0] <= self.powers_db[1]:
            checks.fail("powers_db must be the lowest and the highest power", self.powers_db)
        if len(self.path_gains_db) != len(self.path_delays) or min(self.path_delays) < 0:
            checks.fail(
                f"path_delays must be 0 or more, as many as path_gains_db ({len(self.path_gains_db)})", self.path_delays
            )
        if self.signals[1] * (min(self.bandwidths) + self.guard) > self.sample_rate:
            checks.fail(
                f"signals must be few enough to fit {self.sample_rate:g} Hz with a guard of {self.guard:g} Hz",
                f"{self.signals[1]} of at least {min(self.bandwidths):g} Hz",
            )

    @property
    def length(self) -> int:
        """Samples of a recording."""
        return self.fft_size if self.samples is None else self.samples

    def draw(self, recordings: int, *, generator: torch.Generator | None = None) -> Recordings:
        """Draw independent recordings.

        Args:
            recordings: How many.
            generator: Source of randomness.

        Raises:
            InputError: If there is to be none, or if bandwidths and numbers of signals almost never fit the band.
        """
        checks.at_least("recordings", recordings, 1)
        number, widths = self._numbers_and_bandwidths(recordings, generator)
        recording = torch.arange(recordings).repeat_interleave(number)
        active = torch.arange(widths.shape[1]) < number[:, None]
        center, bandwidth = self._centers(widths, active, generator)[active], widths[active]
        low, high = self.powers_db
        power_db = low + (high - low) * torch.rand(len(recording), generator=generator, dtype=torch.float64)
        modulation = torch.tensor([MODULATIONS.index(name) for name in self.modulations])
        modulation = _choose(modulation, len(recording), generator)
        channel = _choose(torch.tensor([CHANNELS.index(name) for name in self.channels]), recordings, generator)
        snr_db = _choose(torch.tensor(self.snr_db, dtype=torch.float64), recordings, generator)
        weakest = torch.full((recordings,), math.inf, dtype=torch.float64)
        weakest = weakest.scatter_reduce(0, recording, power_db, "amin")

        iq = torch.randn(recordings, self.length, dtype=torch.complex64, generator=generator)
        iq *= (10 ** ((weakest - snr_db) / 20)).float()[:, None]
        for rows in torch.split(torch.arange(len(recording)), max(1, _ROWS // self.length)):
            signal = self._signals(bandwidth[rows], modulation[rows], channel[recording[rows]], generator)
            turns = torch.arange(self.length, dtype=torch.float64) * (center[rows, None] / self.sample_rate)
            angle = ((turns - turns.round()) * (2 * math.pi)).float()
            amplitude = (10 ** (power_db[rows] / 20)).float()[:, None]
            iq.index_add_(0, recording[rows], signal * torch.polar(amplitude.expand_as(angle), angle))
        mask = self.occupied_bins(recordings, recording, center, bandwidth)
        return Recordings(iq, mask, snr_db.float(), channel, recording, center, bandwidth, power_db.float(), modulation)

    def occupied_bins(self, recordings: int, recording: Tensor, center: Tensor, bandwidth: Tensor) -> Tensor:
        """The bins of the bands around ``center``, each in its ``recording``: ``(recordings, fft_size)``."""
        bins = self.fft_size / self.sample_rate
        first = ((center - bandwidth / 2) * bins).floor().long() + self.fft_size // 2
        last = ((center + bandwidth / 2) * bins).ceil().long() + self.fft_size // 2
        first, last = first.clamp(0, self.fft_size - 1), last.clamp(0, self.fft_size - 1)
        steps = torch.zeros(recordings, self.fft_size + 1, dtype=torch.int32)
        one = torch.ones_like(recording, dtype=torch.int32)
        steps.index_put_((recording, first), one, accumulate=True)
        steps.index_put_((recording, last + 1), -one, accumulate=True)
        return steps.cumsum(1)[:, :-1] > 0

    def _numbers_and_bandwidths(self, recordings: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Numbers of signals ``(recordings,)``, bandwidths ``(recordings, most)``; what does not fit is drawn anew."""
        least, most = self.signals
        number = torch.zeros(recordings, dtype=torch.long)
        widths = torch.zeros(recordings, most, dtype=torch.float64)
        open_ones = torch.arange(recordings)
        for _ in range(_TRIES):
            number[open_ones] = torch.randint(least, most + 1, (len(open_ones),), generator=generator)
            drawn = _choose(torch.tensor(self.bandwidths, dtype=torch.float64), len(open_ones) * most, generator)
            widths[open_ones] = drawn.view(-1, most)
            active = torch.arange(most) < number[:, None]
            needed = ((widths + self.guard) * active).sum(1)
            open_ones = (needed > self.sample_rate).nonzero().flatten()
            if len(open_ones) == 0:
                return number, widths
        raise checks.InputError(
            f"signals and bandwidths must fit {self.sample_rate:g} Hz more often than once in {_TRIES} draws, got "
            f"{self.signals} signals of {self.bandwidths} Hz"
        )

    def _centers(self, widths: Tensor, active: Tensor, generator: torch.Generator | None) -> Tensor:
        """Carriers ``(recordings, most)``: the room that is left over is divided at sorted uniform points."""
        rooms = (widths + self.guard) * active
        left_over = self.sample_rate - rooms.sum(1, keepdim=True)
        points = torch.rand(active.shape, generator=generator, dtype=torch.float64)
        points = points.masked_fill(~active, 1.0).sort(1).values * left_over
        return points + rooms.cumsum(1) - rooms / 2 - self.sample_rate / 2

    def _signals(
        self, bandwidth: Tensor, modulation: Tensor, channel: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """Signals at baseband behind their channels ``(signals, length)``."""
        delays = [round(delay * self.sample_rate) for delay in self.path_delays]
        margin = max(delays)
        sent = torch.empty(len(bandwidth), margin + self.length, dtype=torch.complex64)
        for kind, width in sorted(set(zip(modulation.tolist(), bandwidth.tolist(), strict=True))):
            rows = ((modulation == kind) & (bandwidth == width)).nonzero().flatten()
            sent[rows] = waveforms(
                MODULATIONS[kind],
                len(rows),
                sent.shape[1],
                width / self.sample_rate,
                roll_off=self.roll_off,
                span=self.span,
                generator=generator,
            )
        received = sent[:, margin:].clone()
        rows = (channel != CHANNELS.index("awgn")).nonzero().flatten()
        if len(rows):
            steady = torch.where(channel[rows] == CHANNELS.index("rician"), self.rician_k, 0.0)
            faded = torch.zeros(len(rows), self.length, dtype=torch.complex64)
            gains = 10 ** (torch.tensor(self.path_gains_db) / 10)
            for path, (delay, gain) in enumerate(zip(delays, (gains / gains.sum()).sqrt(), strict=True)):
                fading = self._fading(steady if path == 0 else torch.zeros_like(steady), generator)
                faded.addcmul_(fading * gain, sent[rows, margin - delay : margin - delay + self.length])
            received[rows] = faded
        return received

    def _fading(self, steady: Tensor, generator: torch.Generator | None) -> Tensor:
        """Gains of one path for each signal over time ``(signals, length)``, of mean power 1.

        Sinusoids with the Doppler shifts of random angles, evaluated at 32 points a period and interpolated.
        """
        duration = self.length / self.sample_rate
        knots = 2 + math.ceil(32 * self.doppler * duration)
        time = torch.linspace(0, duration, knots)
        angle = torch.rand(len(steady), _WAVES + 1, 1, generator=generator) * (2 * math.pi)
        phase = torch.rand(len(steady), _WAVES + 1, 1, generator=generator) * (2 * math.pi)
        # Gaussian weights make every path exactly Rayleigh, however few its sinusoids are
        weight = torch.randn(len(steady), _WAVES, 1, dtype=torch.complex64, generator=generator) / math.sqrt(_WAVES)
        wave = torch.polar(torch.ones(()), 2 * math.pi * self.doppler * angle.cos() * time + phase)
        ratio = steady[:, None]
        gain = (wave[:, 0] * ratio.sqrt() + (weight * wave[:, 1:]).sum(1)) * (1 + ratio).rsqrt()
        parts = functional.interpolate(torch.view_as_real(gain).mT, self.length, mode="linear", align_corners=True)
        return torch.complex(parts[:, 0], parts[:, 1])


def _choose(values: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    """Independent uniform choices."""
    return values[torch.randint(len(values), (number,), generator=generator)]


__all__ = ["CHANNELS", "MODULATIONS", "Recordings", "WidebandIQ"]
