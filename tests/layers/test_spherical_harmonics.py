"""Tests of ``netwright.layers.spherical_harmonics``."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import sph_harm_y
from torch import Tensor, nn

from netwright.data.globe import fibonacci_lattice
from netwright.layers.spherical_harmonics import MAX_DEGREES, SphericalHarmonics, real_spherical_harmonics

DOUBLE = torch.float64


def places(number: int = 40, dtype: torch.dtype = DOUBLE) -> tuple[Tensor, Tensor]:
    theta = torch.cat([math.pi * torch.rand(number, dtype=DOUBLE), 0.02 * torch.rand(10, dtype=DOUBLE)])
    theta = torch.cat([theta, torch.tensor([0, math.pi / 2, math.pi], dtype=DOUBLE)])
    theta = theta.to(dtype).clamp(max=math.nextafter(math.pi, 0) if dtype == DOUBLE else 3.1415925)
    return theta, (7 * torch.rand(len(theta), dtype=DOUBLE) - 3).to(dtype)


def reference(theta: Tensor, phi: Tensor, l: int, m: int) -> Tensor:
    values = sph_harm_y(l, abs(m), theta.double().numpy(), phi.double().numpy())
    part = values.real if m >= 0 else values.imag
    return torch.from_numpy(np.asarray(part)) * (math.sqrt(2) if m else 1)


def test_low_degrees_are_the_textbook_formulas() -> None:
    theta, phi = places()
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()
    one = 0.5 / math.sqrt(math.pi)
    linear = math.sqrt(3 / (4 * math.pi))
    expected = {  # with Condon-Shortley phase
        (0, 0): torch.full_like(z, one),
        (1, -1): -linear * y,
        (1, 0): linear * z,
        (1, 1): -linear * x,
        (2, -2): math.sqrt(15 / (4 * math.pi)) * x * y,
        (2, 0): math.sqrt(5 / (16 * math.pi)) * (3 * z * z - 1),
        (2, 1): -math.sqrt(15 / (4 * math.pi)) * x * z,
        (2, 2): math.sqrt(15 / (16 * math.pi)) * (x * x - y * y),
    }
    table = real_spherical_harmonics(theta, phi, 3)
    for (l, m), value in expected.items():
        torch.testing.assert_close(table[:, l * l + l + m], value, atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize("degree", [1, 2, 12])
def test_all_are_scipys(degree: int) -> None:
    theta, phi = places()
    table = real_spherical_harmonics(theta, phi, degree)
    assert table.shape == (len(theta), degree**2)
    expected = torch.stack([reference(theta, phi, l, m) for l in range(degree) for m in range(-l, l + 1)], dim=1)
    torch.testing.assert_close(table, expected, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize(
    ("degree", "dtype", "tolerance"), [(101, DOUBLE, 1e-11), (101, torch.float32, 1e-6), (25, torch.float32, 1e-4)]
)
def test_high_degrees_do_not_overflow(degree: int, dtype: torch.dtype, tolerance: float) -> None:
    theta, phi = places(dtype=dtype)
    table = real_spherical_harmonics(theta, phi, degree)
    assert table.dtype == dtype
    for l in (degree - 2, degree - 1):
        for m in {-l, 1 - l, -l // 2, -3, 0, 1, l // 3, l - 2, l}:
            expected = reference(theta, phi, l, m).to(dtype)
            torch.testing.assert_close(table[:, l * l + l + m], expected, atol=tolerance, rtol=0)


def test_largest_degree() -> None:
    theta, phi = places()
    table = real_spherical_harmonics(theta, phi, MAX_DEGREES)
    norms = table.square().sum(1)
    torch.testing.assert_close(norms, torch.full_like(norms, MAX_DEGREES**2 / (4 * math.pi)), atol=0, rtol=1e-10)


@given(st.floats(-90, 90), st.floats(-1e6, 1e6), st.integers(1, 30))
def test_addition_theorem(lat: float, lon: float, degree: int) -> None:
    """Σ_m Y_lm² = (2l + 1) / 4π, wherever one is."""
    table = SphericalHarmonics(degree)(torch.tensor([[lon, lat]], dtype=DOUBLE))[0]
    for l in range(degree):
        total = table[l * l : (l + 1) ** 2].square().sum().item()
        assert total == pytest.approx((2 * l + 1) / (4 * math.pi), rel=1e-11)


def test_norm_of_the_encoding() -> None:
    lonlat = fibonacci_lattice(500)
    norms = SphericalHarmonics(10)(lonlat).square().sum(1)
    torch.testing.assert_close(norms, torch.full_like(norms, 7.957747), atol=1e-6, rtol=0)


def test_orthonormal_on_the_sphere() -> None:
    """By a quadrature that is exact for these: Gauss-Legendre in cos θ, equal steps in φ."""
    degree = 8
    nodes, weights = np.polynomial.legendre.leggauss(degree)
    phi = torch.arange(2 * degree, dtype=DOUBLE) * (math.pi / degree)
    theta = torch.from_numpy(nodes).arccos()
    table = real_spherical_harmonics(*torch.meshgrid(theta, phi, indexing="ij"), degree)
    weighted = table * torch.from_numpy(weights)[:, None, None] * (math.pi / degree)
    gram = torch.einsum("ijk,ijl->kl", weighted, table)
    torch.testing.assert_close(gram, torch.eye(degree**2, dtype=DOUBLE), atol=1e-13, rtol=0)


def test_they_solve_laplaces_equation_on_the_sphere() -> None:
    """∂²Y/∂θ² + cot θ ∂Y/∂θ + ∂²Y/∂φ² / sin²θ = −l (l + 1) Y, by two derivatives of the code."""
    theta, phi = (
        angle.clone().requires_grad_() for angle in (torch.rand(20, dtype=DOUBLE) * 2 + 0.5, torch.rand(20).double())
    )
    table = real_spherical_harmonics(theta, phi, 5)
    for l, m in [(1, 0), (2, -1), (3, 3), (4, 2), (4, -4)]:
        value = table[:, l * l + l + m]
        first = torch.autograd.grad(
            value.sum(), (theta, phi), create_graph=True, allow_unused=True, materialize_grads=True
        )
        second = [
            torch.autograd.grad(f.sum(), angle, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
            for f, angle in zip(first, (theta, phi), strict=True)
        ]
        laplacian = second[0] + first[0] / theta.tan() + second[1] / theta.sin().square()
        torch.testing.assert_close(laplacian, -l * (l + 1) * value, atol=1e-10, rtol=1e-9)


def test_no_artefact_at_poles_and_date_line() -> None:
    encoding = SphericalHarmonics(40)
    lat = torch.linspace(-90, 90, 19)
    west, east = (encoding(torch.stack([torch.full_like(lat, lon), lat], 1)) for lon in (-180.0, 180.0))
    assert torch.equal(west, east)
    lon = torch.linspace(-180, 180, 37)
    for pole in (-90.0, 90.0):
        there = encoding(torch.stack([lon, torch.full_like(lon, pole)], 1))
        assert torch.equal(there, there[:1].expand_as(there))  # one place, whatever the longitude
    # a step across the pole or the date line is as small as one elsewhere
    step = 0.01
    pairs = torch.tensor(
        [[[10, 90 - step / 2], [190, 90 - step / 2]], [[180 - step / 2, 0], [step / 2 - 180, 0]], [[0, 0], [step, 0]]]
    )
    change = (encoding(pairs[:, 0]) - encoding(pairs[:, 1])).norm(dim=1)
    torch.testing.assert_close(change, change[-1:].expand(3), rtol=0.02, atol=0)


def test_longitudes_are_periodic() -> None:
    encoding = SphericalHarmonics(12)
    lonlat = torch.stack([torch.rand(30, dtype=DOUBLE) * 360 - 180, torch.rand(30, dtype=DOUBLE) * 180 - 90], 1)
    for turns in (-1000, -1, 2):
        torch.testing.assert_close(
            encoding(lonlat + torch.tensor([360.0 * turns, 0])), encoding(lonlat), atol=1e-9, rtol=0
        )


def test_degrees_are_the_angles_of_the_released_code() -> None:
    lonlat = fibonacci_lattice(100)
    phi, theta = torch.deg2rad(lonlat[:, 0] + 180), torch.deg2rad(lonlat[:, 1] + 90)
    torch.testing.assert_close(
        SphericalHarmonics(9)(lonlat), real_spherical_harmonics(theta, phi, 9), atol=1e-13, rtol=0
    )


def test_gradients() -> None:
    theta, phi = (angle[:6].clone().requires_grad_() for angle in places())
    assert torch.autograd.gradcheck(lambda t, p: real_spherical_harmonics(t, p, 6), (theta, phi))
    assert torch.autograd.gradgradcheck(lambda t, p: real_spherical_harmonics(t, p, 4), (theta[:2], phi[:2]))


def test_gradients_at_the_poles() -> None:
    """They are one-sided there in latitude, finite, and those of a step inwards."""
    encoding = SphericalHarmonics(15)
    weights = torch.randn(225, dtype=DOUBLE)
    for pole in (-90.0, 90.0):
        lonlat = torch.tensor([[20.0, pole]], dtype=DOUBLE, requires_grad=True)
        (gradient,) = torch.autograd.grad(encoding(lonlat) @ weights, lonlat)
        step = torch.tensor([[0.0, math.copysign(1e-5, -pole)]], dtype=DOUBLE)
        slope = (encoding(lonlat + step) - encoding(lonlat)) @ weights / step[0, 1]
        assert gradient[0, 0].abs() < 1e-12
        assert gradient[0, 1].item() == pytest.approx(slope.item(), rel=1e-4)
    theta = torch.zeros(1, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: real_spherical_harmonics(t, torch.ones_like(t), 7), theta)


def test_backward_is_that_of_the_plain_formula_whatever_the_layout() -> None:
    lonlat = torch.rand(30, 2, dtype=DOUBLE).mul(80).requires_grad_()
    encoding = SphericalHarmonics(11)
    table = encoding(lonlat)
    grad = torch.randn(30, 121, dtype=DOUBLE)
    (plain,) = torch.autograd.grad(table, lonlat, grad, create_graph=True)  # the plain formula
    for laid_out in (grad, grad.T.contiguous().T):
        (mine,) = torch.autograd.grad(table, lonlat, laid_out, retain_graph=True)
        torch.testing.assert_close(mine, plain, atol=1e-12, rtol=1e-11)


def test_goes_with_torch_func_and_compilers() -> None:
    encoding = SphericalHarmonics(6)
    lonlat = torch.rand(8, 2) * 80
    jacobian = torch.func.vmap(torch.func.jacrev(lambda place: encoding(place[None])[0]))(lonlat)
    rows = lonlat.clone().requires_grad_()
    expected = torch.stack(
        [torch.autograd.grad(column.sum(), rows, retain_graph=True)[0] for column in encoding(rows).T], 1
    )
    torch.testing.assert_close(jacobian, expected, atol=1e-6, rtol=1e-4)
    compiled = torch.compile(encoding, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(lonlat), encoding(lonlat), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("legendre_polys", [10, 30])
def test_other_types(legendre_polys: int) -> None:
    lonlat = torch.rand(10, 2) * 80
    encoding = SphericalHarmonics(legendre_polys)
    model = nn.Sequential(encoding, nn.Linear(legendre_polys**2, 3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert encoding(lonlat).dtype == torch.float32
        model(lonlat).float().sum().backward()
    assert model[1].weight.grad is not None
    assert model[1].weight.grad.dtype == torch.float32
    assert encoding(lonlat.half()).dtype == torch.float16
    torch.testing.assert_close(encoding(lonlat.half()), encoding(lonlat.half().double()).half())
    assert encoding(torch.empty(5, 2, device="meta")).shape == (5, legendre_polys**2)
    assert encoding(torch.empty(0, 2)).shape == (0, legendre_polys**2)
    assert not encoding.state_dict()


def test_any_shape_of_angles() -> None:
    theta, phi = torch.rand(3, 4), torch.rand(3, 4)
    table = real_spherical_harmonics(theta, phi, 5)
    assert table.shape == (3, 4, 25)
    torch.testing.assert_close(table[1, 2], real_spherical_harmonics(theta[1, 2], phi[1, 2], 5))


def test_what_does_not_work() -> None:
    encoding = SphericalHarmonics(4)
    for shape in [(2,), (5, 2, 1)]:
        with pytest.raises(ValueError, match=r"lonlat must have shape \(N, 2\), got shape"):
            encoding(torch.zeros(shape))
    with pytest.raises(ValueError, match="dimension 1 of lonlat must have size 2"):
        encoding(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="lonlat must be of a floating-point type"):
        encoding(torch.zeros(5, 2, dtype=torch.long))
    for lat in (90.5, -91.0, math.nan):
        with pytest.raises(ValueError, match=rf"latitudes .* must be in \[-90, 90\] degrees, got {lat:g}"):
            encoding(torch.tensor([[0.0, 1.0], [0.0, lat]]))
    with pytest.raises(ValueError, match=r"longitudes .* must be finite, got inf"):
        encoding(torch.tensor([[math.inf, 1.0]]))
    for degree in (0, -3, MAX_DEGREES + 1):
        with pytest.raises(ValueError, match=rf"legendre_polys must be in \[1, {MAX_DEGREES}\], got {degree}"):
            SphericalHarmonics(degree)
        with pytest.raises(ValueError, match="degree must be in"):
            real_spherical_harmonics(torch.zeros(1), torch.zeros(1), degree)
    with pytest.raises(ValueError, match=r"legendre_polys must be a whole number, got 9\.5"):
        SphericalHarmonics(9.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"phi must have the shape of theta, \(2,\), got \(3,\)"):
        real_spherical_harmonics(torch.zeros(2), torch.zeros(3), 2)
    with pytest.raises(ValueError, match="theta must be of a floating-point type"):
        real_spherical_harmonics(torch.zeros(2, dtype=torch.long), torch.zeros(2), 2)
