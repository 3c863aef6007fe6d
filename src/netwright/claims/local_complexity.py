"""Local complexity: does a network that goes on learning move its folds off its data, and grow robust by that?"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis.local_complexity import ComplexityTracker, log_spaced, random_probes
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import Splits, load
from netwright.data.splits import Batch
from netwright.models.vision.classic import MLP
from netwright.training import Backprop, Budget, Rule, Settings, evaluate, fit
from netwright.verify.pgd import adversarial_accuracy

CLAIM = Claim(
    slug="local-complexity",
    title="Deep Networks Always Grok and Here is Why",
    arxiv="2402.15555",
    year=2024,
    room="analysis",
    says="The folds of a network near its data fall, rise and fall again, and it grows robust long after it fitted.",
    parts=(
        "analysis.local_complexity.local_complexity",
        "analysis.local_complexity.ComplexityTracker",
        "analysis.local_complexity.count_regions_on_segment",
        "models.vision.preact_resnet.preact_resnet18",
        "verify.pgd.pgd",
        "verify.pgd.adversarial_accuracy",
    ),
    checks=(
        Check(
            "a first descent",
            metric="local complexity at its lowest before the peak, as a fraction of the start",
            better="lower",
            arm="training samples",
            baseline=0.95,
        ),
        Check(
            "an ascent",
            metric="local complexity at its peak, as a multiple of the lowest before",
            arm="training samples",
            baseline=1.05,
        ),
        Check(
            "a second descent",
            metric="local complexity at the end, as a fraction of its peak",
            better="lower",
            arm="training samples",
            baseline=0.7,
        ),
        Check(
            "robustness comes after fitting",
            metric="accuracy under attack",
            arm="at the end",
            baseline="when all training samples are right",
        ),
        Check(
            "at the end there are fewer folds near the data than elsewhere",
            metric="local complexity at the end",
            better="lower",
            arm="training samples",
            baseline="random inputs",
        ),
    ),
    note="Digits, 1,000 of them to learn from, instead of MNIST; the paper's perceptron (four linear layers, width "
    "200), squared error, AdamW with a decay of 0.01 and batches of 200, with eight times the usual first weights, "
    "from which networks are known to grok. It learns for 30,000 updates instead of a million, in single precision; "
    "for 4,000 at the quick scale, too few for the late phase. Neighbourhoods have 50 vertices and a radius of 0.05. "
    "The peak is the largest value after update 100; the first and the second descent lie before and after it. Logits "
    "are not counted, since their signs fold nothing, as they are in the authors' code. The attack is the paper's "
    "(50/255, 10 steps of 4/255, in normalised units) on the test part. Where not all training samples are ever right, "
    "the first time that most of them are stands in. At the full scale all training samples are right after 8,000 to "
    "23,000 updates, but only some 23 % of the test part at the end: the networks have learned by heart and have not "
    "begun to grok. The second descent has begun (9 % below the peak); we think that the phase in which folds leave "
    "the data and robustness comes lies far beyond what ten minutes pay for.",
)

EPS, ALPHA = 50 / 255, 4 / 255
RADIUS, VERTICES = 0.05, 50
WEIGHTS = 8.0  # multiple of torch's first weights and biases
AFTER = 100  # updates before which no peak counts


def run(trial: Trial) -> Iterator[Measurement]:
    """One network; its local complexity near three sets of points, and its accuracies, as it learns."""
    data = load("digits", train=1_000, seed=trial.seed)
    updates = trial.pick(smoke=150, quick=4_000, full=30_000)
    probes = trial.pick(smoke=32, quick=128, full=128)
    trial.seed_everything()
    model = MLP(64, (200, 200, 200), 10)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(WEIGHTS)
    watch = Watch(trial, model, data, updates, probes)
    settings = Settings(optimizer="adamw", lr=1e-3, weight_decay=0.01, batch_size=200)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    rule = Watched(Backprop(model, optimizer, loss=squared_error), watch)
    fit(model, data, Budget(steps=updates), rule, settings=settings, seed=trial.seed, evaluate_every=updates)
    yield from _curves(watch)
    yield from _phases(watch)
    yield Measurement("at the end", "accuracy", watch.test[-1])


def _curves(watch: "Watch") -> Iterator[Measurement]:
    for name, values in watch.complexity.means.items():
        for step, value in zip(watch.steps, values, strict=True):
            yield Measurement(name, "local complexity against log10 of 1 + updates", value, at=math.log10(1 + step))
    for name, values in {"training part": watch.train, "test part": watch.test, "attacked": watch.attacked}.items():
        for step, value in zip(watch.steps, values, strict=True):
            yield Measurement(name, "accuracy against log10 of 1 + updates", value, at=math.log10(1 + step))


def _phases(watch: "Watch") -> Iterator[Measurement]:
    for name, values in watch.complexity.means.items():
        late = [i for i, step in enumerate(watch.steps) if step >= AFTER]
        peak = max(late, key=values.__getitem__)
        lowest = max(min(values[: peak + 1]), 1e-6)  # a network that is linear near its data has none
        for metric, value in {
            "local complexity at its lowest before the peak, as a fraction of the start": lowest / max(values[0], 1e-6),
            "local complexity at its peak, as a multiple of the lowest before": max(values[peak], 1e-6) / lowest,
            "local complexity at the end, as a fraction of its peak": values[-1] / max(values[peak], 1e-6),
            "local complexity at the end": values[-1],
            "updates until the peak": watch.steps[peak],
        }.items():
            yield Measurement(name, metric, value)
    fitted = watch.train.index(max(watch.train))
    yield Measurement("when all training samples are right", "accuracy under attack", watch.attacked[fitted])
    yield Measurement("when all training samples are right", "updates", watch.steps[fitted])
    yield Measurement("when all training samples are right", "accuracy on the training part", watch.train[fitted])
    yield Measurement("when all training samples are right", "accuracy", watch.test[fitted])
    yield Measurement("at the end", "accuracy under attack", watch.attacked[-1])


class Watch:
    """What is measured at log-spaced updates."""

    def __init__(self, trial: Trial, model: nn.Module, data: Splits, updates: int, probes: int) -> None:
        self.model, self.data = model, data
        number = trial.pick(smoke=8, quick=30, full=40)
        self.attacked_samples = trial.pick(smoke=32, quick=359, full=359)
        self.due = set(log_spaced(updates, number))
        near = data.train.inputs[:probes], data.test.inputs[:probes]
        generator = torch.Generator().manual_seed(trial.seed)
        self.complexity = ComplexityTracker(
            model,
            {
                "training samples": near[0],
                "test samples": near[1],
                "random inputs": random_probes(near[0], generator=generator),
            },
            radius=RADIUS,
            vertices=VERTICES,
            generator=generator,
        )
        everything = torch.cat([data.train.inputs, data.test.inputs])
        self.lo, self.hi = (bound.item() for bound in everything.aminmax())
        self.train: list[float] = []
        self.test: list[float] = []
        self.attacked: list[float] = []

    @property
    def steps(self) -> list[int]:
        return self.complexity.steps

    def __call__(self, step: int) -> None:
        if step not in self.due:
            return
        self.complexity(step)
        self.train.append(evaluate(self.model, self.data.train)["accuracy"])
        self.test.append(evaluate(self.model, self.data.test)["accuracy"])
        x, y = (part[: self.attacked_samples] for part in (self.data.test.inputs, self.data.test.targets))
        self.attacked.append(adversarial_accuracy(self.model, x, y, EPS, ALPHA, lo=self.lo, hi=self.hi))


class Watched:
    """A rule that shows how far it is, before the first update and after every one."""

    def __init__(self, rule: Rule, watch: Watch) -> None:
        self.rule, self.watch, self.updates = rule, watch, 0
        watch(0)

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        record = self.rule.step(batch)
        self.updates += 1
        self.watch(self.updates)
        return record


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error from the one-hot class."""
    return functional.mse_loss(outputs, functional.one_hot(targets, outputs.shape[1]).to(outputs))
