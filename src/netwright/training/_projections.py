"""Random maps from d to D coordinates (Li et al. 2018, arXiv:1804.08838): dense, sparse, Fastfood, FJLT.

Each is a module without parameters that maps ``(dim,)`` to ``(size,)`` by a fixed matrix P with columns of length 1,
drawn on the CPU from a seed alone. Its buffers are not saved: the seed is enough.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

_RADIX_BITS = 5  # a product with a 32×32 matrix takes as long as two passes of additions, and does the work of five
_BLOCK_ENTRIES = 2**22


def fwht(x: Tensor) -> Tensor:
    r"""Fast Walsh-Hadamard transform of the last dimension, not normalised.

    .. math:: y_i = \sum_{j=0}^{L-1} (-1)^{|i \wedge j|} x_j

    with :math:`|i \wedge j|` the number of binary ones that i and j share: the product with the Hadamard matrix in
    Sylvester's order. L = 2^k is split into factors of at most 32, each of which is one small matrix product: k/5
    passes over the data. Applied twice it gives L · x.

    Args:
        x: ``(*, L)``, floating-point, L a power of two.

    Returns:
        ``(*, L)``.

    Raises:
        InputError: If L is not a power of two.

    Example:
        >>> fwht(torch.tensor([1.0, 0, 1, 0, 0, 1, 1, 0]))
        tensor([ 4.,  2.,  0., -2.,  0.,  2.,  0.,  2.])
    """
    checks.floating_point("x", x)
    size = x.shape[-1] if x.ndim else 0
    if size < 1 or size & (size - 1):
        checks.fail("the last dimension of x must be a power of two", f"size {size}")
    return _transform(x, hadamard(_RADIX_BITS).to(x))


def hadamard(bits: int) -> Tensor:
    """The Hadamard matrix of size 2^bits in Sylvester's order; its upper left corners are those of smaller sizes."""
    matrix = torch.ones(1, 1, device="cpu")
    for _ in range(bits):
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], device="cpu"), matrix)
    return matrix


def _transform(x: Tensor, factor: Tensor) -> Tensor:
    """As :func:`fwht`, by products with corners of the Hadamard matrix ``factor``."""
    bits = x.shape[-1].bit_length() - 1
    passes = -(-bits // (factor.shape[0].bit_length() - 1))
    y = x
    with full_precision(x.device):
        for index in range(passes):
            radix = 2 ** (bits // passes + (index < bits % passes))
            # the leading factor moves to the end: after all passes they are in their old order
            y = y.reshape(*x.shape[:-1], radix, -1).transpose(-1, -2) @ factor[:radix, :radix]
    return y.reshape(x.shape)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Where autocast is off, so that weights are not made in half precision."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Dense(nn.Module):
    """Gaussian columns, each divided by its length: stores all of P, ``size · dim`` numbers."""

    transposed: Tensor

    def __init__(self, dim: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        if device.type == "meta":
            transposed = torch.empty(dim, size, device=device, dtype=dtype)
        else:
            transposed = torch.cat([block.to(device, dtype) for block in _dense_blocks(dim, size, seed)])
        self.register_buffer("transposed", transposed, persistent=False)

    def forward(self, v: Tensor) -> Tensor:
        with full_precision(v.device):
            return v @ self.transposed


class DenseBlocks(nn.Module):
    """The same matrix as :class:`Dense` for the same seed, drawn anew, a block of columns at a time, in every pass.

    Holds at most 2^22 numbers (or one column) at once, at the price of drawing ``size · dim`` normal numbers in each
    forward and each backward pass.
    """

    def __init__(self, dim: int, size: int, seed: int, *_: object) -> None:
        super().__init__()
        self.dim, self.size, self.seed = dim, size, seed

    def forward(self, v: Tensor) -> Tensor:
        if v.is_meta:
            return v.new_empty(self.size)
        product: Tensor = _Regenerated.apply(v, (self.dim, self.size, self.seed), False)  # type: ignore[no-untyped-call]
        return product


class _Regenerated(torch.autograd.Function):
    """P v, or P^T g: each is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: tuple[int, int, int], adjoint: bool) -> Tensor:
        ctx.matrix, ctx.adjoint = matrix, adjoint
        blocks = (block.to(x) for block in _dense_blocks(*matrix))
        with full_precision(x.device):
            if adjoint:
                return torch.cat([block @ x for block in blocks])
            start, total = 0, x.new_zeros(matrix[1])
            for block in blocks:
                total.addmv_(block.t(), x[start : start + len(block)])
                start += len(block)
            return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _Regenerated.apply(gradients[0], ctx.matrix, not ctx.adjoint), None, None  # type: ignore[no-untyped-call]


def _dense_blocks(dim: int, size: int, seed: int) -> Iterator[Tensor]:
    """P^T of the dense map in blocks ``(columns, size)``; columns have length 1 over all of their entries."""
    generator = torch.Generator().manual_seed(seed)
    width = max(1, _BLOCK_ENTRIES // size)
    for start in range(0, dim, width):
        block = torch.randn(min(width, dim - start), size, generator=generator, device="cpu")
        yield block.div_(torch.linalg.vector_norm(block, dim=1, keepdim=True))


class Sparse(nn.Module):
    """Entries ±1/√(entries of the column) with density 1/√size, else 0: stores about ``dim · √size`` of them.

    Source:
        Li, Hastie, Church 2006, "Very sparse random projections".
    """

    rows: Tensor
    columns: Tensor
    values: Tensor

    def __init__(self, dim: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        density = 1 / math.sqrt(size)
        rows, columns = _scattered(dim, size, density, generator, device)
        if device.type == "meta":
            values = torch.empty(len(rows), device=device)
        else:
            signs = 2.0 * torch.randint(2, (len(rows),), generator=generator, device="cpu") - 1
            values = _unit_columns(signs, columns, dim)
        _register(self, device, dtype, rows=rows, columns=columns, values=values)

    def forward(self, v: Tensor) -> Tensor:
        return _scatter(v, self.rows, self.columns, self.values, self.size)


class Fastfood(nn.Module):
    r"""P = H G Π H B, the first ``size`` of L = 2^⌈log₂ size⌉ rows and ``dim`` of L columns, divided by √(size Σ G²).

    H is the Walsh-Hadamard matrix, G a Gaussian diagonal, Π a permutation and B random signs. Stores 2 L numbers. As
    the input has zeros behind its first ``dim`` entries, the inner transform repeats that of size 2^⌈log₂ dim⌉, which
    is all that is computed.

    All L rows of a column would have the same length; with ``size`` of them it is 1 ± √((1 - size / L) / (2 size)).

    Source:
        Le, Sarlós, Smola 2013, arXiv:1408.3060; normalisation as in the official code of arXiv:1804.08838.
    """

    signs: Tensor
    index: Tensor
    gauss: Tensor
    factor: Tensor

    def __init__(self, dim: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.size = size
        self.short = _power_of_two(dim)
        full = _power_of_two(max(size, dim))
        if device.type == "meta":
            signs, gauss = torch.empty(dim, device=device), torch.empty(full, device=device)
            index = torch.empty(full, device=device, dtype=torch.int32)
        else:
            generator = torch.Generator().manual_seed(seed)
            signs = 2.0 * torch.randint(2, (dim,), generator=generator, device="cpu") - 1
            index = (torch.randperm(full, generator=generator, device="cpu") % self.short).int()
            gauss = torch.randn(full, generator=generator, device="cpu")
            gauss /= math.sqrt(size * float(gauss.double().square().sum()))
        _register(self, device, dtype, signs=signs, index=index, gauss=gauss, factor=hadamard(_RADIX_BITS))

    def forward(self, v: Tensor) -> Tensor:
        short = _transform(functional.pad(v * self.signs, (0, self.short - len(v))), self.factor)
        return _transform(short.index_select(0, self.index) * self.gauss, self.factor)[: self.size]


class Fjlt(nn.Module):
    r"""Fast Johnson-Lindenstrauss: P = B H S, the first ``size`` of L = 2^⌈log₂ size⌉ rows, divided by √size.

    S, ``(L, dim)``, has Gaussian entries with density min(1, (ln L)² / L), and columns of length 1; H is the
    Walsh-Hadamard matrix that spreads them, B random signs. It is the transpose of Ailon and Chazelle's map. Stores
    ``size + 3 dim (ln L)²`` numbers.

    Source:
        Ailon, Chazelle 2009, "The fast Johnson-Lindenstrauss transform and approximate nearest neighbors".
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    signs: Tensor
    factor: Tensor

    def __init__(self, dim: int, size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.full = _power_of_two(size)
        generator = torch.Generator().manual_seed(seed)
        density = min(1.0, max(1.0, math.log(self.full) ** 2) / self.full)
        rows, columns = _scattered(dim, self.full, density, generator, device)
        if device.type == "meta":
            values, signs = torch.empty(len(rows), device=device), torch.empty(size, device=device)
        else:
            values = _unit_columns(torch.randn(len(rows), generator=generator, device="cpu"), columns, dim)
            signs = (2.0 * torch.randint(2, (size,), generator=generator, device="cpu") - 1) / math.sqrt(size)
        _register(
            self,
            device,
            dtype,
            rows=rows,
            columns=columns,
            values=values,
            signs=signs,
            factor=hadamard(_RADIX_BITS),
        )

    def forward(self, v: Tensor) -> Tensor:
        spread = _transform(_scatter(v, self.rows, self.columns, self.values, self.full), self.factor)
        return self.signs * spread[: len(self.signs)]


class PerLayer(nn.Module):
    """A map of its own for each of several parts, all from the same d coordinates.

    Columns have length 1 over all parts; every part gets the same share of it, however few parameters it has.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, v: Tensor) -> Tensor:
        v = v / math.sqrt(len(self.parts))
        return torch.cat([part(v) for part in self.parts])


PROJECTIONS: dict[str, type[Dense | DenseBlocks | Sparse | Fastfood | Fjlt]] = {
    "dense": Dense,
    "dense-blocks": DenseBlocks,
    "sparse": Sparse,
    "fastfood": Fastfood,
    "fjlt": Fjlt,
}


def make_projection(
    kind: str, dim: int, sizes: Sequence[int], seed: int, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The map from ``dim`` coordinates to Σ sizes; with several sizes one that is :class:`PerLayer`."""
    checks.known("projection", kind, PROJECTIONS)
    # an odd stride keeps the seeds of the parts apart
    parts = [
        PROJECTIONS[kind](dim, size, (seed + 0x9E3779B97F4A7C15 * index) % 2**63, device, dtype)
        for index, size in enumerate(sizes)
    ]
    return parts[0] if len(parts) == 1 else PerLayer(parts)


def _register(module: nn.Module, device: torch.device, dtype: torch.dtype, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        moved = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        module.register_buffer(name, moved, persistent=False)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not below ``size``."""
    return 1 << (size - 1).bit_length()


def _scattered(
    dim: int, size: int, density: float, generator: torch.Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Rows and columns of the entries that are not 0 when each of ``dim`` columns keeps every entry with ``density``.

    Gaps between kept entries are geometric, so that only these are drawn. A column that would be empty gets one entry.
    """
    if device.type == "meta":
        number = max(dim, round(dim * size * density))
        rows = torch.empty(number, device=device, dtype=torch.int32)
        return rows, rows.clone()
    total = dim * size
    if density >= 1:
        positions = torch.arange(total, device="cpu")
    else:
        mean = total * density
        chunks, last = [], -1
        while last < total:
            gaps = torch.empty(int(mean + 6 * math.sqrt(mean) + 16), dtype=torch.float64, device="cpu")
            chunks.append(gaps.geometric_(density, generator=generator).long().cumsum(0) + last)
            last = int(chunks[-1][-1])
        positions = torch.cat(chunks)
        positions = positions[positions < total]
    columns = positions.div(size, rounding_mode="floor")
    rows = positions - columns * size
    empty = (torch.bincount(columns, minlength=dim) == 0).nonzero().flatten()
    rows = torch.cat([rows, torch.randint(size, (len(empty),), generator=generator, device="cpu")])
    return rows.int(), torch.cat([columns, empty]).int()


def _unit_columns(values: Tensor, columns: Tensor, dim: int) -> Tensor:
    squares = torch.zeros(dim, dtype=torch.float64, device="cpu").index_add_(0, columns, values.double().square())
    return (values / squares.sqrt()[columns.long()]).float()


def _scatter(v: Tensor, rows: Tensor, columns: Tensor, values: Tensor, size: int) -> Tensor:
    """The product of a sparse matrix, given by its entries, with a vector."""
    return v.new_zeros(size).index_add(0, rows, v.index_select(0, columns) * values)


__all__ = ["PROJECTIONS", "fwht", "make_projection"]
