"""Residual networks with the activation before the convolution (He, Zhang, Ren, Sun 2016, arXiv:1603.05027).

In these every normalisation is followed by an activation, so that a layer that does both fits without a remainder. The
factories are those of :mod:`netwright.models.vision.resnet`; ``norm_act`` is only called with an activation.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from netwright import checks
from netwright.models.vision.resnet import ConvFactory, NormActFactory, batch_norm_relu, conv


class PreActBlock(nn.Module):
    """Residual block ``shortcut(x) + branch(x)``, both from ``norm_act(x)`` where the shortcut has a convolution.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        out_channels: Channels of the output.
        stride: Of the (first) 3×3 convolution.
        bottleneck: 1×1, 3×3, 1×1 convolutions, the first two with a quarter of the channels, instead of two 3×3.
        project: Whether the shortcut is a 1×1 convolution; else the identity.
        pool_shortcut: Halve the resolution of the shortcut by 2×2 average pooling and not by the stride of its
            convolution (the "D" of ResNet-D).
        conv: Makes every convolution.
        norm_act: Makes normalisation and activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        *,
        bottleneck: bool = False,
        project: bool = False,
        pool_shortcut: bool = False,
        conv: ConvFactory = conv,
        norm_act: NormActFactory = batch_norm_relu,
    ) -> None:
        super().__init__()
        self.norm_act = norm_act(in_channels, True)
        if bottleneck:
            width = out_channels // 4
            self.branch = nn.Sequential(
                conv(in_channels, width, 1),
                norm_act(width, True),
                conv(width, width, 3, stride=stride, padding=1),
                norm_act(width, True),
                conv(width, out_channels, 1),
            )
        else:
            self.branch = nn.Sequential(
                conv(in_channels, out_channels, 3, stride=stride, padding=1),
                norm_act(out_channels, True),
                conv(out_channels, out_channels, 3, padding=1),
            )
        self.shortcut: nn.Module | None = None
        if project:
            pools = pool_shortcut and stride > 1
            self.shortcut = nn.Sequential(conv(in_channels, out_channels, 1, stride=1 if pools else stride))
            if pools:
                self.shortcut.insert(0, nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False))

    def forward(self, input: Tensor) -> Tensor:
        active = self.norm_act(input)
        output: Tensor = self.branch(active) + (input if self.shortcut is None else self.shortcut(active))
        return output


class ResNetV2(nn.Module):
    """Stem, stages of pre-activation blocks, normalisation and activation, mean over space, classifier.

    Args:
        blocks: Blocks of each stage; every stage but the first halves the resolution.
        channels: Output channels of each stage.
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        num_classes: Outputs ``(batch, num_classes)``.
        bottleneck: See :class:`PreActBlock`.
        pool_shortcut: See :class:`PreActBlock`.
        deep_stem: Three 3×3 convolutions, the first with stride 2, and max pooling, for large pictures; else one 3×3.
        stem_channels: Channels after the stem.
        conv: Makes every convolution.
        norm_act: Makes normalisation and activation.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        channels: Sequence[int],
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        bottleneck: bool = False,
        pool_shortcut: bool = False,
        deep_stem: bool = False,
        stem_channels: int = 64,
        conv: ConvFactory = conv,
        norm_act: NormActFactory = batch_norm_relu,
    ) -> None:
        super().__init__()
        if len(blocks) != len(channels):
            checks.fail(f"channels must be as many as stages ({len(blocks)})", len(channels))
        if deep_stem:
            half = stem_channels // 2
            self.stem = nn.Sequential(
                conv(in_channels, half, 3, stride=2, padding=1),
                norm_act(half, True),
                conv(half, half, 3, padding=1),
                norm_act(half, True),
                conv(half, stem_channels, 3, padding=1),
                nn.MaxPool2d(3, stride=2, padding=1),
            )
        else:
            self.stem = nn.Sequential(conv(in_channels, stem_channels, 3, padding=1))
        self.stages = nn.Sequential()
        before = stem_channels
        for stage, (number, width) in enumerate(zip(blocks, channels, strict=True)):
            layers = nn.Sequential()
            for index in range(number):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(
                    PreActBlock(
                        before,
                        width,
                        stride,
                        bottleneck=bottleneck,
                        project=stride > 1 or before != width,
                        pool_shortcut=pool_shortcut,
                        conv=conv,
                        norm_act=norm_act,
                    )
                )
                before = width
            self.stages.append(layers)
        self.norm_act = norm_act(before, True)
        self.classifier = nn.Linear(before, num_classes)

    def features(self, input: Tensor) -> Tensor:
        """What the classifier sees: ``(batch, channels)``."""
        active: Tensor = self.norm_act(self.stages(self.stem(input)))
        return active.mean(dim=(2, 3))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.features(input))
        return output


def resnet_v2_50d(num_classes: int = 1000, **options: object) -> ResNetV2:
    """ResNetV2-50D: 3, 4, 6, 3 bottleneck blocks, deep stem, shortcuts that pool; for pictures of 224×224.

    Args:
        num_classes: Outputs.
        options: Further arguments of :class:`ResNetV2`.

    Source:
        He et al. 2018, arXiv:1812.01187 (the "D" changes); 25,591,368 parameters with EvoNorm-S0 for every
        normalisation and activation, as in timm's ``resnetv2_50d_evos``.

    Example:
        >>> with torch.device("meta"):
        ...     model = resnet_v2_50d()
        >>> sum(parameter.numel() for parameter in model.parameters())
        25568584
    """
    return ResNetV2(
        (3, 4, 6, 3),
        (256, 512, 1024, 2048),
        num_classes=num_classes,
        bottleneck=True,
        pool_shortcut=True,
        deep_stem=True,
        **options,  # type: ignore[arg-type]
    )


def resnet_v2_cifar(depth: int = 20, width: int = 16, **options: object) -> ResNetV2:
    """The 6n+2-layer pre-activation network for CIFAR: three stages of n basic blocks.

    Args:
        depth: 6n+2: 8, 14, 20, 32, 44, 56, 110, …
        width: Channels of the first stage; the others have twice and four times as many.
        options: Further arguments of :class:`ResNetV2`.

    Example:
        >>> resnet_v2_cifar(8)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if depth < 8 or (depth - 2) % 6:
        checks.fail("depth must be 6n + 2 (8, 14, 20, …)", depth)
    number = (depth - 2) // 6
    channels = (width, 2 * width, 4 * width)
    return ResNetV2((number,) * 3, channels, stem_channels=width, **options)  # type: ignore[arg-type]


__all__ = ["PreActBlock", "ResNetV2", "resnet_v2_50d", "resnet_v2_cifar"]
