"""AF-KAN: do functions reduced by attention beat the KANs that keep a coefficient for each, at equal parameters?"""

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.layers.af_kan import AFKAN, ReLUKANLayer
from netwright.layers.kan import KANLayer
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="af-kan",
    title="AF-KAN: Activation Function-Based Kolmogorov-Arnold Networks for Efficient Representation Learning",
    arxiv="2503.06112",
    year=2025,
    room="layers",
    says="Pairs of activations, reduced by attention, beat spline and ReLU KANs of the same number of parameters.",
    parts=("layers.af_kan.AFKANLayer", "layers.af_kan.AFKAN", "layers.af_kan.ReLUKANLayer"),
    checks=(
        Check(
            "AF-KAN beats ReLU-KAN of equal parameters",
            metric="accuracy",
            better="higher",
            arm="AF-KAN",
            baseline="ReLU-KAN, equal parameters",
        ),
        Check(
            "AF-KAN beats spline KAN of equal parameters",
            metric="accuracy",
            better="higher",
            arm="AF-KAN",
            baseline="spline KAN, equal parameters",
        ),
        Check(
            "AF-KAN loses at most 0.005 to the MLP of equal widths",
            metric="accuracy",
            better="higher",
            arm="AF-KAN",
            baseline="MLP",
            margin=-0.005,
        ),
        Check(
            "SiLU beats ReLU as its activation",
            metric="accuracy",
            better="higher",
            arm="AF-KAN",
            baseline="AF-KAN with ReLU",
        ),
        Check(
            "it costs more time than the MLP",
            metric="time of training, as a multiple of the MLP's",
            better="higher",
            arm="AF-KAN",
            baseline=1.0,
        ),
        Check("size of 784-64-10", metric="parameters of 784-64-10", arm="AF-KAN", exactly=52552),
        Check("size of its MLP twin", metric="parameters of 784-64-10", arm="MLP", exactly=50890),
    ),
    note="Hidden layer of 64 on 6,000 MNIST digits (32 on scikit-learn's digits at quick scale), a few epochs. "
    "KANs of equal parameters have the hidden width that comes nearest to the size of AF-KAN. All arms have "
    "the same optimiser and rate, which are those of the paper. What keeps it from holding is the perceptron, "
    "which is ahead (by 0.04 on the digits, where the claim is refuted, by 0.006 on MNIST). Our reading: all "
    "inputs share one set of few functions, so that the layer is a linear one behind a fixed curve whose "
    "attention weights start nearly equal, and has more to learn in the same updates.",
)

SETTINGS = Settings(optimizer="adamw", lr=1e-3, weight_decay=1e-4, batch_size=64)


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same data, order, budget and optimiser."""
    with torch.device("meta"):
        yield Measurement("AF-KAN", "parameters of 784-64-10", count_params(_af_kan((784, 64, 10))))
        yield Measurement("MLP", "parameters of 784-64-10", count_params(_mlp((784, 64, 10))))
    data = _pictures(trial)
    inputs, hidden = data.train.inputs[0].numel(), trial.pick(smoke=32, quick=32, full=64)
    widths = (inputs, hidden, data.outputs)
    size = count_params(_af_kan(widths))
    budget = Budget(epochs=trial.pick(smoke=0.5, quick=20.0, full=12.0))
    arms: dict[str, Callable[[], nn.Module]] = {
        "MLP": partial(_mlp, widths),
        "AF-KAN": partial(_af_kan, widths),
        "AF-KAN with ReLU": partial(_af_kan, widths, activation="relu"),
        "ReLU-KAN": partial(_kan, ReLUKANLayer, widths),
        "ReLU-KAN, equal parameters": partial(_kan, ReLUKANLayer, _equal(ReLUKANLayer, widths, size)),
        "spline KAN": partial(_kan, KANLayer, widths),
        "spline KAN, equal parameters": partial(_kan, KANLayer, _equal(KANLayer, widths, size)),
    }
    seconds: dict[str, float] = {}
    for arm, make in arms.items():
        trial.seed_everything()
        model = make()
        start = time.process_time()
        fit(model, data, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
        seconds[arm] = time.process_time() - start
        accuracy = evaluate(model, data.test)["accuracy"]
        yield Measurement(arm, "accuracy", accuracy)
        yield Measurement(arm, "accuracy against parameters", accuracy, at=count_params(model))
        yield Measurement(arm, "time of training, as a multiple of the MLP's", seconds[arm] / seconds["MLP"])


def _mlp(widths: tuple[int, ...]) -> nn.Module:
    inputs, hidden, outputs = widths
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def _af_kan(widths: tuple[int, ...], activation: str = "silu") -> nn.Module:
    return AFKAN(widths, activation=activation)


def _kan(layer: Callable[[int, int], nn.Module], widths: tuple[int, ...]) -> nn.Module:
    inputs, hidden, outputs = widths
    return nn.Sequential(nn.Flatten(), layer(inputs, hidden), layer(hidden, outputs))


def _equal(layer: Callable[[int, int], nn.Module], widths: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The widths whose KAN comes nearest to ``size`` parameters."""
    inputs, hidden, outputs = widths
    with torch.device("meta"):
        sizes = {width: count_params(_kan(layer, (inputs, width, outputs))) for width in range(1, hidden + 1)}
    return inputs, min(sizes, key=lambda width: abs(sizes[width] - size)), outputs


def _pictures(trial: Trial) -> Splits:
    return load("mnist-10k" if trial.scale == "full" else "digits", seed=trial.seed)
