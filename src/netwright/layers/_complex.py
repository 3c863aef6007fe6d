"""The arithmetic of complex layers on real numbers, twice: from torch's differentiable functions, and with backward
passes of its own, which keep less and are faster.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from netwright.layers._geometry import padding_sides

_CONVOLUTIONS = (functional.conv1d, functional.conv2d, functional.conv3d)


def full_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Autocast off: there are no complex numbers of half precision to cast to."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def parts(input: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part; their gradients are joined in one pass, those of ``.real`` and ``.imag`` in three."""
    real, imag = torch.view_as_real(input.resolve_conj()).unbind(-1)
    return real, imag


def needs_plain_formula(input: Tensor) -> bool:
    """Compilers and ``torch.func`` see through the plain formula, and the former fuse it themselves."""
    return torch.compiler.is_compiling() or input.is_meta or torch._C._are_functorch_transforms_active()


class Geometry(NamedTuple):
    """How a convolution of real numbers goes, in torch's order."""

    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    padding_mode: str
    kernel_size: tuple[int, ...]

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Torch's convolution of real numbers."""
        if self.transposed:
            settings: Any = (self.stride, self.padding, self.output_padding, self.groups, self.dilation)
            return functional.conv_transpose2d(input, weight, bias, *settings)
        padded, padding = input, self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            sides = padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)
            padded, padding = functional.pad(input, sides, mode=self.padding_mode), (0,) * len(self.kernel_size)
        convolve = _CONVOLUTIONS[len(self.kernel_size) - 1]
        return convolve(padded, weight, bias, self.stride, padding, self.dilation, self.groups)


def stacked_convolution(
    input: Tensor, w_real: Tensor, w_imag: Tensor, b_real: Tensor | None, b_imag: Tensor | None, geometry: Geometry
) -> Tensor:
    """One real convolution of twice the channels; for one group."""
    channels = -1 - len(geometry.kernel_size)
    out, inner = (1, 0) if geometry.transposed else (0, 1)
    weight = torch.cat([torch.cat([w_real, -w_imag], inner), torch.cat([w_imag, w_real], inner)], out)
    bias = None if b_real is None or b_imag is None else torch.cat([b_real, b_imag])
    both = torch.view_as_real(input.resolve_conj()).movedim(-1, channels - 1).flatten(channels - 1, channels)
    result: Tensor = geometry.convolve(both, weight, bias).unflatten(channels, (2, -1))  # type: ignore[no-untyped-call]
    return torch.view_as_complex(result.movedim(channels - 1, -1).contiguous())


def plain_gauss(
    input: Tensor, w_real: Tensor, w_imag: Tensor, b_real: Tensor | None, b_imag: Tensor | None, geometry: Geometry
) -> Tensor:
    """Three real convolutions for the four products of parts (Gauss)."""
    real, imag = parts(input)
    common = geometry.convolve(real + imag, w_real, None)
    last = geometry.convolve(imag, w_real + w_imag, None if b_real is None else -b_real)
    return torch.complex(common - last, common + geometry.convolve(real, w_imag - w_real, b_imag))


class Gauss(torch.autograd.Function):
    """:func:`plain_gauss` for zero padding given in numbers; keeps the input and the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        w_real: Tensor,
        w_imag: Tensor,
        b_real: Tensor | None,
        b_imag: Tensor | None,
        geometry: Geometry,
    ) -> Tensor:
        real, imag = (part.contiguous() for part in parts(input))
        common = geometry.convolve(real + imag, w_real, None)
        last = geometry.convolve(imag, w_real + w_imag, None if b_real is None else -b_real)
        second = geometry.convolve(real, w_imag - w_real, b_imag)
        ctx.save_for_backward(input, w_real, w_imag, b_real, b_imag)
        ctx.geometry = geometry
        return torch.complex(torch.sub(common, last, out=last), second.add_(common))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        z, w_real, w_imag, b_real, b_imag = ctx.saved_tensors
        geometry: Geometry = ctx.geometry
        if torch.is_grad_enabled():
            return (*gradients_of(plain_gauss, (z, w_real, w_imag, b_real, b_imag), (geometry,), ctx, grad), None)
        real, imag = (part.contiguous() for part in parts(z))
        g_real, g_imag = (part.contiguous() for part in parts(grad))
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1] or ctx.needs_input_grad[2], False]

        def back(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
            g_input, g_weight, _ = torch.ops.aten.convolution_backward(g, x, w, None, *geometry[:6], wanted)
            return g_input, g_weight

        x_common, w_common = back(g_real + g_imag, real + imag, w_real)
        x_second, w_second = back(g_imag, real, w_imag - w_real)
        x_last, w_last = back(g_real, imag, w_real + w_imag)
        grads: list[Tensor | None] = [None, None, None]
        if wanted[0]:
            grads[0] = torch.complex(x_second.add_(x_common), torch.sub(x_common, x_last, out=x_last))
        if wanted[1]:
            grads[1], grads[2] = w_common - w_second - w_last, w_second - w_last
        dims = (0, *range(2, g_real.ndim))
        biases = [
            g.sum(dims) if needed else None
            for g, needed in zip((g_real, g_imag), ctx.needs_input_grad[3:5], strict=True)
        ]
        return (*grads, *biases, None)


def gradients_of(
    function: Callable[..., Tensor],
    parameters: tuple[Tensor | None, ...],
    settings: tuple[Any, ...],
    ctx: Any,
    grad: Tensor,
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, by the plain formula."""
    wanted = [p is not None and needed for p, needed in zip(parameters, ctx.needs_input_grad, strict=False)]
    needed = [p for p, want in zip(parameters, wanted, strict=True) if want and p is not None]
    with full_precision(grad):
        found = iter(torch.autograd.grad(function(*parameters, *settings), needed, grad, create_graph=True))
    return [next(found) if want else None for want in wanted]


__all__ = [
    "Gauss",
    "Geometry",
    "full_precision",
    "gradients_of",
    "needs_plain_formula",
    "parts",
    "plain_gauss",
    "stacked_convolution",
]
