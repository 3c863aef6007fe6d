"""Signs as bits: pack eight into a byte, unpack them, and multiply packed matrices by counting bits (XNOR-popcount).

A set bit is +1, a cleared one −1; the first sign is the lowest bit of the first byte (``bitorder="little"`` of
:func:`numpy.packbits`).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

# times a word whose bytes are 0 or 1, this gathers the lowest bits of all bytes in the highest byte, without carries
_GATHER = sum(1 << (56 - 7 * byte) for byte in range(8))

# numbers of products that are counted at once: their words stay in the cache
_BLOCK = 1 << 17


def pack_signs(signs: Tensor) -> Tensor:
    """Pack the last dimension, eight signs to a byte; the last byte is filled up with cleared bits.

    Args:
        signs: ``(*, length)``; what is negative becomes −1, all else +1.

    Returns:
        ``(*, ceil(length / 8))`` of ``torch.uint8``.

    Example:
        >>> pack_signs(torch.tensor([1.0, -1.0, -1.0, 0.0, -1.0, -1.0, -1.0, -1.0, 2.0]))
        tensor([9, 1], dtype=torch.uint8)
    """
    bits = (signs >= 0).view(torch.uint8)
    words = _filled_up(bits).view(torch.int64)
    return ((words * _GATHER) >> 56).to(torch.uint8)


def unpack_signs(packed: Tensor, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The signs ``(*, length)`` that :func:`pack_signs` packed, as −1 and +1 of type ``dtype``.

    Example:
        >>> unpack_signs(torch.tensor([9], dtype=torch.uint8), 5)
        tensor([ 1., -1., -1.,  1., -1.])
    """
    # one look-up a byte; shifting every bit into its place takes five times as long
    signs = functional.embedding(packed.int(), _bytes_as_signs(packed.device, dtype))
    return signs.flatten(-2)[..., :length]


def _bytes_as_signs(device: torch.device, dtype: torch.dtype) -> Tensor:
    """The eight signs of each of the 256 bytes, shape ``(256, 8)``."""
    numbers = torch.arange(256, device=device).unsqueeze(-1)
    return (((numbers >> torch.arange(8, device=device)) & 1) * 2 - 1).to(dtype)


def as_words(packed: Tensor) -> Tensor:
    """Bytes ``(*, bytes)`` as 64-bit words ``(*, ceil(bytes / 8))``, filled up with zeros."""
    return _filled_up(packed).view(torch.int64)


def _filled_up(packed: Tensor) -> Tensor:
    """Whole words: zeros added to the last dimension until 8 divides it."""
    missing = -packed.shape[-1] % 8
    return (functional.pad(packed, (0, missing)) if missing else packed).contiguous()


def count_bits(words: Tensor) -> Tensor:
    """The number of set bits of each 64-bit word.

    Example:
        >>> count_bits(torch.tensor([0, 1, 255, -1])).tolist()
        [0, 1, 8, 64]
    """
    if words.device.type == "cpu" and not torch.compiler.is_compiling() and hasattr(np, "bitwise_count"):
        # the processor's own instruction, which torch does not offer
        return torch.from_numpy(np.bitwise_count(words.numpy().view(np.uint64)))
    words = words - ((words >> 1) & 0x5555555555555555)
    words = (words & 0x3333333333333333) + ((words >> 2) & 0x3333333333333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F0F0F0F0F
    return ((words * 0x0101010101010101) >> 56).to(torch.uint8)


def packed_matmul(left: Tensor, right: Tensor, length: int) -> Tensor:
    r"""Products of sign vectors from their bits: ``left @ right.mT``, exactly.

    .. math:: \langle a, b \rangle = \text{length} - 2 \operatorname{popcount}(a \oplus b)

    Args:
        left: Words ``(*, rows, words)``; see :func:`as_words`.
        right: Words ``(*, columns, words)``.
        length: Signs of each vector; the bits that fill the words up are equal in both and do not count.

    Returns:
        ``(*, rows, columns)`` of ``torch.int32``.

    Source:
        Rastegari, Ordonez, Redmon, Farhadi 2016 (XNOR-Net), arXiv:1603.05279, section 3.2.

    Example:
        >>> a, b = torch.randn(3, 100).sign(), torch.randn(5, 100).sign()
        >>> products = packed_matmul(as_words(pack_signs(a)), as_words(pack_signs(b)), 100)
        >>> torch.equal(products, (a @ b.T).int())
        True
    """
    rows = max(1, _BLOCK // max(1, right.shape[:-1].numel()))
    # the word is the first dimension, so that what is read together lies together
    right = right.movedim(-1, 0).contiguous().unsqueeze(-2)
    blocks = [_differing(part, right) for part in torch.split(left.movedim(-1, 0), rows, dim=-1)]
    return length - 2 * torch.cat(blocks, dim=-2)


def _differing(left: Tensor, right: Tensor) -> Tensor:
    """In how many bits the rows ``(words, *, rows)`` and columns ``(words, *, 1, columns)`` differ."""
    left = left.contiguous().unsqueeze(-1)
    total = torch.zeros(*left.shape[1:-1], right.shape[-1], dtype=torch.int32, device=left.device)
    for start in range(0, len(left), 3):
        some = count_bits(left[start] ^ right[start])
        for word in range(start + 1, min(start + 3, len(left))):
            some += count_bits(left[word] ^ right[word])  # of three words, at most 192: that fits a byte
        total += some
    return total


__all__ = ["as_words", "count_bits", "pack_signs", "packed_matmul", "unpack_signs"]
