"""Batch normalisation in the Poincaré ball (van Spengler et al. 2023, arXiv:2303.14027): midpoint, variance, transport.

:class:`PoincareBatchNorm` for vectors, :class:`PoincareBatchNorm2d` for the channels of pictures.
"""

from contextlib import nullcontext
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._hyperbolic import Curvature, SquaredNorm, boundary_margin, run, run_several
from netwright.layers._hyperboloid import Lift, Recentre, SquaredDistance, across
from netwright.layers.hyperbolic import PoincareBall

Mean = Literal["midpoint", "frechet"]


class PoincareBatchNorm(nn.Module):
    r"""Batch normalisation of tangent vectors ``(batch, features[, length])`` at the origin, by the ball's geometry.

    The points exp₀(input) have the mean m, their gyromidpoint, and the variance σ², the mean of their squared distances
    to m. They move so that the mean becomes a learned point q and the variance a learned number v:

    .. math:: \text{output} = \log_0 \exp_q\Bigl(\sqrt{\frac{v}{\sigma^2 + \epsilon}}\;
        \mathrm{PT}_{m \to q} \log_m \exp_0(\text{input})\Bigr)

    In eval mode m and σ² are running values: the running point moves along the geodesic towards the midpoint of each
    batch. Parameters: features + 1, the tangent vector of q at the origin and v, no points of the ball.

    Args:
        features: Size of the vectors.
        ball: The ball; of curvature −1 if not given.
        mean: ``"midpoint"``, or ``"frechet"``: the point with the least variance, by iteration, many times slower.
        eps: ε, added to the variance.
        momentum: Weight of the newest batch in the running values.
        use_batch_stats: Whether to use the batch's own mean and variance in eval mode also, as the authors' code does,
            which keeps running values but does not use them.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If ``features`` is below 1, ``mean`` is unknown, ``eps`` or ``momentum`` is out of range, or the
            input has another shape.

    Source:
        arXiv:2303.14027, section 3; with the Fréchet mean: Lou et al. 2020, arXiv:2003.00335.

    Example:
        >>> ball = PoincareBall(c=0.1)
        >>> x = PoincareBatchNorm(4, ball, "frechet")(torch.randn(100, 4) + 1)
        >>> points = ball.expmap0(x)
        >>> mean = ball.frechet_mean(points)
        >>> bool(mean.norm() < 1e-3), round(ball.dist(points, mean, squared=True).mean().item(), 2)
        (True, 1.0)
    """

    def __init__(
        self,
        features: int,
        ball: PoincareBall | None = None,
        mean: Mean = "midpoint",
        *,
        eps: float = 1e-6,
        momentum: float = 0.1,
        use_batch_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("features", features, 1)
        checks.known("mean", mean, get_args(Mean))
        checks.positive("eps", eps)
        checks.between("momentum", momentum, 0, 1)
        self.features = features
        self.ball = PoincareBall() if ball is None else ball
        self.mean: Mean = mean
        self.eps = eps
        self.momentum = momentum
        self.use_batch_stats = use_batch_stats
        self.bias = nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.ones((), device=device, dtype=dtype))
        self.running_mean: Tensor
        self.running_var: Tensor
        self.register_buffer("running_mean", torch.zeros(features, device=device, dtype=dtype))
        self.register_buffer("running_var", torch.ones((), device=device, dtype=dtype))

    @classmethod
    def like(
        cls,
        norm: nn.BatchNorm1d | nn.BatchNorm2d,
        ball: PoincareBall | None = None,
        mean: Mean = "midpoint",
    ) -> Self:
        """Replace ``norm``: the same features and momentum; a new mean and variance."""
        momentum = 0.1 if norm.momentum is None else norm.momentum
        reference = norm.running_mean if norm.weight is None else norm.weight
        place = {} if reference is None else {"device": reference.device, "dtype": reference.dtype}
        return cls(
            norm.num_features,
            ball,
            mean,
            momentum=momentum,
            use_batch_stats=not norm.track_running_stats,
            **place,  # type: ignore[arg-type]
        )

    def reset_parameters(self) -> None:
        """Start anew: mean at the origin, variance 1."""
        with torch.no_grad():
            self.bias.zero_()
            self.weight.fill_(1)
            self.running_mean.zero_()
            self.running_var.fill_(1)

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, features)", "(batch, features, length)")
        checks.size("input", input, 1, self.features)
        if input.ndim == 3:
            return self._normalised(input)
        return self._normalised(input.T.unsqueeze(0)).squeeze(0).T

    def _normalised(self, input: Tensor) -> Tensor:
        """``(batch, features, places)``: every place of every sample is a point."""
        kind = input.dtype
        u = input.float() if kind in (torch.float16, torch.bfloat16) else input
        c, written = self.ball.c, self.ball.written
        # a mean of points needs more digits than bfloat16 has
        with nullcontext() if u.is_meta else torch.autocast(u.device.type, enabled=False):
            a, x0 = run_several(Lift, written, c * run(SquaredNorm, written, u, 1))
            q, q0 = self._learned_mean(u.dtype)
            own = self.training or self.use_batch_stats
            m, m0 = self._mean_of(u, a, x0) if own else _to_hyperboloid(self.running_mean.to(u.dtype), c)
            means = torch.stack([m, q])
            p, g = torch.split(across(means * c**0.5, u), 1, dim=1)
            if own:
                variance = run(SquaredDistance, written, a, x0, p, m0).mean() / c
                if self.training:
                    self._follow(m, m0, variance)
            else:
                variance = self.running_var.to(u.dtype)
            # a step of an optimiser may make the learned variance negative
            scale = (self.weight.to(u.dtype).clamp_min(self.eps) / (variance + self.eps)).sqrt()
            between = m0 + q0 + m0 * q0 - m @ q
            along_u, *rest = run_several(Recentre, written, a, x0, p, g, m0, q0, between, scale)
            output = along_u * u + across(means.T / c**0.5, torch.cat(rest, 1))
        return output.to(kind)

    def _learned_mean(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        bias = self.bias.to(dtype)
        c = self.ball.c
        a, time = run_several(Lift, self.ball.written, c * bias.square().sum())
        return a * c**0.5 * bias, time

    def _mean_of(self, u: Tensor, a: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of the points, on the hyperboloid."""
        if self.mean == "frechet":
            points = self.ball.expmap0(u, dim=1)
            return _to_hyperboloid(self.ball.frechet_mean(points, dim=1, over=(0, 2)), self.ball.c)
        total = (u @ a.transpose(1, 2)).sum((0, 2)) * self.ball.c**0.5
        return _centroid(total, x0.sum() + x0.numel())

    def _follow(self, m: Tensor, m0: Tensor, variance: Tensor) -> None:
        with torch.no_grad():
            c = self.ball.c
            old, old0 = _to_hyperboloid(self.running_mean.to(m.dtype), c)
            share = self.momentum
            new, new0 = _centroid((1 - share) * old + share * m, 1 + (1 - share) * old0 + share * m0)
            point = new / (2 + new0) / c**0.5
            largest = (1 - boundary_margin(m.dtype)) / c**0.5
            self.running_mean.copy_(point * (largest / point.norm().clamp_min(1e-15)).clamp_max(1))
            self.running_var.lerp_(variance.to(self.running_var.dtype), share)

    def extra_repr(self) -> str:
        return f"{self.features}, mean={self.mean!r}, eps={self.eps:g}, momentum={self.momentum:g}"


class PoincareBatchNorm2d(PoincareBatchNorm):
    """:class:`PoincareBatchNorm` of the channels of ``(batch, channels, height, width)``: each pixel is a point.

    Example:
        >>> PoincareBatchNorm2d(8, PoincareBall(c=0.1))(torch.randn(2, 8, 5, 5)).shape
        torch.Size([2, 8, 5, 5])
    """

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        checks.size("input", input, 1, self.features)
        return self._normalised(input.flatten(2)).view_as(input)


def _to_hyperboloid(point: Tensor, c: Curvature) -> tuple[Tensor, Tensor]:
    """(M, M₀) of one point of the ball."""
    squared = c * point.square().sum()
    return 2 * c**0.5 / (1 - squared) * point, 2 * squared / (1 - squared)


def _centroid(total: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """The point (M, M₀) of the hyperboloid in the direction of a sum of its points: their midpoint."""
    m = total / (time.square() - total.square().sum()).clamp_min(1e-15).sqrt()
    squared = m.square().sum()
    return m, squared / (1 + (1 + squared).sqrt())


__all__ = ["Mean", "PoincareBatchNorm", "PoincareBatchNorm2d"]
