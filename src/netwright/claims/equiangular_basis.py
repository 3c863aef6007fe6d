"""Equiangular basis vectors: are fixed, nearly orthogonal class vectors as good a classifier as a learned layer?"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Split, Splits, load
from netwright.layers.equiangular import EBVHead, generate_ebv, welch_bound
from netwright.models.vision.resnet import ResNet
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="equiangular-basis",
    title="Equiangular Basis Vectors",
    arxiv="2303.11637",
    year=2023,
    room="layers",
    says="Fixed unit vectors at nearly right angles, one a class, classify as well as a learned layer.",
    parts=(
        "layers.equiangular.EBVHead",
        "layers.equiangular.generate_ebv",
        "layers.equiangular.simplex_etf",
        "layers.equiangular.replace_classifier",
        "layers.equiangular.welch_bound",
    ),
    checks=(
        Check(
            "10 dimensions lose at most 0.01 with ten classes",
            metric="accuracy, 10 classes",
            better="higher",
            arm="EBV d=10",
            baseline="softmax",
            margin=-0.01,
        ),
        Check(
            "64 dimensions lose at most 0.01 with ten classes",
            metric="accuracy, 10 classes",
            better="higher",
            arm="EBV d=64",
            baseline="softmax",
            margin=-0.01,
        ),
        Check(
            "32 dimensions lose at most 0.01 with a hundred classes",
            metric="accuracy, 100 classes",
            better="higher",
            arm="EBV d=32",
            baseline="softmax",
            margin=-0.01,
        ),
        Check(
            "fewer trainable parameters with a hundred classes",
            metric="trainable parameters, 100 classes",
            better="lower",
            arm="EBV d=32",
            baseline="softmax",
        ),
        Check(
            "64 vectors in 16 dimensions are found within 5,000 steps",
            metric="whether all pairs are within 0.0001 of the threshold",
            arm="generator",
            exactly=1,
        ),
        Check(
            "their largest cosine is below 1.6 times the Welch bound",
            metric="largest cosine, as a multiple of the Welch bound",
            better="lower",
            arm="generator",
            baseline=1.6,
        ),
    ),
    note="A small residual network and a few epochs; the hundred classes are pairs of digits side by side. The "
    "paper trains ResNet-50 on ImageNet with 1,000 classes for 105 epochs. All heads are trained with plain "
    "cross-entropy and the same optimiser. A first trial (seed 99, quick scale) with SGD at rate 0.1 for 5 "
    "epochs left the fixed heads far behind (0.65 and 0.10); optimiser, rate and length were then chosen as "
    "the code says, before the runs that count. It is refuted by the hundred classes: the fixed heads are "
    "still far behind when the few updates end. Our reading: classes that are pairs of digits share structure "
    "(a softmax layer can add up a vector for the left and one for the right digit), which vectors at random "
    "places deny; the network has to learn a hundred unrelated directions, which takes more updates.",
)

# of SGD and AdamW at three rates each the best, or near it, for every arm: validation parts, quick scale, seed 99
SETTINGS = Settings(optimizer="adamw", lr=0.01, weight_decay=5e-4, batch_size=64, schedule="cosine", warmup=0.05)
WIDTHS = (16, 32, 64)


def run(trial: Trial) -> Iterator[Measurement]:
    """All heads: the same network below, data order, budget and optimiser."""
    yield from _generation(trial)
    budget = Budget(epochs=trial.pick(smoke=0.3, quick=12.0, full=5.0))
    yield from _heads(trial, "10 classes", _pictures(trial), budget, dims=(10, 64))
    yield from _heads(trial, "100 classes", _pairs(trial), budget, dims=(32,))


def _heads(trial: Trial, name: str, data: Splits, budget: Budget, dims: tuple[int, ...]) -> Iterator[Measurement]:
    heads: dict[str, Callable[[int, int], nn.Module]] = {"softmax": nn.Linear}
    for dim in dims:
        basis = generate_ebv(data.outputs, dim, generator=torch.Generator().manual_seed(trial.seed)).vectors
        heads[f"EBV d={dim}"] = partial(_ebv_head, basis=basis)
    for arm, head in heads.items():
        trial.seed_everything()
        channels = data.input_shape[0]
        model = ResNet([1, 1, 1], WIDTHS, in_channels=channels, num_classes=data.outputs, classifier=head)
        fit(model, data, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
        yield Measurement(arm, f"accuracy, {name}", evaluate(model, data.test)["accuracy"])
        yield Measurement(arm, f"trainable parameters, {name}", count_params(model))


def _ebv_head(features: int, num_classes: int, basis: Tensor) -> nn.Module:  # noqa: ARG001
    return EBVHead(features, basis)


def _generation(trial: Trial) -> Iterator[Measurement]:
    """Size 64 in 16 dimensions, at 1.5 times the Welch bound."""
    basis = generate_ebv(64, 16, max_steps=5_000, generator=torch.Generator().manual_seed(trial.seed))
    yield Measurement("generator", "whether all pairs are within 0.0001 of the threshold", float(basis.converged))
    ratio = basis.largest / welch_bound(64, 16)
    yield Measurement("generator", "largest cosine, as a multiple of the Welch bound", ratio)
    yield Measurement("generator", "steps", basis.steps)


def _pictures(trial: Trial) -> Splits:
    """Digits; at full scale 5,000 CIFAR-10 pictures, 16 pixels wide."""
    if trial.scale == "full":
        data = load("cifar10-12k", train=5_000, seed=trial.seed)
        return data.map(partial(functional.avg_pool2d, kernel_size=2))
    return load("digits", seed=trial.seed)


def _pairs(trial: Trial) -> Splits:
    """Two digits side by side, of the same part of the data; the class is the number from 00 to 99 that they show."""
    if trial.scale == "full":
        source = load("mnist-10k", seed=trial.seed).map(partial(functional.avg_pool2d, kernel_size=2))
    else:
        source = load("digits", seed=trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)

    def pair(part: Split, number: int) -> Split:
        left, right = (part.take(torch.randint(len(part), (number,), generator=generator)) for _ in range(2))
        return Split(torch.cat([left.inputs, right.inputs], dim=3), 10 * left.targets + right.targets)

    train, rest = trial.pick(smoke=(200, 100), quick=(2_000, 1_000), full=(5_000, 2_000))
    train_part, val, test = pair(source.train, train), pair(source.val, rest), pair(source.test, rest)
    classes = tuple(f"{number:02}" for number in range(100))
    shape = tuple(train_part.inputs.shape[1:])
    return replace(
        source, name="pairs of digits", train=train_part, val=val, test=test, classes=classes, input_shape=shape
    )
