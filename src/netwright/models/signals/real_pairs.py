"""A trained CMuSeNet (2025, arXiv:2506.11048) in real numbers, for run times that know no complex ones, such as ONNX.

Real and imaginary parts stand side by side as channels: ``to_real_pairs`` makes the network, ``export_onnx`` a file.
"""

import copy
import math
import os
import warnings

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.complex import ComplexConv2d, ComplexLinear
from netwright.layers.complex_norm import ComplexBatchNorm2d
from netwright.models.signals.cmusenet import CMuSeNet, IQPreprocess, stage_widths
from netwright.models.vision.resnet import resnet_4stage


class RealPairsSpectrum(nn.Module):
    r"""The complex picture of :class:`IQPreprocess`, from and to real pairs, by products of real matrices.

    With N = s² samples in rows of s, the transform is one of the columns, a turn of each number, and one of the rows:

    .. math:: X_{k_1 + s k_2} = \sum_{n_2} e^{-2\pi i n_2 k_2 / s} \Big( e^{-2\pi i n_2 k_1 / N}
        \sum_{n_1} e^{-2\pi i n_1 k_1 / s} x_{s n_1 + n_2} \Big)

    Takes ``(batch, antennas, 2, N)`` and gives ``(batch, antennas, 2, √N, √N)``. Nothing is checked.

    Args:
        fft_size: N.

    Source:
        Gentleman, Sande 1966, doi:10.1145/1464291.1464352.
    """

    cos: Tensor
    sin: Tensor
    twiddle_cos: Tensor
    twiddle_sin: Tensor

    def __init__(self, fft_size: int) -> None:
        super().__init__()
        side = IQPreprocess(fft_size).side
        self.fft_size, self.side = fft_size, side
        number = torch.arange(side, dtype=torch.float64)
        products = torch.outer(number, number)
        for name, angle in (("", products / side), ("twiddle_", products / fft_size)):
            self.register_buffer(f"{name}cos", (2 * math.pi * angle).cos().float())
            self.register_buffer(f"{name}sin", -(2 * math.pi * angle).sin().float())

    def forward(self, iq: Tensor) -> Tensor:
        real, imag = iq.view(*iq.shape[:-1], self.side, self.side).unbind(-3)
        real, imag = self.cos @ real - self.sin @ imag, self.cos @ imag + self.sin @ real
        real, imag = (
            real * self.twiddle_cos - imag * self.twiddle_sin,
            real * self.twiddle_sin + imag * self.twiddle_cos,
        )
        real, imag = real @ self.cos - imag @ self.sin, real @ self.sin + imag @ self.cos
        spectrum = torch.stack([real.mT.flatten(-2), imag.mT.flatten(-2)], dim=-2)
        half = self.fft_size - self.fft_size // 2
        spectrum = torch.cat([spectrum[..., half:], spectrum[..., :half]], dim=-1)
        largest = spectrum.square().sum(-2, keepdim=True).amax(-1, keepdim=True).sqrt()
        return (spectrum / largest).view(*spectrum.shape[:-1], self.side, self.side)


class RealPairsMuSeNet(nn.Module):
    """What :func:`to_real_pairs` gives: real IQ pairs ``(batch, 2, N)`` to real pairs of scores ``(batch, 2, N)``.

    Several antennas stand in an axis of their own: ``(batch, antennas, 2, N)``.
    """

    def __init__(self, spectrum: RealPairsSpectrum, network: nn.Module, in_channels: int) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.network = network
        self.in_channels = in_channels

    def forward(self, iq: Tensor) -> Tensor:
        if self.in_channels == 1:
            iq = iq.unsqueeze(1)
        # all real parts before all imaginary ones, as the weights have them
        pictures = self.spectrum(iq).transpose(1, 2).flatten(1, 2)
        scores: Tensor = self.network(pictures)
        return scores.sigmoid().view(scores.shape[0], 2, -1)


@torch.no_grad()
def to_real_pairs(model: CMuSeNet) -> RealPairsMuSeNet:
    """The same network in real numbers, with every normalisation folded into the convolution before it.

    A complex convolution is a real one of twice the channels, with weights [[Wr, −Wi], [Wi, Wr]]; whitening with fixed
    statistics is a 2×2 matrix M and a shift for each channel, which go into it: it is for inference alone.

    Args:
        model: Its statistics as they are now; it is not changed.

    Returns:
        Real IQ pairs ``(batch, 2, N)``, N samples each, real parts first, to real pairs of scores ``(batch, 2, N)``; in
        eval mode.

    Example:
        >>> model = CMuSeNet(fft_size=256, width=4).eval()
        >>> iq = torch.randn(2, 256, dtype=torch.complex64)
        >>> pairs = to_real_pairs(model)(torch.stack([iq.real, iq.imag], dim=1))
        >>> torch.allclose(torch.complex(pairs[:, 0], pairs[:, 1]), model(iq), atol=1e-4)
        True
    """
    network = resnet_4stage(
        model.depth,
        [2 * width for width in stage_widths(model.width)],
        in_channels=2 * model.in_channels,
        num_classes=2 * model.preprocess.fft_size,
        stem=_real_stem,
        conv=_real_conv,
        norm_act=_only_act,
    )
    layers = list(model.network.modules())
    # in the order of the modules, each convolution is followed by its normalisation
    complex_convs = [layer for layer in layers if isinstance(layer, ComplexConv2d)]
    norms = [layer for layer in layers if isinstance(layer, ComplexBatchNorm2d)]
    real_convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    for complex_conv, norm, conv in zip(complex_convs, norms, real_convs, strict=True):
        weight, shift = fold(complex_conv, norm)
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(shift)
    head, classifier = model.network.classifier, network.classifier
    assert isinstance(head, ComplexLinear)
    assert isinstance(classifier, nn.Linear)
    assert head.bias is not None
    classifier.weight.copy_(_pairs_matrix(head.weight))
    classifier.bias.copy_(torch.cat([head.bias.real, head.bias.imag]))
    pairs = RealPairsMuSeNet(RealPairsSpectrum(model.preprocess.fft_size), network, model.in_channels)
    return pairs.to(head.weight_real.device).eval()


def fold(conv: ComplexConv2d, norm: ComplexBatchNorm2d) -> tuple[Tensor, Tensor]:
    """Real weight ``(2·out, 2·in, height, width)`` and bias ``(2·out,)`` of a convolution and the norm behind it."""
    # with fixed statistics the norm is affine in both parts, so its answers to 0, 1 and i say all about it
    probe = torch.tensor([0, 1, 1j], dtype=torch.complex128, device=conv.weight_real.device)
    answers = copy.deepcopy(norm).double().eval()(probe.view(3, 1, 1, 1).expand(-1, norm.num_features, -1, -1))
    shift, of_real, of_imag = answers[:, :, :, :, None].unbind(0)
    of_real, of_imag = of_real - shift, of_imag - shift
    to_real, to_imag = _pairs_matrix(conv.weight.to(torch.complex128)).chunk(2)
    weight = [of_real.real * to_real + of_imag.real * to_imag, of_real.imag * to_real + of_imag.imag * to_imag]
    return torch.cat(weight), torch.cat([shift.real, shift.imag]).flatten()


def _pairs_matrix(weight: Tensor) -> Tensor:
    """[[Wr, −Wi], [Wi, Wr]] over the first two axes."""
    top, bottom = torch.cat([weight.real, -weight.imag], 1), torch.cat([weight.imag, weight.real], 1)
    return torch.cat([top, bottom])


def export_onnx(model: CMuSeNet, path: str | os.PathLike[str]) -> None:
    """Write the trained network as an ONNX file, Fourier transform and normalisation of the spectrum included.

    The file takes ``iq``, real pairs ``(batch, 2, fft_size)`` in float32, and gives ``scores`` of the same shape: real
    parts in row 0, imaginary parts in row 1. The size of the batch is free. Nothing is checked: silence gives nan.

    Args:
        model: The network; it is not changed.
        path: Where to write.

    Raises:
        InputError: If the packages ``onnx`` and ``onnxscript`` are missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as missing:
        raise checks.InputError("export needs onnx and onnxscript: pip install 'netwright[onnx]'") from missing
    pairs = to_real_pairs(model).cpu()
    antennas = () if model.in_channels == 1 else (model.in_channels,)
    example = torch.randn(2, *antennas, 2, model.preprocess.fft_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's exporter uses what torch has deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            pairs,
            (example,),
            os.fspath(path),
            input_names=["iq"],
            output_names=["scores"],
            dynamic_shapes={"iq": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def _real_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)


def _real_stem(in_channels: int, out_channels: int, *_: object, **__: object) -> nn.Module:
    return nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3)


def _only_act(_channels: int, act: bool) -> nn.Module:
    return nn.ReLU() if act else nn.Identity()


__all__ = ["RealPairsMuSeNet", "RealPairsSpectrum", "export_onnx", "fold", "to_real_pairs"]
