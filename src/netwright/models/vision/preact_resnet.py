"""PreActResNet18 for small pictures, with or without normalisation (He, Zhang, Ren, Sun 2016, arXiv:1603.05027).

The variant that work on robustness and on grokking uses (Humayun, Balestriero, Baraniuk 2024, arXiv:2402.15555): no
normalisation and no activation between the last block and the classifier.
"""

from torch import nn

from netwright import checks
from netwright.models.vision.resnet import batch_norm_relu
from netwright.models.vision.resnet_v2 import ResNetV2


def preact_resnet18(
    width: int = 64, num_classes: int = 10, batch_norm: bool = True, *, in_channels: int = 3
) -> ResNetV2:
    """Four stages of two basic pre-activation blocks, mean over space, linear classifier.

    Args:
        width: Channels of the first stage; the others have 2, 4 and 8 times as many.
        num_classes: Outputs ``(batch, num_classes)``.
        batch_norm: Without it the network is piecewise linear in training too, and has no normalisation at all.
        in_channels: Channels of the input ``(batch, in_channels, height, width)``, 32×32 pixels as published.

    Source:
        arXiv:2402.15555, section 4, which has ``width=16, batch_norm=False``. Parameters with 10 classes: 11,171,146
        at width 64, without normalisation 11,164,362, and 2,792,810 at width 32.

    Example:
        >>> with torch.device("meta"):
        ...     model = preact_resnet18()
        >>> sum(parameter.numel() for parameter in model.parameters())
        11171146
    """
    checks.at_least("width", width, 1)
    model = ResNetV2(
        (2, 2, 2, 2),
        (width, 2 * width, 4 * width, 8 * width),
        in_channels=in_channels,
        num_classes=num_classes,
        stem_channels=width,
        norm_act=batch_norm_relu if batch_norm else _relu,
    )
    model.norm_act = nn.Identity()
    return model


def _relu(channels: int, act: bool) -> nn.Module:  # noqa: ARG001
    # not in place: the shortcut still needs what comes in
    return nn.ReLU()


__all__ = ["preact_resnet18"]
