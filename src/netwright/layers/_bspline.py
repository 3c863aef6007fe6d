"""B-splines for :mod:`netwright.layers.kan`: all basis functions of all inputs at once, and knots from quantiles."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# numbers that a tile has in front of each operation: what all of them leave then stays in a core's cache
_TILE = 100_000


def _values(x: Tensor, knots: Tensor, order: int) -> Tensor:
    # functions stand before inputs: with the inputs last, every operation runs along memory
    from_knot = x.unsqueeze(-2) - knots
    if order == 0:
        passed = from_knot >= 0
        return (passed[..., :-1, :] & ~passed[..., 1:, :]).to(x.dtype)
    ramps = (from_knot[..., :-1, :] * _reciprocal_spans(knots, 1)).clamp(0, 1)
    values: Tensor = ramps[..., :-1, :] - ramps[..., 1:, :]
    for q in range(2, order + 1):  # Cox and de Boor: from order q − 1 to order q
        rising = (from_knot[..., :-q, :] * _reciprocal_spans(knots, q)).mul_(values)
        values = (values[..., 1:, :] - rising[..., 1:, :]).add_(rising[..., :-1, :])
    return values


class _BSplines(torch.autograd.Function):
    """:func:`_values`, whose derivative is a difference of B-splines one order lower.

    Nothing but the input is kept for the backward pass, which costs less than to keep what each order leaves.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, knots: Tensor, order: int) -> Tensor:
        return _by_tile(lambda part: _values(part, knots, order), knots, x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, knots, ctx.order = inputs
        ctx.save_for_backward(x, knots)
        ctx.save_for_forward(x, knots)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, knots = ctx.saved_tensors

        def of_part(x: Tensor, grad: Tensor) -> Tensor:
            return (grad * _derivative(x, knots, ctx.order)).sum(-2)

        return _by_tile(of_part, knots, x, grad), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        x, knots = ctx.saved_tensors
        return tangent.unsqueeze(-2) * _derivative(x, knots, ctx.order)


def _by_tile(function: Callable[..., Tensor], knots: Tensor, x: Tensor, *others: Tensor) -> Tensor:
    """``function(x, *others)``, which treats all samples alike, for a part of the samples at a time on a CPU."""
    rows = max(1, _TILE // max(1, knots.numel()))
    samples = x.numel() // knots.shape[1]
    if x.device.type != "cpu" or samples <= rows:
        return function(x, *others)
    leading = x.ndim - 1
    parts = [torch.split(tensor.flatten(0, leading - 1), rows) for tensor in (x, *others)]
    whole = torch.cat([function(*part) for part in zip(*parts, strict=True)])
    return whole.view(*x.shape[:leading], *whole.shape[1:])


def _derivative(x: Tensor, knots: Tensor, order: int) -> Tensor:
    if order == 0:
        return torch.zeros((), dtype=x.dtype, device=x.device)
    lower: Tensor = _BSplines.apply(x, knots, order - 1)  # type: ignore[no-untyped-call]
    slopes = lower * (order * _reciprocal_spans(knots, order))
    return slopes[..., :-1, :] - slopes[..., 1:, :]


def _reciprocal_spans(knots: Tensor, order: int) -> Tensor:
    return (knots[order:] - knots[:-order]).reciprocal()


def bspline_values(x: Tensor, knots: Tensor, order: int) -> Tensor:
    """All B-splines of ``order`` on the knots of each input, zero outside of their knots.

    Args:
        x: ``(*, in_features)``.
        knots: ``(number, in_features)``, increasing along the first axis.
        order: Degree of the pieces, at least 1.

    Returns:
        ``(*, number − order − 1, in_features)``: functions stand before inputs.
    """
    # out there all are zero; an infinite input would make them zero times infinity
    x = torch.minimum(torch.maximum(x.to(torch.promote_types(x.dtype, knots.dtype)), knots[0]), knots[-1])
    if torch.compiler.is_compiling():  # the compiler decides itself what to keep
        return _values(x, knots, order)
    values: Tensor = _BSplines.apply(x, knots, order)  # type: ignore[no-untyped-call]
    return values


def extended(grid: Tensor, order: int) -> Tensor:
    """Continue a grid ``(intervals + 1, in_features)`` by ``order`` knots on both sides, in steps of its mean step."""
    step = (grid[-1] - grid[0]) / (len(grid) - 1)
    beyond = torch.arange(1, order + 1, device=grid.device, dtype=grid.dtype).unsqueeze(-1) * step
    return torch.cat([grid[0] - beyond.flip(0), grid, grid[-1] + beyond])


def quantile_grid(samples: Tensor, intervals: int, uniform: float) -> Tensor:
    """A grid ``(intervals + 1, in_features)`` over the range of ``samples`` ``(number, in_features)``.

    Each knot is ``uniform`` times the one of an even grid and the rest the quantile, so that knots stay apart where
    many samples are equal. The range is widened by 1 % on both sides.
    """
    ordered = samples.sort(0).values
    places = torch.linspace(0, len(samples) - 1, intervals + 1, device=samples.device).round().long()
    margin = 0.01 * (ordered[-1] - ordered[0])
    share = torch.linspace(0, 1, intervals + 1, device=samples.device, dtype=samples.dtype).unsqueeze(-1)
    even = torch.lerp(ordered[0] - margin, ordered[-1] + margin, share)
    return torch.lerp(ordered[places], even, uniform)


def refit(samples: Tensor, old_knots: Tensor, new_knots: Tensor, order: int) -> Tensor:
    """The matrices ``(in_features, functions, functions)`` that turn coefficients on the old knots into new ones.

    They are the least-squares fit of every old function by the new ones at ``samples`` ``(number, in_features)``.
    Since it does not depend on the coefficients, one fit an input serves all outputs.
    """
    samples = samples.double()
    old, new = (bspline_values(samples, knots.double(), order).permute(2, 0, 1) for knots in (old_knots, new_knots))
    matrices: Tensor = torch.linalg.pinv(new.mT @ new, hermitian=True) @ (new.mT @ old)
    return matrices


__all__ = ["bspline_values", "extended", "quantile_grid", "refit"]
