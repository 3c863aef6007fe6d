"""Training of selectable KANs (Yang, Zhang, Luo, Lu, Shen 2024, arXiv:2408.08338): full, selective, and pruned.

:class:`SelectionSchedule` says when, :func:`prune_` removes what was not selected, :class:`SelectiveTraining` is the
learning rule that does both while it trains; :func:`selection_entropy` is a penalty that makes choices clear.
"""

import time
from collections import Counter
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from netwright import checks
from netwright.cost import count_params
from netwright.data.splits import Batch
from netwright.layers.selectable_kan import Exchange, Phase, Selectable, selectable_layers
from netwright.training.rules import Backprop, Loss, task_loss

# with α in the coefficients gradients are 1 / α times as large, and so is what optimisers keep of them, by its name
_POWERS = {"momentum_buffer": -1, "exp_avg": -1, "exp_avg_sq": -2, "max_exp_avg_sq": -2}
_PHASES: tuple[Phase, ...] = ("full", "selective", "pruned")


@dataclass(frozen=True)
class PruneReport:
    """What :func:`prune_` left.

    Attributes:
        families: Name of each layer to how many outputs, edges or layers (as its ``select`` says) each family has.
        parameters_before: Of the whole model.
        parameters_after: Of the whole model.
    """

    families: dict[str, Counter[str]]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        layers = [
            f"{name or 'the model'}: " + ", ".join(f"{family} {n}" for family, n in chosen.most_common())
            for name, chosen in self.families.items()
        ]
        return "\n".join([*layers, f"parameters: {self.parameters_before:,} to {self.parameters_after:,}"])


@dataclass(frozen=True)
class SelectionSchedule:
    """How the training is divided into the three phases, as fractions of its length.

    Attributes:
        full: All families and their weights are trained.
        selective: The strongest family of every unit is trained, the others are masked.
        prune: What is left after the masked families were removed is trained on.

    Raises:
        InputError: If a fraction is negative, the first two are not positive, or the sum is not 1.

    Source:
        arXiv:2408.08338; the lengths are our reading.

    Example:
        >>> SelectionSchedule().phase(0.39), SelectionSchedule().phase(0.4), SelectionSchedule().phase(0.9)
        ('full', 'selective', 'pruned')
    """

    full: float = 0.4
    selective: float = 0.4
    prune: float = 0.2

    def __post_init__(self) -> None:
        checks.positive("full", self.full)
        checks.positive("selective", self.selective)
        checks.at_least("prune", self.prune, 0)
        total = self.full + self.selective + self.prune
        if abs(total - 1) > 1e-6:
            checks.fail("full + selective + prune must be 1", f"{total:g}")

    def phase(self, progress: float) -> Phase:
        """The phase when the fraction ``progress`` of the training is over."""
        checks.at_least("progress", progress, 0)
        # 0.4 + 0.4 is a little above 0.8
        if progress < self.full - 1e-9:
            return "full"
        return "selective" if progress < self.full + self.selective - 1e-9 or self.prune == 0 else "pruned"

    def advance_(self, model: nn.Module, progress: float, optimizer: Optimizer | None = None) -> bool:
        """Take all selectable layers to the phase of ``progress``, in place; none goes back.

        Args:
            model: The network.
            progress: Which fraction of the training is over.
            optimizer: What trains it; it forgets what is removed and goes on with what is left.

        Returns:
            Whether anything changed.
        """
        goal = _PHASES.index(self.phase(progress))
        behind = [layer for layer in _layers(model).values() if _PHASES.index(layer.phase) < goal]
        for layer in behind:
            if layer.phase == "full":
                layer.select_()
        if goal == 2 and behind:
            prune_(model, optimizer)
        return bool(behind)


def prune_(model: nn.Module, optimizer: Optimizer | None = None) -> PruneReport:
    """Remove the families that were not selected from all selectable layers, in place.

    The model computes the same as before, with fewer parameters. Layers that are pruned already stay as they are.

    Args:
        model: The network.
        optimizer: What trains it. It drops the parameters that went and goes on with those in their place; momentum
            and Adam's means are taken along, scaled as gradients are, now that α is in the coefficients. Without it,
            make a new optimiser.

    Raises:
        InputError: If the model has no selectable layer, or one of them is still in phase ``"full"``.

    Example:
        >>> from netwright.layers.selectable_kan import SKANLayer
        >>> layer = SKANLayer(4, 3, pool=("chebyshev", "fourier"), select="layer")
        >>> layer.select_()
        >>> print(prune_(layer))
        the model: chebyshev 1
        parameters: 194 to 96
    """
    layers = _layers(model)
    for name, layer in layers.items():
        if layer.phase == "full":
            checks.fail("prune_ needs layers in phase 'selective'", f"layer {name!r} in phase 'full'; select_ first")
    before = count_params(model)
    exchanged = [one for layer in layers.values() if layer.phase == "selective" for one in layer.prune_()]
    if optimizer is not None:
        _exchange(optimizer, exchanged)
    return PruneReport({name: layer.choices() for name, layer in layers.items()}, before, count_params(model))


def selection_entropy(model: nn.Module) -> Tensor:
    r"""How undecided the selectable layers are: 1 if all families weigh the same, 0 if one has all the weight.

    .. math:: \frac{-\sum_k p_k \log p_k}{\log F}, \qquad p_k = \frac{|\alpha_k|}{\sum_j |\alpha_j|}

    It is the mean over the units of a layer, then over layers; those that have selected or are pruned do not count.

    Returns:
        A scalar, 0 where no layer counts; added to the loss it favours clear choices.

    Raises:
        InputError: If the model has no selectable layer.
    """
    undecided = [layer for layer in _layers(model).values() if layer.phase == "full"]
    if not undecided:
        return torch.zeros((), device=next(model.parameters()).device)
    return torch.stack([_entropy(layer.alphas().abs()) for layer in undecided]).mean()


class SelectiveTraining(Backprop):
    """Backprop that takes the selectable layers of a model through their phases.

    Args:
        model: The network.
        optimizer: Any torch optimiser over its parameters.
        schedule: When phases begin.
        steps: Number of updates of the whole training.
        seconds: Time of the whole training, where it limits it; whichever of the two is further on counts.
        entropy: Weight of :func:`selection_entropy` in the loss.
        fabric: See :class:`Backprop`.
        loss: See there.
        scheduler: See there.
        clip_norm: See there.

    Raises:
        InputError: If neither ``steps`` nor ``seconds`` is given, ``entropy`` is negative, or the model has no
            selectable layer.

    Example:
        >>> from netwright.layers.selectable_kan import SKAN
        >>> model = SKAN([2, 3, 1])
        >>> rule = SelectiveTraining(model, torch.optim.Adam(model.parameters()), steps=10)
        >>> batch = Batch(torch.randn(8, 2), torch.randn(8, 1))
        >>> losses = [rule.step(batch)["loss"] for _ in range(10)]
        >>> model[0].phase
        'pruned'
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        schedule: SelectionSchedule | None = None,
        steps: int | None = None,
        seconds: float | None = None,
        entropy: float = 0.0,
        fabric: Fabric | None = None,
        loss: Loss = task_loss,
        scheduler: LRScheduler | None = None,
        clip_norm: float | None = None,
    ) -> None:
        if steps is None and seconds is None:
            raise checks.InputError("selective training needs steps or seconds, got neither")
        checks.at_least("entropy", entropy, 0)
        _layers(model)

        def penalised(outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets) + entropy * selection_entropy(model)

        super().__init__(
            model,
            optimizer,
            fabric=fabric,
            loss=penalised if entropy else loss,
            scheduler=scheduler,
            clip_norm=clip_norm,
        )
        self.schedule = schedule or SelectionSchedule()
        self.steps, self.seconds = steps, seconds
        self.done = 0
        self._plain = (model, optimizer)
        self._phase: Phase = "full"
        self._started = 0.0

    @property
    def progress(self) -> float:
        """Which fraction of the training is over."""
        if self.done == 0:
            return 0.0
        of_steps = self.done / self.steps if self.steps else 0.0
        of_time = (time.perf_counter() - self._started) / self.seconds if self.seconds else 0.0
        return max(of_steps, of_time)

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """Begin the next phase if it is time, then one update."""
        if self.done == 0:
            self._started = time.perf_counter()
        if self.schedule.phase(self.progress) != self._phase:
            model, optimizer = self._plain
            self.schedule.advance_(model, self.progress, optimizer)
            self._phase = self.schedule.phase(self.progress)
        self.done += 1
        return super().step(batch)


def _layers(model: nn.Module) -> dict[str, Selectable]:
    layers = selectable_layers(model)
    if not layers:
        raise checks.InputError(f"found no selectable layer (SKANLayer, SConvKAN2d), got a {type(model).__name__}")
    return layers


def _entropy(weights: Tensor) -> Tensor:
    shares = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)
    maximum = torch.tensor(float(weights.shape[-1]), device=weights.device, dtype=weights.dtype).log()
    entropy: Tensor = torch.special.entr(shares).sum(-1).mean() / maximum
    return entropy


def _exchange(optimizer: Optimizer, exchanged: list[Exchange]) -> None:
    for old, new, carry in exchanged:
        memory = optimizer.state.pop(old, {})
        tensors = {key for key, value in memory.items() if torch.is_tensor(value) and value.shape == old.shape}
        if new is not None and carry is not None and memory and tensors <= _POWERS.keys():
            optimizer.state[new] = {
                key: carry(value, _POWERS[key]) if key in tensors else value for key, value in memory.items()
            }
    successors = {id(one.old): one.new for one in exchanged}
    for group in optimizer.param_groups:
        kept = [successors.get(id(parameter), parameter) for parameter in group["params"]]
        group["params"] = [parameter for parameter in kept if parameter is not None]


__all__ = ["PruneReport", "SelectionSchedule", "SelectiveTraining", "prune_", "selection_entropy"]
