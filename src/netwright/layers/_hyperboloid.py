"""What the hyperbolic layers compute for each vector: functions of a few scalars, with backwards written by hand.

The layers take and give tangent vectors at the origin of the Poincaré ball. In between they work on the hyperboloid,
where √c-scaled points are pairs (1 + X₀, X) with (1 + X₀)² − |X|² = 1: Möbius additions, transport and midpoints become
combinations of whole vectors with coefficients that depend on a few inner products. So only these coefficients are
hard to differentiate, and none of the maps in between has to be kept.
"""

from typing import Any

import torch
from torch import Tensor

from netwright.layers._hyperbolic import Curvature, Operation, arsinh, largest_angle

_TINY = 1e-30
_TURN = 2**17  # numbers of a map that are worked on at a time: half a megabyte
_LARGEST = 40.0  # of an argument of sinh: far beyond the margin of the ball, and its square is still in float32


def _shaped(gradient: Tensor, like: Tensor) -> Tensor:
    return gradient.sum_to_size(like.shape)


class Lift(Operation):
    """From N = c|u|² of a tangent vector u at the origin: (a, X₀), where its point is (1 + X₀, a·√c u).

    With t = √N, at most artanh(1 − ε): a = sinh(2t)/√N and X₀ = cosh(2t) − 1.
    """

    @staticmethod
    def forward(squared: Tensor) -> tuple[Tensor, Tensor]:
        angle = squared.clamp_min(_TINY).sqrt()
        sinh = angle.clamp_max(largest_angle(squared.dtype)).sinh()
        return 2 * sinh * (1 + sinh.square()).sqrt() / angle, 2 * sinh.square()

    @staticmethod
    def backward(ctx: Any, to_a: Tensor, to_time: Tensor) -> Tensor:
        (squared,) = ctx.saved_tensors
        kept = squared.clamp_min(_TINY)
        a, time = Lift.forward(squared)
        free = kept.sqrt() < largest_angle(squared.dtype)
        gradient = to_a * torch.where(free, (2 * (1 + time) - a) / (2 * kept), -a / (2 * kept))
        return gradient + to_time * torch.where(free, a, torch.zeros_like(a))


def across(rows: Tensor, maps: Tensor) -> Tensor:
    """Products of each of ``(rows, features)`` with every vector of ``(batch, features, places)``."""
    # the operator @ would make one product of it, and copy the maps for that
    return torch.bmm(rows.expand(len(maps), *rows.shape), maps)


def lower(time: Tensor) -> Tensor:
    """G(Y₀), where the tangent vector of the point (1 + Y₀, Y) at the origin is G·Y/√c, projected into the ball."""
    time = time.clamp_min(_TINY)
    angle = arsinh((time / 2).sqrt()).clamp_max(largest_angle(time.dtype))
    return angle / (time * (time + 2)).sqrt()


def lower_slope(time: Tensor) -> Tensor:
    """dG/dY₀."""
    time = time.clamp_min(_TINY)
    factor, squared = lower(time), time * (time + 2)
    free = arsinh((time / 2).sqrt()) < largest_angle(time.dtype)
    slope = torch.where(free, (1 - 2 * factor * (1 + time)) / (2 * squared), -factor * (1 + time) / squared)
    near = -1 / 6 + time * (2 / 15 - time * (3 / 35))  # there the difference above has few digits
    return torch.where(time < torch.finfo(time.dtype).eps ** 0.25, near, slope)


def connect(p: Tensor, a: Tensor, time: Tensor, norm: Tensor, r: Tensor | None, scale: float, c: Curvature) -> Tensor:
    r"""The fully connected map from the products p_k = ⟨u, z_k⟩ to tangent vectors at the origin.

    √c v_k = 2|z_k| arsinh(s a √c p_k/|z_k| cosh(2√c r_k) − (1 + X₀) sinh(2√c r_k)) with (a, X₀) of the input vector
    (:class:`Lift`); the result is the tangent vector of the point with √c w = sinh(√c v) on the hyperboloid.

    Args:
        p: ``(batch, outputs, places)``.
        a: ``(batch, 1, places)``.
        time: X₀, as ``a``.
        norm: |z|, ``(outputs, 1)``.
        r: Biases, as ``norm``.
        scale: s.
        c: Minus the curvature.
    """
    slope, sinh, _ = _hyperplanes(norm, r, scale, c)
    w = (arsinh(_argument(p, a, time, slope, sinh)) * (2 * norm)).clamp(-_LARGEST, _LARGEST).sinh()
    return w * (lower(_time(w.square().sum(1, keepdim=True))) / c**0.5)


class Connect(Operation):
    """:func:`connect`; in turns of some samples each, so that what is between stays in the cache of the processor."""

    @staticmethod
    def forward(
        p: Tensor, a: Tensor, time: Tensor, norm: Tensor, r: Tensor | None, scale: float, c: Curvature
    ) -> Tensor:
        turns = zip(*_turns(p, a, time), strict=True)
        return torch.cat([connect(maps[0], maps[1], maps[2], norm, r, scale, c) for maps in turns])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        # a missing bias must not be taken for a tensor that was kept
        Operation.setup_context(ctx, (*inputs[:4], "none" if inputs[4] is None else inputs[4], *inputs[5:]), output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        p, a, time, norm, r, scale, c = Operation.inputs(ctx)
        r = None if isinstance(r, str) else r
        if torch.is_grad_enabled():  # the gradient is to be differentiated, too
            return _differentiable(g, (p, a, time, norm, r, scale, c))
        slope, sinh, cosh = _hyperplanes(norm, r, scale, c)
        gain = 2 * norm * slope
        parts = [
            _connect_backward(maps, norm, slope, sinh, gain, c) for maps in zip(*_turns(g, p, a, time), strict=True)
        ]
        grad_p, grad_a = (torch.cat([part[i] for part in parts]) for i in range(2))
        linear, turned, shift, along = (sum(part[i] for part in parts) for i in range(2, 6))
        grad_norm = 2 * (turned - slope * linear)
        half_c = (gain * linear).sum() - along
        grad_time, grad_r = torch.zeros_like(time), None
        if r is not None and sinh is not None:
            grad_time = torch.cat([part[6] for part in parts])
            to_angle = 2 * norm * (slope * sinh / cosh * linear - cosh * shift)  # the angle is 2√c r
            grad_r = 2 * c**0.5 * to_angle
            half_c = half_c + 2 * c**0.5 * (to_angle * r).sum()
        grad_c = half_c / (2 * c) if ctx.needs_input_grad[6] else None
        return grad_p, grad_a, grad_time, grad_norm, grad_r, None, grad_c


def _connect_backward(
    maps: tuple[Tensor, ...], norm: Tensor, slope: Tensor, sinh: Tensor | None, gain: Tensor, c: Curvature
) -> tuple[Tensor, ...]:
    """Gradients of p and a; what those of |z|, r and c are made of, summed over places; and the gradient of X₀."""
    g, p, a, time = maps
    # in place wherever it can be: new memory costs more than the arithmetic
    argument = (p * slope).mul_(a)
    if sinh is not None:
        argument.addcmul_(1 + time, sinh, value=-1)
    angle = arsinh(argument)
    # beyond its bound, w is so large that only its direction counts, and the gradient vanishes with or without it
    w = (angle * (2 * norm)).clamp_(-_LARGEST, _LARGEST).sinh_()
    square = w.square()
    length2 = square.sum(1, keepdim=True)
    factor = lower(_time(length2)) / c**0.5
    along = (g * w).sum(1, keepdim=True)
    bend = along * lower_slope(_time(length2)) / ((1 + length2) * c).sqrt()
    to_v = w.mul_(bend).addcmul_(g, factor).mul_(square.add_(1).sqrt_())
    steep = argument.square_().add_(1).rsqrt_().mul_(to_v)
    turned = to_v.mul_(angle).sum((0, 2)).unsqueeze(1)
    through = torch.mul(steep, p, out=angle)
    results = (
        across(gain.T, through),
        (through @ a.transpose(1, 2)).sum(0),
        turned,
        (steep @ (1 + time).transpose(1, 2)).sum(0),
        (factor * along).sum(),
        steep.new_zeros(()) if sinh is None else across(-(2 * norm * sinh).T, steep),
    )
    return steep.mul_(gain).mul_(a), *results


def _differentiable(g: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The same gradients from autograd."""
    wanted = [value for value in arguments if isinstance(value, Tensor) and value.requires_grad]
    gradients = iter(torch.autograd.grad(connect(*arguments), wanted, g, create_graph=True, allow_unused=True))
    return tuple(next(gradients) if isinstance(value, Tensor) and value.requires_grad else None for value in arguments)


def _turns(*maps: Tensor) -> list[tuple[Tensor, ...]]:
    samples, each = len(maps[0]), max(1, maps[0][:1].numel())
    return [torch.split(tensor, max(1, min(samples, _TURN // each))) for tensor in maps]


def _hyperplanes(
    norm: Tensor, r: Tensor | None, scale: float, c: Curvature
) -> tuple[Tensor, Tensor | None, Tensor | float]:
    """For each output: what a·p is multiplied by, and sinh and cosh of 2√c r."""
    slope = scale * c**0.5 / norm.clamp_min(1e-15)
    if r is None:
        return slope, None, 1.0
    angle = 2 * c**0.5 * r
    return slope * angle.cosh(), angle.sinh(), angle.cosh()


def _argument(p: Tensor, a: Tensor, time: Tensor, slope: Tensor, sinh: Tensor | None) -> Tensor:
    linear = p * slope * a
    return linear if sinh is None else torch.addcmul(linear, 1 + time, sinh, value=-1)


def _time(squared: Tensor) -> Tensor:
    """√(1 + |w|²) − 1."""
    return squared / (1 + (1 + squared).sqrt())


class Add(Operation):
    """Coefficients (α, β) of f and r in log₀(exp₀(f) ⊕ exp₀(r)).

    Args: (a, X₀) of f, (b, Y₀) of r (:class:`Lift`), and P = c⟨f, r⟩.
    """

    @staticmethod
    def forward(a: Tensor, x0: Tensor, b: Tensor, y0: Tensor, product: Tensor) -> tuple[Tensor, Tensor]:
        xy = a * b * product
        factor = lower(x0 + y0 + x0 * y0 + xy)
        return factor * a * (xy / (2 + x0) + 1 + y0), factor * b

    @staticmethod
    def backward(ctx: Any, to_alpha: Tensor, to_beta: Tensor) -> tuple[Tensor, ...]:
        a, x0, b, y0, product = ctx.saved_tensors
        xy = a * b * product
        time = x0 + y0 + x0 * y0 + xy
        factor, boost = lower(time), xy / (2 + x0) + 1 + y0
        to_time = (to_alpha * a * boost + to_beta * b) * lower_slope(time)
        to_boost = to_alpha * factor * a
        to_xy = to_time + to_boost / (2 + x0)
        grad_a = to_alpha * factor * boost + to_xy * b * product
        grad_b = to_beta * factor + to_xy * a * product
        grad_x0 = to_time * (1 + y0) - to_boost * xy / (2 + x0).square()
        grad_y0 = to_time * (1 + x0) + to_boost
        return grad_a, grad_x0, grad_b, grad_y0, to_xy * a * b


class SquaredDistance(Operation):
    """c·d² between points (1 + X₀, aU) and one point (1 + M₀, M), from p = ⟨U, M⟩."""

    @staticmethod
    def forward(a: Tensor, x0: Tensor, p: Tensor, m0: Tensor) -> Tensor:
        return _arcosh(_cosh_less_1(a, x0, p, m0)).square()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, ...]:
        a, x0, p, m0 = ctx.saved_tensors
        less = _cosh_less_1(a, x0, p, m0)
        to_less = 2 * g * _arcosh(less) / (less * (less + 2)).sqrt()
        return -to_less * p, to_less * (1 + m0), -to_less * a, _shaped(to_less * (1 + x0), m0)


def _cosh_less_1(a: Tensor, x0: Tensor, p: Tensor, m0: Tensor) -> Tensor:
    return (x0 + m0 + x0 * m0 - a * p).clamp_min(_TINY)


def _arcosh(less: Tensor) -> Tensor:
    """arcosh(1 + x)."""
    return 2 * arsinh((less / 2).sqrt())


class Recentre(Operation):
    """Coefficients of u, M and Q (times √c, but for u) in what batch normalisation makes of the point of u.

    log at (1 + M₀, M), parallel transport to (1 + Q₀, Q), times s, exp, log at the origin.

    Args: (a, X₀) of u (:class:`Lift`); p = ⟨U, M⟩; q = ⟨U, Q⟩; and without dimensions: M₀, Q₀, K = cosh of the distance
    of M and Q, less 1; s.
    """

    @staticmethod
    def forward(
        a: Tensor, x0: Tensor, p: Tensor, q: Tensor, m0: Tensor, q0: Tensor, k: Tensor, s: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        far = _cosh_less_1(a, x0, p, m0)
        d = _arcosh(far)
        e = (s * d).clamp_max(_LARGEST)
        grow, cosh = e.sinh() / d.sinh(), e.cosh()
        turn = (far + k + far * k - (x0 + q0 + x0 * q0 - a * q)) / (2 + k)
        back = turn - 1 - far
        factor = lower(cosh * (1 + q0) + grow * (1 + x0 + back * (1 + m0) + turn * (1 + q0)) - 1)
        return factor * grow * a, factor * grow * back, factor * (cosh + grow * turn)

    @staticmethod
    def backward(ctx: Any, to_u: Tensor, to_m: Tensor, to_q: Tensor) -> tuple[Tensor, ...]:
        a, x0, p, q, m0, q0, k, s = ctx.saved_tensors
        far = _cosh_less_1(a, x0, p, m0)
        d = _arcosh(far)
        free = s * d < _LARGEST
        e = (s * d).clamp_max(_LARGEST)
        sinh_d, sinh, cosh = d.sinh(), e.sinh(), e.cosh()
        grow = sinh / sinh_d
        turn = (far + k + far * k - (x0 + q0 + x0 * q0 - a * q)) / (2 + k)
        back = turn - 1 - far
        reach = 1 + x0 + back * (1 + m0) + turn * (1 + q0)
        time = cosh * (1 + q0) + grow * reach - 1
        factor = lower(time)
        to_factor = to_u * grow * a + to_m * grow * back + to_q * (cosh + grow * turn)
        to_time = to_factor * lower_slope(time)
        to_grow = factor * (to_u * a + to_m * back + to_q * turn) + to_time * reach
        to_cosh = factor * to_q + to_time * (1 + q0)
        to_turn = factor * grow * (to_m + to_q) + to_time * grow * (2 + m0 + q0)
        zero = torch.zeros_like(far)
        to_far = (
            to_turn * (1 + k) / (2 + k)
            - factor * grow * to_m
            - to_time * grow * (1 + m0)
            + to_grow * _growth_slope(d, e, s, grow, free)
            + to_cosh * torch.where(free, s * grow, zero)
        )
        to_s = torch.where(free, to_grow * d * cosh / sinh_d + to_cosh * d * sinh, zero)
        to_near = -to_turn / (2 + k)
        grad_a = to_u * factor * grow - to_far * p - to_near * q
        grad_x0 = to_time * grow + to_far * (1 + m0) + to_near * (1 + q0)
        grad_m0 = to_time * grow * back + to_far * (1 + x0)
        grad_q0 = to_time * (cosh + grow * turn) + to_near * (1 + x0)
        grad_k = to_turn * (1 + far - turn) / (2 + k)
        return (
            grad_a,
            grad_x0,
            -to_far * a,
            -to_near * a,
            _shaped(grad_m0, m0),
            _shaped(grad_q0, q0),
            _shaped(grad_k, k),
            _shaped(to_s, s),
        )


def _growth_slope(d: Tensor, e: Tensor, s: Tensor, grow: Tensor, free: Tensor) -> Tensor:
    """The derivative of sinh(s d)/sinh(d) by cosh(d)."""
    cosh_d, sinh2 = d.cosh(), d.sinh().square()
    slope = torch.where(free, (s * e.cosh() - grow * cosh_d) / sinh2, -grow * cosh_d / sinh2)
    s2 = s * s
    near = s * ((s2 - 1) / 3 + ((3 * s2 - 10) * s2 / 90 + 7 / 90 - (s2 - 1) / 18) * d.square())
    small = torch.finfo(d.dtype).eps ** (1 / 6)
    return torch.where((d < small) & (e < small), near, slope)


__all__ = ["Add", "Connect", "Lift", "Recentre", "SquaredDistance", "across", "connect", "lower", "lower_slope"]
