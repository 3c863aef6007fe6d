"""Lottery tickets (Frankle and Carbin 2019, arXiv:1803.03635): iterative magnitude pruning with rewinding."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from netwright import checks
from netwright.compression.masks import Mask, ShuffleMode, is_ignored, prunable
from netwright.training import History

Scope = Literal["layer", "global"]
State = dict[str, Tensor]
# trains the model in place from update `start` up to update `stop`, and returns what it wants to be kept
Train = Callable[[nn.Module, int, int], Any]


@dataclass(frozen=True, eq=False)
class Level:
    """One round of pruning.

    Attributes:
        mask: What is left.
        density: Its density.
        initial_state: The weights before any training.
        rewind_state: The weights at the update to which training goes back; the initial ones for ``rewind_step=0``.
        final_state: The weights after training under this mask.
        history: What the training function returned.
    """

    mask: Mask
    density: float
    initial_state: State
    rewind_state: State
    final_state: State
    history: Any


@dataclass(frozen=True, eq=False)
class LotteryResult:
    """The levels of iterative magnitude pruning, densest first, and the controls that branch off from them.

    Every control is a masked network ready to be trained; all but :meth:`random_reinit` start at ``rewind_step``.

    Attributes:
        levels: Level 0 is the dense network.
        model_fn: Makes a network with new initial weights.
        train_fn: Trains it.
        steps: Length of a training, in updates.
        rewind_step: Where the tickets' training starts.
        scope: Whether weights were compared within a layer or across layers.
    """

    levels: list[Level]
    model_fn: Callable[[], nn.Module]
    train_fn: Train
    steps: int
    rewind_step: int
    scope: Scope

    def ticket(self, level: int) -> nn.Module:
        """The winning ticket: mask of the level, weights that training goes back to."""
        return self._branch(self.levels[level].mask, self.levels[level].rewind_state)

    def random_reinit(self, level: int) -> nn.Module:
        """The mask of the level over new initial weights; to be trained from update 0."""
        return self.levels[level].mask.attach_(self.model_fn())

    def random_mask(
        self, level: int, mode: ShuffleMode = "layerwise", generator: torch.Generator | None = None
    ) -> nn.Module:
        """As many weights as the level has, at random places, with the values that training goes back to."""
        return self._branch(self.levels[level].mask.shuffle(mode, generator), self.levels[level].rewind_state)

    def one_shot(self, level: int) -> nn.Module:
        """As many weights as the level has, found by a single cut through the trained dense network."""
        dense, target = self.levels[0], self.levels[level].mask
        cut = [name for name in target if target[name].sum() < dense.mask[name].sum()]
        if self.scope == "layer":
            fraction = {name: 1 - float(target[name].sum() / dense.mask[name].sum()) for name in target}
        else:
            left = sum(int(target[name].sum()) for name in cut) / sum(int(dense.mask[name].sum()) for name in cut)
            fraction = {name: 1 - left if name in cut else 0.0 for name in target}
        return self._branch(magnitude_mask(dense.final_state, dense.mask, fraction, self.scope), dense.rewind_state)

    def train_ticket(self, level: int) -> tuple[nn.Module, Any]:
        """Train the ticket of a level again; the trained masked network, and what the training function returned."""
        model = self.ticket(level)
        return model, self.train_fn(model, self.rewind_step, self.steps)

    def _branch(self, mask: Mask, state: State) -> nn.Module:
        model = self.model_fn()
        model.load_state_dict(state)
        return mask.attach_(model)


def iterative_magnitude_pruning(
    model_fn: Callable[[], nn.Module],
    train_fn: Train,
    rounds: int,
    steps: int,
    fraction: float | Mapping[str, float] = 0.2,
    output_fraction: float | None = None,
    *,
    scope: Scope = "layer",
    rewind_step: int = 0,
    prune_biases: bool = False,
    ignore: Iterable[str] = (),
) -> LotteryResult:
    """Train, prune the smallest of the surviving weights, put the survivors back to where they started, and repeat.

    With ``scope="layer"`` every layer loses its own share. With ``"global"`` (for deep networks) one threshold cuts
    through all layers but the output. Deep networks at high learning rates need a warm-up of the learning rate or a
    ``rewind_step`` above 0.

    Args:
        model_fn: Makes the network; called once for the tickets, and again for every new initialisation.
        train_fn: ``train_fn(model, start, stop)`` trains in place from update ``start`` to ``stop``, with a fresh
            optimiser; what it returns is kept as the level's ``history``.
        rounds: Number of prunings; there is one training more.
        steps: Length of a training, in updates.
        fraction: Of the survivors, pruned a round; by parameter name, if layers differ.
        output_fraction: That of the last layer. If not given: half of ``fraction`` in scope ``"layer"``; in scope
            ``"global"`` the last layer is not pruned, unless ``fraction`` itself is given here.
        scope: Where weights are compared.
        rewind_step: The update to whose weights the survivors go back.
        prune_biases: Whether biases (outside of normalisation) are pruned like weights.
        ignore: Parameters or modules that are never pruned.

    Returns:
        Level 0 (dense) to level ``rounds``.

    Raises:
        InputError: If a fraction is outside (0, 1), ``rounds`` is below 1, ``rewind_step`` is not before ``steps``, or
            a layer would be left without a weight.

    Source:
        Frankle, Carbin 2019, arXiv:1803.03635, sections 1 and 2, appendix G; late rewinding: Frankle, Dziugaite, Roy,
        Carbin 2019, arXiv:1903.01611. Official code: google-research/lottery-ticket-hypothesis (layers),
        facebookresearch/open_lth (global).

    Example:
        >>> from netwright.data import load
        >>> from netwright.models.vision.classic import MLP
        >>> from netwright.training import Budget, fit
        >>> digits = load("digits")
        >>> result = iterative_magnitude_pruning(
        ...     lambda: MLP(64, (100, 50), 10),
        ...     lambda model, start, stop: fit(model, digits, Budget(steps=stop - start)),
        ...     rounds=2,
        ...     steps=20,
        ... )
        >>> [round(level.density, 3) for level in result.levels]
        [1.0, 0.804, 0.647]
    """
    checks.at_least("rounds", rounds, 1)
    checks.at_least("steps", steps, 1)
    checks.known("scope", scope, ("layer", "global"))
    if not 0 <= rewind_step < steps:
        checks.fail(f"rewind_step must be at least 0 and before the end of training ({steps} steps)", rewind_step)
    model = model_fn()
    mask = Mask(
        {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in _pruned(model, prune_biases, ignore)}
    )
    fractions = _fractions(mask, fraction, output_fraction, scope)
    initial = rewind = _clone(model.state_dict())
    if rewind_step:
        train_fn(model, 0, rewind_step)
        rewind = _clone(model.state_dict())
    levels: list[Level] = []
    for number in range(rounds + 1):
        twin = copy.deepcopy(model)
        twin.load_state_dict(rewind)
        mask.attach_(twin)
        history = train_fn(twin, rewind_step, steps)
        levels.append(Level(mask, mask.density, initial, rewind, _clone(twin.state_dict()), history))
        if number < rounds:
            mask = magnitude_mask(levels[-1].final_state, mask, fractions, scope)
    return LotteryResult(levels, model_fn, train_fn, steps, rewind_step, scope)


def one_shot_pruning(
    model_fn: Callable[[], nn.Module],
    train_fn: Train,
    rounds: int,
    steps: int,
    fraction: float = 0.2,
    output_fraction: float | None = None,
    **options: Any,
) -> LotteryResult:
    """Prune once what ``rounds`` rounds of :func:`iterative_magnitude_pruning` would take away, and rewind.

    Args:
        model_fn: See there.
        train_fn: See there.
        rounds: How many rounds the single cut replaces.
        steps: See there.
        fraction: Of the survivors, pruned in each of these rounds.
        output_fraction: See there.
        options: Further arguments of :func:`iterative_magnitude_pruning`.

    Returns:
        Level 0 (dense) and level 1.

    Example:
        >>> from netwright.models.vision.classic import MLP
        >>> result = one_shot_pruning(lambda: MLP(64, (100, 50), 10), lambda model, start, stop: None, 3, steps=1)
        >>> [round(level.density, 3) for level in result.levels]
        [1.0, 0.521]
    """
    checks.at_least("rounds", rounds, 1)
    if output_fraction is None and options.get("scope", "layer") == "layer":
        output_fraction = fraction / 2
    for share in (fraction, output_fraction):
        if share is not None:
            checks.between("fraction", share, 0, 1, open_low=True, open_high=True)
    at_once = 1 - (1 - fraction) ** rounds
    output_at_once = None if output_fraction is None else 1 - (1 - output_fraction) ** rounds
    return iterative_magnitude_pruning(model_fn, train_fn, 1, steps, at_once, output_at_once, **options)


def magnitude_mask(
    weights: Mapping[str, Tensor], mask: Mask, fraction: float | Mapping[str, float], scope: Scope = "layer"
) -> Mask:
    """Take the smallest of the surviving weights out of a mask.

    Exactly round(fraction · survivors) go, in each layer or in all of them together. Dead weights do not count,
    whatever their value; of equal magnitudes the first go first.

    Args:
        weights: The trained weights by name; more than those in the mask may be given.
        mask: The survivors so far.
        fraction: Of the survivors that are pruned; by name if layers differ. Layers with 0 are left as they are.
        scope: ``"layer"``, or ``"global"`` for one threshold over all layers whose fraction is not 0.

    Returns:
        The smaller mask.

    Raises:
        InputError: If a fraction is outside [0, 1), global fractions differ, a weight is missing, of another shape or
            not finite, or a layer is left without a weight.

    Source:
        arXiv:1803.03635, section 2. The official code prunes one weight more (it cuts at ``sorted[round(p·n)]``, that
        one included); this is the rounding of ``torch.nn.utils.prune``.

    Example:
        >>> mask = magnitude_mask({"w": torch.tensor([[0.5, -0.1, 0.2, -3.0]])}, Mask({"w": torch.ones(1, 4)}), 0.5)
        >>> mask["w"]
        tensor([[ True, False, False,  True]])
    """
    checks.known("scope", scope, ("layer", "global"))
    fractions = dict(fraction) if isinstance(fraction, Mapping) else dict.fromkeys(mask, fraction)
    for name in mask:
        checks.known("layer in fraction", name, fractions)
        checks.known("weight", name, weights)
        checks.between(f"fraction of {name!r}", fractions[name], 0, 1, open_high=True)
        if weights[name].shape != mask[name].shape:
            checks.fail(f"mask of {name!r} must have shape {tuple(weights[name].shape)}", tuple(mask[name].shape))
    groups = [[name] for name in mask if fractions[name] > 0]
    if scope == "global":
        groups = [[name for name in mask if fractions[name] > 0]] if groups else []
        if len({fractions[name] for name in mask if fractions[name] > 0}) > 1:
            raise checks.InputError("scope='global' needs one fraction for all layers (or 0 for some), got several")
    smaller = dict(mask)
    for group in groups:
        magnitudes = torch.cat([_survivors(weights[name].detach(), mask[name]).abs() for name in group])
        kept = _without_smallest(magnitudes, round(fractions[group[0]] * len(magnitudes)))
        survivors = [int(mask[name].sum()) for name in group]
        for name, part in zip(group, torch.split(kept, survivors), strict=True):
            smaller[name] = torch.zeros_like(mask[name]).masked_scatter_(mask[name], part)
    result = Mask(smaller)
    result.check_not_empty()
    return result


def fractions_for(mask: Mask, density: float, rounds: int, scope: Scope = "layer") -> dict[str, float]:
    """The fractions a round, the last layer's half of the others', that end at ``density`` after ``rounds`` rounds.

    In scope ``"global"`` the last layer is not pruned.

    Args:
        mask: Where pruning starts.
        density: Fraction of all weights of the mask, dead ones included, that is to be left.
        rounds: Number of prunings.
        scope: As in :func:`iterative_magnitude_pruning`.

    Raises:
        InputError: If the density is outside (0, 1), or the mask is not denser, or the last layer alone has too many
            weights for it.

    Example:
        >>> fractions_for(Mask({"fc1": torch.ones(20, 50), "fc2": torch.ones(2, 20)}), 0.5, rounds=3)
        {'fc1': 0.21..., 'fc2': 0.10...}
    """
    checks.between("density", density, 0, 1, open_low=True, open_high=True)
    checks.at_least("rounds", rounds, 1)
    checks.known("scope", scope, ("layer", "global"))
    survivors = {name: int(tensor.sum()) for name, tensor in mask.items()}
    target, output = density * mask.size, _output_layer(mask)
    if sum(survivors.values()) <= target:
        checks.fail(f"density must be below that of the network ({mask.density:.4g})", density)
    share = dict.fromkeys(mask, 1.0)
    if len(mask) > 1:
        share[output] = 0.5 if scope == "layer" else 0.0

    def excess(p: float) -> float:
        return sum(survivors[name] * (1 - p * share[name]) ** rounds for name in mask) - target

    if excess(1.0) >= 0:
        checks.fail(
            f"density must leave more than the last layer {output!r} keeps ({survivors[output]} weights)", density
        )
    p = float(brentq(excess, 0.0, 1.0))
    return {name: p * share[name] for name in mask}


def early_stopping_step(history: History) -> int:
    """The update with the lowest validation loss: where training would have been stopped.

    Source:
        arXiv:1803.03635, section 2: the paper's measure of how fast a network learns.

    Example:
        >>> early_stopping_step(History(records=[{"step": 10, "val_nll": 0.5}, {"step": 20, "val_nll": 0.7}]))
        10
    """
    if not history.records:
        raise checks.InputError("early stopping needs at least one evaluation, got none")
    metric = "val_nll" if "val_nll" in history.records[0] else "val_rmse"
    return int(min(history.records, key=lambda record: record[metric])["step"])


def _survivors(weight: Tensor, mask: Tensor) -> Tensor:
    # selecting costs as much as all the rest, and the first round keeps everything
    return weight.flatten() if mask.all() else weight.masked_select(mask)


def _without_smallest(magnitudes: Tensor, number: int) -> Tensor:
    """Which entries stay if the ``number`` smallest go; the first of equals go first."""
    if not math.isfinite(magnitudes.max()):
        raise checks.InputError("weights must be finite, got an infinite value or NaN")
    if number == 0:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    # selection, not a full sort
    threshold = magnitudes.kthvalue(number).values
    kept = magnitudes > threshold
    ties = (magnitudes == threshold).nonzero().flatten()
    below = len(magnitudes) - int(kept.sum()) - len(ties)
    kept[ties[number - below :]] = True
    return kept


def _pruned(model: nn.Module, prune_biases: bool, ignore: Iterable[str]) -> list[tuple[str, Tensor]]:
    ignore = list(ignore)
    weights = prunable(model, ignore)
    if not prune_biases:
        return list(weights.items())
    owners = {name.rpartition(".")[0] for name in weights}
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name in weights
        or (
            name.rpartition(".")[2].startswith("bias")
            and name.rpartition(".")[0] in owners
            and not is_ignored(name, ignore)
        )
    ]


def _output_layer(mask: Mask) -> str:
    """The last weight with two dimensions, or else the last one."""
    return next((name for name in reversed(list(mask)) if mask[name].ndim == 2), list(mask)[-1])


def _fractions(
    mask: Mask, fraction: float | Mapping[str, float], output_fraction: float | None, scope: Scope
) -> dict[str, float]:
    output = _output_layer(mask)
    fractions = dict(fraction) if isinstance(fraction, Mapping) else dict.fromkeys(mask, fraction)
    for name in mask:
        checks.known("layer in fraction", name, fractions)
        checks.between(f"fraction of {name!r}", fractions[name], 0, 1, open_low=True, open_high=True)
    if output_fraction is not None:
        checks.between("output_fraction", output_fraction, 0, 1, open_low=True, open_high=True)
        fractions[output] = output_fraction
    elif len(mask) > 1 and not isinstance(fraction, Mapping):
        fractions[output] = fraction / 2 if scope == "layer" else 0.0
    return fractions


def _clone(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


__all__ = [
    "Level",
    "LotteryResult",
    "early_stopping_step",
    "fractions_for",
    "iterative_magnitude_pruning",
    "magnitude_mask",
    "one_shot_pruning",
]
