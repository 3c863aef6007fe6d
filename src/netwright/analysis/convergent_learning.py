"""Convergent learning (Li, Yosinski, Clune, Lipson, Hopcroft 2016, arXiv:1511.07543): do two networks learn the same?

Beyond matching unit to unit (:func:`netwright.analysis.similarity.match_units`), a unit of one network may be a sparse
mix of units of the other (:func:`sparse_stitch`), or groups of units may span the same space
(:func:`spectral_co_clusters`, :func:`shared_clusters`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.cluster import KMeans
from torch import Tensor, nn

from netwright import checks
from netwright.analysis.capture import Moments
from netwright.analysis.similarity import correlations_of, dead_units, match_units

_SAMPLES_AT_ONCE = 8192


def unit_mutual_information(a: Tensor, b: Tensor, bins: int = 10) -> Tensor:
    r"""Mutual information between every unit of A and every unit of B, in bits.

    .. math:: I_{ij} = \sum_{x,y} p_{xy} \log_2 \frac{p_{xy}}{p_x p_y} - \frac{(R_i - 1)(R_j - 1)}{2 n \ln 2}

    over the cells of a histogram. Zeros, of which a ReLU makes many, have a bin of their own; the other values of a
    unit fall into ``bins - 1`` bins of equal counts. The last term, with the numbers :math:`R` of bins that hold a
    value, is the bias that finite samples give to the sum, to first order.

    Args:
        a: ``(samples, units of A)``.
        b: ``(samples, units of B)``.
        bins: Bins of a unit, that of the zeros included; at least 3.

    Returns:
        ``(units of A, units of B)`` in float64; about 0, and possibly below, for independent units.

    Raises:
        InputError: If the samples differ in number or are fewer than 3, a value is not finite, or ``bins`` is below 3.

    Source:
        arXiv:1511.07543, section 3.1; bias: Panzeri, Treves 1996.
    """
    checks.at_least("bins", bins, 3)
    for name, matrix in {"a": a, "b": b}.items():
        checks.dimensions(name, matrix, "(samples, units)")
        if not bool(matrix.isfinite().all()):
            raise checks.InputError(f"{name} must be finite, got NaN or infinity")
    if len(a) != len(b):
        checks.fail(f"b must have as many samples as a ({len(a)})", len(b))
    checks.at_least("number of samples", len(a), 3)
    codes_a, codes_b = _bin_codes(a, bins), _bin_codes(b, bins)
    counts = torch.zeros(a.shape[1] * bins, b.shape[1] * bins, dtype=torch.float64, device=a.device)
    for part_a, part_b in zip(*(torch.split(codes, _SAMPLES_AT_ONCE) for codes in (codes_a, codes_b)), strict=True):
        # counts of a part are exact in float32
        counts += (_one_hot(part_a, bins).T @ _one_hot(part_b, bins)).double()
    joint = counts.view(a.shape[1], bins, b.shape[1], bins).permute(0, 2, 1, 3) / len(a)
    p_a, p_b = joint.sum(3, keepdim=True), joint.sum(2, keepdim=True)
    information = torch.special.xlogy(joint, joint / (p_a * p_b).where(joint > 0, 1)).sum((2, 3))
    used_a, used_b = (p[:, :, :, 0].gt(0).sum(2) for p in (p_a, p_b.transpose(2, 3)))
    bias = (used_a - 1) * (used_b - 1) / (2 * len(a))
    bits: Tensor = (information - bias) / math.log(2)
    return bits


@dataclass(frozen=True)
class SparseStitch:
    """A sparse linear map from the units of A to those of B.

    Attributes:
        weights: ``(units of B, units of A)``, between units scaled to variance 1.
        loss: Fraction of each B unit's variance that is left unexplained ``(units of B,)``; NaN for dead units.
        layer_weight: The same map between units as they are, ``(units of B, units of A)``.
        layer_bias: What it adds, ``(units of B,)``.
    """

    weights: Tensor
    loss: Tensor
    layer_weight: Tensor
    layer_bias: Tensor

    @property
    def weights_per_unit(self) -> float:
        """Mean number of weights that are not zero of a living unit of B."""
        living = self.loss.isfinite()
        return (self.weights[living] != 0).sum(1).double().mean().item()

    @property
    def mean_loss(self) -> float:
        """Mean over the living units of B."""
        return self.loss[self.loss.isfinite()].mean().item()

    def layer(self, places: int = 0) -> nn.Module:
        """The map as a layer: a linear one, or with 1 to 3 ``places`` a convolution of kernel size 1."""
        checks.between("places", places, 0, 3)
        out_features, in_features = self.layer_weight.shape
        dtype = torch.get_default_dtype()
        layer = (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d)[places - 1](in_features, out_features, 1)
            if places
            else nn.Linear(in_features, out_features)
        )
        with torch.no_grad():
            layer.weight.copy_(self.layer_weight.to(dtype).view_as(layer.weight))
            assert layer.bias is not None
            layer.bias.copy_(self.layer_bias.to(dtype))
        return layer


def sparse_stitch(
    moments: Moments, penalty: float, *, tolerance: float = 1e-6, max_steps: int = 20_000
) -> SparseStitch:
    r"""Predict every unit of B from all units of A with few weights: the exact optimum of a lasso for each of them.

    .. math:: \min_w \tfrac12 E\big[(b - w^\top a)^2\big] + \lambda \lVert w \rVert_1

    with all units scaled to mean 0 and variance 1. Solved for all units of B at once from the moments alone, by
    accelerated proximal gradient steps that start over where they overshoot; with a penalty of 0 by least squares.

    Args:
        moments: Those of A and B, :func:`netwright.analysis.similarity.unit_moments`.
        penalty: λ; from 1 on all weights are zero.
        tolerance: Largest violation of the optimality conditions: :math:`|g_i + \lambda\,\mathrm{sign}(w_i)|` where a
            weight is not zero, :math:`|g_i| - \lambda` where it is, with g the gradient of the first term.
        max_steps: Steps before giving up.

    Raises:
        InputError: If the penalty is negative, or the steps do not suffice.

    Source:
        arXiv:1511.07543, section 3.3, where the same problem is approached by gradient descent.

    Example:
        >>> from netwright.analysis.similarity import unit_moments
        >>> a = torch.randn(500, 6)
        >>> b = a[:, :2] @ torch.randn(2, 3)
        >>> stitch = sparse_stitch(unit_moments(a, b), penalty=0.05)
        >>> stitch.weights_per_unit <= 6 and stitch.mean_loss < 0.05
        True
    """
    checks.at_least("penalty", penalty, 0)
    aa, bb, ab = moments.covariances
    living_a, living_b = ~dead_units(aa), ~dead_units(bb)
    scale_a, scale_b = (covariance.diagonal().clamp_min(0).sqrt() for covariance in (aa, bb))
    gram = _living(aa / scale_a.outer(scale_a), living_a, living_a)
    target = _living(ab / scale_a.outer(scale_b), living_a, living_b)
    if not gram.numel() or not target.numel():
        raise checks.InputError("both networks need living units, got only units that do not vary")
    if penalty == 0:
        solution = torch.linalg.lstsq(gram, target, driver="gelsd").solution
    else:
        solution = _lasso(gram, target, penalty, tolerance, max_steps)
    explained = 2 * (solution * target).sum(0) - (solution * (gram @ solution)).sum(0)
    weights = aa.new_zeros(len(bb), len(aa))
    weights[living_b.nonzero(), living_a.nonzero().T] = solution.T
    loss = torch.full_like(scale_b, torch.nan)
    loss[living_b] = (1 - explained).clamp_min(0)
    layer_weight = weights * scale_b[:, None] / scale_a.where(living_a, 1)
    mean_a, mean_b = moments.means
    return SparseStitch(weights, loss, layer_weight, mean_b - layer_weight @ mean_a)


def one_to_one_loss(moments: Moments) -> Tensor:
    """Unexplained variance of each B unit when its bipartite partner alone predicts it, 1 − r²; NaN without partner."""
    matching = match_units(correlations_of(moments), "bipartite", absolute=True)
    loss = torch.full_like(moments.means[1], torch.nan)
    loss[matching.partners] = 1 - matching.values.square()
    return loss


def joint_similarity(moments: Moments, *, absolute: bool = False) -> Tensor:
    """Correlations among the units of A and B together without the diagonal; negative ones are 0, or made positive."""
    aa, bb, ab = moments.covariances
    joint = torch.cat([torch.cat([aa, ab], 1), torch.cat([ab.T, bb], 1)])
    dead = torch.cat([dead_units(aa), dead_units(bb)])
    scale = joint.diagonal().clamp_min(0).sqrt()
    correlations = joint / scale.outer(scale)
    correlations = torch.where(dead[:, None] | dead, 0, correlations)
    correlations.fill_diagonal_(0)
    return correlations.abs() if absolute else correlations.clamp_min(0)


def spectral_embedding(similarity: Tensor, k: int, *, normalised: bool = True) -> Tensor:
    r"""First eigenvectors of the graph Laplacian :math:`D - W` or :math:`D^{-1/2}(D - W)D^{-1/2}`, rows of length 1.

    Args:
        similarity: Weights W of the edges, symmetric, none negative.
        k: Number of eigenvectors.
        normalised: Which Laplacian.

    Returns:
        ``(units, k)``; rows of isolated units are zero.

    Raises:
        InputError: If the matrix is not square, symmetric and without negative entries, or k is not from 2 to the
            number of units.

    Source:
        Ng, Jordan, Weiss 2002; arXiv:1511.07543, section 3.4.
    """
    checks.dimensions("similarity", similarity, "(units, units)")
    checks.size("similarity", similarity, 1, len(similarity))
    checks.between("k", k, 2, len(similarity))
    if bool((similarity < 0).any()) or not torch.allclose(similarity, similarity.T):
        raise checks.InputError("similarity must be symmetric and have no negative entries")
    weights = similarity.double()
    degree = weights.sum(1)
    laplacian = torch.diag(degree) - weights
    if normalised:
        scale = torch.where(degree > 0, degree, 1).rsqrt()
        laplacian = laplacian * scale.outer(scale)
    laplacian[degree == 0] = 0
    # isolated units come last, not first
    laplacian.diagonal()[degree == 0] = 2 * degree.max() + 2
    vectors = torch.linalg.eigh(laplacian).eigenvectors[:, :k]
    rows: Tensor = nn.functional.normalize(vectors, dim=1)
    return torch.where(degree[:, None] > 0, rows, 0)


def spectral_co_clusters(similarity: Tensor, k: int, *, normalised: bool = True, seed: int = 0) -> Tensor:
    """Groups of units of both networks that vary together: k-means on the spectral embedding.

    Args:
        similarity: Of all units of both networks, :func:`joint_similarity`.
        k: Number of groups.
        normalised: See :func:`spectral_embedding`.
        seed: Of the starts of k-means.

    Returns:
        Group of every unit, int64; −1 for isolated (dead) units.

    Source:
        arXiv:1511.07543, section 3.4.

    Example:
        >>> blocks = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)).fill_diagonal_(0)
        >>> labels = spectral_co_clusters(blocks, 2)
        >>> len(labels[:3].unique()), len(labels[3:].unique()), bool(labels[0] != labels[3])
        (1, 1, True)
    """
    embedded = spectral_embedding(similarity, k, normalised=normalised)
    return _on_living(embedded, lambda rows: KMeans(k, n_init=10, random_state=seed).fit_predict(rows))


def hierarchical_clusters(similarity: Tensor, ks: Sequence[int], *, normalised: bool = True) -> dict[int, Tensor]:
    """Nested groups: clusters of the spectral embedding, merged pair by pair (Ward), cut at several numbers.

    Args:
        similarity: See :func:`spectral_co_clusters`.
        ks: Numbers of groups to cut at; the largest is the dimension of the embedding.
        normalised: See :func:`spectral_embedding`.

    Returns:
        Number of groups to the group of every unit; −1 for isolated units.
    """
    if not ks:
        checks.fail("ks must name at least one number of groups", list(ks))
    embedded = spectral_embedding(similarity, max(ks), normalised=normalised)
    checks.at_least("ks", min(ks), 1)

    def cut(k: int) -> Tensor:
        return _on_living(embedded, lambda rows: fcluster(linkage(rows, "ward"), k, "maxclust") - 1)

    return {k: cut(k) for k in ks}


def within_between_ratio(similarity: Tensor, labels: Tensor) -> float:
    """Mean similarity of units in the same group over that of units in different groups; units with −1 stay out."""
    checks.size("labels", labels, 0, len(similarity))
    living = labels >= 0
    weights, groups = _living(similarity.double(), living, living), labels[living]
    same = groups[:, None] == groups
    other = ~same
    same = same.clone().fill_diagonal_(False)
    if not bool(same.any()) or not bool(other.any()):
        raise checks.InputError("labels must make two groups, one of them of two units, to compare within and between")
    between = weights[other].mean().item()
    within = weights[same].mean().item()
    return within / between if between else math.inf


@dataclass(frozen=True)
class SharedCluster:
    """A group with units of both networks.

    Attributes:
        units_a: Units of A in the group.
        units_b: Units of B in the group.
        angle: Largest principal angle between the spaces that they span over the data, in radians: 0 if the smaller
            one lies in the other, π/2 if it has a direction with nothing of the other.
    """

    units_a: Tensor
    units_b: Tensor
    angle: float


def shared_clusters(moments: Moments, labels: Tensor) -> list[SharedCluster]:
    """The groups that hold units of both networks, those that span the most similar spaces first."""
    aa, bb, ab = moments.covariances
    checks.size("labels", labels, 0, len(aa) + len(bb))
    labels_a, labels_b = torch.split(labels, [len(aa), len(bb)])
    found = []
    for label in range(int(labels.max()) + 1):
        units_a, units_b = ((side == label).nonzero().flatten() for side in (labels_a, labels_b))
        if len(units_a) and len(units_b):
            whiten_a, whiten_b = _whiten(aa[units_a][:, units_a]), _whiten(bb[units_b][:, units_b])
            cosines = torch.linalg.svdvals(whiten_a.T @ ab[units_a][:, units_b] @ whiten_b)
            angle = math.acos(min(1.0, cosines.min().item())) if len(cosines) else math.pi / 2
            found.append(SharedCluster(units_a, units_b, angle))
    return sorted(found, key=lambda cluster: cluster.angle)


def _bin_codes(x: Tensor, bins: int) -> Tensor:
    """Bin of every value: 0 for zeros, the others by quantiles of their unit, equal values in the same bin."""
    values = x.T.contiguous()
    zero = values == 0
    ordered = values.where(~zero, -torch.inf).sort(1).values
    off = zero.sum(1, keepdim=True)
    parts = torch.arange(1, bins - 1, device=x.device)
    at = off + (x.shape[0] - off) * parts // (bins - 1)
    edges = ordered.gather(1, at.clamp_max(x.shape[0] - 1)).contiguous()
    return torch.where(zero, 0, 1 + torch.searchsorted(edges, values, right=True)).T


def _one_hot(codes: Tensor, bins: int) -> Tensor:
    hot = torch.zeros(*codes.shape, bins, device=codes.device)
    return hot.scatter_(2, codes[:, :, None], 1.0).flatten(1)


def _lasso(gram: Tensor, target: Tensor, penalty: float, tolerance: float, max_steps: int) -> Tensor:
    step = 1 / torch.linalg.eigvalsh(gram)[-1]
    weights: Tensor = torch.zeros_like(target)
    ahead, momentum = weights, target.new_ones(target.shape[1])
    for turn in range(max_steps):
        moved = ahead - step * (gram @ ahead - target)
        new = moved.sign() * (moved.abs() - step * penalty).clamp_min(0)
        # columns in which the momentum points uphill start over
        uphill = ((ahead - new) * (new - weights)).sum(0) > 0
        following = torch.where(uphill, 1, (1 + (1 + 4 * momentum.square()).sqrt()) / 2)
        ahead = new + torch.where(uphill, 0, (momentum - 1) / following) * (new - weights)
        weights, momentum = new, following
        if turn % 10 == 9:
            gradient = gram @ weights - target
            violation = torch.where(weights != 0, (gradient + penalty * weights.sign()).abs(), gradient.abs() - penalty)
            if float(violation.max()) <= tolerance:
                return weights
    raise checks.InputError(
        f"no optimum within {tolerance} after {max_steps} steps; take a larger penalty, tolerance or max_steps"
    )


def _living(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrix[rows][:, columns]


def _whiten(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    scaled: Tensor = vectors[:, kept] * values[kept].rsqrt()
    return scaled


def _on_living(embedded: Tensor, cluster: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    living = embedded.ne(0).any(1)
    labels = torch.full((len(embedded),), -1)
    labels[living.cpu()] = torch.as_tensor(np.asarray(cluster(embedded[living].cpu().numpy())), dtype=torch.int64)
    return labels.to(embedded.device)


__all__ = [
    "SharedCluster",
    "SparseStitch",
    "hierarchical_clusters",
    "joint_similarity",
    "one_to_one_loss",
    "shared_clusters",
    "sparse_stitch",
    "spectral_co_clusters",
    "spectral_embedding",
    "unit_mutual_information",
    "within_between_ratio",
]
