"""Features near given ones: does the model collapse a real network's layers further, and respond as predicted?"""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from netwright.analysis.capture import capture
from netwright.analysis.collapse import nc1_trace_ratio
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import Splits, load
from netwright.data.splits import Split
from netwright.models.vision.classic import MLP
from netwright.theory.collapse_perturbation import NearbyFeatureModel
from netwright.training import Budget, Settings, fit

CLAIM = Claim(
    slug="collapse-perturbation",
    title="Perturbation Analysis of Neural Collapse",
    arxiv="2210.16658",
    year=2023,
    room="theory",
    says="Optimal features near given ones vary less within classes; the decay of the features matters most for that.",
    parts=("theory.collapse_perturbation.NearbyFeatureModel", "analysis.collapse.nc1_trace_ratio"),
    checks=(
        Check(
            "variability within classes falls at every layer",
            metric="layers whose NC1 does not fall",
            arm="nearby features",
            exactly=0.0,
        ),
        Check(
            "it never rises along the gradient flow",
            metric="largest rise of NC1 in a step of the flow",
            better="lower",
            arm="gradient flow",
            baseline=1e-9,
        ),
        Check(
            "a decade of feature decay changes NC1 more than one of weight decay",
            metric="change of ln NC1 over a decade",
            arm="feature decay",
            baseline="weight decay",
        ),
        Check(
            "the linear response has an error of second order",
            metric="factor by which half the change divides the error",
            arm="linear response",
            exactly=4.0,
            tolerance=0.2,
        ),
        Check(
            "small deviations shrink by the stated factors",
            metric="relative error of the predicted deviations",
            better="lower",
            arm="linear response",
            baseline=1e-2,
        ),
    ),
    note="Given features are those of the three hidden layers of a ReLU network trained on digits, scaled so that the "
    "class means have a mean square of 1; both decays are 0.05, the pull is 0.1, and the decades lie about 0.05. The "
    "paper trains residual networks on CIFAR-10. The flow is taken without the pull, as in the paper's theorem.",
)

DECAY, PULL = 0.05, 0.1
LAYERS = ("2", "4", "6")
CLASS_SIZE = 100


def run(trial: Trial) -> Iterator[Measurement]:
    """One trained network; its layers are given to the model one by one."""
    data = load("digits", seed=trial.seed)
    train = _balanced(data.train)
    splits = Splits("digits", train, data.val, data.test, data.task, data.input_shape, data.classes)
    trial.seed_everything()
    model = MLP(64, (64, 64, 64), splits.outputs)
    budget = Budget(epochs=trial.pick(smoke=2.0, quick=60.0, full=300.0))
    fit(model, splits, budget, settings=Settings(lr=1e-3), seed=trial.seed, device=trial.device)
    model.eval()
    with capture(model, LAYERS) as recorded, torch.no_grad():
        model(train.inputs.to(next(model.parameters()).device))
    layers = [_scaled(recorded[name].cpu(), train.targets) for name in LAYERS]
    yield from _at_every_layer(trial, layers, train.targets)
    yield from _sweeps(trial, layers[-1], train.targets)
    yield from _responses(trial, layers[-1], train.targets)


def _balanced(split: Split) -> Split:
    """As many samples of every class."""
    chosen = [(split.targets == k).nonzero().flatten()[:CLASS_SIZE] for k in range(10)]
    return split.take(torch.cat(chosen))


def _scaled(features: Tensor, labels: Tensor) -> Tensor:
    """The features, class means with a mean square of 1."""
    features = features.double()
    return features / _means(features, labels).square().sum(1).mean().sqrt()


def _means(features: Tensor, labels: Tensor) -> Tensor:
    return torch.stack([features[labels == k].mean(0) for k in range(10)])


def _at_every_layer(trial: Trial, layers: list[Tensor], labels: Tensor) -> Iterator[Measurement]:
    steps = trial.pick(smoke=50, quick=500, full=2_000)
    risen, rises = 0, []
    for number, given in enumerate(layers, start=1):
        problem = NearbyFeatureModel(given, labels, DECAY, DECAY, PULL)
        before = nc1_trace_ratio(given, labels).item()
        after = nc1_trace_ratio(problem.minimum.features, labels).item()
        risen += not after < before
        yield Measurement("given features", "ln NC1 of a layer", math.log(before), at=number)
        yield Measurement("nearby features", "ln NC1 of a layer", math.log(after), at=number)
        ratios, _ = problem.gradient_flow(step=1e-3, n=steps)
        rises.append(ratios.diff().max().item())
        yield Measurement("gradient flow", "ln NC1 of a layer", ratios[-1].log().item(), at=number)
    yield Measurement("nearby features", "layers whose NC1 does not fall", risen)
    yield Measurement("gradient flow", "largest rise of NC1 in a step of the flow", max(rises))


def _sweeps(trial: Trial, given: Tensor, labels: Tensor) -> Iterator[Measurement]:
    points = trial.pick(smoke=2, quick=7, full=7)
    decades = [DECAY * 10 ** (i / (points - 1) - 0.5) for i in range(points)]
    for arm, pairs in (
        ("weight decay", [(decay, DECAY) for decay in decades]),
        ("feature decay", [(DECAY, decay) for decay in decades]),
    ):
        solutions = [NearbyFeatureModel(given, labels, *pair, PULL).fit() for pair in pairs]
        values = [nc1_trace_ratio(solution.features, labels).log().item() for solution in solutions]
        for decay, value in zip(decades, values, strict=True):
            yield Measurement(arm, "ln NC1 against the decay", value, at=decay)
        yield Measurement(arm, "change of ln NC1 over a decade", abs(values[-1] - values[0]))


def _responses(trial: Trial, given: Tensor, labels: Tensor) -> Iterator[Measurement]:
    make = partial(NearbyFeatureModel, y=labels, lam_w=DECAY, lam_h=DECAY, beta=PULL)
    generator = torch.Generator().manual_seed(trial.seed)
    direction = torch.randn(given.shape, dtype=given.dtype, generator=generator)
    direction *= given.square().mean().sqrt()
    problem = make(given)
    response, start = problem.first_order(direction), problem.fit(tol=1e-13).features

    def error(size: float) -> float:
        moved = make(given + size * direction).fit(tol=1e-13).features
        return float(torch.dist(moved, start + size * response.features))

    factor = error(1e-2) / error(5e-3)
    yield Measurement("linear response", "factor by which half the change divides the error", factor)
    collapsed = _means(given, labels)[labels]
    deviation = 1e-3 * (given - collapsed)
    problem = make(collapsed)
    predicted = problem.first_order(deviation, within_class=True).features
    moved = make(collapsed + deviation).fit(tol=1e-13).features - problem.fit(tol=1e-13).features
    relative = float(torch.dist(moved, predicted) / predicted.square().sum().sqrt())
    yield Measurement("linear response", "relative error of the predicted deviations", relative)
    for number, factor in enumerate(problem.shrinkage().factors.tolist()[:20], start=1):
        yield Measurement("linear response", "factor on deviations, direction by direction", factor, at=number)
