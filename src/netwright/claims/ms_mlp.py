"""MS-MLP: is shifting and mixing together better than either alone, and is the footprint what the paper draws?"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.layers.mix_shift import KERNELS, SHIFTS, MixShift, receptive_field
from netwright.models.vision.ms_mlp import MSMLP, STAGE_KERNELS, ms_mlp
from netwright.models.vision.vit import LayerScale, Mlp
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="ms-mlp",
    title="Mixing and Shifting: Exploiting Global and Local Dependencies in Vision MLPs",
    arxiv="2202.06510",
    year=2022,
    room="layers",
    says="Shifted copies of the map, each mixed by a window that grows with the shift, are enough to mix space; "
    "shifting alone is not.",
    parts=(
        "layers.mix_shift.MixShift",
        "layers.mix_shift.receptive_field",
        "layers.mix_shift_conv.mix_shift_like",
        "layers.mix_shift_conv.to_mix_shift",
        "models.vision.ms_mlp.MixShiftBlock",
        "models.vision.ms_mlp.MSMLP",
        "models.vision.ms_mlp.ms_mlp",
    ),
    checks=(
        Check(
            "shifting and mixing beats shifting alone",
            metric="accuracy",
            better="higher",
            arm="Mix-Shift",
            baseline="shift only",
        ),
        Check(
            "it loses at most 0.01 to mixing without shifts",
            metric="accuracy",
            better="higher",
            arm="Mix-Shift",
            baseline="depth-wise convolution only",
            margin=-0.01,
        ),
        Check(
            "all arms have the same size within 3 %",
            metric="largest deviation from the size of Mix-Shift",
            better="lower",
            arm="all",
            baseline=0.03,
        ),
        Check(
            "the footprint is the union of the shifted windows",
            metric="pixels that are wrong in the footprint",
            arm="Mix-Shift",
            exactly=0,
        ),
        Check("size of MS-MLP tiny", metric="parameters", arm="MS-MLP tiny", exactly=28656232),
        Check("size of MS-MLP base", metric="parameters", arm="MS-MLP base", exactly=88696792),
    ),
    note="Six blocks, 40 wide, on 8×8 patches of pictures of 16×16 pixels, and a few epochs; the paper trains "
    "pyramids of 18 to 36 blocks on ImageNet. The factors of the branches start at 0.1, as is usual in "
    "networks this shallow, instead of 1e-6. The margin of 0.01 is one standard error of an accuracy measured "
    "on 2,000 pictures. The MLP-mixer has its usual block, with a norm and a residual of their own for the "
    "mixing of pixels. After a first look at seeds 0 to 2 of the quick scale, where a learning rate of 0.001 "
    "had left all four arms untrained, it was chosen among six for the arm without shifts alone, on "
    "validation pictures at full scale with another seed.",
)

DIM, RATIO, SCALE = 40, 4.0, 0.1
NONE = (0,) * len(SHIFTS)
ONES = (1,) * len(KERNELS)


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same data, order, budget and optimiser; the hidden layers make up for what the mixers differ in."""
    yield from _sizes()
    yield from _footprint(trial)
    data = _pictures(trial)
    network = partial(
        MSMLP,
        DIM,
        (trial.pick(smoke=2, quick=6, full=6),),
        num_classes=data.outputs,
        image_size=data.input_shape[-1],
        patch_size=trial.pick(smoke=1, quick=2, full=2),
        in_channels=data.input_shape[0],
        layer_scale=SCALE,
    )
    # without windows there are 2 · (mean of k² − 1) weights fewer for each channel, which 2 · DIM times a channel of
    # the hidden layer makes up for
    fewer = 2 * (sum(k**2 for k in KERNELS) / len(KERNELS) - 1)
    arms = {
        "Mix-Shift": partial(network, shifts=SHIFTS, kernels=(KERNELS,), mlp_ratio=RATIO),
        "shift only": partial(network, shifts=SHIFTS, kernels=(ONES,), mlp_ratio=RATIO + fewer / (2 * DIM)),
        "depth-wise convolution only": partial(network, shifts=NONE, kernels=(KERNELS,), mlp_ratio=RATIO),
        "MLP-mixer": partial(_mixer, network),
    }
    settings = Settings(optimizer="adamw", lr=8e-3, weight_decay=0.05, batch_size=32, schedule="cosine", warmup=0.1)
    budget = Budget(epochs=trial.pick(smoke=0.5, quick=3.0, full=4.0))
    sizes = {}
    for arm, make in arms.items():
        trial.seed_everything()
        model = make()
        sizes[arm] = count_params(model)
        history = fit(model, data, budget, settings=settings, seed=trial.seed, device=trial.device)
        for record in history.records:
            yield Measurement(arm, "validation accuracy while training", record["val_accuracy"], at=record["epoch"])
        yield Measurement(arm, "accuracy", evaluate(model, data.test)["accuracy"])
        yield Measurement(arm, "parameters", sizes[arm])
    deviation = max(abs(size / sizes["Mix-Shift"] - 1) for size in sizes.values())
    yield Measurement("all", "largest deviation from the size of Mix-Shift", deviation)


def _sizes() -> Iterator[Measurement]:
    with torch.device("meta"):
        yield Measurement("MS-MLP tiny", "parameters", count_params(ms_mlp("tiny")))
        yield Measurement("MS-MLP base", "parameters", count_params(ms_mlp("base")))


def _footprint(trial: Trial) -> Iterator[Measurement]:
    """Where the gradient of an inner pixel is not zero, by the number of channels, in both modes of the layer."""
    trial.seed_everything()
    wrong = 0
    for kernels in STAGE_KERNELS:
        for training in (True, False):
            layer = MixShift(DIM, kernels=kernels).train(training)
            expected = receptive_field(layer)
            reach = len(expected) // 2
            pictures = torch.zeros(1, DIM, 24, 24, requires_grad=True)
            (gradient,) = torch.autograd.grad(layer(pictures)[0, :, 12, 12].sum(), pictures)
            footprint = (gradient[0] != 0).sum(0)
            around = slice(12 - reach, 12 + reach + 1)
            wrong += int((footprint[around, around] != expected).sum())
            footprint[around, around] = 0
            wrong += int(footprint.count_nonzero())
    yield Measurement("Mix-Shift", "pixels that are wrong in the footprint", wrong)


def _pictures(trial: Trial) -> Splits:
    """Digits; beyond smoke scale CIFAR-10 pictures of 16×16 pixels."""
    if trial.scale == "smoke":
        return load("digits", seed=trial.seed)
    data = load("cifar10-12k", train=trial.pick(smoke=0, quick=800, full=3_500), seed=trial.seed)
    return data.map(partial(functional.avg_pool2d, kernel_size=2))


def _mixer(network: partial[MSMLP]) -> MSMLP:
    """The same network with the blocks of the MLP-mixer (Tolstikhin et al. 2021, arXiv:2105.01601)."""
    model = network(shifts=NONE, kernels=(KERNELS,), mlp_ratio=RATIO)
    tokens = 64
    # as many weights as the mixing of Mix-Shift has
    hidden = round(2 * DIM * sum(k**2 + 1 for k in KERNELS) / len(KERNELS) / (2 * tokens))
    model.stages[0] = nn.Sequential(*(_MixerBlock(tokens, hidden) for _ in range(len(model.stages[0]))))  # type: ignore[arg-type]
    return model


class _MixerBlock(nn.Module):
    """Pre-norm residual blocks: an MLP over the pixels of each channel, then one over the channels of each pixel."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.space = nn.Sequential(_Transposed(tokens, hidden), LayerScale(DIM, SCALE))
        self.channels = nn.Sequential(nn.LayerNorm(DIM), Mlp(DIM, int(RATIO * DIM)), LayerScale(DIM, SCALE))

    def forward(self, input: Tensor) -> Tensor:
        tokens = input.flatten(2).transpose(1, 2)
        tokens = tokens + self.space(tokens)
        tokens = tokens + self.channels(tokens)
        output: Tensor = tokens.transpose(1, 2).reshape(input.shape)
        return output


class _Transposed(nn.Module):
    """A norm over the channels, then an MLP over the tokens."""

    def __init__(self, tokens: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.mlp = Mlp(tokens, hidden)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.mlp(self.norm(input).transpose(1, 2))
        return output.transpose(1, 2)
