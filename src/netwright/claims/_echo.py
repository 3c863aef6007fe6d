"""What the claim on echo cancellation needs beside networks: scenes to train and test on, and the adaptive filter."""

from collections.abc import Sequence

import torch
from torch import Tensor

from netwright.data.echo import EchoScenes, SpokenDigits, Talk, echo_scenes, speech_like

RATE = 4000


class Voices:
    """Where voices come from: a generator, or recordings of some speakers."""

    def __init__(
        self, generator: torch.Generator, recordings: SpokenDigits | None, speakers: Sequence[str] = ()
    ) -> None:
        self.generator = generator
        self.recordings = recordings
        self.speakers = speakers

    def talk(self, number: int, samples: int) -> tuple[Tensor, Tensor]:
        """Voices of the near and of the far end."""
        if self.recordings is None:
            near, far = speech_like(2 * number, samples, RATE, generator=self.generator).chunk(2)
            return near, far
        return self.recordings.conversations(number, samples, speakers=self.speakers, generator=self.generator)

    def scenes(self, number: int, samples: int, talk: Talk = "double") -> EchoScenes:
        """Scenes of the card: delays of 0 to 40 ms, rooms of 64 to 128 taps, SER -5 to 10 dB, SNR 5 to 20 dB."""
        near, far = self.talk(number, samples)
        return echo_scenes(near, far, RATE, talk=talk, generator=self.generator).normalised()

    def by_delay(self, number: int, samples: int, delays: Sequence[float]) -> dict[float, EchoScenes]:
        """The same scenes of double talk, with each of these delays in milliseconds."""
        near, far = self.talk(number, samples)
        state = self.generator.get_state()
        scenes = {}
        for delay in delays:
            self.generator.set_state(state)  # so that nothing but the delay changes
            mixed = echo_scenes(near, far, RATE, delay_ms=(delay, delay), generator=self.generator)
            scenes[delay] = mixed.normalised()
        return scenes

    def mixture(self, number: int, samples: int) -> EchoScenes:
        """Of eight scenes, six of double talk, one of near-end and one of far-end talk alone."""
        alone = max(1, number // 8)
        return EchoScenes.cat(
            [
                self.scenes(max(1, number - 2 * alone), samples),
                self.scenes(alone, samples, "near"),
                self.scenes(alone, samples, "far"),
            ]
        )


def nlms(mic: Tensor, loopback: Tensor, taps: int, step: float | Tensor, eps: float = 1e-2) -> Tensor:
    r"""Normalised least mean squares: what is left of the microphone when an adaptive filter has been there.

    .. math:: e_t = y_t - w_t^\top x_t, \qquad w_{t+1} = w_t + \mu \, e_t x_t / (\epsilon + \|x_t\|^2)

    Args:
        mic: y, ``(scenes, samples)``.
        loopback: x, of the same shape; :math:`x_t` are its last ``taps`` samples.
        taps: Length of the filter.
        step: μ, one for all or ``(scenes, 1)``.
        eps: ε.

    Returns:
        e, ``(scenes, samples)``.
    """
    history = torch.nn.functional.pad(loopback, (taps - 1, 0)).unfold(1, taps, 1).transpose(0, 1).contiguous()
    gain = step / (eps + history.square().sum(-1, keepdim=True))
    weight = torch.zeros(len(mic), taps, dtype=mic.dtype)
    left = []
    for x, y, g in zip(history, mic.T[:, :, None], gain, strict=True):
        error = y - (weight * x).sum(-1, keepdim=True)
        weight.addcmul_(g * error, x)
        left.append(error)
    return torch.cat(left, 1)


__all__ = ["RATE", "Voices", "nlms"]
