"""How alike two representations are: kernel alignment, geometry, neighbours, and unit by unit.

Representations are matrices with one row a sample, and the rows of both belong to the same samples; the units need not
be as many. What is made of sums and products alone can be differentiated.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.analysis.capture import Moments

# a unit whose spread is below this fraction of its layer's median is dead
_DEAD = 1e-6


def linear_cka(a: Tensor, b: Tensor, *, debiased: bool = False) -> Tensor:
    r"""Centred kernel alignment with linear kernels: 1 for equal up to rotation and scale.

    .. math:: \mathrm{CKA} = \frac{\lVert A_c^\top B_c \rVert_F^2}
        {\lVert A_c^\top A_c \rVert_F \, \lVert B_c^\top B_c \rVert_F}

    where the columns of :math:`A_c, B_c` are centred. Computed from the Gram matrices of samples or of units, whichever
    is smaller. The plain estimate is too high when units are many and samples few; the debiased one (which can be
    slightly negative) is not.

    Args:
        a: ``(samples, units of A)``.
        b: ``(samples, units of B)``.
        debiased: Use the unbiased estimate of the dependence (HSIC) in numerator and denominator; needs 4 samples.

    Returns:
        A scalar, differentiable; 0 if one of the two is constant.

    Source:
        Kornblith, Norouzi, Lee, Hinton 2019, arXiv:1905.00414, equation 3; debiased: Nguyen, Raghu, Kornblith 2020,
        arXiv:2010.15327, equation 3.

    Example:
        >>> a = torch.randn(50, 8)
        >>> rotation = torch.linalg.qr(torch.randn(8, 8)).Q
        >>> round(linear_cka(a, 3 * a @ rotation).item(), 4)
        1.0
    """
    samples = _check_pair(a, b, 4 if debiased else 2)
    a, b = a - a.mean(0), b - b.mean(0)
    if debiased:
        k, l = (_without_diagonal(x @ x.T) for x in (a, b))
        cross, own_a, own_b = _unbiased_hsic(k, l), _unbiased_hsic(k, k), _unbiased_hsic(l, l)
    elif max(a.shape[1], b.shape[1]) < samples:
        cross, own_a, own_b = ((x.T @ y).square().sum() for x, y in ((a, b), (a, a), (b, b)))
    else:
        k, l = a @ a.T, b @ b.T
        cross, own_a, own_b = (k * l).sum(), (k * k).sum(), (l * l).sum()
    product = own_a.clamp_min(0) * own_b.clamp_min(0)
    return torch.where(product > 0, cross / product.where(product > 0, 1).sqrt(), 0)


def rsa(a: Tensor, b: Tensor) -> Tensor:
    """Representational similarity analysis: Pearson correlation between the two matrices of distances of samples.

    Distances are 1 − correlation between the rows; each pair of samples counts once.

    Args:
        a: ``(samples, units of A)``, at least 3 samples and 2 units.
        b: ``(samples, units of B)``.

    Returns:
        A scalar between −1 and 1, differentiable.

    Source:
        Kriegeskorte, Mur, Bandettini 2008, Frontiers in Systems Neuroscience 2:4.

    Example:
        >>> a = torch.randn(20, 8)
        >>> round(rsa(a, 2 * a + 1).item(), 4)
        1.0
    """
    samples = _check_pair(a, b, 3)
    pair = torch.triu_indices(samples, samples, 1, device=a.device)
    distances = []
    for x in (a, b):
        rows = functional.normalize(x - x.mean(1, keepdim=True), dim=1)
        distances.append((1 - rows @ rows.T)[pair[0], pair[1]])
    first, second = (functional.normalize(d - d.mean(), dim=0) for d in distances)
    return first @ second


def unit_correlations(a: Tensor | Iterable[tuple[Tensor, Tensor]], b: Tensor | None = None) -> Tensor:
    r"""Pearson correlation between every unit of A and every unit of B.

    .. math:: r_{ij} = \frac{E[(a_i - \bar a_i)(b_j - \bar b_j)]}{\sigma(a_i)\, \sigma(b_j)}

    Args:
        a: ``(samples, units of A)``; or batches ``(of A, of B)`` of any number of samples, which are not kept.
        b: ``(samples, units of B)``; the units of A with one another if not given.

    Returns:
        ``(units of A, units of B)`` in float64; 0 for dead units, whose standard deviation is below 1e-6 of their
        layer's median.

    Raises:
        InputError: If there are fewer than 3 samples, their numbers differ, or a value is not finite.

    Source:
        Li, Yosinski, Clune, Lipson, Hopcroft 2016, arXiv:1511.07543, section 3.
    """
    return correlations_of(unit_moments(a, b))


def unit_moments(a: Tensor | Iterable[tuple[Tensor, Tensor]], b: Tensor | None = None) -> Moments:
    """The moments that :func:`unit_correlations` is made of."""
    moments = Moments()
    if isinstance(a, Tensor):
        moments.add(a, b)
    else:
        for first, second in a:
            moments.add(first, second)
    checks.at_least("number of samples", moments.count, 3)
    return moments


def correlations_of(moments: Moments) -> Tensor:
    """Correlations between the units of A and of B; 0 for :func:`dead_units`."""
    aa, bb, ab = moments.covariances
    scale_a, scale_b = (_inverse_deviation(covariance) for covariance in (aa, bb))
    return (ab * scale_a[:, None] * scale_b).clamp(-1, 1)


def dead_units(covariance: Tensor) -> Tensor:
    """Which units do not vary: standard deviation at most 1e-6 of the median of their layer; bools ``(units,)``."""
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    return deviation <= _DEAD * deviation.median()


@dataclass(frozen=True)
class Matching:
    """Partners of the units of A, best first.

    Attributes:
        units: Units of A.
        partners: Their partners among the units of B.
        values: Similarity of each pair, falling.
    """

    units: Tensor
    partners: Tensor
    values: Tensor


def match_units(
    similarity: Tensor, method: Literal["semi", "bipartite"] = "bipartite", *, absolute: bool = False
) -> Matching:
    """Find each unit's partner in the other network.

    Args:
        similarity: ``(units of A, units of B)``, such as :func:`unit_correlations`. Rows and columns of zeros (dead
            units) stay out.
        method: ``"semi"`` gives each unit of A its best partner, so that partners may repeat; ``"bipartite"`` takes
            each partner once, so that the sum of the values is the largest possible (Hungarian method).
        absolute: Let a strong negative correlation count as similarity.

    Returns:
        Pairs; for ``"bipartite"`` as many as the smaller of the two sides has.

    Raises:
        InputError: If the matrix is not 2-D, not finite, or has no living units.

    Source:
        Li, Yosinski, Clune, Lipson, Hopcroft 2016, arXiv:1511.07543, section 3.

    Example:
        >>> match_units(torch.tensor([[0.9, 0.8], [0.7, 0.1]])).partners
        tensor([1, 0])
        >>> match_units(torch.tensor([[0.9, 0.8], [0.7, 0.1]]), "semi").partners
        tensor([0, 0])
    """
    checks.known("method", method, ("semi", "bipartite"))
    checks.dimensions("similarity", similarity, "(units of A, units of B)")
    if not bool(similarity.isfinite().all()):
        raise checks.InputError("similarity must be finite, got NaN or infinity")
    rows, columns = (similarity.ne(0).any(dim).nonzero().flatten() for dim in (1, 0))
    if not len(rows) or not len(columns):
        raise checks.InputError("similarity must have living units on both sides, got only zeros")
    living = similarity[rows][:, columns]
    living = living.abs() if absolute else living
    if method == "semi":
        values, partners = living.max(1)
        units = torch.arange(len(rows), device=similarity.device)
    else:
        found = linear_sum_assignment(living.detach().cpu().numpy(), maximize=True)
        units, partners = (torch.as_tensor(index, device=similarity.device) for index in found)
        values = living[units, partners]
    order = values.argsort(descending=True, stable=True)
    return Matching(rows[units[order]], columns[partners[order]], values[order])


def neighbours(x: Tensor, k: int, *, chunk: int = 1024) -> Tensor:
    """The ``k`` nearest other rows of every row by cosine similarity, nearest first: ``(samples, k)``."""
    checks.dimensions("x", x, "(samples, units)")
    checks.between("k", k, 1, len(x) - 1)
    rows = functional.normalize(x, dim=1)
    found = []
    for start in range(0, len(rows), chunk):
        part = rows[start : start + chunk] @ rows.T
        own = torch.arange(len(part), device=x.device)
        part[own, start + own] = -torch.inf
        found.append(part.topk(k).indices)
    return torch.cat(found)


def neighbour_overlap(a: Tensor, b: Tensor, k: int = 10) -> Tensor:
    r"""Mean Jaccard similarity of the k nearest neighbours that a sample has in either representation.

    .. math:: \frac{1}{n}\sum_i \frac{|N_A(i) \cap N_B(i)|}{|N_A(i) \cup N_B(i)|}

    Args:
        a: ``(samples, units of A)``.
        b: ``(samples, units of B)``.
        k: Number of neighbours by cosine similarity.

    Returns:
        A scalar between 0 and 1 in float64; two unrelated spaces have about k / (2·samples).

    Example:
        >>> x = torch.randn(30, 5)
        >>> neighbour_overlap(x, 2 * x).item()
        1.0
    """
    _check_pair(a, b, 2)
    return jaccard(neighbours(a, k), neighbours(b, k)).mean()


def jaccard(first: Tensor, second: Tensor) -> Tensor:
    """Size of the intersection over that of the union of two sets of numbers, row by row: ``(n, k)`` to ``(n,)``."""
    common = (first[:, :, None] == second[:, None, :]).sum((1, 2)).double()
    return common / (first.shape[1] + second.shape[1] - common)


def mean_reciprocal_rank(queries: Tensor, keys: Tensor, *, chunk: int = 1024) -> Tensor:
    r"""How near the own counterpart is among all: mean of 1 / rank by cosine similarity.

    .. math:: \mathrm{MRR} = \frac{1}{n}\sum_i \frac{1}{1 + |\{j : \cos(q_i, k_j) > \cos(q_i, k_i)\}|}

    Args:
        queries: ``(samples, units)`` from one space.
        keys: ``(samples, units)`` from the other, rows in the same order.
        chunk: Queries at once.

    Returns:
        A scalar in float64; 1 if every query is nearest to its own counterpart.
    """
    _check_pair(queries, keys, 1)
    checks.size("keys", keys, 1, queries.shape[1])
    keys = functional.normalize(keys, dim=1)
    ranks = []
    for start in range(0, len(queries), chunk):
        similarity = functional.normalize(queries[start : start + chunk], dim=1) @ keys.T
        own = torch.arange(len(similarity), device=queries.device)
        ranks.append(1 + (similarity > similarity[own, start + own, None]).sum(1))
    return (1 / torch.cat(ranks).double()).mean()


def _check_pair(a: Tensor, b: Tensor, least: int) -> int:
    for name, matrix in {"a": a, "b": b}.items():
        checks.dimensions(name, matrix, "(samples, units)")
        checks.floating_point(name, matrix)
    if len(a) != len(b):
        checks.fail(f"b must have as many samples as a ({len(a)})", len(b))
    checks.at_least("number of samples", len(a), least)
    return len(a)


def _inverse_deviation(covariance: Tensor) -> Tensor:
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    dead = dead_units(covariance)
    return torch.where(dead, 0, 1 / deviation.where(~dead, 1))


def _without_diagonal(gram: Tensor) -> Tensor:
    return gram - torch.diag_embed(gram.diagonal())


def _unbiased_hsic(k: Tensor, l: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion from Gram matrices without diagonals."""
    n = len(k)
    trace = (k * l).sum()
    total = k.sum() * l.sum() / ((n - 1) * (n - 2))
    rows = 2 / (n - 2) * (k.sum(0) @ l.sum(0))
    return (trace + total - rows) / (n * (n - 3))


__all__ = [
    "Matching",
    "correlations_of",
    "dead_units",
    "jaccard",
    "linear_cka",
    "match_units",
    "mean_reciprocal_rank",
    "neighbour_overlap",
    "neighbours",
    "rsa",
    "unit_correlations",
    "unit_moments",
]
