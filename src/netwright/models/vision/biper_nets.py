"""The binary networks of BiPer (Vargas et al. 2024, arXiv:2404.01278): ResNet-18, ResNet-20 and VGG-small for CIFAR.

The first convolution and the last linear layer are real-valued, all between is binary. Hardtanh stands in for ReLU.
Shortcuts that change the shape pool and add channels of zeros. The classifier of the residual networks normalises.
"""

from functools import partial
from typing import Any, Literal

from torch import nn

from netwright import checks
from netwright.layers.biper import BiPerConv2d
from netwright.models.vision.resnet import ConvFactory, ResNet, conv, resnet_4stage

_hardtanh = partial(nn.Hardtanh, inplace=True)


def batch_norm_hardtanh(channels: int, act: bool) -> nn.Module:
    """Batch normalisation, followed by Hardtanh where the network has an activation."""
    norm = nn.BatchNorm2d(channels)
    return nn.Sequential(norm, _hardtanh()) if act else norm


def biper_conv(freq: float = 20.0, stage: int = 1) -> ConvFactory:
    """A factory of binary convolutions without bias, for :class:`netwright.models.vision.resnet.ResNet`."""
    return partial(BiPerConv2d, bias=False, freq=freq, stage=stage)


def biper_resnet18(
    num_classes: int = 10,
    freq: float = 20.0,
    *,
    stage: int = 1,
    in_channels: int = 3,
    conv: ConvFactory | None = None,
) -> ResNet:
    """Binary ResNet-18 for pictures of 32×32: 64 to 512 channels, a shortcut around every pair of convolutions.

    Args:
        num_classes: Outputs ``(batch, num_classes)``.
        freq: The angular frequency ω.
        stage: 1 or 2; see :func:`netwright.layers.biper.set_stage`.
        in_channels: Channels of the pictures ``(batch, in_channels, height, width)``.
        conv: Makes the inner convolutions; :func:`biper_conv` if not given.

    Source:
        The authors' code; published for CIFAR-10: 93.75 % (600 epochs of stage 1, 300 of stage 2).

    Example:
        >>> with torch.device("meta"):
        ...     model = biper_resnet18()
        >>> sum(parameter.numel() for parameter in model.parameters())
        11005002
    """
    model = resnet_4stage(
        18, in_channels=in_channels, num_classes=num_classes, **_options(conv or biper_conv(freq, stage))
    )
    # the authors' ResNet-18, unlike the other two, has no activation after the first convolution
    model.stem[1] = nn.BatchNorm2d(64)
    _kaiming(model)
    return model


def biper_resnet20(
    num_classes: int = 10,
    freq: float = 20.0,
    *,
    stage: int = 1,
    width: int = 16,
    in_channels: int = 3,
    depth: int = 20,
    conv: ConvFactory | None = None,
) -> ResNet:
    """Binary ResNet-20 for pictures of 32×32: 16, 32 and 64 channels, a shortcut around every convolution.

    Args:
        num_classes: Outputs.
        freq: The angular frequency ω.
        stage: 1 or 2.
        width: Channels of the first stage.
        in_channels: Channels of the pictures.
        depth: 6n + 2.
        conv: Makes the inner convolutions; :func:`biper_conv` if not given.

    Raises:
        InputError: If ``depth`` is not 6n + 2.

    Source:
        The authors' code; published for CIFAR-10: 86.98 %. With 10 classes 270,522 parameters, 267,264 of them binary.

    Example:
        >>> biper_resnet20()(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    if depth < 8 or (depth - 2) % 6:
        checks.fail("depth must be 6n + 2 (8, 14, 20, …)", depth)
    model = ResNet(
        [(depth - 2) // 3] * 3,  # a block has one convolution, of which there are 2n a stage
        [width, 2 * width, 4 * width],
        kind="single",
        in_channels=in_channels,
        num_classes=num_classes,
        **_options(conv or biper_conv(freq, stage)),
    )
    _kaiming(model)
    return model


def biper_vgg_small(
    num_classes: int = 10,
    freq: float = 20.0,
    *,
    stage: int = 1,
    in_channels: int = 3,
    image_size: int = 32,
    conv: ConvFactory | None = None,
) -> nn.Sequential:
    """Binary VGG-small: six convolutions (128, 128, 256, 256, 512, 512 channels), three poolings, one linear layer.

    Pooling comes before normalisation; the classifier does not normalise.

    Args:
        num_classes: Outputs.
        freq: The angular frequency ω.
        stage: 1 or 2.
        in_channels: Channels of the pictures.
        image_size: Their height and width, divisible by 8.
        conv: Makes the inner convolutions; :func:`biper_conv` if not given.

    Raises:
        InputError: If 8 does not divide ``image_size``.

    Source:
        The authors' code; published for CIFAR-10: 92.46 %. With 10 classes 4,661,770 parameters, 4,571,136 of them
        binary.
    """
    checks.divisible("image_size", image_size, "the three poolings", 8)
    conv = conv or biper_conv(freq, stage)
    model = nn.Sequential(nn.Conv2d(in_channels, 128, 3, padding=1, bias=False), batch_norm_hardtanh(128, True))
    channels = 128
    for width, pool in ((128, True), (256, False), (256, True), (512, False), (512, True)):
        model.append(conv(channels, width, 3, padding=1))
        if pool:
            model.append(nn.MaxPool2d(2))
        model.append(batch_norm_hardtanh(width, True))
        channels = width
    head = nn.Linear(channels * (image_size // 8) ** 2, num_classes)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    model.extend([nn.Flatten(), head])
    _kaiming(model, "fan_out")
    return model


def _options(conv_between: ConvFactory) -> dict[str, Any]:
    return {
        "shortcut": "pool",
        "stem": conv,
        "conv": conv_between,
        "norm_act": batch_norm_hardtanh,
        "act": _hardtanh,
        "classifier": _normalised_linear,
    }


def _normalised_linear(features: int, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(features), nn.Linear(features, num_classes))


def _kaiming(model: nn.Module, mode: Literal["fan_in", "fan_out"] = "fan_in") -> None:
    """Draw the weights of all convolutions, binary or not, from Kaiming's normal distribution."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | BiPerConv2d):
            nn.init.kaiming_normal_(module.weight, mode=mode)


__all__ = ["batch_norm_hardtanh", "biper_conv", "biper_resnet18", "biper_resnet20", "biper_vgg_small"]
