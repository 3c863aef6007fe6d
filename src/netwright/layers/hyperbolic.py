"""The Poincaré ball (Ganea et al. 2018, arXiv:1805.09112; van Spengler et al. 2023, arXiv:2303.14027): its operations.

Each of :class:`PoincareBall` has its backward written by hand and keeps only its arguments for it. The layers are in
:mod:`netwright.layers.hyperbolic_layers` and :mod:`netwright.layers.hyperbolic_norm`.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers import _hyperbolic as operations
from netwright.layers._hyperbolic import Curvature, boundary_margin, dot, run

Backward = Literal["written", "autograd"]


class PoincareBall(nn.Module):
    r"""The ball :math:`\{x : \sqrt c\,|x| < 1\}` with the metric :math:`\lambda_x^2\,dx^2`, λ_x = 2/(1 − c|x|²).

    Vectors lie along ``dim`` of tensors of any shape, channels of pictures as well (``dim=1``); arguments of one
    operation broadcast. What gives a point projects it to radius (1 − ε)/√c, ε = 0.004 (10⁻⁵ in float64), where float32
    still tells its distance to the boundary. Half precision is computed and returned in float32, as its
    numbers below 1 are too few for points near the boundary.

    Args:
        c: Minus the curvature.
        learnable: Whether c is learned; then it is the softplus of a parameter, and starts at ``c``.
        check: Whether the methods refuse points that are not in the ball; it costs a look at every point.
        backward: ``"written"`` keeps only the arguments of each operation for its backward, ``"autograd"`` lets torch
            differentiate the formulas, which keeps all that is between.

    Raises:
        InputError: If ``c`` is not positive, or with ``check``, a point is not in the ball.

    Source:
        The operations: arXiv:1805.09112, section 2; hand-written backwards: arXiv:2303.14027, section 3. In the
        authors' code, the gradient of c of the Möbius addition has a term upside down; here it is the derivative.

    Example:
        >>> ball = PoincareBall(c=1.0)
        >>> x, y = ball.expmap0(torch.tensor([[0.3, 0.0], [0.0, 2.0]]))
        >>> ball.dist(x, y), torch.allclose(ball.mobius_add(-x, ball.mobius_add(x, y)), y, atol=1e-5)
        (tensor(4.1702), True)
    """

    def __init__(
        self, c: float = 1.0, learnable: bool = False, *, check: bool = False, backward: Backward = "written"
    ) -> None:
        super().__init__()
        checks.positive("c", c)
        checks.known("backward", backward, get_args(Backward))
        self.learnable = learnable
        self.check = check
        self.backward: Backward = backward
        self._c = float(c)
        # the inverse of softplus, so that c starts where it was asked to
        self.raw_c = nn.Parameter(torch.tensor(c + math.log(-math.expm1(-c)))) if learnable else None

    @property
    def c(self) -> Curvature:
        """Minus the curvature: a number, or a tensor with gradient if it is learned."""
        return self._c if self.raw_c is None else functional.softplus(self.raw_c)

    @property
    def written(self) -> bool:
        """Whether the backwards are the hand-written ones."""
        return self.backward == "written"

    def project(self, x: Tensor, dim: int = -1) -> Tensor:
        """The nearest point within radius (1 − ε)/√c."""
        x = _wide(x)
        return run(operations.Project, self.written, x, self.c, dim, boundary_margin(x.dtype))

    def mobius_add(self, x: Tensor, y: Tensor, dim: int = -1) -> Tensor:
        r"""Möbius addition x ⊕ y, the ball's addition of vectors; neither commutative nor associative.

        .. math:: x \oplus y = \frac{(1 + 2c\langle x, y\rangle + c|y|^2)\,x + (1 - c|x|^2)\,y}
            {1 + 2c\langle x, y\rangle + c^2|x|^2|y|^2}
        """
        x, y = self._points(x, dim), self._points(y, dim)
        return run(operations.MobiusAdd, self.written, x, y, self.c, dim, boundary_margin(x.dtype))

    def expmap0(self, v: Tensor, dim: int = -1) -> Tensor:
        """Exponential map at the origin: tanh(√c|v|) v / (√c|v|), at distance λ₀|v| = 2|v| from it."""
        v = _wide(v)
        return run(operations.ExpMap0, self.written, v, self.c, dim, boundary_margin(v.dtype))

    def logmap0(self, y: Tensor, dim: int = -1) -> Tensor:
        """The tangent vector at the origin that :meth:`expmap0` takes to y."""
        return run(operations.LogMap0, self.written, self._points(y, dim), self.c, dim)

    def expmap(self, x: Tensor, v: Tensor, dim: int = -1) -> Tensor:
        """The point that the geodesic from x with velocity v reaches at time 1."""
        x, v = self._points(x, dim), _wide(v)
        return run(operations.ExpMap, self.written, x, v, self.c, dim, boundary_margin(x.dtype))

    def logmap(self, x: Tensor, y: Tensor, dim: int = -1) -> Tensor:
        """The tangent vector at x that :meth:`expmap` takes to y."""
        return self._log(self._points(x, dim), self._points(y, dim), dim)

    def gyration(self, u: Tensor, v: Tensor, w: Tensor, dim: int = -1) -> Tensor:
        """gyr[u, v] w = −(u ⊕ v) ⊕ (u ⊕ (v ⊕ w)): the rotation by which Möbius addition fails to be associative."""
        u, v = self._points(u, dim), self._points(v, dim)
        return run(operations.Gyrate, self.written, u, v, _wide(w), self.c, dim, False)

    def transp(self, x: Tensor, y: Tensor, v: Tensor, dim: int = -1) -> Tensor:
        """Parallel transport of the tangent vector v at x to y, along the geodesic: gyr[y, −x] v λ_x/λ_y."""
        x, y = self._points(x, dim), self._points(y, dim)
        return run(operations.Gyrate, self.written, y, x, _wide(v), self.c, dim, True)

    def dist(self, x: Tensor, y: Tensor, dim: int = -1, *, keepdim: bool = False, squared: bool = False) -> Tensor:
        """Length of the geodesic from x to y; its square has a gradient also where x = y."""
        x, y = self._points(x, dim), self._points(y, dim)
        distance = run(operations.Distance, self.written, x, y, self.c, dim, squared)
        return distance if keepdim else distance.squeeze(dim)

    def midpoint(
        self,
        x: Tensor,
        weights: Tensor | None = None,
        *,
        dim: int = -1,
        over: int | Sequence[int] = 0,
        keepdim: bool = False,
    ) -> Tensor:
        r"""Gyromidpoint of points, the mean of the hyperboloid: closed, and near to the Fréchet mean.

        .. math:: m = \frac{m'}{1 + \sqrt{1 - c|m'|^2}}, \quad m' = \frac{\sum_i w_i\gamma_i^2\, x_i}
            {\sum_i w_i(\gamma_i^2 - \tfrac12)}, \quad \gamma_i^2 = \frac1{1 - c|x_i|^2}

        Args:
            x: Points along ``dim``.
            weights: Of the shape of ``x`` with size 1 along ``dim``, or broadcast to that; not negative; all 1 if not
                given.
            dim: Where the coordinates are.
            over: The dimensions of which the mean is taken.
            keepdim: Whether these stay with size 1.
        """
        x, axes = self._points(x, dim), self._axes(x, dim, over)
        weights = None if weights is None else weights.expand([1 if i == dim % x.ndim else n for i, n in _sizes(x)])
        mean = self.project(operations.weighted_midpoint(x, weights, self.c, dim, axes), dim)
        return mean if keepdim else mean.squeeze(axes)

    def frechet_mean(
        self,
        x: Tensor,
        *,
        dim: int = -1,
        over: int | Sequence[int] = 0,
        keepdim: bool = False,
        tolerance: float | None = None,
        max_steps: int = 1000,
    ) -> Tensor:
        """The point with the least sum of squared distances to x, by iteration (Lou et al. 2020, arXiv:2003.00335).

        Its gradient is that of the equation Σᵢ log_m(xᵢ) = 0 which it solves, and keeps nothing of the iteration; it is
        not itself differentiable.

        Args:
            x: Points along ``dim``.
            dim: Where the coordinates are.
            over: The dimensions of which the mean is taken.
            keepdim: Whether these stay with size 1.
            tolerance: The iteration ends when no coordinate moves by more, in units of 1/√c; 10⁻⁶, or 10⁻¹² in float64,
                if not given.
            max_steps: The most iterations.
        """
        checks.at_least("max_steps", max_steps, 1)
        x, axes, c = self._points(x, dim), self._axes(x, dim, over), self.c
        if tolerance is None:
            tolerance = 1e-12 if x.dtype == torch.float64 else 1e-6
        mean = operations.frechet_point(x, c, dim, axes, tolerance, max_steps)
        if torch.is_grad_enabled() and (x.requires_grad or isinstance(c, Tensor)):
            mean = mean + self._newton_step(mean, x, dim, axes)
        mean = self.project(mean, dim)
        return mean if keepdim else mean.squeeze(axes)

    def _newton_step(self, mean: Tensor, x: Tensor, dim: int, axes: tuple[int, ...]) -> Tensor:
        """H⁻¹ Σ log_m(xᵢ), which is 0; its derivative is that of the mean. H: half the Hessian of the squares' sum."""
        logs = self._log(mean, x, dim)
        with torch.no_grad():
            log, c = logs.detach().movedim(dim, -1), self._number()
            spots = mean.movedim(dim, -1)
            length = torch.linalg.vector_norm(log, dim=-1, keepdim=True).clamp_min(1e-15)
            angle = (2 * c**0.5 * length / (1 - c * dot(spots, spots, -1))).clamp_min(1e-15)
            across = angle / angle.tanh()
            unit = log / length
            kept = tuple(axis - (axis > dim % x.ndim) for axis in axes)
            # points first, then those dimensions that have a mean each, then coordinates
            unit, across = (t.movedim(kept, tuple(range(len(kept)))).flatten(0, len(kept) - 1) for t in (unit, across))
            hessian = torch.einsum("n...i,n...j->...ij", (1 - across) * unit, unit)
            hessian += torch.diag_embed(across.sum(0).expand(hessian.shape[:-1]))
        step = logs.sum(axes, keepdim=True).movedim(dim, -1)
        solved: Tensor = torch.linalg.solve(hessian, step.squeeze(kept))
        return solved.reshape(step.shape).movedim(-1, dim)

    def _log(self, x: Tensor, y: Tensor, dim: int) -> Tensor:
        return run(operations.LogMap, self.written, x, y, self.c, dim)

    def _points(self, x: Tensor, dim: int) -> Tensor:
        x = _wide(x)
        if self.check and x.numel():
            radius = torch.linalg.vector_norm(x.detach(), dim=dim).max().item() * self._number() ** 0.5
            if not radius < 1:
                checks.fail("points must be inside of the ball, √c·|x| < 1", f"√c·|x| = {radius:.6g}")
        return x

    def _axes(self, x: Tensor, dim: int, over: int | Sequence[int]) -> tuple[int, ...]:
        axes = tuple(sorted(axis % x.ndim for axis in ([over] if isinstance(over, int) else over)))
        if not axes or dim % x.ndim in axes:
            checks.fail(f"over must name dimensions other than that of the coordinates ({dim})", over)
        return axes

    def _number(self) -> float:
        return self.c.item() if isinstance(self.c, Tensor) else self.c

    def extra_repr(self) -> str:
        return f"c={self._number():g}, learnable={self.learnable}" + ("" if self.written else ", backward='autograd'")


def _sizes(x: Tensor) -> list[tuple[int, int]]:
    return list(enumerate(x.shape))


def _wide(x: Tensor) -> Tensor:
    checks.floating_point("vectors", x)
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


__all__ = ["Backward", "PoincareBall"]
