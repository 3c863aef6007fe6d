"""Mobile inverted bottlenecks: the blocks of MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) and EfficientNet
(Tan and Le 2019, arXiv:1905.11946), and these two networks.

All layers come from the factories of :mod:`netwright.models.vision.resnet`: ``conv(in_channels, out_channels,
kernel_size, stride=, padding=, groups=)`` without bias and ``norm_act(channels, act)``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from netwright import checks
from netwright.models.vision.resnet import ConvFactory, NormActFactory
from netwright.models.vision.vit import DropPath


def mobile_conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Module:
    """A plain convolution without bias, with groups."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, groups=groups, bias=False)


def batch_norm_act(
    channels: int,
    act: bool,
    *,
    activation: Callable[..., nn.Module] = nn.SiLU,
    eps: float = 1e-5,
    momentum: float = 0.1,
) -> nn.Module:
    """Batch normalisation, followed by ``activation`` where the network has one."""
    norm = nn.BatchNorm2d(channels, eps=eps, momentum=momentum)
    return nn.Sequential(norm, activation(inplace=True)) if act else norm


def make_divisible(channels: float, divisor: int = 8, at_least: int | None = None, lowest_ratio: float = 0.9) -> int:
    """The multiple of ``divisor`` nearest to ``channels``, never below ``lowest_ratio`` of it.

    Args:
        channels: Wanted number of channels.
        divisor: What the result is a multiple of.
        at_least: Smallest result; ``divisor`` if not given.
        lowest_ratio: Where rounding down loses more than that, it is rounded up.

    Example:
        >>> make_divisible(24 * 0.54), make_divisible(20), make_divisible(11)
        (16, 24, 16)
    """
    checks.positive("channels", channels)
    checks.at_least("divisor", divisor, 1)
    rounded = max(divisor if at_least is None else at_least, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < lowest_ratio * channels else rounded


class SqueezeExcite(nn.Module):
    r"""Channels rescaled by what their means over space say (Hu et al. 2017, arXiv:1709.01507).

    .. math:: y = x \cdot \sigma(W_2\,\phi(W_1 \operatorname{mean}_{h,w} x + b_1) + b_2)

    Args:
        channels: Channels of the input ``(batch, channels, height, width)``; the output has the same shape.
        reduced: Rows of :math:`W_1`.
        act: Makes φ.
        gate: Makes what stands for σ.

    Example:
        >>> SqueezeExcite(32, 8)(torch.randn(2, 32, 4, 4)).shape
        torch.Size([2, 32, 4, 4])
    """

    def __init__(
        self,
        channels: int,
        reduced: int,
        act: Callable[[], nn.Module] = nn.SiLU,
        gate: Callable[[], nn.Module] = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.act = act()
        self.expand = nn.Conv2d(reduced, channels, 1)
        self.gate = gate()

    def forward(self, input: Tensor) -> Tensor:
        means = input.mean(dim=(2, 3), keepdim=True)
        output: Tensor = input * self.gate(self.expand(self.act(self.reduce(means))))
        return output


class MBConv(nn.Module):
    """Inverted bottleneck: 1×1 expansion, depthwise convolution, squeeze-excite, linear 1×1 projection, shortcut.

    The shortcut is there where shape allows. With ``expand_ratio`` 1 there is no expansion, as in the first block of
    both networks.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        out_channels: Channels of the output.
        kernel_size: Of the depthwise convolution.
        stride: Of the depthwise convolution.
        expand_ratio: Channels inside, as a multiple of ``in_channels``.
        se_ratio: Rows of the squeeze-excite as a fraction of ``in_channels`` (not of the channels inside); 0 for none.
        act: Makes the activation inside of the squeeze-excite.
        drop_path: Rate at which samples skip the branch in training.
        conv: Makes every convolution.
        norm_act: Makes normalisation and activation.

    Example:
        >>> MBConv(16, 24, kernel_size=5, stride=2)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 24, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        expand_ratio: float = 6.0,
        se_ratio: float = 0.0,
        *,
        act: Callable[[], nn.Module] = nn.SiLU,
        drop_path: float = 0.0,
        conv: ConvFactory = mobile_conv,
        norm_act: NormActFactory = batch_norm_act,
    ) -> None:
        super().__init__()
        checks.at_least("expand_ratio", expand_ratio, 1)
        checks.at_least("se_ratio", se_ratio, 0)
        if kernel_size % 2 == 0:
            checks.fail("kernel_size must be odd", kernel_size)
        inside = make_divisible(in_channels * expand_ratio) if expand_ratio != 1 else in_channels
        self.branch = nn.Sequential()
        if expand_ratio != 1:
            self.branch.append(conv(in_channels, inside, 1))
            self.branch.append(norm_act(inside, True))
        self.branch.append(conv(inside, inside, kernel_size, stride=stride, padding=kernel_size // 2, groups=inside))
        self.branch.append(norm_act(inside, True))
        if se_ratio > 0:
            self.branch.append(SqueezeExcite(inside, max(1, int(in_channels * se_ratio)), act))
        self.branch.append(conv(inside, out_channels, 1))
        self.branch.append(norm_act(out_channels, False))
        self.has_shortcut = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path) if self.has_shortcut and drop_path > 0 else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.branch(input)
        return input + self.drop_path(output) if self.has_shortcut else output


class DepthwiseSeparable(MBConv):
    """Depthwise and linear 1×1 convolution: an :class:`MBConv` without expansion; arguments as there."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float = 0.0,
        *,
        act: Callable[[], nn.Module] = nn.SiLU,
        drop_path: float = 0.0,
        conv: ConvFactory = mobile_conv,
        norm_act: NormActFactory = batch_norm_act,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            1.0,
            se_ratio,
            act=act,
            drop_path=drop_path,
            conv=conv,
            norm_act=norm_act,
        )


@dataclass(frozen=True)
class Stage:
    """Blocks in a row; the first of them has the stride.

    Attributes:
        repeats: How many.
        kernel_size: Of the depthwise convolutions.
        stride: Of the first block.
        expand_ratio: See :class:`MBConv`.
        channels: Output channels.
        se_ratio: See :class:`MBConv`.
    """

    repeats: int
    kernel_size: int
    stride: int
    expand_ratio: float
    channels: int
    se_ratio: float = 0.0


class MobileNet(nn.Module):
    """Stem, stages of :class:`MBConv`, 1×1 head convolution, mean over space, dropout, classifier.

    Args:
        stages: What to build between stem and head.
        stem_channels: Channels after the 3×3 stem.
        head_channels: Channels after the head convolution.
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        num_classes: Outputs ``(batch, num_classes)``.
        stem_stride: 2, or 1 for small pictures.
        drop_rate: Of the dropout before the classifier.
        drop_path_rate: Of the last block; it rises linearly from 0 at the first.
        act: Makes the activation inside of the squeeze-excites.
        conv: Makes every convolution.
        norm_act: Makes normalisation and activation.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        stem_channels: int = 32,
        head_channels: int = 1280,
        in_channels: int = 3,
        num_classes: int = 1000,
        stem_stride: int = 2,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.0,
        act: Callable[[], nn.Module] = nn.SiLU,
        conv: ConvFactory = mobile_conv,
        norm_act: NormActFactory = batch_norm_act,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            conv(in_channels, stem_channels, 3, stride=stem_stride, padding=1), norm_act(stem_channels, True)
        )
        self.stages = nn.Sequential()
        total = sum(stage.repeats for stage in stages)
        built = 0
        channels = stem_channels
        for stage in stages:
            layers = nn.Sequential()
            for index in range(stage.repeats):
                layers.append(
                    MBConv(
                        channels,
                        stage.channels,
                        stage.kernel_size,
                        stage.stride if index == 0 else 1,
                        stage.expand_ratio,
                        stage.se_ratio,
                        act=act,
                        drop_path=drop_path_rate * built / total,
                        conv=conv,
                        norm_act=norm_act,
                    )
                )
                channels = stage.channels
                built += 1
            self.stages.append(layers)
        self.head = nn.Sequential(conv(channels, head_channels, 1), norm_act(head_channels, True))
        self.dropout = nn.Dropout(drop_rate)
        self.classifier = nn.Linear(head_channels, num_classes)

    def features(self, input: Tensor) -> Tensor:
        """What the classifier sees: ``(batch, head_channels)``."""
        output: Tensor = self.head(self.stages(self.stem(input)))
        return output.mean(dim=(2, 3))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.dropout(self.features(input)))
        return output


# repeats, kernel, stride, expansion, channels
MOBILENET_V2 = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(3, 3, 2, 6, 32),
    Stage(4, 3, 2, 6, 64),
    Stage(3, 3, 1, 6, 96),
    Stage(3, 3, 2, 6, 160),
    Stage(1, 3, 1, 6, 320),
)
EFFICIENTNET_B0 = (
    Stage(1, 3, 1, 1, 16, 0.25),
    Stage(2, 3, 2, 6, 24, 0.25),
    Stage(2, 5, 2, 6, 40, 0.25),
    Stage(3, 3, 2, 6, 80, 0.25),
    Stage(3, 5, 1, 6, 112, 0.25),
    Stage(4, 5, 2, 6, 192, 0.25),
    Stage(1, 3, 1, 6, 320, 0.25),
)


def mobilenet_v2(width: float = 1.0, num_classes: int = 1000, **options: object) -> MobileNet:
    """MobileNetV2 with ReLU6: 3,504,872 parameters at width 1 with 1000 classes.

    Args:
        width: Multiplier of the channels, which are rounded to multiples of 8; the head never gets narrower.
        num_classes: Outputs.
        options: Further arguments of :class:`MobileNet`.

    Example:
        >>> with torch.device("meta"):
        ...     model = mobilenet_v2()
        >>> sum(parameter.numel() for parameter in model.parameters())
        3504872
    """
    checks.positive("width", width)
    options.setdefault("norm_act", partial(batch_norm_act, activation=nn.ReLU6))
    options.setdefault("act", nn.ReLU)
    return MobileNet(
        _scaled(MOBILENET_V2, width),
        stem_channels=make_divisible(32 * width),
        head_channels=make_divisible(1280 * max(1.0, width)),
        num_classes=num_classes,
        **options,  # type: ignore[arg-type]
    )


def efficientnet_b0(num_classes: int = 1000, **options: object) -> MobileNet:
    """EfficientNet-B0 with SiLU: 5,288,548 parameters with 1000 classes.

    Args:
        num_classes: Outputs.
        options: Further arguments of :class:`MobileNet`.

    Example:
        >>> with torch.device("meta"):
        ...     model = efficientnet_b0()
        >>> sum(parameter.numel() for parameter in model.parameters())
        5288548
    """
    return MobileNet(EFFICIENTNET_B0, num_classes=num_classes, **options)  # type: ignore[arg-type]


def mobilenet_small(num_classes: int = 10, se_ratio: float = 0.0, **options: object) -> MobileNet:
    """A test-bed for small pictures: 4 inverted bottlenecks; with squeeze-excite a small EfficientNet.

    Args:
        num_classes: Outputs.
        se_ratio: 0 as in MobileNetV2, 0.25 as in EfficientNet.
        options: Further arguments of :class:`MobileNet`.

    Example:
        >>> mobilenet_small()(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    stages = (
        Stage(1, 3, 1, 1, 8, se_ratio),
        Stage(1, 3, 2, 4, 16, se_ratio),
        Stage(1, 5 if se_ratio else 3, 1, 4, 16, se_ratio),
        Stage(1, 3, 2, 4, 24, se_ratio),
    )
    arguments: dict[str, object] = {"stem_channels": 8, "head_channels": 64, "stem_stride": 1, "drop_rate": 0.0}
    return MobileNet(stages, num_classes=num_classes, **(arguments | options))  # type: ignore[arg-type]


def _scaled(stages: Sequence[Stage], width: float) -> list[Stage]:
    return [
        Stage(s.repeats, s.kernel_size, s.stride, s.expand_ratio, make_divisible(s.channels * width), s.se_ratio)
        for s in stages
    ]


__all__ = [
    "EFFICIENTNET_B0",
    "MOBILENET_V2",
    "DepthwiseSeparable",
    "MBConv",
    "MobileNet",
    "SqueezeExcite",
    "Stage",
    "batch_norm_act",
    "efficientnet_b0",
    "make_divisible",
    "mobile_conv",
    "mobilenet_small",
    "mobilenet_v2",
]
