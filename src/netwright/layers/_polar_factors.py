"""The two factors of the polar decomposition of matrices, as manifolds; see ``netwright.layers.liegroups``."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from netwright import checks
from netwright.layers._polar import (
    TOLERANCE,
    at_least_single,
    check_coordinates,
    check_matrices,
    check_volume,
    drawing_device,
    hat,
    matrix_exp,
    only_two,
    polar_angle,
    rotation,
    skew_basis,
    sym_exp_2x2,
    symmetric_basis,
    vee,
)
from netwright.layers._spd_eigen import can_read
from netwright.layers.spd import check_positive, check_square, spd_log, spd_sqrt, sym_exp

Rotations = Literal["equidistant", "uniform", "haar"]


class Samples(NamedTuple):
    """Elements of a group ``(n, 2, 2)`` and, in the same order, their inverses."""

    g: Tensor
    inverse: Tensor


class SO:
    r"""Rotations SO(n), with the trace metric ⟨X, Y⟩ = tr XᵀY on the skew-symmetric matrices.

    Args:
        n: Size of the matrices; logarithm and samples are there for 2.
        rotations: How :meth:`sample_pair` draws them: ``"equidistant"`` without repeats, ``"uniform"`` between
            ±``bound``·π, or ``"haar"``, which is uniform on the whole circle.
        bound: Largest angle as a fraction of π, for the first two.

    Attributes:
        dim: n(n − 1)/2, the number of coordinates.
        volume_preserving: Whether all determinants are 1.

    Source:
        arXiv:2310.11366, section 3. The published sampler draws equidistant angles between −π and π, both included,
        and so has one rotation twice; here the whole circle is divided evenly.

    Example:
        >>> group = SO(2)
        >>> quarter = group.expm(torch.tensor([math.pi / 2 * math.sqrt(2)]))
        >>> quarter.round().abs(), group.xi_inv(quarter) / math.sqrt(2) / math.pi
        (tensor([[0., 1.],
                [1., 0.]]), tensor([0.5000]))
    """

    volume_preserving = True

    def __init__(self, n: int = 2, *, rotations: Rotations = "equidistant", bound: float = 1.0) -> None:
        checks.at_least("n", n, 2)
        checks.known("way to draw rotations", rotations, get_args(Rotations))
        checks.between("bound", bound, 0, 1, open_low=True)
        self.n = n
        self.rotations = rotations
        self.bound = bound
        self.dim = n * (n - 1) // 2
        self._basis = skew_basis(n)

    def hat(self, v: Tensor) -> Tensor:
        """The skew-symmetric matrix of coordinates ``(…, dim)``; for n = 2 the coordinate is √2 times the angle."""
        return hat(v, self._basis)

    def vee(self, x: Tensor) -> Tensor:
        """Coordinates of a skew-symmetric matrix: the inverse of :meth:`hat`."""
        return vee(x, self._basis)

    def expm(self, v: Tensor) -> Tensor:
        """The rotation whose logarithm has the coordinates v."""
        if self.n == 2:
            check_coordinates("v", v, self.dim)
            return rotation(v[..., 0] / math.sqrt(2))
        return matrix_exp(self.hat(v))

    def log(self, g: Tensor) -> Tensor:
        """The skew-symmetric logarithm, with angles in (−π, π]: −π, up to rounding, counts as π.

        Raises:
            InputError: If g is no rotation, or n is not 2.
        """
        self.check(g)
        return self.hat(self.chart(g))

    def xi_inv(self, g: Tensor) -> Tensor:
        """Coordinates ``(…, dim)`` of rotations: those of :meth:`log`."""
        self.check(g)
        return self.chart(g)

    def chart(self, g: Tensor) -> Tensor:
        """As :meth:`xi_inv`, without a look at whether g is in the group."""
        only_two("coordinates of rotations", self.n)
        return (math.sqrt(2) * polar_angle(at_least_single(g))[..., None]).to(g.dtype)

    def check(self, g: Tensor) -> None:
        """Check that ``g`` are rotations.

        Raises:
            InputError: If not, naming the deviation.
        """
        check_matrices("g", g, self.n)
        if not can_read(g) or not g.numel():
            return
        with torch.no_grad():
            wide = g.double()
            error = (wide @ wide.mT - torch.eye(self.n, dtype=wide.dtype, device=g.device)).abs().max().item()
            smallest = torch.linalg.det(wide).min().item()
        if not (error <= TOLERANCE and smallest > 0):
            expected = f"g must be rotations, with g gᵀ = I up to {TOLERANCE:g} and determinant 1"
            checks.fail(expected, f"a deviation of {error:.3g} and a determinant of {smallest:.3g}")

    def sample_pair(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        """Draw n rotations, with their inverses.

        Args:
            n: How many.
            generator: Of the random ones; torch's own if not given.
            device: Where the result is.
            dtype: Its floating-point type.

        Raises:
            InputError: If the matrices are not 2×2, or n is not positive.
        """
        only_two("samples", self.n)
        checks.at_least("n", n, 1)
        angle = self._angles(n, generator, device, dtype)
        g = rotation(angle)
        return Samples(g, g.mT)

    def _angles(
        self,
        n: int,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        if self.rotations == "equidistant":
            steps = torch.arange(n, device=device, dtype=dtype or torch.get_default_dtype())
            if self.bound == 1:
                return 2 * math.pi / n * steps
            return math.pi * self.bound * (2 / max(n - 1, 1) * (steps - (n - 1) / 2))
        bound = self.bound if self.rotations == "uniform" else 1.0
        random = torch.rand(n, generator=generator, device=drawing_device(generator, device), dtype=dtype)
        return bound * math.pi * (2 * random - 1).to(device)


class SPDManifold:
    r"""Symmetric positive definite matrices, all or those of determinant 1, by their logarithm.

    Coordinates are those of log P in an orthonormal basis of the symmetric matrices, with the trace metric: entries of
    the diagonal (of an orthonormal basis of the traceless ones), then √2 times those above it.

    Args:
        n: Size of the matrices; samples are there for 2.
        traceless: Whether the logarithm has trace 0, and P so determinant 1.
        covariance: Variance of each coordinate of :meth:`sample_pair`: log-normal around I.

    Attributes:
        dim: n(n + 1)/2, or one less.

    Source:
        Schwartzman 2016, *Lognormal distributions and geometric averages of symmetric positive definite matrices*;
        arXiv:2310.11366, section 4.

    Example:
        >>> SPDManifold(2).xi_inv(torch.diag(torch.tensor([1.0, torch.e]))).round(decimals=4) + 0.0
        tensor([0., 1., 0.])
    """

    def __init__(self, n: int = 2, traceless: bool = False, *, covariance: float = 0.1) -> None:
        checks.at_least("n", n, 2)
        checks.positive("covariance", covariance)
        self.n = n
        self.traceless = traceless
        self.covariance = covariance
        self.dim = n * (n + 1) // 2 - traceless
        self._basis = symmetric_basis(n, traceless)

    def hat(self, v: Tensor) -> Tensor:
        """The symmetric matrix of coordinates ``(…, dim)``."""
        return hat(v, self._basis)

    def vee(self, x: Tensor) -> Tensor:
        """Coordinates of a symmetric matrix; its trace is lost where the manifold is traceless."""
        return vee(x, self._basis)

    def expm(self, v: Tensor) -> Tensor:
        """The matrix whose logarithm has the coordinates v."""
        x = self.hat(v)
        return sym_exp_2x2(x) if self.n == 2 else sym_exp(x)

    def log(self, p: Tensor) -> Tensor:
        """The symmetric logarithm.

        Raises:
            InputError: If p is not symmetric positive definite, or not of determinant 1 where it has to be.
        """
        self.check(p)
        return spd_log(p)

    def sqrt(self, p: Tensor) -> Tensor:
        """The symmetric positive definite square root."""
        self.check(p)
        return spd_sqrt(p)

    def xi_inv(self, p: Tensor) -> Tensor:
        """Coordinates ``(…, dim)``: those of :meth:`log`."""
        return self.vee(self.log(p))

    def check(self, p: Tensor) -> None:
        """Check that ``p`` is symmetric positive definite and, if traceless, of determinant 1 up to 10⁻⁴.

        Raises:
            InputError: If not.
        """
        check_square("p", p, self.n)
        if can_read(p) and p.numel():
            values = torch.linalg.eigvalsh(p.detach().double())
            check_positive("p", values)
            if self.traceless:
                check_volume("p", values.prod(-1))

    def sample_pair(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        """Draw n matrices, with their inverses; arguments as of :meth:`SO.sample_pair`."""
        return self._exp_pair(self._draw(n, generator, device, dtype))

    def _draw(
        self,
        n: int,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Symmetric matrices."""
        only_two("samples", self.n)
        checks.at_least("n", n, 1)
        random = torch.randn(n, self.dim, generator=generator, device=drawing_device(generator, device), dtype=dtype)
        return self.hat(math.sqrt(self.covariance) * random.to(device))

    @staticmethod
    def _exp_pair(x: Tensor) -> Samples:
        p, inverse = sym_exp_2x2(torch.stack((x, -x))).unbind()
        return Samples(p, inverse)


__all__ = ["SO", "Rotations", "SPDManifold", "Samples"]
