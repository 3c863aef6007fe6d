"""Parameterized hypercomplex layers (Grassucci et al. 2021, arXiv:2110.04176): weights as sums of Kronecker products.

:class:`PHMLinear`, :class:`PHConv1d`, :class:`PHConv2d`, :class:`PHConv3d` and :class:`PHConvTranspose2d` stand in for
torch's layers with about 1/n of the parameters; :func:`to_hypercomplex` puts them into a whole network.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.layers._geometry import Size, conv_arguments, linear_arguments, padding_sides, sizes
from netwright.layers._hypercomplex import AlgebraLike, Hypercomplex, hypercomplex_weight
from netwright.surgery import swap, swapped


class PHMLinear(Hypercomplex):
    r"""Linear layer :math:`y = x W^\top + b` with :math:`W = \sum_i A_i \otimes F_i`.

    Both features are n blocks in a row, one a component. With A fixed to the left multiplications of an algebra, block
    k of the output is :math:`\sum_{ij} T_{kij} F_i x_j`: the product of a matrix of hypercomplex numbers with a vector.
    Parameters: n³ + in·out/n + out.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``; divisible by ``n``.
        out_features: Size of the last dimension of the output ``(*, out_features)``; divisible by ``n``.
        n: Number of components; 1 is a real layer.
        bias: Whether there is a bias b.
        algebra: The first A: a name as in :mod:`netwright.layers.algebra`, an ``Algebra``, or matrices ``(n, n, n)``;
            random if not given.
        learn_algebra: Whether A is a parameter. If not, it is a buffer, and the layer complex, quaternion, ….
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If ``n`` does not divide the features, or the algebra has not n components.

    Source:
        Zhang et al. 2021, arXiv:2102.08597; arXiv:2110.04176, section III.

    Example:
        >>> layer = PHMLinear(8, 12, n=4)
        >>> layer(torch.randn(5, 8)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 12]), 100)
        >>> quaternion = PHMLinear(8, 12, algebra="quaternion", learn_algebra=False)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        n: int = 4,
        bias: bool = True,
        *,
        algebra: AlgebraLike | None = None,
        learn_algebra: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("n", n, 1)
        checks.divisible("in_features", in_features, "n", n)
        checks.divisible("out_features", out_features, "n", n)
        filters = (n, out_features // n, in_features // n)
        super().__init__(filters, out_features, bias, algebra, learn_algebra, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.reset_parameters()

    @classmethod
    def like(
        cls, linear: nn.Linear, n: int = 4, *, algebra: AlgebraLike | None = None, learn_algebra: bool = True
    ) -> Self:
        """Replace ``linear``: the same features, bias and mean square of the weights; new filters."""
        new = cls(**linear_arguments(linear), n=n, algebra=algebra, learn_algebra=learn_algebra)
        new._take_over(linear)
        return new

    def _build(self) -> Tensor:
        return hypercomplex_weight(self.algebra, self.filters)

    def _fan(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, n={self.n}, bias={self.bias is not None}"


class _PHConv(Hypercomplex):
    """What convolutions share: geometry and its checks."""

    dims: ClassVar[int]
    convolve: ClassVar[Callable[..., Tensor]]
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        n: int = 4,
        algebra: AlgebraLike | None = None,
        learn_algebra: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("n", n, 1)
        checks.at_least("groups", groups, 1)
        checks.divisible("in_channels", in_channels, "n", n)
        checks.divisible("out_channels", out_channels, "n", n)
        checks.divisible("in_channels / n", in_channels // n, "groups", groups)
        checks.divisible("out_channels / n", out_channels // n, "groups", groups)
        checks.known("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
        each = partial(sizes, dims=self.dims)
        first, second = (in_channels, out_channels) if self.transposed else (out_channels, in_channels)
        filters = (n, first // n, second // (n * groups), *each("kernel_size", kernel_size))
        super().__init__(filters, out_channels, bias, algebra, learn_algebra, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = filters[3:]
        self.stride = each("stride", stride)
        self.padding = padding if isinstance(padding, str) else each("padding", padding)
        self.dilation = each("dilation", dilation)
        self.groups = groups
        self.padding_mode = padding_mode
        padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)  # checks them
        self.reset_parameters()

    @classmethod
    def like(cls, conv: _ConvNd, n: int = 4, *, algebra: AlgebraLike | None = None, learn_algebra: bool = True) -> Self:
        """Replace ``conv``: the same geometry, bias and mean square of the weights; new filters."""
        new = cls(**conv_arguments(conv), n=n, algebra=algebra, learn_algebra=learn_algebra)
        new._take_over(conv)
        return new

    def _build(self) -> Tensor:
        return hypercomplex_weight(self.algebra, self.filters, self.groups)

    def _fan(self) -> tuple[int, int]:
        receptive = math.prod(self.kernel_size)
        return self.in_channels // self.groups * receptive, self.out_channels // self.groups * receptive

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        padded, padding = self._padded(input)
        return self.convolve(padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _padded(self, input: Tensor) -> tuple[Tensor, tuple[int, ...] | str]:
        """The input, padded if torch's convolution cannot do it itself, and the padding that is left for that to do."""
        if self.padding_mode == "zeros" or self.padding == "valid":
            return input, self.padding
        sides = padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)
        return functional.pad(input, sides, mode=self.padding_mode), (0,) * self.dims

    def _check(self, input: Tensor) -> None:
        axes = ("length", "height, width", "depth, height, width")[self.dims - 1]
        checks.dimensions("input", input, f"(batch, channels, {axes})", f"(channels, {axes})")
        checks.size("input", input, -1 - self.dims, self.in_channels)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, bias={self.bias is not None}, "
            f"n={self.n}"
        )


class PHConv1d(_PHConv):
    """Hypercomplex convolution of ``(batch, in_channels, length)``; arguments as :class:`PHConv2d`."""

    dims = 1
    convolve = staticmethod(functional.conv1d)


class PHConv2d(_PHConv):
    r"""Hypercomplex convolution: torch's, with the weight :math:`W = \sum_i A_i \otimes F_i` over the channels.

    Takes what :class:`torch.nn.Conv2d` takes, and maps ``(batch, in_channels, height, width)`` to ``(batch,
    out_channels, height', width')`` as it does. The channels are n blocks in a row, one a component; with ``groups``,
    every group of channels is. Parameters without bias: n³ + in·out·height·width of the kernel / (n·groups).

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: As in torch.
        stride: As in torch.
        padding: As in torch.
        dilation: As in torch.
        groups: As in torch; it must divide ``in_channels / n`` and ``out_channels / n``.
        bias: As in torch.
        padding_mode: As in torch.
        n: Number of components; 3 takes colour pictures as they are, 1 is a real layer.
        algebra: See :class:`PHMLinear`.
        learn_algebra: See :class:`PHMLinear`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If ``n`` does not divide the channels, ``groups`` not the blocks, or the algebra is of another size.

    Source:
        arXiv:2110.04176, section IV. The authors' layers make a bias but do not add it; this one adds it.

    Example:
        >>> PHConv2d(3, 12, 3, padding=1, n=3)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 12, 32, 32])
    """

    dims = 2
    convolve = staticmethod(functional.conv2d)


class PHConv3d(_PHConv):
    """Hypercomplex convolution of ``(batch, in_channels, depth, height, width)``; arguments as :class:`PHConv2d`."""

    dims = 3
    convolve = staticmethod(functional.conv3d)


class PHConvTranspose2d(_PHConv):
    """Hypercomplex transposed convolution; torch's arguments, then those of :class:`PHConv2d`.

    With a fixed algebra, block k of the output is Σ_ij T[k, i, j] times the transposed convolution of block j by F_i.

    Example:
        >>> PHConvTranspose2d(8, 4, 2, stride=2)(torch.randn(1, 8, 5, 5)).shape
        torch.Size([1, 4, 10, 10])
    """

    dims = 2
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        output_padding: Size = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Size = 1,
        *,
        n: int = 4,
        algebra: AlgebraLike | None = None,
        learn_algebra: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            n=n,
            algebra=algebra,
            learn_algebra=learn_algebra,
            device=device,
            dtype=dtype,
        )
        self.output_padding = sizes("output_padding", output_padding, self.dims)

    def _build(self) -> Tensor:
        # torch keeps the weight of a transposed convolution as (in, out, …)
        return hypercomplex_weight(self.algebra.transpose(1, 2), self.filters, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        return functional.conv_transpose2d(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            self.output_padding,
            self.groups,
            self.dilation,
        )


_PARTS: dict[type[nn.Module], type[PHMLinear] | type[_PHConv]] = {
    nn.Linear: PHMLinear,
    nn.Conv1d: PHConv1d,
    nn.Conv2d: PHConv2d,
    nn.Conv3d: PHConv3d,
    nn.ConvTranspose2d: PHConvTranspose2d,
}


def to_hypercomplex(
    model: nn.Module,
    n: int = 4,
    *,
    algebra: AlgebraLike | None = None,
    learn_algebra: bool = True,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of ``model`` with hypercomplex layers for all linear and convolutional layers that n divides.

    Layers whose features, channels or blocks ``n`` does not divide stay, such as the stem for grey pictures and the
    head for ten classes. Each new layer keeps the bias and the mean square of the weights of the one it replaces, so
    that signals keep their size; its filters are new, so that a trained model has to be trained again.

    Args:
        model: Any module.
        n: Number of components.
        algebra: See :class:`PHMLinear`.
        learn_algebra: See :class:`PHMLinear`.
        where: Which of these layers to replace; all, if not given. See :func:`netwright.surgery.swap`.

    Raises:
        InputError: If no layer can be replaced.

    Example:
        >>> to_hypercomplex(nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)), n=4)
        Sequential(
          (0): PHMLinear(16, 8, n=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=3, bias=True)
        )
    """
    checks.at_least("n", n, 1)
    makers: dict[type[nn.Module], Callable[..., nn.Module]] = {
        kind: partial(part.like, n=n, algebra=algebra, learn_algebra=learn_algebra) for kind, part in _PARTS.items()
    }
    new = swap(model, makers, lambda name, layer: _divides(n, layer) and (where is None or where(name, layer)))
    if not swapped(new):
        raise checks.InputError(
            f"found no linear or convolutional layer whose sizes n = {n} divides, got a {type(model).__name__}"
        )
    return new


def parameter_groups(model: nn.Module, weight_decay: float, algebra_decay: float = 0.0) -> list[dict[str, Any]]:
    """Groups for an optimiser, so that the algebras have a weight decay of their own.

    The authors' code decays all parameters alike; decay of A and F shrinks the weight, their product, twice.

    Args:
        model: A network with or without hypercomplex layers.
        weight_decay: For all other parameters.
        algebra_decay: For the algebras.
    """
    checks.at_least("weight_decay", weight_decay, 0)
    checks.at_least("algebra_decay", algebra_decay, 0)
    algebras = {id(layer.algebra) for layer in model.modules() if isinstance(layer, Hypercomplex)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in algebras], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in algebras], "weight_decay": algebra_decay},
    ]
    return [group for group in groups if group["params"]]


def algebra_l1(model: nn.Module) -> Tensor:
    """Sum of the absolute values of all learned algebras: the authors' optional penalty, weighted 0.001 there."""
    algebras = [layer.algebra for layer in model.modules() if isinstance(layer, Hypercomplex)]
    if not algebras:
        raise checks.InputError(f"found no hypercomplex layer, got {type(model).__name__}")
    return torch.stack([algebra.abs().sum() for algebra in algebras]).sum()


def pad_channels(input: Tensor, n: int, fill: Literal["zero", "grey"] = "zero") -> Tensor:
    """Put channels in front of ``(…, channels, height, width)`` until ``n`` divides their number.

    For quaternions and RGB pictures: the real part is 0 or the luminance, the colours are the imaginary parts.

    Args:
        input: Pictures.
        n: Number of components.
        fill: ``"zero"``, or ``"grey"``: the luminance 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of three channels.

    Example:
        >>> pad_channels(torch.randn(2, 3, 8, 8), n=4).shape
        torch.Size([2, 4, 8, 8])
    """
    checks.at_least("n", n, 1)
    checks.known("fill", fill, ("zero", "grey"))
    missing = -input.shape[-3] % n
    if fill == "zero" or not missing:
        return functional.pad(input, (0, 0, 0, 0, missing, 0))
    checks.size("input", input, -3, 3)
    weights = torch.tensor([0.299, 0.587, 0.114], device=input.device, dtype=input.dtype)
    grey = torch.einsum("c,...chw->...hw", weights, input).unsqueeze(-3)
    return torch.cat([grey] * missing + [input], dim=-3)


def _divides(n: int, layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        sizes = [layer.in_features, layer.out_features]
    else:
        assert isinstance(layer, _ConvNd)
        sizes = [layer.in_channels // layer.groups, layer.out_channels // layer.groups]
    # a lazy layer has size 0 until its first input
    return all(size > 0 and size % n == 0 for size in sizes)


__all__ = [
    "AlgebraLike",
    "PHConv1d",
    "PHConv2d",
    "PHConv3d",
    "PHConvTranspose2d",
    "PHMLinear",
    "algebra_l1",
    "hypercomplex_weight",
    "pad_channels",
    "parameter_groups",
    "to_hypercomplex",
]
