"""Spherical harmonics: all at once against one (l, m) after the other, and backward against forward."""

import math

import torch
from torch import Tensor

from benchmarks.timing import side_by_side
from netwright.layers.spherical_harmonics import SphericalHarmonics, real_spherical_harmonics

N, DEGREE = 10_000, 20


def one_by_one(theta: Tensor, phi: Tensor, degree: int) -> Tensor:
    """Each harmonic by the recurrence of its own Legendre function and its factorials, as closed forms do it."""
    cos = theta.cos()
    columns = []
    for l in range(degree):
        for m in range(-l, l + 1):
            k = abs(m)
            scale = math.sqrt((2 * l + 1) / (4 * math.pi) * math.factorial(l - k) / math.factorial(l + k))
            value = scale * _legendre(l, k, cos)
            if m:
                value = math.sqrt(2) * value * (torch.cos(m * phi) if m > 0 else torch.sin(k * phi))
            columns.append(value)
    return torch.stack(columns, dim=-1)


def _legendre(l: int, m: int, x: Tensor) -> Tensor:
    older, newer = torch.zeros_like(x), torch.ones_like(x)
    sin = ((1 - x) * (1 + x)).sqrt()
    for factor in range(1, 2 * m, 2):
        newer = newer * -factor * sin
    for degree in range(m + 1, l + 1):
        older, newer = newer, ((2 * degree - 1) * x * newer - (degree + m - 1) * older) / (degree - m)
    return newer


def main() -> None:
    torch.manual_seed(0)
    theta, phi = math.pi * torch.rand(N), 2 * math.pi * torch.rand(N)
    expected = one_by_one(theta.double(), phi.double(), DEGREE)
    torch.testing.assert_close(real_spherical_harmonics(theta, phi, DEGREE).double(), expected, atol=1e-4, rtol=0)
    side_by_side(
        f"spherical harmonics below degree {DEGREE} at {N:,} places",
        {
            "one (l, m) after the other": lambda: one_by_one(theta, phi, DEGREE),
            "real_spherical_harmonics": lambda: real_spherical_harmonics(theta, phi, DEGREE),
        },
        baseline="one (l, m) after the other",
        targets={"real_spherical_harmonics": 0.05},
        rounds=15,
    )
    angles = [theta.requires_grad_(), phi.requires_grad_()]
    table = real_spherical_harmonics(theta, phi, DEGREE)
    grad = torch.randn_like(table)  # laid out as a linear layer gives it back
    side_by_side(
        "forward and backward of spherical harmonics",
        {
            "forward": lambda: real_spherical_harmonics(theta, phi, DEGREE),
            "backward": lambda: torch.autograd.grad(table, angles, grad, retain_graph=True),
        },
        baseline="forward",
        targets={"backward": 2.5},
    )
    lonlat = torch.stack([360 * torch.rand(N) - 180, 180 * torch.rand(N) - 90], dim=1)
    low, high = SphericalHarmonics(25), SphericalHarmonics(26)
    side_by_side(
        "the step from float32 to float64 inside, at degree 25",
        {"25 degrees": lambda: low(lonlat), "26 degrees": lambda: high(lonlat)},
        baseline="25 degrees",
    )


if __name__ == "__main__":
    main()
