"""Layers of networks on SPD matrices (Huang, Van Gool 2017, arXiv:1608.04233): covariance, BiMap, ReEig, LogEig.

Tensors are ``(batch, channels, n, n)``. Everything is computed in float64; what comes out has the type of the input,
but :class:`CovPool` gives float64, since eigenvalues far apart do not survive float32.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._spd_eigen import spectral, symmetric
from netwright.layers.spd import ROUNDING, check_positive, check_square


class CovPool(nn.Module):
    r"""Covariance over all positions of features ``(batch, channels, *positions)``, as one matrix for each sample.

    .. math:: C = \frac{1}{P - 1} \sum_p (x_p - \bar x)(x_p - \bar x)^\top + \epsilon I

    Args:
        eps: Added to the diagonal, so that C is positive definite also with fewer positions P than channels.

    Returns:
        ``(batch, 1, channels, channels)`` in float64, for pictures (P = height · width) as for signals (P = time).

    Raises:
        InputError: If there are no positions, or fewer than two.

    Example:
        >>> CovPool()(torch.randn(2, 5, 8, 8)).shape
        torch.Size([2, 1, 5, 5])
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        checks.positive("eps", eps)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        checks.floating_point("input", input)
        if input.dim() < 3 or input[0, 0].numel() < 2:
            expected = "input must have shape (batch, channels, positions…) with at least 2 positions"
            checks.fail(expected, f"shape {tuple(input.shape)}")
        x = input.double().flatten(2)
        x = x - x.mean(-1, keepdim=True)
        covariance = x @ x.mT / (x.shape[-1] - 1)
        return (covariance + self.eps * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)).unsqueeze(1)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class BiMap(nn.Module):
    r"""Bilinear map to smaller SPD matrices, :math:`Y_o = \sum_i W_{oi}^\top X_i W_{oi}` with orthonormal columns in W.

    Args:
        n_in: Size of the matrices of the input ``(batch, in_channels, n_in, n_in)``.
        n_out: Size of those of the output ``(batch, out_channels, n_out, n_out)``; at most ``n_in``.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        free: Whether ``weight`` may be any matrix A of full rank, and the layer takes W = A (AᵀA)^{−1/2} from it, the
            nearest matrix with orthonormal columns. Such a layer trains with any optimiser; otherwise W stays on the
            Stiefel manifold only with :class:`netwright.training.riemannian.MixedRiemannianSGD`.
        device: Of the weight.
        dtype: Of the weight.

    Raises:
        InputError: If ``n_out`` is above ``n_in``, or the input has other channels or sizes, or is not symmetric.

    Source:
        arXiv:1608.04233, section 3.1. The first W is drawn uniformly from the matrices with orthonormal columns.

    Example:
        >>> BiMap(15, 12)(torch.eye(15).expand(2, 1, 15, 15)).shape
        torch.Size([2, 1, 12, 12])
    """

    dense_parameters: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(
        self,
        n_in: int,
        n_out: int,
        in_channels: int = 1,
        out_channels: int = 1,
        *,
        free: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        checks.between("n_out", n_out, 1, n_in)
        checks.at_least("in_channels", in_channels, 1)
        checks.at_least("out_channels", out_channels, 1)
        self.n_in, self.n_out = n_in, n_out
        self.in_channels, self.out_channels = in_channels, out_channels
        self.free = free
        self.manifolds = {} if free else {"weight": "stiefel"}
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, n_in, n_out, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw W anew."""
        with torch.no_grad():
            q, r = torch.linalg.qr(torch.randn_like(self.weight, dtype=torch.float64))
            self.weight.copy_(q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2))

    def orthonormal(self) -> Tensor:
        """W ``(out_channels, in_channels, n_in, n_out)`` in float64."""
        weight = self.weight.double()
        if not self.free:
            return weight
        (inverse, _) = spectral(weight.mT @ weight, ("inv_sqrt", 0.0), floor=ROUNDING)
        return weight @ inverse

    def forward(self, input: Tensor) -> Tensor:
        check_square("input", input, self.n_in)
        checks.dimensions("input", input, "(batch, channels, n, n)")
        checks.size("input", input, 1, self.in_channels)
        weight = self.orthonormal()
        mapped = weight.mT @ input.double().unsqueeze(1) @ weight
        return symmetric(mapped.sum(2)).to(input.dtype)

    def extra_repr(self) -> str:
        channels = f", in_channels={self.in_channels}, out_channels={self.out_channels}"
        return (
            f"{self.n_in}, {self.n_out}{channels if self.in_channels * self.out_channels > 1 else ''}, free={self.free}"
        )


class ReEig(nn.Module):
    """Raise all eigenvalues to at least ``eps``: the nonlinearity, as ReLU is of other networks.

    Args:
        eps: The least eigenvalue.

    Source:
        arXiv:1608.04233, section 3.2.

    Example:
        >>> ReEig(0.1)(torch.diag(torch.tensor([1.0, 0.0])).view(1, 1, 2, 2))
        tensor([[[[1.0000, 0.0000],
                  [0.0000, 0.1000]]]])
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        checks.positive("eps", eps)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        check_square("input", input)
        output, _ = spectral(symmetric(input), ("clamp", self.eps))
        return output

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class LogEig(nn.Module):
    """Matrix logarithm: from SPD matrices to symmetric ones, which ordinary layers can read.

    Raises:
        InputError: If an eigenvalue is not positive; the message names it.

    Source:
        arXiv:1608.04233, section 3.3.

    Example:
        >>> LogEig()(torch.eye(3).expand(2, 1, 3, 3)).abs().max()
        tensor(0.)
    """

    def forward(self, input: Tensor) -> Tensor:
        check_square("input", input)
        output, values = spectral(symmetric(input), ("log", 0.0))
        check_positive("input", values)
        return output


__all__ = ["BiMap", "CovPool", "LogEig", "ReEig"]
