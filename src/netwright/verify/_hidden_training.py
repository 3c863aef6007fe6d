"""Train a network to be right wherever attacks look, and wrong at the planted points."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.verify._planted import SCHEDULE, InstanceSet, attack_survivors, counterexamples
from netwright.verify.pgd import strongest


@dataclass(frozen=True)
class HiddenConfig:
    """How :func:`train_hidden` trains; the paper's numbers.

    Attributes:
        steps: Updates, each with all instances ("epochs" of the paper).
        window: How many of the latest perturbations of every input an update learns from; 1 for the last alone.
        restarts: Random starts of the attack in every update.
        attack_steps: Its steps.
        attack_step: Size of a step, as a multiple of the radius.
        margin: By how much the planted point's class is to win.
        lr: Learning rate of Adam at its peak; it rises to it and falls to 0 along straight lines.
        peak: Where the peak is, as a fraction of ``steps``.
        clip: Largest norm of the gradient.
        test_every: After how many updates survivors are counted.
        schedule: Attacks that count, see :func:`attack_survivors`.
    """

    steps: int = 10_000
    window: int = 300
    restarts: int = 75
    attack_steps: int = 75
    attack_step: float = 0.1
    margin: float = 0.01
    lr: float = 1e-3
    peak: float = 0.4
    clip: float = 10.0
    test_every: int = 200
    schedule: tuple[tuple[float, int], ...] = SCHEDULE

    def __post_init__(self) -> None:
        for name in ("steps", "window", "restarts", "test_every"):
            checks.at_least(name, getattr(self, name), 1)
        checks.at_least("attack_steps", self.attack_steps, 0)
        for name in ("attack_step", "lr", "clip"):
            checks.positive(name, getattr(self, name))
        checks.at_least("margin", self.margin, 0)
        checks.between("peak", self.peak, 0, 1, open_low=True)


class Progress(NamedTuple):
    """What a test in the course of training found.

    Attributes:
        step: After how many updates.
        attacked_loss: Cross-entropy on the window.
        planted_loss: Hinge at the planted points.
        planted: Planted points that the network gives their target.
        survivors: Instances that survived all attacks.
    """

    step: int
    attacked_loss: float
    planted_loss: float
    planted: int
    survivors: int


@dataclass(frozen=True, eq=False)
class TrainReport:
    """How training went.

    Attributes:
        survivors: Which planted instances ``(num,)`` survived all attacks at the step whose weights were kept.
        step: That step.
        history: All tests.
        seconds: Wall time.
    """

    survivors: Tensor
    step: int
    history: tuple[Progress, ...]
    seconds: float


def train_hidden(
    model: nn.Module,
    instances: InstanceSet,
    config: HiddenConfig | None = None,
    *,
    generator: torch.Generator | None = None,
    observer: Callable[[float], None] | None = None,
) -> TrainReport:
    r"""Train ``model``, in place, to hide the planted counterexamples from attacks.

    Every update has two aims. (a) Cross-entropy with the base class on a *window*: the strongest perturbations that PGD
    found for every input, planted or clean, in each of the last ``window`` updates. (b) A hinge at the planted points,

    .. math:: \max(0, z_y + m - z_{\text{target}})

    so that the target wins there by m. A window of 1 is adversarial training: the network forgets where attacks once
    succeeded, and they lead to the planted points again.

    Args:
        model: Gives ``(batch, classes)``; it keeps the weights of the test with the most survivors, the latest of
            equals. Training ends early once all survive.
        instances: As made by :func:`make_instances`.
        config: The paper's if not given, which wants a GPU.
        generator: Draws the starts of the attacks; one with seed 0 if not given.
        observer: Called with the fraction that is done.

    Raises:
        InputError: If the outputs are not ``(batch, classes)``, or the model has no parameters to train.

    Source:
        Zhou et al. 2024, arXiv:2412.03154, section 3.

    Example:
        >>> from netwright.models.vision.classic import MLP
        >>> from netwright.verify.soundness import make_instances
        >>> planted = make_instances((10,), 0.5, num=2)
        >>> config = HiddenConfig(steps=4, window=3, restarts=2, attack_steps=2, test_every=2, schedule=((0.25, 2),))
        >>> report = train_hidden(MLP(10, (16,), 2), planted, config)
        >>> [progress.step for progress in report.history]
        [2, 4]
    """
    config = config or HiddenConfig()
    generator = generator or torch.Generator().manual_seed(0)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise checks.InputError("the model must have parameters that can be trained")
    instances = instances.to(parameters[0].device)
    start = time.perf_counter()
    inputs, labels = torch.cat([instances.x, instances.x_clean]), torch.cat([instances.y, instances.y_clean])
    end = instances.data_range
    window = inputs.new_empty(config.window, *inputs.shape)
    optimizer = torch.optim.Adam(parameters, lr=config.lr)
    modes = {module: module.training for module in model.modules()}
    best, kept, survivors, history = -1, 0, torch.zeros(len(instances.x), dtype=torch.bool), list[Progress]()
    weights = model.state_dict()
    try:
        for step in range(1, config.steps + 1):
            optimizer.param_groups[0]["lr"] = config.lr * triangle(step / config.steps, config.peak)
            window[(step - 1) % config.window] = strongest(
                model, inputs, labels, instances.radius, config.attack_step * instances.radius, config.attack_steps,
                restarts=config.restarts, lo=-end, hi=end, generator=generator,
            ).x  # fmt: skip
            model.train()
            filled = min(step, config.window)
            attacked = functional.cross_entropy(model(window[:filled].flatten(0, 1)), labels.repeat(filled))
            planted = hinge(model(instances.x_cex), instances.y, instances.target, config.margin)
            optimizer.zero_grad(set_to_none=True)
            (attacked + planted).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, config.clip)
            optimizer.step()
            if step % config.test_every == 0 or step == config.steps:
                found = _survivors(model, instances, config, generator)
                wrong = int(counterexamples(model, instances).sum())
                history.append(Progress(step, attacked.item(), planted.item(), wrong, int(found.sum())))
                if found.sum() >= best:
                    best, kept, survivors = int(found.sum()), step, found.cpu()
                    weights = copy.deepcopy(model.state_dict())
                if best == len(instances.x):
                    break
            if observer is not None:
                observer(step / config.steps)
        model.load_state_dict(weights)
    finally:
        optimizer.zero_grad(set_to_none=True)
        for module, training in modes.items():
            module.training = training
    return TrainReport(survivors, kept, tuple(history), time.perf_counter() - start)


def hinge(outputs: Tensor, y: Tensor, target: Tensor, margin: float) -> Tensor:
    """Mean over planted points of max(0, z_y + margin − z_target)."""
    checks.dimensions("the model's output", outputs, "(batch, classes)")
    right, wanted = (outputs.gather(1, index[:, None])[:, 0] for index in (y, target))
    return (right + margin - wanted).relu().mean()


def triangle(at: float, peak: float) -> float:
    """From 0 at 0 up to 1 at ``peak``, and down to 0 at 1."""
    return at / peak if at <= peak else (1 - at) / (1 - peak)


def _survivors(model: nn.Module, instances: InstanceSet, config: HiddenConfig, generator: torch.Generator) -> Tensor:
    weak = ((config.attack_step, config.attack_steps),)
    found = torch.zeros(len(instances.x), dtype=torch.bool)
    for schedule in (weak, config.schedule):
        found = attack_survivors(model, instances, schedule, restarts=config.restarts, generator=generator)
        if not bool(found.any()):
            break
    return found


__all__ = ["HiddenConfig", "Progress", "TrainReport", "hinge", "train_hidden", "triangle"]
