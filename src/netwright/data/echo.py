"""Echo scenes: a microphone that hears a voice, noise, and what the loudspeaker plays, late and distorted.

:func:`echo_scenes` mixes them from any near-end and far-end voices: of :func:`speech_like` (synthetic), or of
:func:`spoken_digits` (recordings). All parts of a mixture are kept, so that everything about it is known.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self, get_args

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor

from netwright import checks
from netwright.data.download import cache_folder, data_folder

Talk = Literal["double", "near", "far"]
HARMONICS = 24
_EPS = 1e-8


@dataclass(frozen=True, eq=False)
class EchoScenes:
    """Mixtures and their parts, each ``(scenes, samples)``: ``mic = near + noise + echo``.

    Attributes:
        mic: What the microphone hears.
        loopback: What is sent to the loudspeaker.
        near: The voice at the near end; what is wanted.
        noise: Noise at the near end.
        echo: What the microphone hears of the loudspeaker.
        delay: Samples from the loudspeaker's input to the first of the echo, ``(scenes,)``.
    """

    mic: Tensor
    loopback: Tensor
    near: Tensor
    noise: Tensor
    echo: Tensor
    delay: Tensor

    def __len__(self) -> int:
        return len(self.mic)

    @property
    def echo_free(self) -> Tensor:
        """Voice and noise of the near end."""
        return self.near + self.noise

    def normalised(self) -> Self:
        """The same with ``mic`` and ``loopback`` at a root mean square of 1; the parts go with ``mic``."""
        heard, played = level(self.mic), level(self.loopback)
        parts = {name: getattr(self, name) / heard for name in ("mic", "near", "noise", "echo")}
        return type(self)(**parts, loopback=self.loopback / played, delay=self.delay)

    @classmethod
    def cat(cls, scenes: "Sequence[EchoScenes]") -> Self:
        """Several sets of equal length as one."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: torch.cat([getattr(each, name) for each in scenes]) for name in names})


def level(signal: Tensor) -> Tensor:
    """Root mean square of each signal ``(..., samples)``, as ``(..., 1)``; 1 for silence."""
    power = signal.square().mean(-1, keepdim=True)
    return torch.where(power > _EPS**2, power, 1.0).sqrt()


def echo_scenes(
    near: Tensor,
    far: Tensor,
    sample_rate: int,
    *,
    talk: Talk = "double",
    delay_ms: tuple[float, float] = (0.0, 40.0),
    taps: tuple[int, int] = (64, 128),
    ser_db: tuple[float, float] = (-5.0, 10.0),
    snr_db: tuple[float, float] = (5.0, 20.0),
    drive: tuple[float, float] = (0.5, 2.0),
    generator: torch.Generator | None = None,
) -> EchoScenes:
    r"""Mix voices into scenes: far end → soft clip → delay → random decaying room → microphone, beside voice and noise.

    .. math:: y = s + v + \big(h * f(x)\big)_{t - \tau}, \qquad f(x) = \tanh(g x) / g, \qquad
        h_n = \epsilon_n e^{-6.9 n / N}, \; \epsilon_n \sim \mathcal N(0, 1), \; h_0 = 1

    The room falls by 60 dB over its N taps. Noise v is Gaussian, between white and falling by 6 dB an octave. Every
    pair of numbers below is a range from which each scene draws uniformly. In scenes without a near-end voice, echo and
    noise are as loud as they were beside one of root mean square 1.

    Args:
        near: Near-end voices s ``(scenes, samples)``; brought to a root mean square of 1.
        far: Far-end voices x, of the same shape; likewise.
        sample_rate: Samples a second.
        talk: Who speaks: ``"double"`` both, ``"near"`` or ``"far"`` one end alone.
        delay_ms: Delay τ of the echo, in milliseconds.
        taps: Length N of the room's response, in samples.
        ser_db: Signal-to-echo ratio, in decibels.
        snr_db: Signal-to-noise ratio, in decibels.
        drive: How hard the loudspeaker clips, g; 0 is linear.
        generator: Source of randomness.

    Raises:
        InputError: If the shapes of the voices differ, or a range is none.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> near, far = speech_like(2, 8000, 4000, generator=generator).split(1)
        >>> scene = echo_scenes(near, far, 4000, generator=generator)
        >>> scene.mic.shape, torch.equal(scene.mic, scene.near + scene.noise + scene.echo)
        (torch.Size([1, 8000]), True)
    """
    checks.dimensions("near", near, "(scenes, samples)")
    if near.shape != far.shape:
        checks.fail(f"far must have the shape of near {tuple(near.shape)}", f"{tuple(far.shape)}")
    checks.positive("sample_rate", sample_rate)
    checks.known("talk", talk, get_args(Talk))
    ranges = {"delay_ms": delay_ms, "taps": taps, "ser_db": ser_db, "snr_db": snr_db, "drive": drive}
    for name, (low, high) in ranges.items():
        if low > high or (name in ("delay_ms", "drive") and low < 0) or (name == "taps" and low < 1):
            checks.fail(f"{name} must be a range (low, high)", (low, high))
    scenes, samples = near.shape

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(scenes, 1, generator=generator, dtype=near.dtype)

    delay = (draw(*delay_ms) * sample_rate / 1000).round().long()
    length = draw(*taps).round()
    gain = draw(*drive)
    tap = torch.arange(int(taps[1]), dtype=near.dtype)
    room = torch.randn(scenes, len(tap), generator=generator, dtype=near.dtype) * torch.exp(-6.9 * tap / length)
    room = torch.where(tap < length, room, 0.0)
    room[:, 0] = 1.0
    noise = _noise(near, draw(0.0, 1.0), generator)
    echo_gain, noise_gain = (10 ** (-draw(*decibels) / 20) for decibels in (ser_db, snr_db))

    near, far = near / level(near), far / level(far)
    if talk == "near":
        far = torch.zeros_like(far)
    played = torch.where(gain > 0, torch.tanh(gain * far) / gain.clamp_min(_EPS), far)
    size = 2 ** math.ceil(math.log2(samples + len(tap)))
    echo = torch.fft.irfft(torch.fft.rfft(played, size) * torch.fft.rfft(room, size), size)[:, :samples]
    at = torch.arange(samples) - delay
    echo = torch.where(at >= 0, echo.gather(1, at.clamp_min(0)), 0.0)
    echo, noise = echo_gain * echo / level(echo), noise_gain * noise / level(noise)
    if talk == "far":
        near = torch.zeros_like(near)
    return EchoScenes(near + noise + echo, far, near, noise, echo, delay[:, 0])


def _noise(like: Tensor, tilt: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gaussian noise whose amplitude falls with the frequency to the power of ``tilt``."""
    white = torch.fft.rfft(torch.randn(like.shape, generator=generator, dtype=like.dtype))
    frequency = torch.arange(1, white.shape[-1] + 1, dtype=like.dtype)
    coloured: Tensor = torch.fft.irfft(white * frequency ** (-tilt), like.shape[-1])
    return coloured


def speech_like(
    voices: int,
    samples: int,
    sample_rate: int,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Voices out of harmonics: :math:`\sum_h a_h(t) \sin\big(h \int 2 \pi f_0\big)`, in syllables with pauses between.

    Each voice has a pitch of its own, 80 to 300 Hz, that wanders by a few semitones; each syllable, 0.15 to 0.4 s, has
    three formants of its own and fades in and out; pauses last up to 0.35 s. Nothing is above half the sample rate.

    Args:
        voices: How many.
        samples: Samples of each.
        sample_rate: Samples a second.
        generator: Source of randomness.

    Returns:
        ``(voices, samples)`` at a root mean square of 1.

    Raises:
        InputError: If a size is not positive.

    Example:
        >>> speech_like(3, 8000, 4000, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([3, 8000])
    """
    checks.at_least("voices", voices, 1)
    checks.at_least("samples", samples, 1)
    checks.positive("sample_rate", sample_rate)
    seconds = samples / sample_rate
    syllables = math.ceil(seconds / 0.15) + 1

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(voices, *shape, generator=generator)

    length, pause = draw(0.15, 0.4, syllables), draw(-0.15, 0.35, syllables).clamp_min(0.01)
    end = torch.cumsum(length + pause, 1) - draw(0.0, 0.4, 1)  # not all start with a syllable
    time = torch.arange(samples) / sample_rate
    now = torch.searchsorted(end, time.expand(voices, -1).contiguous()).clamp_max(syllables - 1)

    def at(values: Tensor) -> Tensor:
        return values.gather(1, now)

    within = (time - at(end - length)) / at(length)  # 0 at the start of a syllable, 1 at its end
    envelope = torch.sin(math.pi * within.clamp(0, 1)).clamp_min(0.0).sqrt()
    middle, bend = draw(-3.0, 3.0, syllables), draw(-3.0, 3.0, syllables)
    semitones = at(middle) + at(bend) * (within - 0.5)
    pitch = 80 * (300 / 80) ** draw(0.0, 1.0, 1) * 2 ** (semitones / 12)
    phase = 2 * math.pi * torch.cumsum(pitch / sample_rate, 1)
    formants = torch.stack([draw(low, high, syllables) for low, high in ((250, 800), (900, 2200), (2300, 3400))], 2)
    loudness = 10 ** (draw(-9.0, 0.0, syllables) / 20)
    voice = torch.zeros(voices, samples)
    for h in range(1, HARMONICS + 1):
        frequency = h * pitch
        # resonances 200 Hz wide, over a source that falls by 6 dB an octave
        near = sum(1 / (1 + ((frequency - at(formants[:, :, f])) / 100) ** 2) for f in range(3))
        voice += torch.where(frequency < sample_rate / 2, (0.05 + near) / h**0.5, 0.0) * torch.sin(h * phase)
    voice = voice * envelope * at(loudness)
    return voice / level(voice)


@dataclass(frozen=True, eq=False)
class SpokenDigits:
    """Recordings of people who say digits: the Free Spoken Digit Dataset (Jackson et al., CC BY-SA 4.0).

    Attributes:
        recordings: ``(recordings, samples)`` at a root mean square of 1, with zeros behind the shorter ones.
        length: Samples of each ``(recordings,)``.
        speaker: Number of who speaks ``(recordings,)``.
        digit: What is said ``(recordings,)``.
        speakers: Names, by number.
        sample_rate: Samples a second.
    """

    recordings: Tensor
    length: Tensor
    speaker: Tensor
    digit: Tensor
    speakers: tuple[str, ...]
    sample_rate: int

    def conversations(
        self,
        number: int,
        samples: int,
        *,
        speakers: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Near-end and far-end voices ``(number, samples)``: two people, each saying random digits with pauses.

        Args:
            number: How many conversations.
            samples: Samples of each.
            speakers: Whom to take, at least two; all if not given.
            generator: Source of randomness.

        Raises:
            InputError: If a speaker is not known, or there are fewer than two.
        """
        chosen = self.speakers if speakers is None else tuple(dict.fromkeys(speakers))
        for name in chosen:
            checks.known("speaker", name, self.speakers)
        checks.at_least("number of speakers", len(chosen), 2)
        checks.at_least("number", number, 1)
        checks.at_least("samples", samples, 1)
        numbers = torch.tensor([self.speakers.index(name) for name in chosen])
        pair = torch.rand(number, len(chosen), generator=generator).argsort(1)[:, :2]
        voices = self._say(numbers[pair].flatten(), samples, generator)
        return voices[::2], voices[1::2]

    def _say(self, speaker: Tensor, samples: int, generator: torch.Generator | None) -> Tensor:
        """One voice for each number of a speaker: recordings of theirs one after the other, 0 to 0.4 s apart."""
        longest = self.recordings.shape[1]
        words = math.ceil((samples + longest) / int(self.length.min())) + 1
        # each speaker's recordings in a row; a word is one of them
        rows = [torch.nonzero(self.speaker == i)[:, 0] for i in range(len(self.speakers))]
        counts = torch.tensor([len(row) for row in rows])
        table = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        pick = (torch.rand(len(speaker), words, generator=generator) * counts[speaker, None]).long()
        word = table[speaker[:, None], pick]
        pause = (torch.rand(len(speaker), words, generator=generator) * 0.4 * self.sample_rate).long()
        # the first word may have begun before
        begun = (torch.rand(len(speaker), 1, generator=generator) * longest).long()
        start = torch.cumsum(self.length[word] + pause, 1) - self.length[word] - begun
        canvas = torch.zeros(len(speaker), longest + samples + longest)
        for n in range(words):
            at = (start[:, n] + longest).clamp(0, canvas.shape[1] - longest)
            canvas.scatter_add_(1, at[:, None] + torch.arange(longest), self.recordings[word[:, n]])
        voice = canvas[:, longest : longest + samples]
        return voice / level(voice)


def spoken_digits(sample_rate: int = 8000, folder: str | Path | None = None) -> SpokenDigits:
    """Read the Free Spoken Digit Dataset: files ``{digit}_{speaker}_{take}.wav``, 8 kHz, in one folder.

    Args:
        sample_rate: Samples a second to bring the recordings to.
        folder: Where the files are; ``spoken-digits`` in NETWRIGHT_DATA or in the cache if not given.

    Raises:
        InputError: If there is no such folder, with all ways to get one, or a file in it is none of these.
    """
    checks.at_least("sample_rate", sample_rate, 1)
    files = sorted(_folder(folder).glob("*_*_*.wav"))
    if not files:
        checks.fail(f"{_folder(folder)} must have files such as 7_theo_3.wav", "none")
    waves: list[np.ndarray] = []
    names: defaultdict[str, int] = defaultdict(lambda: len(names))
    speaker, digit = [], []
    for file in files:
        said, name, _ = file.stem.split("_")
        rate, wave = _read(file)
        if not said.isdigit():
            checks.fail("recordings must be called like 7_theo_3.wav", file.name)
        if rate != sample_rate:
            common = math.gcd(rate, sample_rate)
            wave = resample_poly(wave, sample_rate // common, rate // common)
        waves.append(wave / max(float(np.sqrt(np.mean(wave**2))), _EPS))
        speaker.append(names[name])
        digit.append(int(said))
    recordings = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(w).float() for w in waves], batch_first=True)
    length = torch.tensor([len(wave) for wave in waves])
    return SpokenDigits(recordings, length, torch.tensor(speaker), torch.tensor(digit), tuple(names), sample_rate)


def _read(file: Path) -> tuple[int, np.ndarray]:
    try:
        rate, wave = wavfile.read(file)
    except (ValueError, OSError) as error:
        raise checks.InputError(f"{file} cannot be read as a WAV file ({error}); replace or remove it") from error
    if wave.ndim != 1 or wave.dtype != np.int16:
        checks.fail(f"{file} must have one channel of 16 bits", f"shape {wave.shape} of {wave.dtype}")
    return int(rate), wave.astype(np.float64) / 2**15


def _folder(given: str | Path | None) -> Path:
    if given is not None:
        if not Path(given).is_dir():
            raise checks.InputError(f"no such folder: {given}")
        return Path(given)
    shared, cache = data_folder(), cache_folder()
    for place in (shared, cache):
        if place is not None and (place / "spoken-digits").is_dir():
            return place / "spoken-digits"
    where = "is not set" if shared is None else f"is {shared}"
    raise checks.InputError(
        "the recordings of spoken digits need a folder spoken-digits, which is not there. Do one of these: set "
        f"NETWRIGHT_DATA (which {where}) to a folder that has spoken-digits/; put it into {cache}; get the files from "
        "https://github.com/Jakobovski/free-spoken-digit-dataset (folder recordings) and name that folder"
    )


__all__ = ["EchoScenes", "SpokenDigits", "Talk", "echo_scenes", "level", "speech_like", "spoken_digits"]
