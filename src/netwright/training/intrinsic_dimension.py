"""Intrinsic dimension of a task (Li et al. 2018, arXiv:1804.08838): the smallest random subspace that holds a solution.

:class:`IntrinsicDimension` searches it, :func:`description_length` turns it into bits, and :func:`shuffle_pixels` and
:func:`shuffle_labels` make the paper's harder variants of a task.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from netwright import checks
from netwright.data.splits import Split, Splits
from netwright.training._projections import PROJECTIONS
from netwright.training.budget import Settings
from netwright.training.fit import Diverged
from netwright.training.subspace import Projection, SubspaceModel

# trains a network in place with these settings
Train = Callable[[nn.Module, Settings], Any]

SETTINGS = tuple(Settings(optimizer="adam", lr=lr) for lr in (1e-3, 1e-2, 1e-1))


@dataclass(frozen=True)
class Point:
    """One dimension that was tried.

    Attributes:
        dim: d.
        score: The best validation score of all settings; −∞ if training diverged with each of them.
        settings: The settings that had it.
    """

    dim: int
    score: float
    settings: Settings


@dataclass(frozen=True)
class Result:
    """What :meth:`IntrinsicDimension.run` found.

    Attributes:
        dims: The dimensions that were tried, ascending.
        scores: Their validation scores.
        d_int: The smallest of them that reached the target; ``None`` if none did.
        curve: The same, with the settings that were chosen.
        baseline: Validation score of direct training; ``None`` if a target was given.
        target: The score to be reached.
        size: D, the number of trainable parameters.
    """

    dims: tuple[int, ...]
    scores: tuple[float, ...]
    d_int: int | None
    curve: tuple[Point, ...]
    baseline: float | None
    target: float
    size: int


class IntrinsicDimension:
    r"""Search the smallest d for which training in a random d-dimensional subspace is good enough.

    .. math:: d_\mathrm{int} = \min \{ d : \max_s \mathrm{score}(d, s) \ge \mathrm{threshold} \cdot \mathrm{baseline} \}

    with the baseline the best score of direct training (all D parameters) over the same settings s. First the
    dimensions of a grid are tried, then the gap below the smallest that reached the target is halved (geometrically)
    ``refine`` times. The settings are chosen anew for every d, as for the baseline, by the score of ``evaluate_fn``
    alone: it has to look at the validation part, so that the test part stays unseen. All networks start from the same
    first weights.

    A result is one draw: of P, of the first weights and of the order of the data. Repeat it with other seeds.

    Args:
        model_fn: Makes the network; called under ``torch.manual_seed(seed)``.
        train_fn: ``train_fn(model, settings)`` trains it in place; it may raise :class:`~netwright.training.Diverged`.
        evaluate_fn: ``evaluate_fn(model)`` is its validation score; higher is better.
        dims: The grid; :func:`dims_grid` from 10 to D if not given.
        threshold: The share of the baseline that is to be reached: 0.9 for d_int90. 1.0 (d_int100) is noisy.
        baseline: Validation score of direct training; it is trained if not given.
        target: The score to be reached, instead of a share of a baseline: for regression or rewards.
        settings: What is tried for every d: optimisers, learning rates.
        projection: See :class:`~netwright.training.subspace.SubspaceModel`.
        per_layer: See there.
        seed: Of first weights, of P, and of all else that training draws from torch's generator.
        refine: How often the gap is halved.
        whole_curve: Try all dimensions of the grid; else bisect it, which needs fewer trainings, and finds the same
            where scores rise with d.

    Raises:
        InputError: If a dimension is not in [1, D], the grid or the settings are empty, the threshold is not in (0, 1],
            both a baseline and a target are given, or the baseline is not positive.

    Source:
        arXiv:1804.08838, sections 2 and 3. Official code: uber-research/intrinsic-dimension.

    Example:
        >>> from netwright.data import load
        >>> from netwright.models.vision.classic import MLP
        >>> from netwright.training import Budget, evaluate, fit
        >>> digits = load("digits")
        >>> result = IntrinsicDimension(
        ...     lambda: MLP(64, (20,), 10),
        ...     lambda model, settings: fit(model, digits, Budget(epochs=3), settings=settings),
        ...     lambda model: evaluate(model, digits.val)["accuracy"],
        ...     dims=(10, 100, 1000),
        ...     settings=(Settings(lr=0.1),),
        ... ).run()
        >>> result.size, 10 < result.d_int <= 1000
        (1510, True)
    """

    def __init__(
        self,
        model_fn: Callable[[], nn.Module],
        train_fn: Train,
        evaluate_fn: Callable[[nn.Module], float],
        dims: Sequence[int] | None = None,
        threshold: float = 0.9,
        baseline: float | None = None,
        *,
        target: float | None = None,
        settings: Sequence[Settings] = SETTINGS,
        projection: Projection = "fastfood",
        per_layer: bool = False,
        seed: int = 0,
        refine: int = 2,
        whole_curve: bool = True,
    ) -> None:
        checks.between("threshold", threshold, 0, 1, open_low=True)
        checks.known("projection", projection, PROJECTIONS)
        checks.at_least("number of settings", len(settings), 1)
        checks.at_least("refine", refine, 0)
        if baseline is not None and target is not None:
            raise checks.InputError("give a baseline or a target, got both")
        if baseline is not None:
            _check_baseline(baseline)
        self.model_fn, self.train_fn, self.evaluate_fn = model_fn, train_fn, evaluate_fn
        self.threshold, self.baseline, self.target = threshold, baseline, target
        self.settings, self.seed, self.refine, self.whole_curve = tuple(settings), seed, refine, whole_curve
        self.projection, self.per_layer = projection, per_layer
        with _seeded(seed):
            self.size = sum(p.numel() for p in model_fn().parameters() if p.requires_grad)
        self.dims = sorted(set(dims_grid(min(10, self.size), self.size) if dims is None else dims))
        checks.at_least("number of dims", len(self.dims), 1)
        for dim in self.dims:
            checks.between("every one of dims", dim, 1, self.size)

    def run(self) -> Result:
        """Train, and find the dimension. Torch's random generators are left as they are."""
        baseline = self.baseline
        if self.target is None and baseline is None:
            baseline = self._best(None).score
            _check_baseline(baseline)
        target = self.target if baseline is None else self.threshold * baseline
        assert target is not None
        tried: dict[int, Point] = {}

        def reaches(dim: int) -> bool:
            if dim not in tried:
                tried[dim] = self._best(dim)
            return tried[dim].score >= target

        if self.whole_curve:
            first = min((index for index, reached in enumerate(map(reaches, self.dims)) if reached), default=None)
        else:
            first = _bisect(self.dims, reaches)
        if first is not None:
            low, high = (0 if first == 0 else self.dims[first - 1]), self.dims[first]
            for _ in range(self.refine):
                middle = round(math.sqrt(max(1, low) * high))
                if not low < middle < high:
                    break
                low, high = (low, middle) if reaches(middle) else (middle, high)
        curve = tuple(tried[dim] for dim in sorted(tried))
        return Result(
            dims=tuple(point.dim for point in curve),
            scores=tuple(point.score for point in curve),
            d_int=min((point.dim for point in curve if point.score >= target), default=None),
            curve=curve,
            baseline=baseline,
            target=target,
            size=self.size,
        )

    def _best(self, dim: int | None) -> Point:
        """The best of all settings in ``dim`` dimensions, in all D for ``None``."""
        points = [Point(dim or self.size, self._score(dim, settings), settings) for settings in self.settings]
        return max(points, key=lambda point: point.score)

    def _score(self, dim: int | None, settings: Settings) -> float:
        with _seeded(self.seed):
            model = self.model_fn()
            if dim is not None:
                model = SubspaceModel(model, dim, self.projection, self.seed, self.per_layer)
            try:
                self.train_fn(model, settings)
            except Diverged:
                return -math.inf
            score = float(self.evaluate_fn(model))
        return -math.inf if math.isnan(score) else score


def dims_grid(low: int, high: int, per_decade: int = 4) -> tuple[int, ...]:
    """Whole numbers from ``low`` to ``high``, in about equal ratios.

    Example:
        >>> dims_grid(10, 1000)
        (10, 18, 32, 56, 100, 178, 316, 562, 1000)
    """
    checks.at_least("low", low, 1)
    checks.at_least("high", high, low)
    checks.at_least("per_decade", per_decade, 1)
    number = max(1, round(per_decade * math.log10(high / low)))
    return tuple(sorted({round(low * (high / low) ** (index / number)) for index in range(number + 1)}))


def description_length(result: Result, bits: int = 32) -> int:
    r"""An upper bound on the description length of a solution, in bits: :math:`d_\mathrm{int}` numbers.

    The seed and the code that draws P from it are left out, as they do not grow with the network. So are buffers.

    Args:
        result: What a search found.
        bits: Of each number.

    Raises:
        InputError: If no dimension reached the target.

    Source:
        arXiv:1804.08838, section 3: 24,000 bits for MNIST by a fully connected network (d_int90 = 750).
    """
    checks.at_least("bits", bits, 1)
    if result.d_int is None:
        raise checks.InputError(f"no dimension reached the target {result.target:.4g}; try more than {result.dims[-1]}")
    return result.d_int * bits


def shuffle_pixels(splits: Splits, generator: torch.Generator) -> Splits:
    """The same pictures with their pixels in another order, the same for all; the channels of a pixel stay together.

    A fully connected network cannot tell the difference; a convolution loses its neighbourhoods.

    Args:
        splits: Pictures, ``(channels, height, width)``.
        generator: Where the order comes from.

    Raises:
        InputError: If the inputs are not pictures.
    """
    if len(splits.input_shape) != 3:
        checks.fail("inputs must be pictures (channels, height, width)", f"inputs of shape {splits.input_shape}")
    order = torch.randperm(math.prod(splits.input_shape[1:]), generator=generator, device=generator.device).cpu()
    return splits.map(lambda inputs: inputs.flatten(2)[..., order.to(inputs.device)].view_as(inputs))


def shuffle_labels(splits: Splits, generator: torch.Generator) -> Splits:
    """The same inputs with their targets dealt out anew, in each part of the data; what can be learned is by heart.

    The score to search with is that on the training part, as there is nothing to generalise.

    Args:
        splits: Any data.
        generator: Where the order comes from.
    """

    def shuffled(split: Split) -> Split:
        order = torch.randperm(len(split), generator=generator, device=generator.device)
        return replace(split, targets=split.targets[order.to(split.targets.device)])

    return replace(splits, train=shuffled(splits.train), val=shuffled(splits.val), test=shuffled(splits.test))


def _bisect(dims: Sequence[int], reaches: Callable[[int], bool]) -> int | None:
    """The index of the smallest of ``dims`` that reaches the target, if all larger ones do, too."""
    low, high = 0, len(dims)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(dims[middle]) else (middle + 1, high)
    return low if low < len(dims) else None


def _check_baseline(baseline: float) -> None:
    if not (baseline > 0 and math.isfinite(baseline)):
        checks.fail(
            "a share of the baseline needs a positive score of direct training; give a target instead", baseline
        )


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from a seed inside, and are as they were afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


__all__ = [
    "SETTINGS",
    "IntrinsicDimension",
    "Point",
    "Result",
    "description_length",
    "dims_grid",
    "shuffle_labels",
    "shuffle_pixels",
]
