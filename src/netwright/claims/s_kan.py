"""Selectable KANs: do they serve functions of every kind, where each fixed family of functions fails for some?"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from scipy import special
from torch import Tensor, nn

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Split, Splits, Task, load
from netwright.layers.selectable_kan import POOL, SKAN, SConvKAN2d, fit_grids_, selectable_layers
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Diverged, Settings, evaluate, fit
from netwright.training.skan import SelectiveTraining

CLAIM = Claim(
    slug="s-kan",
    title="Activation Space Selectable Kolmogorov-Arnold Networks",
    arxiv="2408.08338",
    year=2024,
    room="layers",
    says="Nodes that choose their family of functions fit functions of all kinds better than any one family or an MLP.",
    parts=(
        "layers.selectable_kan.SKANLayer",
        "layers.selectable_kan.SConvKAN2d",
        "layers.selectable_kan.SKAN",
        "layers.selectable_kan.to_skan",
        "layers.kan.KANLayer",
        "training.skan.SelectiveTraining",
        "training.skan.SelectionSchedule",
        "training.skan.prune_",
        "training.skan.selection_entropy",
    ),
    checks=(
        Check(
            "the best mean rank over all functions",
            metric="mean rank",
            better="lower",
            arm="S-KAN",
            baseline="best other arm",
        ),
        Check(
            "within 10 % of the best family on 5 of 7 functions",
            metric="fraction of functions within 10 % of the best family's error",
            better="higher",
            arm="S-KAN",
            baseline=0.7,
        ),
        Check(
            "pruning leaves less than a third of the parameters",
            metric="parameters, as a fraction of those before pruning",
            better="lower",
            arm="S-KAN",
            baseline=0.333,
        ),
        Check(
            "on pictures no worse than convolutions of the same size",
            metric="accuracy on digits",
            better="higher",
            arm="S-ConvKAN",
            baseline="CNN",
            margin=-0.01,
        ),
    ),
    note="Sizes are equal in what is left to use: the other arms are as wide as the size allows that S-KAN ends with; "
    "until then it trains about five times as many parameters, in the same number of updates. One hidden layer, of 8 "
    "nodes in S-KAN, noiseless samples; the seven functions, the optimiser and the pictures are ours. The paper names "
    "three phases of training but neither their lengths nor a code; that α is a softmax for each node is our reading. "
    "Where S-KAN loses we think this is why: while all families help each other, α tells which one learned fastest "
    "beside the others, not which one would do best alone, so that the nodes of one network end up with different "
    "families; and what the dropped families had learned has to be learned again in the rest of the updates.",
)

HIDDEN = 8
SAMPLES = 1_000
SETTINGS = Settings(lr=0.01, batch_size=250, schedule="cosine")
PICTURES = Settings(lr=0.01, batch_size=64, schedule="cosine")


def _bessel(x: Tensor) -> Tensor:
    return torch.from_numpy(special.j0(20 * x.numpy()))


# name -> number of inputs, each in [-1, 1], and the function
FUNCTIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {
    "sin 20x": (1, lambda x: torch.sin(20 * x[:, 0])),
    "|x|": (1, lambda x: x[:, 0].abs()),
    "exp(sin πx + y²)": (2, lambda x: torch.exp(torch.sin(math.pi * x[:, 0]) + x[:, 1] ** 2)),
    "x² step(x)": (1, lambda x: x[:, 0] ** 2 * (x[:, 0] > 0)),
    "J₀(20x)": (1, lambda x: _bessel(x[:, 0])),
    "xy": (2, lambda x: x[:, 0] * x[:, 1]),
    "sin 30x²": (1, lambda x: torch.sin(30 * x[:, 0] ** 2)),
}
FAMILIES = {
    "B-spline KAN": "bspline",
    "RBF KAN": "rbf",
    "Chebyshev KAN": "chebyshev",
    "Fourier KAN": "fourier",
    "wavelet KAN": "wavelet",
    "SiLU KAN": "silu",
}


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same samples, batches, number of updates and optimiser, and the size that S-KAN is pruned to."""
    ranks: dict[str, list[int]] = {}
    near, left = [], []
    for name in list(FUNCTIONS)[: trial.pick(smoke=1, quick=3, full=7)]:
        errors: dict[str, float] = {}
        size = None
        for arm in ("S-KAN", *FAMILIES, "MLP"):
            trial.seed_everything()
            data = _samples(trial, name)
            model = _network(arm, data, size)
            before = count_params(model)
            errors[arm] = _error(model, data, trial)
            yield Measurement(arm, f"relative error on {name}", errors[arm])
            yield Measurement(arm, f"parameters for {name}", count_params(model))
            if size is None:  # S-KAN is the first
                size = count_params(model)
                left.append(size / before)
        for rank, arm in enumerate(sorted(errors, key=lambda arm: errors[arm]), start=1):
            ranks.setdefault(arm, []).append(rank)
        near.append(errors["S-KAN"] <= 1.1 * min(errors[arm] for arm in FAMILIES))
    means = {arm: sum(every) / len(every) for arm, every in ranks.items()}
    for arm, mean in means.items():
        yield Measurement(arm, "mean rank", mean)
    yield Measurement("best other arm", "mean rank", min(mean for arm, mean in means.items() if arm != "S-KAN"))
    metric = "fraction of functions within 10 % of the best family's error"
    yield Measurement("S-KAN", metric, sum(near) / len(near))
    yield Measurement("S-KAN", "parameters, as a fraction of those before pruning", max(left))
    yield from _pictures(trial)


def _error(model: nn.Module, data: Splits, trial: Trial) -> float:
    """Root mean squared error after training, in standard deviations of the function."""
    try:
        _train(model, data, trial.pick(smoke=10, quick=300, full=700), SETTINGS, trial)
    except Diverged:
        return 1.0  # no better than the mean of the function
    return evaluate(model, data.test)["rmse"]


def _network(arm: str, data: Splits, size: int | None) -> nn.Module:
    """A network of one hidden layer (the MLP: two) of 8 nodes, or else of nearly ``size`` parameters."""
    width = HIDDEN if size is None else _width(partial(_with_width, arm, data.input_shape[0], device="meta"), size)
    model = _with_width(arm, data.input_shape[0], width)
    return fit_grids_(model, data.train.inputs) if isinstance(model, SKAN) else model


def _with_width(arm: str, inputs: int, width: int, device: str | None = None) -> nn.Module:
    if arm == "MLP":
        return MLP(inputs, (width, width), 1, act=nn.SiLU).to(device)
    pool = POOL if arm == "S-KAN" else (FAMILIES[arm],)
    return SKAN([inputs, width, 1], bias=True, pool=pool, device=device)


def _width(make: Callable[[int], nn.Module], size: int) -> int:
    """The width with which a network comes closest to ``size`` parameters."""
    sizes = {1: count_params(make(1))}
    while sizes[len(sizes)] < size:
        sizes[len(sizes) + 1] = count_params(make(len(sizes) + 1))
    return min(sizes, key=lambda width: abs(sizes[width] - size))


def _train(model: nn.Module, data: Splits, steps: int, settings: Settings, trial: Trial) -> None:
    rule = None
    if any(layer.phase == "full" for layer in selectable_layers(model).values()):
        optimizer = settings.make_optimizer(model.parameters())
        rule = SelectiveTraining(model, optimizer, steps=steps, scheduler=settings.make_scheduler(optimizer, steps))
    budget = Budget(steps=steps)
    fit(model, data, budget, rule, settings=settings, seed=trial.seed, device=trial.device, evaluate_every=steps)


def _samples(trial: Trial, name: str) -> Splits:
    inputs, function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(trial.seed)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        x = 2 * torch.rand(number, inputs, generator=generator) - 1
        return x, function(x).unsqueeze(-1).float()

    parts = [draw(SAMPLES), draw(SAMPLES // 5), draw(SAMPLES)]
    mean, std = parts[0][1].mean(), parts[0][1].std()
    train, val, test = (Split(x, (y - mean) / std) for x, y in parts)
    return Splits(name, train, val, test, Task.TABULAR_REGRESSION, (inputs,))


def _pictures(trial: Trial) -> Iterator[Measurement]:
    data = load("digits", seed=trial.seed)
    convolution = partial(SConvKAN2d, kernel_size=3, padding=1, bias=True)
    arms: dict[str, Callable[[int, int], nn.Module]] = {
        "S-ConvKAN": convolution,
        "B-spline ConvKAN": partial(convolution, pool=("bspline",)),
        "CNN": partial(nn.Conv2d, kernel_size=3, padding=1),
    }
    for arm, make in arms.items():
        trial.seed_everything()
        # a convolution has a ninth of the weights of the others, so it gets three times the channels
        first, second = (24, 48) if arm == "CNN" else (8, 16)
        act = nn.ReLU if arm == "CNN" else nn.Identity
        model = nn.Sequential(
            make(1, first),
            nn.BatchNorm2d(first),
            act(),
            nn.MaxPool2d(2),
            make(first, second),
            nn.BatchNorm2d(second),
            act(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(second, data.outputs),
        )
        _train(model, data, trial.pick(smoke=2, quick=80, full=300), PICTURES, trial)
        yield Measurement(arm, "accuracy on digits", evaluate(model, data.test)["accuracy"])
        yield Measurement(arm, "parameters for digits", count_params(model))
