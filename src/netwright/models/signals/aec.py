"""Echo cancellation by complex masks (Watcharasupat et al. 2021, arXiv:2110.00745): microphone and loopback to voice.

:class:`STFTPair` turns signals into spectra of real pairs and back, exactly; :class:`ComplexMaskAEC` is the network,
pseudo-complex D3 blocks with one or two masks. Files and ONNX: :mod:`netwright.models.signals.aec_files`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers.multidilated import D3Block, MakeLayer
from netwright.layers.pseudo_complex import (
    PseudoComplex,
    pair_product,
    planewise_batch_norm2d,
    pseudo_complex_conv2d,
)

DualMask = Literal["serial", "parallel"]
_EPS = 1e-8


class STFTPair(nn.Module):
    r"""Short-time spectra in real pairs, and the signal back from them, of exactly its length.

    .. math:: X_{kt} = \frac{1}{\sqrt N} \sum_n w_n \, x_{tH + n - (N - H)} \, e^{-2 \pi i k n / N}, \qquad
        w_n = \sin\big(\pi (n + \tfrac12) / N\big)

    with N = ``n_fft`` and H = ``hop``; outside of the signal x is 0. The inverse is that of Griffin and Lim: weighted
    overlap-add divided by the summed squares of the window, which are never 0. Both are fixed real convolutions, so
    that they export to ONNX; autocast does not touch them.

    Args:
        n_fft: Samples N of a window; even.
        hop: Samples H between windows, at most N; half of N is usual.
        device: Where the kernels are.
        dtype: Their floating-point type.

    Shape:
        Signal ``(batch, samples)`` to spectrum ``(batch, 2, n_fft / 2 + 1, frames)`` with
        frames = ⌊(samples + n_fft − 1) / hop⌋; :meth:`inverse` from there.

    Raises:
        InputError: If ``n_fft < hop``, N is odd, or what comes in has another shape.

    Example:
        >>> stft, x = STFTPair(128, 64), torch.randn(3, 1000)
        >>> stft(x).shape, bool((stft.inverse(stft(x), length=1000) - x).abs().max() < 1e-5)
        (torch.Size([3, 2, 65, 17]), True)
    """

    analysis: Tensor
    synthesis: Tensor
    squares: Tensor

    def __init__(
        self,
        n_fft: int,
        hop: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("n_fft", n_fft, 2)
        checks.divisible("n_fft", n_fft, "2", 2)
        checks.at_least("hop", hop, 1)
        if n_fft < hop:
            checks.fail(f"n_fft must be at least hop = {hop}, so that no sample is left out", n_fft)
        self.n_fft, self.hop = n_fft, hop
        self.bins = n_fft // 2 + 1
        n = torch.arange(n_fft, dtype=torch.float64, device=device)
        k = torch.arange(self.bins, dtype=torch.float64, device=device)
        window = torch.sin(math.pi * (n + 0.5) / n_fft)
        angle = 2 * math.pi / n_fft * (k[:, None] * n)
        waves = torch.cat([torch.cos(angle), -torch.sin(angle)]) * window / math.sqrt(n_fft)
        # all bins but the first and the last stand for two of the full spectrum
        twice = torch.full((self.bins,), 2.0, dtype=torch.float64, device=device)
        twice[0] = twice[-1] = 1.0
        kind = dtype or torch.get_default_dtype()
        # no part of the state: they follow from n_fft
        self.register_buffer("analysis", waves[:, None].to(kind), persistent=False)
        self.register_buffer("synthesis", (waves * twice.repeat(2)[:, None])[:, None].to(kind), persistent=False)
        self.register_buffer("squares", window.square()[None, None].to(kind), persistent=False)

    def frames(self, samples: int) -> int:
        """How many windows a signal of so many samples has."""
        return (samples + self.n_fft - 1) // self.hop

    def forward(self, signal: Tensor) -> Tensor:
        checks.dimensions("signal", signal, "(batch, samples)")
        checks.floating_point("signal", signal)
        with torch.autocast(signal.device.type, enabled=False):
            # zeros before, so that as many windows see the first sample as any other; behind, for a last whole window
            x = functional.pad(signal.to(self.analysis.dtype), (self.n_fft - self.hop, self.n_fft - 1))
            planes = functional.conv1d(x[:, None], self.analysis, stride=self.hop)
            return torch.unflatten(planes, 1, (2, self.bins))

    def inverse(self, spectrum: Tensor, length: int) -> Tensor:
        """The signal ``(batch, length)`` of a spectrum; of one that no signal has, the nearest (least squares)."""
        checks.dimensions("spectrum", spectrum, "(batch, 2, bins, frames)")
        checks.size("spectrum", spectrum, 1, 2)
        checks.size("spectrum", spectrum, 2, self.bins)
        if not torch.compiler.is_compiling():  # an export for any length cannot know that these agree
            checks.size("spectrum", spectrum, 3, self.frames(length))
        with torch.autocast(spectrum.device.type, enabled=False):
            planes = spectrum.to(self.synthesis.dtype).flatten(1, 2)
            signal = functional.conv_transpose1d(planes, self.synthesis, stride=self.hop)
            seen = functional.conv_transpose1d(torch.ones_like(planes[:1, :1]), self.squares, stride=self.hop)
            # not a slice, for which an export for any length would have to know that there are enough samples
            here = torch.arange(length, device=planes.device) + (self.n_fft - self.hop)
            return (signal / seen)[:, 0].index_select(1, here)

    def extra_repr(self) -> str:
        return f"n_fft={self.n_fft}, hop={self.hop}"


class AECOutput(NamedTuple):
    """What :class:`ComplexMaskAEC` has beside its answer.

    Attributes:
        echo_free: The signal without echo, noise still there, ``(batch, samples)``; the answer itself if there is one
            mask.
        masks: Of each head, in real pairs ``(batch, heads, 2, bins, frames)``.
    """

    echo_free: Tensor
    masks: Tensor


class ComplexMaskAEC(nn.Module):
    r"""Removes echo and noise from a microphone's signal, knowing what the loudspeaker played.

    .. math:: \hat S_1 = M_1 Y, \qquad \hat S_2 = M_2 \hat S_1 \;\text{(serial) or}\; M_2 Y \;\text{(parallel)},
        \qquad M = 2 \tanh(|m| / 2) \, m / |m|

    Y is the spectrum of the microphone; complex masks M, bounded by 2, multiply it bin by bin, and can turn phases as
    magnitude masks cannot. The first is for near-end voice and noise, the second for the voice alone. Both come from
    one trunk over the spectra of microphone and loopback: a 3×3 convolution, D3 blocks with a 1×1 convolution behind
    each, and a 1×1 convolution for the masks. Nothing is pooled; every layer has the resolution of the spectrum.
    Norm and activation (batch normalisation of planes, PReLU), the power of 0.5 that the trunk's inputs are compressed
    with, and the first masks (1: the network starts by passing the microphone on) are not told by the paper: ours.

    The defaults are a network of 356,070 parameters; the paper's has 354K and does not tell its widths.

    Args:
        n_fft: Samples of a window.
        hop: Samples between windows.
        channels: Of the trunk between D3 blocks.
        growth: Of a layer of a D2 block.
        depth: Layers of a D2 block.
        num_d2: D2 blocks of a D3 block.
        num_d3: D3 blocks.
        dual_mask: ``"serial"`` (or ``True``), ``"parallel"``, or ``False`` for one mask, for the voice alone.
        mask: ``"complex"``, or ``"magnitude"``: a real network of magnitudes with masks in (0, 2), to compare with.
        compression: Of a D3 block.
        dilations: Of a D2 block, :math:`2^i` if not given.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Attributes:
        settings: The arguments above, but device and dtype; what a file has to keep beside the weights.
        context: Samples on each side of one that its answer may depend on, in eval mode.

    Shape:
        ``mic`` and ``loopback``, both ``(batch, samples)``, to ``(batch, samples)`` and :class:`AECOutput`.

    Raises:
        InputError: If microphone and loopback differ in batch or length, or a size cannot be.

    Source:
        arXiv:2110.00745. Which mask does what is open there; here it is as above.

    Example:
        >>> model = ComplexMaskAEC(128, 64, channels=4, growth=2, depth=3, num_d2=1, num_d3=1)
        >>> enhanced, extra = model(torch.randn(2, 1000), torch.randn(2, 1000))
        >>> enhanced.shape, extra.masks.shape
        (torch.Size([2, 1000]), torch.Size([2, 2, 2, 65, 17]))
    """

    def __init__(
        self,
        n_fft: int = 512,
        hop: int = 256,
        channels: int = 32,
        growth: int | Sequence[int] = 12,
        depth: int = 4,
        num_d2: int = 2,
        num_d3: int = 3,
        dual_mask: DualMask | bool = "serial",
        *,
        mask: Literal["complex", "magnitude"] = "complex",
        compression: float = 0.5,
        dilations: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("num_d3", num_d3, 1)
        checks.known("mask", mask, ("complex", "magnitude"))
        dual = {True: "serial", False: ""}[dual_mask] if isinstance(dual_mask, bool) else dual_mask
        if dual:
            checks.known("dual_mask", dual, ("serial", "parallel"))
        self.settings: dict[str, object] = {
            "n_fft": n_fft, "hop": hop, "channels": channels,
            "growth": growth if isinstance(growth, int) else list(growth), "depth": depth, "num_d2": num_d2,
            "num_d3": num_d3, "dual_mask": dual or False, "mask": mask, "compression": compression,
            "dilations": None if dilations is None else list(dilations),
        }  # fmt: skip
        self.dual_mask = dual
        self.mask = mask
        at = {"device": device, "dtype": dtype}
        self.stft = STFTPair(n_fft, hop, device=device, dtype=dtype)
        conv: MakeLayer = pseudo_complex_conv2d if mask == "complex" else nn.Conv2d
        norm: MakeLayer = planewise_batch_norm2d if mask == "complex" else nn.BatchNorm2d
        act = partial(nn.PReLU, device=device, dtype=dtype)
        self.trunk = nn.Sequential(conv(2, channels, 3, padding=1, bias=False, **at))
        radius = 1
        for _ in range(num_d3):
            dense = D3Block(
                channels, growth, depth, num_d2, compression,
                dilations=dilations, conv=conv, norm=norm, act=act, device=device, dtype=dtype,
            )  # fmt: skip
            radius += num_d2 * sum(dilations or (2**i for i in range(depth)))
            width = dense.out_channels
            self.trunk.append(
                nn.Sequential(dense, norm(width, **at), act(), conv(width, channels, 1, bias=False, **at))
            )
        heads = 2 if dual else 1
        last = conv(channels, heads, 1, **at)
        _start_at_one(last)
        self.heads = nn.Sequential(norm(channels, **at), act(), last)
        self.context = (radius + 1) * hop + n_fft

    def forward(self, mic: Tensor, loopback: Tensor) -> tuple[Tensor, AECOutput]:
        checks.dimensions("mic", mic, "(batch, samples)")
        if mic.shape != loopback.shape:
            checks.fail(f"loopback must have the shape of mic {tuple(mic.shape)}", f"{tuple(loopback.shape)}")
        heard, played = self.stft(mic), self.stft(loopback)
        masks = self._masks(torch.stack([heard, played], 1))
        first = self._multiply(masks[:, :1], heard)
        if not self.dual_mask:
            enhanced = self.stft.inverse(first, mic.shape[1])
            return enhanced, AECOutput(enhanced, masks)
        second = self._multiply(masks[:, 1:], first if self.dual_mask == "serial" else heard)
        length = mic.shape[1]
        return self.stft.inverse(second, length), AECOutput(self.stft.inverse(first, length), masks)

    def _masks(self, spectra: Tensor) -> Tensor:
        """Masks in pairs, from the spectra ``(batch, 2, 2, bins, frames)`` of microphone and loopback."""
        size = (spectra.square().sum(2) + _EPS).sqrt()
        if self.mask == "magnitude":
            real = 2 * torch.sigmoid(self.heads(self.trunk(size.sqrt())).to(size.dtype))
            return torch.stack([real, torch.zeros_like(real)], 2)
        m = self.heads(self.trunk(spectra * size.rsqrt()[:, :, None])).to(size.dtype)
        radius = (m.square().sum(2, keepdim=True) + _EPS).sqrt()
        bounded: Tensor = m * (2 * torch.tanh(radius / 2) / radius)
        return bounded

    @staticmethod
    def _multiply(mask: Tensor, spectrum: Tensor) -> Tensor:
        return pair_product(mask, spectrum[:, None])[:, 0]


def _start_at_one(last: nn.Module) -> None:
    """Biases of the last layer that make the first masks, but for its weights, 1."""
    if isinstance(last, PseudoComplex):
        # the bias of a pseudo-complex layer is (r - i) + i (r + i)
        for part, sign in ((last.real, 1), (last.imag, -1)):
            assert isinstance(part, nn.Conv2d)
            assert part.bias is not None
            nn.init.constant_(part.bias, sign * math.atanh(0.5))
        return
    assert isinstance(last, nn.Conv2d)
    assert last.bias is not None
    nn.init.zeros_(last.bias)


__all__ = ["AECOutput", "ComplexMaskAEC", "STFTPair"]
