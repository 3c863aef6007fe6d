"""Operations of the Poincaré ball, each with a backward that keeps only what went in (van Spengler et al. 2023).

Every class here is one operation: ``forward`` is its formula in plain torch, which autograd can follow by itself, and
``backward`` the derivative by hand, which computes the scalars of the formula again. Vectors lie along ``dim``; where
shapes differ, they broadcast, and ``dim`` is to be counted from the end. ``c`` is a number or a tensor without
dimensions, with a gradient of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Curvature = float | Tensor

_TINY = 1e-30  # below every square that matters; a normal number in float32


def boundary_margin(dtype: torch.dtype) -> float:
    """ε: points are kept within (1 − ε)/√c, where their distance to the boundary is still told from 0."""
    return 1e-5 if dtype == torch.float64 else 4e-3


def largest_angle(dtype: torch.dtype) -> float:
    """Largest √c·|v| of a tangent vector at the origin whose point is within the margin: artanh(1 − ε)."""
    return math.atanh(1 - boundary_margin(dtype))


def run(operation: type[torch.autograd.Function], written: bool, *arguments: Any) -> Tensor:
    """An operation with the backward written here, or its plain formula for autograd."""
    call: Callable[..., Tensor] = operation.apply if written else operation.forward
    return call(*arguments)


def run_several(operation: type[torch.autograd.Function], written: bool, *arguments: Any) -> tuple[Tensor, ...]:
    """:func:`run` of an operation with several results."""
    return run(operation, written, *arguments)  # type: ignore[return-value]


def dot(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """Inner products along ``dim``, which stays with size 1."""
    return (x * y).sum(dim, keepdim=True)


class Operation(torch.autograd.Function):
    """What the operations share: they keep their tensors, the curvature, and ``dim``."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.save_for_backward(*tensors)
        ctx.rest = [None if isinstance(value, Tensor) else value for value in inputs]

    @staticmethod
    def inputs(ctx: Any) -> list[Any]:
        """What ``forward`` was called with."""
        tensors = iter(ctx.saved_tensors)
        return [next(tensors) if value is None else value for value in ctx.rest]


def _shaped(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.sum_to_size(like.shape)


def _for_curvature(ctx: Any, index: int, *gradients: Tensor) -> Tensor | None:
    return torch.stack([gradient.sum() for gradient in gradients]).sum() if ctx.needs_input_grad[index] else None


def _radial(v: Tensor, gradient: Tensor, factor: Tensor, slope: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The gradient of v ↦ factor(|v|)·v, where ``slope`` is d factor / d|v| · |v|; and ⟨gradient, v⟩."""
    along = dot(gradient, v, dim)
    return factor * gradient + slope * along / dot(v, v, dim).clamp_min(_TINY) * v, along


class MobiusAdd(Operation):
    """x ⊕ y = ((1 + 2c⟨x, y⟩ + c|y|²) x + (1 − c|x|²) y) / (1 + 2c⟨x, y⟩ + c²|x|²|y|²), projected."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Curvature, dim: int, eps: float) -> Tensor:
        return Project.forward(_add(x, y, c, dim), c, dim, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, dim, eps = Operation.inputs(ctx)
        g, to_c = _project_back(g, _add(x, y, c, dim), c, dim, eps)
        grad_x, grad_y, more = _add_back(g, x, y, c, dim)
        return _shaped(grad_x, x), _shaped(grad_y, y), _for_curvature(ctx, 2, to_c, more), None, None


def _add(x: Tensor, y: Tensor, c: Curvature, dim: int) -> Tensor:
    x2, y2, xy = dot(x, x, dim), dot(y, y, dim), dot(x, y, dim)
    numerator = (1 + 2 * c * xy + c * y2) * x + (1 - c * x2) * y
    return numerator / (1 + 2 * c * xy + c**2 * x2 * y2).clamp_min(1e-15)


def _add_back(g: Tensor, x: Tensor, y: Tensor, c: Curvature, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    x2, y2, xy, gx, gy = dot(x, x, dim), dot(y, y, dim), dot(x, y, dim), dot(g, x, dim), dot(g, y, dim)
    a, b = 1 + 2 * c * xy + c * y2, 1 - c * x2
    below = (1 + 2 * c * xy + c**2 * x2 * y2).clamp_min(1e-15)
    to_a, to_b, to_below = gx / below, gy / below, -(a * gx + b * gy) / below**2
    to_xy = 2 * c * (to_a + to_below)
    to_x2 = c * (c * y2 * to_below - to_b)
    to_y2 = c * (c * x2 * to_below + to_a)
    grad_x = a / below * g + to_xy * y + 2 * to_x2 * x
    grad_y = b / below * g + to_xy * x + 2 * to_y2 * y
    return grad_x, grad_y, to_a * (2 * xy + y2) - to_b * x2 + 2 * to_below * (xy + c * x2 * y2)


class Project(Operation):
    """The nearest point within the radius (1 − ε)/√c."""

    @staticmethod
    def forward(x: Tensor, c: Curvature, dim: int, eps: float) -> Tensor:
        radius = (1 - eps) / c**0.5
        return x * (radius / dot(x, x, dim).clamp_min(_TINY).sqrt()).clamp_max(1)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, c, dim, eps = Operation.inputs(ctx)
        grad_x, to_c = _project_back(g, x, c, dim, eps)
        return grad_x, _for_curvature(ctx, 1, to_c), None, None


def _project_back(g: Tensor, x: Tensor, c: Curvature, dim: int, eps: float) -> tuple[Tensor, Tensor]:
    factor = (1 - eps) / c**0.5 / dot(x, x, dim).clamp_min(_TINY).sqrt()
    slope = torch.where(factor < 1, -factor, torch.zeros_like(factor))
    grad_x, along = _radial(x, g, factor.clamp_max(1), slope, dim)
    return grad_x, slope / (2 * c) * along


class ExpMap0(Operation):
    """Exponential map at the origin, tanh(√c|v|) v / (√c|v|), projected."""

    @staticmethod
    def forward(v: Tensor, c: Curvature, dim: int, eps: float) -> Tensor:
        angle = c**0.5 * dot(v, v, dim).clamp_min(_TINY).sqrt()
        return angle.tanh().clamp_max(1 - eps) / angle * v

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        v, c, dim, eps = Operation.inputs(ctx)
        angle = c**0.5 * dot(v, v, dim).clamp_min(_TINY).sqrt()
        tanh = angle.tanh()
        inside = tanh < 1 - eps
        factor = tanh.clamp_max(1 - eps) / angle
        slope = torch.where(inside, 1 - tanh.square(), torch.zeros_like(tanh)) - factor
        grad_v, along = _radial(v, g, factor, slope, dim)
        return grad_v, _for_curvature(ctx, 1, slope / (2 * c) * along), None, None


class LogMap0(Operation):
    """Logarithmic map at the origin, artanh(√c|y|) y / (√c|y|); points at the boundary count as just inside of it."""

    @staticmethod
    def forward(y: Tensor, c: Curvature, dim: int) -> Tensor:
        radius = c**0.5 * dot(y, y, dim).clamp_min(_TINY).sqrt()
        return inside(radius).atanh() / radius * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        y, c, dim = Operation.inputs(ctx)
        radius = c**0.5 * dot(y, y, dim).clamp_min(_TINY).sqrt()
        factor = inside(radius).atanh() / radius
        slope = _atanh_slope(radius) - factor
        grad_y, along = _radial(y, g, factor, slope, dim)
        return grad_y, _for_curvature(ctx, 1, slope / (2 * c) * along), None


class SquaredNorm(Operation):
    """|x|² along ``dim``."""

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return x.square().sum(dim, keepdim=True)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        x, _ = Operation.inputs(ctx)
        return 2 * g * x, None


class Arsinh(Operation):
    """arsinh(x), several times faster than torch's own on the CPU, which goes number by number there."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        # log1p(|x| + x²/(1 + √(1 + x²))), in place
        square = x.square()
        square /= (square + 1).sqrt_().add_(1)
        return square.copysign_(x).add_(x).abs_().log1p_().copysign_(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x: Tensor = ctx.saved_tensors[0]
        return g * (1 + x.square()).rsqrt()


def arsinh(x: Tensor) -> Tensor:
    """See :class:`Arsinh`."""
    return run(Arsinh, True, x)


def inside(radius: Tensor) -> Tensor:
    """√c|y| brought below 1 by a few units of the floating-point type."""
    return radius.clamp_max(1 - 4 * torch.finfo(radius.dtype).eps)


def _atanh_slope(radius: Tensor) -> Tensor:
    clipped = inside(radius)
    return torch.where(radius > clipped, torch.zeros_like(radius), 1 / (1 - clipped.square()))


class ExpMap(Operation):
    """exp_x(v) = x ⊕ tanh(√c λ_x|v|/2) v / (√c|v|), projected."""

    @staticmethod
    def forward(x: Tensor, v: Tensor, c: Curvature, dim: int, eps: float) -> Tensor:
        return MobiusAdd.forward(x, _step(x, v, c, dim), c, dim, eps)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, v, c, dim, eps = Operation.inputs(ctx)
        step = _step(x, v, c, dim)
        g, to_c = _project_back(g, _add(x, step, c, dim), c, dim, eps)
        grad_x, g, more = _add_back(g, x, step, c, dim)
        length = c**0.5 * dot(v, v, dim).clamp_min(_TINY).sqrt()
        x2 = dot(x, x, dim)
        room = (1 - c * x2).clamp_min(1e-15)
        tanh = (length / room).tanh()
        factor, flat = tanh / length, (1 - tanh.square()) / room
        grad_v, along = _radial(v, g, factor, flat - factor, dim)
        grad_x = grad_x + 2 * c * along * flat / room * x
        most = along * (flat * (1 / (2 * c) + x2 / room) - factor / (2 * c))
        return _shaped(grad_x, x), _shaped(grad_v, v), _for_curvature(ctx, 2, to_c, more, most), None, None


def _step(x: Tensor, v: Tensor, c: Curvature, dim: int) -> Tensor:
    length = c**0.5 * dot(v, v, dim).clamp_min(_TINY).sqrt()
    return (length / (1 - c * dot(x, x, dim)).clamp_min(1e-15)).tanh() / length * v


class LogMap(Operation):
    """log_x(y) = 2/(√c λ_x) artanh(√c|z|) z/|z| with z = −x ⊕ y."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Curvature, dim: int) -> Tensor:
        z = _add(-x, y, c, dim)
        radius = c**0.5 * dot(z, z, dim).clamp_min(_TINY).sqrt()
        return (1 - c * dot(x, x, dim)) * inside(radius).atanh() / radius * z

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, dim = Operation.inputs(ctx)
        z = _add(-x, y, c, dim)
        radius = c**0.5 * dot(z, z, dim).clamp_min(_TINY).sqrt()
        x2 = dot(x, x, dim)
        ratio, room = inside(radius).atanh() / radius, 1 - c * x2
        slope = _atanh_slope(radius) - ratio
        to_z, along = _radial(z, g, room * ratio, room * slope, dim)
        to_c = along * (room * slope / (2 * c) - x2 * ratio)
        to_minus_x, grad_y, more = _add_back(to_z, -x, y, c, dim)
        grad_x = -2 * c * ratio * along * x - to_minus_x
        return _shaped(grad_x, x), _shaped(grad_y, y), _for_curvature(ctx, 2, to_c, more), None


class Gyrate(Operation):
    """gyr[u, v] w; with ``transport``, gyr[u, −v] w (1 − c|u|²)/(1 − c|v|²): the parallel transport from v to u."""

    @staticmethod
    def forward(u: Tensor, v: Tensor, w: Tensor, c: Curvature, dim: int, transport: bool) -> Tensor:
        v = -v if transport else v
        u2, v2, uv = dot(u, u, dim), dot(v, v, dim), dot(u, v, dim)
        uw, vw = dot(u, w, dim), dot(v, w, dim)
        a = c * (vw + c * (2 * uv * vw - uw * v2))
        b = -c * (uw + c * vw * u2)
        turned = w + 2 * (a * u + b * v) / (1 + 2 * c * uv + c**2 * u2 * v2).clamp_min(1e-15)
        return turned * ((1 - c * u2) / (1 - c * v2)) if transport else turned

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        u, v, w, c, dim, transport = Operation.inputs(ctx)
        v = -v if transport else v
        u2, v2, uv = dot(u, u, dim), dot(v, v, dim), dot(u, v, dim)
        uw, vw, gu, gv = dot(u, w, dim), dot(v, w, dim), dot(g, u, dim), dot(g, v, dim)
        a = c * (vw + c * (2 * uv * vw - uw * v2))
        b = -c * (uw + c * vw * u2)
        below = (1 + 2 * c * uv + c**2 * u2 * v2).clamp_min(1e-15)
        along = 2 * (a * gu + b * gv) / below
        to_a, to_b, to_below = 2 * gu / below, 2 * gv / below, -along / below
        to_uw = -c * (c * v2 * to_a + to_b)
        to_vw = c * ((1 + 2 * c * uv) * to_a - c * u2 * to_b)
        to_uv = 2 * c * (c * vw * to_a + to_below)
        to_u2 = c**2 * (v2 * to_below - vw * to_b)
        to_v2 = c**2 * (u2 * to_below - uw * to_a)
        to_c = (
            to_a * (vw + 2 * c * (2 * uv * vw - uw * v2))
            - to_b * (uw + 2 * c * vw * u2)
            + 2 * to_below * (uv + c * u2 * v2)
        )
        scale: Tensor | float = 1.0
        if transport:
            room_u, room_v = 1 - c * u2, 1 - c * v2
            scale = room_u / room_v
            to_scale = dot(g, w, dim) + along
            to_u2, to_v2 = scale * to_u2 - c / room_v * to_scale, scale * (to_v2 + c / room_v * to_scale)
            to_c = scale * to_c + to_scale * (scale * v2 - u2) / room_v
            to_uw, to_vw, to_uv = scale * to_uw, scale * to_vw, scale * to_uv
        grad_u = 2 * scale * a / below * g + to_uw * w + to_uv * v + 2 * to_u2 * u
        grad_v = 2 * scale * b / below * g + to_vw * w + to_uv * u + 2 * to_v2 * v
        grad_v = -grad_v if transport else grad_v
        grad_w = scale * g + to_uw * u + to_vw * v
        return _shaped(grad_u, u), _shaped(grad_v, v), _shaped(grad_w, w), _for_curvature(ctx, 3, to_c), None, None


class Distance(Operation):
    """(2/√c) arsinh √(c|x − y|² / ((1 − c|x|²)(1 − c|y|²))), or its square, whose gradient is smooth where x = y.

    The same as (2/√c) artanh(√c|−x ⊕ y|), without the loss of digits that has for near points and at the boundary.
    """

    @staticmethod
    def forward(x: Tensor, y: Tensor, c: Curvature, dim: int, squared: bool) -> Tensor:
        apart = x - y
        rooms = ((1 - c * dot(x, x, dim)) * (1 - c * dot(y, y, dim))).clamp_min(1e-15)
        distance = 2 / c**0.5 * arsinh((c * dot(apart, apart, dim) / rooms).clamp_min(_TINY).sqrt())
        return distance.square() if squared else distance

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, y, c, dim, squared = Operation.inputs(ctx)
        apart, x2, y2 = x - y, dot(x, x, dim), dot(y, y, dim)
        apart2 = dot(apart, apart, dim)
        room_x, room_y = 1 - c * x2, 1 - c * y2
        rooms = (room_x * room_y).clamp_min(1e-15)
        q = (c * apart2 / rooms).clamp_min(_TINY)
        distance = 2 / c**0.5 * arsinh(q.sqrt())
        to_q = g / (c**0.5 * (q * (1 + q)).sqrt())
        if squared:
            to_q = 2 * to_q * distance
        near = 2 * c / rooms * to_q * apart
        grad_x = near + 2 * c * q / room_x * to_q * x
        grad_y = 2 * c * q / room_y * to_q * y - near
        own = distance.square() if squared else distance
        to_c = to_q * q * (1 / c + x2 / room_x + y2 / room_y) - g * own / (c if squared else 2 * c)
        return _shaped(grad_x, x), _shaped(grad_y, y), _for_curvature(ctx, 2, to_c), None, None


def weighted_midpoint(x: Tensor, weights: Tensor | None, c: Curvature, dim: int, over: Sequence[int]) -> Tensor:
    """Gyromidpoint of points with weights that keep ``dim`` with size 1; see :meth:`PoincareBall.midpoint`."""
    gamma2 = 1 / (1 - c * dot(x, x, dim)).clamp_min(1e-15)
    share, total = (gamma2, gamma2 - 0.5) if weights is None else (weights * gamma2, weights * (gamma2 - 0.5))
    mean = (share * x).sum(tuple(over), keepdim=True) / total.sum(tuple(over), keepdim=True).clamp_min(1e-15)
    return mean / (1 + (1 - c * dot(mean, mean, dim)).clamp_min(0).sqrt())


def frechet_point(x: Tensor, c: Curvature, dim: int, over: Sequence[int], tolerance: float, steps: int) -> Tensor:
    """The point with the least sum of squared distances, by weighted midpoints; without gradient.

    The squared distance is concave in cosh(√c d), which is linear in the point of the hyperboloid; the sum is bounded
    from above by a weighted sum of these, whose minimum is the midpoint with weights √c d / sinh(√c d).
    """
    with torch.no_grad():
        mean = weighted_midpoint(x, None, c, dim, over)
        for _ in range(steps):
            angle = c**0.5 * Distance.forward(x, mean, c, dim, False)
            new = weighted_midpoint(x, angle / angle.sinh(), c, dim, over)
            moved = (new - mean).abs().amax()
            mean = new
            if moved * c**0.5 <= tolerance:
                break
    return mean


__all__ = [
    "Arsinh",
    "Curvature",
    "Distance",
    "ExpMap",
    "ExpMap0",
    "Gyrate",
    "LogMap",
    "LogMap0",
    "MobiusAdd",
    "Operation",
    "Project",
    "SquaredNorm",
    "arsinh",
    "boundary_margin",
    "dot",
    "frechet_point",
    "inside",
    "largest_angle",
    "run",
    "run_several",
    "weighted_midpoint",
]
