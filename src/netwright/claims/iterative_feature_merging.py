"""Iterative feature merging: do wide networks merge more, and does merging beat removing as many channels?"""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.compression.channels import channel_graph, select
from netwright.compression.feature_merging import MergeResult, iterative_feature_merging
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Diverged, Settings, evaluate, fit

CLAIM = Claim(
    slug="iterative-feature-merging",
    title="Going Beyond Neural Network Feature Similarity: The Network Feature Complexity and Its Interpretation "
    "Using Category Theory",
    arxiv="2310.06756",
    year=2024,
    room="compression",
    says="Channels of a trained network that have nearly the same weights merge without data and without training, and "
    "lose less than by removal; the wider the network, the larger the part that merges.",
    parts=(
        "compression.feature_merging.iterative_feature_merging",
        "compression.feature_merging.feature_complexity",
        "compression.feature_merging.pairwise_channel_distance",
        "compression.feature_merging.save_merged",
        "compression.channels.channel_graph",
        "compression.channels.select",
        "compression.channels.merge",
        "compression.channels.mask_nodes",
    ),
    checks=(
        Check(
            "512 units keep a smaller part than 128",
            metric="part of the hidden units kept, β = 0.1",
            better="lower",
            arm="width 512",
            baseline="width 128",
        ),
        Check(
            "128 units keep a smaller part than 32",
            metric="part of the hidden units kept, β = 0.1",
            better="lower",
            arm="width 128",
            baseline="width 32",
        ),
        Check(
            "merging is no worse than removal, MLPs, smallest β with 30 % removed",
            metric="accuracy of the MLPs, smallest β",
            arm="merged",
            baseline="smallest removed",
            margin=-0.005,
        ),
        Check(
            "merging is no worse than removal, MLPs, largest β",
            metric="accuracy of the MLPs, largest β",
            arm="merged",
            baseline="smallest removed",
            margin=-0.005,
        ),
        Check(
            "merging is no worse than removal, VGG, smallest β with 30 % removed",
            metric="accuracy of the VGG, smallest β",
            arm="merged",
            baseline="smallest removed",
            margin=-0.005,
        ),
        Check(
            "merging is no worse than removal, VGG, largest β",
            metric="accuracy of the VGG, largest β",
            arm="merged",
            baseline="smallest removed",
            margin=-0.005,
        ),
    ),
    note="MNIST is cut to 6,000 training pictures, and the VGG has four convolutions on CIFAR-10 pictures of 16×16 "
    "pixels (digits at quick and smoke). Training is much shorter than the published 160 epochs; weight decay is "
    "raised so that the first weights fade by the same factor, exp(−3.3), as in the published training, since random "
    "first weights are all equally far from each other. 'Smallest removed' keeps as many channels in every layer, "
    "those with the largest L1 norm of their incoming weights. Where no β of the grid removes 30 % of the parameters, "
    "the largest, 0.3, stands in. Accuracy of the MLPs is the mean over the three widths; 'no worse' means by at most "
    "half a percentage point.",
)

WIDTHS = (32, 128, 512)
BETAS = (0.01, 0.03, 0.1, 0.2, 0.3)  # of the published grid
REMOVED = 0.3
FADED = 3.3  # sum over the published training of learning rate / (1 − momentum) · weight decay


def run(trial: Trial) -> Iterator[Measurement]:
    """Merging and removal start from the same trained network, and end with the same widths."""
    splits = load(trial.pick(smoke="digits", quick="digits", full="mnist-10k"), seed=trial.seed)
    accuracies: dict[tuple[str, str], list[float]] = {}
    for width in WIDTHS:
        trial.seed_everything()
        model = MLP(splits.train.inputs[0].numel(), (width, width), splits.outputs)
        diverged = train(trial, model, splits, trial.pick(smoke=1.0, quick=200.0, full=80.0), lr=0.05)
        yield Measurement(f"width {width}", "diverged", float(diverged))
        yield Measurement(f"width {width}", "accuracy before merging", evaluate(model, splits.test)["accuracy"])
        measured = Measured(model, splits)
        for beta in BETAS:
            kept = measured.units[beta]
            yield Measurement(f"width {width}", "part of the hidden units kept", kept, at=beta)
            for arm, values in measured.accuracies.items():
                yield Measurement(f"{arm}, width {width}", "accuracy", values[beta], at=beta)
        yield Measurement(f"width {width}", "part of the hidden units kept, β = 0.1", measured.units[0.1])
        yield Measurement(f"width {width}", "parameters removed at the smallest β", measured.removed[measured.smallest])
        for name, beta in (("smallest", measured.smallest), ("largest", BETAS[-1])):
            for arm, values in measured.accuracies.items():
                accuracies.setdefault((arm, name), []).append(values[beta])
    for (arm, name), parts in accuracies.items():
        yield Measurement(arm, f"accuracy of the MLPs, {name} β", sum(parts) / len(parts))
    yield from convolutional(trial)


def convolutional(trial: Trial) -> Iterator[Measurement]:
    """The four-layer VGG, also with the variances summed as in the authors' code."""
    splits = load(trial.pick(smoke="digits", quick="digits", full="cifar10-12k"), seed=trial.seed)
    if trial.scale == "full":
        splits = splits.map(lambda pictures: functional.avg_pool2d(pictures, 2))
    trial.seed_everything()
    model = vgg_4(splits)
    diverged = train(trial, model, splits, trial.pick(smoke=0.3, quick=40.0, full=10.0), lr=0.1)
    yield Measurement("VGG", "diverged", float(diverged))
    yield Measurement("VGG", "accuracy before merging", evaluate(model, splits.test)["accuracy"])
    measured = Measured(model, splits)
    for beta in BETAS:
        yield Measurement("VGG", "part of the parameters kept", 1 - measured.removed[beta], at=beta)
        for arm, values in measured.accuracies.items():
            yield Measurement(f"{arm}, VGG", "accuracy", values[beta], at=beta)
    for layer, left in enumerate(measured.results[0.1].widths.values(), start=1):
        yield Measurement("VGG", "channels left, by layer, β = 0.1", left, at=layer)
    yield Measurement("VGG", "parameters removed at the smallest β", measured.removed[measured.smallest])
    for name, beta in (("smallest", measured.smallest), ("largest", BETAS[-1])):
        for arm, values in measured.accuracies.items():
            yield Measurement(arm, f"accuracy of the VGG, {name} β", values[beta])
        summed = iterative_feature_merging(
            model, beta, batchnorm="reference", example_input=splits.train.inputs[:1]
        ).model
        yield Measurement(
            "merged, variances summed", f"accuracy of the VGG, {name} β", evaluate(summed, splits.test)["accuracy"]
        )


class Measured:
    """What becomes of one trained network at every threshold."""

    def __init__(self, model: nn.Module, splits: Splits) -> None:
        example = splits.train.inputs[:1]
        self.results: dict[float, MergeResult] = {
            beta: iterative_feature_merging(model, beta, example_input=example) for beta in BETAS
        }
        total = sum(channel_graph(model, example).group(layer).channels for layer in self.results[BETAS[0]].widths)
        self.units = {beta: sum(result.widths.values()) / total for beta, result in self.results.items()}
        self.removed = {b: 1 - count_params(result.model) / count_params(model) for b, result in self.results.items()}
        self.smallest = next((beta for beta in BETAS if self.removed[beta] >= REMOVED), BETAS[-1])
        removals = {beta: keep_largest(model, splits, result.widths) for beta, result in self.results.items()}
        self.accuracies = {
            "merged": {b: evaluate(result.model, splits.test)["accuracy"] for b, result in self.results.items()},
            "smallest removed": {b: evaluate(twin, splits.test)["accuracy"] for b, twin in removals.items()},
        }


def keep_largest(model: nn.Module, splits: Splits, widths: dict[str, int]) -> nn.Module:
    """Of every layer the given number of channels, those with the largest L1 norm of their incoming weights."""
    graph = channel_graph(model, splits.train.inputs[:1])
    kept = {}
    for layer, width in widths.items():
        norms = model.get_submodule(layer).get_parameter("weight").detach().abs().flatten(1).sum(1)
        kept[layer] = norms.topk(width).indices.sort().values
    return select(model, graph, kept)


def vgg_4(splits: Splits) -> nn.Sequential:
    """Four 3×3 convolutions with BatchNorm in two stages, mean over space, one linear layer."""
    model, channels = nn.Sequential(), splits.input_shape[0]
    for stage in ((16, 32), (64, 64)):
        for width in stage:
            model.extend([nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
            channels = width
        model.append(nn.MaxPool2d(2))
    return model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, splits.outputs)])


def train(trial: Trial, model: nn.Module, splits: Splits, epochs: float, lr: float) -> bool:
    """Train in place as published, but shorter and with as much fading; whether training diverged.

    Half a cosine, whose mean is half its first value, stands in for two drops of the learning rate.
    """
    budget, momentum, batch_size = Budget(epochs=epochs), 0.9, 128
    steps = budget.max_steps(-(-len(splits.train) // batch_size)) or 1
    settings = Settings(
        optimizer="sgd",
        lr=lr,
        momentum=momentum,
        batch_size=batch_size,
        schedule="cosine",
        weight_decay=FADED / (0.5 * lr / (1 - momentum) * steps),
    )
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        fit(model, splits, budget, settings=settings, seed=trial.seed, device=trial.device, evaluate_every=steps)
    except Diverged:
        model.load_state_dict(start)  # as good as nothing learned
        return True
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    return False
