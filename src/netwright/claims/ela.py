"""Efficient local attention: does it beat none and coordinate attention, and does it look where the object is?"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Split, Splits, load
from netwright.layers.ela import ELA, CoordinateAttention
from netwright.models.vision.mbconv import SqueezeExcite
from netwright.models.vision.resnet import ResNet, resnet_4stage
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="ela",
    title="ELA: Efficient Local Attention for Deep Convolutional Neural Networks",
    arxiv="2403.01123",
    year=2024,
    room="layers",
    says="Gates from the means of rows and columns, channels not squeezed, no batch norm, beat coordinate attention.",
    parts=("layers.ela.ELA", "layers.ela.CoordinateAttention", "layers.ela.insert_attention"),
    checks=(
        Check("ELA helps", metric="accuracy, batch 64", better="higher", arm="ELA-B", baseline="no attention"),
        Check(
            "ELA helps with small batches",
            metric="accuracy, batch 4",
            better="higher",
            arm="ELA-B",
            baseline="no attention",
        ),
        Check(
            "ELA loses at most 0.01 to coordinate attention",
            metric="accuracy, batch 64",
            better="higher",
            arm="ELA-B",
            baseline="coordinate attention",
            margin=-0.01,
        ),
        Check(
            "with fewer parameters",
            metric="parameters of the attention layers",
            better="lower",
            arm="ELA-B",
            baseline="coordinate attention",
        ),
        Check(
            "ELA beats coordinate attention with small batches",
            metric="accuracy, batch 4",
            better="higher",
            arm="ELA-B",
            baseline="coordinate attention",
        ),
        Check(
            "ELA looks at the object more than squeeze-excite does",
            metric="share of the class activation map on the digit",
            better="higher",
            arm="ELA-B",
            baseline="squeeze-excite",
        ),
        Check("size of ELA-B in ResNet-18", metric="added parameters", arm="ResNet-18 + ELA-B", exactly=17280),
        Check("size of ELA-T in ResNet-18", metric="added parameters", arm="ResNet-18 + ELA-T", exactly=13440),
        Check("size of ELA-B in ResNet-50", metric="added parameters", arm="ResNet-50 + ELA-B", exactly=135936),
    ),
    note="A residual network of 8 layers, 16 to 64 channels wide, on CIFAR-10 pictures 16 pixels wide (digits at "
    "quick scale), instead of ResNet-18 and 50 on ImageNet; batches of 64 stand for large ones. The share of "
    "the activation map is that of its positive part for the true class; digits are pasted onto pieces of two "
    "photographs. It is refuted where batches are of 4: both kinds of gates lose to none there. Our reading: "
    "the gates start at about 1/4 and shrink every branch, which costs updates that a short training does not "
    "have. That ELA looks at the object more, and does not lose to coordinate attention, holds at full scale.",
)

SETTINGS = Settings(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, batch_size=64, schedule="cosine")
SMALL = replace(SETTINGS, lr=0.01, batch_size=4)
WIDTHS = (16, 32, 64)
Factory = Callable[[int], nn.Module]
ARMS: dict[str, Factory | None] = {
    "no attention": None,
    "coordinate attention": CoordinateAttention,
    "ELA-B": partial(ELA, variant="B"),
}


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same network, data order, budget and optimiser; only what closes the branches differs."""
    yield from _sizes()
    data = _pictures(trial)
    large = Budget(steps=trial.pick(smoke=4, quick=60, full=390))
    small = Budget(steps=trial.pick(smoke=4, quick=150, full=1_250))
    for arm, attention in ARMS.items():
        for batch, settings, budget in ((64, SETTINGS, large), (4, SMALL, small)):
            model = _train(trial, data, attention, budget, settings)
            yield Measurement(arm, f"accuracy, batch {batch}", evaluate(model, data.test)["accuracy"])
        kinds = (ELA, CoordinateAttention)
        layers = [module for module in model.modules() if isinstance(module, kinds)]
        yield Measurement(arm, "parameters of the attention layers", sum(map(count_params, layers)))
    yield from _localisation(trial)


def _train(trial: Trial, data: Splits, attention: Factory | None, budget: Budget, settings: Settings) -> ResNet:
    trial.seed_everything()
    channels = data.input_shape[0]
    model = ResNet([1, 1, 1], WIDTHS, in_channels=channels, num_classes=data.outputs, attention=attention)
    fit(model, data, budget, settings=settings, seed=trial.seed, device=trial.device)
    return model


def _localisation(trial: Trial) -> Iterator[Measurement]:
    data, boxes = _pasted(trial)
    budget = Budget(steps=trial.pick(smoke=4, quick=70, full=300))
    arms: dict[str, Factory] = {"squeeze-excite": _squeeze_excite, "ELA-B": partial(ELA, variant="B")}
    for arm, attention in arms.items():
        model = _train(trial, data, attention, budget, SETTINGS)
        share = _share_inside(model, data.test, boxes)
        yield Measurement(arm, "share of the class activation map on the digit", share)
        yield Measurement(arm, "accuracy on pasted digits", evaluate(model, data.test)["accuracy"])
    area = boxes.flatten(1).mean().item()
    yield Measurement("a uniform map", "share of the class activation map on the digit", area)


def _squeeze_excite(channels: int) -> nn.Module:
    return SqueezeExcite(channels, max(8, channels // 16))


@torch.no_grad()
def _share_inside(model: ResNet, part: Split, boxes: Tensor) -> float:
    """Mean share of the true class's positive class activation map (Zhou et al. 2016) that is inside of the box."""
    model.eval()
    weight = model.classifier.weight
    assert isinstance(weight, Tensor)
    shares = []
    for start in range(0, len(part), 256):
        inputs, targets = part.inputs[start : start + 256], part.targets[start : start + 256]
        maps = model.stages(model.stem(inputs.to(weight.device))).cpu()
        cam = torch.einsum("bchw,bc->bhw", maps, weight.cpu()[targets]).clamp(min=0)
        large = functional.interpolate(cam[:, None], size=inputs.shape[2:], mode="bilinear")[:, 0]
        inside = (large * boxes[start : start + 256]).sum((1, 2))
        shares.append(inside / large.sum((1, 2)).clamp(min=1e-9))
    return torch.cat(shares).mean().item()


def _pictures(trial: Trial) -> Splits:
    """Digits; at full scale 5,000 CIFAR-10 pictures, 16 pixels wide."""
    if trial.scale == "full":
        data = load("cifar10-12k", train=5_000, seed=trial.seed)
        return data.map(partial(functional.avg_pool2d, kernel_size=2))
    return load("digits", seed=trial.seed)


def _pasted(trial: Trial) -> tuple[Splits, Tensor]:
    """Digits at random places of textured canvases twice as wide, and where they are in the test pictures."""
    if trial.scale == "full":
        source = load("mnist-10k", train=4_000, seed=trial.seed).map(partial(functional.avg_pool2d, kernel_size=2))
    else:
        source = load("digits", seed=trial.seed)
    generator = torch.Generator().manual_seed(trial.seed)
    photographs = [torch.tensor(picture).float().mean(2) / 255 for picture in load_sample_images().images]
    size = source.input_shape[1]

    def paste(part: Split) -> tuple[Split, Tensor]:
        number, canvas = len(part), 2 * size
        digits = part.inputs[:, 0] - part.inputs.min()
        digits = digits / digits.max()
        pieces, boxes = torch.empty(number, canvas, canvas), torch.zeros(number, canvas, canvas)
        places = torch.randint(size + 1, (number, 2), generator=generator).tolist()
        corners = torch.rand(number, 2, generator=generator).tolist()
        for index, ((y, x), (v, u)) in enumerate(zip(places, corners, strict=True)):
            photograph = photographs[index % 2]
            top, left = (int(share * (length - canvas)) for share, length in zip((v, u), photograph.shape, strict=True))
            piece = 0.7 * photograph[top : top + canvas, left : left + canvas]
            region = piece[y : y + size, x : x + size]
            piece[y : y + size, x : x + size] = torch.maximum(region, digits[index])
            pieces[index], boxes[index, y : y + size, x : x + size] = piece, 1
        inputs = (pieces - 0.35) / 0.25
        return Split(inputs[:, None], part.targets), boxes

    (train, _), (val, _), (test, boxes) = (paste(part) for part in (source.train, source.val, source.test))
    shape = (1, 2 * size, 2 * size)
    return replace(source, name="digits on photographs", input_shape=shape, train=train, val=val, test=test), boxes


def _sizes() -> Iterator[Measurement]:
    with torch.device("meta"):
        for depth in (18, 50):
            plain = count_params(resnet_4stage(depth))
            for variant in ("T", "B"):
                model = resnet_4stage(depth, attention=partial(ELA, variant=variant))
                arm = f"ResNet-{depth} + ELA-{variant}"
                yield Measurement(arm, "added parameters", count_params(model) - plain)
