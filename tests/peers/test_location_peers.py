"""Spherical harmonics against scipy and e3nn."""

import math

import pytest
import torch

from netwright.data.globe import fibonacci_lattice
from netwright.layers.spherical_harmonics import SphericalHarmonics, real_spherical_harmonics

DOUBLE = torch.float64


@pytest.mark.parametrize("degree", [3, 20, 60, 101])
def test_scipy_computes_the_same(degree: int) -> None:
    """Real from complex: √2 Re Y_l^m for m > 0, √2 Im Y_l^|m| for m < 0."""
    special = pytest.importorskip("scipy.special")
    if not hasattr(special, "sph_harm_y"):
        pytest.skip("scipy before 1.15")
    theta = torch.linspace(0, math.pi, 21, dtype=DOUBLE).clamp(max=math.nextafter(math.pi, 0))
    phi = torch.linspace(-3, 8, 21, dtype=DOUBLE)
    table = real_spherical_harmonics(theta, phi, degree)
    for l in {0, 1, degree // 2, degree - 1}:
        orders = torch.arange(l + 1)
        values = torch.from_numpy(special.sph_harm_y(l, orders.numpy(), theta.numpy()[:, None], phi.numpy()[:, None]))
        values[:, 1:] *= math.sqrt(2)
        block = table[:, l * l : (l + 1) ** 2]
        torch.testing.assert_close(block[:, l:], values.real, atol=1e-11, rtol=0)
        torch.testing.assert_close(block[:, :l], values.imag[:, 1:].flip(1), atol=1e-11, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_e3nn_computes_the_same() -> None:
    """Up to l = 11, where it ends; its polar axis is y, and it leaves the Condon-Shortley phase out."""
    o3 = pytest.importorskip("e3nn.o3", exc_type=ImportError)
    theta, phi = torch.rand(30, dtype=DOUBLE) * math.pi, torch.rand(30, dtype=DOUBLE) * 7
    x, y, z = theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()
    theirs = o3.spherical_harmonics(
        list(range(12)), torch.stack([y, z, x], dim=1), normalize=False, normalization="integral"
    )
    mine = real_spherical_harmonics(theta, phi, 12)
    m = torch.cat([torch.arange(-l, l + 1) for l in range(12)])
    torch.testing.assert_close(mine * (-1.0) ** m, theirs, atol=1e-6, rtol=0)  # its constants are given to 7 digits


def test_the_released_closed_form_computes_the_same() -> None:
    """One (l, m) after the other with factorials, as the code of arXiv:2310.06743 does, for degrees and not radians."""
    special = pytest.importorskip("scipy.special")
    lonlat = fibonacci_lattice(60)
    phi, theta = torch.deg2rad(lonlat[:, 0] + 180), torch.deg2rad(lonlat[:, 1] + 90)
    table = SphericalHarmonics(8)(lonlat)
    for l in range(8):
        for m in range(-l, l + 1):
            k = abs(m)
            scale = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            legendre = torch.from_numpy(special.lpmv(k, l, theta.cos().numpy()))
            turn = torch.cos(m * phi) if m >= 0 else torch.sin(k * phi)
            expected = scale * legendre * turn * (math.sqrt(2) if m else 1)
            torch.testing.assert_close(table[:, l * l + l + m], expected, atol=1e-12, rtol=0)
