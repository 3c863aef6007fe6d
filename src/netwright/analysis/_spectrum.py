"""Spectral densities as weighted points, and what sums them up: the criteria of arXiv:2412.10146, and smooth curves."""

from typing import NamedTuple

import torch
from torch import Tensor

from netwright import checks


class Spectrum(NamedTuple):
    """A spectral density by stochastic Lanczos quadrature: a sum of weighted points in each run.

    Attributes:
        eigenvalues: Nodes ``(runs, steps)`` in increasing order, float64.
        weights: Their weights ``(runs, steps)``; those of a run sum to 1.
    """

    eigenvalues: Tensor
    weights: Tensor


class Criteria(NamedTuple):
    """The Hessian criteria of arXiv:2412.10146; the lower, the weaker is negative curvature.

    Attributes:
        r_e: |smallest eigenvalue / largest eigenvalue|.
        k_hn: Σ |λw|ⁿ over negative nodes divided by Σ (λw)ⁿ over positive ones.
    """

    r_e: float
    k_hn: float


def criteria(eigs: Tensor, weights: Tensor, n: float = 0.5, *, rtol: float = 1e-10) -> Criteria:
    r"""The Hessian criteria of a spectrum, averaged over its runs.

    .. math:: r_e = \left|\frac{\lambda_{min}}{\lambda_{max}}\right|, \qquad
        K_{Hn} = \frac{\sum_{\lambda_j < 0} |\lambda_j w_j|^n}{\sum_{\lambda_j > 0} (\lambda_j w_j)^n}

    Args:
        eigs: Nodes, ``(runs, steps)`` or ``(steps,)``.
        weights: Their weights, likewise.
        n: Power, best between 0 and 1.
        rtol: Nodes below ``rtol`` times the largest count as 0, so that rounding gives no negative ones.

    Returns:
        Both numbers; infinite where there is no positive eigenvalue.

    Raises:
        InputError: If the shapes differ, or ``n`` is not positive.

    Source:
        arXiv:2412.10146.

    Example:
        >>> criteria(torch.tensor([-1.0, 0.0, 4.0]), torch.tensor([0.25, 0.25, 0.25]))
        Criteria(r_e=0.25, k_hn=0.5)
    """
    checks.positive("n", n)
    checks.dimensions("eigs", eigs, "(runs, steps)", "(steps)")
    if eigs.shape != weights.shape:
        checks.fail(f"weights must have the shape {tuple(eigs.shape)} of eigs", f"shape {tuple(weights.shape)}")
    nodes = _rows(eigs)
    nodes = nodes.where(nodes.abs() > rtol * nodes.abs().amax(1, keepdim=True), 0.0)
    terms = (nodes * _rows(weights)).abs() ** n
    negative, positive = ((terms * side).sum(1) for side in (nodes < 0, nodes > 0))
    k_hn = torch.where(negative > 0, negative / positive, 0.0)
    smallest, largest = nodes.amin(1), nodes.amax(1)
    r_e = torch.where(smallest != 0, (smallest / largest).abs(), 0.0)
    return Criteria(float(r_e.mean()), float(k_hn.mean()))


def smooth(eigs: Tensor, weights: Tensor, points: int = 1000, *, variance: float = 1e-5) -> tuple[Tensor, Tensor]:
    r"""The density of a spectrum as a curve: every node becomes a Gaussian of variance ``variance``·max(1, range).

    Args:
        eigs: Nodes, ``(runs, steps)`` or ``(steps,)``.
        weights: Their weights, likewise.
        points: Length of the curve.
        variance: See above.

    Returns:
        Places and densities, ``(points,)`` each, float64; the curve integrates to 1 and is the mean of the runs.

    Source:
        The smoothing of arXiv:2412.10146 and PyHessian (Yao et al. 2020, arXiv:1912.07145).

    Example:
        >>> places, density = smooth(torch.tensor([0.0, 2.0]), torch.tensor([0.9, 0.1]))
        >>> round(float(torch.trapezoid(density, places)), 3)
        1.0
    """
    checks.at_least("points", points, 2)
    checks.positive("variance", variance)
    nodes, shares = _rows(eigs), _rows(weights)
    margin = 1e-3
    low, high = nodes.amin(1).mean() - margin, nodes.amax(1).mean() + margin
    places = torch.linspace(float(low), float(high), points, dtype=torch.float64, device=nodes.device)
    spread = variance * max(1.0, float(high - low))
    bumps = torch.exp(-0.5 * (places.view(-1, 1, 1) - nodes) ** 2 / spread)
    density = (bumps * shares).sum(2).mean(1)
    return places, density / torch.trapezoid(density, places)


def _rows(values: Tensor) -> Tensor:
    """One row a run."""
    return values.double().reshape(-1, values.shape[-1])


__all__ = ["Criteria", "Spectrum", "criteria", "smooth"]
