"""BiPer: do weights behind a sine train better binary networks than the sign alone, and does ω rule what it loses?"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.compression.binary import laplace_quantization_error, quantization_error
from netwright.compression.binary_export import export_binary
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.layers.biper import BiPerConv2d, biper_layers, set_stage
from netwright.layers.straight_through import sign_ste
from netwright.models.vision.biper_nets import biper_conv, biper_resnet18, biper_resnet20
from netwright.models.vision.resnet import ConvFactory, conv
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="biper",
    title="BiPer: Binary Neural Networks using a Periodic Function",
    arxiv="2404.01278",
    year=2024,
    room="layers",
    says="Binary weights that are a square wave of latent weights, with the sine as surrogate, train to better "
    "networks than plain signs; the frequency controls the quantization error.",
    parts=(
        "layers.biper.BiPerConv2d",
        "layers.biper.BiPerLinear",
        "layers.biper.square_wave",
        "layers.biper.set_stage",
        "layers.biper.sine_penalty",
        "compression.binary.to_biper",
        "compression.binary.quantization_error",
        "compression.binary.laplace_quantization_error",
        "compression.binary_export.export_binary",
        "compression.binary_export.PackedConv2d",
        "compression.bits.packed_matmul",
        "models.vision.biper_nets.biper_resnet18",
        "models.vision.biper_nets.biper_resnet20",
        "models.vision.biper_nets.biper_vgg_small",
    ),
    checks=(
        Check(
            "a square wave beats the sign with a clipped straight-through gradient",
            metric="accuracy",
            better="higher",
            arm="BiPer",
            baseline="sign",
        ),
        Check(
            "the quantization error falls from ω = 5 to 10",
            metric="relative quantization error",
            better="lower",
            arm="BiPer, ω = 10",
            baseline="BiPer, ω = 5",
        ),
        Check(
            "the quantization error falls from ω = 10 to 20",
            metric="relative quantization error",
            better="lower",
            arm="BiPer, ω = 20",
            baseline="BiPer, ω = 10",
        ),
        Check(
            "the quantization error falls from ω = 20 to 40",
            metric="relative quantization error",
            better="lower",
            arm="BiPer, ω = 40",
            baseline="BiPer, ω = 20",
        ),
        Check(
            "the closed form for Laplace weights",
            metric="largest deviation of the error of a million samples",
            arm="Laplace weights",
            exactly=0.0,
            tolerance=0.001,
        ),
        Check("size of the binary ResNet-18", metric="parameters", arm="BiPer-ResNet18", exactly=11005002),
        Check("binary weights of it", metric="binary weights", arm="BiPer-ResNet18", exactly=10985472),
        Check(
            "its binary layers take less than a thirtieth of the bytes when packed",
            metric="bytes of the packed layers, as a fraction of float32",
            better="lower",
            arm="BiPer-ResNet18",
            baseline=0.0333,
        ),
    ),
    note="The network is the binary ResNet-20 cut to 8 layers, on 2,000 pictures of 16×16 pixels at full scale "
    "(800 at quick), for 6 epochs of stage 1 and 3 of stage 2 (3 and 1.5) without augmentation; the paper "
    "trains for 600 and 300. Every arm takes the best on the validation part of three learning rates: the "
    "released ones for CIFAR-10 and for ImageNet, and one five times larger, since the short training prefers "
    "large ones. Weight decay and the step between the stages are as released. The error by ω is that of "
    "networks trained at that ω, on digits, averaged over layers.",
)

FIRST = Settings(
    optimizer="sgd", lr=0.021, momentum=0.9, weight_decay=1.6e-3, batch_size=128, schedule="cosine", warmup=0.05
)
SECOND_LR = 3.7e-3 / 0.021
RATES = (0.021, 0.1, 0.5)
FREQUENCIES = (5.0, 10.0, 20.0, 40.0)


class SignConv2d(BiPerConv2d):
    """The same layer with the sign of w as its weight, in both stages, and the gradient of w clipped to [−1, 1]."""

    def binary_weight(self) -> Tensor:
        return sign_ste(self.weight)


ARMS: dict[str, ConvFactory] = {
    "BiPer": biper_conv(freq=20.0),
    "sign": partial(SignConv2d, bias=False),
    "real-valued": conv,
}


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same network, data order, steps and choice of learning rates; the inner convolutions differ."""
    yield from _sizes()
    yield from _closed_form(trial)
    data = _pictures(trial)
    epochs = trial.pick(smoke=(0.3, 0.2), quick=(3.0, 1.5), full=(6.0, 3.0))
    for arm, make in ARMS.items():
        trained = [_train(trial, data, make, epochs, lr) for lr in RATES]
        best = max(trained, key=lambda model: evaluate(model, data.val)["accuracy"])
        yield Measurement(arm, "accuracy", evaluate(best, data.test)["accuracy"])
        yield Measurement(arm, "learning rate that was taken", RATES[trained.index(best)])
    yield from _frequencies(trial)


def _train(trial: Trial, data: Splits, make: ConvFactory, epochs: tuple[float, float], lr: float) -> nn.Module:
    trial.seed_everything()
    model = biper_resnet20(data.outputs, in_channels=data.input_shape[0], depth=8, conv=make)
    first = replace(FIRST, lr=lr)
    second = replace(FIRST, lr=lr * SECOND_LR, weight_decay=FIRST.weight_decay / 10)
    for stage, (share, settings) in enumerate(zip(epochs, (first, second), strict=True), start=1):
        if make is not conv:
            set_stage(model, stage)
        never = len(data.train) * 100
        budget = Budget(epochs=share)
        fit(model, data, budget, settings=settings, seed=trial.seed, device=trial.device, evaluate_every=never)
    return model


def _frequencies(trial: Trial) -> Iterator[Measurement]:
    data = load("digits", seed=trial.seed)
    for freq in FREQUENCIES:
        arm = f"BiPer, ω = {freq:g}"
        epochs = trial.pick(smoke=(0.3, 0.3), quick=(3.0, 1.5), full=(8.0, 4.0))
        model = _train(trial, data, biper_conv(freq), epochs, lr=FIRST.lr)
        errors = [quantization_error(m.weight, freq, relative=True) for m in biper_layers(model).values()]
        for layer, error in enumerate(errors, start=1):
            yield Measurement(arm, "relative quantization error, by layer", error, at=layer)
        yield Measurement(arm, "relative quantization error", sum(errors) / len(errors))
        yield Measurement(arm, "accuracy on digits", evaluate(model, data.test)["accuracy"])


def _closed_form(trial: Trial) -> Iterator[Measurement]:
    trial.seed_everything()
    weight = torch.distributions.Laplace(0.0, 0.1).sample(torch.Size([1_000_000]))
    deviations = []
    for freq in FREQUENCIES:
        relative = quantization_error(weight, freq, relative=True)
        yield Measurement("Laplace weights", "relative quantization error, by ω", relative, at=freq)
        deviations.append(abs(quantization_error(weight, freq) - laplace_quantization_error(0.1, freq)))
    yield Measurement("Laplace weights", "largest deviation of the error of a million samples", max(deviations))


def _sizes() -> Iterator[Measurement]:
    arm = "BiPer-ResNet18"
    with torch.device("meta"):
        model = biper_resnet18(stage=2)
        layers = biper_layers(model).values()
        packed = export_binary(nn.ModuleList(layers))
    latent = sum(p.nbytes for layer in layers for p in layer.parameters())
    yield Measurement(arm, "parameters", count_params(model))
    yield Measurement(arm, "binary weights", sum(layer.weight.numel() for layer in layers))
    fraction = sum(buffer.nbytes for buffer in packed.buffers()) / latent
    yield Measurement(arm, "bytes of the packed layers, as a fraction of float32", fraction)


def _pictures(trial: Trial) -> Splits:
    """Digits, or CIFAR-10 at half its resolution."""
    if trial.scale == "smoke":
        return load("digits", seed=trial.seed)
    data = load("cifar10-12k", train=trial.pick(smoke=0, quick=800, full=2_000), seed=trial.seed)
    return data.map(lambda pictures: functional.avg_pool2d(pictures, 2))
