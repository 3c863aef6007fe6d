"""CMuSeNet (2025, arXiv:2506.11048): a complex residual network that says which bins of a wide band are occupied.

IQ samples become a complex picture of their spectrum (``IQPreprocess``); a complex ResNet gives one complex score a bin
(``CMuSeNet``). ``RVMuSeNet`` is its real-valued twin; ``energy_detector`` the classical answer to the same question.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.cost import count_params
from netwright.layers.complex import ComplexConv2d, ComplexLinear
from netwright.layers.complex_activations import CReLU
from netwright.layers.complex_norm import ComplexBatchNorm2d
from netwright.models.vision.resnet import conv as real_conv
from netwright.models.vision.resnet import resnet_4stage

View = Literal["parts", "modulus"]
LEAST_SIDE = 16  # the network halves the picture four times


class IQPreprocess(nn.Module):
    r"""Complex picture of the spectrum of the first ``fft_size`` samples.

    .. math:: X = \mathrm{fftshift}(\mathrm{FFT}(x_{0 \ldots N-1})), \qquad \mathrm{picture} = X / \max_j |X_j|,
        \text{ in rows of } \sqrt N

    Takes complex IQ samples ``(..., samples)``, at least ``fft_size`` of them, and gives complex ``(..., √N, √N)``.

    Args:
        fft_size: N, the square of a number not below 16.

    Raises:
        InputError: If ``fft_size`` is not such a square; if the samples are real, too few, or all zero.

    Source:
        arXiv:2506.11048.

    Example:
        >>> picture = IQPreprocess(256)(torch.randn(2, 300, dtype=torch.complex64))
        >>> picture.shape, round(picture.abs().max().item(), 4)
        (torch.Size([2, 16, 16]), 1.0)
    """

    def __init__(self, fft_size: int = 16384) -> None:
        super().__init__()
        side = math.isqrt(max(fft_size, 0))
        if side * side != fft_size or side < LEAST_SIDE:
            checks.fail(f"fft_size must be the square of a number from {LEAST_SIDE} on (256, 1024, 4096, …)", fft_size)
        self.fft_size = fft_size
        self.side = side

    def forward(self, iq: Tensor) -> Tensor:
        checks.complex_valued("iq", iq)
        if iq.ndim == 0 or iq.shape[-1] < self.fft_size:
            checks.fail(f"iq must have at least {self.fft_size} samples (..., samples)", f"shape {tuple(iq.shape)}")
        spectrum = torch.fft.fftshift(torch.fft.fft(iq[..., : self.fft_size]), dim=-1)
        largest = spectrum.abs().amax(-1, keepdim=True)
        if not (largest.is_meta or torch.compiler.is_compiling()) and bool((largest == 0).any()):
            silent = (largest == 0).nonzero()[0, 0].item()  # the first axis, also of several antennas
            raise checks.InputError(f"iq must not be all zero, got nothing else in recording {silent}")
        picture: Tensor = spectrum / largest
        return picture.view(*spectrum.shape[:-1], self.side, self.side)

    def extra_repr(self) -> str:
        return f"{self.fft_size}"


class CMuSeNet(nn.Module):
    r"""Complex residual network from IQ samples to the occupancy of every frequency bin.

    Preprocessing, 7×7 convolution of stride 2, four stages of complex residual blocks with whitening batch
    normalisation and ReLU on both parts, mean over space, complex linear layer, and the sigmoid of both parts. It takes
    complex IQ samples ``(batch, samples)``, or ``(batch, in_channels, samples)`` of several antennas, and gives complex
    scores ``(batch, fft_size)``; each part lies in (0, 1) and is a score for the bin of the shifted spectrum.

    Args:
        fft_size: Bins; the square of a number not below 16.
        depth: 18, 34, 50, 101 or 152.
        width: Channels of the first stage; later ones have 2, 4 and 8 times as many.
        in_channels: Antennas.

    Raises:
        InputError: See :class:`IQPreprocess`; if there are not ``in_channels`` antennas, or the depth is another.

    Source:
        arXiv:2506.11048. With 16384 bins it has 39,155,264 parameters, a complex number counted as two.

    Example:
        >>> model = CMuSeNet(fft_size=256, width=8).eval()
        >>> scores = model(torch.randn(2, 256, dtype=torch.complex64))
        >>> scores.shape, scores.dtype, bool((scores.real > 0).all() and (scores.imag < 1).all())
        (torch.Size([2, 256]), torch.complex64, True)
    """

    def __init__(self, fft_size: int = 16384, depth: int = 18, width: float = 64, in_channels: int = 1) -> None:
        super().__init__()
        self.preprocess = IQPreprocess(fft_size)
        self.depth = depth
        self.width = width
        self.in_channels = in_channels
        self.network = resnet_4stage(
            depth,
            stage_widths(width),
            in_channels=in_channels,
            num_classes=fft_size,
            stem=partial(_stem, _complex_conv),
            conv=_complex_conv,
            norm_act=_complex_norm_act,
            act=CReLU,
            classifier=ComplexLinear,
        )

    def pictures(self, iq: Tensor) -> Tensor:
        """Spectra as the network takes them: complex ``(batch, in_channels, √N, √N)``."""
        return _pictures(self.preprocess, iq, self.in_channels)

    def logits(self, iq: Tensor) -> Tensor:
        """Scores before the sigmoid ``(batch, fft_size)``, complex; losses are steadier with them."""
        output: Tensor = self.network(self.pictures(iq))
        return output

    def forward(self, iq: Tensor) -> Tensor:
        return sigmoid_of_parts(self.logits(iq))


class RVMuSeNet(nn.Module):
    """The real-valued twin of :class:`CMuSeNet`: real layers, and one real score a bin.

    It takes what its twin takes and gives real scores ``(batch, fft_size)`` in (0, 1).

    Args:
        fft_size: See :class:`CMuSeNet`.
        depth: See :class:`CMuSeNet`.
        width: Channels of the first stage; later ones have 2, 4 and 8 times as many, rounded. It may be a fraction, so
            that parameters can be matched.
        in_channels: Antennas.
        view: What it sees of the complex picture: ``"parts"``, the real and the imaginary part as channels, or the
            ``"modulus"``.

    Raises:
        InputError: As :class:`CMuSeNet`; if the view is unknown.

    Example:
        >>> twin = RVMuSeNet.matching(CMuSeNet(fft_size=256, width=8))
        >>> twin(torch.randn(2, 256, dtype=torch.complex64)).shape
        torch.Size([2, 256])
    """

    def __init__(
        self,
        fft_size: int = 16384,
        depth: int = 18,
        width: float = 64,
        in_channels: int = 1,
        *,
        view: View = "parts",
    ) -> None:
        super().__init__()
        checks.known("view", view, get_args(View))
        self.preprocess = IQPreprocess(fft_size)
        self.depth = depth
        self.width = width
        self.in_channels = in_channels
        self.view = view
        self.network = resnet_4stage(
            depth,
            stage_widths(width),
            in_channels=in_channels * (2 if view == "parts" else 1),
            num_classes=fft_size,
            stem=partial(_stem, real_conv),
        )

    @staticmethod
    def matching(model: CMuSeNet, *, view: View = "parts") -> "RVMuSeNet":
        """The twin whose number of parameters is nearest to that of ``model``, complex ones counted as two."""
        target = count_params(model)

        def build(width: float) -> "RVMuSeNet":
            return RVMuSeNet(model.preprocess.fft_size, model.depth, width, model.in_channels, view=view)

        def excess(eighths: int) -> int:
            with torch.device("meta"):
                return count_params(build(eighths / 8)) - target

        # the last stage is 8 times as wide, so eighths are all widths that make a difference
        low, high = 4, math.ceil(16 * model.width) + 8
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if excess(middle) <= 0 else (low, middle)
        return build(min((low, high), key=lambda eighths: abs(excess(eighths))) / 8)

    def pictures(self, iq: Tensor) -> Tensor:
        """Spectra as this network takes them: real ``(batch, channels, √N, √N)``."""
        complex_ones = _pictures(self.preprocess, iq, self.in_channels)
        if self.view == "modulus":
            return complex_ones.abs()
        return torch.cat([complex_ones.real, complex_ones.imag], dim=1)

    def logits(self, iq: Tensor) -> Tensor:
        """Scores before the sigmoid ``(batch, fft_size)``."""
        output: Tensor = self.network(self.pictures(iq))
        return output

    def forward(self, iq: Tensor) -> Tensor:
        return self.logits(iq).sigmoid()


def sigmoid_of_parts(input: Tensor) -> Tensor:
    """Sigmoid of the real part + i · sigmoid of the imaginary part, of any shape; plain sigmoid of real numbers."""
    return torch.complex(input.real.sigmoid(), input.imag.sigmoid()) if input.is_complex() else input.sigmoid()


def energy_detector(
    iq: Tensor, fft_size: int, *, false_alarm: float = 0.01, smooth: int = 1, quantile: float = 0.25
) -> Tensor:
    r"""The bins whose energy is above what noise alone would give.

    .. math:: E_j = \frac{1}{w} \sum_{|i - j| \le w/2} |X_i|^2 > \sigma^2 \, \frac{Q^{-1}(P_{fa})}{w}, \qquad
        \sigma^2 = -\frac{q\text{-quantile of } |X|^2}{\log(1 - q)}

    Of white noise |X_j|² has an exponential distribution, and a sum of w of them a gamma distribution, whose upper
    quantile Q⁻¹ is. The power σ² of the noise is estimated from the weakest bins, which should be free.

    Args:
        iq: Complex samples ``(..., samples)``; the first ``fft_size`` count.
        fft_size: Bins.
        false_alarm: P_fa, fraction of free bins that are called occupied.
        smooth: w, odd number of neighbouring bins whose mean is taken.
        quantile: q, below the fraction of bins that are free.

    Returns:
        Which bins of the shifted spectrum are occupied ``(..., fft_size)``, boolean.

    Raises:
        InputError: If the samples are real or too few, ``smooth`` is even, or a fraction is not in (0, 1).

    Source:
        Urkowitz 1967, doi:10.1109/PROC.1967.5573.

    Example:
        >>> noise = torch.randn(10, 1024, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        >>> round(energy_detector(noise, 1024, false_alarm=0.1).float().mean().item(), 1)
        0.1
    """
    from scipy.special import gammainccinv  # scipy is slow to import, and only this function needs it

    checks.complex_valued("iq", iq)
    checks.at_least("fft_size", fft_size, 1)
    checks.between("false_alarm", false_alarm, 0, 1, open_low=True, open_high=True)
    checks.between("quantile", quantile, 0, 1, open_low=True, open_high=True)
    if smooth < 1 or smooth % 2 == 0:
        checks.fail("smooth must be an odd number of bins", smooth)
    if iq.shape[-1] < fft_size:
        checks.fail(f"iq must have at least {fft_size} samples (..., samples)", f"shape {tuple(iq.shape)}")
    energy = torch.fft.fftshift(torch.fft.fft(iq[..., :fft_size]), dim=-1).abs().square()
    low = energy.kthvalue(math.ceil(quantile * fft_size), dim=-1, keepdim=True).values
    noise = low / -math.log1p(-quantile)
    if smooth > 1:
        lines = energy.reshape(-1, 1, fft_size)
        means = nn.functional.avg_pool1d(lines, smooth, stride=1, padding=smooth // 2, count_include_pad=False)
        energy = means.view(energy.shape)
    occupied: Tensor = energy > noise * (float(gammainccinv(smooth, false_alarm)) / smooth)
    return occupied


def stage_widths(width: float) -> list[int]:
    """Channels of the four stages: 1, 2, 4 and 8 times ``width``, rounded."""
    checks.positive("width", width)
    return [max(1, round(width * factor)) for factor in (1, 2, 4, 8)]


def _stem(conv: Callable[..., nn.Module], in_channels: int, out_channels: int, *_: object, **__: object) -> nn.Module:
    """The 7×7 convolution of stride 2, in the place of the 3×3 one that the residual network asks for."""
    return conv(in_channels, out_channels, 7, stride=2, padding=3)


def _complex_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0
) -> nn.Module:
    return ComplexConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)


def _complex_norm_act(channels: int, act: bool) -> nn.Module:
    norm = ComplexBatchNorm2d(channels)
    return nn.Sequential(norm, CReLU()) if act else norm


def _pictures(preprocess: IQPreprocess, iq: Tensor, in_channels: int) -> Tensor:
    checks.dimensions("iq", iq, "(batch, samples)", "(batch, antennas, samples)")
    if iq.ndim == 2:
        iq = iq[:, None]
    checks.size("iq", iq, 1, in_channels)
    pictures: Tensor = preprocess(iq)
    return pictures


__all__ = [
    "CMuSeNet",
    "IQPreprocess",
    "RVMuSeNet",
    "View",
    "energy_detector",
    "sigmoid_of_parts",
    "stage_widths",
]
