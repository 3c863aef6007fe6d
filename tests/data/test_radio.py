"""Wideband recordings: what the truth says is what the spectrum shows."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.checks import InputError
from netwright.data._waveforms import rrc, waveforms
from netwright.data.radio import CHANNELS, MODULATIONS, WidebandIQ


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_numbers_of_the_paper() -> None:
    radio = WidebandIQ()
    assert (radio.fft_size, radio.sample_rate, radio.signals, radio.guard) == (16384, 20e6, (1, 10), 1e5)
    assert radio.bandwidths == (1e5, 2e5, 5e5, 1e6, 2e6)
    assert radio.powers_db == (0, 20)
    assert (min(radio.snr_db), max(radio.snr_db)) == (-20, 10)
    assert set(MODULATIONS) == {"qpsk", "bpsk", "8psk", "8qam", "16qam", "gmsk", "2fsk"}
    assert set(CHANNELS) == {"awgn", "rician", "rayleigh"}
    assert (radio.roll_off, radio.span) == (0.35, 10)


@pytest.mark.parametrize("modulation", MODULATIONS)
@pytest.mark.parametrize("bandwidth", [0.02, 1 / 13.5])
def test_a_waveform_stays_within_its_bandwidth(modulation: str, bandwidth: float) -> None:
    signal = waveforms(modulation, 16, 4096, bandwidth, generator=seeded())
    assert signal.shape == (16, 4096)
    torch.testing.assert_close(signal.abs().square().mean(1), torch.ones(16))
    power = torch.fft.fft(signal * torch.hann_window(4096)).abs().square().mean(0)
    inside = torch.fft.fftfreq(4096).abs() <= bandwidth / 2
    assert power[inside].sum() / power.sum() > 0.98
    # and fills it: half of the band would not do
    half = torch.fft.fftfreq(4096).abs() <= bandwidth / 5
    assert power[half].sum() / power.sum() < 0.95


@pytest.mark.parametrize("modulation", ["gmsk", "2fsk"])
def test_modulations_of_the_phase_have_one_modulus(modulation: str) -> None:
    signal = waveforms(modulation, 4, 1000, 0.05, generator=seeded())
    torch.testing.assert_close(signal.abs(), torch.ones(4, 1000))


def test_gmsk_turns_by_at_most_a_quarter_a_symbol_and_2fsk_by_a_half() -> None:
    for modulation, rate, most in (("gmsk", 0.05, math.pi / 2), ("2fsk", 0.025, math.pi)):
        signal = waveforms(modulation, 4, 4000, 0.05, generator=seeded())
        turn = (signal[:, 1:] * signal[:, :-1].conj()).angle().abs() / rate
        assert turn.max().item() == pytest.approx(most, rel=0.02)


def test_a_matched_filter_gives_the_symbols_back() -> None:
    # rate 1/8: eight samples a symbol; BPSK after the matched filter is ±1 at the symbol times
    signal = waveforms("bpsk", 1, 4096, 1.35 / 8, generator=seeded())[0]
    taps = rrc(torch.arange(-40, 41, dtype=torch.float64) / 8, 0.35).to(signal.dtype)
    matched = torch.nn.functional.conv1d(signal[None, None].real, taps.real[None, None])[0, 0]
    matched = torch.complex(matched, torch.nn.functional.conv1d(signal[None, None].imag, taps.real[None, None])[0, 0])
    spread = []
    for offset in range(8):
        modulus = matched[offset::8].abs()
        spread.append((modulus.std() / modulus.mean()).item())
    assert min(spread) < 0.03 < 10 * min(spread) < max(spread)


@given(st.floats(0, 1))
def test_pulses_have_unit_energy_and_no_interference(roll_off: float) -> None:
    time = torch.arange(-100 * 16, 100 * 16 + 1, dtype=torch.float64) / 16
    pulse = rrc(time, roll_off)
    assert pulse.isfinite().all()
    for symbols in (0, 1, 2, 5):
        together = (pulse * pulse.roll(16 * symbols))[16 * symbols :].sum() / 16
        assert together.item() == pytest.approx(float(symbols == 0), abs=4e-3)


def test_singular_places_of_the_pulse_are_limits() -> None:
    at = torch.tensor([0.0, 1 / (4 * 0.35)], dtype=torch.float64)
    torch.testing.assert_close(rrc(at, 0.35), rrc(at + 1e-6, 0.35), atol=1e-5, rtol=0)


def test_bands_keep_the_guard_and_stay_inside() -> None:
    found = WidebandIQ(fft_size=256, signals=(1, 10)).draw(300, generator=seeded())
    number = torch.bincount(found.recording, minlength=300)
    assert number.min() == 1
    assert number.max() == 10
    low, high = found.center - found.bandwidth / 2, found.center + found.bandwidth / 2
    assert low.min() >= -10e6 + 5e4 - 1e-3
    assert high.max() <= 10e6 - 5e4 + 1e-3
    same = found.recording[1:] == found.recording[:-1]
    assert (low[1:] - high[:-1])[same].min() >= 1e5 - 1e-3
    assert set(found.bandwidth.tolist()) == {1e5, 2e5, 5e5, 1e6, 2e6}
    assert set(found.modulation.tolist()) == set(range(7))
    assert set(found.channel.tolist()) == {0, 1, 2}
    assert found.power_db.min() >= 0
    assert found.power_db.max() <= 20
    # carriers are anywhere in the band
    assert torch.histc(found.center.float(), 10, -10e6, 10e6).min() > 0.03 * len(found.center)


def test_the_mask_covers_the_bands_and_nothing_else() -> None:
    radio = WidebandIQ(fft_size=1024)
    found = radio.draw(50, generator=seeded())
    frequency = (torch.arange(1024, dtype=torch.float64) - 512) * 20e6 / 1024
    expected = torch.zeros(50, 1024, dtype=torch.bool)
    for recording, center, width in zip(found.recording, found.center, found.bandwidth, strict=True):
        bins = ((center - width / 2) / 20e6 * 1024).floor(), ((center + width / 2) / 20e6 * 1024).ceil()
        expected[recording] |= (frequency / 20e6 * 1024 >= bins[0]) & (frequency / 20e6 * 1024 <= bins[1])
    assert torch.equal(found.mask, expected)


def test_edges_on_the_grid_are_inside_and_odd_sizes_are_centred() -> None:
    radio = WidebandIQ(fft_size=9, sample_rate=9.0, bandwidths=(2.0,), signals=(1, 1), guard=0)
    mask = radio.occupied_bins(1, torch.tensor([0]), torch.tensor([0.0]), torch.tensor([2.0]))
    assert mask[0].nonzero().flatten().tolist() == [3, 4, 5]


def test_energy_is_where_the_mask_is() -> None:
    radio = WidebandIQ(fft_size=4096, snr_db=(40.0,))
    found = radio.draw(60, generator=seeded())
    power = torch.fft.fftshift(torch.fft.fft(found.iq * torch.hann_window(4096)), dim=-1).abs().square()
    inside = (power * found.mask).sum(1) / power.sum(1)
    assert inside.median() > 0.98
    assert inside.min() > 0.8


@pytest.mark.parametrize("level", [-10.0, 5.0])
def test_snr_speaks_of_the_weakest_signal(level: float) -> None:
    options = {"fft_size": 4096, "channels": ("awgn",), "snr_db": (level,), "signals": (2, 4), "guard": 0.0}
    found = WidebandIQ(**options).draw(40, generator=seeded())
    weakest = torch.stack([found.power_db[found.recording == k].min() for k in range(40)])
    spectrum = torch.fft.fftshift(torch.fft.fft(found.iq), dim=-1).abs().square() / 4096
    free = ~torch.nn.functional.max_pool1d(found.mask.float(), 401, stride=1, padding=200).bool()
    quiet = torch.stack(
        [
            row[place].mean() if place.sum() > 500 else torch.tensor(math.nan)
            for row, place in zip(spectrum, free, strict=True)
        ]
    )
    # white noise has its power in every bin alike
    difference = 10 * quiet.log10() - (weakest - level)
    assert difference.isfinite().sum() > 20
    assert difference.nanmedian().abs() < 0.3
    total = found.iq.abs().square().mean(1)
    clean = torch.zeros(40).index_add_(0, found.recording, 10 ** (found.power_db / 10))
    torch.testing.assert_close(total, clean + 10 ** ((weakest - level) / 10), rtol=0.15, atol=0)


def test_fading_has_mean_power_one_and_its_distribution() -> None:
    radio = WidebandIQ(fft_size=256, doppler=0.0, rician_k=3.0)
    rayleigh = radio._fading(torch.zeros(20_000), seeded())[:, 0]
    rician = radio._fading(torch.full((20_000,), 3.0), seeded())[:, 0]
    for gains in (rayleigh, rician):
        assert gains.abs().square().mean().item() == pytest.approx(1, abs=0.03)
    # of Rayleigh's |g|² the variance is 1, of Rician's (1 + 2K) / (1 + K)²
    assert rayleigh.abs().square().var().item() == pytest.approx(1, abs=0.08)
    assert rician.abs().square().var().item() == pytest.approx(7 / 16, abs=0.05)


def test_doppler_moves_the_gain_and_its_absence_does_not() -> None:
    still = WidebandIQ(fft_size=1024, doppler=0.0)._fading(torch.zeros(4), seeded())
    torch.testing.assert_close(still, still[:, :1].expand(-1, 1024))
    # Clarke's autocorrelation is the Bessel function J0, whose first zero is at 2π f τ = 2.405
    radio = WidebandIQ(fft_size=1024, doppler=2.405 / (2 * math.pi) / (1023 / 20e6))
    gains = radio._fading(torch.zeros(4_000), seeded())
    assert (gains[:, 0].conj() * gains[:, -1]).mean().abs() < 0.06
    assert (gains[:, 0].conj() * gains[:, 256]).mean().real > 0.8


def test_several_paths_make_a_constant_modulus_vary() -> None:
    base = {"fft_size": 1024, "signals": (1, 1), "bandwidths": (2e6,), "snr_db": (60.0,), "modulations": ("gmsk",)}
    spread = []
    for delays, channel in (((0.0, 1e-6), "awgn"), ((0.0, 0.0), "rayleigh"), ((0.0, 1e-6), "rayleigh")):
        radio = WidebandIQ(**base, channels=(channel,), path_delays=delays, path_gains_db=(0.0, 0.0))
        modulus = radio.draw(20, generator=seeded()).iq.abs()
        spread.append((modulus.std(1) / modulus.mean(1)).median().item())
    assert spread[0] < 0.01
    assert spread[1] < 0.01
    assert spread[2] > 0.1


def test_draws_depend_on_the_generator_alone() -> None:
    radio = WidebandIQ(fft_size=256)
    state = torch.get_rng_state()
    first, second, other = (radio.draw(5, generator=seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.iq, second.iq)
    assert torch.equal(first.mask, second.mask)
    assert not torch.equal(first.iq, other.iq)
    assert torch.equal(torch.get_rng_state(), state)


def test_longer_recordings_and_parts() -> None:
    found = WidebandIQ(fft_size=256, samples=400).draw(10, generator=seeded())
    assert found.iq.shape == (10, 400)
    assert found.mask.shape == (10, 256)
    first, second = found.divide(7, 3)
    assert len(first) == 7
    assert len(second) == 3
    assert torch.equal(second.iq, found.iq[7:])
    assert torch.equal(second.snr_db, found.snr_db[7:])
    assert torch.equal(second.center, found.center[found.recording >= 7])
    assert torch.equal(second.recording, found.recording[found.recording >= 7] - 7)
    assert len(first.recording) + len(second.recording) == len(found.recording)
    with pytest.raises(InputError, match="at most 10 recordings together, got 11"):
        list(found.divide(7, 4))


def test_what_does_not_fit_is_drawn_anew() -> None:
    radio = WidebandIQ(fft_size=256, signals=(6, 6), bandwidths=(1e6, 5e6), guard=0.0)
    found = radio.draw(30, generator=seeded())
    total = torch.zeros(30, dtype=torch.float64).index_add_(0, found.recording, found.bandwidth)
    assert total.max() <= 20e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fft_size": 0}, "fft_size must be at least 1"),
        ({"samples": 100}, "samples must be at least 16384"),
        ({"sample_rate": 0.0}, "sample_rate must be positive"),
        ({"modulations": ("qpsc",)}, "unknown modulation 'qpsc'; did you mean 'qpsk'"),
        ({"channels": ("rice",)}, "unknown channel 'rice'"),
        ({"channels": ()}, "channels must name at least one"),
        ({"signals": (0, 3)}, "signals must be a least and a largest number"),
        ({"signals": (5, 3)}, "signals must be a least and a largest number"),
        ({"signals": (1, 200)}, "signals must be few enough to fit 2e\\+07 Hz with a guard of 100000 Hz, got 200"),
        ({"bandwidths": (3e7,)}, "bandwidth must be in"),
        ({"powers_db": (3.0, 1.0)}, "powers_db must be the lowest and the highest"),
        ({"roll_off": 1.5}, "roll_off must be in"),
        ({"path_delays": (0.0,)}, "path_delays must be 0 or more, as many as path_gains_db"),
        ({"path_delays": (0.0, -1e-7, 0.0)}, "path_delays must be 0 or more"),
        ({"doppler": -1.0}, "doppler must be at least 0"),
        ({"rician_k": -1.0}, "rician_k must be at least 0"),
        ({"guard": -1.0}, "guard must be at least 0"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WidebandIQ(**options)


def test_bad_draws() -> None:
    with pytest.raises(InputError, match="recordings must be at least 1"):
        WidebandIQ().draw(0)
    crowded = WidebandIQ(fft_size=256, signals=(10, 10), bandwidths=(1.9e6, 19e6))
    with pytest.raises(InputError, match="more often than once in 1000 draws"):
        crowded.draw(4, generator=seeded())
