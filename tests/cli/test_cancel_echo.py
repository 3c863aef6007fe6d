"""Tests of the verb ``netwright cancel-echo``."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from netwright.cli import main
from netwright.models.signals.aec import ComplexMaskAEC
from netwright.models.signals.aec_files import save_aec


def run(*arguments: str) -> int:
    """The exit code of the verb."""
    try:
        main(("cancel-echo", *arguments))
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    save_aec(ComplexMaskAEC(32, 16, channels=2, growth=2, depth=2, num_d2=1, num_d3=1), "aec.safetensors", 8000)
    for name, signal in zip(("mic", "loop"), torch.randn(2, 4000).mul(3000).short().numpy(), strict=True):
        wavfile.write(f"{name}.wav", 8000, signal)


def test_wav_in_wav_out_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("mic.wav", "loop.wav", "--weights", "aec.safetensors", "--out", "new/clean.wav")
    assert run(*arguments) == 0
    said = capsys.readouterr().out
    assert "0.5 s at 8,000 Hz" in said
    assert f"written: {Path('new/clean.wav').resolve()}" in said
    rate, first = wavfile.read("new/clean.wav")
    assert (rate, first.dtype, len(first)) == (8000, np.int16, 4000)
    assert run(*arguments, "--json", "-") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] == 0.5
    assert found["out"] == str(Path("new/clean.wav").resolve())
    assert np.array_equal(wavfile.read("new/clean.wav")[1], first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.wav", "loop.wav", "--weights", "aec.safetensors"), "no such file: no.wav"),
        (("mic.wav", "loop.wav", "--weights", "no.safetensors"), "weights file 'no.safetensors' does not exist"),
        (("mic.wav", "loop.wav", "--weights", "mic.wav"), "is not a safetensors file"),
        (("mic.wav", "loop.wav", "--weights", "aec.safetensors", "--out", "mic.wav"), "is the microphone file"),
        (("mic.wav", "loop.wav", "--weights", "aec.safetensors", "--out", "loop.wav/x.wav"), "with --out"),
        (("mic.wav", "loop.wav"), "--weights"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str) -> None:
    before = Path("mic.wav").read_bytes()
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert Path("mic.wav").read_bytes() == before
    assert not Path("clean.wav").exists()
