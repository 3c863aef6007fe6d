"""Functions of symmetric matrices through their eigenvalues, with gradients that equal eigenvalues do not break.

The derivative of f(X) = U f(Λ) Uᵀ is, by Daleckii and Krein, U (F ∘ Uᵀ dX U) Uᵀ with the divided differences
F_ij = (f(λ_i) − f(λ_j)) / (λ_i − λ_j), and f'(λ_i) where both are equal. Every function here has them in a closed form
that divides by no difference. All is computed in float64 and returned in the type of the input.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Call = tuple[str, float]


class Spectral(NamedTuple):
    """A function of an eigenvalue and its divided differences; both take a parameter last."""

    value: Callable[[Tensor, float], Tensor]
    divided: Callable[[Tensor, Tensor, float], Tensor]


def _log_divided(a: Tensor, b: Tensor, _: float = 0.0) -> Tensor:
    z = (a - b) / (a + b)
    equal, far = z.abs() < 1e-3, z.abs() > 0.3
    between = torch.where(equal | far, 0.1, z)
    near = torch.where(equal, 1 + z**2 * (1 / 3 + z**2 / 5), torch.atanh(between) / between)
    return torch.where(far, (a.log() - b.log()) / torch.where(far, a - b, 1.0), 2 / (a + b) * near)


def _exp_divided(a: Tensor, b: Tensor, _: float = 0.0) -> Tensor:
    half = (a - b) / 2
    small = half.abs() < 1e-3
    series = 1 + half**2 / 6 * (1 + half**2 / 20)
    safe = torch.where(small, 1.0, half)
    return torch.exp((a + b) / 2) * torch.where(small, series, torch.sinh(safe) / safe)


def _power_divided(a: Tensor, b: Tensor, power: float) -> Tensor:
    return power * _exp_divided(power * a.log(), power * b.log()) * _log_divided(a, b)


def _clamp_divided(a: Tensor, b: Tensor, low: float) -> Tensor:
    difference = a - b
    both = ((a > low) & (b > low)).to(a.dtype)
    mixed = (a > low) != (b > low)
    safe = torch.where(mixed, difference, 1.0)
    return torch.where(mixed, (a.clamp_min(low) - b.clamp_min(low)) / safe, both)


def _inv_sqrt_divided(a: Tensor, b: Tensor, _: float) -> Tensor:
    p, q = a.sqrt(), b.sqrt()
    return -1 / (p * q * (p + q))


FUNCTIONS = {
    "log": Spectral(lambda x, _: x.log(), _log_divided),
    "exp": Spectral(lambda x, _: x.exp(), _exp_divided),
    "sqrt": Spectral(lambda x, _: x.sqrt(), lambda a, b, _: 1 / (a.sqrt() + b.sqrt())),
    "inv_sqrt": Spectral(lambda x, _: x.rsqrt(), _inv_sqrt_divided),
    "power": Spectral(lambda x, power: x**power, _power_divided),
    "clamp": Spectral(lambda x, low: x.clamp_min(low), _clamp_divided),
}


class Multiplier(NamedTuple):
    """k(a, b), symmetric, and its divided difference in the first argument, (k(a, b) − k(c, b)) / (a − c)."""

    value: Callable[[Tensor, Tensor], Tensor]
    divided: Callable[[Tensor, Tensor, Tensor], Tensor]


def _of_root(scale: float, inverse: bool) -> Multiplier:
    """The root √(scale·(a + b)), or one over it."""

    def root(a: Tensor, b: Tensor) -> Tensor:
        return (scale * (a + b)).sqrt()

    def divided(a: Tensor, c: Tensor, b: Tensor) -> Tensor:
        p, q = root(a, b), root(c, b)
        return -scale / (p * q * (p + q)) if inverse else scale / (p + q)

    return Multiplier((lambda a, b: 1 / root(a, b)) if inverse else root, divided)


MULTIPLIERS = {
    # L with L X + X L = V
    "lyapunov": Multiplier(lambda a, b: 1 / (a + b), lambda a, c, b: -1 / ((a + b) * (c + b))),
    # Bures-Wasserstein transport of V from X to the identity, and from the identity to X
    "to identity": _of_root(0.5, inverse=True),
    "from identity": _of_root(0.5, inverse=False),
    # T - I of a transport map T that starts at X, as a tangent vector at the identity, and back
    "map to tangent": _of_root(2.0, inverse=False),
    "tangent to map": _of_root(2.0, inverse=True),
}


def can_read(x: Tensor) -> bool:
    """Whether the numbers in a tensor can be looked at: not on ``meta``, while compiling, or inside ``torch.func``."""
    return not (x.is_meta or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def symmetric(x: Tensor) -> Tensor:
    """(X + Xᵀ) / 2."""
    return 0.5 * (x + x.mT)


def spectral(x: Tensor, *calls: Call, floor: float = 0.0) -> tuple[Tensor, ...]:
    """Several functions of symmetric X ``(…, n, n)`` from one decomposition, then its eigenvalues.

    X is read below its diagonal only, and the gradient is right for symmetric changes of X: take :func:`symmetric` of
    what a user gives.

    Args:
        x: Matrices.
        calls: Name of a function in :data:`FUNCTIONS` and its parameter.
        floor: Eigenvalues below this fraction of the largest count as equal to it: below the rounding error of the
            product that X is, they are noise, and may be negative.
    """
    wide = x.double()
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        outputs = _plain(wide, calls, floor)
    else:
        outputs = _Spectral.apply(wide, calls, floor)  # type: ignore[no-untyped-call]
    return (*(output.to(x.dtype) for output in outputs[:-1]), outputs[-1])


def multiply(point: Tensor, tangent: Tensor, name: str) -> Tensor:
    """U (k(λ_i, λ_j) ∘ Uᵀ V U) Uᵀ for X = U Λ Uᵀ: multiply V in the eigenbasis of X; both symmetric."""
    wide = point.double(), tangent.double()
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return _plain_multiply(*wide, name).to(tangent.dtype)
    output: Tensor = _Multiply.apply(*wide, name)  # type: ignore[no-untyped-call]
    return output.to(tangent.dtype)


def _decompose(x: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues as they are, eigenvalues from the floor upwards, eigenvectors."""
    values, vectors = torch.linalg.eigh(x)
    raised = torch.maximum(values, floor * values[..., -1:]) if floor else values
    return values, raised, vectors


def _assemble(vectors: Tensor, values: Tensor) -> Tensor:
    return (vectors * values.unsqueeze(-2)) @ vectors.mT


def _pair(function: Callable[..., Tensor], values: Tensor, *parameters: float) -> Tensor:
    return function(values.unsqueeze(-1), values.unsqueeze(-2), *parameters)


class _Spectral(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, calls: tuple[Call, ...], floor: float) -> tuple[Tensor, ...]:
        values, raised, vectors = _decompose(x, floor)
        ctx.save_for_backward(raised, vectors)
        ctx.calls = calls
        ctx.mark_non_differentiable(values)
        ctx.set_materialize_grads(False)
        return (*(_assemble(vectors, FUNCTIONS[name].value(raised, p)) for name, p in calls), values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        values, vectors = ctx.saved_tensors
        inner: Tensor | None = None
        for (name, parameter), grad in zip(ctx.calls, grads[:-1], strict=True):
            if grad is not None:
                weighted = _pair(FUNCTIONS[name].divided, values, parameter) * (vectors.mT @ grad @ vectors)
                inner = weighted if inner is None else inner + weighted
        return None if inner is None else vectors @ inner @ vectors.mT, None, None


def _plain(x: Tensor, calls: tuple[Call, ...], floor: float) -> tuple[Tensor, ...]:
    """As :class:`_Spectral`, from torch's own differentiable functions."""
    values, raised, vectors = _decompose(x.detach(), floor)
    change = vectors.mT @ (x - x.detach()) @ vectors  # zero, with a gradient
    outputs = []
    for name, parameter in calls:
        function = FUNCTIONS[name]
        moved = vectors @ (_pair(function.divided, raised, parameter) * change) @ vectors.mT
        outputs.append(_assemble(vectors, function.value(raised, parameter)) + moved)
    return (*outputs, values)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, point: Tensor, tangent: Tensor, name: str) -> Tensor:
        values, vectors = torch.linalg.eigh(point)
        inner = vectors.mT @ tangent @ vectors
        ctx.save_for_backward(values, vectors, inner)
        ctx.name, ctx.shapes = name, (point.shape, tangent.shape)
        output: Tensor = vectors @ (_pair(MULTIPLIERS[name].value, values) * inner) @ vectors.mT
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        values, vectors, inner = ctx.saved_tensors
        kernel = MULTIPLIERS[ctx.name]
        point_shape, tangent_shape = ctx.shapes
        turned = vectors.mT @ symmetric(grad) @ vectors
        to_point = to_tangent = None
        if ctx.needs_input_grad[0]:
            to_point = _through_point(kernel, values, turned, inner)
            to_point = (vectors @ (to_point + to_point.mT) @ vectors.mT).sum_to_size(point_shape)
        if ctx.needs_input_grad[1]:
            to_tangent = vectors @ (_pair(kernel.value, values) * turned) @ vectors.mT
            to_tangent = to_tangent.sum_to_size(tangent_shape)
        return to_point, to_tangent, None


def _through_point(kernel: Multiplier, values: Tensor, grad: Tensor, inner: Tensor) -> Tensor:
    """Σ_j k[λ_i, λ_l; λ_j] G_ij V_lj: half of the gradient with respect to X, in its eigenbasis."""
    n = values.shape[-1]
    lead = values.shape[:-1]
    while lead and lead[0] == 1:
        lead = lead[1:]
    if lead == grad.shape[grad.dim() - 2 - len(lead) : -2] and grad.shape == inner.shape:
        # many tangent vectors at one point: sum over them before anything of size n³ is made
        grad, inner, values = (t.reshape(-1, *lead, *t.shape[-k:]) for t, k in ((grad, 2), (inner, 2), (values, 1)))
        products = torch.einsum("k...ij,k...lj->...ilj", grad, inner)
        values = values[0]
    else:
        products = torch.einsum("...ij,...lj->...ilj", grad, inner)
    a, c, b = (values.view(*values.shape[:-1], *shape) for shape in ((n, 1, 1), (1, n, 1), (1, 1, n)))
    return (kernel.divided(a, c, b) * products).sum(-1)


def _plain_multiply(point: Tensor, tangent: Tensor, name: str) -> Tensor:
    """As :class:`_Multiply`, from torch's own differentiable functions."""
    kernel = MULTIPLIERS[name]
    values, vectors = torch.linalg.eigh(point.detach())
    inner = vectors.mT @ tangent @ vectors
    change = vectors.mT @ (point - point.detach()) @ vectors
    n = values.shape[-1]
    a, c, b = (values.view(*values.shape[:-1], *shape) for shape in ((n, 1, 1), (1, n, 1), (1, 1, n)))
    half = torch.einsum("...ilj,...il,...lj->...ij", kernel.divided(a, c, b), change, inner)
    output: Tensor = vectors @ (_pair(kernel.value, values) * inner + half + half.mT) @ vectors.mT
    return output


__all__ = ["FUNCTIONS", "MULTIPLIERS", "can_read", "multiply", "spectral", "symmetric"]
