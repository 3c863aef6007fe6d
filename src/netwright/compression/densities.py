"""How many weights each layer keeps: the density allocators of random pruning (Liu et al. 2022, arXiv:2202.02643).

All take the shapes of the prunable parameters by name and return a density for every name.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from netwright import checks

Shapes = Mapping[str, Sequence[int]]
Densities = dict[str, float]


def uniform(shapes: Shapes, density: float) -> Densities:
    """The same density in every layer.

    Args:
        shapes: Parameter name to shape.
        density: Fraction of all weights that is kept.

    Raises:
        InputError: If the density is not in (0, 1].
    """
    _check(shapes, density)
    return dict.fromkeys(shapes, float(density))


def uniform_plus(shapes: Shapes, density: float) -> Densities:
    """The first convolution dense, the classifier at least 20 % dense, the rest uniform; the global density is exact.

    The first convolution is the first parameter with three or more dimensions (none in a fully connected network), the
    classifier is the last one with two. The official code divides what is left by the count of all weights, and so
    ends slightly below the density that was asked for.

    Args:
        shapes: Parameter name to shape, in the order of the network.
        density: Fraction of all weights that is kept.

    Raises:
        InputError: If the density is not in (0, 1], or these two layers need more than all of it.

    Source:
        arXiv:2202.02643, section 3.2, after Gale, Elsen, Hooker 2019, arXiv:1902.09574.
    """
    _check(shapes, density)
    fixed: Densities = {}
    first = next((name for name, shape in shapes.items() if len(shape) > 2), None)
    if first is not None:
        fixed[first] = 1.0
    rest = _rest(shapes, density, fixed)
    classifier = next((name for name, shape in reversed(list(shapes.items())) if len(shape) == 2), None)
    if classifier is not None and rest < 0.2 and classifier not in fixed:
        fixed[classifier] = 0.2
        rest = _rest(shapes, density, fixed)
    return {name: fixed.get(name, rest) for name in shapes}


def erdos_renyi(shapes: Shapes, density: float, power: float = 1.0) -> Densities:
    r"""Erdős–Rényi: narrow layers denser than wide ones; kernel sizes are ignored.

    .. math:: d_l = \min\Bigl(1, \epsilon \Bigl(\frac{n_\mathrm{in} + n_\mathrm{out}}{n_\mathrm{in} n_\mathrm{out}}
        \Bigr)^{p}\Bigr), \qquad \sum_l d_l N_l = d \sum_l N_l

    Args:
        shapes: Parameter name to shape ``(out, in, …)`` with :math:`N_l` entries.
        density: Fraction d of all weights that is kept.
        power: p.

    Raises:
        InputError: If the density is not in (0, 1].

    Source:
        Mocanu et al. 2018, arXiv:1707.04780; arXiv:2202.02643, section 3.2.

    Example:
        >>> d = erdos_renyi({"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}, 0.1)
        >>> [round(value, 4) for value in d.values()]
        [0.0796, 0.2302, 1.0]
    """
    _check(shapes, density)
    raw = {name: (sum(shape[:2]) / math.prod(shape[:2])) ** power for name, shape in shapes.items()}
    return _fill(shapes, raw, density * _total(shapes))


def erk(shapes: Shapes, density: float, power: float = 1.0) -> Densities:
    r"""Erdős–Rényi-Kernel: as :func:`erdos_renyi`, over all dimensions of the kernel.

    .. math:: d_l = \min\Bigl(1, \epsilon \Bigl(\frac{\sum_i s_{l,i}}{\prod_i s_{l,i}}\Bigr)^{p}\Bigr)

    Args:
        shapes: Parameter name to shape :math:`s_l`.
        density: Fraction of all weights that is kept.
        power: p.

    Raises:
        InputError: If the density is not in (0, 1].

    Source:
        Evci, Gale, Menick, Castro, Elsen 2020, arXiv:1911.11134; arXiv:2202.02643, section 3.2.
    """
    _check(shapes, density)
    raw = {name: (sum(shape) / math.prod(shape)) ** power for name, shape in shapes.items()}
    return _fill(shapes, raw, density * _total(shapes))


def erk_plus(shapes: Shapes, density: float, fc_density: float = 1.0) -> Densities:
    """:func:`erk`, with the classifier at ``fc_density`` and the global density preserved.

    Args:
        shapes: Parameter name to shape, in the order of the network; the last one with two dimensions is the
            classifier.
        density: Fraction of all weights that is kept.
        fc_density: Fraction of the classifier's weights that is kept.

    Raises:
        InputError: If a density is not in (0, 1], there is no classifier, or it needs more than the whole budget.

    Source:
        arXiv:2202.02643, section 3.2.
    """
    _check(shapes, density)
    checks.between("fc_density", fc_density, 0, 1, open_low=True)
    classifier = next((name for name, shape in reversed(list(shapes.items())) if len(shape) == 2), None)
    if classifier is None:
        checks.fail("ERK+ needs a classifier (a weight with two dimensions)", f"only {', '.join(shapes)}")
    others = {name: shape for name, shape in shapes.items() if name != classifier}
    if not others:
        return {classifier: float(density)}
    budget = density * _total(shapes) - fc_density * math.prod(shapes[classifier])
    if not 0 < budget <= _total(others):
        _impossible(density, {classifier: fc_density}, shapes)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in others.items()}
    filled = _fill(others, raw, budget)
    return {name: filled.get(name, float(fc_density)) for name in shapes}


def from_scores(scores: Mapping[str, Tensor], density: float) -> Densities:
    """The densities that one global cut through ``scores`` leaves in every layer; positions are forgotten.

    Args:
        scores: Parameter name to the worth of every weight; the largest are kept.
        density: Fraction of all weights that is kept.

    Raises:
        InputError: If the density is not in (0, 1], or a score is not a number.

    Source:
        arXiv:2202.02643, section 3.2 ("SNIP ratio", "GraSP ratio"): see :func:`netwright.compression.random_pruning.
        snip_scores` and :func:`~netwright.compression.random_pruning.grasp_scores`.

    Example:
        >>> from_scores({"a": torch.tensor([[3.0, 0.0]]), "b": torch.tensor([[1.0, 2.0]])}, 0.75)
        {'a': 0.5, 'b': 1.0}
    """
    _check({name: tuple(score.shape) for name, score in scores.items()}, density)
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not bool(flat.isfinite().all()):
        raise checks.InputError("scores must be finite, got an infinite value or NaN")
    kept = torch.zeros(flat.numel(), dtype=torch.bool, device=flat.device)
    kept[flat.topk(max(1, round(density * flat.numel())), sorted=False).indices] = True
    sizes = [score.numel() for score in scores.values()]
    return {name: int(part.sum()) / len(part) for name, part in zip(scores, torch.split(kept, sizes), strict=True)}


ALLOCATORS = {
    "uniform": uniform,
    "uniform_plus": uniform_plus,
    "erdos_renyi": erdos_renyi,
    "erk": erk,
    "erk_plus": erk_plus,
}


def exact_counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers of kept weights that add up to round(Σ density · size), by largest remainders.

    Raises:
        InputError: If a density is missing or outside [0, 1], or a layer is left without a weight.

    Example:
        >>> exact_counts({"a": (3, 5), "b": (4, 5)}, {"a": 0.1, "b": 0.1})
        {'a': 2, 'b': 2}
    """
    ideal = {}
    for name, shape in shapes.items():
        checks.known("layer in densities", name, densities)
        checks.between(f"density of {name!r}", densities[name], 0, 1)
        # sums that are whole but for rounding must not lose one
        ideal[name] = round(densities[name] * math.prod(shape), 6)
    counts = {name: int(value) for name, value in ideal.items()}
    missing = round(sum(ideal.values())) - sum(counts.values())
    by_remainder = sorted(ideal, key=lambda name: counts[name] - ideal[name])
    for name in by_remainder[:missing]:
        counts[name] += 1
    for name, count in counts.items():
        if count == 0:
            kept = f"density {densities[name]:.3g} keeps none of its {math.prod(shapes[name])} weights"
            raise checks.InputError(f"layer {name!r} would be empty: {kept}")
    return counts


def _total(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _check(shapes: Shapes, density: float) -> None:
    checks.between("density", density, 0, 1, open_low=True)
    if not shapes:
        raise checks.InputError("an allocation needs at least one layer, got none")


def _impossible(density: float, fixed: Densities, shapes: Shapes) -> None:
    needs = " and ".join(f"{name!r} at {value:g} ({math.prod(shapes[name])} weights)" for name, value in fixed.items())
    budget = f"{density * _total(shapes):.0f} of {_total(shapes)} weights"
    raise checks.InputError(f"density {density} cannot be met: it allows {budget}, with {needs}")


def _rest(shapes: Shapes, density: float, fixed: Densities) -> float:
    """The one density of the layers that are not fixed, so that the global one is exact."""
    left = _total(shapes) - sum(math.prod(shapes[name]) for name in fixed)
    budget = density * _total(shapes) - sum(value * math.prod(shapes[name]) for name, value in fixed.items())
    if budget < 0 or (left > 0 and budget == 0) or budget > left * (1 + 1e-9):
        _impossible(density, fixed, shapes)
    return min(1.0, budget / left) if left else 1.0


def _fill(shapes: Shapes, raw: Mapping[str, float], budget: float) -> Densities:
    """Densities min(1, ε·raw) whose weighted sum is ``budget``: layers reach 1 from the largest ``raw`` downwards."""
    order = sorted(shapes, key=lambda name: -raw[name])
    # what each layer and those after it weigh, summed from the smallest
    weights = list(itertools.accumulate(raw[name] * math.prod(shapes[name]) for name in reversed(order)))[::-1]
    for name, weight in zip(order, weights, strict=True):
        epsilon = budget / weight
        if epsilon * raw[name] <= 1:
            return {name: min(1.0, epsilon * raw[name]) for name in shapes}
        budget -= math.prod(shapes[name])
    return dict.fromkeys(shapes, 1.0)


__all__ = [
    "ALLOCATORS",
    "Densities",
    "Shapes",
    "erdos_renyi",
    "erk",
    "erk_plus",
    "exact_counts",
    "from_scores",
    "uniform",
    "uniform_plus",
]
