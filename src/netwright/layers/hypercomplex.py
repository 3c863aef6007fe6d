"""Parameterized hypercomplex layers (Grassucci et al. 2021, arXiv:2110.04176): weights as sums of Kronecker products.

:class:`PHMLinear`, :class:`PHConv1d`, :class:`PHConv2d`, :class:`PHConv3d` and :class:`PHConvTranspose2d` stand in for
torch's layers with about 1/n of the parameters; :func:`to_hypercomplex` puts them into a whole network.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.layers.algebra import Algebra, get_algebra
from netwright.surgery import swap, swapped

AlgebraLike = Algebra | Tensor | str
Size = int | Sequence[int]


def hypercomplex_weight(algebra: Tensor, filters: Tensor, groups: int = 1) -> Tensor:
    r"""The weight of a hypercomplex layer, a sum of n Kronecker products over the channel axes.

    .. math:: W = \sum_{i=1}^{n} A_i \otimes F_i

    Args:
        algebra: The matrices A, shape ``(n, n, n)``.
        filters: The filters F, shape ``(n, out / n, in / (n groups), *kernel_size)``.
        groups: Every group of channels is a hypercomplex layer of its own, with the same A.

    Returns:
        ``(out, in / groups, *kernel_size)``.

    Source:
        arXiv:2110.04176, equation 8; for linear layers Zhang et al. 2021, arXiv:2102.08597.

    Example:
        >>> A, F = torch.randn(3, 3, 3), torch.randn(3, 4, 2)
        >>> torch.allclose(hypercomplex_weight(A, F), sum(map(torch.kron, A, F)), atol=1e-5)
        True
    """
    n = len(algebra)
    _, out_block, in_block, *kernel = filters.shape
    # one matrix product over i gives all blocks; building each Kronecker product would hold n copies of the weight
    device = filters.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):  # the weight in full precision
        blocks = algebra.flatten(1).t() @ filters.flatten(1)
    blocks = blocks.view(n, n, groups, out_block // groups, in_block, -1).permute(2, 0, 3, 1, 4, 5)
    return blocks.reshape(n * out_block, n * in_block, *kernel)


class _Hypercomplex(nn.Module):
    """Algebra, filters, bias and the cached weight; a subclass says what it does with the weight."""

    dense_parameters: ClassVar[frozenset[str]] = frozenset({"algebra"})
    algebra: Tensor
    bias: nn.Parameter | None

    def __init__(
        self,
        filters: tuple[int, ...],
        out_features: int,
        bias: bool,
        algebra: AlgebraLike | None,
        learn_algebra: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.n = n = filters[0]
        if algebra is None and not learn_algebra:
            raise checks.InputError("learn_algebra=False needs an algebra, for instance algebra='quaternion', got none")
        self._given = None if algebra is None else _matrices(algebra, n)
        matrices = torch.empty(n, n, n, device=device, dtype=dtype)
        if learn_algebra:
            self.algebra = nn.Parameter(matrices)
        else:
            self.register_buffer("algebra", matrices)
        self.filters = nn.Parameter(torch.empty(filters, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self._cache: tuple[tuple[Tensor, Tensor, int], tuple[Tensor, Tensor, int], Tensor] | None = None

    def _build(self) -> Tensor:
        raise NotImplementedError

    def _fan(self) -> tuple[int, int]:
        """Fan-in and fan-out of the weight."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The full weight, of the shape that torch's layer has. In eval mode it is built once and kept.

        What is kept is dropped by training mode and by any change of the algebra or the filters that torch counts: an
        optimiser step, ``load_state_dict``, another device or floating-point type. Only writing *through* ``.data``
        (``layer.filters.data.mul_(2)``) is invisible to torch; call ``layer.train()`` after it. Where a gradient has
        to reach the parameters, the weight is always built anew.
        """
        if self.training or torch.compiler.is_compiling() or type(self.filters) is not nn.Parameter:
            return self._build()
        if torch.is_grad_enabled() and (self.filters.requires_grad or self.algebra.requires_grad):
            return self._build()
        if (
            self._cache is not None
            and _is_same(self._cache[0], self.algebra)
            and _is_same(self._cache[1], self.filters)
        ):
            return self._cache[2]
        if self.algebra.is_inference() or self.filters.is_inference():  # these have no count of changes
            return self._build()
        # a tensor made in inference mode could not be used where the gradient of the input is wanted later
        with torch.inference_mode(False), torch.no_grad():
            weight = self._build()
        if type(weight) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(weight):
            self._cache = (_state(self.algebra), _state(self.filters), weight)
        return weight

    def reset_parameters(self) -> None:
        r"""Draw the algebra, if it was not given, from U(±√3/n), then the filters so that W has Xavier's variance.

        A Xavier-uniform A as torch computes its fans has variance 1/n². With it, a Xavier-uniform F_i (fans in/n and
        out/n) gives W the variance 2 / (fan_in + fan_out); for any other A the filters are scaled to do the same.
        """
        with torch.no_grad():
            if self._given is None:
                bound = math.sqrt(3) / self.n
                self.algebra.uniform_(-bound, bound)
            else:
                self.algebra.copy_(self._given)
            fan_in, fan_out = self._fan()
            self._draw_filters(2 / (fan_in + fan_out))
            if self.bias is not None:
                self.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    @torch.no_grad()
    def _draw_filters(self, variance: Tensor | float) -> None:
        """Uniform filters that give the entries of the weight this variance."""
        power = self.algebra.square().sum(0).mean().clamp_min(torch.finfo(self.algebra.dtype).tiny)
        self.filters.uniform_(-1, 1).mul_((3 * variance / power).sqrt())

    def _take_over(self, layer: nn.Linear | _ConvNd) -> None:
        """Take the bias and the mean square of the weights of ``layer``, and whether these are trained."""
        with torch.no_grad():
            self._draw_filters(layer.weight.square().mean())
            if self.bias is not None and layer.bias is not None:
                self.bias.copy_(layer.bias)
        self.requires_grad_(layer.weight.requires_grad)
        if self.bias is not None and layer.bias is not None:
            self.bias.requires_grad_(layer.bias.requires_grad)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cache = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # a copy counts the changes of its tensors from zero, so what is kept would not notice them
        return {**self.__dict__, "_cache": None}


class PHMLinear(_Hypercomplex):
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
        new = cls(
            linear.in_features,
            linear.out_features,
            n,
            linear.bias is not None,
            algebra=algebra,
            learn_algebra=learn_algebra,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
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


class _PHConv(_Hypercomplex):
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
        each = partial(_tuple, self.dims)
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
        if isinstance(self.padding, str):
            checks.known("padding", self.padding, ("same", "valid"))
            if self.padding == "same" and max(self.stride) > 1:
                checks.fail("padding 'same' needs stride 1", self.stride)
        self.reset_parameters()

    @classmethod
    def like(cls, conv: _ConvNd, n: int = 4, *, algebra: AlgebraLike | None = None, learn_algebra: bool = True) -> Self:
        """Replace ``conv``: the same geometry, bias and mean square of the weights; new filters."""
        new = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            stride=conv.stride,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            bias=conv.bias is not None,
            n=n,
            algebra=algebra,
            learn_algebra=learn_algebra,
            device=conv.weight.device,
            dtype=conv.weight.dtype,
            **({"output_padding": conv.output_padding} if cls.transposed else {"padding_mode": conv.padding_mode}),
        )
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
        sides: list[int] = []
        for axis in reversed(range(self.dims)):
            if isinstance(self.padding, str):
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                sides += [total // 2, total - total // 2]
            else:
                sides += [self.padding[axis]] * 2
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
        self.output_padding = _tuple(self.dims, "output_padding", output_padding)

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
    algebras = {id(layer.algebra) for layer in model.modules() if isinstance(layer, _Hypercomplex)}
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) not in algebras], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in algebras], "weight_decay": algebra_decay},
    ]
    return [group for group in groups if group["params"]]


def algebra_l1(model: nn.Module) -> Tensor:
    """Sum of the absolute values of all learned algebras: the authors' optional penalty, weighted 0.001 there."""
    algebras = [layer.algebra for layer in model.modules() if isinstance(layer, _Hypercomplex)]
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


def _matrices(algebra: AlgebraLike, n: int) -> Tensor:
    """The given algebra as matrices ``(n, n, n)``."""
    if isinstance(algebra, str):
        algebra = get_algebra(algebra)
    if isinstance(algebra, Algebra):
        algebra = algebra.left_basis(device="cpu")
    if algebra.shape != (n, n, n):
        checks.fail(f"algebra must have shape {(n, n, n)}", tuple(algebra.shape))
    return algebra.detach()


def _tuple(dims: int, name: str, size: Size) -> tuple[int, ...]:
    sizes = (size,) * dims if isinstance(size, int) else tuple(size)
    if len(sizes) != dims:
        checks.fail(f"{name} must be a number or {dims} numbers", size)
    return sizes


def _state(tensor: Tensor) -> tuple[Tensor, Tensor, int]:
    """What tells whether a tensor is still the same: itself, its memory (held, so that none reuses it), its changes."""
    return tensor, tensor.detach(), tensor._version


def _is_same(state: tuple[Tensor, Tensor, int], tensor: Tensor) -> bool:
    known, memory, version = state
    return known is tensor and memory.data_ptr() == tensor.data_ptr() and version == tensor._version


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
