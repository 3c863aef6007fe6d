"""Echo cancellation of recordings: whole signals of any length, and WAV files in and out."""

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from netwright import checks
from netwright.data.echo import level
from netwright.models.signals.aec import ComplexMaskAEC
from netwright.models.signals.aec_files import load_aec
from netwright.surgery import eval_mode

Observer = Callable[[float], None]
PIECE_SECONDS = 10.0
MOST_APART_SECONDS = 1.0


@torch.no_grad()
def cancel_echo(
    model: ComplexMaskAEC,
    mic: Tensor,
    loopback: Tensor,
    *,
    piece: int = 80_000,
    observer: Observer | None = None,
) -> Tensor:
    """The near-end voice of recordings of any length, in pieces that overlap by as far as the network sees.

    The pieces give, to rounding, what the network would give of the whole: there are no seams. Both signals are divided
    by their root mean square over the whole recording, and the answer gets that of the microphone back.

    Args:
        model: A trained network; run in eval mode, and left as it is.
        mic: What the microphone heard, ``(batch, samples)``.
        loopback: What the loudspeaker played, of the same shape.
        piece: Samples of a piece, without the overlap.
        observer: Called with the share that is done, for progress.

    Returns:
        The voice ``(batch, samples)``.

    Raises:
        InputError: If microphone and loopback differ in batch or length, or there is no sample.

    Example:
        >>> model = ComplexMaskAEC(128, 64, channels=4, growth=2, depth=3, num_d2=1, num_d3=1)
        >>> cancel_echo(model, torch.randn(1, 20_000), torch.randn(1, 20_000), piece=8000).shape
        torch.Size([1, 20000])
    """
    checks.dimensions("mic", mic, "(batch, samples)")
    if mic.shape != loopback.shape:
        checks.fail(f"loopback must have the shape of mic {tuple(mic.shape)}", f"{tuple(loopback.shape)}")
    samples, hop = mic.shape[1], model.stft.hop
    checks.at_least("number of samples", samples, 1)
    checks.at_least("piece", piece, 1)
    # windows start at multiples of the hop, so pieces have to, too
    step, context = -(-piece // hop) * hop, -(-model.context // hop) * hop
    like = model.stft.analysis
    heard, played = level(mic), level(loopback)
    voice = torch.empty_like(mic)
    with eval_mode(model):
        for start in range(0, samples, step):
            end = min(start + step, samples)
            first, last = max(start - context, 0), min(end + context, samples)
            x, r = ((whole[:, first:last] / by).to(like) for whole, by in ((mic, heard), (loopback, played)))
            voice[:, start:end] = model(x, r)[0][:, start - first : end - first].to(voice)
            if observer is not None:
                observer(end / samples)
    return voice * heard


@dataclass(frozen=True)
class Cancelled:
    """What :func:`cancel_echo_wav` did.

    Attributes:
        seconds: Length of the recording.
        sample_rate: Of the microphone's file, and of the one written.
        model_rate: Of the network.
        level_change_db: Level of what was written against the microphone's, in decibels.
        notes: What was done to make the files fit, in words.
    """

    seconds: float
    sample_rate: int
    model_rate: int
    level_change_db: float
    notes: tuple[str, ...]


def cancel_echo_wav(
    mic: str | os.PathLike[str],
    loopback: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    observer: Observer | None = None,
) -> Cancelled:
    """Take the echo of one WAV file out of another.

    Files of 8, 16, 24 or 32 bits or floating point; several channels are averaged. What has another sample rate than
    the network is brought to it and back (polyphase filters), so that nothing is left above half the network's rate.
    Recordings that differ by at most a second in length are taken to begin together; the loopback is cut or continued
    with silence. The result has the microphone's length and sample rate, 16 bits for 8 and 16, 32 for 24 and 32,
    floating point for floating point, and one channel.

    Args:
        mic: What the microphone heard.
        loopback: What was sent to the loudspeaker in that time.
        weights: A file of :func:`netwright.models.signals.aec_files.save_aec`.
        out: Where the voice is written.
        observer: As of :func:`cancel_echo`.

    Raises:
        InputError: If a file does not exist or cannot be read, the lengths differ by more than a second, or ``out`` is
            one of the inputs.
    """
    for name, given in (("microphone", mic), ("loopback", loopback), ("weights", weights)):
        if Path(out).exists() and Path(given).exists() and Path(out).samefile(given):
            raise checks.InputError(f"{os.fspath(out)} is the {name} file; write to another")
    model, model_rate = load_aec(weights)
    rate, heard, kind = read_wav(mic)
    played_rate, played, _ = read_wav(loopback)
    notes = [
        f"{os.fspath(file)}: the mean of {signal.shape[1]} channels"
        for file, signal in ((mic, heard), (loopback, played))
        if signal.shape[1] > 1
    ]
    if rate != model_rate or played_rate != model_rate:
        notes.append(f"brought to the network's {model_rate:,} Hz: nothing is left above {model_rate // 2:,} Hz")
    x = _resampled(heard.mean(1), rate, model_rate)
    r = _resampled(played.mean(1), played_rate, model_rate)
    apart = (len(r) - len(x)) / model_rate
    if abs(apart) > MOST_APART_SECONDS:
        checks.fail(
            f"{os.fspath(loopback)} must be as long as {os.fspath(mic)} ({len(x) / model_rate:.2f} s), to a second",
            f"{len(r) / model_rate:.2f} s",
        )
    if len(r) != len(x):
        notes.append(f"the loopback was {abs(apart):.3f} s {'longer' if apart > 0 else 'shorter'}")
        r = np.pad(r, (0, max(0, len(x) - len(r))))[: len(x)]
    signals = (torch.from_numpy(np.ascontiguousarray(s, dtype=np.float32))[None] for s in (x, r))
    voice = cancel_echo(model, *signals, piece=round(PIECE_SECONDS * model_rate), observer=observer)[0].numpy()
    voice = _resampled(voice, model_rate, rate)[: len(heard)]
    voice = np.pad(voice, (0, len(heard) - len(voice)))
    write_wav(out, rate, voice, kind)
    powers = [float(np.mean(np.square(s, dtype=np.float64))) + 1e-20 for s in (voice, heard.mean(1))]
    change = 10 * math.log10(powers[0] / powers[1])
    return Cancelled(len(heard) / rate, rate, model_rate, change, tuple(notes))


def read_wav(file: str | os.PathLike[str]) -> tuple[int, NDArray[np.float32], np.dtype[Any]]:
    """Sample rate, samples ``(samples, channels)`` in [−1, 1], and how the file keeps them.

    Raises:
        InputError: If the file does not exist, is no WAV file, or has no samples.
    """
    if not Path(file).is_file():
        raise checks.InputError(f"no such file: {os.fspath(file)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", wavfile.WavFileWarning)  # of tags that players write beside the sound
            rate, signal = wavfile.read(file)
    except Exception as error:  # what a damaged file makes of the reader is anybody's guess
        raise checks.InputError(f"{os.fspath(file)} cannot be read as a WAV file: {error}") from error
    kind = signal.dtype
    if signal.size == 0 or rate < 1:
        checks.fail(f"{os.fspath(file)} must have samples", f"{signal.size} at {rate} Hz")
    signal = signal[:, None] if signal.ndim == 1 else signal
    if np.issubdtype(kind, np.floating):
        floats = signal.astype(np.float32)
        if not np.isfinite(floats).all():
            checks.fail(f"samples of {os.fspath(file)} must be finite", "some that are not")
        return int(rate), floats, kind
    middle, half = (128, 128) if kind == np.uint8 else (0, -float(np.iinfo(kind).min))
    return int(rate), ((signal.astype(np.float64) - middle) / half).astype(np.float32), kind


def write_wav(file: str | os.PathLike[str], rate: int, signal: NDArray[np.floating[Any]], kind: np.dtype[Any]) -> None:
    """Write one channel as :func:`read_wav` found another: floating point, 16 bits, or 32 for more than that.

    Raises:
        InputError: If the file cannot be written.
    """
    if not np.issubdtype(kind, np.floating):
        wide = np.iinfo(np.int32 if kind.itemsize > 2 else np.int16)
        steps = np.rint(signal.astype(np.float64) * -float(wide.min))
        signal = np.clip(steps, wide.min, wide.max).astype(wide.dtype)
    else:
        signal = signal.astype(np.float32)
    try:
        wavfile.write(file, rate, signal)
    except OSError as error:
        raise checks.InputError(f"cannot write {os.fspath(file)}: {error.strerror}") from error


def _resampled(signal: NDArray[Any], rate: int, to: int) -> NDArray[Any]:
    if rate == to:
        return signal
    common = math.gcd(rate, to)
    new: NDArray[Any] = resample_poly(signal, to // common, rate // common)
    return new


__all__ = ["Cancelled", "Observer", "cancel_echo", "cancel_echo_wav", "read_wav", "write_wav"]
