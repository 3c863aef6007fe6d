"""Zero-shot stitching (Moschella et al. 2022, arXiv:2209.15430): the encoder of one network before another's decoder.

:func:`select_anchors` chooses the samples that both networks share, :class:`netwright.layers.relative.RelativeNetwork`
trains with them, :func:`stitch` joins two such networks, and :func:`latent_similarity` says how alike two spaces are.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.analysis.similarity import jaccard, mean_reciprocal_rank
from netwright.layers.relative import RelativeNetwork, RelativeProjection

Selection = Literal["uniform", "fps", "kmeans", "top_norm", "stratified"]


def select_anchors(
    x: Tensor,
    n: int,
    method: Selection = "uniform",
    y: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose samples that serve as anchors.

    - ``"uniform"``: at random;
    - ``"fps"``: farthest-point sampling: the first at random, then always the sample whose largest cosine to those
      chosen so far is smallest;
    - ``"kmeans"``: of each of ``n`` clusters of directions (k-means), the member with the largest cosine to its centre;
    - ``"top_norm"``: the longest;
    - ``"stratified"``: the classes in turn, at random within a class.

    Args:
        x: Inputs or latents ``(samples, …)``; flattened.
        n: Number of anchors.
        method: See above.
        y: Classes ``(samples,)``, for ``"stratified"``.
        generator: Draws; torch's own if not given.

    Returns:
        Indices ``(n,)`` of different samples, in the order in which they were chosen.

    Raises:
        InputError: If ``n`` is not in 1 … samples, classes are missing, or a value is not finite.

    Source:
        arXiv:2209.15430, appendix A.2; stratified as in the authors' code.

    Example:
        >>> classes = torch.tensor([0, 0, 0, 1, 1, 1])
        >>> chosen = select_anchors(torch.randn(6, 4), 4, "stratified", classes)
        >>> classes[chosen]
        tensor([0, 1, 0, 1])
    """
    checks.known("method", method, get_args(Selection))
    checks.between("number of anchors", n, 1, len(x))
    if method == "stratified":
        if y is None or len(y) != len(x):
            checks.fail(f"method 'stratified' needs the classes y of {len(x)} samples", y if y is None else len(y))
        return _in_turn(y, generator)[:n]
    if method == "uniform":
        return _permutation(len(x), generator).to(x.device)[:n]
    rows = x.detach().flatten(1).double()
    if not bool(rows.isfinite().all()):
        raise checks.InputError("x must be finite, got NaN or infinity")
    if method == "top_norm":
        longest: Tensor = torch.linalg.vector_norm(rows, dim=1).sort(descending=True, stable=True).indices
        return longest[:n]
    units = functional.normalize(rows, dim=1)
    return _farthest(units, n, generator) if method == "fps" else _central(units, n, generator)


def stitch(
    encoder_a: nn.Module, decoder_b: RelativeNetwork | nn.Module, anchors_x: Tensor | None = None
) -> RelativeNetwork:
    """The encoder of A before the decoder of B, without any training.

    The decoder gets the similarities to the anchors as A's encoder sees them, normalised as in B. Works where both were
    trained with the same anchors, whatever the width of their latents; inputs of two kinds (languages, say) need
    parallel anchors: the i-th anchor of A is the translation of the i-th of B.

    Args:
        encoder_a: A network with relative latents, of which the encoder is taken; or an encoder alone.
        decoder_b: A network with relative latents; or a decoder that takes cosines.
        anchors_x: The anchors as inputs of A; those of A itself if not given.

    Returns:
        A network of copies, in eval mode; the originals are left alone.

    Raises:
        InputError: If the anchors are not shared: none given, another number than B was trained with, other samples
            (where not given), or compared in another way.

    Source:
        arXiv:2209.15430, sections 4.2 and 5.

    Example:
        >>> anchors = torch.randn(30, 20)
        >>> a = RelativeNetwork(nn.Linear(20, 8), RelativeProjection(30), nn.Linear(30, 2), anchors)
        >>> b = RelativeNetwork(nn.Linear(20, 5), RelativeProjection(30), nn.Linear(30, 2), anchors)
        >>> stitch(a, b)(torch.randn(4, 20)).shape
        torch.Size([4, 2])
    """
    anchors = anchors_x
    if isinstance(encoder_a, RelativeNetwork):
        anchors = encoder_a.anchors if anchors is None else anchors
        encoder = encoder_a.encoder
    else:
        encoder = encoder_a
    if anchors is None:
        raise checks.InputError("stitching needs anchors_x, the anchors as inputs of the encoder, got none")
    if isinstance(decoder_b, RelativeNetwork):
        projection, decoder = decoder_b.projection, decoder_b.decoder
        _check_shared(encoder_a, decoder_b, anchors, given=anchors_x is not None)
    else:
        projection, decoder = RelativeProjection(len(anchors)), decoder_b
    encoder, projection, decoder = copy.deepcopy((encoder, projection, decoder))
    return RelativeNetwork(encoder, projection, decoder, anchors).eval()


@dataclass(frozen=True)
class LatentSimilarity:
    """How alike two representations of the same samples are.

    Attributes:
        cosine: Mean cosine between the two representations of a sample.
        jaccard: See :func:`retrieval_overlap`.
        mrr: See :func:`netwright.analysis.similarity.mean_reciprocal_rank`.
    """

    cosine: float
    jaccard: float
    mrr: float


def latent_similarity(first: Tensor, second: Tensor, k: int = 10) -> LatentSimilarity:
    """Cosine, overlap of neighbours and rank of the counterpart, across two representations of the same samples.

    Args:
        first: ``(samples, features)``; its rows are looked up among those of ``second``.
        second: The same samples, ``(samples, features)``.
        k: Number of neighbours.

    Raises:
        InputError: If the shapes differ or ``k`` is not in 1 … samples.

    Source:
        arXiv:2209.15430, section 4.1.

    Example:
        >>> x = torch.randn(50, 8)
        >>> latent_similarity(x, 2 * x).jaccard
        1.0
    """
    overlap = retrieval_overlap(first, second, k)
    return LatentSimilarity(
        cosine=functional.cosine_similarity(first, second, dim=1).double().mean().item(),
        jaccard=overlap.item(),
        mrr=mean_reciprocal_rank(first, second).item(),
    )


def retrieval_overlap(queries: Tensor, keys: Tensor, k: int = 10, *, chunk: int = 1024) -> Tensor:
    """Whether a sample has the same neighbours whichever space it comes from.

    The Jaccard similarity between the k rows of ``keys`` with the largest cosine to the sample's row in ``queries``,
    and those with the largest cosine to its row in ``keys`` (itself included), averaged over the samples. Unlike
    :func:`netwright.analysis.similarity.neighbour_overlap`, which compares within each space, it needs spaces whose
    coordinates mean the same.

    Args:
        queries: ``(samples, features)`` from one space.
        keys: ``(samples, features)`` from the other, rows in the same order.
        k: Number of neighbours.
        chunk: Queries at once.

    Returns:
        A scalar between 0 and 1 in float64.

    Example:
        >>> x = torch.randn(50, 8)
        >>> retrieval_overlap(x, x).item(), retrieval_overlap(x, -x).item()
        (1.0, 0.0)
    """
    for name, matrix in {"queries": queries, "keys": keys}.items():
        checks.dimensions(name, matrix, "(samples, features)")
        checks.floating_point(name, matrix)
    if queries.shape != keys.shape:
        checks.fail(f"keys must have the shape {tuple(queries.shape)} of queries", f"shape {tuple(keys.shape)}")
    checks.between("k", k, 1, len(keys))
    units = functional.normalize(keys, dim=1)
    overlaps = []
    for part, own in zip(
        torch.split(functional.normalize(queries, dim=1), chunk), torch.split(units, chunk), strict=True
    ):
        found, expected = ((rows @ units.T).topk(k).indices for rows in (part, own))
        overlaps.append(jaccard(found, expected))
    return torch.cat(overlaps).mean()


def _check_shared(encoder_a: nn.Module, decoder_b: RelativeNetwork, anchors: Tensor, *, given: bool) -> None:
    expected = decoder_b.projection.n_anchors
    if len(anchors) != expected:
        checks.fail(f"stitched networks must share their anchors: the decoder expects {expected}", len(anchors))
    if not isinstance(encoder_a, RelativeNetwork):
        return
    similarity = decoder_b.projection.similarity
    if encoder_a.projection.similarity != similarity:
        checks.fail(f"both networks must use the similarity {similarity!r}", repr(encoder_a.projection.similarity))
    if not given and not torch.equal(anchors.to(decoder_b.anchors.device), decoder_b.anchors):
        raise checks.InputError(
            "stitched networks must share their anchors, got other samples; where they are parallel, "
            "the i-th anchors of both belonging together, say so by giving anchors_x"
        )


def _permutation(n: int, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(n, generator=generator, device=None if generator is None else generator.device)


def _in_turn(y: Tensor, generator: torch.Generator | None) -> Tensor:
    """All samples: the first of every class, then the second of every class, and so on."""
    shuffled = _permutation(len(y), generator).to(y.device)
    by_class = shuffled[y[shuffled].sort(stable=True).indices]
    _, counts = torch.unique(y, return_counts=True)
    starts = counts.cumsum(0) - counts
    turn = torch.arange(len(y), device=y.device) - starts.repeat_interleave(counts)
    return by_class[turn.sort(stable=True).indices]


def _farthest(units: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    chosen = _permutation(len(units), generator).to(units.device)[:1]
    nearest = torch.full_like(units[:, 0], -torch.inf)
    free = torch.zeros_like(nearest)
    picks = [chosen]
    for _ in range(n - 1):
        free[chosen] = torch.inf  # the same sample may be there twice
        nearest = torch.maximum(nearest, units @ units[chosen[0]])
        chosen = (nearest + free).argmin().view(1)
        picks.append(chosen)
    return torch.cat(picks)


def _central(units: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    device = None if generator is None else generator.device
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator, device=device))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said below, as an error
        found = KMeans(n, n_init=1, random_state=seed).fit(units.cpu().numpy())
    labels = torch.as_tensor(found.labels_, device=units.device).long()
    counts = labels.bincount(minlength=n)
    if not bool(counts.all()):
        checks.fail(f"x must have {n} different directions for method 'kmeans'", int(counts.count_nonzero()))
    centres = torch.as_tensor(found.cluster_centers_, device=units.device)
    closeness = functional.cosine_similarity(units, centres[labels], dim=1)
    best_first = closeness.sort(descending=True, stable=True).indices
    by_cluster = best_first[labels[best_first].sort(stable=True).indices]
    return by_cluster[counts.cumsum(0) - counts]


__all__ = [
    "LatentSimilarity",
    "Selection",
    "latent_similarity",
    "retrieval_overlap",
    "select_anchors",
    "stitch",
]
