"""Eigen-CAM (Muhammad, Yeasin 2020, arXiv:2008.00299): what stands out in a layer, by its first component."""

from dataclasses import dataclass

import scipy.linalg
import torch
from torch import Tensor, nn

from netwright import checks
from netwright.explain._maps import (
    Inputs,
    Reshape,
    arguments,
    check_called,
    default_layer,
    normalise,
    over_places,
    picture_of,
    recording,
    resize,
)

_CLEAR = 1e-9  # fraction of a map's absolute sum that its sum must exceed to decide the sign


@dataclass(frozen=True, eq=False)
class PrincipalMap:
    """Projections of a layer's output on its principal directions; ``k`` is left out where one component is asked for.

    Attributes:
        raw: ``(batch, k, *places)``, float64.
        sign: How far the sign of a map is beyond doubt ``(batch, k)``: sum over places / sum of absolute values, 1
            where no value is negative. Where it is 0, as always with centring, the larger peak decides.
        gap: Singular value over the next one, ``(batch, k)``; near 1 the direction is arbitrary; infinite if there is
            no next one, 1 for a zero map.
        share: Share of the component in the sum of squares of the layer's output, centred if asked for, ``(batch, k)``;
            0 for a zero map.
    """

    raw: Tensor
    sign: Tensor
    gap: Tensor
    share: Tensor


@dataclass(frozen=True, eq=False)
class EigenCamResult:
    """Maps of what stands out in a layer; ``k`` is left out where one component is asked for.

    Attributes:
        map: From 0 to 1, at the size that was asked for ``(batch, k, *size)``.
        raw: Projection at the size of the layer, see :class:`PrincipalMap`.
        sign: See :class:`PrincipalMap`.
        gap: See :class:`PrincipalMap`.
        share: See :class:`PrincipalMap`.
        layer: Name of the layer.
    """

    map: Tensor
    raw: Tensor
    sign: Tensor
    gap: Tensor
    share: Tensor
    layer: str


def principal_map(activation: Tensor, center: bool = False, components: int | None = None) -> PrincipalMap:
    r"""Projection of every place of a layer's output on the direction in which they are largest.

    .. math:: m = A v_1 = s_1 u_1, \qquad A = U S V^\top \in \mathbb R^{\text{places} \times \text{channels}}

    The sign is the one that makes the sum of the map positive; if that is 0 (always with centring), the one with the
    larger positive peak. For outputs without negative entries the first map without centring has none either.

    The Gram matrix of the shorter side is decomposed, in float64: O(places · channels · min(places, channels)).

    Args:
        activation: ``(batch, channels, height, width)`` or tokens ``(batch, tokens, channels)``.
        center: Subtract each channel's mean over the places. The paper does not; the library of Gildenblat does.
        components: Return so many maps, in the order of their singular values.

    Raises:
        InputError: If the activation has another shape, holds NaN or infinity, or has fewer than ``components``
            places or channels.

    Source:
        Muhammad, Yeasin 2020, arXiv:2008.00299, section III.

    Example:
        >>> bright = torch.tensor([[0.0, 1.0], [2.0, 0.0]])
        >>> found = principal_map(bright * torch.tensor([3.0, 4.0]).view(1, 2, 1, 1))
        >>> found.raw.round(decimals=6), found.share.round(decimals=6)
        (tensor([[[ 0.,  5.],
                 [10.,  0.]]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    checks.dimensions("activation", activation, "(batch, channels, height, width)", "(batch, tokens, channels)")
    checks.floating_point("activation", activation)
    if activation.ndim == 3:
        flat, places = activation.detach(), activation.shape[1:2]
    else:
        flat, places = activation.detach().flatten(2).transpose(1, 2), activation.shape[2:]
    number = 1 if components is None else components
    checks.at_least("components", number, 1)
    checks.at_least("number of places and of channels", min(flat.shape[1:]), number)
    maps, values, total = _project(flat, number, center)
    maps, sign = _signed(maps)
    following = values[:, 1:]
    gap = torch.where(values[:, :-1] > 0, values[:, :-1] / following, 1.0)
    share = torch.where(
        total[:, None] > 0, values[:, :-1].square() / total[:, None].where(total[:, None] > 0, 1.0), 0.0
    )
    raw = maps.reshape(*maps.shape[:2], *places)
    if components is None:
        return PrincipalMap(raw[:, 0], sign[:, 0], gap[:, 0], share[:, 0])
    return PrincipalMap(raw, sign, gap, share)


@torch.no_grad()
def eigen_cam(
    model: nn.Module,
    x: Inputs,
    layer: str | None = None,
    center: bool = False,
    size: tuple[int, ...] | None = None,
    *,
    components: int | None = None,
    reshape: Reshape | None = None,
) -> EigenCamResult:
    r"""Where a network sees something, whatever class it takes it for: no gradient, no class, no classifier.

    .. math:: m = A v_1

    with the layer's output A (places × channels) and its first right singular vector, at the size of the picture,
    shifted and scaled to values from 0 to 1. It does not change when the layers after ``layer`` do. Where there are
    several objects the first component may mix them or leave one out; ask for more ``components`` then.

    The model is run in eval mode; its modes, hooks, buffers, the gradients of its parameters and torch's random state
    are left as they were.

    Args:
        model: Any module.
        x: Its input ``(batch, channels, height, width)``, or a tuple of all its arguments, with the picture first.
        layer: Name as ``model.named_modules()`` gives it; :func:`~netwright.explain._maps.default_layer` if not given.
            Earlier layers give finer maps with more noise.
        center: Subtract each channel's mean over the places first.
        size: Height and width of the map; those of the picture if not given.
        components: Return so many maps a sample, ``(batch, components, *size)``.
        reshape: ``reshape(output)`` gives ``(batch, channels, height, width)`` for layers that put out something else.
            Tokens ``(batch, tokens, channels)`` of pictures are put onto the grid of the patches without it.

    Raises:
        InputError: If there is no such layer, it is not called, has no places or holds NaN or infinity.

    Source:
        Muhammad, Yeasin 2020, arXiv:2008.00299.

    Example:
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
        >>> found = eigen_cam(model, torch.randn(2, 3, 16, 16))
        >>> found.map.shape, found.raw.shape, found.layer
        (torch.Size([2, 16, 16]), torch.Size([2, 14, 14]), '1')
    """
    picture = picture_of(x)
    name = default_layer(model, x) if layer is None else layer
    # a copy, since the next layer may work in place
    with recording(model, (name,), lambda output, _: output.detach().clone()) as recorded:
        model(*arguments(x))
    check_called(recorded, (name,))
    output = over_places(recorded[name], model.get_submodule(name), picture, reshape)
    if output.ndim == 3:
        output = output.transpose(1, 2)
    found = principal_map(output, center, components)
    maps = found.raw if components is None else found.raw.flatten(0, 1)
    resized = resize(maps, picture, size).to(torch.promote_types(recorded[name].dtype, torch.float32))
    shown = normalise(resized)
    if components is not None:
        shown = shown.reshape(len(picture), components, *shown.shape[1:])
    return EigenCamResult(shown, found.raw, found.sign, found.gap, found.share, name)


def _project(flat: Tensor, number: int, center: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Maps ``(batch, number, places)``, the first number + 1 singular values, and the sum of squares of all entries."""
    scale = flat.new_ones(1, 1, 1, dtype=torch.float64)
    if flat.dtype == torch.float64:
        # huge and tiny entries would leave the range when they are squared; those of smaller types do not
        scale = flat.abs().amax((1, 2), keepdim=True)
        scale = scale.where(scale > 0, 1.0)
        flat = flat / scale
    wide = flat.shape[1] <= flat.shape[2]
    if flat.is_cpu and 2 * (number + 1) < min(flat.shape[1:]):
        squares, vectors, total = _leading_one_by_one(flat, number + 1, center, wide)
    else:
        flat = _in_double(flat, center)
        gram = flat @ flat.mT if wide else flat.mT @ flat
        total = gram.diagonal(dim1=1, dim2=2).sum(1)
        _check_finite(total)
        squares, vectors = torch.linalg.eigh(gram)
        squares, vectors = squares[:, -number - 1 :].flip(1), vectors[:, :, -number - 1 :].flip(2)
        squares = nn.functional.pad(squares, (0, number + 1 - squares.shape[1]))  # 0 beyond the last
    # what rounding leaves of an eigenvalue 0 is none
    rounding = min(flat.shape[1:]) * torch.finfo(torch.float64).eps
    squares = torch.where(squares > rounding * squares[:, :1], squares, 0.0)
    values = squares.sqrt()
    found = vectors[:, :, :number].mT
    maps = found * values[:, :number, None] if wide else found @ _in_double(flat, center).mT
    maps = torch.where(values[:, :number, None] > 0, maps, 0.0)
    return maps * scale, values * scale.view(-1, 1), total * scale.view(-1).square()


def _in_double(flat: Tensor, center: bool) -> Tensor:
    # the difference is in double precision: no copy of the rest is needed
    return flat - flat.mean(-2, keepdim=True, dtype=torch.float64) if center else flat.double()


def _check_finite(total: Tensor) -> None:
    """A sum of squares in double precision is finite just if all entries are, and costs no pass of its own."""
    if not bool(total.isfinite().all()):
        raise checks.InputError("activation must be finite, got NaN or infinity")


def _leading_one_by_one(flat: Tensor, number: int, center: bool, wide: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The largest eigenvalues ``(batch, number)`` of the Gram matrices, from the largest down, their vectors, traces.

    LAPACK finds the few that are needed in half of the time, one matrix a call as for all of them. One picture stays in
    the processor's cache, in memory that is used again: fresh pages for each cost more than the arithmetic in them.
    """
    size = min(flat.shape[1:])
    span = size - number, size - 1
    values = flat.new_empty(len(flat), number, dtype=torch.float64)
    vectors = flat.new_empty(len(flat), size, number, dtype=torch.float64)
    total = flat.new_empty(len(flat), dtype=torch.float64)
    rows = torch.empty_like(flat[0], dtype=torch.float64)
    gram = rows.new_empty(size, size)
    for index, one in enumerate(flat):
        rows.copy_(one)
        if center:
            rows.sub_(rows.mean(0, keepdim=True))
        torch.mm(*((rows, rows.mT) if wide else (rows.mT, rows)), out=gram)
        total[index] = gram.trace()
        _check_finite(total[index])
        found = scipy.linalg.eigh(gram.numpy(), subset_by_index=span, check_finite=False, overwrite_a=True)
        values[index], vectors[index] = map(torch.from_numpy, found)
    return values.flip(1), vectors.flip(2), total


def _signed(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps ``(batch, number, places)`` with the sign of the rule, and how clear it was."""
    sums, absolute = maps.sum(2), maps.abs().sum(2)
    clear = sums.abs() > _CLEAR * absolute
    by_peak = torch.where(maps.amax(2) >= -maps.amin(2), 1.0, -1.0).to(maps)
    sign = torch.where(clear, sums.sign(), by_peak)
    doubt = torch.where(clear, sums.abs() / absolute.where(absolute > 0, 1.0), 0.0)
    return maps * sign[:, :, None], doubt


__all__ = ["EigenCamResult", "PrincipalMap", "eigen_cam", "principal_map"]
