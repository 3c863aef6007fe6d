"""How wide a network has to be to have as many parameters as another: the fair comparison of arXiv:2302.04584."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import nn

from netwright import checks
from netwright.cost import count_params


def matched_width(
    builder: Callable[[float], nn.Module],
    target_params: int,
    *,
    tolerance: float = 0.01,
    low: float = 1.0,
    high: float = 4096.0,
) -> float:
    """The width with which a network has about as many trainable parameters as wanted.

    Networks are built on the ``meta`` device and counted, halving an interval of widths: the count must not fall with
    the width. Between two steps of the count the closer one is taken. A complex layer keeps its numbers as two real
    parameters, so that counts are of real scalars for both sides.

    Args:
        builder: ``builder(width)`` makes the network; where it rounds ``width`` to channels of several layers, the
            widths between whole numbers are what makes a close match possible.
        target_params: Wanted number of parameters.
        tolerance: Largest relative difference that is allowed.
        low: Smallest width to try.
        high: Largest width to try.

    Returns:
        A width; ``builder(width)`` has the number of parameters closest to ``target_params``.

    Raises:
        InputError: If no width comes within ``tolerance``; the message says how close the closest came.

    Source:
        The condition of arXiv:2302.04584: a real network of the same depth and as many scalars as the complex one.

    Example:
        >>> matched_width(lambda width: nn.Linear(round(width), 10), 1010)
        100.0
    """
    checks.at_least("target_params", target_params, 1)
    checks.positive("tolerance", tolerance)
    checks.positive("low", low)
    if not high > low:
        checks.fail(f"high must be above low = {low}", high)

    def count(width: float) -> int:
        with torch.device("meta"):
            return count_params(builder(width), trainable_only=True)

    below, above = low, high
    tried = {below: count(below)}
    if tried[below] < target_params:
        # widths are doubled first: the widest network of the interval may be too large to be made at all
        while (reached := count(min(2 * below, high))) < target_params and 2 * below < high:
            below = 2 * below
            tried[below] = reached
        above = min(2 * below, high)
        tried[above] = reached
        while above - below > 1e-3 * above and tried[below] != tried[above]:
            middle = (below + above) / 2
            tried[middle] = count(middle)
            below, above = (middle, above) if tried[middle] < target_params else (below, middle)
    closest = min(tried, key=lambda width: (abs(tried[width] - target_params), width))
    if abs(tried[closest] - target_params) > tolerance * target_params:
        checks.fail(
            f"no width between {low:g} and {high:g} has {target_params:,} parameters within {tolerance:.1%}",
            f"{tried[closest]:,} at the closest, {closest:g}",
        )
    rounded = float(round(closest))
    return rounded if low <= rounded <= high and count(rounded) == tried[closest] else closest


def matched_widths(
    builder: Callable[[tuple[int, ...]], nn.Module],
    widths: Sequence[int],
    target_params: int,
    *,
    tolerance: float = 0.01,
) -> tuple[int, ...]:
    """The widths of all stages with which a network has about as many trainable parameters as wanted.

    All are scaled alike, then each may move by one channel: in small networks one common scale is too coarse.

    Args:
        builder: ``builder(widths)`` makes the network.
        widths: Widths whose proportions are kept; at most 6.
        target_params: Wanted number of parameters.
        tolerance: Largest relative difference that is allowed.

    Raises:
        InputError: If no widths come within ``tolerance``; the message says how close the closest came.

    Example:
        >>> matched_widths(lambda w: nn.Sequential(nn.Linear(3, w[0]), nn.Linear(w[0], w[1])), (8, 16), 347)
        (12, 23)
    """
    checks.between("number of widths", len(widths), 1, 6)

    def scaled(scale: float) -> tuple[int, ...]:
        return tuple(max(1, round(scale * width)) for width in widths)

    near = scaled(matched_width(lambda scale: builder(scaled(scale)), target_params, tolerance=1.0, low=1 / 64))
    found: dict[tuple[int, ...], int] = {}
    with torch.device("meta"):
        for moves in itertools.product((0, -1, 1), repeat=len(widths)):
            moved = tuple(max(1, width + move) for width, move in zip(near, moves, strict=True))
            found[moved] = count_params(builder(moved), trainable_only=True)
    closest = min(found, key=lambda widths: abs(found[widths] - target_params))
    if abs(found[closest] - target_params) > tolerance * target_params:
        checks.fail(
            f"no widths near {near} have {target_params:,} parameters within {tolerance:.1%}",
            f"{found[closest]:,} at the closest, {closest}",
        )
    return closest


__all__ = ["matched_width", "matched_widths"]
