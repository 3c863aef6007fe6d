"""HyperZ·Z·W: does Terminator learn faster than a residual network, is it centred, does the feedback help?"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.models.vision.resnet import Block, ResNet
from netwright.models.vision.terminator import SFNEBlock, Terminator, norm_penalty
from netwright.surgery import eval_mode
from netwright.training import Backprop, Budget, Diverged, Record, Settings, evaluate, fit
from netwright.training.kar import Kar3

CLAIM = Claim(
    slug="hyperzzw",
    title="HyperZ·Z·W Operator Connects Slow-Fast Networks for Full Context Interaction",
    arxiv="2401.17948",
    year=2024,
    room="hypernets",
    says="Kernels as large as the feature map, written by coordinate networks and weighted by the map itself, make a "
    "network without residual connections whose features stay centred and which learns in fewer steps.",
    parts=(
        "hypernets.hyperzzw_conv.HyperZZWConv2d",
        "hypernets.hyperzzw_conv.HyperZZWConv1d",
        "hypernets.hyperzzw_conv.to_hyperzzw",
        "hypernets.hyperzzw.hyperzzw_global",
        "hypernets.hyperzzw.HyperZZWLocal",
        "hypernets.hyperzzw.SlowNetGlobal",
        "hypernets.hyperzzw.SlowNetChannel",
        "hypernets.hyperzzw.SlowNetLocal",
        "hypernets.hyperzzw.HyperChannelInteraction",
        "hypernets.hyperzzw.HyperInteraction",
        "hypernets.hyperzzw.RGU",
        "hypernets.hyperzzw.GroupBatchInstanceStd",
        "hypernets.hyperzzw.slow_neural_loss",
        "models.vision.terminator.Terminator",
        "models.vision.terminator.SFNEBlock",
        "training.kar.Kar2",
        "training.kar.Kar3",
    ),
    checks=(
        Check(
            "learns faster than a residual network with its own recipe",
            metric="mean accuracy in the first 30 % of steps",
            better="higher",
            arm="Terminator",
            baseline="residual network",
        ),
        Check(
            "learns faster than a residual network with the same optimiser",
            metric="mean accuracy in the first 30 % of steps",
            better="higher",
            arm="Terminator",
            baseline="residual network, Kar3",
        ),
        Check(
            "the slow neural loss costs at most 0.02",
            metric="accuracy",
            better="higher",
            arm="Terminator",
            baseline="Terminator without slow loss",
            margin=-0.02,
        ),
        Check(
            "channels have zero mean after standardisation",
            metric="largest mean of a channel",
            arm="Terminator",
            exactly=0.0,
            tolerance=1e-5,
        ),
        Check(
            "the residual network is as large",
            metric="parameters, as a fraction of Terminator's",
            arm="residual network",
            exactly=1.0,
            tolerance=0.05,
        ),
        Check("size for CIFAR-10, as released", metric="parameters", arm="released Terminator", exactly=1336855),
        Check(
            "size for CIFAR-10, with the scalars that the release forgets",
            metric="parameters",
            arm="whole Terminator",
            exactly=1339415,
        ),
    ),
    note="Three blocks (factors 4, 3, 2) on pictures of 16×16 pixels (digits of 8×8 at quick scale) and 120 "
    "updates of 32 pictures; the paper trains five blocks on 32×32 pixels for 100 epochs. The number of "
    "updates was set by what fits into the time. Terminator has the optimiser, rates and penalty of its "
    "released recipe, the residual network (20 layers, as many parameters) those of He et al. 2015, and in an "
    "arm of its own Terminator's; nothing was tuned. Terminator standardises with the statistics of the "
    "pictures that it is evaluated on; so do the residual networks here, since running averages would lag "
    "behind in the first updates. The tolerance on the slow neural loss stands for one standard error.",
)

FACTORS = (4, 3, 2)
BATCH = 32
KAR3 = Settings(lr=1.2e-3, batch_size=BATCH, schedule="cosine", warmup=0.08)
SGD = Settings(
    optimizer="sgd", lr=0.1 * BATCH / 128, weight_decay=1e-4, batch_size=BATCH, schedule="cosine", warmup=0.08
)


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same data, their order, batches, number of updates, schedule and smoothed labels."""
    yield from _sizes()
    data = _pictures(trial)
    size = data.input_shape[-1]

    def terminator() -> Terminator:
        return Terminator(data.input_shape[0], size, data.outputs, FACTORS)

    def residual() -> ResNet:
        channels, classes = data.input_shape[0], data.outputs
        return ResNet([3, 3, 3], [14, 28, 56], in_channels=channels, num_classes=classes, norm_act=_batch_statistics)

    arms: dict[str, tuple[Callable[[], nn.Module], Settings, float]] = {
        "Terminator": (terminator, KAR3, 1.0),
        "Terminator without slow loss": (terminator, KAR3, 0.0),
        "residual network": (residual, SGD, 0.0),
        "residual network, Kar3": (residual, KAR3, 0.0),
    }
    sizes: dict[str, int] = {}
    for arm, (make, settings, slow_weight) in arms.items():
        trial.seed_everything()
        model = make()
        sizes[arm] = count_params(model)
        yield Measurement(arm, "parameters, as a fraction of Terminator's", sizes[arm] / sizes["Terminator"])
        yield from _train(arm, model, data, settings, slow_weight, trial)
        yield Measurement(arm, "accuracy", evaluate(model, data.test, batch_size=256)["accuracy"])
        yield from _means(arm, model, data.test.inputs[:256].to(next(model.parameters()).device))


def _sizes() -> Iterator[Measurement]:
    with torch.device("meta"):
        yield Measurement("released Terminator", "parameters", count_params(Terminator(faithful_release=True)))
        yield Measurement("whole Terminator", "parameters", count_params(Terminator()))


def _batch_statistics(channels: int, act: bool) -> nn.Module:
    """Batch normalisation with the statistics of the batch also in eval mode, as Terminator has it."""
    norm = nn.BatchNorm2d(channels, track_running_stats=False)
    return nn.Sequential(norm, nn.ReLU(inplace=True)) if act else norm


class _WithSlowLoss(nn.Module):
    """Gives the loss function the slow neural loss beside the logits."""

    def __init__(self, model: Terminator) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        logits, loss = self.model(input, return_slow_loss=True)
        return logits, loss


def _train(
    arm: str, model: nn.Module, data: Splits, settings: Settings, slow_weight: float, trial: Trial
) -> Iterator[Measurement]:
    steps = trial.pick(smoke=7, quick=40, full=120)
    own_recipe = settings.optimizer != "sgd"
    optimizer: Optimizer
    if own_recipe:
        optimizer = Kar3(model.parameters(), lr=settings.lr, betas=(0.75, 0.99))
    else:
        optimizer = settings.make_optimizer(model.parameters())
    trained = _WithSlowLoss(model) if slow_weight and isinstance(model, Terminator) else model

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        logits, slow = outputs if isinstance(outputs, tuple) else (outputs, 0.0)
        total: Tensor = functional.cross_entropy(logits, targets, label_smoothing=0.1) + slow_weight * slow
        return total + norm_penalty(model) if own_recipe else total

    rule = Backprop(trained, optimizer, loss=loss, scheduler=settings.make_scheduler(optimizer, steps))
    curve: dict[float, float] = {}

    def observe(record: Record) -> None:
        curve[record["step"]] = record["val_accuracy"]

    interval = max(2, steps // 10)
    budget = Budget(steps=steps)
    diverged = False
    try:
        fit(model, data, budget, rule, settings=settings, seed=trial.seed, evaluate_every=interval, observer=observe)
    except Diverged:
        diverged = True
    for step, accuracy in curve.items():
        yield Measurement(arm, "validation accuracy", accuracy, at=step)
    # an evaluation that a diverged run did not reach counts as a guess
    early = [curve.get(step, 1 / data.outputs) for step in range(interval, int(0.3 * steps) + 1, interval)]
    yield Measurement(arm, "mean accuracy in the first 30 % of steps", sum(early) / len(early))
    yield Measurement(arm, "diverged", float(diverged))


def _means(arm: str, model: nn.Module, inputs: Tensor) -> Iterator[Measurement]:
    """How far outputs of blocks are from zero mean, in their standard deviations, and channels right after G-IBS."""
    drifts: list[float] = []
    largest: list[float] = []

    def watch_block(module: nn.Module, given: object, output: Any) -> None:  # noqa: ARG001
        maps = output[0] if isinstance(output, tuple) else output
        drifts.append((maps.mean().abs() / maps.std()).item())

    def watch_standardisation(module: nn.Module, given: object, output: Tensor) -> None:  # noqa: ARG001
        largest.append(output.double().mean((0, 2, 3)).abs().max().item())

    handles = []
    for block in model.modules():
        if isinstance(block, SFNEBlock | Block):
            handles.append(block.register_forward_hook(watch_block))
        if isinstance(block, SFNEBlock):
            handles.append(block.standardise.register_forward_hook(watch_standardisation))
    with eval_mode(model), torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    for depth, drift in enumerate(drifts, start=1):
        yield Measurement(arm, "mean of a block's output, in standard deviations", drift, at=depth)
    if largest:
        yield Measurement(arm, "largest mean of a channel", max(largest))


def _pictures(trial: Trial) -> Splits:
    """Digits in three equal channels; at full scale CIFAR-10, 16 pixels wide."""
    if trial.scale == "full":
        data = load("cifar10-12k", train=1_280, seed=trial.seed)
        data = data.map(lambda pictures: functional.avg_pool2d(pictures, 2))
    else:
        data = load("digits", seed=trial.seed).map(lambda pictures: pictures.expand(-1, 3, -1, -1).contiguous())
    # mixed, since the statistics of a batch of one class are not those of training
    generator = torch.Generator().manual_seed(trial.seed)
    seen, tested = trial.pick(smoke=(64, 64), quick=(359, 359), full=(400, 2_000))
    return replace(
        data,
        val=data.val.take(torch.randperm(len(data.val), generator=generator)[:seen]),
        test=data.test.take(torch.randperm(len(data.test), generator=generator)[:tested]),
    )
