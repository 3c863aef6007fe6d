"""Eigenpairs, trace and spectrum of a symmetric matrix that is only known by its products with vectors."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psutil
import torch
from torch import Tensor

from netwright import checks

Multiply = Callable[[Tensor], Tensor]
Observer = Callable[[float], None]
Reorth = Literal["full"] | int


@dataclass(frozen=True, eq=False)
class Tridiagonal:
    """What Lanczos makes of a matrix A: T = Vᵀ A V, tridiagonal, and the orthonormal basis V.

    Attributes:
        diagonal: ``(steps,)``, float64.
        off_diagonal: ``(steps − 1,)``, float64; 0 where an invariant subspace was complete and a new one was begun.
        basis: The latest basis vectors as rows ``(kept, size)``, all of them with full re-orthogonalisation.
        residual: Norm of what the last product has outside of the basis; 0 when the subspace is invariant.
    """

    diagonal: Tensor
    off_diagonal: Tensor
    basis: Tensor
    residual: float

    def matrix(self) -> Tensor:
        """T as a dense matrix ``(steps, steps)``."""
        return torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)

    def quadrature(self) -> tuple[Tensor, Tensor]:
        """Nodes and weights ``(steps,)`` of the Gaussian quadrature: eigenvalues of T, squared first components."""
        values, vectors = torch.linalg.eigh(self.matrix())
        return values, vectors[0] ** 2


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors, largest magnitude first.

    Attributes:
        values: λ, ``(k,)``, float64.
        vectors: Orthonormal, as rows ``(k, size)``.
        residuals: Norms of A v − λ v, ``(k,)``, float64: λ is off by at most that.
        products: How many products with A it took.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace.

    Attributes:
        value: Mean over the random vectors.
        standard_error: Its standard error; infinite for a single vector.
        probes: Number of random vectors.
    """

    value: float
    standard_error: float
    probes: int


def lanczos(
    multiply: Multiply,
    start: Tensor,
    steps: int,
    *,
    reorth: Reorth = "full",
    generator: torch.Generator | None = None,
    observer: Observer | None = None,
) -> Tridiagonal:
    r"""Lanczos' tridiagonalisation of a symmetric matrix A.

    .. math:: \beta_{j+1} v_{j+1} = A v_j - \alpha_j v_j - \beta_j v_{j-1}, \qquad \alpha_j = v_j^\top A v_j

    In floating-point numbers the vectors lose their orthogonality, and eigenvalues come out many times; so each new
    vector is made orthogonal to those before, twice. When an invariant subspace is complete (β = 0), the next vector is
    a random one orthogonal to it.

    Args:
        multiply: v ``(size,)`` to A v ``(size,)``.
        start: First vector, of any length but 0.
        steps: Number of products, at most ``size``.
        reorth: ``"full"``: against all vectors, which keeps ``steps · size`` numbers (:func:`basis_bytes`); a number:
            against so many of the latest (the reference implementation: 10); 0: not at all.
        generator: Draws vectors where a subspace is complete; one with seed 0 if not given.
        observer: Called with the fraction that is done.

    Raises:
        InputError: If ``steps`` is not between 1 and the size, or ``start`` is 0.

    Warns:
        UserWarning: If the basis takes more than half of the memory that is free.

    Source:
        Lanczos 1950; Paige 1972 on the loss of orthogonality.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64))
        >>> nodes, weights = lanczos(A.mv, torch.ones(3, dtype=torch.float64), 3).quadrature()
        >>> [round(float(node), 6) for node in nodes]
        [1.0, 2.0, 5.0]
    """
    run = _Lanczos(multiply, start, steps, reorth, generator)
    for step in range(steps):
        run.step()
        _report(observer, (step + 1) / steps)
    return run.result()


def basis_bytes(size: int, steps: int, reorth: Reorth = "full", dtype: torch.dtype = torch.float32) -> int:
    """Memory that the basis of :func:`lanczos` takes.

    Example:
        >>> basis_bytes(269_722, 100) / 1e6, basis_bytes(269_722, 100, reorth=10) / 1e6
        (107.8888, 10.78888)
    """
    return _window(steps, reorth) * size * dtype.itemsize


def lanczos_eigenpairs(
    multiply: Multiply,
    like: Tensor,
    k: int = 1,
    iters: int = 100,
    tol: float = 1e-3,
    *,
    reorth: Reorth = "full",
    generator: torch.Generator | None = None,
    observer: Observer | None = None,
) -> Eigenpairs:
    """The ``k`` eigenpairs of largest magnitude by Lanczos, as soon as their residuals are below ``tol``·|λ|.

    From one start an eigenvalue that is there several times is found once, unless all others are found as well.

    Args:
        multiply: v ``(size,)`` to A v ``(size,)``.
        like: A vector of the size, type and device of v.
        k: How many.
        iters: Largest number of products.
        tol: See above.
        reorth: See :func:`lanczos`; with a window, eigenvectors take a second round of as many products.
        generator: Draws the first vector; one with seed 0 if not given.
        observer: Called with the fraction that is done.
    """
    size = like.numel()
    checks.between("k", k, 1, size)
    checks.at_least("iters", iters, k)
    checks.positive("tol", tol)
    generator = generator or torch.Generator().manual_seed(0)
    steps = min(iters, size)
    start = _normal(like, generator)
    run = _Lanczos(multiply, start, steps, reorth, generator)
    for step in range(1, steps + 1):
        run.step()
        _report(observer, step / steps)
        # an eigendecomposition of T costs nothing beside a product of a network, but it should not for small matrices
        if step >= k and (step == steps or step % 4 == 0 or run.beta == 0):
            values, vectors = torch.linalg.eigh(run.result().matrix())
            top = values.abs().argsort(descending=True)[:k]
            residuals = run.beta * vectors[-1, top].abs()
            if bool((residuals <= tol * values[top].abs()).all()):
                break
    if not run.keeps_all:
        return _rerun(multiply, start, run, vectors[:, top], generator)
    _report(observer, 1.0)
    found = (vectors[:, top].T.to(start) @ run.result().basis).to(start.dtype)
    return Eigenpairs(values[top], found, residuals, step)


def power_iteration(
    multiply: Multiply,
    like: Tensor,
    k: int = 1,
    iters: int = 100,
    tol: float = 1e-3,
    *,
    generator: torch.Generator | None = None,
    observer: Observer | None = None,
) -> Eigenpairs:
    r"""The ``k`` eigenpairs of largest magnitude by power iteration with deflation.

    :math:`v \leftarrow A v / \|A v\|`, made orthogonal to the eigenvectors that are found, until λ = vᵀ A v changes by
    less than ``tol`` relative to itself. In the end the matrix is diagonalised in the space of the vectors that were
    found (Rayleigh and Ritz), which takes no further products and undoes most of what a loose tolerance leaves in
    deflation.

    Args:
        multiply: v ``(size,)`` to A v ``(size,)``.
        like: A vector of the size, type and device of v.
        k: How many.
        iters: Largest number of products for each.
        tol: See above.
        generator: Draws the first vectors; one with seed 0 if not given.
        observer: Called with the fraction that is done, counting ``k · iters`` products.

    Source:
        arXiv:2412.10146; PyHessian (arXiv:1912.07145).

    Example:
        >>> A = torch.diag(torch.tensor([1.0, -5.0, 3.0], dtype=torch.float64))
        >>> power_iteration(A.mv, torch.zeros(3, dtype=torch.float64), 2, tol=1e-9).values
        tensor([-5.0000,  3.0000], dtype=torch.float64)
    """
    size = like.numel()
    checks.between("k", k, 1, size)
    checks.at_least("iters", iters, 1)
    checks.positive("tol", tol)
    generator = generator or torch.Generator().manual_seed(0)
    found, images = like.new_zeros(k, size), like.new_zeros(k, size)
    products = 0
    for index in range(k):
        v = _normal(like, generator)
        value: float | None = None
        for iteration in range(iters):
            v = _orthogonal(v, found[:index])
            v /= v.norm()
            image = multiply(v)
            products += 1
            _report(observer, (index + (iteration + 1) / iters) / k)
            before, value = value, _dot(v, image)
            if float(image.norm()) == 0 or (before is not None and abs(value - before) <= tol * abs(before)):
                break
            if iteration + 1 < iters:
                v = image
        found[index], images[index] = v, image
    _report(observer, 1.0)
    return _rayleigh_ritz(found, images, products)


def hutchinson_trace(
    multiply: Multiply,
    like: Tensor,
    iters: int = 100,
    tol: float = 1e-3,
    *,
    at_once: int = 1,
    generator: torch.Generator | None = None,
    observer: Observer | None = None,
) -> Trace:
    r"""Hutchinson's estimate of a trace: the mean of zᵀ A z over random vectors z of ±1.

    The variance of one term is twice the sum of the squares off the diagonal, so that the estimate is exact for
    diagonal matrices. It stops when the standard error is below ``tol`` times the estimate.

    Args:
        multiply: Rows ``(number, size)`` to rows A z.
        like: A vector of the size, type and device of z.
        iters: Largest number of random vectors.
        tol: See above.
        at_once: Vectors that are multiplied together.
        generator: Draws the vectors; one with seed 0 if not given.
        observer: Called with the fraction that is done.

    Source:
        Hutchinson 1989.

    Example:
        >>> A = torch.diag(torch.tensor([1.0, 2.0, 5.0]))
        >>> hutchinson_trace(lambda rows: rows @ A, torch.zeros(3))
        Trace(value=8.0, standard_error=0.0, probes=2)
    """
    checks.at_least("iters", iters, 1)
    checks.positive("tol", tol)
    checks.at_least("at_once", at_once, 1)
    generator = generator or torch.Generator().manual_seed(0)
    terms = torch.empty(0, dtype=torch.float64)
    value, error = 0.0, float("inf")
    while len(terms) < iters:
        z = rademacher(min(max(at_once, 2), iters - len(terms)), like, generator)
        terms = torch.cat([terms, (z * multiply(z)).sum(1, dtype=torch.float64).cpu()])
        value = float(terms.mean())
        error = float(terms.std() / len(terms) ** 0.5) if len(terms) > 1 else float("inf")
        _report(observer, len(terms) / iters)
        if error <= tol * abs(value):
            break
    _report(observer, 1.0)
    return Trace(value, error, len(terms))


def rademacher(number: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Random vectors of ±1, as rows ``(number, size)``, of the type and on the device of ``like``."""
    bits = torch.randint(2, (number, like.numel()), generator=generator, dtype=torch.int8, device=generator.device)
    return (2 * bits - 1).to(like)


class _Lanczos:
    """The state of Lanczos between steps."""

    def __init__(
        self, multiply: Multiply, start: Tensor, steps: int, reorth: Reorth, generator: torch.Generator | None
    ) -> None:
        checks.dimensions("start", start, "(size)")
        checks.between("steps", steps, 1, start.numel())
        length = float(start.norm())
        checks.positive("length of the start", length)
        window = _window(steps, reorth)
        need, free = window * start.numel() * start.element_size(), psutil.virtual_memory().available
        if start.device.type == "cpu" and need > free / 2:
            warnings.warn(
                f"the basis of Lanczos takes {need / 1e9:.1f} GB of {free / 1e9:.1f} GB that are free; "
                "reorth=10 keeps ten vectors only",
                stacklevel=4,
            )
        self.multiply = multiply
        self.generator = generator or torch.Generator().manual_seed(0)
        self.keeps_all = window == steps
        self.basis = start.new_empty(window, start.numel())
        self.kept = 0
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.beta = 0.0
        self.scale = 0.0
        self.before: Tensor | None = None
        self.next = start / length

    def step(self) -> None:
        """One product; afterwards ``beta`` is the length of what it has outside of the basis."""
        if self.alphas:
            self.betas.append(self.beta)
        v = self.next
        window = len(self.basis)
        if window:
            self.basis[self.kept % window] = v
            self.kept += 1
        w = self.multiply(v)
        alpha = _dot(v, w)
        w = w - alpha * v
        if self.before is not None and self.beta:
            w -= self.beta * self.before
        known = self.basis[: min(self.kept, window)]
        w = _orthogonal(w, known)
        beta = float(w.norm())
        self.alphas.append(alpha)
        self.scale = max(self.scale, abs(alpha), beta)
        if beta <= 10 * torch.finfo(w.dtype).eps * self.scale:
            beta = 0.0
            w = _orthogonal(_normal(v, self.generator), known if window else v.unsqueeze(0))
        self.beta, self.before = beta, v
        length = float(w.norm())
        # after `size` steps nothing is left, and nothing is asked for
        self.next = w / length if length > 0 else w

    def result(self) -> Tridiagonal:
        return Tridiagonal(
            torch.tensor(self.alphas, dtype=torch.float64),
            torch.tensor(self.betas, dtype=torch.float64),
            self.basis[: min(self.kept, len(self.basis))],
            self.beta,
        )


def _rerun(
    multiply: Multiply, start: Tensor, first: _Lanczos, combination: Tensor, generator: torch.Generator
) -> Eigenpairs:
    """The eigenvectors from the basis of ``first``, whose vectors are not kept and so are made a second time."""
    steps, k = combination.shape
    run = _Lanczos(multiply, start, steps, len(first.basis), generator)
    found = start.new_zeros(k, start.numel())
    for step in range(steps):
        found += torch.outer(combination[step].to(start), run.next)
        run.step()
    found = torch.linalg.qr(found.T.double())[0].T.to(start.dtype).contiguous()
    images = torch.stack([multiply(v) for v in found])
    return _rayleigh_ritz(found, images, 2 * steps + k)


def _rayleigh_ritz(vectors: Tensor, images: Tensor, products: int) -> Eigenpairs:
    """Diagonalise A in the space of orthonormal rows, whose images A v are known."""
    small = (vectors.double() @ images.double().T).cpu()
    values, rotation = torch.linalg.eigh((small + small.T) / 2)
    order = values.abs().argsort(descending=True)
    values, rotation = values[order], rotation[:, order].T.to(vectors)
    vectors, images = rotation @ vectors, rotation @ images
    residuals = (images.double() - values.to(images.device).unsqueeze(1) * vectors.double()).norm(dim=1).cpu()
    return Eigenpairs(values, vectors, residuals, products)


def _orthogonal(w: Tensor, basis: Tensor) -> Tensor:
    """``w`` without its components along orthonormal rows; twice, since once leaves rounding errors of those."""
    if len(basis) == 0:
        return w
    for _ in range(2):
        w = w - basis.T @ (basis @ w)
    return w


def _dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.double(), b.double()))


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.numel(), generator=generator, dtype=torch.float64, device=generator.device).to(like)


def _window(steps: int, reorth: Reorth) -> int:
    if reorth == "full":
        return steps
    if not isinstance(reorth, int) or reorth < 0:
        checks.fail("reorth must be 'full' or a number of vectors that is not negative", repr(reorth))
    return min(steps, reorth)


def _report(observer: Observer | None, fraction: float) -> None:
    if observer is not None:
        observer(min(fraction, 1.0))


__all__ = [
    "Eigenpairs",
    "Multiply",
    "Observer",
    "Reorth",
    "Trace",
    "Tridiagonal",
    "basis_bytes",
    "hutchinson_trace",
    "lanczos",
    "lanczos_eigenpairs",
    "power_iteration",
    "rademacher",
]
