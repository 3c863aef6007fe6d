"""HyperZ·Z·W (Zhang 2024, arXiv:2401.17948) in the place of convolutions: its two operators, and a channel mixer.

:class:`HyperZZWConv2d` and :class:`HyperZZWConv1d` stand in for torch's layers; :func:`to_hyperzzw` puts them into a
whole network.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.hypernets.hyperzzw import CONVS, HyperZZWLocal, SlowNetGlobal, hyperzzw_global, instance_std
from netwright.layers._geometry import Size, conv_arguments, padding_sides, sizes
from netwright.surgery import input_shapes, swap, swapped

Branches = Literal["both", "local", "global"]
BRANCHES = ("both", "local", "global")


class _HyperZZWConv(nn.Module):
    """What both share: geometry, its checks, and the branches."""

    dims: ClassVar[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = "same",
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        size: int | None = None,
        local: bool = True,
        hidden_local: int = 32,
        hidden_global: int = 64,
        n_layers: int = 2,
        omega0: float = 2000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("groups", groups, 1)
        checks.divisible("in_channels", in_channels, "groups", groups)
        checks.divisible("out_channels", out_channels, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        if size is None and not local:
            raise checks.InputError("without the local branch the layer needs the size of the map, got none")
        if size is not None:
            checks.at_least("size", size, 2)
        self.kernel_size = sizes("kernel_size", kernel_size, self.dims)
        self.dilation = sizes("dilation", dilation, self.dims)
        self._check_same(sizes("stride", stride, self.dims), padding)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.groups = groups
        self.padding_mode = padding_mode
        self.size = size
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        slow: dict[str, Any] = {"n_layers": n_layers, "omega0": omega0, **factory}
        conv = CONVS[self.dims]
        self.local: HyperZZWLocal | None = None
        self.slow_net: SlowNetGlobal | None = None
        self.fast: nn.Module | None = None
        if local:
            self.local = HyperZZWLocal(
                in_channels,
                self.kernel_size,
                self.dims,
                dilation=self.dilation,
                groups=groups,
                padding_mode=padding_mode,
                hidden=hidden_local,
                context="sample",
                track_running_stats=True,
                **slow,
            )
        if size is not None:
            self.slow_net = SlowNetGlobal(in_channels, size, self.dims, hidden=hidden_global, **slow)
            self.fast = conv(in_channels, in_channels, 1, groups=groups, **factory)
        self.branches = int(local) + int(size is not None)
        self.bottleneck = conv(self.branches * in_channels, out_channels, 1, groups=groups, bias=bias, **factory)

    @classmethod
    def like(cls, conv: _ConvNd, size: int | None = None, *, local: bool = True, omega0: float = 2000.0) -> Self:
        """Replace ``conv``: its geometry, bias and squared weights of an output, summed; the rest is new."""
        new = cls(**conv_arguments(conv), size=size, local=local, omega0=omega0)
        with torch.no_grad():
            # the branches have about unit variance where the input of the convolution had
            variance = conv.weight.square().mean() * math.prod(new.kernel_size) / new.branches
            new.bottleneck.weight.uniform_(-1, 1).mul_((3 * variance).sqrt())
            if new.bottleneck.bias is not None and conv.bias is not None:
                new.bottleneck.bias.copy_(conv.bias)
        new.requires_grad_(conv.weight.requires_grad)
        if new.bottleneck.bias is not None and conv.bias is not None:
            new.bottleneck.bias.requires_grad_(conv.bias.requires_grad)
        return new

    def forward(self, input: Tensor) -> Tensor:
        axes = "length" if self.dims == 1 else "height, width"
        checks.dimensions("input", input, f"(batch, channels, {axes})", f"(channels, {axes})")
        checks.size("input", input, -1 - self.dims, self.in_channels)
        if input.ndim == self.dims + 1:
            return self._branches(input.unsqueeze(0)).squeeze(0)
        return self._branches(input)

    def _branches(self, input: Tensor) -> Tensor:
        views = []
        if self.local is not None:
            views.append(self.local(input))
        if self.slow_net is not None and self.fast is not None:
            if any(axis != self.size for axis in input.shape[2:]):
                expected, given = ("×".join(map(str, shape)) for shape in (self.slow_net.size, tuple(input.shape[2:])))
                checks.fail(f"input must have {expected} pixels, the size of the global kernel", given)
            kernel = self.slow_net().to(input.dtype)
            views.append(hyperzzw_global(input, kernel, instance_std(self.fast(input)).to(input.dtype)))
        # the views of one channel side by side, so that groups of channels stay together
        stacked = views[0] if len(views) == 1 else torch.stack(views, dim=2).flatten(1, 2)
        output: Tensor = self.bottleneck(stacked)
        return output

    def _check_same(self, stride: tuple[int, ...], padding: Size | str) -> None:
        if not _keeps_size(self.kernel_size, stride, padding, self.dilation):
            given = f"kernel_size={self.kernel_size}, stride={stride}, padding={padding!r}, dilation={self.dilation}"
            checks.fail("the layer needs an odd kernel, stride 1 and padding that keeps the size of the map", given)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, dilation={self.dilation}, "
            f"groups={self.groups}, bias={self.bottleneck.bias is not None}, size={self.size}"
        )


class HyperZZWConv1d(_HyperZZWConv):
    """The operators on ``(batch, in_channels, length)``; arguments as :class:`HyperZZWConv2d`."""

    dims = 1


class HyperZZWConv2d(_HyperZZWConv):
    r"""A local and a global HyperZ·Z·W operator side by side, mixed into the channels of the output.

    .. math:: Y = M\,\bigl[\operatorname{local}(Z);\ (Z \odot W)\, \mathrm{IS}(M_f Z)\bigr] + b

    with :class:`netwright.hypernets.hyperzzw.HyperZZWLocal` and :func:`netwright.hypernets.hyperzzw.hyperzzw_global`,
    two of the ten branches of the paper's block, and 1×1 convolutions M. Each sample writes its own local kernel, and
    standardisation over the batch has running statistics, so that a prediction does not depend on other samples.

    Takes what a :class:`torch.nn.Conv2d` takes that keeps the size of the map.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, height, width)`` or ``(in_channels, height, width)``.
        out_channels: Channels of the output, which has the size of the input.
        kernel_size: Of the local kernel; odd.
        stride: 1.
        padding: What keeps the size: ``"same"``, or ``dilation * (kernel_size - 1) / 2``.
        dilation: Of the local kernel.
        groups: Groups of channels that are not mixed.
        bias: Whether there is a bias b.
        padding_mode: As in torch.
        size: Pixels of the square map along each axis; without it there is no global branch, and maps of any size do.
        local: Whether there is a local branch.
        hidden_local: Width of the slow network of the local kernel.
        hidden_global: Width of the slow network of the global kernel.
        n_layers: Products in both.
        omega0: Their frequency.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If the geometry does not keep the size of the map, no branch is left, or an input has other channels
            or another size.

    Source:
        arXiv:2401.17948.

    Example:
        >>> HyperZZWConv2d(16, 32, 3, padding=1, size=8)(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 32, 8, 8])
        >>> HyperZZWConv2d.like(nn.Conv2d(16, 32, 5, padding=2))(torch.randn(2, 16, 8, 6)).shape
        torch.Size([2, 32, 8, 6])
    """

    dims = 2


def to_hyperzzw(
    model: nn.Module,
    example: Tensor,
    branches: Branches = "both",
    *,
    omega0: float = 2000.0,
    min_channels: int = 8,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of ``model`` with HyperZ·Z·W in place of the convolutions that keep the size of their map.

    Replaced are 1-D and 2-D convolutions with an odd kernel of at least 3 pixels along some axis, stride 1, padding
    that keeps the size, and at least ``min_channels`` input channels: the operators see each channel once, so a stem on
    few colours would be a bottleneck. The global kernel has the size of the map, which one forward pass tells; maps
    that are not square, and sequences, get the local operator alone.

    Args:
        model: Any module.
        example: An input of the model; afterwards inputs must have its size where there are global operators.
        branches: ``"both"``, or the ``"local"`` or the ``"global"`` operator alone.
        omega0: Frequency of the slow networks.
        min_channels: Fewest input channels of a layer that is replaced.
        where: Which of these layers to replace; all, if not given. See :func:`netwright.surgery.swap`.

    Raises:
        InputError: If ``branches`` is not one of the three, or no layer can be replaced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1))
        >>> swapped(to_hyperzzw(model, torch.zeros(2, 1, 8, 8)))
        ('2',)
    """
    checks.known("branches", branches, BRANCHES)
    checks.at_least("min_channels", min_channels, 1)
    shapes = input_shapes(model, example, (nn.Conv1d, nn.Conv2d))
    side: dict[nn.Module, int | None] = {}

    def fits(name: str, layer: nn.Module) -> bool:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        side[layer] = None if branches == "local" else _square(shapes.get(name), layer)
        return (
            max(layer.kernel_size) >= 3
            and _keeps_size(layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            and layer.in_channels >= min_channels
            and (branches != "global" or side[layer] is not None)
            and (where is None or where(name, layer))
        )

    def make(layer: nn.Conv1d | nn.Conv2d) -> nn.Module:
        part = HyperZZWConv1d if isinstance(layer, nn.Conv1d) else HyperZZWConv2d
        return part.like(layer, side[layer], local=branches != "global", omega0=omega0)

    new = swap(model, {nn.Conv1d: make, nn.Conv2d: make}, fits)
    if not swapped(new):
        maps = " on square maps" if branches == "global" else ""
        raise checks.InputError(
            f"found no convolution with an odd kernel ≥ 3, stride 1, padding that keeps the size and at least "
            f"{min_channels} input channels{maps}, got a {type(model).__name__}"
        )
    return new


def _keeps_size(
    kernel_size: tuple[int, ...], stride: tuple[int, ...], padding: Size | str, dilation: tuple[int, ...]
) -> bool:
    if max(stride) > 1 or not all(k % 2 for k in kernel_size):
        return False
    given = padding if isinstance(padding, str) else sizes("padding", padding, len(kernel_size))
    same = padding_sides("same", kernel_size, dilation, stride)
    return padding_sides(given, kernel_size, dilation, stride) == same


def _square(shape: tuple[int, ...] | None, layer: nn.Module) -> int | None:
    """The side of the map that ``layer`` gets, if it is a square of more than one pixel."""
    if shape is None or not isinstance(layer, nn.Conv2d) or shape[-1] != shape[-2] or shape[-1] < 2:
        return None
    return shape[-1]


__all__ = ["BRANCHES", "Branches", "HyperZZWConv1d", "HyperZZWConv2d", "to_hyperzzw"]
