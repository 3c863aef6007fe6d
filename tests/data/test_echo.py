"""Tests of ``netwright.data.echo``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import wavfile

from netwright.data.echo import EchoScenes, echo_scenes, level, speech_like, spoken_digits


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def decibels(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 20 * (level(a) / level(b)).log10()[:, 0]


@given(seed=st.integers(0, 100), low=st.integers(0, 30), span=st.integers(0, 20))
def test_scene_keeps_what_it_was_asked_for(seed: int, low: int, span: int) -> None:
    near, far = torch.randn(2, 3, 900, generator=seeded(seed), dtype=torch.float64)
    ranges = {"delay_ms": (low, low + span), "ser_db": (-5.0, 10.0), "snr_db": (5.0, 20.0)}
    scene = echo_scenes(near, far, 4000, generator=seeded(seed), **ranges)
    torch.testing.assert_close(scene.mic, scene.near + scene.noise + scene.echo)
    torch.testing.assert_close(scene.echo_free, scene.near + scene.noise)
    assert ((decibels(scene.near, scene.echo) > -5.01) & (decibels(scene.near, scene.echo) < 10.01)).all()
    assert ((decibels(scene.near, scene.noise) > 4.99) & (decibels(scene.near, scene.noise) < 20.01)).all()
    assert ((scene.delay >= 4 * low) & (scene.delay <= 4 * (low + span))).all()
    for echo, delay in zip(scene.echo, scene.delay, strict=True):  # nothing is heard before the delay is over
        assert echo[: int(delay)].abs().max().item() == 0 if delay > 0 else True
        assert echo[int(delay)].item() != 0


def test_echo_is_the_clipped_loopback_through_a_room() -> None:
    near, far = torch.randn(2, 1, 400, generator=seeded(), dtype=torch.float64)
    scene = echo_scenes(near, far, 4000, delay_ms=(5, 5), taps=(1, 1), drive=(1.5, 1.5), generator=seeded())
    played = torch.tanh(1.5 * far / level(far)) / 1.5
    late = torch.cat([torch.zeros(1, 20, dtype=torch.float64), played[:, :-20]], 1)
    torch.testing.assert_close(scene.echo / level(scene.echo), late / level(late))
    linear = echo_scenes(near, far, 4000, delay_ms=(0, 0), taps=(1, 1), drive=(0, 0), generator=seeded())
    torch.testing.assert_close(linear.echo / level(linear.echo), far / level(far))


def test_who_speaks() -> None:
    near, far = speech_like(8, 4000, 4000, generator=seeded()).chunk(2)
    nobody_far = echo_scenes(near, far, 4000, talk="near", generator=seeded())
    assert not nobody_far.loopback.any()
    assert not nobody_far.echo.any()
    nobody_near = echo_scenes(near, far, 4000, talk="far", generator=seeded())
    assert not nobody_near.near.any()
    both = echo_scenes(near, far, 4000, generator=seeded())
    torch.testing.assert_close(nobody_near.echo, both.echo)
    torch.testing.assert_close(nobody_far.near, both.near)
    together = EchoScenes.cat([both, nobody_far, nobody_near]).normalised()
    assert len(together) == 12
    torch.testing.assert_close(together.mic, together.near + together.noise + together.echo, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(level(together.mic), torch.ones(12, 1))
    assert not together.loopback[4:8].any()
    assert together.mic.isfinite().all()


def test_speech_has_pauses_harmonics_and_nothing_above_half_the_rate() -> None:
    voice = speech_like(6, 8000, 4000, generator=seeded())
    torch.testing.assert_close(level(voice), torch.ones(6, 1))
    silent = (voice.abs() < 1e-4).float().mean(1)
    assert ((silent > 0.02) & (silent < 0.8)).all()
    assert torch.equal(voice, speech_like(6, 8000, 4000, generator=seeded()))
    # a comb: windows of 64 ms have energy at few of their frequencies
    spectrum = torch.fft.rfft(voice.unfold(1, 256, 256) * torch.hann_window(256)).abs().square()
    loud = spectrum[spectrum.sum(-1) > 1]
    share = loud.sort(-1, descending=True).values[:, :20].sum(-1) / loud.sum(-1)
    assert share.median() > 0.9
    assert not torch.isnan(speech_like(3, 50, 16000, generator=seeded())).any()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    place = tmp_path / "spoken-digits"
    place.mkdir()
    for name in ("ann", "bob", "cid"):
        for digit in range(2):
            wave = (3000 * rng.standard_normal(800 + 100 * digit)).astype(np.int16)
            wavfile.write(place / f"{digit}_{name}_0.wav", 8000, wave)
    return place


def test_recordings(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETWRIGHT_DATA", str(folder.parent))
    found = spoken_digits(8000)
    assert found.speakers == ("ann", "bob", "cid")
    assert found.length.tolist() == [800, 800, 800, 900, 900, 900]
    assert found.digit.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.recordings.shape == (6, 900)
    torch.testing.assert_close(level(found.recordings[3:]), torch.ones(3, 1))
    half = spoken_digits(4000, folder)
    assert half.length.tolist() == [400, 400, 400, 450, 450, 450]
    near, far = found.conversations(5, 4000, speakers=["ann", "cid"], generator=seeded())
    assert near.shape == far.shape == (5, 4000)
    torch.testing.assert_close(level(near), torch.ones(5, 1))
    again = found.conversations(5, 4000, speakers=["ann", "cid"], generator=seeded())
    assert torch.equal(near, again[0])
    assert not torch.equal(near, far)


def test_each_end_is_one_speaker(tmp_path: Path) -> None:
    """Speakers that say nothing but 1, 2 and 3 can be told apart in the mixture."""
    for number, name in enumerate(("ann", "bob", "cid"), 1):
        wavfile.write(tmp_path / f"0_{name}_0.wav", 8000, np.resize(np.int16([1000] * number + [-1000]), 400))
    found = spoken_digits(8000, tmp_path)
    near, far = found.conversations(20, 8000, generator=seeded())
    for a, b in zip(near, far, strict=True):
        periods = []
        for voice in (a, b):
            runs = (voice < 0).nonzero()[:, 0].diff()
            periods.append(int(runs.mode().values))
        assert periods[0] != periods[1]
        assert set(periods) <= {2, 3, 4}


def test_what_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 100)
    with pytest.raises(ValueError, match=r"far must have the shape of near \(2, 100\), got \(2, 99\)"):
        echo_scenes(x, x[:, :99], 4000)
    with pytest.raises(ValueError, match=r"near must have shape \(scenes, samples\), got shape \(100,\)"):
        echo_scenes(x[0], x[0], 4000)
    with pytest.raises(ValueError, match=r"unknown talk 'doubel'; did you mean 'double'"):
        echo_scenes(x, x, 4000, talk="doubel")  # type: ignore[arg-type]
    for name, bad in {"delay_ms": (-1, 3), "taps": (0, 4), "ser_db": (3, 1), "drive": (-1, 0)}.items():
        with pytest.raises(ValueError, match=rf"{name} must be a range \(low, high\), got"):
            echo_scenes(x, x, 4000, **{name: bad})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"voices must be at least 1, got 0"):
        speech_like(0, 100, 4000)
    found = spoken_digits(8000, folder)
    with pytest.raises(ValueError, match=r"unknown speaker 'anne'; did you mean 'ann'"):
        found.conversations(1, 100, speakers=["anne", "bob"])
    with pytest.raises(ValueError, match=r"number of speakers must be at least 2, got 1"):
        found.conversations(1, 100, speakers=["bob", "bob"])
    monkeypatch.setattr("netwright.data.echo.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("NETWRIGHT_DATA", str(tmp_path / "spoken-digits"))
    with pytest.raises(ValueError, match=r"NETWRIGHT_DATA \(which is .*free-spoken-digit-dataset"):
        spoken_digits()
    with pytest.raises(ValueError, match="no such folder"):
        spoken_digits(folder=tmp_path / "nothing")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"must have files such as 7_theo_3.wav, got none"):
        spoken_digits(folder=empty)
    (empty / "1_x_0.wav").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"1_x_0.wav cannot be read as a WAV file"):
        spoken_digits(folder=empty)
    wavfile.write(empty / "1_x_0.wav", 8000, np.zeros((10, 2), np.int16))
    with pytest.raises(ValueError, match=r"must have one channel of 16 bits"):
        spoken_digits(folder=empty)
    wavfile.write(empty / "1_x_0.wav", 8000, np.zeros(10, np.int16))
    (empty / "1_x_0.wav").rename(empty / "one_x_0.wav")
    with pytest.raises(ValueError, match=r"called like 7_theo_3.wav, got one_x_0.wav"):
        spoken_digits(folder=empty)
