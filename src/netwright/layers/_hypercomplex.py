"""What all hypercomplex layers share: their weight as a sum of Kronecker products, its parameters, and its cache."""

import math
from contextlib import nullcontext
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers.algebra import Algebra, get_algebra

AlgebraLike = Algebra | Tensor | str


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


class Hypercomplex(nn.Module):
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
        self._cache = Cache()

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
        if self.training or type(self.filters) is not nn.Parameter:
            return self._build()
        return self._cache.get(self._build, self.algebra, self.filters)

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
            self._cache.clear()
        return super().train(mode)


def _matrices(algebra: AlgebraLike, n: int) -> Tensor:
    """The given algebra as matrices ``(n, n, n)``."""
    if isinstance(algebra, str):
        algebra = get_algebra(algebra)
    if isinstance(algebra, Algebra):
        algebra = algebra.left_basis(device="cpu")
    if algebra.shape != (n, n, n):
        checks.fail(f"algebra must have shape {(n, n, n)}", tuple(algebra.shape))
    return algebra.detach()


__all__ = ["AlgebraLike", "Hypercomplex", "hypercomplex_weight"]
