"""Intrinsic dimension: how many random directions does a network need, whatever its width, and what changes that?"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import load
from netwright.data.splits import Splits
from netwright.models.vision.classic import MLP
from netwright.training import Budget, Settings, evaluate, fit
from netwright.training.intrinsic_dimension import IntrinsicDimension, Result, description_length, shuffle_pixels

CLAIM = Claim(
    slug="intrinsic-dimension",
    title="Measuring the Intrinsic Dimension of Objective Landscapes",
    arxiv="1804.08838",
    year=2018,
    room="training",
    says="A network can be trained in a random subspace of few dimensions; how many is up to the task, not the width.",
    parts=(
        "training.subspace.SubspaceModel",
        "training.intrinsic_dimension.IntrinsicDimension",
        "training.intrinsic_dimension.description_length",
        "training.subspace.fwht",
        "training.subspace.save_compressed",
        "training.subspace.load_compressed",
    ),
    checks=(
        Check(
            "few directions are enough",
            metric="d_int90 / D",
            better="lower",
            arm="FC 400",
            baseline=0.05,
        ),
        Check(
            "width changes d_int90 by less than a factor of two",
            metric="largest by smallest d_int90 of the widths",
            better="lower",
            arm="FC",
            baseline=2.0,
        ),
        Check(
            "while D grows more than eightfold",
            metric="largest by smallest D of the widths",
            better="higher",
            arm="FC",
            baseline=8.0,
        ),
        Check(
            "a convolutional network needs fewer",
            metric="d_int90",
            better="lower",
            arm="LeNet",
            baseline="FC 200",
        ),
        Check(
            "shuffled pixels are not harder for a fully connected network",
            metric="d_int90 with shuffled pixels by d_int90",
            better="lower",
            arm="FC 200",
            baseline=1.5,
        ),
        Check(
            "nor easier",
            metric="d_int90 with shuffled pixels by d_int90",
            better="higher",
            arm="FC 200",
            baseline=0.67,
        ),
        Check(
            "but harder for a convolutional one",
            metric="d_int90 with shuffled pixels by d_int90",
            better="higher",
            arm="LeNet",
            baseline=1.5,
        ),
        Check("size of the MNIST network", metric="parameters", arm="784-200-200-10", exactly=199210),
        Check("size of LeNet-5", metric="parameters", arm="LeNet-5", exactly=44426),
        Check("size of the CIFAR-10 network", metric="parameters", arm="3072-200-200-10", exactly=656810),
    ),
    note="MNIST is cut to 6,000 training pictures of 14×14 pixels and training to 200 updates (quick: digits, 50 "
    "updates); the paper trains for 100 epochs. LeNet has 3×3 kernels, as the pictures are small. The learning rate of "
    "Adam is chosen from three for every d and for direct training, by validation accuracy. A search in which no "
    "dimension of the grid reaches the target counts with all D dimensions. After a first look at one seed of the full "
    "scale (28×28 pixels, 150 updates) and five of quick (80 updates), where some searches had not reached the target "
    "at 750, the last dimension of the grid then, the grid was continued to 6,000; to pay for it pictures were made "
    "smaller, Fastfood took the place of the sparse projection, and the quick training was shortened. After the 50 "
    "updates of the quick scale the convolutional network has not yet the lead over a fully connected one that it has "
    "at the full scale and in the paper: we think that it is slower at first.",
)

WIDTHS = (50, 200, 400)
DIMS = (10, 25, 50, 100, 200, 400, 750, 1_500, 3_000, 6_000)
RATES = (0.003, 0.03, 0.3)


def run(trial: Trial) -> Iterator[Measurement]:
    """Every search: the same grid, learning rates, steps and order of the data; its own direct training as baseline."""
    with torch.device("meta"):
        published = {"784-200-200-10": fc(784, 200), "LeNet-5": lenet(28), "3072-200-200-10": fc(3072, 200)}
    for name, network in published.items():
        yield Measurement(name, "parameters", count_params(network))

    splits = load(trial.pick(smoke="digits", quick="digits", full="mnist-10k"), seed=trial.seed)
    if trial.scale == "full":
        splits = splits.map(partial(functional.avg_pool2d, kernel_size=2))
    side = splits.input_shape[-1]
    networks = {f"FC {width}": partial(fc, side**2, width) for width in WIDTHS} | {"LeNet": partial(lenet, side)}
    found: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for arm, make in networks.items():
        result = search(trial, splits, make)
        found[arm], sizes[arm] = dimension(result), result.size
        yield from report(arm, result)
    widths = [f"FC {width}" for width in WIDTHS]
    for metric, values in (("d_int90", found), ("D", sizes)):
        ratio = max(values[arm] for arm in widths) / min(values[arm] for arm in widths)
        yield Measurement("FC", f"largest by smallest {metric} of the widths", ratio)
    shuffled = shuffle_pixels(splits, torch.Generator().manual_seed(trial.seed))
    for arm in ("FC 200", "LeNet"):
        result = search(trial, shuffled, networks[arm])
        yield from report(f"{arm}, shuffled pixels", result)
        yield Measurement(arm, "d_int90 with shuffled pixels by d_int90", dimension(result) / found[arm])


def search(trial: Trial, splits: Splits, make: Callable[[], nn.Module]) -> Result:
    """The search of one network on one variant of the data."""
    steps = trial.pick(smoke=5, quick=50, full=200)

    def train(model: nn.Module, settings: Settings) -> None:
        budget = Budget(steps=steps)
        fit(model, splits, budget, settings=settings, seed=trial.seed, device=trial.device, evaluate_every=steps)

    return IntrinsicDimension(
        lambda: he_init_(make()),
        train,
        lambda model: evaluate(model, splits.val)["accuracy"],
        trial.pick(smoke=(10, 400), quick=DIMS, full=DIMS),
        settings=[Settings(optimizer="adam", lr=lr, batch_size=64) for lr in RATES],
        seed=trial.seed,
        refine=trial.pick(smoke=0, quick=2, full=2),
        whole_curve=False,
    ).run()


def dimension(result: Result) -> int:
    """d_int90; all D dimensions, which reach any baseline, where none of the grid does."""
    return result.size if result.d_int is None else result.d_int


def report(arm: str, result: Result) -> Iterator[Measurement]:
    """What is known of one network after its search."""
    assert result.baseline is not None
    yield Measurement(arm, "d_int90", dimension(result))
    yield Measurement(arm, "d_int90 / D", dimension(result) / result.size)
    yield Measurement(arm, "searches without success", float(result.d_int is None))
    yield Measurement(arm, "validation accuracy of direct training", result.baseline)
    if result.d_int is not None:
        yield Measurement(arm, "description length in bits", description_length(result))
    for point in result.curve:
        # a training that diverged predicts nothing
        yield Measurement(
            arm, "accuracy by that of direct training", max(0.0, point.score) / result.baseline, at=point.dim
        )


def fc(in_features: int, width: int) -> nn.Module:
    """The paper's fully connected network."""
    return MLP(in_features, (width, width), 10)


def lenet(side: int) -> nn.Module:
    """The paper's LeNet-5 for pictures of 28×28; for smaller ones its kernels are 3×3, with padding."""
    kernel, padding, left = (5, 0, 4) if side == 28 else (3, 1, side // 4)
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel, padding=padding),
        nn.ReLU(),
        nn.MaxPool2d(2),
        MLP(16 * left**2, (120, 84), 10),
    )


def he_init_(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return model
