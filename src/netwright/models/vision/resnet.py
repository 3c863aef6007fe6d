"""CIFAR-style residual networks (He, Zhang, Ren, Sun 2015, arXiv:1512.03385) with exchangeable parts.

Every claim that needs a residual network takes this one and passes factories, so that two arms are exact twins but for
the part under study: ``conv(in_channels, out_channels, kernel_size, stride=, padding=)`` without bias, ``norm_act
(channels, act)`` for normalisation with or without the activation that follows it, ``act()`` for the activation after a
shortcut, ``attention(channels)`` at the end of a residual branch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

ConvFactory = Callable[..., nn.Module]
NormActFactory = Callable[[int, bool], nn.Module]
AttentionFactory = Callable[[int], nn.Module]
Kind = Literal["basic", "bottleneck", "single"]
Shortcut = Literal["A", "B", "pool"]

relu = partial(nn.ReLU, inplace=True)


def conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    """A plain convolution without bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)


def batch_norm_relu(channels: int, act: bool) -> nn.Module:
    """Batch normalisation, followed by ReLU where the network has an activation."""
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True)) if act else norm


class PadShortcut(nn.Module):
    """A shortcut without parameters: fewer pixels, and channels of zeros, half of them on either side.

    Shortcut "A" takes every ``stride``-th pixel, shortcut "pool" the mean of ``stride``×``stride`` of them.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, pool: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.pool = pool
        missing = out_channels - in_channels
        self.padding = (missing // 2, missing - missing // 2)

    def forward(self, input: Tensor) -> Tensor:
        if self.pool:
            fewer = functional.avg_pool2d(input, self.stride, ceil_mode=True)
        else:
            fewer = input[:, :, :: self.stride, :: self.stride]
        return functional.pad(fewer, (0, 0, 0, 0, *self.padding))


class Block(nn.Module):
    """Residual block: ``act(shortcut(x) + branch(x))``.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        width: Channels of the branch; the block gives ``width * expansion``.
        stride: Of the (first) 3×3 convolution.
        kind: Convolutions of the branch: ``"basic"`` two 3×3; ``"bottleneck"`` 1×1, 3×3, 1×1, with ``expansion`` 4
            (else 1); ``"single"`` one 3×3, so that every convolution has a shortcut of its own.
        shortcut: ``"A"`` (strided identity with zero channels), ``"pool"`` (mean over pixels, with zero channels) or
            ``"B"`` (1×1 convolution and normalisation), used where the shape changes.
        conv: Makes every convolution.
        norm_act: Makes normalisation and activation.
        act: Makes the activation after the sum.
        attention: Makes what closes the branch; nothing if not given.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        kind: Kind = "basic",
        shortcut: Shortcut = "B",
        conv: ConvFactory = conv,
        norm_act: NormActFactory = batch_norm_relu,
        act: Callable[[], nn.Module] = relu,
        attention: AttentionFactory | None = None,
    ) -> None:
        super().__init__()
        out_channels = width * (4 if kind == "bottleneck" else 1)
        self.branch = nn.Sequential()
        if kind == "bottleneck":
            self.branch.append(conv(in_channels, width, 1))
            self.branch.append(norm_act(width, True))
            self.branch.append(conv(width, width, 3, stride=stride, padding=1))
            self.branch.append(norm_act(width, True))
            self.branch.append(conv(width, out_channels, 1))
        else:
            self.branch.append(conv(in_channels, width, 3, stride=stride, padding=1))
            if kind == "basic":
                self.branch.append(norm_act(width, True))
                self.branch.append(conv(width, width, 3, padding=1))
        self.branch.append(norm_act(out_channels, False))
        if attention is not None:
            self.branch.append(attention(out_channels))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            if shortcut == "B":
                self.shortcut = nn.Sequential(
                    conv(in_channels, out_channels, 1, stride=stride), norm_act(out_channels, False)
                )
            else:
                self.shortcut = PadShortcut(in_channels, out_channels, stride, pool=shortcut == "pool")
        self.act = act()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.act(self.branch(input) + self.shortcut(input))
        return output


class ResNet(nn.Module):
    """A residual network for small pictures: 3×3 stem, stages of blocks, mean over space, linear classifier.

    Args:
        blocks: Blocks of each stage; the first stage keeps the resolution, every later one halves it.
        widths: Width of each stage.
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        num_classes: Outputs ``(batch, num_classes)``.
        kind: See :class:`Block`.
        shortcut: See :class:`Block`.
        stem: Makes the first convolution; as ``conv`` if not given.
        classifier: ``classifier(features, num_classes)`` makes the head.
        conv: See :class:`Block`.
        norm_act: See :class:`Block`.
        act: See :class:`Block`.
        attention: See :class:`Block`.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        kind: Kind = "basic",
        shortcut: Shortcut = "B",
        stem: ConvFactory | None = None,
        classifier: Callable[[int, int], nn.Module] = nn.Linear,
        conv: ConvFactory = conv,
        norm_act: NormActFactory = batch_norm_relu,
        act: Callable[[], nn.Module] = relu,
        attention: AttentionFactory | None = None,
    ) -> None:
        super().__init__()
        if len(blocks) != len(widths):
            checks.fail(f"widths must be as many as stages ({len(blocks)})", len(widths))
        checks.known("kind of block", kind, get_args(Kind))
        checks.known("shortcut", shortcut, get_args(Shortcut))
        self.stem = nn.Sequential((stem or conv)(in_channels, widths[0], 3, padding=1), norm_act(widths[0], True))
        self.stages = nn.Sequential()
        channels = widths[0]
        for stage, (number, width) in enumerate(zip(blocks, widths, strict=True)):
            layers = nn.Sequential()
            for index in range(number):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(
                    Block(
                        channels,
                        width,
                        stride,
                        kind=kind,
                        shortcut=shortcut,
                        conv=conv,
                        norm_act=norm_act,
                        act=act,
                        attention=attention,
                    )
                )
                channels = width * (4 if kind == "bottleneck" else 1)
            self.stages.append(layers)
        self.classifier = classifier(channels, num_classes)

    def features(self, input: Tensor) -> Tensor:
        """What the classifier sees: ``(batch, channels)``."""
        maps: Tensor = self.stages(self.stem(input))
        return maps.mean(dim=(2, 3))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.features(input))
        return output


def resnet_cifar(depth: int = 20, width: int = 16, *, shortcut: Shortcut = "A", **options: object) -> ResNet:
    """The 6n+2-layer network for CIFAR: three stages of n basic blocks, ``width``, 2·``width`` and 4·``width`` wide.

    Args:
        depth: 6n+2: 8, 14, 20, 32, 44, 56, 110, …
        width: Width of the first stage.
        shortcut: ``"A"`` as published, or ``"B"``.
        options: Further arguments of :class:`ResNet`.

    Source:
        arXiv:1512.03385, section 4.2. With 10 classes, depth 20 has 269,722 parameters ("A") or 272,474 ("B").

    Example:
        >>> resnet_cifar(20)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if depth < 8 or (depth - 2) % 6:
        checks.fail("depth must be 6n + 2 (8, 14, 20, …)", depth)
    number = (depth - 2) // 6
    return ResNet([number] * 3, [width, 2 * width, 4 * width], shortcut=shortcut, **options)  # type: ignore[arg-type]


# blocks of each stage, and their kind
_FOUR_STAGES: dict[int, tuple[tuple[int, ...], Kind]] = {
    18: ((2, 2, 2, 2), "basic"),
    34: ((3, 4, 6, 3), "basic"),
    50: ((3, 4, 6, 3), "bottleneck"),
    101: ((3, 4, 23, 3), "bottleneck"),
    152: ((3, 8, 36, 3), "bottleneck"),
}


def resnet_4stage(depth: int = 18, widths: Sequence[int] = (64, 128, 256, 512), **options: object) -> ResNet:
    """The four-stage network (ResNet-18 to ResNet-152) with a stem for small pictures.

    Args:
        depth: 18, 34, 50, 101 or 152.
        widths: Widths of the four stages.
        options: Further arguments of :class:`ResNet`.

    Example:
        >>> with torch.device("meta"):
        ...     model = resnet_4stage(18)
        >>> sum(parameter.numel() for parameter in model.parameters())
        11173962
    """
    if depth not in _FOUR_STAGES:
        checks.fail(f"depth must be one of {', '.join(map(str, _FOUR_STAGES))}", depth)
    blocks, kind = _FOUR_STAGES[depth]
    return ResNet(blocks, widths, kind=kind, **options)  # type: ignore[arg-type]


__all__ = [
    "AttentionFactory",
    "Block",
    "ConvFactory",
    "Kind",
    "NormActFactory",
    "PadShortcut",
    "ResNet",
    "Shortcut",
    "batch_norm_relu",
    "conv",
    "relu",
    "resnet_4stage",
    "resnet_cifar",
]
