"""Convergent learning: which features do networks of one kind, from other starts, learn alike?"""

import itertools
from collections.abc import Generator, Iterator, Sequence

import torch
from torch import Tensor, nn

from netwright.analysis.capture import Moments, batches_of_outputs
from netwright.analysis.convergent_learning import one_to_one_loss, sparse_stitch
from netwright.analysis.similarity import correlations_of, match_units
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import load
from netwright.data.splits import Splits
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="convergent-learning",
    title="Convergent Learning: Do different neural networks learn the same representations?",
    arxiv="1511.07543",
    year=2016,
    room="analysis",
    says="Networks of one kind from other starts learn some features alike, unit by unit, and others not; what a unit "
    "of one network learns is often a mix of a few units of another.",
    parts=(
        "analysis.convergent_learning.sparse_stitch",
        "analysis.similarity.match_units",
        "analysis.convergent_learning.spectral_co_clusters",
    ),
    checks=(
        Check(
            "the first layer converges more than the second",
            metric="mean bipartite correlation",
            arm="layer 1",
            baseline="layer 2",
        ),
        Check(
            "training makes the first layers alike",
            metric="mean bipartite correlation",
            arm="layer 1",
            baseline="layer 1, untrained",
        ),
        Check(
            "training makes the second layers alike",
            metric="mean bipartite correlation",
            arm="layer 2",
            baseline="layer 2, untrained",
        ),
        Check(
            "partners repeat if they may: the best partner beats the own partner",
            metric="mean correlation, both layers",
            arm="semi-matching",
            baseline="bipartite matching",
        ),
        Check("some units are shared", metric="bipartite correlation, highest decile", arm="both layers", baseline=0.8),
        Check(
            "some units are not",
            metric="bipartite correlation, lowest decile",
            better="lower",
            arm="both layers",
            baseline=0.4,
        ),
        Check(
            "8 weights a unit close half of the gap from one unit to all",
            metric="share of the gap closed, best layer",
            arm="at most 8 weights a unit",
            baseline=0.5,
        ),
    ),
    note="Four networks a seed, so six pairs, of two kinds far smaller than the paper's AlexNet: an MLP of three "
    "hidden layers of 64 units on scikit-learn's digits (quick), a CNN with 16 and 32 channels and 64 hidden units on "
    "MNIST cut to 10,000 pictures (full). The deciles are of the bipartite values of both layers and all pairs "
    "together. The sparse maps are optima of the lasso, where the paper went down the gradient. The CNN behaves as the "
    "paper's network does. The MLP on digits does not: its second layer is more alike than its first, perhaps "
    "because ten classes leave it fewer directions to choose from, and nearly all of its units find a partner.",
)

NETWORKS = 4
# a grid of half decades, as wide as the paper's
PENALTIES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
WEIGHTS_PER_UNIT = 8


def run(trial: Trial) -> Iterator[Measurement]:
    """Four networks differ in their start and in the order of their data; all pairs of them are compared."""
    splits = load(trial.pick(smoke="digits", quick="digits", full="mnist-10k"), seed=trial.seed)
    inputs = torch.cat([splits.val.inputs, splits.test.inputs])
    count = trial.pick(smoke=2, quick=NETWORKS, full=NETWORKS)
    networks, untrained = [], []
    for number in range(count):
        seed = NETWORKS * trial.seed + number
        torch.manual_seed(seed)
        model, layers = make(splits, small=trial.scale != "full")
        untrained.append(stream(model, inputs, layers))
        budget = Budget(epochs=trial.pick(smoke=1, quick=30, full=4))
        fit(model, splits, budget, settings=Settings(lr=1e-3, batch_size=64), seed=seed, device=trial.device)
        networks.append(stream(model, inputs, layers))
        yield Measurement(f"network {number + 1}", "accuracy", evaluate(model, splits.test)["accuracy"])
    pairs = list(itertools.combinations(range(count), 2))
    bipartite: list[Tensor] = []
    semi: list[Tensor] = []
    shares = []
    for number in range(2):
        arm = f"layer {number + 1}"
        for name, states in {arm: networks, f"{arm}, untrained": untrained}.items():
            moments = [between(states[i][number], states[j][number]) for i, j in pairs]
            correlations = [correlations_of(pair) for pair in moments]
            one = [match_units(table).values for table in correlations]
            yield Measurement(name, "mean bipartite correlation", torch.cat(one).mean().item())
            for rank, value in enumerate(mean_by_rank(one), 1):
                yield Measurement(name, "bipartite correlation by rank", value, at=rank)
            if states is networks:
                trained = moments
                bipartite += one
                best = [match_units(table, "semi").values for table in correlations]
                semi += best
                for rank, value in enumerate(mean_by_rank(best), 1):
                    yield Measurement(f"{arm}, best partner", "bipartite correlation by rank", value, at=rank)
        share = yield from sparse_path(arm, trained)
        shares.append(share)
    yield Measurement("semi-matching", "mean correlation, both layers", torch.cat(semi).mean().item())
    yield Measurement("bipartite matching", "mean correlation, both layers", torch.cat(bipartite).mean().item())
    for name, quantile in {"highest": 0.9, "lowest": 0.1}.items():
        value = torch.cat(bipartite).quantile(quantile).item()
        yield Measurement("both layers", f"bipartite correlation, {name} decile", value)
    yield Measurement("at most 8 weights a unit", "share of the gap closed, best layer", max(shares))


def sparse_path(arm: str, pairs: Sequence[Moments]) -> Generator[Measurement, None, float]:
    """Loss of the maps from the units of one network to those of the other, from one weight a unit to all of them.

    Returns:
        How much of the gap from one weight to all is closed by the lightest penalty that leaves at most 8.
    """
    one = torch.tensor([one_to_one_loss(moments).nanmean() for moments in pairs]).mean().item()
    dense = torch.tensor([sparse_stitch(moments, 0).mean_loss for moments in pairs]).mean().item()
    yield Measurement(f"{arm}, one to one", "variance not predicted", one)
    yield Measurement(f"{arm}, all to one", "variance not predicted", dense)
    share = 0.0
    for penalty in PENALTIES:
        stitches = [sparse_stitch(moments, penalty) for moments in pairs]
        weights = sum(stitch.weights_per_unit for stitch in stitches) / len(pairs)
        loss = sum(stitch.mean_loss for stitch in stitches) / len(pairs)
        yield Measurement(f"{arm}, sparse", "variance not predicted, by weights a unit", loss, at=weights)
        if weights <= WEIGHTS_PER_UNIT:
            share = (one - loss) / (one - dense)
    yield Measurement(f"{arm}, sparse", "share of the gap closed", share)
    return share


def make(splits: Splits, *, small: bool) -> tuple[nn.Module, list[str]]:
    """A network and the names of its first two layers after their activations."""
    if small:
        return MLP(64, (64, 64, 64), splits.outputs), ["2", "4"]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 7 * 7, 64),
        nn.ReLU(),
        nn.Linear(64, splits.outputs),
    )
    return model, ["1", "4"]


def stream(model: nn.Module, inputs: Tensor, layers: Sequence[str]) -> list[list[Tensor]]:
    """What each of the layers puts out, batch by batch, every place a sample."""
    batches = list(batches_of_outputs(model, inputs, layers, how="positions"))
    return [[batch[layer] for batch in batches] for layer in layers]


def between(first: Sequence[Tensor], second: Sequence[Tensor]) -> Moments:
    """Moments of a layer of two networks."""
    moments = Moments()
    for a, b in zip(first, second, strict=True):
        moments.add(a, b)
    return moments


def mean_by_rank(values: Sequence[Tensor]) -> list[float]:
    """Mean over pairs of the best, second best, … value, as far as all pairs have so many."""
    shortest = min(map(len, values))
    found: list[float] = torch.stack([value[:shortest] for value in values]).mean(0).tolist()
    return found
