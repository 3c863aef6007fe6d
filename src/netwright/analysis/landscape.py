"""Planes of the loss around trained weights (Gabdullin 2024, arXiv:2412.10146; Li et al. 2018, arXiv:1712.09913).

:class:`Directions` are the two axes (random, Adam's moments, top Hessian eigenvectors), :func:`normalise` scales a
direction by the weights, :func:`plane` computes the loss on a grid.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn.modules.batchnorm import _NormBase

from netwright import checks
from netwright.analysis._objective import Loss, Objective, Pairs, SeparableMaxPool, trainable
from netwright.analysis.curvature import Eigenpairs, HessianOperator

Direction = Mapping[str, Tensor]
Axes = Literal["random", "adam", "hessian", "custom"]
Mode = Literal["weight", "layer", "model", "filter"]
Update = Literal["add", "adam_update"]
Observer = Callable[[float], None]

# of the Adam update: learning rate, what is added to √v, and where the multiple of the second moment starts
_ADAM_LR, _ADAM_EPS, _ADAM_LOW = 1e-3, 1e-6, 0.1


@dataclass(frozen=True, eq=False)
class Directions:
    """The two axes of a plane, each a tensor for every trainable parameter, by name.

    Attributes:
        first: The first axis.
        second: The second axis.
        axes: Where they come from.
    """

    first: Direction
    second: Direction
    axes: Axes = "custom"

    @classmethod
    def random(
        cls,
        model: nn.Module,
        *,
        distribution: Literal["uniform", "normal"] = "uniform",
        generator: torch.Generator | None = None,
    ) -> Self:
        """Random numbers, and the second axis made orthogonal to the first.

        Args:
            model: Its trainable parameters give the shapes.
            distribution: ``"uniform"`` on [0, 1), as in arXiv:2412.10146, or ``"normal"``, as in arXiv:1712.09913.
            generator: Draws the numbers; one with seed 0 if not given.
        """
        checks.known("distribution", distribution, ("uniform", "normal"))
        generator = generator or torch.Generator().manual_seed(0)
        draw = torch.rand if distribution == "uniform" else torch.randn
        parameters = trainable(model)
        first, second = (
            {
                name: draw(p.shape, generator=generator, dtype=torch.float64, device=generator.device).to(p)
                for name, p in parameters.items()
            }
            for _ in range(2)
        )
        share = _inner(first, second) / _inner(first, first)
        return cls(first, {name: tensor - share * first[name] for name, tensor in second.items()}, "random")

    @classmethod
    def adam(cls, model: nn.Module, optimizer: torch.optim.Optimizer) -> Self:
        """The first and second moments of the gradient that Adam keeps; 0 for parameters that it has not seen.

        Args:
            model: Its trainable parameters give the names.
            optimizer: Adam or a relative of it that has made at least one step on parameters of the model.

        Raises:
            InputError: If there are no moments.
        """
        trainable(model)
        names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        states = {name: optimizer.state.get(p, {}) for name, p in names.items()}
        if not any("exp_avg" in state and "exp_avg_sq" in state for state in states.values()):
            checks.fail(
                "Adam axes need an optimiser with first and second moments that has made a step on this model",
                f"{type(optimizer).__name__} with {len(optimizer.state)} parameters in its state",
            )
        first, second = (
            {name: state.get(key, torch.zeros_like(names[name])).detach().clone() for name, state in states.items()}
            for key in ("exp_avg", "exp_avg_sq")
        )
        return cls(first, second, "adam")

    @classmethod
    def hessian(cls, operator: HessianOperator, pairs: Eigenpairs | None = None, **options: object) -> Self:
        """The eigenvectors of the two Hessian eigenvalues of largest magnitude.

        Args:
            operator: The Hessian of the loss.
            pairs: Eigenpairs that are known already; ``operator.top_eigs(2, **options)`` if not given.
            options: See :meth:`HessianOperator.top_eigs`.
        """
        pairs = pairs or operator.top_eigs(2, **options)  # type: ignore[arg-type]
        if len(pairs.vectors) < 2:
            checks.fail("Hessian axes need two eigenpairs", len(pairs.vectors))
        return cls(operator.split(pairs.vectors[0]), operator.split(pairs.vectors[1]), "hessian")

    def normalised(self, model: nn.Module, mode: Mode | None, order: int = 2) -> Self:
        """Both axes scaled by the weights of the model; see :func:`normalise`."""
        weights = trainable(model)
        return type(self)(
            normalise(self.first, weights, mode, order), normalise(self.second, weights, mode, order), self.axes
        )


@dataclass(frozen=True, eq=False)
class Plane:
    """Losses on a grid through the trained weights.

    Attributes:
        loss: ``(steps, steps)``, float64; the first axis of directions along the rows' index, the second along the
            columns'.
        first: Coordinates along the first axis, ``(steps,)``: of ``loss[i, j]`` they are ``first[i], second[j]``.
        second: Coordinates along the second axis.
    """

    loss: Tensor
    first: Tensor
    second: Tensor


def normalise(direction: Direction, weights: Direction, mode: Mode | None = None, order: int = 2) -> dict[str, Tensor]:
    r"""Scale a direction by the weights, so that planes of networks with weights of different size can be compared.

    With :math:`\|\cdot\|` the L1 or L2 norm:

    - ``"weight"``: :math:`d \odot w`, entry by entry;
    - ``"layer"``: :math:`d \, \|w\| / \|d\|` for every tensor;
    - ``"model"``: the same for all parameters together;
    - ``"filter"``: the same for every filter, that is index of the first dimension, of tensors with two or more
      dimensions; a bias or scale of a norm is one block.

    Args:
        direction: Tensors by name.
        weights: The weights, likewise.
        mode: See above; nothing is scaled if not given.
        order: 1 or 2, of the norm.

    Returns:
        A new direction. Where it was 0 as a whole, it stays 0.

    Raises:
        InputError: If mode or order is unknown, or names or shapes differ.

    Source:
        arXiv:2412.10146; filter normalisation: arXiv:1712.09913, section 4.

    Example:
        >>> weights = {"w": torch.tensor([[3.0, 4.0], [0.0, 1.0]])}
        >>> normalise({"w": torch.ones(2, 2)}, weights, "filter", order=1)
        {'w': tensor([[3.5000, 3.5000],
                [0.5000, 0.5000]])}
    """
    if mode is not None:
        checks.known("normalisation", mode, get_args(Mode))
    if order not in (1, 2):
        checks.fail("order must be 1 or 2", order)
    _matches(direction, weights)
    if mode is None:
        return {name: tensor.clone() for name, tensor in direction.items()}
    if mode == "weight":
        return {name: tensor * weights[name] for name, tensor in direction.items()}
    if mode == "model":
        factor = _ratio(_norm_of_all(weights, order), _norm_of_all(direction, order))
        return {name: tensor * factor for name, tensor in direction.items()}
    scaled = {}
    for name, tensor in direction.items():
        dims = tuple(range(1, tensor.ndim)) if mode == "filter" and tensor.ndim > 1 else None
        scaled[name] = tensor * _ratio(_norm(weights[name], order, dims), _norm(tensor, order, dims))
    return scaled


def plane(
    model: nn.Module,
    loss_fn: Loss,
    data: Pairs,
    directions: Directions,
    *,
    steps: int = 40,
    distance: float = 1.0,
    mode: Update = "add",
    cap: float | None = None,
    freeze: int | None = None,
    batch: int | None = None,
    at_once: int | None = None,
    training: bool = False,
    observer: Observer | None = None,
) -> Plane:
    r"""The loss on a grid of ``steps`` × ``steps`` points of weight space; the model is left as it was, to the bit.

    With ``mode="add"`` the weights are :math:`\theta + a d_1 + b d_2`, with a and b from −distance/2 in steps of
    distance/steps, so that ``loss[steps // 2, steps // 2]`` is that of the trained weights. With
    ``mode="adam_update"`` they are what Adam's rule makes of multiples of its moments,

    .. math:: \theta + \frac{a}{\sqrt{b}} \, \eta \, \frac{d_1}{\sqrt{d_2} + \epsilon}, \qquad
        a \in [-1, 1), \quad b \in [0.1, 2.1), \quad \eta = 10^{-3}, \quad \epsilon = 10^{-6}.

    Args:
        model: Any module that takes one tensor.
        loss_fn: ``loss_fn(outputs, targets)`` as a scalar, a mean over the samples.
        data: ``(inputs, targets)``, or an iterable of such batches that can be gone through many times.
        directions: The axes.
        steps: Points along each axis; even.
        distance: Length of an axis in units of its direction.
        mode: See above.
        cap: Losses above it, and those that are not numbers, count as it.
        freeze: Move only the first ``freeze`` parameter tensors, or, if negative, all but the first ``−freeze``.
        batch: Samples at once, for a pair of tensors; if not given, 128 for networks with convolutions (so that they
            stay in the cache of a CPU), else 4096.
        at_once: Points at once, with their weights stacked; if not given, one for networks with convolutions or more
            than 100,000 parameters (more would take as long), else 16.
        training: Training mode: statistics of each batch, and the same dropout at every point.
        observer: Called with the fraction that is done.

    Raises:
        InputError: If there is nothing to train, the loss is no scalar, ``steps`` is odd, ``freeze`` is out of range,
            directions do not fit the model, or an Adam update gets other axes.

    Warns:
        UserWarning: If the axes are random and the model has batch normalisation.

    Source:
        arXiv:2412.10146.

    Example:
        >>> model, x = nn.Linear(3, 1), torch.randn(8, 3)
        >>> axes = Directions.random(model).normalised(model, "filter")
        >>> result = plane(model, nn.functional.mse_loss, (x, model(x).detach()), axes, steps=4)
        >>> result.loss.shape, round(float(result.loss[2, 2]), 6), float(result.first[0])
        (torch.Size([4, 4]), 0.0, -0.5)
    """
    checks.at_least("steps", steps, 2)
    if steps % 2:
        checks.fail("steps must be even, else the trained weights are between two points of the grid", steps)
    checks.positive("distance", distance)
    checks.known("mode", mode, get_args(Update))
    if cap is not None:
        checks.positive("cap", cap)
    weights = trainable(model)
    has_filters = any(weight.ndim > 2 for weight in weights.values())
    if at_once is None:
        few = sum(weight.numel() for weight in weights.values()) <= 100_000
        at_once = 16 if few and not training and not has_filters else 1
    checks.at_least("at_once", at_once, 1)
    if training and at_once > 1:
        checks.fail("at_once must be 1 in training mode, whose statistics are of one point at a time", at_once)
    for direction in (directions.first, directions.second):
        _matches(direction, weights)
    if mode == "adam_update" and directions.axes not in ("adam", "custom"):
        checks.fail("an Adam update needs Adam axes", f"{directions.axes} axes")
    if directions.axes == "random" and any(isinstance(module, _NormBase) for module in model.modules()):
        warnings.warn(
            "planes along random axes can mislead for networks with batch normalisation, whose loss does not depend on "
            "the scale of the weights; Hessian axes are better",
            stacklevel=2,
        )
    moving = _moving(weights, freeze)
    if batch is None and not training:  # in training mode the statistics of all samples count
        batch = 128 if has_filters else 4096
    objective = Objective(model, loss_fn, data, batch=batch, training=training, stacked=at_once > 1)
    weights = objective.parameters
    grid = torch.arange(steps, dtype=torch.float64)
    if mode == "add":
        first = second = (grid - steps / 2) * distance / steps
        along, across = _chosen(directions.first, weights, moving), _chosen(directions.second, weights, moving)
        multiples = torch.cartesian_prod(first, second)
    else:
        first, second = 2 * grid / steps - 1, 2 * grid / steps + _ADAM_LOW
        along, across = _adam_step(directions, weights, moving), {}
        multiples = (first.unsqueeze(1) * torch.rsqrt(second)).view(-1, 1).expand(-1, 2)
    loss = _losses(objective, along, across, multiples.to(objective.device), at_once, observer)
    if cap is not None:
        loss = torch.where(loss.isnan(), cap, loss).clamp(max=cap)
    return Plane(loss.view(steps, steps).cpu(), first, second)


def _losses(
    objective: Objective,
    along: Direction,
    across: Direction,
    multiples: Tensor,
    at_once: int,
    observer: Observer | None,
) -> Tensor:
    """The loss at weights + p·along + q·across for each row (p, q) of ``multiples``, float64."""
    weights = objective.parameters
    move = _Mover(weights, along, across)

    def loss_at(point: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
        parameters = dict(weights)
        for axis, multiple in ((along, point[0]), (across, point[1])):
            for name, direction in axis.items():
                parameters[name] = parameters[name] + multiple.to(direction.dtype) * direction
        return objective.loss(parameters, inputs, targets)

    stacked = vmap(loss_at, in_dims=(0, None, None), randomness="same")
    total, count = torch.zeros(len(multiples), dtype=torch.float64, device=multiples.device), 0
    chunks = torch.split(multiples, at_once)
    numbers = multiples.tolist()
    work = objective.number_of_batches * len(chunks)
    done = 0
    has_filters = any(weight.ndim == 4 for weight in weights.values())
    pooling = SeparableMaxPool() if has_filters and objective.device.type == "cpu" else nullcontext()
    # batch by batch, so that data that come from a disk are read once
    with objective.at_rest(), torch.no_grad(), pooling:
        for inputs, targets in objective.batches():
            losses = []
            for index, chunk in enumerate(chunks):
                if at_once > 1:
                    loss = stacked(chunk, inputs, targets)
                else:
                    loss = objective.loss(move(*numbers[index]), inputs, targets)
                losses.append(loss.reshape(-1).double())
                done += 1
                if observer is not None and work:
                    observer(done / work)
            total += len(inputs) * torch.cat(losses)
            count += len(inputs)
    if observer is not None and not work:
        observer(1.0)
    return total / objective.counted(count)


class _Mover:
    """The weights at one point after another, in memory that is used again."""

    def __init__(self, weights: Direction, along: Direction, across: Direction) -> None:
        self.weights, self.along, self.across = weights, along, across
        self.row = {name: torch.empty_like(weights[name]) for name in along}
        self.there = {name: torch.empty_like(weights[name]) for name in across}
        self.p: float | None = None

    def __call__(self, p: float, q: float) -> dict[str, Tensor]:
        """Weights + p·along + q·across; what a row of points shares is kept."""
        if p != self.p:
            for name, direction in self.along.items():
                torch.add(self.weights[name], direction, alpha=p, out=self.row[name])
            self.p = p
        for name, direction in self.across.items():
            torch.add(self.row[name], direction, alpha=q, out=self.there[name])
        return {**self.weights, **self.row, **self.there}


def _chosen(direction: Direction, weights: Direction, names: list[str]) -> dict[str, Tensor]:
    """The tensors of ``direction`` of these names, laid out as the weights are."""
    return {name: torch.empty_like(weights[name]).copy_(direction[name]) for name in names}


def _adam_step(directions: Directions, weights: Direction, names: list[str]) -> dict[str, Tensor]:
    """η m / (√v + ε)."""
    first, second = _chosen(directions.first, weights, names), _chosen(directions.second, weights, names)
    if any(bool((moment < 0).any()) for moment in second.values()):
        checks.fail("second moments must not be negative", "a second axis with negative entries")
    return {name: _ADAM_LR * first[name] / (second[name].sqrt() + _ADAM_EPS) for name in names}


def _moving(weights: Direction, freeze: int | None) -> list[str]:
    """The names of the tensors that are not frozen."""
    names = list(weights)
    if freeze is None:
        return names
    if not 1 <= abs(freeze) < len(names):
        checks.fail(f"freeze must be from 1 to {len(names) - 1}, or the negative of that", freeze)
    return names[:freeze] if freeze > 0 else names[-freeze:]


def _matches(direction: Direction, weights: Direction) -> None:
    given = {name: tuple(tensor.shape) for name, tensor in direction.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if given != expected:
        names = sorted(name for name in given | expected if given.get(name) != expected.get(name))
        name = names[0]
        checks.fail(
            f"directions must have the names and shapes of the trainable parameters; {name!r} should be "
            f"{expected.get(name, 'missing')}",
            given.get(name, "none"),
        )


def _norm(tensor: Tensor, order: int, dims: tuple[int, ...] | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor, order, dim=dims, keepdim=dims is not None)
    return norm


def _norm_of_all(direction: Direction, order: int) -> Tensor:
    return _norm(torch.stack([_norm(tensor, order) for tensor in direction.values()]), order)


def _ratio(wanted: Tensor, present: Tensor) -> Tensor:
    """The factor from one norm to the other; 0 where there is nothing to scale."""
    return torch.where(present > 0, wanted / present, 0.0)


def _inner(first: Direction, second: Direction) -> float:
    return sum(float(torch.dot(first[name].double().flatten(), second[name].double().flatten())) for name in first)


__all__ = ["Directions", "Plane", "normalise", "plane"]
