"""EvoNorm: does one evolved layer serve as well as normalisation and ReLU, and does the search need to reject early?"""

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.compression.layer_evolution import EvolveLayers, ProxyTask, QualityReject, Reject, StabilityReject
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.layers.evonorm import EvoNormB0, EvoNormS0
from netwright.models.vision.mbconv import mobilenet_small
from netwright.models.vision.resnet import NormActFactory, batch_norm_relu
from netwright.models.vision.resnet_v2 import resnet_v2_50d, resnet_v2_cifar
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="evonorm",
    title="Evolving Normalization-Activation Layers",
    arxiv="2004.02967",
    year=2020,
    room="layers",
    says="Layers evolved from simple functions replace normalisation and ReLU, also where batches are small; "
    "the search that finds them lives from rejecting early.",
    parts=(
        "layers.evonorm.EvoNormS0",
        "layers.evonorm.EvoNormS1",
        "layers.evonorm.EvoNormS2",
        "layers.evonorm.EvoNormB0",
        "layers.evonorm.EvoNormB1",
        "layers.evonorm.EvoNormB2",
        "layers.evonorm.replace_norm_act",
        "layers.norm_act.swap_norm_act",
        "compression.layer_evolution.EvolveLayers",
        "compression.layer_graph.LayerGraph",
        "compression.search.evolve",
        "models.vision.mbconv.MBConv",
        "models.vision.mbconv.mobilenet_v2",
        "models.vision.mbconv.efficientnet_b0",
        "models.vision.resnet_v2.resnet_v2_50d",
    ),
    checks=(
        Check(
            "S0 beats batch normalisation at batch 4",
            metric="accuracy, batch 4",
            better="higher",
            arm="EvoNorm-S0",
            baseline="BatchNorm-ReLU",
        ),
        Check(
            "S0 loses at most 0.02 to group normalisation at batch 4",
            metric="accuracy, batch 4",
            better="higher",
            arm="EvoNorm-S0",
            baseline="GroupNorm-ReLU",
            margin=-0.02,
        ),
        Check(
            "B0 loses at most 0.02 to batch normalisation at batch 128",
            metric="accuracy, batch 128",
            better="higher",
            arm="EvoNorm-B0",
            baseline="BatchNorm-ReLU",
            margin=-0.02,
        ),
        Check(
            "with rejection the search finds a layer that is at most 0.01 worse",
            metric="accuracy of the best layer found",
            better="higher",
            arm="search with rejection",
            baseline="search without rejection",
            margin=-0.01,
        ),
        Check("size of ResNetV2-50D with S0", metric="parameters", arm="ResNetV2-50D, EvoNorm-S0", exactly=25591368),
    ),
    note="Pictures of 16×16 pixels, a pre-activation ResNet-20 (ResNet-8 at quick scale) and a few epochs; the paper "
    "trains ResNet-50 on ImageNet, and its smallest batch is 4 images a worker. The search spends a few thousand "
    "updates on digits, with all its limits scaled down alike; its cost is counted in updates and not in seconds, so "
    "that it can be repeated to the bit. Our reading: four small pictures at a time are still enough for batch "
    "normalisation, and 96 updates at batch 128 are too few for B0, which does not centre and so starts more slowly.",
)


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms of a batch size: the same network, data order, budget and optimiser; only the layer differs."""
    with torch.device("meta"):
        size = count_params(resnet_v2_50d(norm_act=lambda channels, act: EvoNormS0(channels, apply_act=act)))
    yield Measurement("ResNetV2-50D, EvoNorm-S0", "parameters", size)
    yield from _accuracies(trial)
    yield from _searches(trial)


def _group_norm_relu(channels: int, act: bool) -> nn.Module:
    norm = nn.GroupNorm(8, channels)
    return nn.Sequential(norm, nn.ReLU(inplace=True)) if act else norm


LAYERS: dict[str, NormActFactory] = {
    "BatchNorm-ReLU": batch_norm_relu,
    "GroupNorm-ReLU": _group_norm_relu,
    "EvoNorm-S0": lambda channels, act: EvoNormS0(channels, groups=8, apply_act=act),
    "EvoNorm-B0": lambda channels, act: EvoNormB0(channels, apply_act=act),
}
ARMS = {
    4: ("BatchNorm-ReLU", "GroupNorm-ReLU", "EvoNorm-S0"),
    128: ("BatchNorm-ReLU", "EvoNorm-B0"),
}


def _accuracies(trial: Trial) -> Iterator[Measurement]:
    data = _pictures(trial)
    depth, width = trial.pick(smoke=(8, 8), quick=(8, 16), full=(20, 16))
    epochs = trial.pick(smoke={4: 0.5, 128: 2.0}, quick={4: 3.0, 128: 10.0}, full={4: 3.0, 128: 6.0})
    for batch_size, arms in ARMS.items():
        settings = Settings(
            optimizer="sgd",
            lr=0.1 * batch_size / 128,
            momentum=0.9,
            weight_decay=1e-4,
            batch_size=batch_size,
            schedule="cosine",
            warmup=0.05,
        )
        for arm in arms:
            trial.seed_everything()
            model = resnet_v2_cifar(
                depth, width, in_channels=data.input_shape[0], num_classes=data.outputs, norm_act=LAYERS[arm]
            )
            budget = Budget(epochs=epochs[batch_size])
            never = len(data.train) * 100
            fit(model, data, budget, settings=settings, seed=trial.seed, device=trial.device, evaluate_every=never)
            yield Measurement(arm, f"accuracy, batch {batch_size}", evaluate(model, data.test)["accuracy"])


def _pictures(trial: Trial) -> Splits:
    if trial.scale == "smoke":
        return load("digits", seed=trial.seed)
    data = load("cifar10-12k", train=trial.pick(smoke=0, quick=600, full=2_000), seed=trial.seed)
    return data.map(lambda pictures: functional.avg_pool2d(pictures, 2))


def _searches(trial: Trial) -> Iterator[Measurement]:
    """The same test-beds, random numbers and number of updates for both; one of them may throw layers out early."""
    data = load("digits", seed=trial.seed)
    steps = trial.pick(smoke=4, quick=40, full=100)
    settings = Settings(optimizer="sgd", lr=0.05, batch_size=64, schedule="cosine")
    networks: tuple[Callable[..., nn.Module], ...] = (
        partial(resnet_v2_cifar, 8, 8),
        partial(mobilenet_small, se_ratio=0.0),
        partial(mobilenet_small, se_ratio=0.25),
    )
    tasks = [
        ProxyTask(partial(_build, network), data, steps, settings, seed=trial.seed)
        for network in networks[: trial.pick(smoke=1, quick=2, full=3)]
    ]
    ascent = trial.pick(smoke=2, quick=10, full=20)
    early: tuple[Reject, ...] = (
        QualityReject(threshold=0.2, steps=trial.pick(smoke=3, quick=15, full=30)),
        StabilityReject(steps=ascent, batch_size=16),
    )
    for arm, reject in (("search with rejection", early), ("search without rejection", ())):
        search = EvolveLayers(
            tasks, population=trial.pick(smoke=3, quick=4, full=8), tournament_frac=0.3, reject=reject
        )
        updates = trial.pick(smoke=40.0, quick=500.0, full=3_500.0)
        found = search.run(random.Random(trial.seed), updates=updates)  # noqa: S311
        best = 1 / data.outputs  # without any layer there is only guessing
        for one in found.history:
            best = max(best, sum(one.scores) / len(one.scores))
            yield Measurement(arm, "accuracy of the best layer so far, against layers tried", best, at=one.born)
        yield Measurement(arm, "accuracy of the best layer found", best)
        yield Measurement(arm, "layers tried", found.tried)
        yield Measurement(arm, "layers trained in full", len(found.history))


def _build(network: Callable[..., nn.Module], norm_act: NormActFactory) -> nn.Module:
    return network(in_channels=1, norm_act=norm_act)
