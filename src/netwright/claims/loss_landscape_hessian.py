"""Hessian criteria: do they tell how much accuracy a shift of the data costs, and are Hessian axes the curved ones?"""

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis.curvature import HessianOperator, criteria
from netwright.analysis.landscape import Direction, Directions, plane
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import load
from netwright.data.splits import Split, Splits
from netwright.models.vision.classic import MLP, lenet_5
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="loss-landscape-hessian",
    title="Investigating generalization capabilities of neural networks by means of loss landscapes and Hessian "
    "analysis",
    arxiv="2412.10146",
    year=2024,
    room="analysis",
    says="When data shift, the Hessian criterion K_H0.5 changes with the accuracy; Hessian axes are the curved ones.",
    parts=("analysis.curvature.HessianOperator", "analysis.curvature.criteria", "analysis.landscape.plane"),
    checks=(
        Check(
            "K_H0.5 rises where accuracy is lost",
            metric="rank correlation of the change with the drop in accuracy",
            arm="K_H0.5",
            baseline=0.5,
        ),
        Check(
            "it tells more than the trace",
            metric="rank correlation of the change with the drop in accuracy",
            arm="K_H0.5",
            baseline="trace",
        ),
        Check(
            "Hessian axes are more than three times as curved as random ones",
            metric="curvature of the plane, relative to random axes",
            arm="Hessian axes",
            baseline=3.0,
        ),
    ),
    note="LeNet-5 on MNIST (4,000 training pictures) stands in for the paper's networks pre-trained on ImageNet; the "
    "quick scale has an MLP on digits. Three networks (well trained, over-fitted to few samples, trained with 30 % of "
    "the labels wrong) and five shifts of the test pictures (rotations by 15, 30 and 60 degrees, noise, turned "
    "upside down) make 15 pairs; a change is that from the training set to the shifted set. The spectrum is that of "
    "one Lanczos run on 256 pictures, and the trace is estimated from the same run. All axes have length 1.",
)

ANGLES = (0, 15, 30, 60)


def run(trial: Trial) -> Iterator[Measurement]:
    """All networks of a seed see the same shifts, and all spectra come from as many pictures and steps."""
    splits = load(trial.pick(smoke="digits", quick="digits", full="mnist-10k"), seed=trial.seed)
    changes: dict[str, list[float]] = {"K_H0.5": [], "r_e": [], "trace": []}
    drops: list[float] = []
    for name, data, epochs in cases(trial, splits):
        trial.seed_everything()
        model = network(splits)
        settings = Settings(batch_size=64)
        fit(model, data, Budget(epochs=epochs), settings=settings, seed=trial.seed, device=trial.device)
        trained, accuracy = measures(trial, model, data.train), evaluate(model, data.train)["accuracy"]
        yield Measurement(name, "accuracy on its training set", accuracy)
        for shift, split in shifted(trial, splits.test).items():
            now, there = measures(trial, model, split), evaluate(model, split)["accuracy"]
            if shift.isdigit():
                yield Measurement(name, "accuracy on pictures turned by degrees", there, at=float(shift))
                yield Measurement(name, "K_H0.5 on pictures turned by degrees", now["K_H0.5"], at=float(shift))
            if shift != "0":
                drops.append(accuracy - there)
                for measure, values in changes.items():
                    values.append(now[measure] - trained[measure])
        if name == "well trained":
            yield from curvatures(trial, model, data.train)
    for measure, values in changes.items():
        correlation = float(spearmanr(values, drops).statistic)
        metric = "rank correlation of the change with the drop in accuracy"
        yield Measurement(measure, metric, correlation if math.isfinite(correlation) else 0.0)


def cases(trial: Trial, splits: Splits) -> Iterator[tuple[str, Splits, float]]:
    """The three ways to train, with their epochs."""
    train, generator = splits.train, torch.Generator().manual_seed(trial.seed)
    if trial.scale == "full":
        train = train.take(torch.randperm(len(train), generator=generator)[:4_000])
    few = train.take(torch.randperm(len(train), generator=generator)[: trial.pick(smoke=100, quick=200, full=500)])
    wrong = torch.rand(len(train), generator=generator) < 0.3
    other = torch.randint(1, splits.outputs, (len(train),), generator=generator)
    noisy = replace(train, targets=torch.where(wrong, (train.targets + other) % splits.outputs, train.targets))
    long = trial.pick(smoke=4.0, quick=200.0, full=100.0)
    yield "well trained", replace(splits, train=train), trial.pick(smoke=2.0, quick=30.0, full=6.0)
    yield "over-fitted", replace(splits, train=few), long
    yield "wrong labels", replace(splits, train=noisy), trial.pick(smoke=2.0, quick=100.0, full=15.0)


def network(splits: Splits) -> nn.Module:
    """LeNet-5 for pictures of 28×28, an MLP for those of 8×8."""
    if splits.input_shape == (1, 28, 28):
        return lenet_5(num_classes=splits.outputs)
    return MLP(math.prod(splits.input_shape), (64, 32), splits.outputs)


def shifted(trial: Trial, test: Split) -> dict[str, Split]:
    """The test part, as it is (``"0"``) and shifted in five ways."""
    noise = torch.randn(test.inputs.shape, generator=torch.Generator().manual_seed(trial.seed))
    pictures = {str(angle): turned(test.inputs, angle) for angle in ANGLES}
    pictures |= {"noise": test.inputs + 0.5 * noise, "upside down": test.inputs.flip(-2)}
    return {name: replace(test, inputs=inputs) for name, inputs in pictures.items()}


def turned(pictures: Tensor, degrees: float) -> Tensor:
    """Pictures turned about their centre; what comes in from outside is background."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(pictures), 2, 3)
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    background = pictures.min()
    moved = functional.grid_sample(pictures - background, grid, padding_mode="zeros", align_corners=False)
    return moved + background


def operator(trial: Trial, model: nn.Module, split: Split) -> HessianOperator:
    """The Hessian of the loss on some of the samples, drawn at random."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(trial.seed))
    part = split.take(order[: trial.pick(smoke=64, quick=256, full=256)])
    return HessianOperator(model, functional.cross_entropy, (part.inputs, part.targets))


def measures(trial: Trial, model: nn.Module, split: Split) -> dict[str, float]:
    """The criteria, and the estimate of the trace, from one spectrum."""
    hessian = operator(trial, model, split)
    spectrum = hessian.spectral_density(
        trial.pick(smoke=10, quick=80, full=50), generator=torch.Generator().manual_seed(trial.seed)
    )
    found = criteria(*spectrum, n=0.5)
    trace = hessian.size * float((spectrum.eigenvalues * spectrum.weights).sum(1).mean())
    return {"K_H0.5": found.k_hn, "r_e": found.r_e, "trace": trace}


def curvatures(trial: Trial, model: nn.Module, split: Split) -> Iterator[Measurement]:
    """Second differences of planes along Hessian and random axes, over the mean of the random ones."""
    hessian = operator(trial, model, split)
    generator = torch.Generator().manual_seed(trial.seed)
    random = [curvature(trial, model, split, Directions.random(model, generator=generator)) for _ in range(4)]
    along = curvature(trial, model, split, Directions.hessian(hessian, generator=generator))
    unit = sum(random) / len(random)
    yield Measurement("Hessian axes", "curvature of the plane, relative to random axes", along / unit)
    yield Measurement("random axes", "curvature of the plane, relative to random axes", max(random) / unit)
    yield Measurement("Hessian axes", "curvature of the plane", along)
    yield Measurement("random axes", "curvature of the plane", unit)


def curvature(trial: Trial, model: nn.Module, split: Split, directions: Directions) -> float:
    """Mean over both axes, of length 1, of the second difference |f(h) − 2 f(0) + f(−h)| / h², with h = 0.1."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(trial.seed))
    part = split.take(order[: trial.pick(smoke=64, quick=256, full=256)])
    axes = Directions(unit_length(directions.first), unit_length(directions.second))
    h = 0.1
    loss = plane(model, functional.cross_entropy, (part.inputs, part.targets), axes, steps=4, distance=4 * h).loss
    first, second = loss[1, 2] + loss[3, 2] - 2 * loss[2, 2], loss[2, 1] + loss[2, 3] - 2 * loss[2, 2]
    return float(first.abs() + second.abs()) / (2 * h**2)


def unit_length(direction: Direction) -> dict[str, Tensor]:
    """The direction with all its entries together of length 1."""
    length = math.sqrt(sum(float(tensor.double().square().sum()) for tensor in direction.values()))
    return {name: tensor / length for name, tensor in direction.items()}
