"""Selectable KAN (Yang, Zhang, Luo, Lu, Shen 2024, arXiv:2408.08338): every node chooses its family of functions.

:class:`SKANLayer` stands in for a linear layer and :class:`SConvKAN2d` for a convolution; :class:`SKAN` is a network of
the first, :func:`to_skan` puts both into a network. :mod:`netwright.training.skan` trains them: all families together,
then the selected ones, which are then all that is left.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Self, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import Size, conv_arguments, linear_arguments, padding_sides, sizes
from netwright.layers._selectable import (
    MIXING,
    POOL,
    SELECT,
    Device,
    Exchange,
    Family,
    Mixing,
    Phase,
    PoolOptions,
    Select,
    Selectable,
)
from netwright.layers.kan import Range, contract
from netwright.surgery import eval_mode, swap, swapped

Convs = Literal["auto", "yes", "no"]
CONVS: tuple[Convs, ...] = ("auto", "yes", "no")

_SAMPLES = 4096


class SKANLayer(Selectable):
    r"""A Kolmogorov–Arnold layer that mixes families of functions, and selects one for every node.

    .. math::
        y_o = \sum_k \alpha_{ok} \sum_i \varphi^{(k)}_{oi}(x_i), \qquad
        \varphi^{(k)}_{oi}(x) = \sum_b c^{(k)}_{oib} \, \beta^{(k)}_b(x)

    It starts in the phase ``"full"``, where all families take part. :meth:`select_` keeps the strongest one of every
    node, :meth:`prune_` removes the others for good. It has in · out · Σ_k n_k coefficients, the selection weights, and
    what families have themselves; after pruning to one family k, in · out · n_k and what that family has. With one
    family in the pool it is a :class:`~netwright.layers.kan.KANLayer`.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        pool: The families, of :data:`netwright.layers.kan.BASES`.
        num_basis: Functions of each; B-splines have 1 more (SiLU), and the family SiLU has 1.
        order: See :class:`~netwright.layers.kan.KANLayer`.
        grid_range: See there.
        bias: See there.
        select: What has an α and a choice of its own: every ``"edge"``, every ``"node"`` (output), or the ``"layer"``.
        mixing: Whether α are the ``"softmax"`` of the selection weights, or these themselves (``"free"``).
        normalize: See :class:`~netwright.layers.kan.KANLayer`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If the pool is empty, a family, ``select`` or ``mixing`` is not known, or a family's arguments are
            wrong.

    Source:
        arXiv:2408.08338. No code was published; that α is a softmax and belongs to a node is our reading.

    Example:
        >>> layer = SKANLayer(4, 3, pool=("bspline", "chebyshev"))
        >>> layer.select_(), layer.phase
        (None, 'selective')
        >>> _ = layer.prune_()
        >>> layer(torch.randn(5, 4)).shape, layer.phase
        (torch.Size([5, 3]), 'pruned')
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        pool: Sequence[str] = POOL,
        num_basis: int = 8,
        order: int = 3,
        grid_range: Range = (-1.0, 1.0),
        bias: bool = False,
        *,
        select: Select = "node",
        mixing: Mixing = "softmax",
        normalize: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (out_features, in_features)
        super().__init__(
            in_features, shape, bias, 1, pool, num_basis, order, grid_range, select, mixing, normalize, device, dtype
        )
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        **options: Unpack[PoolOptions],
    ) -> Self:
        """Replace ``linear``: the same features and bias; new functions."""
        new = cls(**linear_arguments(linear), **options)
        new._take_over(linear)
        return new

    def forward(self, input: Tensor) -> Tensor:
        return self._mixed(input, -1)

    def _times(self, values: Tensor, weight: Tensor) -> Tensor:
        return contract(values, weight)

    def update_grid(self, inputs: Tensor, uniform: float = 0.02) -> None:
        """Move the knots of the B-splines to quantiles of ``inputs``; see :meth:`.KANLayer.update_grid`."""
        self._update_grid(inputs.flatten(0, -2), uniform)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, pool={'/'.join(self.pool)}, select={self.select!r}, "
            f"bias={self.bias is not None}, phase={self.phase!r}"
        )


class SConvKAN2d(Selectable):
    r"""A convolution whose weights are learned functions, of families that every output channel selects.

    Each pixel of each channel becomes the K pictures :math:`\beta_b(x)`, each of these convolved with a kernel of its
    own; the same as :class:`SKANLayer` on the C · kh · kw inputs of every patch. The input is padded before functions
    are taken, as patches are. A LayerNorm of a family is one over the channels of a pixel.

    Takes what :class:`torch.nn.Conv2d` takes, then what :class:`SKANLayer` takes; ``select="edge"`` is every pair of an
    output and an input channel. Coefficients: out · in / groups · kh · kw · Σ_k n_k.

    Example:
        >>> layer = SConvKAN2d(3, 8, 3, padding=1, pool=("bspline", "rbf"))
        >>> layer(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        pool: Sequence[str] = POOL,
        num_basis: int = 8,
        order: int = 3,
        grid_range: Range = (-1.0, 1.0),
        select: Select = "node",
        mixing: Mixing = "softmax",
        normalize: bool | None = None,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("groups", groups, 1)
        checks.divisible("in_channels", in_channels, "groups", groups)
        checks.divisible("out_channels", out_channels, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        kernel = sizes("kernel_size", kernel_size, 2)
        shape = (out_channels, in_channels // groups, *kernel)
        super().__init__(
            in_channels,
            shape,
            bias,
            groups,
            pool,
            num_basis,
            order,
            grid_range,
            select,
            mixing,
            normalize,
            device,
            dtype,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size = kernel
        self.stride = sizes("stride", stride, 2)
        self.dilation = sizes("dilation", dilation, 2)
        self.padding = padding if isinstance(padding, str) else sizes("padding", padding, 2)
        self.padding_mode = padding_mode
        self._sides = padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)

    @classmethod
    def like(
        cls,
        conv: nn.Conv2d,
        **options: Unpack[PoolOptions],
    ) -> Self:
        """Replace ``conv``: the same geometry and bias; new functions."""
        new = cls(**conv_arguments(conv), **options)
        new._take_over(conv)
        return new

    def forward(self, input: Tensor) -> Tensor:
        return self._mixed(self._pixels(input), -3)

    def _pixels(self, input: Tensor) -> Tensor:
        """The padded pictures with the channels last."""
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.in_channels)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(input, self._sides, mode=mode) if any(self._sides) else input
        return padded.movedim(-3, -1).contiguous()

    def _times(self, values: Tensor, weight: Tensor) -> Tensor:
        # each group of channels with all of its functions, functions before channels
        each = self.in_channels // self.groups
        pictures = values.mT.reshape(*values.shape[:-2], values.shape[-1], self.groups, each)
        pictures = pictures.transpose(-3, -2).flatten(-3).movedim(-1, -3)
        kernels = weight.transpose(1, 2).flatten(1, 2)
        return functional.conv2d(pictures, kernels, None, self.stride, 0, self.dilation, self.groups)

    def update_grid(self, inputs: Tensor, uniform: float = 0.02) -> None:
        """Move the knots of the B-splines to quantiles of the pixels, see :meth:`.KANLayer.update_grid`."""
        pixels = self._pixels(inputs).flatten(0, -2)
        self._update_grid(pixels[:: max(1, len(pixels) // _SAMPLES)], uniform)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, pool={'/'.join(self.pool)}, "
            f"select={self.select!r}, bias={self.bias is not None}, phase={self.phase!r}"
        )


class SKAN(nn.Sequential):
    """A network of :class:`SKANLayer`, which need no activations between them.

    Args:
        widths: Sizes of the input, the hidden layers and the output.
        bias: Whether layers have one.
        device: Where the parameters are.
        dtype: Their floating-point type.
        options: ``pool``, ``num_basis``, ``order``, ``grid_range``, ``select``, ``mixing`` and ``normalize`` of
            :class:`SKANLayer`.

    Raises:
        InputError: If there are fewer than two widths, or as :class:`SKANLayer`.

    Example:
        >>> SKAN([2, 5, 1], select="layer")(torch.rand(7, 2)).shape
        torch.Size([7, 1])
    """

    def __init__(
        self,
        widths: Sequence[int],
        bias: bool = False,
        *,
        device: Device = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        checks.at_least("number of widths", len(widths), 2)
        make = partial(SKANLayer, bias=bias, device=device, dtype=dtype, **options)
        super().__init__(*itertools.starmap(make, itertools.pairwise(widths)))

    def __getitem__(self, index: slice | int) -> Any:
        # a part of it is a plain sequence: torch would call this class's constructor with layers
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)


def to_skan(model: nn.Module, *, convs: Convs = "auto", **options: Unpack[PoolOptions]) -> nn.Module:
    """A copy of ``model`` with selectable layers in place of its linear layers, and of its 2-D convolutions if wanted.

    The last linear layer stays, which most often is the classifier; without any, the last convolution. The layers of
    torch's own attention and transformer blocks stay, too: these blocks read the weights of their layers. What replaces
    is new and has to be trained.

    Args:
        model: Any module.
        convs: Whether convolutions are replaced; ``"auto"``: where there is no linear layer to replace.
        options: Of the new layers, see :class:`SKAN`.

    Raises:
        InputError: If no layer can be replaced, or an argument is wrong.

    Example:
        >>> new = to_skan(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), pool=("bspline", "rbf"))
        >>> type(new[0]).__name__, type(new[1]).__name__
        ('SKANLayer', 'Linear')
    """
    checks.known("convs", convs, CONVS)
    inside = tuple(
        f"{name}." if name else ""
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    )

    def found(kind: type[nn.Module]) -> list[str]:
        return [name for name, module in model.named_modules() if isinstance(module, kind)]

    linear, pictures = found(nn.Linear), found(nn.Conv2d)
    last = (linear or pictures)[-1:]
    wanted = {name for name in linear if name not in last and not name.startswith(inside)}
    if convs == "yes" or (convs == "auto" and not wanted):
        wanted |= {name for name in pictures if name not in last}
    make: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.Linear: partial(SKANLayer.like, **options),
        nn.Conv2d: partial(SConvKAN2d.like, **options),
    }
    new = swap(model, make, lambda name, _: name in wanted)
    if not swapped(new):
        layers = "linear layer" if convs == "no" else "linear layer or 2-D convolution"
        raise checks.InputError(f"found no {layers} before the last one to replace, got a {type(model).__name__}")
    return new


def selectable_layers(model: nn.Module) -> dict[str, Selectable]:
    """The selectable layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Selectable)}


@torch.no_grad()
def fit_grids_(model: nn.Module, inputs: Tensor, uniform: float = 0.5) -> nn.Module:
    """Spread the knots of all B-splines over what their layers get when ``model`` sees ``inputs``, in place.

    Args:
        model: A network with selectable layers; it is returned.
        inputs: A batch of the training data.
        uniform: How much of each knot is that of an evenly spaced grid. Half of it keeps pieces from becoming narrow
            where many inputs are equal, as those after a ReLU.
    """
    layers = [layer for layer in selectable_layers(model).values() if "bspline" in layer.families]
    # a layer is met with its grid fitted already, by the inputs that the layers before it give with theirs
    handles = [
        layer.register_forward_pre_hook(lambda one, given: one.update_grid(given[0], uniform)) for layer in layers
    ]
    try:
        with eval_mode(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return model


__all__ = [
    "CONVS",
    "MIXING",
    "POOL",
    "SELECT",
    "SKAN",
    "Convs",
    "Exchange",
    "Family",
    "Mixing",
    "Phase",
    "PoolOptions",
    "SConvKAN2d",
    "SKANLayer",
    "Select",
    "Selectable",
    "fit_grids_",
    "selectable_layers",
    "to_skan",
]
