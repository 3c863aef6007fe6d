"""The Poincaré ResNet against its Euclidean twin, hand-written backwards against autograd, midpoint against Fréchet."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import amounts, side_by_side
from netwright.cost import peak_memory, saved_bytes
from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_layers import PoincareConv2d, beta_ratio
from netwright.layers.hyperbolic_norm import PoincareBatchNorm2d
from netwright.models.vision.poincare_resnet import PoincareResNet, euclidean_twin


def main() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    models: dict[str, nn.Module] = {
        "Euclidean twin": euclidean_twin(depth=8),
        "PoincareResNet": PoincareResNet(depth=8),
        "PoincareResNet, autograd": PoincareResNet(depth=8, backward="autograd"),
    }

    def loss(outputs: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, y)

    def step(model: nn.Module) -> None:
        torch.autograd.grad(loss(model(x)), list(model.parameters()))

    side_by_side(
        "training step, depth 8, 64 pictures of 32×32",
        {name: partial(step, model) for name, model in models.items()},
        baseline="Euclidean twin",
        rounds=10,
        targets={"PoincareResNet": 6.0},
    )
    amounts(
        "memory kept for backward by the network",
        {name: saved_bytes(model, x) / 2**20 for name, model in models.items()},
        baseline="PoincareResNet, autograd",
        targets={"PoincareResNet": 0.7},
        unit="MiB",
    )
    amounts(
        "peak memory of a step",
        {name: peak_memory(model, loss, x) / 2**20 for name, model in models.items()},
        baseline="PoincareResNet, autograd",
        targets={"PoincareResNet": 0.7},
        unit="MiB",
    )
    _convolution()
    _normalisation()


def _convolution() -> None:
    """The closed form against the steps of the paper, with patches and one operation of the ball after another."""
    maps = torch.randn(32, 16, 16, 16, requires_grad=True)
    ball, autograd = PoincareBall(0.1), PoincareBall(0.1, backward="autograd")
    conv = PoincareConv2d(16, 16, 3, ball, padding=1, init="normal")
    weights = list(conv.parameters())
    candidates: dict[str, Callable[[Tensor], Tensor]] = {
        "step by step": partial(_step_by_step, conv, autograd),
        "PoincareConv2d": conv,
    }

    def there_and_back(layer: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.grad(layer(maps).square().sum(), [maps, *weights])

    side_by_side(
        "convolution, 3×3, 16 channels, forward and backward",
        {name: partial(there_and_back, layer) for name, layer in candidates.items()},
        baseline="step by step",
        rounds=10,
    )
    amounts(
        "memory kept for backward by the convolution",
        {name: saved_bytes(layer, maps) / 2**20 for name, layer in candidates.items()},
        baseline="step by step",
        unit="MiB",
    )


def _step_by_step(conv: PoincareConv2d, ball: PoincareBall, maps: Tensor) -> Tensor:
    c = 0.1
    patches = functional.unfold(maps * beta_ratio(16, 9), 3, padding=1).transpose(1, 2)
    points = ball.expmap0(patches)
    factor = 2 / (1 - c * points.square().sum(-1, keepdim=True))
    norm, angle = conv.weight.flatten(1).norm(dim=1), 2 * c**0.5 * conv.bias
    plane = factor * c**0.5 * (points @ conv.weight.flatten(1).T) / norm * angle.cosh() - (factor - 1) * angle.sinh()
    w = (2 * norm * plane.asinh()).sinh() / c**0.5
    outputs = ball.logmap0(ball.project(w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())))
    return outputs.transpose(1, 2).reshape(maps.shape)


def _normalisation() -> None:
    maps = torch.randn(64, 16, 16, 16, requires_grad=True)
    norms: dict[str, nn.Module] = {
        "Fréchet mean": PoincareBatchNorm2d(16, PoincareBall(0.1), "frechet"),
        "midpoint": PoincareBatchNorm2d(16, PoincareBall(0.1)),
        "nn.BatchNorm2d": nn.BatchNorm2d(16),
    }

    def there_and_back(norm: nn.Module) -> None:
        torch.autograd.grad(norm(maps).square().sum(), [maps, *norm.parameters()])

    side_by_side(
        "batch normalisation, forward and backward",
        {name: partial(there_and_back, norm) for name, norm in norms.items()},
        baseline="Fréchet mean",
        rounds=10,
    )


if __name__ == "__main__":
    main()
