r"""Convolutions that follow affine maps of the plane, by samples of a group (Mironenco and Forré, arXiv:2310.11366).

A lifting convolution looks at a picture through one kernel that is moved by every sampled element; a group convolution
goes on from there, and sums over the samples of its input. Maps are ``(batch, channels, samples, height, width)``.
The kernels are functions of coordinates, so that they can be read at any place: small sine networks.
Public names: :class:`LiftingConv2d`, :class:`GroupConv2d`, :class:`ProjectionConv2d` (back to the plane),
:class:`GroupMaxPool`, :class:`SirenKernel`; the groups are in :mod:`netwright.layers.liegroups`.
"""

from torch import Tensor, nn

from netwright import checks
from netwright.layers._lie_kernel import SampledConv2d, SirenKernel, volumes
from netwright.layers.liegroups import Samples


class LiftingConv2d(SampledConv2d):
    r"""From a picture to maps over places and group elements: one kernel, moved by every sampled element.

    .. math:: y(x, g) = |\det g^{-1}| \sum_u f(x + u)\, k(g^{-1} u) + b

    where u are the middles of the pixels of a window that is [−1, 1]² wide, and the factor is 1 if the group preserves
    volumes. If the picture is moved by a, the maps follow: y(a⁻¹x, a⁻¹g), but for the finite number of pixels. The
    kernel is cut to the unit disc of g⁻¹u: sharply if the group preserves volumes, else by a sigmoid of slope 2.

    Args:
        group: :class:`~netwright.layers.liegroups.SO`, ``SL`` or ``GLPlus``, of 2×2 matrices.
        num_samples: How many elements :meth:`sample` draws.
        in_channels: Channels of the picture.
        out_channels: Channels of the maps.
        kernel_size: Pixels; at least 2, since one pixel, in the middle, does not see the group.
        stride: As of ``nn.Conv2d``.
        padding: As of ``nn.Conv2d``.
        bias: Whether there is a bias, one for each channel.
        hidden: Width of the kernel network (:class:`SirenKernel`).
        layers: Its number of sine layers.
        w0: Their frequency.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Shape:
        ``(batch, in_channels, height, width)`` and n samples to ``(batch, out_channels, n, height', width')``.

    Raises:
        InputError: If the kernel is one pixel wide, sizes do not fit, or samples are not in the group.

    Source:
        arXiv:2310.11366, section 4.2.

    Example:
        >>> from netwright.layers.liegroups import SL
        >>> layer = LiftingConv2d(SL(2), 8, 1, 4, kernel_size=5)
        >>> layer(torch.randn(2, 1, 12, 12), layer.sample()).shape
        torch.Size([2, 4, 8, 8, 8])
    """

    def weight(self, samples: Samples) -> Tensor:
        """The kernels of these output samples: ``(out_channels, samples, in_channels, kernel_size²)``."""
        self._check_samples("samples", samples)
        return self._weight(lambda: self._on_plane(samples.inverse).permute(2, 0, 3, 1), samples.inverse)

    def forward(self, x: Tensor, samples: Samples) -> Tensor:
        checks.dimensions("x", x, "(batch, channels, height, width)")
        checks.size("x", x, 1, self.in_channels)
        y = self._convolve(x, self.weight(samples).flatten(0, 1))
        y = y.view(len(y), self.out_channels, -1, *y.shape[2:])
        return y if self.bias is None else y + self.bias.view(-1, 1, 1, 1).to(y.dtype)


class GroupConv2d(SampledConv2d):
    r"""From maps over the group to maps over the group.

    .. math:: y(x, g) = \sum_h \frac{1}{|\det h|} \sum_u f(x + u, h)\, k(g^{-1} u,\, \xi^{-1}(g^{-1} h)) + b

    with the samples h of the input, the coordinates ξ⁻¹ of the group (its ``xi_inv``) and the rest as in
    :class:`LiftingConv2d`. The sum over h, a Monte Carlo integral but for its scale, is one convolution over channels
    and samples. With ``kernel_size=1`` the kernel reads the group alone.

    Args:
        group: See :class:`LiftingConv2d`, also for the other arguments.
        num_samples: How many output elements :meth:`sample` draws.

    Shape:
        ``(batch, in_channels, n, height, width)``, n samples of the input and m of the output to
        ``(batch, out_channels, m, height', width')``.

    Raises:
        InputError: If sizes do not fit, or samples are not in the group.

    Source:
        arXiv:2310.11366, section 4.2. The published code divides by the determinants along the *output* samples, and
        its soft disc for GL⁺ also looks at the group's coordinates; this follows the formula.

    Example:
        >>> from netwright.layers.liegroups import SL
        >>> lift, layer = LiftingConv2d(SL(2), 8, 1, 4, 5), GroupConv2d(SL(2), 6, 4, 3, 5, padding=2)
        >>> first, second = lift.sample(), layer.sample()
        >>> layer(lift(torch.randn(2, 1, 12, 12), first), first, second).shape
        torch.Size([2, 3, 6, 8, 8])
    """

    least_kernel_size = 1
    relates_samples = True

    def weight(self, inputs: Samples, outputs: Samples) -> Tensor:
        """The kernels: ``(out_channels, output samples, in_channels, input samples, kernel_size²)``."""
        self._check_samples("inputs", inputs)
        self._check_samples("outputs", outputs)
        return self._weight(lambda: self._related(inputs.g, outputs.inverse), inputs.g, outputs.inverse)

    def _related(self, g: Tensor, inverse: Tensor) -> Tensor:
        relations = self.group.chart(inverse[:, None] @ g)
        values = self._read(self._moved_grid(inverse)[:, None], relations[:, :, None])
        if not self.group.volume_preserving:
            values = values / volumes(g)[:, None, None, None]
        return values.permute(3, 0, 4, 1, 2)

    def forward(self, x: Tensor, inputs: Samples, outputs: Samples) -> Tensor:
        self._check_maps(x, inputs)
        weight = self.weight(inputs, outputs).flatten(2, 3).flatten(0, 1)
        y = self._convolve(x.flatten(1, 2), weight)
        y = y.view(len(y), self.out_channels, -1, *y.shape[2:])
        return y if self.bias is None else y + self.bias.view(-1, 1, 1, 1).to(y.dtype)


class ProjectionConv2d(SampledConv2d):
    r"""From maps over the group back to maps over the plane, which do not depend on the group.

    .. math:: y(x) = \sum_h \frac{1}{|\det h|} \sum_u f(x + u, h)\, k(h^{-1} u) + b

    Args:
        group: See :class:`LiftingConv2d`, also for the other arguments.
        num_samples: How many elements :meth:`sample` draws; only for convenience, the samples are those of the input.

    Shape:
        ``(batch, in_channels, n, height, width)`` and n samples to ``(batch, out_channels, height', width')``.

    Raises:
        InputError: If the kernel is one pixel wide, sizes do not fit, or samples are not in the group.

    Source:
        arXiv:2310.11366, appendix (equation 136 in the numbering of the published code).

    Example:
        >>> from netwright.layers.liegroups import SL
        >>> lift, project = LiftingConv2d(SL(2), 8, 1, 4, 5), ProjectionConv2d(SL(2), 8, 4, 3, 5)
        >>> samples = lift.sample()
        >>> project(lift(torch.randn(2, 1, 12, 12), samples), samples).shape
        torch.Size([2, 3, 4, 4])
    """

    def weight(self, samples: Samples) -> Tensor:
        """The kernels of these input samples: ``(out_channels, in_channels, samples, kernel_size²)``."""
        self._check_samples("samples", samples)
        return self._weight(lambda: self._on_plane(samples.inverse).permute(2, 3, 0, 1), samples.inverse)

    def forward(self, x: Tensor, samples: Samples) -> Tensor:
        self._check_maps(x, samples)
        y = self._convolve(x.flatten(1, 2), self.weight(samples).flatten(1, 2))
        return y if self.bias is None else y + self.bias.view(-1, 1, 1).to(y.dtype)


class GroupMaxPool(nn.Module):
    """The largest value over the samples, which does not depend on their order: back to maps over the plane.

    Shape:
        ``(batch, channels, samples, height, width)`` to ``(batch, channels, height, width)``.

    Example:
        >>> GroupMaxPool()(torch.randn(2, 4, 8, 5, 5)).shape
        torch.Size([2, 4, 5, 5])
    """

    def forward(self, x: Tensor) -> Tensor:
        checks.dimensions("x", x, "(batch, channels, samples, height, width)")
        return x.amax(2)


__all__ = ["GroupConv2d", "GroupMaxPool", "LiftingConv2d", "ProjectionConv2d", "SirenKernel"]
