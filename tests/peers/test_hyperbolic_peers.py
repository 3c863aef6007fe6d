"""The Poincaré ball, its layers and its network against geoopt and hypll, the authors' library."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_layers import PoincareConv2d, PoincareLinear
from netwright.layers.hyperbolic_norm import Mean, PoincareBatchNorm2d
from netwright.models.vision.poincare_resnet import PoincareResNet

geoopt = pytest.importorskip("geoopt")
manifolds = pytest.importorskip("hypll.manifolds.poincare_ball")
hnn = pytest.importorskip("hypll.nn")
tensors = pytest.importorskip("hypll.tensors")

pytestmark = pytest.mark.filterwarnings("ignore")

DOUBLE = torch.float64
C = 0.4


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    torch.set_default_dtype(DOUBLE)  # parameters of hypll cannot be converted
    yield
    torch.set_default_dtype(torch.float32)


def points(*shape: int) -> Tensor:
    return PoincareBall(C).expmap0(torch.randn(*shape, dtype=DOUBLE))


def close(mine: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_geoopt_has_the_same_operations() -> None:
    ball, theirs = PoincareBall(C), geoopt.PoincareBall(c=C).double()
    x, y, v = points(6, 3), points(6, 3), torch.randn(6, 3, dtype=DOUBLE)
    close(ball.mobius_add(x, y), theirs.mobius_add(x, y))
    close(ball.expmap0(v), theirs.expmap0(v))
    close(ball.logmap0(x), theirs.logmap0(x))
    close(ball.expmap(x, v), theirs.expmap(x, v))
    close(ball.logmap(x, y), theirs.logmap(x, y))
    close(ball.transp(x, y, v), theirs.transp(x, y, v))
    close(ball.gyration(x, y, v), theirs.gyration(x, y, v))
    close(ball.dist(x, y), theirs.dist(x, y))
    close(ball.project(3 * v), theirs.projx(3 * v))
    close(ball.midpoint(x), theirs.weighted_midpoint(x, reducedim=[0]))


def hypll_ball() -> Any:
    # their curvature is the softplus of the given value
    curvature = manifolds.Curvature(math.log(math.expm1(C)))
    return manifolds.PoincareBall(curvature).double()


def on_ball(x: Tensor, theirs: Any, dim: int) -> Any:
    return tensors.ManifoldTensor(PoincareBall(C).expmap0(x, dim), manifold=theirs, man_dim=dim)


@pytest.mark.parametrize("bias", [True, False])
def test_hypll_has_the_same_linear_layer(bias: bool) -> None:
    theirs = hypll_ball()
    layer = hnn.HLinear(4, 3, manifold=theirs, bias=bias)
    mine = PoincareLinear(4, 3, PoincareBall(C), bias, init="normal", dtype=DOUBLE)
    with torch.no_grad():
        layer.z.tensor.copy_(mine.weight.T)
        if mine.bias is not None:
            layer.bias.copy_(mine.bias.normal_())
    u = torch.randn(5, 4, dtype=DOUBLE)
    close(PoincareBall(C).expmap0(mine(u)), layer(on_ball(u, theirs, -1)).tensor)


@pytest.mark.parametrize("stride", [1, 2])
def test_hypll_has_the_same_convolution(stride: int) -> None:
    theirs = hypll_ball()
    layer = hnn.HConvolution2d(2, 3, 3, manifold=theirs, stride=stride, padding=1)
    mine = PoincareConv2d(2, 3, 3, PoincareBall(C), stride, 1, init="normal", dtype=DOUBLE)
    with torch.no_grad():
        layer.weights.tensor.copy_(mine.weight.flatten(1).T)
        assert mine.bias is not None
        layer.bias.copy_(mine.bias.normal_())
    u = torch.randn(2, 2, 5, 5, dtype=DOUBLE)
    close(PoincareBall(C).expmap0(mine(u), 1), layer(on_ball(u, theirs, 1)).tensor)


@pytest.mark.parametrize("mean", ["midpoint", "frechet"])
def test_hypll_has_the_same_batch_normalisation(mean: Mean) -> None:
    theirs = hypll_ball()
    layer = hnn.HBatchNorm2d(3, manifold=theirs, use_midpoint=mean == "midpoint").double()
    mine = PoincareBatchNorm2d(3, PoincareBall(C), mean, dtype=DOUBLE)
    with torch.no_grad():
        mine.bias.normal_().mul_(0.3)
        mine.weight.fill_(1.5)
        layer.norm.bias.copy_(mine.bias)
        layer.norm.weight.copy_(mine.weight)
    u = torch.randn(2, 3, 4, 5, dtype=DOUBLE)
    close(PoincareBall(C).expmap0(mine(u), 1), layer(on_ball(u, theirs, 1)).tensor)


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_riemannian_optimisers_are_plain_ones_for_this_network(kind: str) -> None:
    """No parameter of the network is a point of the ball; geoopt's optimisers then do what torch's do."""
    torch.manual_seed(0)
    mine = PoincareResNet(3, (4, 4, 4), depth=8, in_channels=1).double()
    theirs = copy.deepcopy(mine)
    options = {"lr": 0.01, "weight_decay": 1e-4}
    if kind == "sgd":
        optimizers = [
            # with momentum, geoopt counts the first gradient twice
            torch.optim.SGD(mine.parameters(), **options),
            geoopt.optim.RiemannianSGD(theirs.parameters(), **options),
        ]
    else:
        optimizers = [
            torch.optim.Adam(mine.parameters(), **options),
            geoopt.optim.RiemannianAdam(theirs.parameters(), **options),
        ]
    x, y = torch.randn(8, 1, 8, 8, dtype=DOUBLE), torch.arange(8) % 3
    for _ in range(3):
        for model, optimizer in zip((mine, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        close(a, b)
    assert not any(isinstance(p, geoopt.ManifoldParameter) for p in nn.ModuleList([theirs]).parameters())
