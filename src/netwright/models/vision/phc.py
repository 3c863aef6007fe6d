"""Hypercomplex ResNets and VGGs (Grassucci, Zhang, Comminiello 2021, arXiv:2110.04176): about 1/n of the parameters."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import nn

from netwright import checks
from netwright.layers.hypercomplex import PHConv2d, PHMLinear
from netwright.models.vision.classic import vgg_bn
from netwright.models.vision.resnet import ResNet, resnet_4stage

Width = Literal["standard", "large"]

# the large widths are divisible by 3, so that n = 3 takes colour pictures as they are
RESNET_WIDTHS = {"standard": (64, 128, 256, 512), "large": (60, 120, 240, 516)}
SMALL_RESNET_WIDTHS = {"standard": (16, 32, 64), "large": (24, 72, 216)}
VGG_WIDTHS = {"standard": (64, 128, 256, 512, 512), "large": (24, 72, 216, 648, 648)}
_VGG_HEAD = {"standard": 512, "large": 516}


def phc_conv(n: int, **options: Any) -> Callable[..., nn.Module]:
    """A factory of hypercomplex convolutions without bias, for :class:`netwright.models.vision.resnet.ResNet`.

    Args:
        n: Number of components.
        options: ``algebra`` and ``learn_algebra`` of :class:`PHConv2d`.
    """
    return partial(PHConv2d, n=n, bias=False, **options)


def phc_resnet(
    depth: int = 18,
    n: int = 4,
    channels: int = 4,
    width: Width = "standard",
    num_classes: int = 10,
    **options: Any,
) -> ResNet:
    """Four-stage ResNet for small pictures, all of whose convolutions are hypercomplex; the classifier is real.

    Args:
        depth: 18, 34, 50, 101 or 152.
        n: Number of components.
        channels: Channels of the pictures, divisible by ``n``; see :func:`netwright.layers.hypercomplex.pad_channels`.
        width: ``"standard"`` (64-128-256-512) or ``"large"`` (60-120-240-516).
        num_classes: Outputs.
        options: ``algebra`` and ``learn_algebra`` of :class:`PHConv2d`.

    Source:
        arXiv:2110.04176, section V. The authors train with SGD (learning rate 0.1, momentum 0.9, cosine to 0), batches
        of 128 and 200 epochs.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = phc_resnet(18, n=3, channels=3, width="large")
        >>> sum(parameter.numel() for parameter in model.parameters())
        3635914
    """
    checks.known("width", width, RESNET_WIDTHS)
    return resnet_4stage(
        depth, RESNET_WIDTHS[width], in_channels=channels, num_classes=num_classes, conv=phc_conv(n, **options)
    )


def phc_resnet_small(
    depth: int = 20,
    n: int = 4,
    channels: int = 4,
    width: Width = "standard",
    num_classes: int = 10,
    **options: Any,
) -> ResNet:
    """Three-stage ResNet of 6k + 2 layers, all of whose convolutions are hypercomplex; the classifier is real.

    Args:
        depth: 6k + 2: 8, 14, 20, 32, 44, 56, 110, ….
        n: Number of components.
        channels: Channels of the pictures, divisible by ``n``.
        width: ``"standard"`` (16-32-64) or ``"large"`` (24-72-216).
        num_classes: Outputs.
        options: ``algebra`` and ``learn_algebra`` of :class:`PHConv2d`.
    """
    checks.known("width", width, SMALL_RESNET_WIDTHS)
    if depth < 8 or (depth - 2) % 6:
        checks.fail("depth must be 6k + 2 (8, 14, 20, …)", depth)
    return ResNet(
        [(depth - 2) // 6] * 3,
        SMALL_RESNET_WIDTHS[width],
        in_channels=channels,
        num_classes=num_classes,
        conv=phc_conv(n, **options),
    )


def phc_vgg(
    depth: int = 16,
    n: int = 4,
    channels: int = 4,
    width: Width = "standard",
    num_classes: int = 10,
    *,
    bias: bool = True,
    **options: Any,
) -> nn.Sequential:
    """VGG with batch normalisation for 32×32 pictures, hypercomplex but for the last of its three linear layers.

    Args:
        depth: 11, 13, 16 or 19.
        n: Number of components.
        channels: Channels of the pictures, divisible by ``n``.
        width: ``"standard"`` (64-128-256-512-512) or ``"large"`` (24-72-216-648-648).
        num_classes: Outputs.
        bias: Whether the convolutions have one; normalisation follows them, which makes it redundant.
        options: ``algebra`` and ``learn_algebra`` of :class:`PHConv2d`.

    Example:
        >>> import torch
        >>> phc_vgg(11, n=3, channels=3, width="large")(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    checks.known("width", width, VGG_WIDTHS)
    widths = VGG_WIDTHS[width]
    conv = partial(PHConv2d, n=n, bias=bias, **options)
    model = vgg_bn(depth, num_classes, in_channels=channels, widths=widths, conv=conv)
    hidden = _VGG_HEAD[width]
    model[-1] = nn.Sequential(
        nn.Dropout(),
        PHMLinear(widths[-1], hidden, n, **options),
        nn.ReLU(),
        nn.Dropout(),
        PHMLinear(hidden, hidden, n, **options),
        nn.ReLU(),
        nn.Linear(hidden, num_classes),
    )
    return model


__all__ = [
    "RESNET_WIDTHS",
    "SMALL_RESNET_WIDTHS",
    "VGG_WIDTHS",
    "Width",
    "phc_conv",
    "phc_resnet",
    "phc_resnet_small",
    "phc_vgg",
]
