"""Poincaré ResNet (van Spengler, Berkhout, Mettes 2023, arXiv:2303.14027), and its Euclidean twin."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers.hyperbolic import Backward, PoincareBall
from netwright.layers.hyperbolic_layers import Init, PoincareConv2d, PoincareLinear, mobius_skip
from netwright.layers.hyperbolic_norm import Mean, PoincareBatchNorm2d

_Conv = Callable[[int, int, int, int, int], nn.Module]  # channels in and out, kernel, stride, padding
_Norm = Callable[[int], nn.Module]
_Skip = Callable[[Tensor, Tensor], Tensor]


class _Block(nn.Module):
    """ReLU(branch(x) ⊕ shortcut(x)); the shortcut is a strided 1×1 convolution where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int, conv: _Conv, norm: _Norm, skip: _Skip) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            conv(channels, width, 3, stride, 1), norm(width), nn.ReLU(), conv(width, width, 3, 1, 1), norm(width)
        )
        changes = stride != 1 or channels != width
        self.shortcut = conv(channels, width, 1, stride, 0) if changes else nn.Identity()
        self.skip = skip

    def forward(self, input: Tensor) -> Tensor:
        return functional.relu(self.skip(self.branch(input), self.shortcut(input)))


class _Network(nn.Module):
    """The network of both geometries: stem, three stages of blocks, mean over space, linear head."""

    def __init__(
        self,
        classes: int,
        channels: Sequence[int],
        depth: int,
        in_channels: int,
        conv: _Conv,
        norm: _Norm,
        skip: _Skip,
        head: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            checks.fail("depth must be 6n + 2 (8, 14, 20, …)", depth)
        if len(channels) != 3:
            checks.fail("channels must be three numbers, one a stage", tuple(channels))
        checks.at_least("classes", classes, 1)
        self.stem = nn.Sequential(conv(in_channels, channels[0], 3, 1, 1), norm(channels[0]), nn.ReLU())
        self.stages = nn.Sequential()
        width = channels[0]
        for stage, wider in enumerate(channels):
            blocks = nn.Sequential()
            for index in range((depth - 2) // 6):
                blocks.append(_Block(width, wider, 2 if stage and not index else 1, conv, norm, skip))
                width = wider
            self.stages.append(blocks)
        self.classifier = head(width, classes)

    def features(self, input: Tensor) -> Tensor:
        """What the classifier sees: ``(batch, channels)``."""
        maps: Tensor = self.stages(self.stem(input))
        return maps.mean((2, 3))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.classifier(self.features(input))
        return output


class PoincareResNet(_Network):
    """The residual network with all of its layers in the Poincaré ball.

    Between layers there are tangent vectors at the origin, one a pixel, in which ReLU and the mean over space act; the
    residual connection is a Möbius addition. All layers share one ball. No parameter is a point of the ball, so that
    Riemannian SGD and Adam, which the authors use, are plain SGD and Adam here (batches of 128, learning rate 0.001,
    momentum 0.9, weight decay 10⁻⁴, 500 epochs).

    Args:
        classes: Outputs ``(batch, classes)``.
        channels: Width of each of the three stages; the second and the third halve the picture.
        depth: 6n + 2: 8, 14, 20, 32, …
        c: Minus the curvature.
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        learnable: Whether c is learned.
        init: See :class:`~netwright.layers.hyperbolic_layers.PoincareLinear`.
        mean: See :class:`~netwright.layers.hyperbolic_norm.PoincareBatchNorm`.
        use_batch_stats: See there.
        backward: See :class:`~netwright.layers.hyperbolic.PoincareBall`.

    Raises:
        InputError: If ``c`` is not positive, ``depth`` not of this form, or ``channels`` not three.

    Source:
        arXiv:2303.14027, sections 3 and 4. The authors' code adds vectors along the width of the picture, and pools
        over windows of 8; here vectors are along the channels throughout, and the mean is over the whole map.

    Example:
        >>> model = PoincareResNet(10, depth=20)
        >>> sum(parameter.numel() for parameter in model.parameters())
        68757
    """

    def __init__(
        self,
        classes: int = 10,
        channels: Sequence[int] = (8, 16, 32),
        depth: int = 20,
        c: float = 0.1,
        *,
        in_channels: int = 3,
        learnable: bool = False,
        init: Init = "identity",
        mean: Mean = "midpoint",
        use_batch_stats: bool = False,
        backward: Backward = "written",
    ) -> None:
        ball = PoincareBall(c, learnable, backward=backward)

        def conv(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Module:
            return PoincareConv2d(inputs, outputs, kernel, ball, stride, padding, init=init)

        super().__init__(
            classes,
            channels,
            depth,
            in_channels,
            conv,
            partial(PoincareBatchNorm2d, ball=ball, mean=mean, use_batch_stats=use_batch_stats),
            _MobiusSkip(ball),
            partial(PoincareLinear, ball=ball, init=init),
        )


class _MobiusSkip(nn.Module):
    """f ⊕ r of tangent vectors along the channels."""

    def __init__(self, ball: PoincareBall) -> None:
        super().__init__()
        self.ball = ball

    def forward(self, f: Tensor, residual: Tensor) -> Tensor:
        return mobius_skip(f, residual, self.ball)


def euclidean_twin(
    classes: int = 10, channels: Sequence[int] = (8, 16, 32), depth: int = 20, *, in_channels: int = 3
) -> nn.Module:
    """The same network with torch's layers: convolutions with bias, batch normalisation, sums.

    It has more parameters by C − 1 a normalisation of C channels, which torch gives a variance each.

    Example:
        >>> euclidean_twin(10, depth=8)(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 10])
    """
    return _Network(classes, channels, depth, in_channels, nn.Conv2d, nn.BatchNorm2d, torch.add, nn.Linear)


__all__ = ["PoincareResNet", "euclidean_twin"]
