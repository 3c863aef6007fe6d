"""The arithmetic of EvoNorm (arXiv:2004.02967), twice: from torch's differentiable functions, and fused for speed.

The fused forms keep the input and its statistics for backward, and no other tensor of that size; the plain forms would
keep four to six.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# below this slope, the gradient of v is summed directly instead of as a difference of two sums
_SMALL_SLOPE = 0.05
# elements in a block of samples
_BLOCK = 2**19


def needs_plain_formula(input: Tensor) -> bool:
    """Compilers and ``torch.func`` see through the plain formula, and the former fuse it themselves."""
    return torch.compiler.is_compiling() or input.is_meta or torch._C._are_functorch_transforms_active()


def widen(tensor: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def plain_group_gate(
    input: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, centered: bool
) -> Tensor:
    """S-series from torch's own differentiable functions; ``v`` of ``None`` is 1."""
    x = widen(input)
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, groups, -1)
    power = grouped.var(dim=-1, correction=0) if centered else grouped.square().mean(dim=-1)
    std = (power + eps).sqrt().repeat_interleave(channels // groups, dim=1).view(batch, channels, 1, 1)
    gate = torch.sigmoid(x if v is None else x * _per_channel(v, x))
    return (x * gate / std * _per_channel(weight, x) + _per_channel(bias, x)).to(input.dtype)


def plain_batch_gate(
    input: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    variance: Tensor | None,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """B0 and B2 from torch's own differentiable functions; ``v`` of ``None`` is −1."""
    x = widen(input)
    if variance is None:
        variance = x.var(dim=(0, 2, 3), correction=0)
    spatial = (2, 3)
    power = x.var(spatial, correction=0, keepdim=True) if centered else x.square().mean(spatial, keepdim=True)
    right = (-x if v is None else x * _per_channel(v, x)) + (power + eps).sqrt()
    left = _per_channel((variance.to(x.dtype) + eps).sqrt(), x)
    out = x / torch.maximum(left, right) * _per_channel(weight, x) + _per_channel(bias, x)
    return out.to(input.dtype), variance


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.to(x.dtype).view(1, -1, 1, 1)


def _moments(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of every group, ``(batch, groups)``, and a spare tensor of the shape of ``x``.

    The kernel of group normalisation takes the moments six times faster on a CPU than ``torch.var_mean``; what it
    normalised on the way is of no use here, but its memory is.
    """
    batch, channels, height, width = x.shape
    spare, mean, rstd = torch.native_group_norm(x, None, None, batch, channels, height * width, groups, eps)
    return mean, rstd, spare


class _Rows:
    """Passes over ``(batch, channels, height, width)`` with one number for every sample and channel, a row.

    Batch normalisation with mean 0 and variance 1 and its backward pass are just these, each in one pass, and twice as
    fast on a CPU as ``torch.addcmul`` and products with sums.
    """

    def __init__(self, x: Tensor) -> None:
        rows = x.shape[0] * x.shape[1]
        self.flat = (1, rows, *x.shape[2:])
        self.zeros, self.ones = x.new_zeros(rows), x.new_ones(rows)

    def affine(self, x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
        """``x * scale + shift``."""
        out = torch.empty_like(x) if out is None else out
        scale, shift = scale.reshape(-1), shift.reshape(-1)
        spare = self.zeros.new_empty(0)
        torch.native_batch_norm(
            *(x.view(self.flat), scale, shift, self.zeros, self.ones, False, 0.0, 0.0),
            out=(out.view(self.flat), spare, spare.clone()),
        )
        return out

    def sums(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over the pixels of ``a * b`` and of ``a``, both ``(batch, channels)``."""
        _, products, sums = torch.ops.aten.native_batch_norm_backward(
            *(a.view(self.flat), b.view(self.flat), None, self.zeros, self.ones),
            *(None, None, False, 0.0, [False, True, True]),
        )
        return products.view(a.shape[:2]), sums.view(a.shape[:2])


class GroupGate(torch.autograd.Function):
    """S-series, fused as far as torch's kernels go: γ·x·σ(v₁x)/std + β; keeps x, the parameters and the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        centered: bool,
    ) -> Tensor:
        with _full_precision(input):
            x = widen(input).contiguous()
            slope = None if v is None else _away_from_zero(v.to(x.dtype)).view(1, -1, 1, 1)
            mean, rstd, out = _moments(x, groups, eps)
            if not centered:
                rstd, mean = (rstd.pow(-2) + mean.square()).rsqrt(), torch.zeros_like(mean)
            scale = _spread(rstd, x.shape[1]) * weight.to(x.dtype)
            scale = scale if slope is None else scale / slope.flatten()
            shift = bias.to(x.dtype).expand_as(scale)
            for xs, outs, factor, summand in _blocks(x, out, scale, shift):
                last = _gate(xs, outs, factor, summand, slope)
            out = out if x.is_cpu else last
        ctx.save_for_backward(input, v, weight, bias, mean, rstd)
        ctx.settings = (groups, eps, centered)
        return out.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensor, v, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            parameters = (tensor, v, weight, bias)
            return (*_plain_gradients(plain_group_gate, parameters, ctx.settings, ctx, grad), None, None, None)
        x, g = widen(tensor).contiguous(), widen(grad).contiguous()
        slope = None if v is None else _away_from_zero(v.to(x.dtype)).view(1, -1, 1, 1)
        # the last sum as a difference of two saves two passes, but small slopes would blow up its rounding
        apart = slope is not None and not (x.is_cpu and bool((slope.abs() >= _SMALL_SLOPE).all()))
        grad_input = torch.empty_like(x)
        blocks = _blocks(x, g, grad_input)
        z = torch.empty_like(blocks[0][0])
        sums = [_gate_gradient(xs, gs, out, z, slope, apart) for xs, gs, out in blocks]
        gated, shifts, curved = (torch.cat(part) for part in zip(*sums, strict=True))
        if slope is not None:
            gated = gated / slope.flatten()
            curved = curved if apart else (curved - gated) / slope.flatten()

        batch, channels = x.shape[:2]
        groups, gamma = mean.shape[1], weight.to(x.dtype)
        inverse = _spread(rstd, channels)  # 1/std of every channel
        pull = (gated * gamma).view(batch, groups, -1).sum(-1) * rstd.pow(3) * (-batch * groups / x.numel())
        factors = (_spread(pull, channels), _spread(-pull * mean, channels), (inverse * gamma)[..., None, None])
        for xs, out, factor, shift, scale in _blocks(x, grad_input, *factors):
            statistics = _Rows(xs).affine(xs, factor, shift, out=z[: len(xs)])
            torch.addcmul(statistics, out, scale, out=out)
        grad_v = None if v is None else (curved * inverse * gamma).sum(0).to(v.dtype)
        grad_weight = (gated * inverse).sum(0).to(weight.dtype)
        return grad_input.to(tensor.dtype), grad_v, grad_weight, shifts.sum(0).to(bias.dtype), None, None, None


def _gate(x: Tensor, out: Tensor, scale: Tensor, shift: Tensor, slope: Tensor | None) -> Tensor:
    """``silu(slope · x) · scale + shift`` of one block; on a CPU into ``out``."""
    if slope is None:
        out.copy_(x)
    else:
        torch.mul(x, slope, out=out)
    nn.functional.silu(out, inplace=True)
    return _Rows(x).affine(out, scale, shift, out=out if x.is_cpu else None)


def _gate_gradient(
    x: Tensor, g: Tensor, out: Tensor, memory: Tensor, slope: Tensor | None, apart: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of x·σ(v₁x) times ``g`` of one block into ``out``, and three sums over the pixels.

    These are Σ g·silu(v₁x), Σ g, and with ``apart`` Σ g·x²·σ′(v₁x), else Σ x times the gradient.
    """
    z, rows = memory[: len(x)], _Rows(x)
    if slope is None:
        z.copy_(x)
    else:
        torch.mul(x, slope, out=z)
    gated, shifts = rows.sums(g, torch.ops.aten.silu.out(z, out=out))
    torch.ops.aten.silu_backward.grad_input(g, z, grad_input=out)
    if slope is None:
        return gated, shifts, shifts
    other = torch.ops.aten.sigmoid_backward(g, z.sigmoid_()).mul_(x) if apart else out
    return gated, shifts, rows.sums(other, x)[0]


def _blocks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Samples of all tensors in blocks that fit the processor's cache, where all passes but the first find them.

    The statistics are those of one sample, so blocks do not concern each other. On a GPU all is one block.
    """
    samples = max(1, _BLOCK // tensors[0][0].numel()) if tensors[0].is_cpu else len(tensors[0])
    return list(zip(*(torch.split(tensor, samples) for tensor in tensors), strict=True))


class BatchGate(torch.autograd.Function):
    """B0 and B2: γ·x/max(std_b, v₁x + root_i) + β; keeps x, the parameters and the statistics.

    Second output: the variance over batch and pixels, which no gradient passes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        variance: Tensor | None,
        eps: float,
        centered: bool,
    ) -> tuple[Tensor, Tensor]:
        with _full_precision(input):
            x = widen(input).contiguous()
            rows = _Rows(x)
            mean, rstd, spare = _moments(x, x.shape[1], eps)
            batch_mean = mean.mean(0)
            if variance is None:
                # the variance of everything is the mean of the variances and the variance of the means
                used = (rstd.pow(-2) - eps + (mean - batch_mean).square()).mean(0).clamp_min(0)
            else:
                used = variance.to(x.dtype)
            root = rstd.reciprocal() if centered else (rstd.pow(-2) + mean.square()).sqrt()
            left = (used + eps).sqrt()
            right = rows.affine(x, _slope_rows(v, root), root, out=spare)
            denominator = torch.maximum(right, left.view(1, -1, 1, 1), out=right)
            quotient = torch.div(x, denominator, out=denominator)
            scale, shift = (t.to(x.dtype).expand_as(root) for t in (weight, bias))
            out = rows.affine(quotient, scale, shift, out=quotient if x.is_cpu else None)
        ctx.save_for_backward(input, v, weight, bias, variance, mean, root, left)
        ctx.settings = (eps, centered)
        used = used.clone() if used is variance else used
        ctx.mark_non_differentiable(used)
        return out.to(input.dtype), used

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        tensor, v, weight, bias, variance, mean, root, left = ctx.saved_tensors
        eps, centered = ctx.settings
        if torch.is_grad_enabled():
            parameters, settings = (tensor, v, weight, bias), (variance, eps, centered)
            gradients = _plain_gradients(lambda *args: plain_batch_gate(*args)[0], parameters, settings, ctx, grad)
            return (*gradients, None, None, None)
        x, g = widen(tensor).contiguous(), widen(grad).contiguous()
        batch, height, width = len(x), x.shape[2], x.shape[3]
        slope = _slope_rows(v, root)
        scale, rows = weight.to(x.dtype), _Rows(x)
        right = rows.affine(x, slope, root)
        by_sample = right > left.view(1, -1, 1, 1)
        denominator = torch.maximum(right, left.view(1, -1, 1, 1), out=right)
        quotient = g / denominator
        scales = rows.sums(quotient, x)[0]
        # the gradient of the denominator is −γ times this, which is applied to the sums instead
        pulled = torch.div(quotient, denominator, out=denominator).mul_(x)
        everywhere = -scale * pulled.sum(dim=(2, 3)) if variance is None else None
        grad_slopes, grad_root = (-scale * sums for sums in rows.sums(pulled.mul_(by_sample), x))

        grad_v = None if v is None else grad_slopes.sum(0).to(v.dtype)
        grad_input = None
        if ctx.needs_input_grad[0]:
            pull = grad_root / (root * height * width)
            shift = -pull * mean if centered else torch.zeros_like(pull)
            if everywhere is not None:
                batch_pull = (everywhere - grad_root).sum(0) / (left * (batch * height * width))
                pull, shift = pull + batch_pull, shift - batch_pull * mean.mean(0)
            grad_input = rows.affine(x, pull, shift).addcmul_(quotient, scale.view(1, -1, 1, 1))
            grad_input = grad_input.addcmul_(pulled, (-scale * slope)[..., None, None]).to(tensor.dtype)
        grad_weight, grad_bias = scales.sum(0).to(weight.dtype), g.sum((0, 2, 3)).to(bias.dtype)
        return grad_input, grad_v, grad_weight, grad_bias, None, None, None


def _plain_gradients(
    function: Callable[..., Tensor],
    parameters: tuple[Tensor | None, ...],
    settings: tuple[Any, ...],
    ctx: Any,
    grad: Tensor,
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, by the plain formula."""
    needed = [p for p, needs in zip(parameters, ctx.needs_input_grad, strict=False) if needs and p is not None]
    with _full_precision(grad):
        found = iter(torch.autograd.grad(function(*parameters, *settings), needed, grad, create_graph=True))
    chosen = zip(parameters, ctx.needs_input_grad, strict=False)
    return [next(found) if needs and p is not None else None for p, needs in chosen]


def _spread(per_group: Tensor, channels: int) -> Tensor:
    """Values of groups ``(batch, groups)`` for each of their channels ``(batch, channels)``."""
    batch, groups = per_group.shape
    return per_group[..., None].expand(-1, -1, channels // groups).reshape(batch, channels)


def _full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast is kept out: the dtype of each step is chosen here."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _slope_rows(v: Tensor | None, like: Tensor) -> Tensor:
    """v₁, which is −1 where the layer has none, for every sample and channel."""
    return -torch.ones_like(like) if v is None else v.to(like.dtype).expand_as(like)


def _away_from_zero(slope: Tensor) -> Tensor:
    """So that x·σ(vx) = silu(vx)/v also at v = 0; what this changes is far below the resolution of the type."""
    tiny = 1e-30 if slope.dtype == torch.float64 else 1e-20
    return torch.where(slope.abs() < tiny, tiny, slope)


__all__ = ["BatchGate", "GroupGate", "needs_plain_formula", "plain_batch_gate", "plain_group_gate", "widen"]
