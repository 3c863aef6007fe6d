"""Tests of ``netwright.models.signals.aec`` and its files."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import signal
from torch import nn
from torch.autograd import gradcheck

from netwright.analysis.speech import si_sdr
from netwright.cost import count_params
from netwright.layers.pseudo_complex import pair_product
from netwright.models.signals.aec import ComplexMaskAEC, STFTPair
from netwright.models.signals.aec_files import load_aec, save_aec

DOUBLE = torch.float64
SMALL = {"n_fft": 32, "hop": 16, "channels": 3, "growth": 2, "depth": 2, "num_d2": 2, "num_d3": 1}


@given(samples=st.integers(1, 300), half=st.integers(1, 40), data=st.data())
def test_round_trip_is_exact_for_every_length(samples: int, half: int, data: st.DataObject) -> None:
    stft = STFTPair(2 * half, data.draw(st.integers(1, 2 * half)), dtype=DOUBLE)
    x = torch.randn(2, samples, dtype=DOUBLE)
    spectrum = stft(x)
    assert spectrum.shape == (2, 2, half + 1, stft.frames(samples))
    torch.testing.assert_close(stft.inverse(spectrum, samples), x, atol=1e-9, rtol=0)


def test_spectrum_is_torchs_and_scipys() -> None:
    stft, x = STFTPair(128, 32, dtype=DOUBLE), torch.randn(2, 640, dtype=DOUBLE)
    window = torch.sin(math.pi * (torch.arange(128, dtype=DOUBLE) + 0.5) / 128)
    padded = nn.functional.pad(x, (96, 127))
    z = torch.complex(*stft(x).unbind(1))
    torchs = torch.stft(padded, 128, 32, window=window, center=False, return_complex=True) / math.sqrt(128)
    torch.testing.assert_close(z, torchs)
    options = {"nperseg": 128, "noverlap": 96, "boundary": None, "padded": False}
    _, _, scipys = signal.stft(padded.numpy(), window=window.numpy(), **options)
    torch.testing.assert_close(z, torch.from_numpy(scipys) * window.sum() / math.sqrt(128))


def test_half_overlap_keeps_the_energy() -> None:
    """Orthonormal: with sine windows and half overlap the inverse is the adjoint."""
    stft = STFTPair(64, 32, dtype=DOUBLE)
    x, y = torch.randn(2, 1, 500, dtype=DOUBLE)
    a, b = stft(x), stft(y)
    twice = torch.full((33, 1), 2.0, dtype=DOUBLE)
    twice[0] = twice[-1] = 1
    torch.testing.assert_close((a * b * twice).sum(), (x * y).sum())


def test_complex_mask_undoes_a_delay_as_magnitudes_cannot() -> None:
    """A delay is a phase ramp exp(-i omega tau)."""
    stft, tau = STFTPair(512, 128, dtype=DOUBLE), 6
    x = torch.randn(1, 8000, dtype=DOUBLE)
    late = torch.cat([torch.zeros(1, tau, dtype=DOUBLE), x[:, :-tau]], 1)
    angle = 2 * math.pi * torch.arange(257, dtype=DOUBLE) / 512 * tau
    ramp = torch.stack([angle.cos(), angle.sin()])[None, None, :, :, None]
    undone = stft.inverse(pair_product(ramp, stft(late)[:, None])[:, 0], 8000)
    assert si_sdr(undone, x) > 20
    assert si_sdr(late, x) < 0
    ideal = stft(x).square().sum(1, keepdim=True).sqrt() / stft(late).square().sum(1, keepdim=True).sqrt()
    assert si_sdr(stft.inverse(ideal.clamp_max(2) * stft(late), 8000), x) < 0


def test_size_of_the_paper() -> None:
    """354K parameters, to 5 %; the defaults' choice is the docstring's. On meta."""
    with torch.device("meta"):
        count = count_params(ComplexMaskAEC())
    assert count == 356_070
    assert abs(count / 354_000 - 1) < 0.05


def test_single_dilation_has_as_many_parameters_and_sees_less() -> None:
    many, one = (ComplexMaskAEC(**SMALL, dilations=dilations) for dilations in (None, [1, 1]))
    assert count_params(many) == count_params(one)
    assert many.context > one.context


@pytest.mark.parametrize("mask", ["complex", "magnitude"])
@pytest.mark.parametrize("dual", ["serial", "parallel", False])
def test_masks_are_applied_as_said(mask: str, dual: str | bool) -> None:
    model = ComplexMaskAEC(**SMALL, dual_mask=dual, mask=mask, dtype=DOUBLE).eval()
    nn.init.normal_(model.heads[-1].real.weight if mask == "complex" else model.heads[-1].weight, std=3)
    mic, loopback = torch.randn(2, 3, 301, dtype=DOUBLE)
    enhanced, extra = model(mic, loopback)
    m, Y = torch.complex(*extra.masks.unbind(2)), torch.complex(*model.stft(mic).unbind(1))
    assert m.shape == (3, 2 if dual else 1, 17, model.stft.frames(301))
    assert (m.abs() <= 2 + 1e-9).all()
    assert m.abs().max() > 1.2
    if mask == "magnitude":
        assert not m.imag.any()
        assert (m.real >= 0).all()
    first = m[:, 0] * Y
    last = {"serial": m[:, -1] * first, "parallel": m[:, -1] * Y, False: first}[dual]
    for found, spectrum in ((extra.echo_free, first), (enhanced, last)):
        again = model.stft.inverse(torch.stack([spectrum.real, spectrum.imag], 1), 301)
        torch.testing.assert_close(found, again)
    # the answer depends on the loopback, and on nothing else in the batch
    assert not torch.allclose(model(mic, loopback.flip(1))[0], enhanced)
    torch.testing.assert_close(model(mic[1:2], loopback[1:2])[0], enhanced[1:2])


def test_starts_by_passing_the_microphone_on() -> None:
    for mask in ("complex", "magnitude"):
        model = ComplexMaskAEC(**SMALL, mask=mask).train()
        nn.init.zeros_(model.heads[-1].real.weight if mask == "complex" else model.heads[-1].weight)
        if mask == "complex":
            nn.init.zeros_(model.heads[-1].imag.weight)
        mic = torch.randn(2, 200)
        torch.testing.assert_close(model(mic, torch.randn(2, 200))[0], mic, atol=1e-4, rtol=1e-4)


def test_true_means_serial_and_silence_is_finite() -> None:
    model = ComplexMaskAEC(**SMALL, dual_mask=True)
    assert model.settings["dual_mask"] == "serial"
    mic = torch.zeros(2, 100, requires_grad=True)
    enhanced, _ = model(mic, torch.zeros(2, 100))
    enhanced.sum().backward()
    assert enhanced.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_answer_depends_on_no_more_than_the_context() -> None:
    model = ComplexMaskAEC(**SMALL, dtype=DOUBLE).eval()
    mic, loopback = torch.randn(2, 1, 1200, dtype=DOUBLE)
    changed = mic.clone()
    changed[:, 600] += 10
    far = (model(mic, loopback)[0] - model(changed, loopback)[0])[0].abs() > 1e-12
    touched = far.nonzero()[:, 0]
    assert 600 - model.context <= int(touched.min())
    assert int(touched.max()) <= 600 + model.context
    assert int(touched.max()) > 600 + model.context // 2


def test_gradients_in_double_precision() -> None:
    model = ComplexMaskAEC(8, 4, channels=1, growth=1, depth=2, num_d2=1, num_d3=1, dtype=DOUBLE).eval()
    x, r = torch.randn(2, 1, 9, dtype=DOUBLE, requires_grad=True).unbind(0)
    assert gradcheck(lambda x, r: model(x, r)[0], (x, r), fast_mode=True)
    model(x, r)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_autocast_leaves_the_spectrum_alone_and_one_graph() -> None:
    model, signals = ComplexMaskAEC(**SMALL).eval(), torch.randn(2, 2, 200)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.stft(signals[0]).dtype == torch.float32
        half = model(*signals)[0]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, model(*signals)[0], atol=0.2, rtol=0.2)
    tiny = ComplexMaskAEC(8, 4, channels=1, growth=1, depth=1, num_d2=1, num_d3=1).eval()
    compiled = torch.compile(tiny, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*signals)[0], tiny(*signals)[0])


def test_file_keeps_weights_settings_and_rate(tmp_path: Path) -> None:
    for dtype in (torch.float32, DOUBLE):
        options = {**SMALL, "growth": [2, 3], "dual_mask": "parallel", "dilations": [1, 3], "dtype": dtype}
        model = ComplexMaskAEC(**options)
        signals = torch.randn(2, 2, 200, dtype=dtype)
        model(*signals)  # so that the running statistics are not the first ones
        save_aec(model, tmp_path / "aec.safetensors", 8000)
        again, rate = load_aec(tmp_path / "aec.safetensors")
        assert rate == 8000
        assert again.settings == model.settings
        assert torch.equal(again(*signals)[0], model.eval()(*signals)[0])


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "aec.safetensors"
    with pytest.raises(ValueError, match="does not exist"):
        load_aec(path)
    path.write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_aec(path)
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"must be one that .*save_aec wrote"):
        load_aec(path)
    model = ComplexMaskAEC(**SMALL)
    state = model.state_dict()

    def written(settings: object, rate: str = "8000", **change: torch.Tensor) -> Path:
        about = {"model": "ComplexMaskAEC", "settings": json.dumps(settings), "sample_rate": rate}
        save_file({**state, **change}, path, about)
        return path

    for settings, message in (
        ({**model.settings, "num_d3": 10**9}, r"num_d3 must be a whole number up to 64"),
        ({**model.settings, "channels": 10**9}, r"channels must be a whole number up to 65536"),
        ({**model.settings, "n_fft": 4}, r"n_fft must be at least hop"),
        ({**model.settings, "extra": 4}, r"unexpected keyword"),
        ({"n_fft": 4}, r"'depth'"),
        ([1], r"settings of no echo canceller"),
    ):
        with pytest.raises(ValueError, match=message):
            load_aec(written(settings))
    with pytest.raises(ValueError, match=r"settings of no echo canceller"):
        load_aec(written(model.settings, rate="fast"))
    with pytest.raises(ValueError, match=r"its weights are not those of its settings"):
        load_aec(written({**model.settings, "channels": 5000}))
    with pytest.raises(ValueError, match=r"its weights are not those of its settings"):
        load_aec(written(model.settings, extra=torch.zeros(3)))
    assert set(load_file(written(model.settings))) == set(state)


def test_what_is_refused() -> None:
    model, x = ComplexMaskAEC(**SMALL), torch.randn(2, 100)
    with pytest.raises(ValueError, match=r"loopback must have the shape of mic \(2, 100\), got \(2, 99\)"):
        model(x, x[:, :99])
    with pytest.raises(ValueError, match=r"loopback must have the shape of mic \(2, 100\), got \(1, 100\)"):
        model(x, x[:1])
    with pytest.raises(ValueError, match=r"mic must have shape \(batch, samples\), got shape \(100,\)"):
        model(x[0], x[0])
    with pytest.raises(ValueError, match=r"signal must be of a floating-point type, got torch.complex64"):
        model(x.to(torch.complex64), x)
    for make in (lambda: STFTPair(64, 128), lambda: ComplexMaskAEC(64, 128)):
        with pytest.raises(ValueError, match=r"n_fft must be at least hop = 128.*got 64"):
            make()
    with pytest.raises(ValueError, match=r"n_fft must be divisible by 2"):
        STFTPair(65, 32)
    with pytest.raises(ValueError, match=r"hop must be at least 1, got 0"):
        STFTPair(64, 0)
    with pytest.raises(ValueError, match=r"unknown dual_mask 'seriel'; did you mean 'serial'"):
        ComplexMaskAEC(dual_mask="seriel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown mask 'real'"):
        ComplexMaskAEC(mask="real")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"growth must be .* \(4\), got \[2, 2\]"):
        ComplexMaskAEC(growth=[2, 2])
    stft = STFTPair(64, 32)
    with pytest.raises(ValueError, match=r"signal must be of a floating-point type, got torch.int64"):
        stft(torch.ones(1, 10, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"dimension 3 of spectrum must have size 5, got shape \(2, 2, 33, 4\)"):
        stft.inverse(stft(x)[..., :4], 100)
    with pytest.raises(ValueError, match=r"dimension 2 of spectrum must have size 33"):
        stft.inverse(stft(x)[:, :, :4], 100)
    with pytest.raises(ValueError, match=r"sample_rate must be at least 1"):
        save_aec(model, "never.safetensors", 0)
