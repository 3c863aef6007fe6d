"""Sign functions with surrogate gradients (straight-through estimators), for networks with binary weights and signals.

All give exactly −1 or +1, with sign(0) = +1, and differ in what backward takes for the derivative of the sign:
:func:`sign_identity` 1, :func:`sign_ste` 1 for |x| ≤ 1 and else 0, :func:`sign_poly` max(0, 2 − 2|x|).
"""

from typing import Any

import torch
from torch import Tensor


def binary_sign(input: Tensor) -> Tensor:
    """−1 where the input is negative, else +1; without a gradient."""
    # several times faster than torch.where with two numbers
    return torch.sign(input).add_(0.5).sign_()


class _Sign(torch.autograd.Function):
    """The common forward; a kind of backward each below."""

    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor) -> Tensor:
        return binary_sign(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs)


class _SignIdentity(_Sign):
    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        return gradient


class _SignClipped(_Sign):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_input: Tensor = gradient * (x.abs() <= 1)
        return grad_input


class _SignPoly(_Sign):
    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        grad_input: Tensor = gradient * x.abs().mul_(-2).add_(2).relu_()
        return grad_input


def sign_identity(input: Tensor) -> Tensor:
    """Sign with the gradient of the identity.

    Args:
        input: Any shape.

    Returns:
        −1 or +1, of the shape and type of ``input``.

    Source:
        Bengio, Léonard, Courville 2013, arXiv:1308.3432.

    Example:
        >>> x = torch.tensor([-3.0, 0.0, 0.5], requires_grad=True)
        >>> (sign_identity(x) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
        >>> x.grad
        tensor([1., 2., 3.])
    """
    output: Tensor = _SignIdentity.apply(input)  # type: ignore[no-untyped-call]
    return output


def sign_ste(input: Tensor) -> Tensor:
    """Sign with the gradient of the identity clipped to [−1, 1]: nothing flows back where |x| > 1.

    Args:
        input: Any shape.

    Returns:
        −1 or +1, of the shape and type of ``input``.

    Source:
        Hubara, Courbariaux, Soudry, El-Yaniv, Bengio 2016, arXiv:1602.02830, equation (4).

    Example:
        >>> x = torch.tensor([-3.0, 0.0, 0.5], requires_grad=True)
        >>> sign_ste(x).sum().backward()
        >>> x.grad
        tensor([0., 1., 1.])
    """
    output: Tensor = _SignClipped.apply(input)  # type: ignore[no-untyped-call]
    return output


def sign_poly(input: Tensor) -> Tensor:
    """Sign with the gradient max(0, 2 − 2|x|) of a piecewise quadratic.

    Args:
        input: Any shape.

    Returns:
        −1 or +1, of the shape and type of ``input``.

    Source:
        Liu, Wu, Luo, Yang, Liu, Cheng 2018 (Bi-Real Net), arXiv:1808.00278, section 3.2.

    Example:
        >>> x = torch.tensor([-3.0, 0.0, 0.5], requires_grad=True)
        >>> sign_poly(x).sum().backward()
        >>> x.grad
        tensor([0., 2., 1.])
    """
    output: Tensor = _SignPoly.apply(input)  # type: ignore[no-untyped-call]
    return output


__all__ = ["binary_sign", "sign_identity", "sign_poly", "sign_ste"]
