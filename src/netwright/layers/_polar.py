"""The polar decomposition of 2×2 matrices in closed form, and bases of matrices; see ``netwright.layers.liegroups``."""

import math

import torch
from torch import Tensor

from netwright import checks

TOLERANCE = 1e-4  # of the determinant of SL, and of what makes a rotation


def symmetric_basis(n: int, traceless: bool) -> Tensor:
    """Orthonormal basis of the symmetric n×n matrices, of those with trace 0 if asked for ``(dim, n, n)``."""
    basis = torch.zeros(n * (n + 1) // 2, n, n, dtype=torch.float64, device="cpu")
    for i in range(n):
        basis[i, i, i] = 1
    for index, (i, j) in enumerate(torch.combinations(torch.arange(n, device="cpu")).tolist()):
        basis[n + index, i, j] = basis[n + index, j, i] = math.sqrt(0.5)
    if traceless:  # Helmert's basis of the vectors whose entries add up to 0
        for i in range(1, n):
            basis[i - 1] = torch.diag(torch.tensor([1.0] * i + [-i] + [0.0] * (n - 1 - i), device="cpu"))
            basis[i - 1] /= math.sqrt(i * (i + 1))
        basis = torch.cat((basis[: n - 1], basis[n:]))
    return basis


def skew_basis(n: int) -> Tensor:
    """Orthonormal basis of the skew-symmetric n×n matrices ``(dim, n, n)``."""
    pairs = torch.combinations(torch.arange(n, device="cpu")).tolist()
    basis = torch.zeros(len(pairs), n, n, dtype=torch.float64, device="cpu")
    for index, (i, j) in enumerate(pairs):
        basis[index, j, i], basis[index, i, j] = math.sqrt(0.5), -math.sqrt(0.5)
    return basis


def hat(v: Tensor, basis: Tensor) -> Tensor:
    """The matrices of coordinates ``(…, dim)`` in a basis."""
    check_coordinates("v", v, len(basis))
    x: Tensor = torch.tensordot(v, basis.to(v), 1)
    return x


def vee(x: Tensor, basis: Tensor) -> Tensor:
    """The coordinates of matrices ``(…, n, n)`` in an orthonormal basis."""
    check_matrices("x", x, basis.shape[-1])
    v: Tensor = torch.tensordot(x, basis.to(x), ([-2, -1], [-2, -1]))
    return v


def matrix_exp(x: Tensor) -> Tensor:
    """Exponential of matrices."""
    g: Tensor = torch.linalg.matrix_exp(x)
    return g


def rotation(angle: Tensor) -> Tensor:
    """Rotations of the plane by angles ``(…)``: ``(…, 2, 2)``."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((cos, -sin, sin, cos), -1).reshape(*angle.shape, 2, 2)


def polar_angle(g: Tensor) -> Tensor:
    """Angle of the rotation of the polar decomposition of 2×2 matrices, in (−π, π]."""
    angle = torch.atan2(g[..., 1, 0] - g[..., 0, 1], g[..., 0, 0] + g[..., 1, 1])
    # products of rotations by π come out on either side of the cut; one of its sides is chosen for them
    return torch.where(angle < -math.pi + 64 * torch.finfo(g.dtype).eps, angle + 2 * math.pi, angle)


def polar_log(g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of log P = [[l + u, w], [w, l − u]] of 2×2 g = P R, in closed form.

    P has the trace s = |(a + d, c − b)| and the determinant of g; with δ half the difference of its eigenvalues, that
    of its logarithm is artanh(2 δ / s).
    """
    (a, b), (c, d) = (row.unbind(-1) for row in g.unbind(-2))
    cos, sin = a + d, c - b
    s = torch.hypot(cos, sin)
    cos, sin = cos / s, sin / s
    u, w = ((a - d) * cos - (b + c) * sin) / 2, ((a - d) * sin + (b + c) * cos) / 2
    square, middle = u * u + w * w, s / 2
    z2 = square / (middle * middle)
    near = z2 < 2.5e-3
    small = torch.where(near, z2, 0.0)
    series = 1 + small * (1 / 3 + small * (1 / 5 + small * (1 / 7 + small * (1 / 9 + small / 11))))
    determinant = a * d - b * c
    delta = torch.where(near, 1.0, square).sqrt()
    closed = torch.log((middle + delta) / determinant.sqrt()) / delta
    factor = torch.where(near, series / middle, closed)
    return determinant.log() / 2, factor * u, factor * w


def sym_exp_2x2(x: Tensor) -> Tensor:
    """Exponential of symmetric 2×2 matrices: a sum of I and X − m I, with the mean m of the eigenvalues."""
    mean = (x[..., 0, 0] + x[..., 1, 1]) / 2
    u, w = (x[..., 0, 0] - x[..., 1, 1]) / 2, (x[..., 0, 1] + x[..., 1, 0]) / 2
    square = u * u + w * w
    near = square < 1e-2
    small = torch.where(near, square, 0.0)
    delta = torch.where(near, 1.0, square).sqrt()
    cosh_series = 1 + small / 2 * (1 + small / 12 * (1 + small / 30 * (1 + small / 56 * (1 + small / 90))))
    sinhc_series = 1 + small / 6 * (1 + small / 20 * (1 + small / 42 * (1 + small / 72 * (1 + small / 110))))
    even = torch.where(near, cosh_series, torch.cosh(delta))
    odd = torch.where(near, sinhc_series, torch.sinh(delta) / delta)
    entries = (even + odd * u, odd * w, odd * w, even - odd * u)
    return (mean.exp()[..., None] * torch.stack(entries, -1)).reshape(x.shape)


def at_least_single(g: Tensor) -> Tensor:
    """At least single precision."""
    return g if g.dtype == torch.float64 else g.float()


def drawing_device(generator: torch.Generator | None, device: torch.device | str | None) -> torch.device | str | None:
    """Where random numbers are drawn."""
    return device if generator is None else generator.device


def only_two(what: str, n: int) -> None:
    """Refuse what is there in two dimensions only."""
    if n != 2:
        checks.fail(f"n must be 2 for {what}", n)


def check_coordinates(name: str, v: Tensor, dim: int) -> None:
    """Check the number of coordinates."""
    if not v.dim() or v.shape[-1] != dim:
        checks.fail(f"{name} must have {dim} coordinates (…, {dim})", f"shape {tuple(v.shape)}")


def check_matrices(name: str, x: Tensor, n: int) -> None:
    """Check that these are n×n matrices."""
    checks.floating_point(name, x)
    if x.dim() < 2 or tuple(x.shape[-2:]) != (n, n):
        checks.fail(f"{name} must be matrices (…, {n}, {n})", f"shape {tuple(x.shape)}")


def check_volume(name: str, determinants: Tensor) -> None:
    """Check that determinants are 1."""
    far = determinants[(determinants - 1).abs().argmax()] if determinants.dim() else determinants
    if not abs(far.item() - 1) <= TOLERANCE:
        checks.fail(f"{name} must have determinant 1 up to {TOLERANCE:g}", f"{far.item():.6g}")


__all__ = [
    "TOLERANCE",
    "at_least_single",
    "check_coordinates",
    "check_matrices",
    "check_volume",
    "drawing_device",
    "hat",
    "matrix_exp",
    "only_two",
    "polar_angle",
    "polar_log",
    "rotation",
    "skew_basis",
    "sym_exp_2x2",
    "symmetric_basis",
    "vee",
]
