"""Curvature against PyHessian and scipy, planes against the loss-landscapes package."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis.curvature import GaussNewtonOperator, HessianOperator
from netwright.analysis.landscape import Directions, plane

pytestmark = pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph:UserWarning")


def net(dtype: torch.dtype = torch.float32) -> nn.Module:
    layers = (nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 3))
    return nn.Sequential(*layers).to(dtype)


def data(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(40, 1, 6, 6, dtype=dtype), torch.arange(40) % 3


def test_top_eigenvalues_are_those_of_pyhessian() -> None:
    pyhessian = pytest.importorskip("pyhessian", reason="pyhessian is not installed")
    model, pairs = net(), data()
    theirs = pyhessian.hessian(copy.deepcopy(model), functional.cross_entropy, data=pairs, cuda=False)
    values, _ = theirs.eigenvalues(maxIter=200, tol=1e-5, top_n=2)
    for method in ("lanczos", "power"):
        mine = HessianOperator(model, functional.cross_entropy, pairs).top_eigs(2, 200, 1e-5, method=method)
        assert mine.values.tolist() == pytest.approx(values, rel=0.01)


def test_trace_is_that_of_pyhessian() -> None:
    pyhessian = pytest.importorskip("pyhessian", reason="pyhessian is not installed")
    model, pairs = net(), data()
    theirs = pyhessian.hessian(copy.deepcopy(model), functional.cross_entropy, data=pairs, cuda=False)
    value = np.mean(theirs.trace(maxIter=1000, tol=1e-9))
    mine = HessianOperator(model, functional.cross_entropy, pairs).trace(1000, 1e-9)
    assert mine.value == pytest.approx(value, rel=0.05)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mine", "theirs"), [(HessianOperator, "Hessian"), (GaussNewtonOperator, "GGN")])
def test_products_are_those_of_curvlinops(mine: type[HessianOperator], theirs: str) -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    model, (inputs, targets) = net(torch.float64), data(torch.float64)
    batches = [(inputs[:25], targets[:25]), (inputs[25:], targets[25:])]
    parameters = list(model.parameters())
    other = getattr(curvlinops, f"{theirs}LinearOperator")(model, nn.CrossEntropyLoss(), parameters, batches)
    operator = mine(model, functional.cross_entropy, batches)
    vectors = torch.randn(3, operator.size, dtype=torch.float64)
    expected = other @ vectors.T
    torch.testing.assert_close(operator.multiply(vectors), expected.detach().T, rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore")
def test_spectrum_and_trace_are_those_of_curvlinops() -> None:
    curvlinops = pytest.importorskip("curvlinops", reason="curvlinops is not installed")
    model, pairs = net(torch.float64), data(torch.float64)
    other = curvlinops.HessianLinearOperator(model, nn.CrossEntropyLoss(), list(model.parameters()), [pairs])
    operator = HessianOperator(model, functional.cross_entropy, pairs)
    dense = other @ torch.eye(operator.size, dtype=torch.float64)
    values = torch.linalg.eigvalsh(dense.detach())
    mine = operator.top_eigs(3, iters=300, tol=1e-9).values
    largest = values[values.abs().argsort(descending=True)[:3]]
    torch.testing.assert_close(mine.double().sort().values, largest.sort().values, rtol=1e-5, atol=1e-9)
    assert operator.trace(2000, 1e-9).value == pytest.approx(float(values.sum()), rel=0.05)


def test_eigenvalues_are_those_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg", reason="scipy is not installed")
    operator = HessianOperator(net(torch.float64), functional.cross_entropy, data(torch.float64))
    wrapped = linalg.LinearOperator(
        (operator.size, operator.size),
        matvec=lambda v: operator.multiply(torch.from_numpy(v.astype(np.float64)).flatten()).numpy(),
        dtype=np.float64,
    )
    values = linalg.eigsh(wrapped, k=4, which="LM", return_eigenvectors=False, tol=1e-10)
    mine = operator.top_eigs(4, iters=300, tol=1e-8).values
    np.testing.assert_allclose(sorted(mine.tolist()), sorted(values), rtol=1e-5)


def test_plane_is_that_of_loss_landscapes() -> None:
    """Their grid runs from one corner in steps of (end − start) / steps, every other row by one step further back."""
    theirs = pytest.importorskip("loss_landscapes", reason="loss_landscapes is not installed")
    metrics = pytest.importorskip("loss_landscapes.metrics")
    model, (x, y) = net(torch.float64), data(torch.float64)
    directions = Directions.random(model, distribution="normal")
    steps, distance = 6, 0.6

    def at(a: float, b: float) -> nn.Module:
        new = copy.deepcopy(model)
        with torch.no_grad():
            for name, parameter in new.named_parameters():
                parameter += distance / 2 * (a * directions.first[name] + b * directions.second[name])
        return new

    losses = theirs.planar_interpolation(
        at(-1, -1), at(1, -1), at(-1, 1), metrics.Loss(functional.cross_entropy, x, y), steps=steps, deepcopy_model=True
    )
    mine = plane(model, functional.cross_entropy, (x, y), directions, steps=steps, distance=distance).loss.numpy()
    np.testing.assert_allclose(losses[1::2], mine[1::2], rtol=1e-6)
    np.testing.assert_allclose(losses[0::2, :-1], mine[0::2, 1:], rtol=1e-6)
