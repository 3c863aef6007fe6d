"""The U-Nets of the complex-CNN study (arXiv:2302.04584; Ronneberger, Fischer, Brox 2015, arXiv:1505.04597), small."""

from typing import Literal

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.complex import ComplexConv2d, ComplexConvTranspose2d
from netwright.layers.complex_activations import ComplexMaxPool2d, SpectralUpsample2d
from netwright.layers.complex_network import FromComplex, Readout, ToComplex
from netwright.models.vision.complex_resnet import Kind, Width, norm_act, widths_of
from netwright.models.vision.resnet import batch_norm_relu

Up = Literal["transpose", "spectral"]


class ComplexUNet(nn.Module):
    """Segmentation of complex pictures ``(batch, in_channels, height, width)``: real ``(batch, num_classes, …)``.

    Every level has two 3×3 convolutions with batch normalisation and activation; between levels are max pooling (by
    modulus) on the way down, and a transposed convolution or spectral upsampling on the way up. Real kinds see real and
    imaginary part as 2·``in_channels`` channels; real inputs of so many channels are taken as such pairs by all kinds.

    Args:
        width: Channels of the first level, doubled with every level, or of all levels.
        kind: ``"complex"``, ``"real"`` of the same channels, or ``"real_x2"``, √2 times wider.
        levels: Resolutions; height and width have to be divisible by 2^(levels − 1).
        in_channels: Complex channels of the pictures.
        num_classes: Channels of the output.
        activation: Of the complex network; the real ones have ReLU.
        whiten: Whether its batch normalisation whitens.
        readout: Whether its outputs are ``"real"`` or ``"abs"`` of the last layer.
        up: ``"transpose"``, or ``"spectral"`` followed by a 1×1 convolution.

    Raises:
        InputError: If an argument is not as above, or the pictures do not fit the levels.

    Example:
        >>> ComplexUNet(4)(torch.randn(2, 1, 16, 16, dtype=torch.complex64)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        width: Width = 8,
        kind: Kind = "complex",
        *,
        levels: int = 3,
        in_channels: int = 1,
        num_classes: int = 1,
        activation: str = "crelu",
        whiten: bool = True,
        readout: Readout = "real",
        up: Up = "transpose",
    ) -> None:
        super().__init__()
        checks.at_least("levels", levels, 1)
        checks.known("way up", up, ("transpose", "spectral"))
        widths = widths_of(kind, width, levels)
        self.kind = kind
        self.levels = levels
        is_complex = kind == "complex"
        conv, transposed = (ComplexConv2d, ComplexConvTranspose2d) if is_complex else (nn.Conv2d, nn.ConvTranspose2d)
        self.front: nn.Module = ToComplex("pairs") if is_complex else FromComplex("pairs")
        self.pool: nn.Module = ComplexMaxPool2d(2) if is_complex else nn.MaxPool2d(2)

        def level(inner: int, outer: int) -> nn.Sequential:
            layers = nn.Sequential()
            for channels in (inner, outer):
                layers.append(conv(channels, outer, 3, padding=1, bias=False))
                layers.append(norm_act(outer, True, activation, whiten) if is_complex else batch_norm_relu(outer, True))
            return layers

        first = in_channels if is_complex else 2 * in_channels
        self.down = nn.ModuleList(level(a, b) for a, b in zip([first, *widths], widths, strict=False))
        steps = list(zip(reversed(widths[1:]), reversed(widths[:-1]), strict=True))
        self.ups = nn.ModuleList(
            transposed(deep, shallow, 2, stride=2)
            if up == "transpose"
            else nn.Sequential(_Spectral(), conv(deep, shallow, 1))
            for deep, shallow in steps
        )
        self.up_levels = nn.ModuleList(level(2 * shallow, shallow) for _, shallow in steps)
        self.last = conv(widths[0], num_classes, 1)
        self.head: nn.Module = FromComplex(readout) if is_complex else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        for name, size in zip(("height", "width"), input.shape[2:], strict=True):
            checks.divisible(name, size, "2^(levels - 1)", 2 ** (self.levels - 1))
        x = self.front(input)
        skips: list[Tensor] = []
        for number, level in enumerate(self.down):
            x = level(self.pool(x) if number else x)
            skips.append(x)
        skips.pop()
        for up, level in zip(self.ups, self.up_levels, strict=True):
            x = level(torch.cat([skips.pop(), up(x)], 1))
        output: Tensor = self.head(self.last(x))
        return output


class _Spectral(SpectralUpsample2d):
    """Spectral upsampling also of real pictures, which stay real."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_complex():
            return super().forward(input)
        return super().forward(torch.complex(input, torch.zeros_like(input))).real


__all__ = ["ComplexUNet", "Up"]
