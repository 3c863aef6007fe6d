"""Tests of ``netwright.compression.bits``."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from netwright.compression import bits
from netwright.compression.bits import as_words, count_bits, pack_signs, packed_matmul, unpack_signs


def signs(*shape: int) -> Tensor:
    return torch.where(torch.randn(shape) < 0, -1.0, 1.0)


@given(st.integers(0, 3), st.integers(1, 70))
def test_packs_as_numpy_does_and_back(rows: int, length: int) -> None:
    x = signs(rows, length)
    packed = pack_signs(x)
    expected = np.packbits(x.numpy() > 0, axis=-1, bitorder="little")
    assert np.array_equal(packed.numpy(), expected)
    assert torch.equal(unpack_signs(packed, length), x)


def test_every_byte_survives() -> None:
    every = torch.arange(256).to(torch.uint8).view(16, 16)
    assert torch.equal(pack_signs(unpack_signs(every, 128)), every)


def test_zero_of_either_sign_is_plus_one() -> None:
    assert unpack_signs(pack_signs(torch.tensor([0.0, -0.0, -1e-30])), 3).tolist() == [1, 1, -1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32])
def test_types(dtype: torch.dtype) -> None:
    x = signs(2, 3, 11).to(dtype)
    assert unpack_signs(pack_signs(x), 11, dtype).dtype == dtype
    assert torch.equal(unpack_signs(pack_signs(x), 11, dtype), x)


@pytest.mark.parametrize("instruction", [True, False])
def test_counting(instruction: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the processor's instruction and, as on other devices, with shifts and masks."""
    if not instruction:
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    words = torch.randint(-(2**63), 2**63 - 1, (50,))
    words[:4] = torch.tensor([0, -1, -(2**63), 1])
    assert count_bits(words).tolist() == [int(word).bit_count() for word in words.numpy().view(np.uint64)]


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 200))
def test_products_are_exact(rows: int, columns: int, length: int) -> None:
    a, b = signs(2, rows, length), signs(2, columns, length)
    products = packed_matmul(as_words(pack_signs(a)), as_words(pack_signs(b)), length)
    assert torch.equal(products, (a @ b.mT).int())


def test_products_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = signs(100, 130), signs(7, 130)
    monkeypatch.setattr(bits, "_BLOCK", 50)
    assert torch.equal(packed_matmul(as_words(pack_signs(a)), as_words(pack_signs(b)), 130), (a @ b.T).int())


def test_on_meta() -> None:
    packed = pack_signs(torch.empty(4, 100, device="meta"))
    assert packed.shape == (4, 13)
    assert unpack_signs(packed, 100).shape == (4, 100)
    assert packed_matmul(as_words(packed), as_words(packed), 100).shape == (4, 4)
