"""Trained echo cancellers as files: weights and settings in one safetensors file, and ONNX."""

import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from netwright import checks
from netwright.models.signals.aec import ComplexMaskAEC
from netwright.surgery import eval_mode

KIND = "ComplexMaskAEC"
MOST_BLOCKS = 64  # of each kind; a file that asks for more is damaged
MOST_CHANNELS = 1 << 16


def save_aec(model: ComplexMaskAEC, file: str | os.PathLike[str], sample_rate: int) -> None:
    """Write weights, settings and sample rate as one safetensors file.

    Args:
        model: The network.
        file: Where to.
        sample_rate: Samples a second of the signals that it was trained on; it is of no use at another.

    Raises:
        InputError: If the sample rate is not positive.

    Example:
        >>> import tempfile
        >>> model = ComplexMaskAEC(128, 64, channels=4, growth=2, depth=3, num_d2=1, num_d3=1).eval()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_aec(model, f"{folder}/aec.safetensors", sample_rate=8000)
        ...     again, sample_rate = load_aec(f"{folder}/aec.safetensors")
        >>> signals = torch.randn(2, 1, 1000)
        >>> torch.equal(again(*signals)[0], model(*signals)[0]), sample_rate
        (True, 8000)
    """
    checks.at_least("sample_rate", sample_rate, 1)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    about = {"model": KIND, "settings": json.dumps(model.settings), "sample_rate": str(sample_rate)}
    save_file(state, os.fspath(file), {"format": "pt", **about})


def load_aec(file: str | os.PathLike[str]) -> tuple[ComplexMaskAEC, int]:
    """The network in eval mode, and its sample rate, from a file of :func:`save_aec`.

    Nothing in the file is run, and no memory is taken for a network that the file has no weights for.

    Raises:
        InputError: If the file does not exist, or is none of :func:`save_aec`.
    """
    path = Path(file)
    if not path.is_file():
        raise checks.InputError(f"weights file {str(path)!r} does not exist")
    try:
        with safe_open(str(path), framework="pt") as opened:
            about = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise checks.InputError(f"weights file {str(path)!r} is not a safetensors file: {error}") from error
    if about.get("model") != KIND:
        checks.fail(
            f"weights file {str(path)!r} must be one that netwright.models.signals.aec_files.save_aec wrote",
            "one without the settings of an echo canceller",
        )
    try:
        settings, sample_rate = json.loads(about["settings"]), int(about["sample_rate"])
        _check_sizes(settings)
        checks.at_least("sample_rate", sample_rate, 1)
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in ComplexMaskAEC(**settings).state_dict().items()}
    except (KeyError, TypeError, ValueError) as error:  # also InputError
        raise checks.InputError(f"weights file {str(path)!r} has settings of no echo canceller: {error}") from error
    if shapes != {name: tensor.shape for name, tensor in state.items()}:
        raise checks.InputError(f"weights file {str(path)!r} is damaged: its weights are not those of its settings")
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    model = ComplexMaskAEC(**settings, dtype=dtype)
    model.load_state_dict(state)
    return model.eval(), sample_rate


def _check_sizes(settings: dict[str, object]) -> None:
    for name, most in {"depth": MOST_BLOCKS, "num_d2": MOST_BLOCKS, "num_d3": MOST_BLOCKS}.items():
        size = settings[name]
        if not isinstance(size, int) or size > most:
            checks.fail(f"{name} must be a whole number up to {most}", size)
    for name in ("n_fft", "hop", "channels"):
        size = settings[name]
        if not isinstance(size, int) or size > MOST_CHANNELS:
            checks.fail(f"{name} must be a whole number up to {MOST_CHANNELS}", size)


def export_onnx(model: ComplexMaskAEC, file: str | os.PathLike[str]) -> None:
    """Write the network as an ONNX file for any number of signals of any length, spectra in real pairs.

    It takes ``mic`` and ``loopback``, ``(batch, samples)`` in float32, and gives ``enhanced`` and ``echo_free`` of the
    same shape and ``masks`` as in :class:`netwright.models.signals.aec.AECOutput`. As in the network itself, the
    signals' levels are those of training: :func:`netwright.models.signals.wav.cancel_echo` divides by the root mean
    square of a whole recording.

    Args:
        model: The network; it is not changed.
        file: Where to.

    Raises:
        InputError: If the packages ``onnx`` and ``onnxscript`` are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise checks.InputError("export needs onnx and onnxscript: pip install 'netwright[onnx]'") from missing
    where = model.stft.analysis
    example = torch.zeros(2, 3 * model.stft.n_fft, dtype=where.dtype, device=where.device)
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("samples", min=1)}
    with warnings.catch_warnings(), eval_mode(model), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter uses what torch has deprecated
        # that enough samples come back is left to the run time: it cannot be seen for all lengths at once
        program = torch.export.export(
            model,
            (example, example.clone()),
            dynamic_shapes={"mic": free, "loopback": free},
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        written = torch.onnx.export(
            program,
            dynamo=True,
            input_names=["mic", "loopback"],
            output_names=["enhanced", "echo_free", "masks"],
            verbose=False,
        )
        assert written is not None
        written.save(os.fspath(file), external_data=False)


__all__ = ["export_onnx", "load_aec", "save_aec"]
