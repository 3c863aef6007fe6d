"""Poincaré ResNet: do identity starts keep norms, is the midpoint fast, do hand-written backwards save memory?"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params, saved_bytes
from netwright.data import Splits, load
from netwright.layers.hyperbolic import Backward, PoincareBall
from netwright.layers.hyperbolic_layers import Init, PoincareLinear
from netwright.layers.hyperbolic_norm import Mean, PoincareBatchNorm2d
from netwright.models.vision.poincare_resnet import PoincareResNet, euclidean_twin
from netwright.training import Budget, Settings, evaluate, fit
from netwright.verify.pgd import adversarial_accuracy

if TYPE_CHECKING:
    import plotly.graph_objects as go

CLAIM = Claim(
    slug="poincare-resnet",
    title="Poincaré ResNet",
    arxiv="2303.14027",
    year=2023,
    room="layers",
    says="Networks can be hyperbolic throughout: identity starts keep norms over depth, midpoints make batch "
    "normalisation fast, and backwards by hand make it fit into memory.",
    parts=(
        "layers.hyperbolic.PoincareBall",
        "layers.hyperbolic_layers.PoincareLinear",
        "layers.hyperbolic_layers.PoincareConv2d",
        "layers.hyperbolic_layers.mobius_skip",
        "layers.hyperbolic_norm.PoincareBatchNorm",
        "layers.hyperbolic_norm.PoincareBatchNorm2d",
        "layers.hyperbolic_network.to_poincare",
        "models.vision.poincare_resnet.PoincareResNet",
    ),
    checks=(
        Check(
            "the identity start keeps at least 0.8 of the norm",
            metric="norm after 20 layers, as a multiple of the input's",
            better="higher",
            arm="identity",
            baseline=0.8,
        ),
        Check(
            "and at most 1.2 of it",
            metric="norm after 20 layers, as a multiple of the input's",
            better="lower",
            arm="identity",
            baseline=1.2,
        ),
        Check(
            "the normal start loses it",
            metric="norm after 20 layers, as a multiple of the input's",
            better="lower",
            arm="normal",
            baseline=0.01,
        ),
        Check(
            "batch normalisation with the Fréchet mean takes 3 times as long",
            metric="time of batch normalisation, as a multiple of the midpoint's",
            better="higher",
            arm="Fréchet mean",
            baseline=3.0,
        ),
        Check(
            "the midpoint loses at most 0.02 of accuracy",
            metric="accuracy on digits",
            better="higher",
            arm="Poincaré",
            baseline="Fréchet mean",
            margin=-0.02,
        ),
        Check(
            "and gains at most 0.02",
            metric="accuracy on digits",
            better="lower",
            arm="Poincaré",
            baseline="Fréchet mean",
            margin=0.02,
        ),
        Check(
            "hand-written backwards keep at most 0.6 of the bytes",
            metric="bytes kept by the network, as a fraction of autograd's",
            better="lower",
            arm="written",
            baseline=0.6,
        ),
        Check(
            "and so do those of the ball's operations",
            metric="bytes kept by the operations, as a fraction of autograd's",
            better="lower",
            arm="written",
            baseline=0.6,
        ),
        Check(
            "loses at most 0.05 to the Euclidean network",
            metric="accuracy",
            better="higher",
            arm="Poincaré",
            baseline="Euclidean",
            margin=-0.05,
        ),
        Check(
            "is more accurate under attack",
            metric="accuracy under attack",
            better="higher",
            arm="Poincaré",
            baseline="Euclidean",
        ),
        Check("size of (8, 16, 32), depth 20", metric="parameters", arm="8-16-32, depth 20", exactly=68757),
        Check("size of (4, 8, 16), depth 32", metric="parameters", arm="4-8-16, depth 32, 100 classes", exactly=31391),
        Check("size of (16, 32, 64), depth 32", metric="parameters", arm="16-32-64, depth 32", exactly=466841),
    ),
    note="A network of depth 8 and a few epochs; the paper trains depths 20 and 32 for hundreds. At quick scale, "
    "accuracy and attack are on digits, at full scale on 5,000 CIFAR-10 pictures of 16×16 pixels. All arms train "
    "with Adam at a rate of 0.01, which was tuned for none. The attack is one step along the sign of the "
    "gradient. In both arms of the memory check the layers are in the closed form of this library, which forms no "
    "patches, so that only the backward differs. The Fréchet mean is quick here: it iterates weighted midpoints, "
    "and its gradient does not go through the iteration.",
)

SETTINGS = Settings(optimizer="adam", lr=0.01, weight_decay=1e-4, batch_size=64, schedule="cosine")
SIZES = {
    "8-16-32, depth 20": (10, (8, 16, 32), 20),
    "4-8-16, depth 32, 100 classes": (100, (4, 8, 16), 32),
    "16-32-64, depth 32": (10, (16, 32, 64), 32),
}
# one step of the sign of the gradient, in standard deviations of the pixels; for CIFAR-10 about 3.2/255, the largest of
# the authors' attacks
EPS = {"digits": 0.1, "cifar": 0.05}


def run(trial: Trial) -> Iterator[Measurement]:
    """Norms, sizes, memory and time first; then networks with the same data, order, budget and optimiser."""
    yield from _norms(trial)
    yield from _sizes()
    yield from _memory(trial)
    yield from _time(trial)
    digits = load("digits", seed=trial.seed)
    budget = Budget(epochs=trial.pick(smoke=0.15, quick=3.0, full=5.0))
    for arm in ("Poincaré", "Fréchet mean"):
        model = _trained(arm, digits, budget, trial)
        yield Measurement(arm, "accuracy on digits", evaluate(model, digits.test)["accuracy"])
        if arm == "Poincaré" and trial.scale != "full":
            yield from _scores(arm, model, digits, EPS["digits"])
    pictures, eps = digits, EPS["digits"]
    arms = ["Euclidean"]
    if trial.scale == "full":
        data = load("cifar10-12k", train=5_000, seed=trial.seed)
        pictures, eps = data.map(partial(functional.avg_pool2d, kernel_size=2)), EPS["cifar"]
        arms, budget = ["Poincaré", "Euclidean"], Budget(epochs=4.0)
    for arm in arms:
        yield from _scores(arm, _trained(arm, pictures, budget, trial), pictures, eps)


def _trained(arm: str, data: Splits, budget: Budget, trial: Trial) -> nn.Module:
    trial.seed_everything()
    channels = data.input_shape[0]
    if arm == "Euclidean":
        model = euclidean_twin(data.outputs, depth=8, in_channels=channels)
    else:
        mean: Mean = "midpoint" if arm == "Poincaré" else "frechet"
        model = PoincareResNet(data.outputs, depth=8, in_channels=channels, mean=mean)
    fit(model, data, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
    return model


def _scores(arm: str, model: nn.Module, data: Splits, eps: float) -> Iterator[Measurement]:
    yield Measurement(arm, "accuracy", evaluate(model, data.test)["accuracy"])
    for share in (0.25, 0.5, 0.75, 1.0):  # the authors' four sizes of the attack
        size = eps * share
        accuracy = adversarial_accuracy(
            model, data.test.inputs, data.test.targets, size, size, steps=1, random_start=False
        )
        yield Measurement(arm, "accuracy by size of the attack", accuracy, at=size)
        if share == 1.0:
            yield Measurement(arm, "accuracy under attack", accuracy)


def _norms(trial: Trial) -> Iterator[Measurement]:
    """Vectors of norm 0.5 through 20 layers of width 32."""
    for init in get_args(Init):
        trial.seed_everything()
        ball = PoincareBall()
        vectors = functional.normalize(torch.randn(256, 32)) / 2
        with torch.no_grad():
            for layer in range(1, 21):
                vectors = PoincareLinear(32, 32, ball, init=init)(vectors)
                ratio = vectors.norm(dim=1).mean().item() / 0.5
                yield Measurement(init, "norm by depth, as a multiple of the input's", ratio, at=layer)
        yield Measurement(init, "norm after 20 layers, as a multiple of the input's", ratio)


def _sizes() -> Iterator[Measurement]:
    with torch.device("meta"):
        for arm, (classes, channels, depth) in SIZES.items():
            yield Measurement(arm, "parameters", count_params(PoincareResNet(classes, channels, depth)))


def _memory(trial: Trial) -> Iterator[Measurement]:
    """What backward passes keep: of the network of depth 8, and of the five operations that the paper names."""
    trial.seed_everything()
    pictures = torch.randn(trial.pick(smoke=4, quick=32, full=32), 3, 16, 16)
    x, y, v = torch.randn(3, 1_000, 16).mul_(0.2).unbind()
    kept: dict[str, tuple[int, int]] = {}
    for backward in get_args(Backward):
        trial.seed_everything()
        ball = PoincareBall(backward=backward)
        operations: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
            (ball.mobius_add, (x, y)),
            (ball.project, (x,)),
            (ball.expmap0, (v,)),
            (ball.logmap0, (x,)),
            (ball.transp, (x, y, v)),
        ]
        # its arguments are kept for each of them, and by the network around it
        arguments = sum(len(inputs) * x.numel() * x.element_size() for _, inputs in operations)
        beyond = sum(
            saved_bytes(operation, *(t.clone().requires_grad_() for t in inputs)) for operation, inputs in operations
        )
        kept[backward] = saved_bytes(PoincareResNet(depth=8, backward=backward), pictures), arguments + beyond
    for arm, (network, operation_bytes) in kept.items():
        whole, parts = kept["autograd"]
        yield Measurement(arm, "bytes kept by the network, as a fraction of autograd's", network / whole)
        yield Measurement(arm, "bytes kept by the operations, as a fraction of autograd's", operation_bytes / parts)


def _time(trial: Trial) -> Iterator[Measurement]:
    """Forward and backward pass of one batch normalisation; in turns, so that a busy machine slows both alike."""
    trial.seed_everything()
    maps = torch.randn(trial.pick(smoke=4, quick=64, full=64), 16, 16, 16).requires_grad_()
    arms: dict[str, Mean] = {"midpoint": "midpoint", "Fréchet mean": "frechet"}
    norms = {arm: PoincareBatchNorm2d(16, PoincareBall(0.1), mean) for arm, mean in arms.items()}
    seconds: dict[str, list[float]] = {arm: [] for arm in norms}
    for turn in range(trial.pick(smoke=4, quick=12, full=22)):
        for arm, norm in norms.items():
            start = time.perf_counter()
            torch.autograd.grad(norm(maps).square().sum(), [maps, *norm.parameters()])
            if turn >= 2:
                seconds[arm].append(time.perf_counter() - start)
    for arm, times in seconds.items():
        ratios = [mine / base for mine, base in zip(times, seconds["midpoint"], strict=True)]
        yield Measurement(arm, "time of batch normalisation, as a multiple of the midpoint's", median(ratios))


def draw() -> "go.Figure":
    """Digits in the Poincaré disc: a network that sends each picture to a point of two coordinates."""
    import plotly.express as px
    import plotly.graph_objects as go

    torch.manual_seed(0)
    data = load("digits", seed=0)
    encoder = PoincareResNet(2, depth=8, c=1.0, in_channels=1)
    ball = encoder.classifier.ball
    assert isinstance(ball, PoincareBall)
    model = nn.Sequential(encoder, PoincareLinear(2, 10, ball, init="normal"))
    fit(model, data, Budget(epochs=8), settings=SETTINGS, seed=0)
    model.eval()
    with torch.no_grad():
        points = ball.expmap0(encoder(data.test.inputs))
        accuracy = evaluate(model, data.test)["accuracy"]
    figure = go.Figure()
    colours = px.colors.qualitative.D3
    for digit in range(10):
        mine = points[data.test.targets == digit]
        middle = ball.midpoint(mine)
        figure.add_scatter(
            x=mine[:, 0].tolist(),
            y=mine[:, 1].tolist(),
            mode="markers",
            name=str(digit),
            marker={"color": colours[digit], "size": 6, "opacity": 0.6},
        )
        figure.add_annotation(
            x=middle[0].item(), y=middle[1].item(), text=f"<b>{digit}</b>", showarrow=False, font={"size": 18}
        )
    figure.add_shape(type="circle", x0=-1, y0=-1, x1=1, y1=1, line={"color": "grey"})
    figure.update_xaxes(range=[-1.05, 1.05], visible=False)
    figure.update_yaxes(range=[-1.05, 1.05], visible=False, scaleanchor="x")
    figure.update_layout(
        title=f"Test digits in the Poincaré disc: each picture is one point, numbers are midpoints of the classes "
        f"(accuracy {accuracy:.2f} from two coordinates)",
        legend_title="digit",
    )
    return figure
