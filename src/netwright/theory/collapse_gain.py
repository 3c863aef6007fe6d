"""How strongly a class survives in a deep linear network on free features, and when it vanishes.

Dang, Tran, Osher, Tran-The, Ho, Nguyen 2023 (arXiv:2301.00437).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from netwright import checks

_BISECTIONS = 100


def collapse_gain(
    sizes: Tensor | Sequence[float], samples: float, weight_decays: Sequence[float], feature_decay: float
) -> Tensor:
    r"""Gain of classes of given sizes at the global minimum of the squared error, 0 where the class vanishes.

    Each class solves, with c the product of all weight decays, n and the feature decay,

    .. math:: \min_{p \ge 0} \; \frac{n}{2N}(p-1)^2 + \frac{M+1}{2} \, c^{1/(M+1)} \, p^{2/(M+1)}

    whose largest stationary point is the largest root of :math:`(1-p)\,p^{(M-1)/(M+1)} = (N/n)\,c^{1/(M+1)}`. It is
    taken if its loss is below that of p = 0.

    Args:
        sizes: Samples n of each class.
        samples: Samples N in all.
        weight_decays: Decay of each of the M layers.
        feature_decay: Decay of the features.

    Returns:
        Gains in float64, of the shape of ``sizes``.

    Raises:
        InputError: If a size or a decay is not positive.

    Source:
        arXiv:2301.00437, section 4 (there in the variable of :func:`collapse_root`).

    Example:
        >>> collapse_gain([200, 100, 50], 400, [5e-4], 5e-4)
        tensor([0.9859, 0.9800, 0.9717], dtype=torch.float64)
    """
    n, depth, level = _levels(sizes, samples, weight_decays, feature_decay)
    power = (depth - 1) / (depth + 1)
    peak = torch.full_like(n, (depth - 1) / (2 * depth))
    p = _largest_root(lambda p: (1 - p) * p**power - level, peak, torch.ones_like(n))
    # the loss of p against that of 0, both times 2N/n
    kept = (1 - p) ** 2 + (depth + 1) * level * p ** (2 / (depth + 1))
    return torch.where(kept < 1, p, 0)


def collapse_root(
    sizes: Tensor | Sequence[float], samples: float, weight_decays: Sequence[float], feature_decay: float
) -> Tensor:
    r"""The published form of :func:`collapse_gain`: the largest root x, :math:`p = x^M/(x^M+1)`; 0 if there is none.

    .. math:: \frac{b}{n} = \frac{M x^{M-1}}{(x^M+1)^2}, \qquad b = M N (N \lambda_1 \cdots \lambda_M \lambda_H)^{1/M}

    Where the root is below :math:`(M-1)^{1/M}` the class vanishes all the same: there p = 0 has the lower loss.

    Arguments, result and errors as in :func:`collapse_gain`.

    Source:
        arXiv:2301.00437, section 4.

    Example:
        >>> x = collapse_root([200, 100, 50], 400, [5e-4, 5e-4], 5e-4)
        >>> x**2 / (x**2 + 1)
        tensor([0.9941, 0.9907, 0.9852], dtype=torch.float64)
    """
    n, depth, _ = _levels(sizes, samples, weight_decays, feature_decay)
    b = depth * samples * (samples * math.prod(weight_decays) * feature_decay) ** (1 / depth)
    peak = torch.full_like(n, ((depth - 1) / (depth + 1)) ** (1 / depth))
    high = (depth * n / b) ** (1 / (depth + 1)) + peak
    return _largest_root(lambda x: depth * x ** (depth - 1) / (x**depth + 1) ** 2 - b / n, peak, high)


def vanishing_size(samples: float, weight_decays: Sequence[float], feature_decay: float) -> float:
    r"""The class size at and below which a class has zero features at the global minimum of the squared error.

    .. math::
        n_0 = \left(\frac{N (\lambda_1 \cdots \lambda_M \lambda_H)^{1/(M+1)}}{\tau_M}\right)^{(M+1)/M}, \qquad
        \tau_M = \frac1M \left(\frac{M-1}{M}\right)^{(M-1)/(M+1)}

    For one layer :math:`n_0 = N^2 \lambda_W \lambda_H`, which the gain reaches continuously. For more it jumps from
    (M−1)/M to 0. Follows from setting the two losses of :func:`collapse_gain` equal.

    Args:
        samples: Samples in all classes.
        weight_decays: Decay of each layer.
        feature_decay: Decay of the features.

    Example:
        >>> round(vanishing_size(400, [5e-4], 5e-4), 6)
        0.04
    """
    _levels([1.0], samples, weight_decays, feature_decay)
    depth = len(weight_decays)
    threshold = ((depth - 1) / depth) ** ((depth - 1) / (depth + 1)) / depth
    strength = samples * (math.prod(weight_decays) * feature_decay) ** (1 / (depth + 1))
    return float((strength / threshold) ** ((depth + 1) / depth))


def cross_entropy_gain(size: float, num_classes: int, weight_decays: Sequence[float], feature_decay: float) -> Tensor:
    r"""Margin of classes of equal size at the global minimum of the cross-entropy, 0 where all vanish.

    The logits of class k are p times row k of :math:`I - 11^\top/K`, and with c as in :func:`collapse_gain`,

    .. math:: \min_{p \ge 0} \; \log(1 + (K-1) e^{-p}) + (K-1) \frac{M+1}{2} \, c^{1/(M+1)} \, p^{2/(M+1)}

    Args:
        size: Samples of each class.
        num_classes: Number of classes K.
        weight_decays: Decay of each of the M layers.
        feature_decay: Decay of the features.

    Returns:
        The margin, a float64 scalar.

    Raises:
        InputError: As :func:`collapse_gain`.

    Example:
        >>> cross_entropy_gain(100, 4, [5e-4], 5e-4)
        tensor(5.2832, dtype=torch.float64)
    """
    checks.at_least("number of classes", num_classes, 2)
    _levels([size], 1.0, weight_decays, feature_decay)
    others, depth = num_classes - 1, len(weight_decays)
    level: float = (math.prod(weight_decays) * size * feature_decay) ** (1 / (depth + 1))
    power = (depth - 1) / (depth + 1)

    # both sides of the derivative, divided by the number of other classes and by a power of p
    def excess(p: Tensor) -> Tensor:
        return p**power / (torch.exp(p) + others) - level

    # its left side rises while p is below this, and falls beyond
    zero = torch.zeros((), dtype=torch.float64)
    peak = _largest_root(lambda p: power * (1 + others * torch.exp(-p)) - p, zero, zero + num_classes)
    p = _largest_root(excess, peak, zero + 1 + 2 * abs(math.log(level)))
    kept = torch.log1p(others * torch.exp(-p)) + others * (depth + 1) / 2 * level * p ** (2 / (depth + 1))
    margin: Tensor = torch.where(kept < math.log1p(others), p, 0)
    return margin


def _levels(
    sizes: Tensor | Sequence[float], samples: float, weight_decays: Sequence[float], feature_decay: float
) -> tuple[Tensor, int, Tensor]:
    """Check; give sizes, depth, and the right side of the equation of a stationary gain."""
    n = torch.as_tensor(sizes, dtype=torch.float64)
    checks.at_least("number of layers", len(weight_decays), 1)
    checks.positive("smallest class size", float(n.min()))
    checks.positive("samples", samples)
    for decay in (*weight_decays, feature_decay):
        checks.positive("decay", decay)
    depth = len(weight_decays)
    return n, depth, samples / n * (math.prod(weight_decays) * feature_decay * n) ** (1 / (depth + 1))


def _largest_root(function: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """Root of a function that falls from ``low`` to ``high``, by bisection; 0 where it is not above 0 at ``low``."""
    exists = function(low) > 0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = function(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(exists, (low + high) / 2, 0)


__all__ = ["collapse_gain", "collapse_root", "cross_entropy_gain", "vanishing_size"]
