"""The arithmetic of whitening the parts of complex numbers (arXiv:1705.09792, section 3.5), plain and with a backward
pass of its own.
"""

from typing import Any

import torch
from torch import Tensor

from netwright.layers._complex import gradients_of, parts

Entries = tuple[Tensor, Tensor, Tensor]

# numbers in a block of channels
_BLOCK = 2**17


def inverse_sqrt_2x2(v_rr: Tensor, v_ri: Tensor, v_ii: Tensor, eps: float = 0.0) -> Entries:
    r"""Inverse square root of the covariance [[Vrr, Vri], [Vri, Vii]] + εI, entry by entry.

    .. math:: V^{-1/2} = \frac{1}{s t} \begin{pmatrix} V_{ii} + s & -V_{ri} \\ -V_{ri} & V_{rr} + s \end{pmatrix},
        \quad s = \sqrt{\det V}, \quad t = \sqrt{\operatorname{tr} V + 2 s}

    Args:
        v_rr: Variances of the real part, any shape.
        v_ri: Covariances of both parts.
        v_ii: Variances of the imaginary part.
        eps: Added to both variances.

    Returns:
        The entries (rr, ri, ii) of the symmetric result.

    Example:
        >>> rr, ri, ii = inverse_sqrt_2x2(torch.tensor(4.0), torch.tensor(0.0), torch.tensor(9.0))
        >>> rr, ii
        (tensor(0.5000), tensor(0.3333))
    """
    # the determinant of a covariance is not negative; rounding could make it so, and ε is then all that is left
    det = (v_rr * v_ii - v_ri * v_ri).clamp_min(0) + eps * (v_rr + v_ii + eps)
    s = det.sqrt()
    scale = ((v_rr + v_ii + 2 * eps + 2 * s).sqrt() * s).reciprocal()
    return (v_ii + eps + s) * scale, -v_ri * scale, (v_rr + eps + s) * scale


def covariance(real: Tensor, imag: Tensor, dims: tuple[int, ...]) -> Entries:
    """Mean squares and mean product (rr, ri, ii) of centred parts over ``dims``, which are kept."""
    rr, ri, ii = (product.mean(dims, keepdim=True) for product in (real * real, real * imag, imag * imag))
    return rr, ri, ii


def transform_matrix(v: Entries, weight: Tensor | None, eps: float, whiten: bool) -> tuple[Tensor, ...]:
    """The matrix γ V^{-1/2}, entries (rr, ri, ir, ii); without whitening what divides and scales each part.

    Args:
        v: Entries (rr, ri, ii) of the covariance.
        weight: Entries (rr, ri, ii) of γ, or without whitening (rr, ii), each to broadcast against those of ``v``.
        eps: Added to both variances.
        whiten: Whether the covariance counts.
    """
    if not whiten:
        scales = [(entry + eps).rsqrt() for entry in (v[0], v[2])]
        rr, ii = scales if weight is None else (gamma * scale for gamma, scale in zip(weight, scales, strict=True))
        zero = torch.zeros_like(rr)
        return rr, zero, zero, ii
    p, q, s = inverse_sqrt_2x2(*v, eps)
    if weight is None:
        return p, q, q, s
    rr, ri, ii = weight
    return rr * p + ri * q, rr * q + ri * s, ri * p + ii * q, ri * q + ii * s


def transform(real: Tensor, imag: Tensor, matrix: tuple[Tensor, ...], bias: Tensor | None) -> Tensor:
    """The matrix times the vector of both parts, plus the shift of each part."""
    rr, ri, ir, ii = matrix
    new_real, new_imag = torch.addcmul(rr * real, ri, imag), torch.addcmul(ir * real, ii, imag)
    if bias is not None:
        new_real, new_imag = new_real + bias[0], new_imag + bias[1]
    return torch.complex(new_real, new_imag)


def normalise(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, dims: tuple[int, ...], eps: float, whiten: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Whitening with the covariance over ``dims``; also gives the means ``(2, …)`` and the covariance ``(3, …)``.

    ``weight`` and ``bias`` have three (two) and two rows, each of which broadcasts against the input.
    """
    real, imag = parts(input)
    means = [part.mean(dims, keepdim=True) for part in (real, imag)]
    real, imag = real - means[0], imag - means[1]
    v = covariance(real, imag, dims)
    return transform(real, imag, transform_matrix(v, weight, eps, whiten), bias), torch.stack(means), torch.stack(v)


class BatchNormalise(torch.autograd.Function):
    """:func:`normalise` over all axes but the channels, 1; keeps the input and the statistics.

    It goes through a few channels at a time, which stay in the processor's cache, in memory that is used again.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, whiten: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dims = (0, *range(2, input.ndim))
        centre = input.mean(dims, keepdim=True)
        mean = torch.stack([centre.real, centre.imag])
        v = torch.empty((3, *centre.shape), dtype=mean.dtype, device=mean.device)
        rows = torch.zeros_like(mean) if bias is None else bias
        output = torch.empty_like(input, memory_format=torch.contiguous_format)
        memory: list[Tensor] = []
        for block in _blocks(input):
            z, v_, (shift_real, shift_imag) = input[block], v[:, *block], rows[:, *block]
            real, imag, spare, other = memory = _memory(z, 4, memory)
            _split(z, mean[:, *block], real, imag)
            for entry, (a, b) in zip(v_, ((real, real), (real, imag), (imag, imag)), strict=True):
                torch.mean(torch.mul(a, b, out=spare), dims, keepdim=True, out=entry)
            gamma = None if weight is None else weight[:, *block]
            rr, ri, ir, ii = transform_matrix((v_[0], v_[1], v_[2]), gamma, eps, whiten)
            torch.addcmul(shift_real, real, rr, out=spare).addcmul_(imag, ri)
            torch.addcmul(shift_imag, real, ir, out=other).addcmul_(imag, ii)
            torch.complex(spare, other, out=output[block])
        ctx.save_for_backward(input, weight, bias, mean, v)
        ctx.settings = (eps, whiten)
        ctx.mark_non_differentiable(mean, v)
        return output, mean, v

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input_, weight, bias, mean, v = ctx.saved_tensors
        eps, whiten = ctx.settings
        dims = (0, *range(2, grad.ndim))
        if torch.is_grad_enabled():
            settings = (dims, eps, whiten)
            grads = gradients_of(lambda *args: normalise(*args)[0], (input_, weight, bias), settings, ctx, grad)
            return (*grads, None, None)
        samples = grad.numel() // v[0].numel()
        shifts, sums = torch.empty_like(mean), torch.empty((4, *mean.shape[1:]), dtype=mean.dtype, device=mean.device)
        memory: list[Tensor] = []
        for block in _blocks(grad):
            real, imag, g_real, g_imag, spare, _other = memory = _memory(grad[block], 6, memory)
            _split(input_[block], mean[:, *block], real, imag)
            _split(grad[block], None, g_real, g_imag)
            for g, entry in zip((g_real, g_imag), shifts[:, *block], strict=True):
                torch.sum(g, dims, keepdim=True, out=entry)
            pairs = ((g_real, real), (g_real, imag), (g_imag, real), (g_imag, imag))
            for (a, b), entry in zip(pairs, sums[:, *block], strict=True):
                torch.sum(torch.mul(a, b, out=spare), dims, keepdim=True, out=entry)
        g_weight, matrix, g_v = _matrix_gradients(v, weight, eps, whiten, sums)
        g_v = g_v * (torch.tensor([2.0, 1.0, 2.0]).to(g_v).view(3, *[1] * grad.ndim) / samples)
        rr, ri, ir, ii = matrix
        # the mean of the gradient is taken off here, in one pass with the rest
        starts = torch.stack([rr * shifts[0] + ir * shifts[1], ri * shifts[0] + ii * shifts[1]]) / -samples
        g_input = torch.empty_like(input_, memory_format=torch.contiguous_format)
        for block in _blocks(grad):
            real, imag, g_real, g_imag, spare, other = memory = _memory(grad[block], 6, memory)
            _split(input_[block], mean[:, *block], real, imag)
            _split(grad[block], None, g_real, g_imag)
            a, b, c = g_v[:, *block]
            start_real, start_imag = starts[:, *block]
            torch.addcmul(start_real, g_real, rr[block], out=spare).addcmul_(g_imag, ir[block])
            torch.addcmul(start_imag, g_real, ri[block], out=other).addcmul_(g_imag, ii[block])
            torch.complex(
                spare.addcmul_(real, a).addcmul_(imag, b), other.addcmul_(real, b).addcmul_(imag, c), out=g_input[block]
            )
        return g_input, g_weight, None if bias is None else shifts, None, None


def _blocks(input: Tensor) -> list[tuple[slice, slice]]:
    """Channels that are small enough together for the processor's cache; on a GPU all of them."""
    channels = input.shape[1]
    step = max(1, _BLOCK * channels // max(1, input.numel())) if input.is_cpu else channels
    return [(slice(None), slice(start, start + step)) for start in range(0, channels, step)]


def _split(z: Tensor, mean: Tensor | None, real: Tensor, imag: Tensor) -> None:
    """Write both parts of ``z``, less their means, to ``real`` and ``imag``."""
    if mean is None:
        real.copy_(z.real)
        imag.copy_(z.imag)
    else:
        torch.sub(z.real, mean[0], out=real)
        torch.sub(z.imag, mean[1], out=imag)


def _memory(like: Tensor, number: int, old: list[Tensor]) -> list[Tensor]:
    """Real tensors of the shape of ``like``; those of the last block if they fit."""
    if old and old[0].shape == like.shape:
        return old
    dtype = like.dtype.to_real()
    return [torch.empty(like.shape, dtype=dtype, device=like.device) for _ in range(number)]


@torch.enable_grad()
def _matrix_gradients(
    v: Tensor, weight: Tensor | None, eps: float, whiten: bool, grads: Tensor
) -> tuple[Tensor | None, tuple[Tensor, ...], Tensor]:
    """Gradient of γ, the matrix γ V^{-1/2}, and gradient of the covariance, from the gradient of the matrix."""
    v = v.detach().requires_grad_()
    leaves = [v]
    if weight is not None:
        weight = weight.detach().requires_grad_()
        leaves.append(weight)
    matrix = transform_matrix((v[0], v[1], v[2]), weight, eps, whiten)
    reached = [(entry, g) for entry, g in zip(matrix, grads, strict=True) if entry.requires_grad]
    g_v, *g_weight = torch.autograd.grad([e for e, _ in reached], leaves, [g for _, g in reached])
    return g_weight[0] if g_weight else None, tuple(entry.detach() for entry in matrix), g_v


__all__ = [
    "BatchNormalise",
    "Entries",
    "inverse_sqrt_2x2",
    "normalise",
    "transform",
    "transform_matrix",
]
