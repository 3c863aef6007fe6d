"""The small networks that most papers measure on: MLP, LeNet, Conv-2/4/6, VGG with batch normalisation."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from netwright import checks


class MLP(nn.Sequential):
    """Fully connected network: flatten, then linear layers with an activation between.

    Args:
        in_features: Inputs ``(batch, *)`` are flattened to ``(batch, in_features)``.
        hidden: Widths of the hidden layers.
        out_features: Outputs ``(batch, out_features)``.
        act: Makes the activation.
        norm: ``norm(width)`` makes what stands between a hidden layer and its activation; nothing if not given.

    Example:
        >>> MLP(784, (300, 100), 10)(torch.randn(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        act: Callable[[], nn.Module] = nn.ReLU,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(nn.Flatten())
        for width in hidden:
            self.append(nn.Linear(in_features, width))
            if norm is not None:
                self.append(norm(width))
            self.append(act())
            in_features = width
        self.append(nn.Linear(in_features, out_features))

    def __getitem__(self, index: slice | int) -> Any:
        # a part of it is a plain sequence: torch would call this class's constructor with layers
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


def lenet_300_100(in_features: int = 784, num_classes: int = 10) -> MLP:
    """LeNet-300-100 (LeCun, Bottou, Bengio, Haffner 1998): 266,610 parameters on MNIST."""
    return MLP(in_features, (300, 100), num_classes)


def lenet_5(in_channels: int = 1, num_classes: int = 10) -> nn.Sequential:
    """LeNet-5 in its usual modern form (ReLU, max pooling) for 28×28 pictures: 61,706 parameters with 10 classes."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def conv_n(layers: int, in_channels: int = 3, image_size: int = 32, num_classes: int = 10) -> nn.Sequential:
    """Conv-2, Conv-4 or Conv-6 (Frankle and Carbin 2019, arXiv:1803.03635, figure 2): small relatives of VGG.

    Pairs of 3×3 convolutions (64, 128, 256 channels), each pair followed by max pooling, then 256-256-classes.

    Args:
        layers: 2, 4 or 6 convolutions.
        in_channels: Channels of the pictures.
        image_size: Their height and width.
        num_classes: Outputs.
    """
    if layers not in (2, 4, 6):
        checks.fail("layers must be 2, 4 or 6", layers)
    model = nn.Sequential()
    for width in (64, 128, 256)[: layers // 2]:
        for _ in range(2):
            model.append(nn.Conv2d(in_channels, width, 3, padding=1))
            model.append(nn.ReLU())
            in_channels = width
        model.append(nn.MaxPool2d(2))
        image_size //= 2
    model.append(MLP(in_channels * image_size**2, (256, 256), num_classes))
    return model


_VGG = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def vgg_bn(
    depth: int = 16,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    widths: Sequence[int] = (64, 128, 256, 512, 512),
    conv: Callable[..., nn.Module] = nn.Conv2d,
) -> nn.Sequential:
    """VGG with batch normalisation and one linear layer for 32×32 pictures (Simonyan, Zisserman 2014, arXiv:1409.1556).

    Args:
        depth: 11, 13, 16 or 19, as the paper counts; the convolutions are three fewer, and have biases.
        num_classes: Outputs.
        in_channels: Channels of the pictures.
        widths: Channels of the five stages, each of which ends with max pooling.
        conv: ``conv(in_channels, out_channels, kernel_size, padding=)`` makes every convolution.

    Example:
        >>> with torch.device("meta"):
        ...     model = vgg_bn(16)
        >>> sum(parameter.numel() for parameter in model.parameters())
        14728266
    """
    if depth not in _VGG:
        checks.fail(f"depth must be one of {', '.join(map(str, _VGG))}", depth)
    model = nn.Sequential()
    for number, width in zip(_VGG[depth], widths, strict=True):
        for _ in range(number):
            model.extend([conv(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
            in_channels = width
        model.append(nn.MaxPool2d(2))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_channels, num_classes)])
    return model


__all__ = ["MLP", "conv_n", "lenet_5", "lenet_300_100", "vgg_bn"]
