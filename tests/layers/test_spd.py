"""Tests of ``netwright.layers.spd``."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from netwright.layers._spd_eigen import FUNCTIONS, MULTIPLIERS, multiply, spectral, symmetric
from netwright.layers.spd import (
    airm_distance,
    airm_geodesic,
    airm_mean,
    bw_distance,
    bw_exp,
    bw_geodesic,
    bw_log,
    bw_map,
    bw_mean,
    bw_transport_commuting,
    gbw_distance,
    gbw_exp,
    gbw_geodesic,
    gbw_log,
    gbw_mean,
    lyapunov,
    spd_log,
    spd_power,
    spd_roots,
    spd_sqrt,
    sym_clamp,
    sym_exp,
)

PARAMETERS = {"power": 0.3, "clamp": 1.9}


def spd(*shape: int, n: int = 4, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(*shape, n, 2 * n, dtype=torch.float64, generator=generator)
    return a @ a.mT / n + 0.1 * torch.eye(n, dtype=torch.float64)


def with_eigenvalues(values: list[float], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    return q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.mT


def tangents(*shape: int, n: int = 4, scale: float = 0.1) -> Tensor:
    v = scale * torch.randn(*shape, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    return v + v.mT


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (spd_log, scipy.linalg.logm),
        (sym_exp, scipy.linalg.expm),
        (spd_sqrt, scipy.linalg.sqrtm),
        (lambda x: spd_roots(x)[1], lambda x: np.linalg.inv(scipy.linalg.sqrtm(x))),
        (lambda x: spd_power(x, -1.5), lambda x: scipy.linalg.fractional_matrix_power(x, -1.5)),
    ],
)
def test_functions_are_those_of_scipy(mine: Callable[[Tensor], Tensor], theirs: Callable[..., np.ndarray]) -> None:
    x = spd(2, 3)
    expected = torch.stack([torch.as_tensor(theirs(one.numpy())) for one in x.flatten(0, 1)]).view_as(x)
    torch.testing.assert_close(mine(x), expected)


def test_lyapunov_is_that_of_scipy() -> None:
    x, v = spd(3), tangents(3, scale=1.0)
    expected = torch.stack(
        [
            torch.as_tensor(scipy.linalg.solve_continuous_lyapunov(a.numpy(), b.numpy()))
            for a, b in zip(x, v, strict=True)
        ]
    )
    torch.testing.assert_close(lyapunov(x, v), expected)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("values", [[0.5, 1.0, 2.0, 5.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.0 + 1e-9, 3.0, 3.0]])
def test_gradients_are_exact_also_where_eigenvalues_are_equal(name: str, values: list[float]) -> None:
    x = with_eigenvalues(values).requires_grad_()
    assert gradcheck(lambda x: spectral(symmetric(x), (name, PARAMETERS.get(name, 0.0)))[0], x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_divided_differences_are_quotients_where_these_do_not_cancel(name: str) -> None:
    function, parameter = FUNCTIONS[name], PARAMETERS.get(name, 0.0)
    a = torch.tensor([1e-6, 0.3, 1.0, 7.0], dtype=torch.float64)
    b = torch.tensor([2.0, 2.5, 30.0, 1e-3], dtype=torch.float64)
    quotient = (function.value(a, parameter) - function.value(b, parameter)) / (a - b)
    torch.testing.assert_close(function.divided(a, b, parameter), quotient, rtol=1e-11, atol=0)
    for step in (1e-5, 1e-3, 3e-3, 0.1, 0.5):  # the branches meet
        a, c = b[:3], b[:3] * (1 + step)
        quotient = (function.value(a, parameter) - function.value(c, parameter)) / (a - c)
        torch.testing.assert_close(function.divided(a, c, parameter), quotient, rtol=1e-14 / step, atol=0)


def test_gradient_of_equal_eigenvalues_is_not_dropped() -> None:
    """The released code sets the off-diagonal terms of equal eigenvalues to 0; of X² at I the gradient is 2 G."""
    x = torch.eye(3, dtype=torch.float64, requires_grad=True)
    gradient = tangents(n=3)
    spd_power(x, 2).backward(gradient)
    torch.testing.assert_close(x.grad, 2 * gradient)


@pytest.mark.parametrize("name", MULTIPLIERS)
@pytest.mark.parametrize("lead", [(), (1,), (3,), (1, 1), (2, 3), (2, 1)])
def test_gradients_of_multipliers(name: str, lead: tuple[int, ...]) -> None:
    point = spd(*lead, n=3).requires_grad_()
    equal = torch.eye(3, dtype=torch.float64).expand(*lead, 3, 3).clone().requires_grad_()

    def function(x: Tensor, v: Tensor) -> Tensor:
        return multiply(symmetric(x), symmetric(v), name)

    for x in (point, equal):
        assert gradcheck(function, (x, tangents(2, 3, n=3).requires_grad_()), fast_mode=True)


def test_gradients_of_the_geometry() -> None:
    x, y, m, v = spd(2, n=3), spd(2, n=3, seed=1), spd(n=3, seed=2), tangents(2, n=3)
    for tensor in (x, y, m, v):
        tensor.requires_grad_()
    for function, arguments in (
        (gbw_distance, (x, y, m)),
        (gbw_log, (x, y, m)),
        # gradcheck moves a tangent vector off the symmetric ones by more than the check of input allows
        (lambda x, v, m: gbw_exp(x, symmetric(v), m), (x, v, m)),
        (gbw_mean, (x, m, 2)),
        (airm_distance, (x, y)),
        (lambda x, y: bw_geodesic(x, y, 0.3), (x, y)),
    ):
        assert gradcheck(function, arguments, fast_mode=True)


def test_no_gradient_is_lost_between_condition_numbers() -> None:
    """Eigenvalues from 1e-8 to 1: gradients stay finite, and those of log are 1/λ on the diagonal."""
    values = torch.logspace(-8, 0, 9, dtype=torch.float64)
    x = torch.diag(values).requires_grad_()
    spd_log(x).trace().backward()
    torch.testing.assert_close(x.grad.diagonal(), 1 / values, rtol=1e-7, atol=0)
    y = with_eigenvalues(values.tolist()).requires_grad_()
    bw_distance(y, spd(n=9)).backward()
    assert y.grad.isfinite().all()


def test_transport_map_moves_one_covariance_to_the_other() -> None:
    x, y = spd(5), spd(5, seed=1)
    t = bw_map(x, y)
    torch.testing.assert_close(t @ x @ t, y)
    trace = lambda a: a.diagonal(dim1=-2, dim2=-1).sum(-1)  # noqa: E731
    root = spd_sqrt(x)
    squared = trace(x) + trace(y) - 2 * trace(spd_sqrt(root @ y @ root))
    torch.testing.assert_close(bw_distance(x, y).square(), squared)


def test_distance_of_close_matrices_does_not_cancel() -> None:
    x = torch.eye(2, dtype=torch.float64)
    y = (1 + 1e-9) * x  # the distance is √2 (√(1 + 1e-9) - 1)
    assert bw_distance(x, y).item() == pytest.approx(2**0.5 * 0.5e-9, rel=1e-6)


@given(st.integers(0, 10_000), st.floats(0, 1), st.integers(1, 5))
def test_laws_of_the_geometry(seed: int, t: float, n: int) -> None:
    x, y, m = (spd(n=n, seed=seed + k) for k in range(3))
    torch.testing.assert_close(bw_exp(x, bw_log(x, y)), y)
    point = bw_geodesic(x, y, t)
    torch.testing.assert_close(bw_distance(x, point), t * bw_distance(x, y), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(bw_distance(x, y), bw_distance(y, x))
    q, _ = torch.linalg.qr(m)
    torch.testing.assert_close(bw_distance(q @ x @ q.mT, q @ y @ q.mT), bw_distance(x, y))
    torch.testing.assert_close(airm_distance(m @ x @ m, m @ y @ m), airm_distance(x, y))
    torch.testing.assert_close(airm_distance(x, airm_geodesic(x, y, t)), t * airm_distance(x, y), atol=1e-9, rtol=1e-6)


def test_generalised_metric_is_the_plain_one_at_the_identity_and_near_the_affine_one_at_the_point() -> None:
    x, y, eye = spd(3), spd(3, seed=1), torch.eye(4, dtype=torch.float64)
    torch.testing.assert_close(gbw_distance(x, y, eye), bw_distance(x, y))
    torch.testing.assert_close(gbw_log(x, y, eye), bw_log(x, y))
    torch.testing.assert_close(gbw_mean(x, eye), bw_mean(x))
    close = x[0] + 1e-4 * tangents()
    torch.testing.assert_close(gbw_distance(x[0], close, x[0]), airm_distance(x[0], close) / 2, rtol=1e-3, atol=0)
    m = spd(seed=5)
    torch.testing.assert_close(gbw_exp(x, gbw_log(x, y, m), m), y)
    torch.testing.assert_close(gbw_distance(x, gbw_geodesic(x, y, 0.25, m), m), gbw_distance(x, y, m) / 4)
    torch.testing.assert_close(gbw_distance(x, y, 4 * m), gbw_distance(x, y, m) / 2)


def test_mean_is_where_the_transport_maps_average_to_the_identity() -> None:
    x = spd(6, 2)
    mean = bw_mean(x)
    torch.testing.assert_close(bw_map(mean, x).mean(0), torch.eye(4, dtype=torch.float64).expand(2, 4, 4))
    logs = spd_log(spd_roots(airm_mean(x))[1] @ x @ spd_roots(airm_mean(x))[1])
    torch.testing.assert_close(logs.mean(0), torch.zeros_like(mean), atol=1e-10, rtol=0)
    commuting = torch.diag_embed(torch.rand(5, 3, dtype=torch.float64) + 0.1)
    expected = torch.diag(commuting.diagonal(dim1=-2, dim2=-1).sqrt().mean(0).square())
    torch.testing.assert_close(bw_mean(commuting, 1), expected)


def test_transport_is_an_isometry_and_moves_along_the_geodesic() -> None:
    w, v = spd(), tangents()
    eye = torch.eye(4, dtype=torch.float64)
    there = bw_transport_commuting(v, w, eye)

    def squared(point: Tensor, v: Tensor) -> Tensor:
        return (lyapunov(point, v) @ point @ lyapunov(point, v)).trace()

    torch.testing.assert_close(squared(w, v), squared(eye, there))
    torch.testing.assert_close(bw_transport_commuting(there, eye, w), v)
    power = spd_power(w, 1.7)  # commutes with w
    torch.testing.assert_close(bw_transport_commuting(bw_log(w, power), w, power), -bw_log(power, w))


def test_float32_is_computed_in_float64_and_compilers_and_vmap_see_through() -> None:
    x = with_eigenvalues([1e-3, 1.0, 1e3]).float()
    torch.testing.assert_close(spd_log(x), spd_log(x.double()).float())
    assert spd_log(x).dtype == torch.float32
    y, v = spd(3), tangents(3)

    def function(y: Tensor, v: Tensor) -> Tensor:
        return bw_exp(y, v) + bw_log(y, y + v @ v) + sym_clamp(v, 0.0)

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    y.requires_grad_()
    (expected,) = torch.autograd.grad(function(y, v).square().sum(), y)
    (found,) = torch.autograd.grad(compiled(y, v).square().sum(), y)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.vmap(spd_log)(y), spd_log(y))
    per_sample = torch.vmap(torch.func.grad(lambda y, v: function(y, v).square().sum()))(y.detach(), v)
    torch.testing.assert_close(per_sample, expected)
    assert bw_log(torch.empty(2, 3, 3, device="meta"), torch.empty(3, 3, device="meta")).shape == (2, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(spd_log(y), spd_log(y.detach()))


def test_geometry_of_single_precision_is_computed_in_float64() -> None:
    x, y, m = (symmetric(t).float() for t in (with_eigenvalues([1e-3, 1.0, 2.0, 1e3]), 1e3 * spd(), spd(seed=5)))
    v = x / 4
    calls: list[tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = [
        (bw_map, (x, y)),
        (bw_distance, (x, y)),
        (bw_log, (x, y)),
        (bw_exp, (x, v)),
        (bw_mean, (torch.stack([x, x + v]),)),
        (bw_transport_commuting, (v, x, x + v)),
        (gbw_distance, (x, y, m)),
        (gbw_log, (x, y, m)),
        (gbw_mean, (torch.stack([x, x + v]), m)),
        (airm_distance, (x, y)),
        (airm_mean, (torch.stack([x, x + v]),)),
    ]
    for function, matrices in calls:
        expected = function(*(matrix.double() for matrix in matrices))
        torch.testing.assert_close(function(*matrices), expected.float(), rtol=0, atol=0, msg=function.__name__)


def test_bad_input() -> None:
    good = spd()
    skew = good.clone()
    skew[0, 1] += 1e-3
    with pytest.raises(ValueError, match=r"x must be symmetric and finite, with differences to its transpose up to"):
        spd_log(skew)
    with pytest.raises(ValueError, match="must be symmetric and finite"):
        spd_sqrt(good * torch.nan)
    with pytest.raises(ValueError, match=r"all eigenvalues above 0, got an eigenvalue of -0\.5"):
        spd_power(with_eigenvalues([-0.5, 1.0]), 0.5)
    with pytest.raises(ValueError, match=r"y must be positive definite.*got an eigenvalue of -0\.25"):
        bw_distance(torch.eye(2, dtype=torch.float64), with_eigenvalues([-0.25, 1.0]))
    with pytest.raises(ValueError, match="matrices"):
        spd_log(torch.ones(3, 2))
    with pytest.raises(ValueError, match="floating-point"):
        spd_log(torch.eye(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"where the exponential map is defined.*got an eigenvalue of -1"):
        bw_exp(torch.eye(2, dtype=torch.float64), -4 * torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="start and end must commute"):
        bw_transport_commuting(good, good, spd(seed=3))
    with pytest.raises(ValueError, match="at least one matrix to take a mean of"):
        bw_mean(good)
    eye = torch.eye(len(good), dtype=torch.float64)
    for call in (
        lambda: gbw_distance(eye, skew, eye),
        lambda: gbw_exp(eye, skew, eye),
        lambda: airm_distance(eye, skew),
    ):
        with pytest.raises(ValueError, match=r"[yv] must be symmetric and finite"):
            call()
    with pytest.raises(ValueError, match=r"x must be matrices \(…, n, n\)"):
        bw_distance(torch.tensor(1.0), eye)
    larger = torch.eye(len(good) + 1, dtype=torch.float64)
    for call in (
        lambda: bw_distance(eye, larger),
        lambda: gbw_distance(eye, eye, larger),
        lambda: lyapunov(eye, larger),
        lambda: bw_transport_commuting(eye, eye, larger),
        lambda: airm_distance(eye, larger),
    ):
        with pytest.raises(ValueError, match=rf"must be matrices \(…, {len(good)}, {len(good)}\)"):
            call()
    with pytest.raises(ValueError, match=r"y must be positive definite.*got an eigenvalue of -0\.25"):
        airm_distance(4 * torch.eye(2, dtype=torch.float64), with_eigenvalues([-0.25, 1.0]))
