"""Complex CNNs on data that is complex: better than real ones of as many channels, and of as many numbers?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from netwright.analysis.fair_width import matched_widths
from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Split, Splits, Task, load
from netwright.data.kspace import two_discs, undersampled
from netwright.layers.complex import ComplexConv2d
from netwright.layers.complex_norm import ComplexBatchNorm2d
from netwright.models.vision.complex_resnet import ComplexResNet, Kind, widths_of
from netwright.models.vision.complex_unet import ComplexUNet
from netwright.training import Budget, Settings, evaluate, fit
from netwright.training.evaluation import predict

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CLAIM = Claim(
    slug="complex-cnn",
    title="Complex Network for Complex Problems: A comparative study of CNN and Complex-valued CNN",
    arxiv="2302.04584",
    year=2022,
    room="layers",
    says="On complex data a complex CNN beats a real CNN of as many channels, and one of as many real numbers.",
    parts=(
        "layers.complex.ComplexConv2d",
        "layers.complex.ComplexConv1d",
        "layers.complex.ComplexConv3d",
        "layers.complex.ComplexConvTranspose2d",
        "layers.complex.ComplexLinear",
        "layers.complex.ComplexDropout",
        "layers.complex.complex_init_",
        "layers.complex_norm.ComplexBatchNorm2d",
        "layers.complex_norm.ComplexLayerNorm",
        "layers.complex_norm.ComplexGroupNorm",
        "layers.complex_activations.CReLU",
        "layers.complex_activations.ZReLU",
        "layers.complex_activations.ModReLU",
        "layers.complex_activations.CModReLU",
        "layers.complex_activations.Cardioid",
        "layers.complex_activations.ComplexMaxPool2d",
        "layers.complex_activations.SpectralUpsample2d",
        "layers.complex_network.to_complex",
        "models.vision.complex_resnet.ComplexResNet",
        "models.vision.complex_unet.ComplexUNet",
        "analysis.fair_width.matched_width",
        "analysis.fair_width.matched_widths",
    ),
    checks=(
        Check("complex beats CNN at classifying", metric="accuracy", arm="complex", baseline="CNN"),
        Check("complex beats CNNx2 at classifying", metric="accuracy", arm="complex", baseline="CNNx2"),
        Check(
            "CNNx2 loses at most 0.01 to CNN at classifying",
            metric="accuracy",
            arm="CNNx2",
            baseline="CNN",
            margin=-0.01,
        ),
        Check("complex beats CNN at segmenting", metric="Dice", arm="complex", baseline="CNN"),
        Check("complex beats CNNx2 at segmenting", metric="Dice", arm="complex", baseline="CNNx2"),
        Check(
            "CNNx2 loses at most 0.01 to CNN at segmenting", metric="Dice", arm="CNNx2", baseline="CNN", margin=-0.01
        ),
        Check(
            "CNNx2 has as many numbers, classifying",
            metric="numbers, as a fraction of the complex classifier's",
            arm="CNNx2",
            exactly=1.0,
            tolerance=0.01,
        ),
        Check(
            "CNNx2 has as many numbers, segmenting",
            metric="numbers, as a fraction of the complex segmenter's",
            arm="CNNx2",
            exactly=1.0,
            tolerance=0.01,
        ),
        Check(
            "a complex convolution has twice the numbers",
            metric="numbers, as a multiple of the real convolution's",
            arm="complex",
            exactly=2.0,
        ),
        Check("whitening has five per channel", metric="numbers per channel of the norm", arm="complex", exactly=5.0),
    ),
    note="Small networks (ResNet of 8 layers, U-Net of 3 levels) on digits of which 40 % of the lines of the spectrum "
    "are known, and on phantoms from noisy spectra; the paper classifies and segments tumours. All arms see the "
    "pictures that the inverse transform makes of the spectra, not the spectra: what stands where in a spectrum "
    "is no matter for convolutions. Fashion-MNIST is replaced by MNIST. All arms train at one learning rate, "
    "3e-3, which was tuned for none, for a few epochs. The complex classifier reads moduli, which are not "
    "negative, as its logits; segmenting reads real parts in all arms. Whether arms differ on real pictures is "
    "measured, not checked. That complex beats the others is checked by the interval of paired differences, where "
    "the proposal was one standard error. Our reading of what is refuted: a complex weight is two real ones tied "
    "to each other; the real twin has as many, untied, in more channels, and the phase of these pictures (one "
    "turn for all pixels, or a smooth wave) can be learned without the tie. In one seed the real network "
    "segmented nothing, which makes two checks inconclusive.",
)

SETTINGS = Settings(optimizer="adam", lr=3e-3, batch_size=32, schedule="cosine")
ARMS: dict[str, Kind] = {"CNN": "real", "CNNx2": "real_x2", "complex": "complex"}
WIDTH = 8
KEEP = 0.4
NOISE = 0.5


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same depth, data, order of the data, budget and optimiser."""
    yield from _counts()
    pictures = _digits(trial)
    generator = torch.Generator().manual_seed(trial.seed)
    hidden = pictures.map(lambda images: _pairs(undersampled(images, KEEP, generator)))
    plain = pictures.map(lambda images: _pairs(torch.complex(images, torch.zeros_like(images))))
    budget = Budget(epochs=trial.pick(smoke=1.0, quick=4.0, full=6.0))
    for data, metric in ((hidden, "accuracy"), (plain, "accuracy on plain real pictures")):
        for arm, kind in ARMS.items():
            trial.seed_everything()
            model = _matched(lambda width, kind: ComplexResNet(8, width, kind), kind)
            fit(model, data, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
            accuracy = evaluate(model, data.test)["accuracy"]
            yield Measurement(arm, metric, accuracy)
            if metric == "accuracy":
                yield Measurement(arm, "accuracy against numbers", accuracy, at=count_params(model))
    phantoms = _phantoms(trial)
    budget = Budget(epochs=trial.pick(smoke=1.0, quick=6.0, full=8.0))
    for arm, kind in ARMS.items():
        trial.seed_everything()
        model = _segmenter(kind)
        fit(model, phantoms, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
        found = dice(predict(model, phantoms.test.inputs), phantoms.test.targets)
        yield Measurement(arm, "Dice", found)
        yield Measurement(arm, "Dice against numbers", found, at=count_params(model))


def dice(outputs: Tensor, targets: Tensor) -> float:
    """Mean over pictures of 2·|A∩B| / (|A| + |B|), where A is where the output is above 1/2."""
    marked = (outputs > 0.5).to(targets.dtype)
    both = (marked * targets).sum(1)
    return (2 * both / (marked.sum(1) + targets.sum(1)).clamp_min(1)).mean().item()


def _matched(build: Callable[..., nn.Module], kind: Kind) -> nn.Module:
    """A network of the kind; CNNx2 with the widths that give it as many numbers as the complex one."""
    if kind != "real_x2":
        return build(WIDTH, kind)
    with torch.device("meta"):
        numbers = count_params(build(WIDTH, "complex"))
    return build(matched_widths(lambda widths: build(widths, kind), widths_of("complex", WIDTH, 3), numbers), kind)


def _segmenter(kind: Kind) -> nn.Module:
    return nn.Sequential(_matched(lambda width, kind: ComplexUNet(width, kind), kind), nn.Flatten())


def _counts() -> Iterator[Measurement]:
    with torch.device("meta"):
        conv, complex_conv = nn.Conv2d(8, 16, 3), ComplexConv2d(8, 16, 3)
        ratio = count_params(complex_conv) / count_params(conv)
        yield Measurement("complex", "numbers, as a multiple of the real convolution's", ratio)
        yield Measurement("complex", "numbers per channel of the norm", count_params(ComplexBatchNorm2d(8)) / 8)
        networks: dict[str, Callable[..., nn.Module]] = {
            "classifier": lambda width, kind: ComplexResNet(8, width, kind),
            "segmenter": lambda width, kind: ComplexUNet(width, kind),
        }
        for name, build in networks.items():
            sizes = {arm: count_params(_matched(build, kind)) for arm, kind in ARMS.items()}
            for arm, size in sizes.items():
                metric = f"numbers, as a fraction of the complex {name}'s"
                yield Measurement(arm, metric, size / sizes["complex"])
                yield Measurement(arm, f"numbers of the {name}", size)


def _digits(trial: Trial) -> Splits:
    """Digits of 8×8 pixels; at full scale MNIST's, of 14×14."""
    if trial.scale == "full":
        data = load("mnist-10k", train=1_200, seed=trial.seed)
        return data.map(lambda images: nn.functional.avg_pool2d(images, 2))
    data = load("digits", seed=trial.seed)
    return replace(data, train=data.train.take(torch.arange(trial.pick(smoke=256, quick=700, full=0))))


def _phantoms(trial: Trial) -> Splits:
    size = trial.pick(smoke=16, quick=16, full=24)
    generator = torch.Generator().manual_seed(trial.seed)

    def part(samples: int) -> Split:
        phantoms = two_discs(samples, size, NOISE, generator)
        return Split(_pairs(phantoms.images), phantoms.masks.flatten(1))

    train, held_out = trial.pick(smoke=32, quick=300, full=300), trial.pick(smoke=20, quick=100, full=200)
    parts = (part(train), part(20), part(held_out))
    return Splits("two discs", *parts, Task.TABULAR_REGRESSION, (2, size, size))


def _pairs(images: Tensor) -> Tensor:
    return torch.cat([images.real, images.imag], 1)


def draw() -> Figure:
    """A phantom as it is measured and as it is reconstructed, and what each network marks in it."""
    from plotly.graph_objects import Heatmap
    from plotly.subplots import make_subplots

    trial = Trial(seed=0, scale="quick")
    data = _phantoms(trial)
    pairs = data.test.inputs[:1]
    image = torch.complex(pairs[0, 0], pairs[0, 1])
    spectrum = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho")).abs().log10()
    panels: list[tuple[str, Tensor, dict[str, object]]] = [
        ("measured: log₁₀ |spectrum|", spectrum, {"colorscale": "Viridis"}),
        ("modulus", image.abs(), {"colorscale": "Greys_r"}),
        ("phase", image.angle(), {"colorscale": "Phase", "zmin": -torch.pi, "zmax": torch.pi}),
        ("true discs", data.test.targets[0].view(image.shape), {"colorscale": "Greys_r", "zmin": 0, "zmax": 1}),
    ]
    for arm, kind in ARMS.items():
        trial.seed_everything()
        model = _segmenter(kind)
        fit(model, data, Budget(epochs=6.0), settings=SETTINGS, seed=0)
        outputs = predict(model, data.test.inputs)
        title = (
            f"{arm}: Dice {dice(outputs[:1], data.test.targets[:1]):.2f} (all: {dice(outputs, data.test.targets):.2f})"
        )
        panels.append((title, outputs[0].view(image.shape), {"colorscale": "Greys_r", "zmin": 0, "zmax": 1}))
    figure: Figure = make_subplots(rows=2, cols=4, subplot_titles=[title for title, _, _ in panels])
    for number, (_, values, style) in enumerate(panels):
        heatmap = Heatmap(z=values.tolist(), showscale=False, **style)
        figure.add_trace(heatmap, row=number // 4 + 1, col=number % 4 + 1)
    figure.update_xaxes(visible=False, constrain="domain")
    figure.update_yaxes(visible=False, autorange="reversed", constrain="domain")
    for number in range(len(panels)):
        axis = "" if number == 0 else str(number + 1)
        figure.update_layout({f"yaxis{axis}_scaleanchor": f"x{axis}"})
    return figure.update_layout(title="A phantom from a noisy spectrum, segmented by three networks")
