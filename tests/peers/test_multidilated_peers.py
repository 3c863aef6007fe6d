"""The echo canceller in onnxruntime, and the claim's adaptive filter against padasip's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from netwright.claims._echo import nlms
from netwright.models.signals.aec import ComplexMaskAEC
from netwright.models.signals.aec_files import export_onnx


@pytest.mark.filterwarnings("ignore")
def test_onnxruntime_gives_the_same_answer_for_any_batch_and_length(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model = ComplexMaskAEC(16, 8, channels=2, growth=2, depth=2, num_d2=1, num_d3=1)
    model(*torch.randn(2, 3, 400))  # running statistics of its own
    before = torch.get_rng_state()
    export_onnx(model, tmp_path / "aec.onnx")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert [file.name for file in tmp_path.iterdir()] == ["aec.onnx"]
    session = runtime.InferenceSession(tmp_path / "aec.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["mic", "loopback"]
    assert [each.name for each in session.get_outputs()] == ["enhanced", "echo_free", "masks"]
    model.eval()
    for batch, samples in ((1, 1), (3, 7), (2, 8), (2, 401)):
        mic, loopback = torch.randn(2, batch, samples)
        enhanced, extra = model(mic, loopback)
        found = session.run(None, {"mic": mic.numpy(), "loopback": loopback.numpy()})
        for ours, theirs in zip((enhanced, extra.echo_free, extra.masks), found, strict=True):
            torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_adaptive_filter_is_padasips() -> None:
    padasip = pytest.importorskip("padasip")
    mic, loopback = torch.randn(2, 1, 300, dtype=torch.float64)
    ours = nlms(mic, loopback, taps=12, step=0.3, eps=0.01)[0].numpy()
    history = torch.nn.functional.pad(loopback, (11, 0)).unfold(1, 12, 1)[0].numpy()
    peer = padasip.filters.FilterNLMS(n=12, mu=0.3, eps=0.01, w="zeros")
    _, error, _ = peer.run(mic[0].numpy(), history)
    np.testing.assert_allclose(ours, error, atol=1e-9)


def test_adaptive_filter_finds_an_echo_that_is_linear() -> None:
    x = torch.randn(2, 3000, dtype=torch.float64)
    echo = 0.5 * torch.nn.functional.pad(x, (3, 0))[:, :-3] - 0.2 * torch.nn.functional.pad(x, (7, 0))[:, :-7]
    left = nlms(echo, x, taps=16, step=torch.tensor([[0.5], [0.0]], dtype=torch.float64))
    assert left[0, -500:].abs().max() < 1e-3
    torch.testing.assert_close(left[1], echo[1])
