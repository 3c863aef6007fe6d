"""Univariate basis functions for :mod:`netwright.layers.kan`: one class a family, by its name in :data:`BASES`."""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._bspline import bspline_values, extended, quantile_grid, refit

Range = tuple[float, float]

# e^-45 is nothing beside 1 in float64, too; smaller values would become denormal, which makes a CPU 100 times slower
_FAR = 45.0


class Basis(nn.Module):
    r"""Univariate functions :math:`\beta_1 … \beta_K` of every input: ``(*, in_features)`` to ``(*, in_features, K)``.

    In memory functions stand before inputs, which makes them fast to compute and the matrix product of
    the contraction free of copies.

    Args:
        in_features: Size of the last dimension of the input.
        num_basis: Number of functions of an input.
        order: Degree of the pieces of a spline; the other families have no use for it.
        grid_range: Where the functions are spread out: the interval of inputs, for families that are local.
        normalize: Whether inputs are normalised first, by the families that do. If not given, as they are published.
        device: Where parameters and buffers are.
        dtype: Their floating-point type.

    Attributes:
        size: The number K of functions, ``num_basis`` and perhaps a residual one.

    Raises:
        InputError: If there are too few functions, or ``grid_range`` does not increase.
    """

    name: ClassVar[str]
    least: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        num_basis: int = 8,
        order: int = 3,
        grid_range: Range = (-1.0, 1.0),
        *,
        normalize: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_features", in_features, 1)
        checks.at_least("num_basis", num_basis, self.least)
        low, high = map(float, grid_range)
        if not (low < high and math.isfinite(high - low)):
            checks.fail("grid_range must be increasing and finite", grid_range)
        self.in_features = in_features
        self.num_basis = self.size = num_basis
        self.order = order
        self.grid_range = (low, high)
        self.normalize = normalize
        self._make(device, dtype)

    def _make(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        """Make parameters and buffers."""

    def values(self, x: Tensor) -> Tensor:
        """The functions as ``(*, K, in_features)``."""
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        return self.values(input).mT

    @torch.no_grad()
    def draw_(self, coefficients: Tensor, fan_in: int, fan_out: int) -> None:  # noqa: ARG002
        """Draw coefficients ``(out, in, K, …)`` from N(0, 1 / (fan_in K)), so that signals keep their size."""
        nn.init.normal_(coefficients, std=1 / math.sqrt(fan_in * self.size))

    def _spread(self, device: torch.device | str | None, dtype: torch.dtype | None) -> tuple[Tensor, float]:
        """Evenly spread places ``(K, in_features)`` and their spacing."""
        low, high = self.grid_range
        places = torch.linspace(low, high, self.num_basis, device=device, dtype=dtype)
        return places.unsqueeze(-1).repeat(1, self.in_features), (high - low) / (self.num_basis - 1)

    def extra_repr(self) -> str:
        return f"{self.in_features}, size={self.size}"


class BSplineBasis(Basis):
    r"""B-splines on a grid that each input has for itself, and the residual function SiLU as the last one.

    The G = ``num_basis`` − ``order`` intervals of ``grid_range`` are continued by ``order`` knots on both sides; within
    the range the splines sum to 1, and beyond the last knots only SiLU is left.

    Source:
        Liu et al. 2024, arXiv:2404.19756, section 2.2; de Boor 1978 for the recursion.

    Example:
        >>> BSplineBasis(2)(torch.zeros(5, 2)).shape, BSplineBasis(2).grid.shape
        (torch.Size([5, 2, 9]), torch.Size([6, 2]))
    """

    name = "bspline"
    knots: Tensor

    def _make(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        checks.at_least("order", self.order, 1)
        if self.num_basis < self.order + 1:
            checks.fail(f"num_basis must be at least order + 1 = {self.order + 1}", self.num_basis)
        self.size = self.num_basis + 1
        grid = torch.linspace(*self.grid_range, self.num_basis - self.order + 1, device=device, dtype=dtype)
        self.register_buffer("knots", extended(grid.unsqueeze(-1).repeat(1, self.in_features), self.order))

    @property
    def grid(self) -> Tensor:
        """The knots within the range of each input, ``(G + 1, in_features)``."""
        return self.knots[self.order : len(self.knots) - self.order]

    def values(self, x: Tensor) -> Tensor:
        splines = bspline_values(x, self.knots, self.order)
        return torch.cat([splines, functional.silu(x).unsqueeze(-2).to(splines.dtype)], -2)

    def draw_(self, coefficients: Tensor, fan_in: int, fan_out: int) -> None:
        """Splines from N(0, 0.1²), in wide layers less so that signals keep their size; Xavier for SiLU."""
        with torch.no_grad():
            std = min(0.1, 1 / math.sqrt(fan_in * self.num_basis))
            nn.init.normal_(coefficients[:, :, :-1], std=std)
            bound = math.sqrt(6 / (fan_in + fan_out))
            nn.init.uniform_(coefficients[:, :, -1], -bound, bound)

    @torch.no_grad()
    def update_grid(self, samples: Tensor, uniform: float = 0.02) -> Tensor:
        """Move the knots to quantiles of ``samples`` ``(number, in_features)``.

        Args:
            samples: Inputs. One that is constant keeps its grid.
            uniform: How much of each knot is that of an evenly spaced grid.

        Returns:
            Matrices ``(in_features, K, K)``: coefficients times these give nearly the same functions on the new knots.

        Raises:
            InputError: If there are fewer than 2 samples, one is not finite, or ``uniform`` is not in (0, 1].
        """
        checks.dimensions("samples", samples, "(number, in_features)")
        checks.size("samples", samples, 1, self.in_features)
        checks.at_least("number of samples", len(samples), 2)
        checks.between("uniform", uniform, 0, 1, open_low=True)
        if not samples.isfinite().all():
            raise checks.InputError("samples must be finite, got infinite ones or NaN")
        samples = samples.to(self.knots.dtype)
        grid = quantile_grid(samples, self.num_basis - self.order, uniform)
        varies = samples.amax(0) - samples.amin(0) > 1e-6 * (self.grid[-1] - self.grid[0])
        knots = torch.where(varies, extended(grid, self.order), self.knots)
        identity = torch.eye(self.size, device=knots.device, dtype=knots.dtype).repeat(self.in_features, 1, 1)
        matrices = identity.clone()
        matrices[:, :-1, :-1] = refit(samples, self.knots, knots, self.order).to(knots.dtype)
        self.knots.copy_(knots)
        return torch.where(varies[:, None, None], matrices, identity)


class GaussianRBFBasis(Basis):
    r"""Gaussians :math:`e^{-((x - c_b) / h)^2}` at evenly spaced centres with their spacing h as width.

    A LayerNorm over the inputs comes first. Of one or two inputs it leaves nothing but a sign, so that by default it
    comes only with three or more.

    Source:
        Li 2024, arXiv:2405.06721 (FastKAN).
    """

    name = "rbf"
    least = 2
    centers: Tensor

    def _make(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        normalize = self.in_features > 2 if self.normalize is None else self.normalize
        self.norm = nn.LayerNorm(self.in_features, device=device, dtype=dtype) if normalize else nn.Identity()
        centers, self.width = self._spread(device, dtype)
        self.register_buffer("centers", centers)

    def values(self, x: Tensor) -> Tensor:
        distances: Tensor = (self.norm(x).unsqueeze(-2) - self.centers) / self.width
        return distances.square().clamp(max=_FAR).neg().exp()


class ChebyshevBasis(Basis):
    r"""Chebyshev polynomials :math:`T_0 … T_{K-1}` of :math:`\tanh x`, or of x with ``normalize=False``.

    By their recursion, since the derivative of :math:`\cos(n \arccos u)` is not finite at the ends.

    Source:
        Sidharth, Keerthana, Gokul, Anas 2024, arXiv:2405.07200.
    """

    name = "chebyshev"

    def values(self, x: Tensor) -> Tensor:
        u = x if self.normalize is False else x.tanh()
        terms = [torch.ones_like(u), u]
        for _ in range(2, self.num_basis):
            terms.append(2 * u * terms[-1] - terms[-2])
        return torch.stack(terms[: self.num_basis], -2)


class FourierBasis(Basis):
    r"""The first K of :math:`\cos x, \sin x, \cos 2x, \sin 2x, …`.

    Source:
        Xu et al. 2024, arXiv:2406.01034 (FourierKAN).
    """

    name = "fourier"

    def values(self, x: Tensor) -> Tensor:
        waves = torch.arange(1, (self.num_basis + 1) // 2 + 1, device=x.device, dtype=x.dtype).unsqueeze(-1)
        phases = x.unsqueeze(-2) * waves
        return torch.stack([phases.cos(), phases.sin()], -2).flatten(-3, -2)[..., : self.num_basis, :]


class MexicanHatBasis(Basis):
    r"""Mexican hats :math:`\frac{2}{\sqrt{3} \pi^{1/4}} (1 - u^2) e^{-u^2/2}, u = (x - \text{shift}_b) / s_b`.

    Every function of every input has a trained shift and a trained scale :math:`s_b`, as its logarithm so that it
    stays positive; all outputs share them. They start evenly spread, with their spacing as scale.

    Source:
        Bozorgasl and Chen 2024, arXiv:2405.12832 (Wav-KAN), where every edge has a scale and a shift.
    """

    name = "wavelet"
    least = 2
    dense_parameters: ClassVar[frozenset[str]] = frozenset({"shift", "log_scale"})

    def _make(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        places, spacing = self._spread(device, dtype)
        self.shift = nn.Parameter(places)
        self.log_scale = nn.Parameter(torch.full_like(places, math.log(spacing)))

    def values(self, x: Tensor) -> Tensor:
        squares = ((x.unsqueeze(-2) - self.shift) * (-self.log_scale).exp()).square().clamp(max=2 * _FAR)
        hats: Tensor = (1 - squares) * (-0.5 * squares).exp() * (2 / (math.sqrt(3) * math.pi**0.25))
        return hats


class SiLUBasis(Basis):
    """SiLU alone, one function whatever ``num_basis``: a linear layer on activated inputs."""

    name = "silu"

    def _make(self, device: torch.device | str | None, dtype: torch.dtype | None) -> None:  # noqa: ARG002
        self.size = 1

    def values(self, x: Tensor) -> Tensor:
        return functional.silu(x).unsqueeze(-2)


BASES: Mapping[str, type[Basis]] = {
    basis.name: basis
    for basis in (BSplineBasis, GaussianRBFBasis, ChebyshevBasis, FourierBasis, MexicanHatBasis, SiLUBasis)
}


__all__ = [
    "BASES",
    "BSplineBasis",
    "Basis",
    "ChebyshevBasis",
    "FourierBasis",
    "GaussianRBFBasis",
    "MexicanHatBasis",
    "Range",
    "SiLUBasis",
]
