"""Small real algebras (complex numbers, quaternions, …) as structure tensors: products, conjugates, norms."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from netwright import checks


@dataclass(frozen=True)
class Algebra:
    r"""A finite-dimensional real algebra with basis e_0 = 1, e_1, …, given by the products of its basis elements.

    .. math:: e_i e_j = \sum_k T_{kij}\, e_k

    An element is a tensor whose dimension ``dim`` holds its n components; the other dimensions broadcast.

    Attributes:
        name: What it is called.
        table: The structure tensor T as nested tuples, ``table[k][i][j]``.
        conjugate: Sign of every component under conjugation.

    Source:
        The tables are the usual ones; W. R. Hamilton 1844 (quaternions), J. Cockle 1848 and 1849 (tessarines, and the
        coquaternions or split quaternions that later work calls dihedron numbers).

    Example:
        >>> i, j = torch.eye(4)[1], torch.eye(4)[2]
        >>> QUATERNION.mul(i, j), QUATERNION.mul(j, i)
        (tensor([0., 0., 0., 1.]), tensor([ 0.,  0.,  0., -1.]))
    """

    name: str
    table: tuple[tuple[tuple[float, ...], ...], ...]
    conjugate: tuple[float, ...]

    def __post_init__(self) -> None:
        n = len(self.conjugate)
        if len(self.table) != n or any(len(plane) != n or any(len(row) != n for row in plane) for plane in self.table):
            checks.fail(f"the table of the algebra {self.name!r} must be {n}×{n}×{n}", "another shape")

    @classmethod
    def from_products(cls, name: str, products: list[list[int]], conjugate: tuple[float, ...] | None = None) -> Self:
        """An algebra in which the product of two basis elements is ± a basis element, or 0.

        Args:
            name: What it is called.
            products: ``products[i][j]`` is k + 1 where e_i e_j = e_k, −(k + 1) where it is −e_k, and 0 where it is 0.
            conjugate: Sign of every component under conjugation; + − − … if not given.
        """
        n = len(products)
        table = tuple(
            tuple(tuple(float((p == k + 1) - (p == -k - 1)) for p in row) for row in products) for k in range(n)
        )
        return cls(name, table, conjugate or (1.0, *[-1.0] * (n - 1)))

    @property
    def n(self) -> int:
        """Number of components."""
        return len(self.conjugate)

    def structure(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The structure tensor T, shape ``(n, n, n)``, ``T[k, i, j]``."""
        return torch.tensor(self.table, device=device, dtype=dtype)

    def left_basis(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The matrices of left multiplication by e_0, e_1, …, shape ``(n, n, n)``: ``[i, k, j] = T[k, i, j]``."""
        return self.structure(device=device, dtype=dtype).transpose(0, 1).contiguous()

    def left_matrix(self, a: Tensor, dim: int = -1) -> Tensor:
        r"""The matrix of x ↦ a x: :math:`L(a)_{kj} = \sum_i T_{kij} a_i`.

        Args:
            a: Elements, with n components along ``dim``.
            dim: Where the components are.

        Returns:
            ``(*others, n, n)``, ``others`` being the other dimensions of ``a``.
        """
        checks.size("the element", a, dim, self.n)
        return torch.einsum("kij,...i->...kj", self.structure(device=a.device, dtype=a.dtype), a.movedim(dim, -1))

    def mul(self, a: Tensor, b: Tensor, dim: int = -1) -> Tensor:
        r"""The product :math:`(ab)_k = \sum_{ij} T_{kij} a_i b_j`.

        Args:
            a: Left factors, with n components along ``dim``.
            b: Right factors, broadcastable against ``a``.
            dim: Where the components of both factors and of the product are.

        Raises:
            InputError: If a factor has not n components.
        """
        checks.size("the left factor", a, dim, self.n)
        checks.size("the right factor", b, dim, self.n)
        product = self.left_matrix(a, dim) @ b.movedim(dim, -1).unsqueeze(-1)
        return product.squeeze(-1).movedim(-1, dim)

    def conj(self, a: Tensor, dim: int = -1) -> Tensor:
        """The conjugate: every component times its sign."""
        checks.size("the element", a, dim, self.n)
        signs = torch.tensor(self.conjugate, device=a.device, dtype=a.dtype)
        return (a.movedim(dim, -1) * signs).movedim(-1, dim)

    def norm(self, a: Tensor, dim: int = -1) -> Tensor:
        r"""The quadratic form :math:`N(a) = \operatorname{Re}(a \bar a)`, not its root; it can be 0 or negative.

        Complex numbers and quaternions: the sum of squares; split-complex: a² − b²; dual: a²; dihedron: s² + x² − y² −
        z². In these N(ab) = N(a) N(b). Tessarines have no such form: with their conjugate i ↦ −i it is the sum of
        squares.

        Returns:
            ``a`` without the dimension ``dim``.
        """
        return self.mul(a, self.conj(a, dim), dim).select(dim, 0)


REAL = Algebra.from_products("real", [[1]])
COMPLEX = Algebra.from_products("complex", [[1, 2], [2, -1]])
SPLIT_COMPLEX = Algebra.from_products("split-complex", [[1, 2], [2, 1]])
DUAL = Algebra.from_products("dual", [[1, 2], [2, 0]])
QUATERNION = Algebra.from_products("quaternion", [[1, 2, 3, 4], [2, -1, 4, -3], [3, -4, -1, 2], [4, 3, -2, -1]])
DIHEDRON = Algebra.from_products("dihedron", [[1, 2, 3, 4], [2, -1, 4, -3], [3, -4, 1, -2], [4, 3, 2, 1]])
TESSARINE = Algebra.from_products(
    "tessarine", [[1, 2, 3, 4], [2, -1, 4, -3], [3, 4, 1, 2], [4, -3, 2, -1]], conjugate=(1.0, -1.0, 1.0, -1.0)
)
ALGEBRAS = {each.name: each for each in (REAL, COMPLEX, SPLIT_COMPLEX, DUAL, QUATERNION, DIHEDRON, TESSARINE)}


def get_algebra(name: str) -> Algebra:
    """The algebra of that name.

    Raises:
        InputError: If there is none; the message offers a close match.
    """
    checks.known("algebra", name, ALGEBRAS)
    return ALGEBRAS[name]


__all__ = [
    "ALGEBRAS",
    "COMPLEX",
    "DIHEDRON",
    "DUAL",
    "QUATERNION",
    "REAL",
    "SPLIT_COMPLEX",
    "TESSARINE",
    "Algebra",
    "get_algebra",
]
