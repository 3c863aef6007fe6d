"""Kolmogorov–Arnold layers (Liu et al. 2024, arXiv:2404.19756): a learned univariate function on every edge.

:class:`KANLayer` is the plain layer. Its functions are sums of basis functions: :class:`BSplineBasis`,
:class:`GaussianRBFBasis`, :class:`ChebyshevBasis`, :class:`FourierBasis`, :class:`MexicanHatBasis` or
:class:`SiLUBasis`, by the names in :data:`BASES`; :func:`contract` multiplies them with coefficients.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import linear_arguments
from netwright.layers._univariate import (
    BASES,
    Basis,
    BSplineBasis,
    ChebyshevBasis,
    FourierBasis,
    GaussianRBFBasis,
    MexicanHatBasis,
    Range,
    SiLUBasis,
)


def contract(basis: Tensor, coefficients: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""The sum over inputs and functions, :math:`y_o = \sum_{i,b} c_{oib} \, \beta_b(x_i)`, as one matrix product.

    Args:
        basis: ``(*, in_features, K)``, as a :class:`Basis` gives them.
        coefficients: ``(out_features, in_features, K)``.
        bias: ``(out_features,)``.

    Returns:
        ``(*, out_features)``.

    Raises:
        InputError: If inputs or functions are not as many as the coefficients.
    """
    for axis in (-2, -1):
        checks.size("basis", basis, axis, coefficients.shape[axis])
    return functional.linear(basis.mT.flatten(-2), coefficients.mT.flatten(1), bias)


class KANLayer(nn.Module):
    r"""The plain Kolmogorov–Arnold layer: a learned function on every edge, summed over the inputs.

    .. math:: y_o = \sum_i \varphi_{oi}(x_i), \qquad \varphi_{oi}(x) = \sum_b c_{oib} \, \beta_b(x)

    With B-splines the last function is SiLU, whose coefficients are the original's residual branch. There are
    in · out · K coefficients, where K is ``num_basis``, 1 more with B-splines, and 1 with SiLU. The published layer has
    a factor on every spline, too, which its coefficients make superfluous.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        basis: One of :data:`BASES`.
        num_basis: See :class:`Basis`.
        order: See :class:`Basis`.
        grid_range: See :class:`Basis`. Inputs beyond it are best met by :meth:`update_grid`.
        bias: Whether a bias is added; the basis functions give constants well enough.
        normalize: See :class:`Basis`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If the basis is not known, or its arguments are wrong.

    Source:
        Liu et al. 2024, arXiv:2404.19756, equations 2.10 to 2.12.

    Example:
        >>> layer = KANLayer(64, 10)
        >>> layer(torch.randn(5, 64)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 10]), 5760)
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        basis: str = "bspline",
        num_basis: int = 8,
        order: int = 3,
        grid_range: Range = (-1.0, 1.0),
        bias: bool = False,
        *,
        normalize: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.known("basis", basis, BASES)
        checks.at_least("out_features", out_features, 1)
        self.in_features, self.out_features = in_features, out_features
        self.basis = BASES[basis](
            in_features, num_basis, order, grid_range, normalize=normalize, device=device, dtype=dtype
        )
        self.weight = nn.Parameter(torch.empty(out_features, in_features, self.basis.size, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        basis: str = "bspline",
        num_basis: int = 8,
        order: int = 3,
        grid_range: Range = (-1.0, 1.0),
        *,
        normalize: bool | None = None,
    ) -> Self:
        """Replace ``linear``: the same features and bias; new functions."""
        new = cls(
            **linear_arguments(linear),
            basis=basis,
            num_basis=num_basis,
            order=order,
            grid_range=grid_range,
            normalize=normalize,
        )
        if new.bias is not None and linear.bias is not None:
            new.bias.data.copy_(linear.bias)
            new.bias.requires_grad_(linear.bias.requires_grad)
        new.weight.requires_grad_(linear.weight.requires_grad)
        return new

    def reset_parameters(self) -> None:
        """Draw the coefficients as the basis does, see its ``draw_``; the bias starts at 0."""
        self.basis.draw_(self.weight, self.in_features, self.out_features)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        return contract(self.basis(input), self.weight, self.bias)

    @torch.no_grad()
    def update_grid(self, inputs: Tensor, uniform: float = 0.02) -> None:
        """Move the knots to quantiles of ``inputs`` ``(*, in_features)``; the functions stay as they are, nearly.

        Args:
            inputs: What the layer gets. Its functions are refitted at these places by least squares.
            uniform: How much of each knot is that of an evenly spaced grid, in (0, 1].

        Raises:
            InputError: If the basis is not one of B-splines, or as :meth:`BSplineBasis.update_grid`.

        Source:
            arXiv:2404.19756, section 2.4 and its appendix; 0.02 is the default of the authors' code.
        """
        if not isinstance(self.basis, BSplineBasis):
            checks.fail("update_grid needs basis 'bspline'", repr(self.basis.name))
        matrices = self.basis.update_grid(inputs.flatten(0, -2), uniform)
        self.weight.copy_(torch.einsum("ibc,oic->oib", matrices, self.weight))

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


__all__ = [
    "BASES",
    "BSplineBasis",
    "Basis",
    "ChebyshevBasis",
    "FourierBasis",
    "GaussianRBFBasis",
    "KANLayer",
    "MexicanHatBasis",
    "Range",
    "SiLUBasis",
    "contract",
]
