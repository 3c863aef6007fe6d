"""Tests of ``netwright.layers.algebra``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck

from netwright.layers.algebra import (
    ALGEBRAS,
    COMPLEX,
    DIHEDRON,
    DUAL,
    QUATERNION,
    SPLIT_COMPLEX,
    TESSARINE,
    Algebra,
    get_algebra,
)

COMPOSITION = ["real", "complex", "split-complex", "dual", "quaternion", "dihedron"]
named = st.sampled_from(sorted(ALGEBRAS))
seeds = st.integers(0, 2**31)


def elements(algebra: Algebra, seed: int, number: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(number, algebra.n, dtype=torch.float64, generator=generator)


@given(name=named, seed=seeds)
def test_every_algebra_is_associative_with_one(name: str, seed: int) -> None:
    algebra = ALGEBRAS[name]
    a, b, c = elements(algebra, seed)
    mul = algebra.mul
    torch.testing.assert_close(mul(mul(a, b), c), mul(a, mul(b, c)))
    one = torch.eye(algebra.n, dtype=torch.float64)[0]
    torch.testing.assert_close(mul(one, a), a)
    torch.testing.assert_close(mul(a, one), a)


@given(name=st.sampled_from(COMPOSITION), seed=seeds)
def test_the_norm_of_a_product_is_the_product_of_the_norms(name: str, seed: int) -> None:
    algebra = ALGEBRAS[name]
    a, b, _ = elements(algebra, seed)
    torch.testing.assert_close(algebra.norm(algebra.mul(a, b)), algebra.norm(a) * algebra.norm(b))


@given(name=named, seed=seeds)
def test_conjugation_turns_products_around(name: str, seed: int) -> None:
    algebra = ALGEBRAS[name]
    a, b, _ = elements(algebra, seed)
    torch.testing.assert_close(algebra.conj(algebra.mul(a, b)), algebra.mul(algebra.conj(b), algebra.conj(a)))
    torch.testing.assert_close(algebra.conj(algebra.conj(a)), a)


@pytest.mark.parametrize("algebra", ALGEBRAS.values(), ids=str)
def test_left_matrices_multiply_as_the_elements_do(algebra: Algebra) -> None:
    a, b, _ = elements(algebra, 0)
    torch.testing.assert_close(algebra.left_matrix(a) @ algebra.left_matrix(b), algebra.left_matrix(algebra.mul(a, b)))
    basis = algebra.left_basis(dtype=torch.float64)
    torch.testing.assert_close(torch.einsum("i,ikj->kj", a, basis), algebra.left_matrix(a))


def test_complex_product_is_torchs() -> None:
    a, b = torch.randn(2, 5, 2, dtype=torch.float64)
    expected = torch.view_as_real(torch.view_as_complex(a) * torch.view_as_complex(b))
    torch.testing.assert_close(COMPLEX.mul(a, b), expected)


def test_hamilton_product_written_out() -> None:
    a, b = torch.randn(2, 4, dtype=torch.float64)
    (s, x, y, z), (t, u, v, w) = a, b
    expected = [
        s * t - x * u - y * v - z * w,
        s * u + x * t + y * w - z * v,
        s * v - x * w + y * t + z * u,
        s * w + x * v - y * u + z * t,
    ]
    torch.testing.assert_close(QUATERNION.mul(a, b), torch.stack(expected))


def test_dihedron_numbers_are_two_by_two_matrices() -> None:
    def matrix(e: Tensor) -> Tensor:
        s, x, y, z = e
        return torch.stack([s + y, z - x, z + x, s - y]).view(2, 2)

    a, b = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(matrix(DIHEDRON.mul(a, b)), matrix(a) @ matrix(b))
    torch.testing.assert_close(DIHEDRON.norm(a), torch.linalg.det(matrix(a)))


def test_squares_of_the_units() -> None:
    unit = torch.tensor([0.0, 1.0])
    assert SPLIT_COMPLEX.mul(unit, unit).tolist() == [1.0, 0.0]
    assert DUAL.mul(unit, unit).tolist() == [0.0, 0.0]
    a, b = torch.randn(2, 4)
    torch.testing.assert_close(TESSARINE.mul(a, b), TESSARINE.mul(b, a))
    assert QUATERNION.mul(*torch.eye(4)[[1, 2]]).tolist() == [0, 0, 0, 1]


def test_components_can_lie_along_any_dimension_and_factors_broadcast() -> None:
    a, b = torch.randn(7, 4, 5), torch.randn(4, 5)
    product = QUATERNION.mul(a, b, dim=-2)
    assert product.shape == (7, 4, 5)
    torch.testing.assert_close(product[3, :, 2], QUATERNION.mul(a[3, :, 2], b[:, 2]))
    torch.testing.assert_close(QUATERNION.norm(a, dim=1), a.square().sum(1))


def test_gradients() -> None:
    a, b = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(lambda a, b: (DIHEDRON.mul(a, b), DIHEDRON.norm(a)), (a, b))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"left factor must have size 4, got shape \(3,\)"):
        QUATERNION.mul(torch.randn(3), torch.randn(4))
    with pytest.raises(ValueError, match="unknown algebra 'quaternions'; did you mean 'quaternion'"):
        get_algebra("quaternions")
    with pytest.raises(ValueError, match="must be 2×2×2"):
        Algebra("broken", (((1.0,),),), (1.0, -1.0))
