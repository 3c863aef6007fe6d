"""What relative projections are made of: the similarities, the averages over classes, the normalisations."""

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

Similarity = Literal["cosine", "euclidean", "l1", "angular", "basis_change"]
Normalisation = Literal["l2", "layernorm", "batchnorm", "instancenorm"]
Aggregation = Literal["class_mean"]

_SHORT = (torch.float16, torch.bfloat16)
_TINY = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


def relative_projection(input: Tensor, anchors: Tensor, similarity: Similarity = "cosine") -> Tensor:
    r"""Similarities of latents to the latents of anchors.

    ================  ==========================================================  ================================
    ``similarity``    :math:`r(x)_j`                                              does not change under
    ================  ==========================================================  ================================
    cosine            :math:`\cos(x, a_j)`                                        rotation, reflection, scale
    angular           :math:`\arccos(\cos(x, a_j)) / \pi`                         rotation, reflection, scale
    euclidean         :math:`\lVert x - a_j \rVert_2`                             rotation, reflection, translation
    l1                :math:`\lVert x - a_j \rVert_1`                             translation, order of the units
    basis_change      the shortest :math:`w` whose :math:`\sum_j w_j a_j` is x    any invertible linear map, where
                      (or as near as possible)                                    the anchors span the space
    ================  ==========================================================  ================================

    None but euclidean and l1 ignores a translation: subtract the mean of the anchors before, where that is wanted.

    Args:
        input: Latents ``(…, features)``.
        anchors: Latents of the anchors ``(anchors, features)``.
        similarity: See above.

    Returns:
        ``(…, anchors)``. A latent that is 0 has cosine 0 to everything, and no gradient.

    Raises:
        InputError: If the features differ, there is no anchor, or a value is not finite.

    Warns:
        UserWarning: If a latent is 0 where its direction counts (cosine, angular).

    Source:
        arXiv:2209.15430, section 3; the other similarities: Cannistraci et al. 2023, arXiv:2310.01211.

    Example:
        >>> x, anchors = torch.randn(5, 8), torch.randn(3, 8)
        >>> rotation = torch.linalg.qr(torch.randn(8, 8)).Q
        >>> r = relative_projection(x, anchors)
        >>> r.shape, torch.allclose(r, relative_projection(2 * x @ rotation, 2 * anchors @ rotation), atol=1e-6)
        (torch.Size([5, 3]), True)
    """
    checks.known("similarity", similarity, get_args(Similarity))
    check_anchors(anchors)
    return compare(input, prepare(anchors, similarity), similarity)


def check_anchors(anchors: Tensor) -> None:
    """Raise InputError if these are no latents of anchors."""
    checks.dimensions("anchors", anchors, "(anchors, features)")
    checks.floating_point("anchors", anchors)
    checks.at_least("number of anchors", len(anchors), 1)


def prepare(anchors: Tensor, similarity: Similarity, check: bool = True) -> Tensor:
    """What :func:`compare` needs of the anchors: unit vectors, the pseudo-inverse transposed, or themselves."""
    if similarity in ("cosine", "angular"):
        return _unit("anchors", anchors, check)
    if check:
        _check_finite("anchors", anchors)
    if similarity == "basis_change":
        inverse: Tensor = torch.linalg.pinv(anchors.double())
        return inverse.to(anchors.dtype).T
    return anchors


def compare(input: Tensor, prepared: Tensor, similarity: Similarity, check: bool = True) -> Tensor:
    """Similarities ``(…, anchors)``; see :func:`relative_projection`."""
    checks.floating_point("input", input)
    if input.shape[-1] != prepared.shape[1]:
        features = f"as many features as the anchors ({prepared.shape[1]})"
        checks.fail(f"input must have {features}", f"shape {tuple(input.shape)}")
    if similarity in ("cosine", "angular"):
        cosine = _cosine(input, prepared, check)
        return cosine if similarity == "cosine" else _angle(cosine)
    if check:
        _check_finite("input", input)
    if similarity == "basis_change":
        return functional.linear(input, prepared)
    rows = input.reshape(-1, input.shape[-1])
    if rows.dtype in _SHORT or prepared.dtype in _SHORT:
        rows, prepared = rows.float(), prepared.float()
    # by way of products it would be quicker, and wrong for neighbours
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(rows, prepared, p=2.0 if similarity == "euclidean" else 1.0, compute_mode=mode)
    return distances.view(*input.shape[:-1], -1).to(input.dtype)


def _cosine(input: Tensor, units: Tensor, check: bool) -> Tensor:
    if input.dtype in _SHORT or (not input.is_meta and torch.is_autocast_enabled(input.device.type)):
        return functional.linear(_unit("input", input, check), units)
    # products first: they can be scaled in place, without a copy of the features
    scale = _inverse_lengths("input", input, check)
    products = functional.linear(input, units)
    return products * scale if torch.is_grad_enabled() else products.mul_(scale)


def _unit(name: str, vectors: Tensor, check: bool) -> Tensor:
    """The rows at length 1; a row of zeros stays one, and gets no gradient."""
    exact = vectors.float() if vectors.dtype in _SHORT else vectors
    return (exact * _inverse_lengths(name, exact, check)).to(vectors.dtype)


def _inverse_lengths(name: str, vectors: Tensor, check: bool) -> Tensor:
    """1 / length of the rows, ``(…, 1)``; 0 for a row of zeros."""
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    tiny = _TINY[lengths.dtype]
    if check and _can_look(lengths):
        low, high = torch.aminmax(lengths.detach())
        shortest, longest = low.item(), high.item()
        if shortest >= tiny and longest < torch.inf:
            return lengths.reciprocal()
        if not longest < torch.inf:
            _check_finite(name, vectors)
        if shortest < tiny:
            warnings.warn(f"a latent of {name} is 0 and has no direction; its cosines count as 0", stacklevel=2)
    return lengths.where(lengths >= tiny, torch.inf).reciprocal()


def _angle(cosine: Tensor) -> Tensor:
    """The arccosine in units of π; without a gradient where it has none, as for an anchor with itself."""
    inside = cosine.abs() < 1 - 4 * torch.finfo(cosine.dtype).eps
    angle = cosine.where(inside, 0).arccos()
    return torch.where(inside, angle, cosine.detach().clamp(-1, 1).arccos()) / torch.pi


def _check_finite(name: str, tensor: Tensor) -> None:
    if _can_look(tensor) and not bool(tensor.isfinite().all()):
        raise checks.InputError(f"{name} must be finite, got NaN or infinity")


def _can_look(tensor: Tensor) -> bool:
    """Whether decisions can be made on the values of a tensor."""
    if torch.compiler.is_compiling() or tensor.is_meta or not tensor.numel():
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def class_means(aggregate: Aggregation | None, labels: Tensor | None, n_anchors: int) -> Tensor | None:
    """``(anchors, classes)``: what averages over the anchors of each class."""
    if aggregate is None:
        return None
    checks.known("aggregate", aggregate, get_args(Aggregation))
    if labels is None or labels.shape != (n_anchors,) or labels.is_floating_point():
        given = None if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        checks.fail(f"aggregate='class_mean' needs labels, a class for each of {n_anchors} anchors", given)
    members = functional.one_hot(labels).to(torch.get_default_dtype())
    counts = members.sum(0)
    if not bool(counts.all()):
        checks.fail("every class must have an anchor", f"none of class {int(counts.argmin())}")
    return members / counts


class _UnitLength(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return functional.normalize(input, dim=-1)


class _BatchNorm(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.reshape(-1, input.shape[-1])).view_as(input)


class _InstanceNorm(nn.InstanceNorm1d):
    """Every similarity over the samples of the batch, of which there must be two."""

    def forward(self, input: Tensor) -> Tensor:
        samples = input.reshape(-1, input.shape[-1])
        checks.at_least("batch size for normalise_output='instancenorm'", len(samples), 2)
        return super().forward(samples.T).T.reshape(input.shape)


def normalisation(
    kind: Normalisation | None,
    features: int,
    affine: bool,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> nn.Module:
    """What follows the similarities; nothing if ``kind`` is ``None``."""
    if kind is None:
        return nn.Identity()
    checks.known("normalise_output", kind, get_args(Normalisation))
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    if kind == "l2":
        return _UnitLength()
    if kind == "layernorm":
        return nn.LayerNorm(features, elementwise_affine=affine, **place)
    norm = _BatchNorm if kind == "batchnorm" else _InstanceNorm
    return norm(features, affine=affine, **place)


__all__ = [
    "Aggregation",
    "Normalisation",
    "Similarity",
    "check_anchors",
    "class_means",
    "compare",
    "normalisation",
    "prepare",
    "relative_projection",
]
