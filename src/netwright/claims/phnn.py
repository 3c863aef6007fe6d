"""Hypercomplex networks: is the algebra learned, are the sizes right, and does n = 3 serve colour pictures best?"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.cost import count_params
from netwright.data import Splits, load
from netwright.layers.algebra import QUATERNION
from netwright.layers.hypercomplex import PHMLinear, hypercomplex_weight, pad_channels
from netwright.models.vision.phc import phc_conv, phc_resnet
from netwright.models.vision.resnet import ResNet, conv
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="phnn",
    title="PHNNs: Lightweight Neural Networks via Parameterized Hypercomplex Convolutions",
    arxiv="2110.04176",
    year=2021,
    room="layers",
    says="Convolutions that learn their algebra need 1/n of the parameters; with n = 3 they beat quaternions on RGB.",
    parts=(
        "layers.hypercomplex.PHConv2d",
        "layers.hypercomplex.PHConv1d",
        "layers.hypercomplex.PHConv3d",
        "layers.hypercomplex.PHConvTranspose2d",
        "layers.hypercomplex.PHMLinear",
        "layers.hypercomplex.to_hypercomplex",
        "layers.algebra.Algebra",
        "models.vision.phc.phc_resnet",
        "models.vision.phc.phc_vgg",
    ),
    checks=(
        Check(
            "the Hamilton product is learned from examples",
            metric="largest error of the learned algebra",
            better="lower",
            arm="PHM",
            baseline=1e-3,
        ),
        Check("n = 3 beats quaternions", metric="accuracy", better="higher", arm="PHC n=3", baseline="quaternion"),
        Check(
            "n = 3 loses at most 0.02 to the real network",
            metric="accuracy",
            better="higher",
            arm="PHC n=3",
            baseline="real",
            margin=-0.02,
        ),
        Check(
            "a third of the parameters",
            metric="parameters, as a fraction of the real network's",
            better="lower",
            arm="PHC n=3",
            baseline=0.36,
        ),
        Check("size of PHC-ResNet18, n = 2", metric="parameters", arm="PHC-ResNet18 n=2", exactly=5594794),
        Check("size of PHC-ResNet18, n = 4", metric="parameters", arm="PHC-ResNet18 n=4", exactly=2805962),
        Check("size of large PHC-ResNet18, n = 3", metric="parameters", arm="large PHC-ResNet18 n=3", exactly=3635914),
        Check("size of large PHC-ResNet50, n = 4", metric="parameters", arm="large PHC-ResNet50 n=4", exactly=5692074),
        Check(
            "size of large PHC-ResNet152, n = 3", metric="parameters", arm="large PHC-ResNet152 n=3", exactly=17775463
        ),
    ),
    note="Small networks on few small pictures, a few epochs; the paper trains ResNets of 18 to 152 layers for 200 "
    "epochs. At quick scale the pictures are grey digits, repeated in three channels, with no colour to gain from.",
)

WIDTHS = (12, 36, 60)  # 16-32-64, each rounded to a multiple of 12, which n = 2, 3 and 4 divide
SETTINGS = Settings(optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, batch_size=64, schedule="cosine")
NETWORKS = {
    "PHC-ResNet18 n=2": partial(phc_resnet, 18, n=2, channels=4),
    "PHC-ResNet18 n=4": partial(phc_resnet, 18, n=4, channels=4),
    "large PHC-ResNet18 n=3": partial(phc_resnet, 18, n=3, channels=3, width="large"),
    "large PHC-ResNet50 n=4": partial(phc_resnet, 50, n=4, channels=4, width="large"),
    "large PHC-ResNet152 n=3": partial(phc_resnet, 152, n=3, channels=3, width="large"),
}
# arm -> what makes its convolutions, and the number that has to divide the channels of the pictures
ARMS: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "real": (conv, 1),
    "quaternion": (phc_conv(4, algebra="quaternion", learn_algebra=False), 4),
    "PHC n=2": (phc_conv(2), 2),
    "PHC n=3": (phc_conv(3), 3),
    "PHC n=4": (phc_conv(4), 4),
}


def run(trial: Trial) -> Iterator[Measurement]:
    """All arms: the same network, data order, budget and optimiser; only the convolutions differ."""
    yield from _sizes()
    yield from _algebra(trial)
    data = _pictures(trial)
    budget = Budget(epochs=trial.pick(smoke=1.0, quick=8.0, full=6.0))
    sizes: dict[str, int] = {}
    for arm, (make, n) in ARMS.items():
        padded = data.map(partial(pad_channels, n=n))
        trial.seed_everything()
        model = ResNet([1, 1, 1], WIDTHS, in_channels=padded.input_shape[0], num_classes=data.outputs, conv=make)
        sizes[arm] = count_params(model)
        fit(model, padded, budget, settings=SETTINGS, seed=trial.seed, device=trial.device)
        accuracy = evaluate(model, padded.test)["accuracy"]
        yield Measurement(arm, "accuracy", accuracy)
        yield Measurement(arm, "accuracy against parameters", accuracy, at=sizes[arm])
        yield Measurement(arm, "parameters, as a fraction of the real network's", sizes[arm] / sizes["real"])


def _sizes() -> Iterator[Measurement]:
    with torch.device("meta"):
        for arm, network in NETWORKS.items():
            yield Measurement(arm, "parameters", count_params(network()))


def _algebra(trial: Trial) -> Iterator[Measurement]:
    """Learn the rules of multiplication from pairs: the filters of the layer are the left factor of each pair."""
    trial.seed_everything()
    p, q = torch.randn(2, trial.pick(smoke=200, quick=2_000, full=2_000), 4)
    products = QUATERNION.mul(p, q)
    layer = PHMLinear(4, 4, n=4, bias=False)
    optimizer = torch.optim.Adam([layer.algebra], lr=0.05)
    weights = torch.vmap(hypercomplex_weight, in_dims=(None, 0))

    def error() -> Tensor:
        return (layer.algebra.detach() - QUATERNION.left_basis()).abs().max()

    for step in range(trial.pick(smoke=200, quick=300, full=300)):
        if step % 20 == 0:
            yield Measurement("PHM", "error of the algebra while learning", error().item(), at=step)
        batch = torch.randint(len(p), (100,))
        outputs = (weights(layer.algebra, p[batch, :, None, None]) @ q[batch, :, None]).squeeze(-1)
        loss = functional.mse_loss(outputs, products[batch])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    yield Measurement("PHM", "largest error of the learned algebra", error().item())


def _pictures(trial: Trial) -> Splits:
    """Digits in three equal channels; at full scale 5,000 CIFAR-10 pictures, 16 pixels wide."""
    if trial.scale == "full":
        data = load("cifar10-12k", train=5_000, seed=trial.seed)
        return data.map(partial(functional.avg_pool2d, kernel_size=2))
    return load("digits", seed=trial.seed).map(lambda pictures: pictures.expand(-1, 3, -1, -1).contiguous())
