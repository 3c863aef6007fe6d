"""Relative representations: do encoders and decoders of networks that never met work together?"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor, nn

from netwright.analysis.stitching import latent_similarity, select_anchors, stitch
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import Split, Splits, Task, load
from netwright.layers.relative import RelativeNetwork, RelativeProjection, relative_projection
from netwright.models.generative.relative_ae import ConvAutoencoder, RelativeAE, conv_encoder
from netwright.training import Budget, Settings, evaluate, fit, predict

CLAIM = Claim(
    slug="relative-representations",
    title="Relative representations enable zero-shot latent space communication",
    arxiv="2209.15430",
    year=2022,
    room="layers",
    says="Networks that see latents relative to shared anchors can exchange encoders and decoders without training.",
    parts=(
        "layers.relative.RelativeProjection",
        "layers.relative.RelativeNetwork",
        "layers.relative.to_relative",
        "analysis.stitching.select_anchors",
        "analysis.stitching.stitch",
        "analysis.stitching.latent_similarity",
        "models.generative.relative_ae.RelativeAE",
    ),
    checks=(
        Check(
            "stitched autoencoders: less than half of the error",
            metric="MSE of stitched autoencoders, as a fraction of the absolute ones'",
            better="lower",
            arm="relative",
            baseline=0.5,
        ),
        Check(
            "stitched classifiers lose at most 3 points",
            metric="accuracy",
            arm="relative, stitched",
            baseline="relative, own",
            margin=-0.03,
        ),
        Check(
            "absolute classifiers cannot be stitched",
            metric="accuracy",
            better="lower",
            arm="absolute, stitched",
            baseline=0.35,
        ),
        Check(
            "relative latents cost at most 2 points",
            metric="accuracy",
            arm="relative, own",
            baseline="absolute, own",
            margin=-0.02,
        ),
        Check(
            "a sample has the same neighbours from either space",
            metric="Jaccard of 10 neighbours across autoencoders",
            arm="relative",
            baseline="absolute",
            margin=0.3,
        ),
        Check(
            "a sample finds itself in the other space",
            metric="mean reciprocal rank across autoencoders",
            arm="relative",
            baseline="absolute",
            margin=0.3,
        ),
    ),
    note="Digits, at full scale 3,000 MNIST pictures of 14×14, and small convolutional networks stand in for "
    "CIFAR-10 and ResNets; 300 anchors instead of 500, encoded in one batch with the pictures. The absolute latents "
    "are 64 wide in all networks; the relative ones 64 in the first and 96 in the second. Each number is the mean over "
    "both networks, or over both ways to stitch them. The curves compare the latents of the absolute autoencoders "
    "after the fact, by number of anchors.",
)

WIDTHS = (64, 96)  # of the latents of the first and the second relative network
HIDDEN = (16, 32)
NEIGHBOURS = 10
SETTINGS = Settings(optimizer="adam", lr=1e-3, batch_size=128)


def run(trial: Trial) -> Iterator[Measurement]:
    """Two networks of each kind from other first weights and another order of the data; anchors and budget are one."""
    classes = pictures(trial)
    generator = torch.Generator().manual_seed(trial.seed)
    number = trial.pick(smoke=60, quick=300, full=300)
    chosen = select_anchors(classes.train.inputs, number, "stratified", classes.train.targets, generator)
    anchors = classes.train.inputs[chosen]
    yield from classifiers(trial, classes, anchors)
    yield from autoencoders(trial, reconstruction(classes), anchors)


def classifiers(trial: Trial, data: Splits, anchors: Tensor) -> Iterator[Measurement]:
    """The same encoder before a linear classifier of latents, or of their normalised similarities to the anchors."""
    absolute: list[nn.Sequential] = []
    relative: list[RelativeNetwork] = []
    for index, width in enumerate(WIDTHS):
        start(trial, index)
        encoder = conv_encoder(data.input_shape, HIDDEN, WIDTHS[0], act=nn.GELU)
        absolute.append(nn.Sequential(encoder, nn.Linear(WIDTHS[0], data.outputs)))
        train(trial, absolute[-1], data, index)
        start(trial, index)
        encoder = conv_encoder(data.input_shape, HIDDEN, width, act=nn.GELU)
        projection = RelativeProjection(len(anchors), normalise_output="layernorm")
        relative.append(RelativeNetwork(encoder, projection, nn.Linear(len(anchors), data.outputs), anchors))
        train(trial, relative[-1], data, index)
    networks: dict[str, list[nn.Module]] = {
        "absolute, own": [*absolute],
        "relative, own": [*relative],
        "absolute, stitched": [nn.Sequential(a[0], b[1]) for a, b in permutations(absolute)],
        "relative, stitched": [stitch(a, b) for a, b in permutations(relative)],
    }
    for arm, models in networks.items():
        yield Measurement(arm, "accuracy", mean([evaluate(model, data.test)["accuracy"] for model in models]))


def autoencoders(trial: Trial, data: Splits, anchors: Tensor) -> Iterator[Measurement]:
    """The same encoder and decoder, with the latent itself or its similarities to the anchors between."""
    absolute: list[ConvAutoencoder] = []
    relative: list[RelativeAE] = []
    for index, width in enumerate(WIDTHS):
        start(trial, index)
        absolute.append(ConvAutoencoder(data.input_shape, HIDDEN, WIDTHS[0]))
        train(trial, absolute[-1], data, index)
        start(trial, index)
        relative.append(RelativeAE(anchors, HIDDEN, width))
        train(trial, relative[-1], data, index)
    networks: dict[str, list[nn.Module]] = {
        "absolute, own": [*absolute],
        "relative, own": [*relative],
        "absolute, stitched": [nn.Sequential(a.encoder, b.decoder) for a, b in permutations(absolute)],
        "relative, stitched": [stitch(a, b) for a, b in permutations(relative)],
    }
    errors = {
        arm: mean([evaluate(model, data.test)["rmse"] ** 2 for model in models]) for arm, models in networks.items()
    }
    for arm, error in errors.items():
        yield Measurement(arm, "MSE of autoencoders", error)
    fraction = errors["relative, stitched"] / errors["absolute, stitched"]
    yield Measurement("relative", "MSE of stitched autoencoders, as a fraction of the absolute ones'", fraction)

    latents = [predict(model.encoder, data.test.inputs) for model in absolute]
    with torch.no_grad():
        similarities = [model.eval().encode(data.test.inputs) for model in relative]
    yield from retrieval("absolute", latents)
    yield from retrieval("relative", similarities)
    of_anchors = [predict(model.encoder, anchors) for model in absolute]
    for number in (n for n in (3, 10, 30, 100, 300) if n <= len(anchors)):
        few = [relative_projection(z, a[:number]) for z, a in zip(latents, of_anchors, strict=True)]
        yield from retrieval("relative", few, at=number)
        yield from retrieval("absolute", latents, at=number)


def retrieval(arm: str, spaces: list[Tensor], at: float | None = None) -> Iterator[Measurement]:
    """How the samples of one space find themselves and their neighbours in the other, both ways."""
    found = [latent_similarity(a, b, NEIGHBOURS) for a, b in permutations(spaces)]
    where = "across autoencoders" if at is None else "after the fact, by anchors"
    yield Measurement(arm, f"Jaccard of 10 neighbours {where}", mean([each.jaccard for each in found]), at)
    yield Measurement(arm, f"mean reciprocal rank {where}", mean([each.mrr for each in found]), at)


def start(trial: Trial, index: int) -> None:
    """First weights that differ between the two networks of a kind, and not between the kinds."""
    trial.seed_everything()
    torch.manual_seed(1_000 * index + trial.seed)


def train(trial: Trial, model: nn.Module, data: Splits, index: int) -> None:
    budget = Budget(epochs=trial.pick(smoke=1, quick=15, full=15))
    fit(
        model,
        data,
        budget,
        settings=SETTINGS,
        seed=1_000 * index + trial.seed,
        device=trial.device,
        evaluate_every=10**9,
    )


def pictures(trial: Trial) -> Splits:
    """Pictures with values in [0, 1], as the decoder gives them."""
    if trial.scale == "full":
        data = load("mnist-10k", train=3_000, seed=trial.seed).map(lambda x: nn.functional.avg_pool2d(x, 2))
    else:
        data = load("digits", train=trial.pick(smoke=200, quick=None, full=None), seed=trial.seed)
    low, high = data.train.inputs.min(), data.train.inputs.max()
    return data.map(lambda x: ((x - low) / (high - low)).clamp(0, 1))


def reconstruction(data: Splits) -> Splits:
    """The same pictures, with themselves as targets."""
    train, val, test = (Split(part.inputs, part.inputs) for part in (data.train, data.val, data.test))
    return replace(data, train=train, val=val, test=test, task=Task.TABULAR_REGRESSION, classes=())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)
