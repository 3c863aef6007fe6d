"""AlexNet (Krizhevsky, Sutskever, Hinton 2012), with its two groups or, as often studied, without."""

from torch import nn

from netwright import checks


def alexnet(groups: int = 1, num_classes: int = 1000, *, in_channels: int = 3) -> nn.Sequential:
    """AlexNet for 227×227 pictures.

    Args:
        groups: Of the second, fourth and fifth convolution: 2 as published, 1 for every channel to see every other.
        num_classes: Outputs.
        in_channels: Channels of the pictures.

    Raises:
        InputError: If ``groups`` is not 1 or 2.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     model = alexnet()
        >>> sum(parameter.numel() for parameter in model.parameters())
        62378344
    """
    if groups not in (1, 2):
        checks.fail("groups must be 1 or 2", groups)
    return nn.Sequential(
        nn.Conv2d(in_channels, 96, 11, stride=4),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.LocalResponseNorm(5),
        nn.Conv2d(96, 256, 5, padding=2, groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.LocalResponseNorm(5),
        nn.Conv2d(256, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 384, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1, groups=groups),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Linear(9216, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(4096, num_classes),
    )


__all__ = ["alexnet"]
