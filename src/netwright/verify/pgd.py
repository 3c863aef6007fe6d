"""Projected gradient descent (Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv:1706.06083): the L∞ attack."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.surgery import eval_mode

Bound = float | Tensor
AttackLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Sum over samples of the cross-entropy of logits ``(samples, classes)``; the sum keeps samples independent."""
    return functional.cross_entropy(outputs, targets, reduction="sum")


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Sum over samples of :math:`\max_{j \ne y} z_j - z_y`, whose gradient does not vanish on confident networks."""
    right = functional.one_hot(targets, outputs.shape[1]).bool()
    return (outputs.masked_fill(right, -torch.inf).amax(1) - outputs[right]).sum()


def all_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Sum over samples and classes of :math:`z_j - z_y`, which pushes all other classes up and not the best alone."""
    return outputs.sum() - outputs.shape[1] * outputs.gather(1, targets[:, None]).sum()


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Bound,
    alpha: Bound,
    steps: int = 10,
    *,
    random_start: bool = True,
    lo: Bound | None = None,
    hi: Bound | None = None,
    loss: AttackLoss = cross_entropy,
    targeted: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Inputs near ``x`` on which the network errs as much as steps along the sign of the gradient can make it.

    .. math:: x^{k+1} = \Pi\bigl(x^k + \alpha \operatorname{sign} \nabla_x L(f(x^k), y)\bigr), \qquad
        \Pi \text{ onto } \{x' : |x' - x| \le \epsilon,\; \text{lo} \le x' \le \text{hi}\}

    The model is run in eval mode; its modes, the gradients of its parameters and torch's random state are left as they
    were.

    Args:
        model: Maps inputs to outputs that ``loss`` understands.
        x: ``(samples, *input_shape)``.
        y: What ``loss`` takes as second argument, one a sample: classes ``(samples,)`` for the losses of this file.
        eps: Largest change of an entry, in units of the input; a number, or a tensor that broadcasts to ``x``, such as
            ``(channels, 1, 1)`` where channels are normalised differently.
        alpha: Size of a step, as ``eps``.
        steps: Number of steps.
        random_start: Begin at a uniformly random place in the allowed box and not at ``x``.
        lo: Smallest value that an input can have, as ``eps``; none if not given.
        hi: Largest value that an input can have.
        loss: ``loss(outputs, y)`` as a scalar that is a sum over samples: :func:`cross_entropy`, :func:`margin` or
            one's own.
        targeted: Go down the loss and not up: ``y`` is what the network is to be made to say.
        generator: Draws the start; one with seed 0 if not given.

    Returns:
        The last iterates, with the shape and type of ``x``, without gradient.

    Raises:
        InputError: If ``eps`` is negative, ``alpha`` not positive, ``x`` outside of ``lo`` to ``hi`` or not of a
            floating-point type, or ``y`` not as many as ``x``.

    Source:
        arXiv:1706.06083, section 2.1.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> pgd(model, torch.tensor([[1.0, 0.5]]), torch.tensor([0]), eps=0.5, alpha=0.25, steps=4)
        tensor([[0.5000, 1.0000]])
    """
    low, high = _allowed(x, y, eps, alpha, steps, lo, hi)
    ascent = -_like(alpha, x) if targeted else _like(alpha, x)
    attacked = x.detach().clone()
    if random_start:
        attacked = _drawn(low, high, generator or torch.Generator().manual_seed(0))
    with eval_mode(model), torch.enable_grad():
        for _ in range(steps):
            attacked.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(attacked), y), attacked)
            attacked = (attacked.detach() + ascent * gradient.sign()).clamp(low, high)
    return attacked


class Strongest(NamedTuple):
    r"""What the strongest attack on each sample came to.

    Attributes:
        x: The inputs ``(samples, *input_shape)``.
        margin: :math:`\max_{j \ne y} z_j - z_y` there ``(samples,)``; 0 or above means that the network errs.
    """

    x: Tensor
    margin: Tensor


def strongest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Bound,
    alpha: Bound,
    steps: int = 10,
    *,
    restarts: int = 1,
    lo: Bound | None = None,
    hi: Bound | None = None,
    loss: AttackLoss = all_margins,
    generator: torch.Generator | None = None,
) -> Strongest:
    """The worst of all inputs that :func:`pgd` sees from many random starts, the starts included.

    All restarts of all samples are one batch. An attack that walked over a counterexample and on has found it.

    Args:
        model: Gives one number a class, ``(batch, classes)``.
        x: As in :func:`pgd`.
        y: Classes ``(samples,)``.
        eps: As in :func:`pgd`.
        alpha: As in :func:`pgd`.
        steps: As in :func:`pgd`; 0 for random inputs alone.
        restarts: Random starts of every sample.
        lo: As in :func:`pgd`.
        hi: As in :func:`pgd`.
        loss: What the steps go up.
        generator: Draws the starts; one with seed 0 if not given.

    Raises:
        InputError: As :func:`pgd`; and if there is no restart, or the outputs are not ``(batch, classes)`` with at
            least two classes, or a label is none of them.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> found = strongest(model, torch.tensor([[1.0, 0.5]]), torch.tensor([0]), 0.5, 0.25, 4, restarts=3)
        >>> found.x, found.margin
        (tensor([[0.5000, 1.0000]]), tensor([0.5000]))
    """
    checks.at_least("restarts", restarts, 1)
    low, high = (end[:, None] for end in _allowed(x, y, eps, alpha, steps, lo, hi))
    ascent = _like(alpha, x)
    if ascent.ndim == x.ndim:
        ascent = ascent[:, None]
    wide = (len(x), restarts, *x.shape[1:])
    attacked = _drawn(low.expand(wide), high.expand(wide), generator or torch.Generator().manual_seed(0))
    targets = y.repeat_interleave(restarts)
    worst, highest = x.detach().clone(), x.new_full((len(x),), -torch.inf)
    samples = torch.arange(len(x), device=x.device)
    with eval_mode(model), torch.enable_grad():
        for step in range(steps + 1):
            flat = attacked.flatten(0, 1).requires_grad_(step < steps)
            outputs = model(flat)
            margins_of = _margins if step else output_margins  # checked once
            margins, place = margins_of(outputs.detach(), targets).view(len(x), restarts).max(1)
            better = margins > highest
            highest = torch.where(better, margins.to(highest), highest)
            worst[better] = attacked.detach()[samples, place][better]
            if step < steps:
                (gradient,) = torch.autograd.grad(loss(outputs, targets), flat)
                move = ascent * gradient.view(wide).sign()
                attacked = torch.minimum(torch.maximum(attacked.detach() + move, low), high)
    return Strongest(worst, highest)


def adversarial_accuracy(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: Bound,
    alpha: Bound,
    steps: int = 10,
    *,
    batch_size: int = 1024,
    random_start: bool = True,
    lo: Bound | None = None,
    hi: Bound | None = None,
    loss: AttackLoss = cross_entropy,
    generator: torch.Generator | None = None,
) -> float:
    """The fraction of inputs that are still classified as ``y`` after :func:`pgd`, whose arguments these are.

    Example:
        >>> model = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.eye_(model.weight)
        >>> x, y = torch.tensor([[1.0, 0.5], [3.0, 0.5]]), torch.tensor([0, 0])
        >>> adversarial_accuracy(model, x, y, eps=0.5, alpha=0.25)
        0.5
    """
    checks.at_least("number of inputs", len(x), 1)
    checks.at_least("batch_size", batch_size, 1)
    generator = generator or torch.Generator().manual_seed(0)
    device = next((p.device for p in model.parameters()), x.device)
    right = 0
    for part, classes in zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True):
        inputs, targets = part.to(device), classes.to(device)
        attacked = pgd(
            model,
            inputs,
            targets,
            eps,
            alpha,
            steps,
            random_start=random_start,
            lo=lo,
            hi=hi,
            loss=loss,
            generator=generator,
        )
        with eval_mode(model), torch.no_grad():
            right += int((model(attacked).argmax(1) == targets).sum())
    return right / len(x)


def _allowed(
    x: Tensor, y: Tensor, eps: Bound, alpha: Bound, steps: int, lo: Bound | None, hi: Bound | None
) -> tuple[Tensor, Tensor]:
    """The ends of the box of each sample, when all arguments are as they must be."""
    checks.floating_point("x", x)
    if y.ndim == 0 or len(y) != len(x):
        checks.fail(f"y must have one entry for each of {len(x)} inputs", f"shape {tuple(y.shape)}")
    checks.at_least("eps", _smallest(eps), 0)
    checks.positive("alpha", _smallest(alpha))
    checks.at_least("steps", steps, 0)
    low, high = x.detach() - _like(eps, x), x.detach() + _like(eps, x)
    if lo is not None:
        _within("lo", bool((x >= _like(lo, x)).all()), "at least", lo, x.min().item() if x.numel() else 0.0)
        low = torch.maximum(low, _like(lo, x))
    if hi is not None:
        _within("hi", bool((x <= _like(hi, x)).all()), "at most", hi, x.max().item() if x.numel() else 0.0)
        high = torch.minimum(high, _like(hi, x))
    return low, high


def _drawn(low: Tensor, high: Tensor, generator: torch.Generator) -> Tensor:
    share = torch.rand(low.shape, generator=generator, device=generator.device).to(low)
    return low + share * (high - low)


def output_margins(outputs: Tensor, targets: Tensor) -> Tensor:
    r""":math:`\max_{j \ne y} z_j - z_y` of each sample ``(samples,)``; infinite where the network gives NaN.

    Raises:
        InputError: If the outputs are not ``(batch, classes)`` with at least two classes, or a label is none of them.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        checks.fail("the model must give outputs (batch, classes) with two classes or more", f"{tuple(outputs.shape)}")
    if not bool(((targets >= 0) & (targets < outputs.shape[1])).all()):
        checks.fail(f"labels must be from 0 to {outputs.shape[1] - 1}", sorted(set(targets.tolist())))
    return _margins(outputs, targets)


def _margins(outputs: Tensor, targets: Tensor) -> Tensor:
    right = targets[:, None]
    margins = outputs.scatter(1, right, -torch.inf).amax(1) - outputs.gather(1, right)[:, 0]
    # a network that gives NaN errs
    return margins.nan_to_num(torch.inf, torch.inf, -torch.inf)


def _like(value: Bound, x: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=x.dtype, device=x.device)


def _smallest(value: Bound) -> float:
    return float(torch.as_tensor(value).min())


def _within(name: str, holds: bool, relation: str, bound: Bound, given: float) -> None:
    if not holds:
        shown = f"{bound:g}" if isinstance(bound, (int, float)) else "the tensor given"
        checks.fail(f"x must be {relation} {name} ({shown}) everywhere", f"{given:g}")


__all__ = [
    "AttackLoss",
    "Bound",
    "Strongest",
    "adversarial_accuracy",
    "all_margins",
    "cross_entropy",
    "margin",
    "output_margins",
    "pgd",
    "strongest",
]
