"""Quadratic networks: does one neuron separate circles, do deep ones collapse, and does ReLinear train them safely?"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import Split, Splits, Task, load
from netwright.layers.quadratic import QuadraticLinear, gaussian_init_, quadratic_layers, quadraticize
from netwright.models.vision.classic import MLP
from netwright.models.vision.resnet import resnet_cifar
from netwright.training import Backprop, Budget, Diverged, Settings, evaluate, fit
from netwright.training.relinear import relinear_param_groups

CLAIM = Claim(
    slug="quadratic-nets",
    title="On Expressivity and Trainability of Quadratic Networks",
    arxiv="2110.06081",
    year=2021,
    room="layers",
    says="Quadratic neurons do more than conventional ones; trained with ReLinear, networks of them do not collapse.",
    parts=(
        "layers.quadratic.QuadraticLinear",
        "layers.quadratic.QuadraticConv2d",
        "layers.quadratic.quadraticize",
        "training.relinear.relinear_param_groups",
        "training.relinear.ReLinearShrink",
        "training.relinear.ReZeroWrap",
        "training.relinear.CollapseMonitor",
        "models.vision.qresnet.qresnet",
    ),
    checks=(
        Check(
            "one quadratic neuron separates circles",
            metric="accuracy on two circles",
            better="higher",
            arm="quadratic neuron",
            baseline=0.99,
        ),
        Check(
            "one conventional neuron does not",
            metric="accuracy on two circles",
            better="lower",
            arm="conventional neuron",
            baseline=0.75,
        ),
        Check(
            "without ReLinear deep networks collapse",
            metric="MLP collapsed",
            better="higher",
            arm="Gaussian start",
            baseline=0.4,
        ),
        Check("with ReLinear no MLP diverges", metric="MLP diverged", arm="ReLinear", exactly=0.0),
        Check("with ReLinear no ResNet diverges", metric="ResNet diverged", arm="ReLinear", exactly=0.0),
        Check(
            "ReLinear is as good as a conventional MLP",
            metric="MLP accuracy",
            better="higher",
            arm="ReLinear",
            baseline="conventional",
            margin=-0.01,
        ),
        Check(
            "ReLinear is as good as a conventional ResNet",
            metric="ResNet accuracy",
            better="higher",
            arm="ReLinear",
            baseline="conventional",
            margin=-0.01,
        ),
        Check(
            "with γ = 0 the weights stay those of the conventional network",
            metric="largest difference of the weights from the conventional network's",
            arm="γ = 0",
            exactly=0.0,
        ),
    ),
    note="A network counts as collapsed when its loss becomes infinite or its accuracy stays below chance + 0.2; the "
    "paper speaks of a risk, which the check reads as more than 2 of 5 runs. The margin of 0.01 is about one standard "
    "error of an accuracy on the test part. The residual network has batch normalisation, which keeps also a Gaussian "
    "start from exploding.",
)

MLP_SETTINGS = Settings(optimizer="sgd", lr=0.05, momentum=0.9, batch_size=64)
RESNET_SETTINGS = Settings(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, batch_size=64, schedule="cosine")
GAMMA = 1e-5  # the authors' rate of the quadratic terms
GAMMAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same first linear weights, data order, budget and optimiser."""
    yield from _circles(trial)
    yield from _mlp(trial)
    yield from _resnet(trial)


class _TwoClasses(nn.Module):
    """Logits (0, z) from one output z: softmax of these is the sigmoid of z."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.pad(input, (1, 0))


def _circles(trial: Trial) -> Iterator[Measurement]:
    data = _two_circles(trial)
    neurons: dict[str, Callable[[int, int], nn.Module]] = {
        "conventional neuron": nn.Linear,
        "quadratic neuron": QuadraticLinear,
    }
    settings = Settings(optimizer="adam", lr=0.05, batch_size=50)
    budget = Budget(epochs=trial.pick(smoke=15, quick=30, full=30))
    for arm, neuron in neurons.items():
        trial.seed_everything()
        model = nn.Sequential(neuron(2, 1), _TwoClasses())
        fit(model, data, budget, settings=settings, seed=trial.seed, device=trial.device)
        yield Measurement(arm, "accuracy on two circles", evaluate(model, data.test)["accuracy"])


def _two_circles(trial: Trial) -> Splits:
    """Points at radius 0.5 (class 0) and 1 (class 1), with Gaussian noise of 0.05."""
    generator = torch.Generator().manual_seed(trial.seed)

    def draw(number: int) -> Split:
        classes = torch.arange(number) % 2
        angle = 2 * torch.pi * torch.rand(number, generator=generator)
        points = torch.stack([angle.cos(), angle.sin()], 1) * (0.5 + 0.5 * classes[:, None])
        return Split(points + 0.05 * torch.randn(number, 2, generator=generator), classes)

    task, classes = Task.TABULAR_CLASSIFICATION, ("inner", "outer")
    return Splits("two circles", draw(500), draw(100), draw(500), task, (2,), classes)


def _mlp(trial: Trial) -> Iterator[Measurement]:
    """Eight layers of 64 on digits, without normalisation; and the sweep of γ."""
    data = load("digits", seed=trial.seed)
    budget = Budget(epochs=trial.pick(smoke=3.0, quick=20.0, full=40.0))
    trial.seed_everything()
    conventional = MLP(64, [64] * 7, 10)
    for layer in _linears(conventional):
        nn.init.kaiming_normal_(layer.weight)
    train = partial(_train, data=data, budget=budget, settings=MLP_SETTINGS, trial=trial)

    still = quadraticize(conventional)
    random = gaussian_init_(quadraticize(conventional))
    yield from _outcome("ReLinear", "MLP", *train(quadraticize(conventional), gamma=GAMMA))
    yield from _outcome("Gaussian start", "MLP", *train(random, gamma=MLP_SETTINGS.lr))
    for gamma in trial.pick(smoke=GAMMAS[-1:], quick=GAMMAS, full=GAMMAS):
        accuracy, diverged = train(quadraticize(conventional), gamma=gamma)
        yield Measurement("ReLinear", "MLP accuracy against γ", accuracy, at=gamma)
        yield Measurement("ReLinear", "MLP diverged against γ", float(diverged), at=gamma)

    accuracy, _ = train(still, gamma=0.0)
    yield Measurement("γ = 0", "MLP accuracy", accuracy)
    yield from _outcome("conventional", "MLP", *train(conventional))
    pairs = zip(quadratic_layers(still).values(), _linears(conventional), strict=True)
    difference = max((ours.get_parameter("weight_r") - theirs.weight).abs().max().item() for ours, theirs in pairs)
    yield Measurement("γ = 0", "largest difference of the weights from the conventional network's", difference)


def _resnet(trial: Trial) -> Iterator[Measurement]:
    """The residual network of 8 layers on digits; at full scale of 20 layers on CIFAR-10 pictures 16 pixels wide."""
    if trial.scale == "full":
        data = load("cifar10-12k", train=2_000, seed=trial.seed).map(partial(functional.avg_pool2d, kernel_size=2))
    else:
        data = load("digits", seed=trial.seed)
    budget = Budget(epochs=trial.pick(smoke=1.0, quick=4.0, full=5.0))
    trial.seed_everything()
    depth = trial.pick(smoke=8, quick=8, full=20)
    conventional = resnet_cifar(depth, in_channels=data.input_shape[0], num_classes=data.outputs)
    in_blocks = partial(quadraticize, where=lambda name, _: name.startswith("stages"))
    train = partial(_train, data=data, budget=budget, settings=RESNET_SETTINGS, trial=trial)
    yield from _outcome("ReLinear", "ResNet", *train(in_blocks(conventional), gamma=GAMMA))
    random = gaussian_init_(in_blocks(conventional))
    yield from _outcome("Gaussian start", "ResNet", *train(random, gamma=RESNET_SETTINGS.lr))
    yield from _outcome("conventional", "ResNet", *train(conventional))


def _train(
    model: nn.Module,
    *,
    data: Splits,
    budget: Budget,
    settings: Settings,
    trial: Trial,
    gamma: float | None = None,
) -> tuple[float, bool]:
    """Test accuracy after training, and whether the loss became infinite; then the accuracy is that of a guess."""
    optimizer = settings.make_optimizer(
        model.parameters() if gamma is None else relinear_param_groups(model, settings.lr, gamma, gamma)
    )
    steps = budget.max_steps(-(-len(data.train) // settings.batch_size))
    trial.seed_everything()
    rule = Backprop(model, optimizer, scheduler=settings.make_scheduler(optimizer, steps))
    try:
        fit(model, data, budget, rule, settings=settings, seed=trial.seed, device=trial.device)
    except Diverged:
        return 1 / data.outputs, True
    return evaluate(model, data.test)["accuracy"], False


def _outcome(arm: str, network: str, accuracy: float, diverged: bool) -> Iterator[Measurement]:
    yield Measurement(arm, f"{network} accuracy", accuracy)
    yield Measurement(arm, f"{network} diverged", float(diverged))
    yield Measurement(arm, f"{network} collapsed", float(diverged or accuracy < 0.1 + 0.2))


def _linears(model: nn.Module) -> list[nn.Linear]:
    return [module for module in model.modules() if isinstance(module, nn.Linear)]
