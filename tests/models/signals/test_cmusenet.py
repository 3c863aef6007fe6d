"""CMuSeNet: its counts, its spectrum, its twin, and the same answers in real numbers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from netwright.checks import InputError
from netwright.cost import count_params
from netwright.data.radio import WidebandIQ
from netwright.models.signals.cmusenet import (
    CMuSeNet,
    IQPreprocess,
    RVMuSeNet,
    energy_detector,
    sigmoid_of_parts,
)
from netwright.models.signals.real_pairs import RealPairsSpectrum, export_onnx, to_real_pairs
from netwright.training.losses.complex_focal import ComplexFocalLoss


def noise(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


def small(in_channels: int = 1) -> CMuSeNet:
    """A network whose statistics and weights are no longer those of the start."""
    model = CMuSeNet(fft_size=256, width=4, in_channels=in_channels)
    for parameter in model.parameters():
        nn.init.normal_(parameter, parameter.detach().mean().item(), 0.2)
    shape = (16, 256) if in_channels == 1 else (16, in_channels, 256)
    for _ in range(3):
        model((0.5 + 1j) * noise(*shape) + 0.1)
    return model.eval()


def pairs(z: Tensor, dim: int = -2) -> Tensor:
    return torch.stack([z.real, z.imag], dim=dim)


def test_published_counts() -> None:
    with torch.device("meta"):
        model = CMuSeNet()
        assert count_params(model) == 39_155_264
        assert count_params(model.network.classifier) == 2 * (512 * 16384 + 16384)
        stem = model.network.stem[0]
        assert (stem.kernel_size, stem.stride, stem.padding) == ((7, 7), (2, 2), (3, 3))
        assert stem.bias is None
        assert model(torch.empty(2, 16384, dtype=torch.complex64)).shape == (2, 16384)
        # the real twin of the same width has half the weights, and normalisations of 2 instead of 5 numbers
        real = RVMuSeNet(view="modulus")
        norms = sum(m.num_features for m in real.modules() if isinstance(m, nn.BatchNorm2d))
        assert norms == 4800
        assert count_params(real) == (39_155_264 - 5 * norms) // 2 + 2 * norms
        assert [len(stage) for stage in CMuSeNet(256, depth=34, width=1).network.stages] == [3, 4, 6, 3]


def test_pictures_are_shifted_normalised_spectra() -> None:
    iq = noise(3, 300)
    picture = IQPreprocess(256)(iq)
    expected = torch.fft.fftshift(torch.fft.fft(iq[:, :256]), dim=-1)
    expected = expected / expected.abs().amax(1, keepdim=True)
    torch.testing.assert_close(picture, expected.view(3, 16, 16))
    # a tone at bin 3 above the centre is at place 131, and its strength does not matter
    tone = 7 * torch.exp(2j * torch.pi * 3 * torch.arange(256) / 256)
    place = IQPreprocess(256)(tone).abs().flatten()
    assert place.argmax().item() == 128 + 3
    assert place[131].item() == pytest.approx(1)


@pytest.mark.parametrize("side", [16, 17])
def test_the_transform_by_real_matrices_is_the_transform(side: int) -> None:
    iq = noise(2, 3, side * side)
    found = RealPairsSpectrum(side * side)(pairs(iq))
    torch.testing.assert_close(torch.view_as_complex(found.movedim(-3, -1).contiguous()), IQPreprocess(side * side)(iq))


def test_scores_are_in_the_unit_square_and_logits_before_them() -> None:
    model, iq = small(), noise(4, 256)
    scores = model(iq)
    assert scores.shape == (4, 256)
    assert scores.is_complex()
    for part in (scores.real, scores.imag):
        assert 0 < part.min() < part.max() < 1
    torch.testing.assert_close(sigmoid_of_parts(model.logits(iq)), scores)
    torch.testing.assert_close(sigmoid_of_parts(scores.real), scores.real.sigmoid())


def test_strength_and_further_samples_do_not_matter() -> None:
    model, iq = small(), noise(4, 256)
    torch.testing.assert_close(model(30 * iq), model(iq), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(torch.cat([iq, noise(4, 50)], dim=1)), model(iq))


@pytest.mark.parametrize("view", ["parts", "modulus"])
def test_the_twin_has_as_many_parameters(view: str) -> None:
    for fft_size, width in ((1024, 8), (256, 16)):
        with torch.device("meta"):
            model = CMuSeNet(fft_size=fft_size, width=width)
        twin = RVMuSeNet.matching(model, view=view)  # type: ignore[arg-type]
        assert count_params(twin) == pytest.approx(count_params(model), rel=0.01)
    scores = twin(noise(2, 256))
    assert scores.shape == (2, 256)
    assert not scores.is_complex()
    torch.testing.assert_close(scores, twin.logits(noise(2, 256)).sigmoid(), atol=1, rtol=0)


def test_the_twin_of_moduli_sees_no_phases() -> None:
    twin, iq = RVMuSeNet(256, width=4, view="modulus").eval(), noise(2, 256)
    turned = torch.fft.ifft(torch.fft.fft(iq) * torch.polar(torch.ones(256), torch.rand(256)))
    torch.testing.assert_close(twin(turned), twin(iq), atol=1e-4, rtol=1e-4)
    assert twin.pictures(iq).shape == (2, 1, 16, 16)
    assert RVMuSeNet(256, width=4).pictures(iq).shape == (2, 2, 16, 16)


@pytest.mark.parametrize("antennas", [1, 2])
def test_real_pairs_give_the_same_answer(antennas: int) -> None:
    model = small(antennas)
    iq = noise(3, 256) if antennas == 1 else noise(3, antennas, 256)
    found = to_real_pairs(model)(pairs(iq))
    assert found.shape == (3, 2, 256)
    torch.testing.assert_close(found, pairs(model(iq), 1), atol=1e-4, rtol=0)
    # other answers for other samples: the comparison is not one of constants
    assert found.std(0).max() > 1e-2


def test_the_onnx_file_gives_the_same_answer(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, iq = small(), noise(5, 256)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for batch in (iq, iq[:1]):
        (found,) = session.run(["scores"], {"iq": pairs(batch).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), pairs(model(batch), 1), atol=1e-4, rtol=0)
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_gradients() -> None:
    model = CMuSeNet(fft_size=256, width=1).double().eval()
    iq = noise(2, 256, dtype=torch.complex128)
    parameters = dict(model.named_parameters())
    names = ["network.stem.0.weight_imag", "network.stages.0.0.branch.1.0.weight"]

    def loss(*values: Tensor) -> Tensor:
        logits = torch.func.functional_call(
            model.network,
            {name.removeprefix("network."): value for name, value in zip(names, values, strict=True)},
            model.pictures(iq),
        )
        return ComplexFocalLoss(logits=True)(logits, torch.ones(2, 256))

    values = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, values, eps=1e-7, atol=1e-4, fast_mode=True)


def test_a_step_under_autocast_and_tracing() -> None:
    model, iq = CMuSeNet(fft_size=256, width=4), noise(4, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = ComplexFocalLoss(logits=True)(model.logits(iq), torch.rand(4, 256) < 0.2)
    loss.backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == parameter.dtype
    model.eval()
    first = nn.Sequential(model.preprocess, nn.Unflatten(0, (4, 1)), model.network.stem, model.network.stages[0][0])
    traced = torch.compile(first, fullgraph=True, backend="eager")  # the other blocks are as the first
    torch.testing.assert_close(traced(iq), first(iq))


def test_state_goes_round(tmp_path: Path) -> None:
    from safetensors.torch import load_model, save_model

    model, iq = small(), noise(2, 256)
    other = CMuSeNet(fft_size=256, width=4).eval()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(iq), model(iq), atol=0, rtol=0)
    save_model(model, str(tmp_path / "net.safetensors"))
    third = CMuSeNet(fft_size=256, width=4).eval()
    load_model(third, str(tmp_path / "net.safetensors"))
    torch.testing.assert_close(third(iq), model(iq), atol=0, rtol=0)


@pytest.mark.parametrize("smooth", [1, 5])
def test_the_energy_detector_keeps_its_rate_of_false_alarms(smooth: int) -> None:
    for strength in (1, 100):
        found = energy_detector(strength * noise(50, 1024), 1024, false_alarm=0.05, smooth=smooth)
        assert found.float().mean().item() == pytest.approx(0.05, abs=0.015)


def test_the_energy_detector_finds_strong_signals() -> None:
    radio = WidebandIQ(fft_size=1024, snr_db=(20.0,), channels=("awgn",), signals=(1, 4))
    found = radio.draw(30, generator=torch.Generator().manual_seed(0))
    detected = energy_detector(found.iq, 1024, smooth=5)
    assert detected[found.mask].float().mean() > 0.9


@pytest.mark.parametrize("fft_size", [1000, 225, 0, -16])
def test_sizes_that_are_no_squares_or_too_small(fft_size: int) -> None:
    for build in (IQPreprocess, CMuSeNet, RVMuSeNet):
        with pytest.raises(InputError, match=f"fft_size must be the square of a number from 16 on .*got {fft_size}"):
            build(fft_size)


def test_bad_input() -> None:
    model = CMuSeNet(fft_size=256, width=1)
    with pytest.raises(InputError, match=r"iq must be complex \(torch.complex.*got torch.float32"):
        model(torch.randn(2, 256))
    with pytest.raises(InputError, match="iq must be complex"):
        energy_detector(torch.randn(2, 256), 256)
    silent = noise(3, 256)
    silent[1] = 0
    for network in (model, RVMuSeNet(256, width=1)):
        with pytest.raises(InputError, match="iq must not be all zero, got nothing else in recording 1"):
            network(silent)
    antennas = noise(3, 2, 256)
    antennas[1, 1] = 0
    with pytest.raises(InputError, match=r"iq must not be all zero, got nothing else in recording 1$"):
        CMuSeNet(fft_size=256, width=1, in_channels=2)(antennas)
    with pytest.raises(InputError, match=r"iq must not be all zero, got nothing else in recording 0$"):
        IQPreprocess(256)(torch.zeros(256, dtype=torch.complex64))
    with pytest.raises(
        InputError, match=r"iq must have at least 256 samples \(..., samples\), got shape \(2, 1, 255\)"
    ):
        model(noise(2, 255))
    with pytest.raises(InputError, match="iq must have shape"):
        model(noise(256))
    with pytest.raises(InputError, match="dimension 1 of iq must have size 1"):
        model(noise(2, 3, 256))
    with pytest.raises(InputError, match="depth must be one of"):
        CMuSeNet(256, depth=20)
    with pytest.raises(InputError, match="width must be positive"):
        CMuSeNet(256, width=0)
    with pytest.raises(InputError, match="unknown view 'polar'"):
        RVMuSeNet(256, view="polar")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="smooth must be an odd number of bins, got 4"):
        energy_detector(noise(2, 256), 256, smooth=4)
    with pytest.raises(InputError, match="false_alarm must be in"):
        energy_detector(noise(2, 256), 256, false_alarm=1.0)
    with pytest.raises(InputError, match="iq must have at least 1024 samples"):
        energy_detector(noise(2, 256), 1024)
