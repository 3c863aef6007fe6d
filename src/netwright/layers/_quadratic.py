"""``linear`` and ``conv2d`` of the square of the input that keep the input for backward, and not its square."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class LinearOfSquare(torch.autograd.Function):
    """``linear(x * x, weight, bias)`` that keeps x for the backward pass and not its square."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.linear(input.square(), weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_input, for_weight, for_bias = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        return (
            (grad @ weight) * x * 2 if for_input else None,
            flat.t() @ x.reshape(-1, x.shape[-1]).square() if for_weight else None,
            flat.sum(0) if for_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        return _tangent(functional.linear, x, weight, input_t, weight_t, bias_t)


class ConvOfSquare(torch.autograd.Function):
    """``conv2d(x * x, weight, bias, …)`` that keeps x for the backward pass and not its square."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> Tensor:
        return functional.conv2d(input.square(), weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, weight, bias, *ctx.geometry = inputs
        ctx.bias_sizes = None if bias is None else [weight.shape[0]]
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        of_square, of_weight, of_bias = torch.ops.aten.convolution_backward(
            grad,
            x.square(),
            weight,
            ctx.bias_sizes,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            list(ctx.needs_input_grad[:3]),
        )
        return None if of_square is None else of_square * x * 2, of_weight, of_bias, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, input_t: Tensor | None, weight_t: Tensor | None, bias_t: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        if bias_t is not None:
            bias_t = bias_t[:, None, None]
        return _tangent(functional.conv2d, x, weight, input_t, weight_t, bias_t, *ctx.geometry)


def _tangent(
    product: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    input_t: Tensor | None,
    weight_t: Tensor | None,
    bias_t: Tensor | None,
    *geometry: object,
) -> Tensor:
    """The derivative of ``product(input², weight) + bias`` along the tangents."""
    tangent = torch.zeros((), dtype=input.dtype, device=input.device)
    if input_t is not None:
        tangent = tangent + product(2 * input * input_t, weight, None, *geometry)
    if weight_t is not None:
        tangent = tangent + product(input.square(), weight_t, None, *geometry)
    return tangent if bias_t is None else tangent + bias_t


def of_square(
    function: type[torch.autograd.Function],
    product: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *geometry: object,
) -> Tensor:
    """``product(input², weight, bias)``; the square is recomputed, not kept, for the backward pass."""
    if torch.compiler.is_compiling():  # the compiler decides itself what to recompute
        return product(input.square(), weight, bias, *geometry)
    x = input.unsqueeze(0) if product is functional.conv2d and input.ndim == 3 else input
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        # a backward pass runs outside of autocast, so that the types have to agree before
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    output: Tensor = function.apply(x, weight, bias, *geometry)  # type: ignore[no-untyped-call]
    return output if x.ndim == input.ndim else output.squeeze(0)


__all__ = ["ConvOfSquare", "LinearOfSquare", "of_square"]
