"""QResNet (Fan, Li, Wang, Lai, Wang 2021, arXiv:2110.06081): the CIFAR ResNet with quadratic neurons."""

from functools import partial

from netwright.layers.quadratic import Form, QuadraticConv2d
from netwright.models.vision.resnet import ResNet, conv, resnet_cifar


def qresnet(
    depth: int = 20, form: Form = "full", *, width: int = 16, in_channels: int = 3, num_classes: int = 10
) -> ResNet:
    """The 6n+2-layer network with quadratic convolutions in all blocks; stem and classifier are conventional.

    Shortcuts have no parameters; the quadratic convolutions have biases, as in the authors' code. Train it with
    :func:`netwright.training.relinear.relinear_param_groups`; the authors' numbers are SGD with learning rate 0.1 (10⁻⁵
    for the quadratic terms), momentum 0.9, weight decay 10⁻⁴, batches of 128, 200 epochs, ×0.1 after 100 and 150.

    Args:
        depth: 6n+2: 8, 14, 20, 32, 44, 56, 110, …
        form: ``"full"`` or ``"compact"``.
        width: Width of the first stage.
        in_channels: Channels of the pictures.
        num_classes: Outputs.

    Source:
        arXiv:2110.06081, section V; depth 20 has 806,266 parameters (full) or 538,330 (compact), its conventional twin
        269,722.

    Example:
        >>> sum(parameter.numel() for parameter in qresnet(20).parameters())
        806266
    """
    return resnet_cifar(
        depth,
        width,
        in_channels=in_channels,
        num_classes=num_classes,
        stem=conv,
        conv=partial(QuadraticConv2d, form=form),
    )


__all__ = ["qresnet"]
