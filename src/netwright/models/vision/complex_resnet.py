"""The residual networks of the complex-CNN study (arXiv:2302.04584): a real one, a wider real one, and a complex one.

The three differ in their numbers alone: :class:`netwright.models.vision.resnet.ResNet` with complex factories.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from netwright import checks
from netwright.layers.complex import ComplexConv2d, ComplexLinear
from netwright.layers.complex_activations import make_activation
from netwright.layers.complex_network import FromComplex, Readout, ToComplex
from netwright.layers.complex_norm import ComplexBatchNorm2d
from netwright.models.vision.resnet import ResNet

Kind = Literal["real", "real_x2", "complex"]
Width = float | Sequence[int]


def widths_of(kind: Kind, width: Width, stages: int) -> list[int]:
    """Channels of each stage, every one twice as wide as the last; √2 times more of them with ``"real_x2"``.

    That gives about twice the parameters of ``"real"``, as a complex network has. Channels that are given one by one
    are taken as they are; :func:`netwright.analysis.fair_width.matched_widths` finds those that match closely.

    Example:
        >>> widths_of("real_x2", 8, 3), widths_of("real_x2", (11, 23, 46), 3)
        ([11, 23, 45], [11, 23, 46])
    """
    checks.known("kind of network", kind, get_args(Kind))
    if not isinstance(width, int | float):
        if len(width) != stages:
            checks.fail(f"width must be a number or {stages} numbers", width)
        return list(width)
    checks.at_least("width", width, 1)
    factor = math.sqrt(2) if kind == "real_x2" else 1.0
    return [round(factor * width * 2**stage) for stage in range(stages)]


class ComplexResNet(nn.Module):
    """A residual network for complex pictures ``(batch, in_channels, height, width)``; logits are real.

    Real kinds see real and imaginary part as 2·``in_channels`` channels; real inputs of so many channels are taken as
    such pairs by all kinds.

    Args:
        depth: 6n + 2: 8, 14, 20, …; three stages of n blocks.
        width: Channels of the first stage, complex ones for ``"complex"``, or of all three; see :func:`widths_of`.
        kind: ``"complex"``, ``"real"`` of the same channels, or ``"real_x2"``, √2 times wider.
        in_channels: Complex channels of the pictures.
        num_classes: Outputs ``(batch, num_classes)``.
        activation: Of the complex network; the real ones have ReLU.
        whiten: Whether its batch normalisation whitens.
        readout: Whether its logits are ``"abs"`` or ``"real"`` of the last layer.

    Raises:
        InputError: If depth, width, kind or activation are not as above.

    Source:
        arXiv:2302.04584, whose point is the comparison of all three kinds. Its own networks are not known in detail.

    Example:
        >>> import torch
        >>> ComplexResNet(8, 4, "complex")(torch.randn(2, 1, 16, 16, dtype=torch.complex64)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        depth: int = 8,
        width: Width = 16,
        kind: Kind = "complex",
        *,
        in_channels: int = 1,
        num_classes: int = 10,
        activation: str = "crelu",
        whiten: bool = True,
        readout: Readout = "abs",
    ) -> None:
        super().__init__()
        widths = widths_of(kind, width, 3)
        if depth < 8 or (depth - 2) % 6:
            checks.fail("depth must be 6n + 2 (8, 14, 20, …)", depth)
        blocks = [(depth - 2) // 6] * 3
        self.kind = kind
        if kind == "complex":
            self.front: nn.Module = ToComplex("pairs")
            self.body = ResNet(
                blocks,
                widths,
                in_channels=in_channels,
                num_classes=num_classes,
                conv=_conv,
                norm_act=lambda channels, act: norm_act(channels, act, activation, whiten),
                act=lambda: make_activation(activation),
                classifier=ComplexLinear,
            )
            self.head: nn.Module = FromComplex(readout)
        else:
            self.front = FromComplex("pairs")
            self.body = ResNet(blocks, widths, in_channels=2 * in_channels, num_classes=num_classes)
            self.head = nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(self.front(input)))
        return output


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    return ComplexConv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)


def norm_act(channels: int, act: bool, activation: str = "crelu", whiten: bool = True) -> nn.Module:
    """Complex batch normalisation, followed by an activation where the network has one."""
    norm = ComplexBatchNorm2d(channels, whiten=whiten)
    return nn.Sequential(norm, make_activation(activation, channels)) if act else norm


__all__ = ["ComplexResNet", "Kind", "Width", "norm_act", "widths_of"]
