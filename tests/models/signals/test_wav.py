"""Tests of ``netwright.models.signals.wav``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from netwright.models.signals.aec import ComplexMaskAEC
from netwright.models.signals.aec_files import save_aec
from netwright.models.signals.wav import cancel_echo, cancel_echo_wav, read_wav, write_wav

RATE = 4000


@pytest.fixture(scope="module")
def model() -> ComplexMaskAEC:
    torch.manual_seed(0)
    net = ComplexMaskAEC(32, 16, channels=3, growth=2, depth=2, num_d2=1, num_d3=2)
    with torch.no_grad():
        for parameter in net.heads.parameters():
            parameter.add_(torch.randn_like(parameter))  # so that the masks do something
    net(*torch.randn(2, 4, 1000))
    return net


@pytest.fixture
def files(model: ComplexMaskAEC, tmp_path: Path) -> Path:
    save_aec(model, tmp_path / "aec.safetensors", RATE)
    rng = np.random.default_rng(0)
    for name in ("mic", "loop"):
        wavfile.write(tmp_path / f"{name}.wav", RATE, (5000 * rng.standard_normal(6001)).astype(np.int16))
    return tmp_path


@pytest.mark.parametrize("piece", [1, 100, 1600, 3001])
def test_pieces_have_no_seams(model: ComplexMaskAEC, piece: int) -> None:
    samples = 150 if piece == 1 else 3001
    mic, loopback = 0.1 * torch.randn(2, 2, samples)
    whole = cancel_echo(model, mic, loopback, piece=samples)
    done: list[float] = []
    torch.testing.assert_close(
        cancel_echo(model, mic, loopback, piece=piece, observer=done.append), whole, atol=1e-6, rtol=1e-5
    )
    assert done[-1] == 1.0
    assert done == sorted(done)


def test_levels_do_not_matter_and_the_model_is_left_alone(model: ComplexMaskAEC) -> None:
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    mic, loopback = torch.randn(2, 1, 500)
    found = cancel_echo(model, mic, loopback)
    torch.testing.assert_close(cancel_echo(model, 0.01 * mic, 30 * loopback), 0.01 * found, atol=1e-6, rtol=1e-4)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert cancel_echo(model, torch.zeros(1, 50), torch.zeros(1, 50)).isfinite().all()


def test_file_in_file_out_is_the_function(files: Path, model: ComplexMaskAEC) -> None:
    done = cancel_echo_wav(files / "mic.wav", files / "loop.wav", files / "aec.safetensors", files / "out.wav")
    assert (done.sample_rate, done.model_rate, done.notes) == (RATE, RATE, ())
    assert done.seconds == 6001 / RATE
    rate, out = wavfile.read(files / "out.wav")
    signals = [
        torch.from_numpy(wavfile.read(files / f"{name}.wav")[1] / 2**15).float()[None] for name in ("mic", "loop")
    ]
    expected = cancel_echo(model, *signals)[0]
    assert (rate, out.dtype, out.shape) == (RATE, np.int16, (6001,))
    assert np.abs(out / 2**15 - expected.numpy().clip(-1, 1 - 2**-15)).max() <= 0.51 / 2**15
    power = 10 * (expected.square().mean() / signals[0].square().mean()).log10()
    assert done.level_change_db == pytest.approx(power.item(), abs=1e-3)


@pytest.mark.parametrize(("rate", "length"), [(8000, 12_001), (11_025, 16_540), (2000, 3000)])
def test_other_sample_rates_are_converted_there_and_back(files: Path, rate: int, length: int) -> None:
    t = np.arange(length) / rate
    wavfile.write(files / "mic.wav", rate, np.float32(0.3 * np.sin(2 * np.pi * 300 * t)))
    done = cancel_echo_wav(files / "mic.wav", files / "loop.wav", files / "aec.safetensors", files / "out.wav")
    new_rate, out = wavfile.read(files / "out.wav")
    assert (new_rate, out.dtype, len(out)) == (rate, np.float32, length)
    assert any("brought to the network's 4,000 Hz: nothing is left above 2,000 Hz" in note for note in done.notes)


def test_channels_and_lengths_that_differ(files: Path) -> None:
    _, loop = wavfile.read(files / "loop.wav")
    wavfile.write(files / "stereo.wav", RATE, np.stack([loop, loop], 1)[:5000])
    one = cancel_echo_wav(files / "mic.wav", files / "stereo.wav", files / "aec.safetensors", files / "out.wav")
    assert one.notes[0].endswith("the mean of 2 channels")
    assert "the loopback was 0.250 s shorter" in one.notes
    with_stereo = wavfile.read(files / "out.wav")[1]
    wavfile.write(files / "silent.wav", RATE, np.concatenate([loop[:5000], np.zeros(3000, np.int16)]))
    two = cancel_echo_wav(files / "mic.wav", files / "silent.wav", files / "aec.safetensors", files / "out.wav")
    assert two.notes == ("the loopback was 0.500 s longer",)
    assert np.array_equal(wavfile.read(files / "out.wav")[1], with_stereo)


@pytest.mark.parametrize(
    ("dtype", "back"), [("uint8", "int16"), ("int16", "int16"), ("int32", "int32"), ("float64", "float32")]
)
def test_formats(tmp_path: Path, dtype: str, back: str) -> None:
    x = np.array([0.0, 0.5, -0.5, -1.0])
    scale = {"uint8": 128, "int16": 2**15, "int32": 2**31, "float64": 1}[dtype]
    stored = (x * scale + (128 if dtype == "uint8" else 0)).astype(dtype)
    wavfile.write(tmp_path / "x.wav", 8000, stored)
    rate, read, kind = read_wav(tmp_path / "x.wav")
    assert rate == 8000
    np.testing.assert_allclose(read[:, 0], x)
    write_wav(tmp_path / "y.wav", rate, np.array([0.0, 0.5, 3.0, -3.0]), kind)
    _, written = wavfile.read(tmp_path / "y.wav")
    assert written.dtype == back
    limits = [3.0, -3.0] if back == "float32" else [np.iinfo(back).max, np.iinfo(back).min]
    assert written.tolist()[2:] == limits


def test_what_is_refused(files: Path) -> None:
    mic, loop, weights, out = (files / name for name in ("mic.wav", "loop.wav", "aec.safetensors", "out.wav"))

    def refused(message: str, *, mic: Path = mic, loop: Path = loop, weights: Path = weights, out: Path = out) -> None:
        with pytest.raises(ValueError, match=message):
            cancel_echo_wav(mic, loop, weights, out)

    kept = mic.read_bytes()
    for target, name in ((mic, "microphone"), (loop, "loopback"), (weights, "weights")):
        refused(rf"is the {name} file; write to another", out=target)
    assert mic.read_bytes() == kept
    refused("no such file: .*nothing.wav", mic=files / "nothing.wav")
    refused("weights file .* does not exist", weights=files / "nothing.safetensors")
    (files / "bad.wav").write_bytes(b"RIFF nonsense")
    refused(r"bad.wav cannot be read as a WAV file", loop=files / "bad.wav")
    wavfile.write(files / "bad.wav", RATE, np.zeros(0, np.int16))
    refused(r"bad.wav must have samples, got 0", mic=files / "bad.wav")
    wavfile.write(files / "bad.wav", RATE, np.float32([0, np.nan]))
    refused(r"samples of .*bad.wav must be finite", mic=files / "bad.wav")
    wavfile.write(files / "bad.wav", RATE, np.zeros(12_000, np.int16))
    refused(r"must be as long as .*mic.wav \(1.50 s\), to a second, got 3.00 s", loop=files / "bad.wav")
    refused(r"cannot write .*: No such file", out=files / "no" / "folder.wav")


def test_bad_signals(model: ComplexMaskAEC) -> None:
    with pytest.raises(ValueError, match=r"loopback must have the shape of mic \(1, 10\), got \(1, 9\)"):
        cancel_echo(model, torch.zeros(1, 10), torch.zeros(1, 9))
    with pytest.raises(ValueError, match=r"number of samples must be at least 1, got 0"):
        cancel_echo(model, torch.zeros(1, 0), torch.zeros(1, 0))
    with pytest.raises(ValueError, match=r"mic must have shape \(batch, samples\)"):
        cancel_echo(model, torch.zeros(10), torch.zeros(10))
    with pytest.raises(ValueError, match=r"piece must be at least 1, got 0"):
        cancel_echo(model, torch.zeros(1, 10), torch.zeros(1, 10), piece=0)
