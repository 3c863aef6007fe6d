"""Operations on symmetric positive definite (SPD) matrices under the generalised Bures-Wasserstein metric and others.

Functions of matrices (:func:`spd_log`, :func:`spd_power`, …), the Bures-Wasserstein geometry (``bw_…``), the same after
a congruence by a matrix M (``gbw_…``), as Wang, Han and others (2025, arXiv:2504.00660) use it for normalisation, and
the affine-invariant geometry (``airm_…``) to compare with. All take stacks of matrices ``(…, n, n)``, broadcast their
leading dimensions, compute in float64 and return the type of their input; first derivatives are exact also where
eigenvalues are equal.
"""

import inspect
from collections.abc import Callable
from functools import reduce, wraps
from typing import ParamSpec

import torch
from torch import Tensor

from netwright import checks
from netwright.layers._spd_eigen import can_read, multiply, spectral, symmetric

ROUNDING = torch.finfo(torch.float64).eps
_ASYMMETRY = 1e-6

P = ParamSpec("P")


def check_square(name: str, x: Tensor, n: int | None = None) -> None:
    """Check that ``x`` is a stack of floating-point n×n matrices that are symmetric up to 10⁻⁶ of the largest entry.

    Raises:
        InputError: If not, or an entry is not finite.
    """
    checks.floating_point(name, x)
    if x.dim() < 2 or x.shape[-1] != x.shape[-2] or (n is not None and x.shape[-1] != n):
        size = "n" if n is None else str(n)
        checks.fail(f"{name} must be matrices (…, {size}, {size})", f"shape {tuple(x.shape)}")
    if not can_read(x) or not x.numel():
        return
    with torch.no_grad():
        difference, largest = (x - x.mT).abs().max().item(), x.abs().max().item()
    if not difference <= _ASYMMETRY * largest < float("inf"):
        expected = f"{name} must be symmetric and finite, with differences to its transpose up to {_ASYMMETRY:g}"
        checks.fail(f"{expected} of its largest entry", f"{difference:.3g}, and {largest:.3g} as the largest entry")


def check_positive(name: str, values: Tensor) -> None:
    """Check that all eigenvalues are positive; the message names the smallest.

    Raises:
        InputError: If one is not.
    """
    if can_read(values) and values.numel() and not (smallest := values.detach().min().item()) > 0:
        checks.fail(f"{name} must be positive definite, with all eigenvalues above 0", f"an eigenvalue of {smallest:g}")


def spd_log(x: Tensor) -> Tensor:
    """Matrix logarithm of SPD matrices.

    Raises:
        InputError: As for all functions here that need SPD matrices: if ``x`` is not symmetric up to 10⁻⁶ of its
            largest entry, or has an eigenvalue that is not positive; the message names it.

    Example:
        >>> spd_log(torch.diag(torch.tensor([1.0, torch.e]))).round(decimals=6)
        tensor([[0., 0.],
                [0., 1.]])
    """
    return _of_positive(x, ("log", 0.0))[0]


def sym_exp(x: Tensor) -> Tensor:
    """Matrix exponential of symmetric matrices: the inverse of :func:`spd_log`."""
    check_square("x", x)
    return spectral(symmetric(x), ("exp", 0.0))[0]


def spd_sqrt(x: Tensor) -> Tensor:
    """The SPD square root of SPD matrices."""
    return _of_positive(x, ("sqrt", 0.0))[0]


def spd_roots(x: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root from one decomposition."""
    root, inverse = _of_positive(x, ("sqrt", 0.0), ("inv_sqrt", 0.0))
    return root, inverse


def spd_power(x: Tensor, power: float) -> Tensor:
    """X to any real power.

    Example:
        >>> spd_power(torch.diag(torch.tensor([4.0, 9.0])), 0.5)
        tensor([[2., 0.],
                [0., 3.]])
    """
    return _of_positive(x, ("power", float(power)))[0]


def sym_clamp(x: Tensor, low: float) -> Tensor:
    """Raise all eigenvalues of symmetric matrices to at least ``low``: what ReEig does."""
    check_square("x", x)
    return spectral(symmetric(x), ("clamp", low))[0]


def _wide(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Check the matrices (all tensors but ``t``) that a function is given, compute in float64, return their type."""
    names = tuple(inspect.signature(function).parameters)
    compute: Callable[..., Tensor] = function

    @wraps(function)
    def in_double(*arguments: P.args, **options: P.kwargs) -> Tensor:
        given = [*zip(names, arguments, strict=False), *options.items()]
        matrices = [(name, value) for name, value in given if isinstance(value, Tensor) and name != "t"]
        n = None
        for name, matrix in matrices:
            check_square(name, matrix, n)
            n = matrix.shape[-1]
        wide = [value.double() if isinstance(value, Tensor) else value for value in arguments]
        output = compute(*wide, **{k: v.double() if isinstance(v, Tensor) else v for k, v in options.items()})
        return output.to(reduce(torch.promote_types, [matrix.dtype for _, matrix in matrices]))

    return in_double


@_wide
def lyapunov(x: Tensor, v: Tensor) -> Tensor:
    """The symmetric solution L of L X + X L = V for SPD X and symmetric V.

    Example:
        >>> lyapunov(2 * torch.eye(2), torch.ones(2, 2))
        tensor([[0.2500, 0.2500],
                [0.2500, 0.2500]])
    """
    return multiply(symmetric(x), symmetric(v), "lyapunov")


@_wide
def bw_map(x: Tensor, y: Tensor) -> Tensor:
    r"""The optimal transport map from X to Y: the SPD matrix T with T X T = Y.

    .. math:: T = X^{-1/2} (X^{1/2} Y X^{1/2})^{1/2} X^{-1/2}
    """
    root, inverse = spd_roots(x)
    middle, values = spectral(root @ symmetric(y) @ root, ("sqrt", 0.0), floor=ROUNDING)
    _check_product(values, y)
    return symmetric(inverse @ middle @ inverse)


@_wide
def bw_distance(x: Tensor, y: Tensor) -> Tensor:
    r"""Bures-Wasserstein distance: that of optimal transport between Gaussians of covariance X and Y and equal means.

    .. math:: d^2 = \operatorname{tr} X + \operatorname{tr} Y - 2 \operatorname{tr} (X^{1/2} Y X^{1/2})^{1/2}
        = \|(T - I) X^{1/2}\|_F^2

    computed in the second form with the map T of :func:`bw_map`, which does not cancel where X and Y are close.

    Args:
        x: SPD matrices ``(…, n, n)``.
        y: SPD matrices, broadcast against ``x``.

    Returns:
        Distances ``(…)``.

    Source:
        Bhatia, Jain, Lim 2019, arXiv:1712.01504.

    Example:
        >>> bw_distance(torch.eye(2), 9 * torch.eye(2)).square().round().item()
        8.0
    """
    return _norm((bw_map(x, y) - _eye(x)) @ spd_sqrt(x))


@_wide
def bw_geodesic(x: Tensor, y: Tensor, t: float | Tensor) -> Tensor:
    """The point at ``t`` of the Bures-Wasserstein geodesic from X (t = 0) to Y (t = 1).

    Example:
        >>> bw_geodesic(torch.eye(1), 9 * torch.eye(1), 0.5)
        tensor([[4.]])
    """
    moved = (1 - t) * _eye(x) + t * bw_map(x, y)
    return symmetric(moved @ x @ moved)


@_wide
def bw_log(x: Tensor, y: Tensor) -> Tensor:
    r"""The tangent vector at X that leads to Y.

    .. math:: \operatorname{Log}_X Y = X^{1/2}(X^{1/2} Y X^{1/2})^{1/2} X^{-1/2} + (\cdot)^\top - 2 X = TX + XT - 2X
    """
    product = (bw_map(x, y) - _eye(x)) @ x
    return product + product.mT


@_wide
def bw_exp(x: Tensor, v: Tensor) -> Tensor:
    r"""Where the geodesic from X with the tangent vector V is at time 1.

    .. math:: \operatorname{Exp}_X V = X + V + L X L = (I + L) X (I + L), \qquad L X + X L = V

    Args:
        x: SPD matrices ``(…, n, n)``.
        v: Symmetric matrices, broadcast against ``x``.

    Raises:
        InputError: If I + L is not positive definite: the geodesic ends before time 1, where it meets a singular
            matrix; the message names the smallest eigenvalue of I + L.
    """
    moved = _eye(x) + lyapunov(x, v)
    if can_read(moved) and moved.numel():
        smallest = torch.linalg.eigvalsh(moved.detach()).min().item()
        if not smallest > 0:
            expected = "v must lie where the exponential map is defined, with I + L positive definite"
            checks.fail(expected, f"an eigenvalue of {smallest:g}")
    return symmetric(moved @ x @ moved)


@_wide
def bw_transport_commuting(v: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Parallel transport of a tangent vector from ``start`` to ``end``, two matrices that commute.

    In their common eigenbasis entry (i, j) is multiplied by √((e_i + e_j) / (s_i + s_j)). One of them is often I.

    Args:
        v: Symmetric matrices ``(…, n, n)``.
        start: SPD matrices.
        end: SPD matrices.

    Raises:
        InputError: If the matrices do not commute.

    Source:
        Thanwerdas, Pennec 2023, arXiv:2110.12149.

    Example:
        >>> bw_transport_commuting(torch.eye(2), torch.eye(2), 4 * torch.eye(2))
        tensor([[2., 0.],
                [0., 2.]])
    """
    if can_read(start):
        product = start.detach() @ end.detach()
        error = ((product - product.mT).norm(dim=(-2, -1)) / product.norm(dim=(-2, -1))).max().item()
        if not error <= _ASYMMETRY:
            checks.fail("start and end must commute", f"a commutator of {error:.3g} times their product")
    there = multiply(symmetric(start), symmetric(v), "to identity")
    return multiply(symmetric(end), there, "from identity")


@_wide
def bw_mean(x: Tensor, iterations: int | None = None, *, tol: float = 1e-12, max_iterations: int = 200) -> Tensor:
    r"""Bures-Wasserstein mean over the first dimension: the SPD matrix with the least sum of squared distances.

    .. math:: G \leftarrow G^{-1/2} \Bigl(\tfrac1N \sum_i (G^{1/2} X_i G^{1/2})^{1/2}\Bigr)^2 G^{-1/2}

    from the arithmetic mean. One iteration is what batch normalisation takes.

    Args:
        x: SPD matrices ``(N, …, n, n)``.
        iterations: How many; until the mean moves by less than ``tol`` of its norm, if not given.
        tol: See ``iterations``.
        max_iterations: The most iterations with ``tol``.

    Returns:
        ``(…, n, n)``.

    Source:
        Álvarez-Esteban, del Barrio, Cuesta-Albertos, Matrán 2016, arXiv:1511.05355.

    Example:
        >>> bw_mean(torch.tensor([1.0, 9.0]).view(2, 1, 1))
        tensor([[4.]])
    """
    x, mean = _with_mean(x)
    for _ in range(max_iterations if iterations is None else iterations):
        root, inverse = spd_roots(mean)
        middle, values = spectral(root @ x @ root, ("sqrt", 0.0), floor=ROUNDING)
        _check_product(values, x)
        half = inverse @ middle.mean(0)
        before, mean = mean, symmetric(half @ half.mT)
        if iterations is None and (mean - before).norm() <= tol * mean.norm():
            break
    return mean


@_wide
def gbw_distance(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    """Generalised Bures-Wasserstein distance: :func:`bw_distance` after the congruence X ↦ M^{−1/2} X M^{−1/2}.

    With M = I it is the Bures-Wasserstein distance; with M = X it is that between I and X^{−1/2} Y X^{−1/2}, which for
    close matrices is half of the affine-invariant one.

    Args:
        x: SPD matrices ``(…, n, n)``.
        y: SPD matrices, broadcast against ``x``.
        m: The SPD matrix of the metric.

    Source:
        Han, Mishra, Jawanpuria, Gao 2023, arXiv:2110.10464.

    Example:
        >>> gbw_distance(torch.eye(2), 9 * torch.eye(2), m=4 * torch.eye(2)).square().round().item()
        2.0
    """
    _, inverse = spd_roots(m)
    return bw_distance(_congruence(inverse, x), _congruence(inverse, y))


@_wide
def gbw_geodesic(x: Tensor, y: Tensor, t: float | Tensor, m: Tensor) -> Tensor:
    """:func:`bw_geodesic` of the metric of M. It does not change with the scale of M."""
    root, inverse = spd_roots(m)
    return _congruence(root, bw_geodesic(_congruence(inverse, x), _congruence(inverse, y), t))


@_wide
def gbw_log(x: Tensor, y: Tensor, m: Tensor) -> Tensor:
    """:func:`bw_log` of the metric of M."""
    root, inverse = spd_roots(m)
    return _congruence(root, bw_log(_congruence(inverse, x), _congruence(inverse, y)))


@_wide
def gbw_exp(x: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """:func:`bw_exp` of the metric of M."""
    root, inverse = spd_roots(m)
    return _congruence(root, bw_exp(_congruence(inverse, x), _congruence(inverse, v)))


@_wide
def gbw_mean(x: Tensor, m: Tensor, iterations: int | None = None) -> Tensor:
    """:func:`bw_mean` of the metric of M."""
    root, inverse = spd_roots(m)
    return _congruence(root, bw_mean(_congruence(inverse, x), iterations))


@_wide
def airm_distance(x: Tensor, y: Tensor) -> Tensor:
    """Affine-invariant distance: the norm of log(X^{−1/2} Y X^{−1/2})."""
    _, inverse = spd_roots(x)
    logs, values = spectral(_congruence(inverse, y), ("log", 0.0), floor=ROUNDING)
    _check_product(values, y)
    return _norm(logs)


@_wide
def airm_geodesic(x: Tensor, y: Tensor, t: float) -> Tensor:
    """The affine-invariant geodesic X^{1/2} (X^{−1/2} Y X^{−1/2})^t X^{1/2}."""
    root, inverse = spd_roots(x)
    power, values = spectral(_congruence(inverse, y), ("power", float(t)), floor=ROUNDING)
    _check_product(values, y)
    return _congruence(root, power)


@_wide
def airm_mean(x: Tensor, iterations: int | None = None, *, tol: float = 1e-12, max_iterations: int = 200) -> Tensor:
    """Affine-invariant (Karcher) mean over the first dimension, by the Karcher flow; arguments as :func:`bw_mean`.

    Source:
        Brooks, Schwander, Barbaresco, Schneider, Cord 2019, arXiv:1909.02414.
    """
    x, mean = _with_mean(x)
    for _ in range(max_iterations if iterations is None else iterations):
        root, inverse = spd_roots(mean)
        logs, values = spectral(inverse @ x @ inverse, ("log", 0.0), floor=ROUNDING)
        _check_product(values, x)
        step = logs.mean(0)
        mean = _congruence(root, spectral(step, ("exp", 0.0))[0])
        if iterations is None and step.norm() <= tol:
            break
    return mean


def _of_positive(x: Tensor, *calls: tuple[str, float]) -> tuple[Tensor, ...]:
    check_square("x", x)
    *outputs, values = spectral(symmetric(x), *calls)
    check_positive("x", values)
    return tuple(outputs)


def _check_product(values: Tensor, y: Tensor) -> None:
    """Check Y through the eigenvalues of A Y A, which have the signs of those of Y but for rounding."""
    if can_read(values) and not (values > 0).all():
        own = torch.linalg.eigvalsh(symmetric(y.detach().double()))
        if own.min() <= 0:
            check_positive("y", own)


def _with_mean(x: Tensor) -> tuple[Tensor, Tensor]:
    check_square("x", x)
    if x.dim() < 3 or not len(x):
        checks.fail("x must be at least one matrix to take a mean of, (N, …, n, n)", f"shape {tuple(x.shape)}")
    x = symmetric(x)
    return x, x.mean(0)


def _congruence(a: Tensor, x: Tensor) -> Tensor:
    return symmetric(a @ x @ a)


def _norm(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(x)
    return norm


def _eye(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)


__all__ = [
    "airm_distance",
    "airm_geodesic",
    "airm_mean",
    "bw_distance",
    "bw_exp",
    "bw_geodesic",
    "bw_log",
    "bw_map",
    "bw_mean",
    "bw_transport_commuting",
    "check_positive",
    "check_square",
    "gbw_distance",
    "gbw_exp",
    "gbw_geodesic",
    "gbw_log",
    "gbw_mean",
    "lyapunov",
    "spd_log",
    "spd_power",
    "spd_roots",
    "spd_sqrt",
    "sym_clamp",
    "sym_exp",
]
