"""Lie groups by their polar decomposition (Mironenco and Forré 2023, arXiv:2310.11366): charts and samples.

exp does not reach all of GL⁺(n) or SL(n), the matrices of positive determinant or of determinant 1. But each of them is
g = P R in one way only, with P symmetric positive definite and R a rotation, and both factors do have a logarithm:
these are the group's coordinates. It is sampled by its factors, too, which makes the inverse free.
Public names: :class:`GLPlus`, :class:`SL`, :class:`SO` (rotations), :class:`SPDManifold` (the other factor),
:data:`LieGroup`, :class:`Samples` (elements with their inverses).
"""

import math

import torch
from torch import Tensor

from netwright import checks
from netwright.layers._polar import (
    at_least_single,
    check_coordinates,
    check_matrices,
    check_volume,
    hat,
    matrix_exp,
    only_two,
    polar_angle,
    polar_log,
    rotation,
    vee,
)
from netwright.layers._polar_factors import SO, Rotations, Samples, SPDManifold
from netwright.layers._spd_eigen import can_read
from netwright.layers.spd import spd_roots


class GLPlus:
    r"""GL⁺(n), the matrices of positive determinant, by their left polar decomposition.

    .. math:: g = P R,\quad P = (g g^\top)^{1/2},\quad R = P^{-1} g \in SO(n); \qquad
        \xi^{-1}(g) = \log P + \log R

    in coordinates that are orthonormal under the trace metric: those of log P (:class:`SPDManifold`), then those of
    log R (:class:`SO`), for n = 2 √2 times the angle in (−π, π]. Samples are :math:`g = S^{1/2} R` with S log-normal.

    Args:
        n: Size of the matrices; logarithm and samples are there for 2.
        covariance: See :class:`SPDManifold`.
        rotations: See :class:`SO`.
        bound: See :class:`SO`.

    Attributes:
        dim: Number of coordinates: n², of which one less are left for :class:`SL`.
        volume_preserving: Whether all determinants are 1.
        spd: The first factor, by its logarithm.
        rotation: The second factor.

    Source:
        arXiv:2310.11366, sections 3 and 4. The published code takes angles in [0, 2π), so that coordinates jump at the
        identity; here they jump at rotations by π, as the principal logarithm does.

    Example:
        >>> group = GLPlus(2)
        >>> g, inverse = group.sample_pair(3, torch.Generator().manual_seed(0))
        >>> torch.allclose(g @ inverse, torch.eye(2), atol=1e-6), group.xi_inv(g).shape
        (True, torch.Size([3, 4]))
    """

    volume_preserving = False

    def __init__(
        self,
        n: int = 2,
        *,
        covariance: float = 0.1,
        rotations: Rotations = "equidistant",
        bound: float = 1.0,
    ) -> None:
        self.n = n
        self.spd = SPDManifold(n, traceless=self.volume_preserving, covariance=covariance)
        self.rotation = SO(n, rotations=rotations, bound=bound)
        self.dim = self.spd.dim + self.rotation.dim
        self._basis = torch.cat((self.spd._basis, self.rotation._basis))

    def hat(self, v: Tensor) -> Tensor:
        """The matrix of the Lie algebra with the coordinates v ``(…, dim)``."""
        return hat(v, self._basis)

    def vee(self, x: Tensor) -> Tensor:
        """Coordinates of a matrix of the Lie algebra: the inverse of :meth:`hat`."""
        return vee(x, self._basis)

    def expm(self, v: Tensor) -> Tensor:
        """The matrix exponential of :meth:`hat`, which does not reach the whole group; :meth:`xi` does."""
        return matrix_exp(self.hat(v))

    def xi(self, v: Tensor) -> Tensor:
        r"""The element with the coordinates v ``(…, dim)``: :math:`\exp(X_{sym}) \exp(X_{skew})`."""
        check_coordinates("v", v, self.dim)
        symmetric, skew = v[..., : self.spd.dim], v[..., self.spd.dim :]
        return self.spd.expm(symmetric) @ self.rotation.expm(skew)

    def polar(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The factors P and R of g = P R ``(…, n, n)``.

        Raises:
            InputError: If g is not in the group.
        """
        self.check(g)
        if self.n == 2:
            wide = at_least_single(g)
            r = rotation(polar_angle(wide))
            p = wide @ r.mT
            return ((p + p.mT) / 2).to(g.dtype), r.to(g.dtype)
        p, inverse = spd_roots(g @ g.mT)
        return p, inverse @ g

    def xi_inv(self, g: Tensor) -> Tensor:
        """Coordinates ``(…, dim)`` of elements ``(…, n, n)``.

        Raises:
            InputError: If g is not in the group, or n is not 2.
        """
        self.check(g)
        return self.chart(g)

    def chart(self, g: Tensor) -> Tensor:
        """As :meth:`xi_inv`, without a look at whether g is in the group."""
        only_two("coordinates of rotations", self.n)
        wide = at_least_single(g)
        half_log_det, u, w = polar_log(wide)
        angle = math.sqrt(2) * polar_angle(wide)
        if self.volume_preserving:
            parts = [math.sqrt(2) * u, math.sqrt(2) * w, angle]
        else:
            parts = [half_log_det + u, half_log_det - u, math.sqrt(2) * w, angle]
        return torch.stack(parts, -1).to(g.dtype)

    def check(self, g: Tensor) -> None:
        """Check that ``g`` is in the group.

        Raises:
            InputError: If a determinant is not positive, or for :class:`SL` not 1 up to 10⁻⁴.
        """
        check_matrices("g", g, self.n)
        if not can_read(g) or not g.numel():
            return
        determinants = torch.linalg.det(g.detach().double())
        smallest = determinants.min().item()
        if not smallest > 0:
            checks.fail("g must have positive determinants", f"{smallest:.6g}")
        if self.volume_preserving:
            check_volume("g", determinants)

    def sample_pair(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Samples:
        r"""Draw n elements :math:`S^{1/2} R`, with their inverses :math:`R^\top S^{-1/2}`: no matrix is inverted.

        Args:
            n: How many.
            generator: Of the random numbers; torch's own if not given.
            device: Where the result is.
            dtype: Its floating-point type.

        Raises:
            InputError: If the matrices are not 2×2, or n is not positive.
        """
        root, inverse_root = self.spd._exp_pair(self.spd._draw(n, generator, device, dtype) / 2)
        r, r_inverse = self.rotation.sample_pair(n, generator, device=device, dtype=dtype)
        return Samples(root @ r, r_inverse @ inverse_root)


class SL(GLPlus):
    r"""SL(n), the matrices of determinant 1: :class:`GLPlus` with P of determinant 1, so that log P has no trace.

    Arguments, attributes and methods are those of :class:`GLPlus`; there is one coordinate less.

    Source:
        arXiv:2310.11366, section 3.

    Example:
        >>> SL(2).xi_inv(torch.eye(2))
        tensor([0., 0., 0.])
    """

    volume_preserving = True


LieGroup = SO | GLPlus  # what there are layers for


__all__ = ["SL", "SO", "GLPlus", "LieGroup", "Rotations", "SPDManifold", "Samples"]
