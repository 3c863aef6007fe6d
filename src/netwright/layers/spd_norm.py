"""Batch normalisation of SPD matrices under the generalised Bures-Wasserstein metric (2025, arXiv:2504.00660).

:class:`GBWBatchNorm` learns the metric that it normalises with; :class:`AIRMBatchNorm` (affine-invariant) and
:class:`LEMBatchNorm` (log-Euclidean) do the same under the metrics that it is compared with.
"""

from collections.abc import Callable
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._spd_eigen import can_read, multiply, spectral, symmetric
from netwright.layers.spd import ROUNDING, airm_geodesic, check_positive, check_square

VarAbout = Literal["mean", "identity"]

# eigenvalues of the last transport map are kept above it: where they are not positive, Exp is not defined
_BOUNDARY = 1e-3


class _SPDBatchNorm(nn.Module):
    """What the three have: W, s, running mean and variance; pooling over batch and, with one channel, over channels."""

    dense_parameters: ClassVar[tuple[str, ...]] = ("weight", "metric")
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        n: int,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        channels: int = 1,
        detach_statistics: bool = True,
        free: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        checks.at_least("n", n, 1)
        checks.at_least("channels", channels, 1)
        checks.between("momentum", momentum, 0, 1)
        checks.positive("eps", eps)
        self.n, self.channels, self.momentum, self.eps = n, channels, momentum, eps
        self.detach_statistics = detach_statistics
        self.free = free
        self.manifolds = {} if free else {"weight": "spd"}
        self.weight = self._point_parameter(device, dtype)
        self.scale = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))
        eye = torch.eye(n, device=device, dtype=torch.float64).expand(channels, n, n).clone()
        self.register_buffer("running_mean", eye)
        self.register_buffer("running_var", torch.ones(channels, device=device, dtype=dtype))

    def _point_parameter(self, device: torch.device | str | None, dtype: torch.dtype) -> nn.Parameter:
        """The identity: itself, or its logarithm where the parameter is free."""
        first = torch.zeros(self.n, self.n, device=device, dtype=dtype)
        if not self.free:
            first = torch.eye(self.n, device=device, dtype=dtype)
        return nn.Parameter(first.expand(self.channels, self.n, self.n).clone())

    def _point(self, parameter: nn.Parameter) -> Tensor:
        if self.free:
            return spectral(symmetric(parameter.double()), ("exp", 0.0))[0]
        point = symmetric(parameter.double())
        if can_read(point):
            advice = "parameters of a layer that is not free (train them with MixedRiemannianSGD)"
            check_positive(advice, torch.linalg.eigvalsh(point.detach()))
        return point

    def forward(self, input: Tensor) -> Tensor:
        check_square("input", input, self.n)
        checks.dimensions("input", input, "(batch, channels, n, n)")
        x = symmetric(input.double())
        if self.channels == 1:
            x = x.flatten(0, 1).unsqueeze(1)
        else:
            checks.size("input", input, 1, self.channels)
        if self.training and len(x) < 2:
            expected = "batch statistics in training need at least 2 matrices"
            checks.fail(expected, f"input of shape {tuple(input.shape)}")
        return self._normalise(x).reshape(input.shape).to(input.dtype)

    def _normalise(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _factor(self, variance: Tensor) -> Tensor:
        """The factor s / √(variance + ε), for matrices."""
        return (self.scale.double() / (variance + self.eps).sqrt()).view(-1, 1, 1)

    def _statistic(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if self.detach_statistics else tensor

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        self.running_mean.copy_(mean)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Leave the running mean in float64 where all else becomes float32 or less: its small eigenvalues would go."""
        mean = self.running_mean

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if tensor is mean and moved.dtype != tensor.dtype else moved

        super()._apply(keep, recurse)  # type: ignore[no-untyped-call]
        return self

    def extra_repr(self) -> str:
        return f"{self.n}, channels={self.channels}, momentum={self.momentum}, eps={self.eps}, free={self.free}"


class GBWBatchNorm(_SPDBatchNorm):
    r"""Batch normalisation under the generalised Bures-Wasserstein metric, with a learned matrix M of the metric.

    With :math:`Y_i = M^{-1/2} X_i^\theta M^{-1/2}`, G the Bures-Wasserstein mean of the batch (one iteration, as
    released) and :math:`T_i` the transport map from G to :math:`Y_i` (:math:`T_i G T_i = Y_i`):

    .. math::
        V_i &= \Gamma_{G \to I}(\operatorname{Log}_G Y_i), \qquad v^2 = \frac{1}{4 \theta^2 N} \sum_i \|V_i\|^2 \\
        Z_i &= \operatorname{Exp}_{W'}\Bigl(\Gamma_{I \to W'}\bigl(\frac{s}{\sqrt{v^2 + \epsilon}} V_i\bigr)\Bigr),
        \qquad W' = M^{-1/2} W^\theta M^{-1/2}

    and the output is :math:`(M^{1/2} Z_i M^{1/2})^{1/\theta}`. The exponential and the logarithm at I that stand
    between centring, scaling and bias in the paper undo each other, so the layer stays in the tangent space at I. Where
    a scaled vector leads out of the domain of the last exponential map (I + L is not positive definite there), the
    eigenvalues of I + L are raised to 10⁻³; the released code squares them, so that what lies far below the mean lands
    above it. Three eigendecompositions of the batch in training, two in eval; two more where θ is not 1.

    Args:
        n: Size of the matrices of the input ``(batch, channels, n, n)``; the output has the same shape.
        power: θ, the power deformation; not 0.
        learn_metric: Whether M is a parameter; else it is I.
        momentum: How far the running mean moves along the geodesic to that of a new batch, and its weight in the
            running variance.
        eps: Added to the variance.
        channels: 1 for statistics, W, M and s that all channels share, as released; else the number of channels, each
            with its own.
        var_about: What the variance is measured from: the mean, or, as the released code does, the identity, of the
            matrices before centring.
        detach_statistics: Whether gradients pass by the mean and the variance of the batch, as released.
        free: Whether ``weight`` and ``metric`` are symmetric matrices whose exponentials are W and M, so that the layer
            trains with any optimiser; otherwise they are W and M, and stay positive definite only with
            :class:`netwright.training.riemannian.MixedRiemannianSGD`.
        device: Of parameters and statistics.
        dtype: Of parameters and running variance; all is computed, and the running mean kept, in float64.

    Raises:
        InputError: If θ is 0; if the input is not symmetric up to 10⁻⁶ of its largest entry, not positive definite (the
            message names the eigenvalue), of another size, or a single matrix in training.

    Source:
        arXiv:2504.00660, algorithm 1. The running mean is kept as a matrix of the input space, so that it stays what it
        is while M is learned; the released code keeps it after the congruence by the M of the time.

    Example:
        >>> layer = GBWBatchNorm(3)
        >>> a = torch.randn(8, 1, 3, 6, dtype=torch.float64)
        >>> layer(a @ a.mT).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([8, 1, 3, 3]), 19)
    """

    metric: nn.Parameter | None

    def __init__(
        self,
        n: int,
        power: float = 1.0,
        learn_metric: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        channels: int = 1,
        var_about: VarAbout = "mean",
        detach_statistics: bool = True,
        free: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(
            n,
            momentum,
            eps,
            channels=channels,
            detach_statistics=detach_statistics,
            free=free,
            device=device,
            dtype=dtype,
        )
        if power == 0:
            checks.fail("power must not be 0", power)
        checks.known("var_about", var_about, get_args(VarAbout))
        self.power = float(power)
        self.var_about = var_about
        self.register_parameter("metric", self._point_parameter(device, dtype) if learn_metric else None)
        if learn_metric and not free:
            self.manifolds["metric"] = "spd"

    def _normalise(self, x: Tensor) -> Tensor:
        root = inverse = None
        if self.metric is not None:
            root, inverse, _ = spectral(self._point(self.metric), ("sqrt", 0.0), ("inv_sqrt", 0.0))
        y = self._enter(x, inverse, "input")
        weight = self._enter(self._point(self.weight), inverse, "weight")
        mean = self._batch_mean(y) if self.training else self._enter(self.running_mean, inverse, "running_mean")
        eye = torch.eye(self.n, dtype=x.dtype, device=x.device)
        transport, values = _map(mean, y)
        _check_input(values, x)
        tangent = multiply(mean, transport - eye, "map to tangent")
        if self.training:
            variance = self._variance(y, tangent, eye)
            with torch.no_grad():
                running = self._enter(self.running_mean, inverse, "running_mean")
                moved = (1 - self.momentum) * eye + self.momentum * _map(running, mean)[0]
                self._update(self._leave(moved @ running @ moved, root), variance)
        else:
            variance = self.running_var.double()
        moved = _in_domain(eye + multiply(weight, self._factor(variance) * tangent, "tangent to map"))
        return self._leave(moved @ weight @ moved.mT, root)

    def _enter(self, x: Tensor, inverse: Tensor | None, name: str) -> Tensor:
        """M^{−1/2} X^θ M^{−1/2}."""
        if self.power != 1:
            x, values = spectral(x, ("power", self.power))
            check_positive(name, values)
        return x if inverse is None else inverse @ x @ inverse

    def _leave(self, y: Tensor, root: Tensor | None) -> Tensor:
        """(M^{1/2} Y M^{1/2})^{1/θ}."""
        y = symmetric(y if root is None else root @ y @ root)
        return y if self.power == 1 else spectral(y, ("power", 1 / self.power), floor=ROUNDING)[0]

    def _batch_mean(self, y: Tensor) -> Tensor:
        """One iteration towards the mean, from the arithmetic mean."""
        y = self._statistic(y)
        root, inverse, values = spectral(y.mean(0), ("sqrt", 0.0), ("inv_sqrt", 0.0), floor=ROUNDING)
        check_positive("input", values)
        half = inverse @ spectral(root @ y @ root, ("sqrt", 0.0), floor=ROUNDING)[0].mean(0)
        return half @ half.mT

    def _variance(self, y: Tensor, tangent: Tensor, eye: Tensor) -> Tensor:
        if self.var_about == "mean":
            differences = self._statistic(tangent) / 2
        else:
            differences = spectral(self._statistic(y), ("sqrt", 0.0), floor=ROUNDING)[0] - eye
        return differences.square().sum((-2, -1)).mean(0) / self.power**2

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, power={self.power}, learn_metric={self.metric is not None}"


class AIRMBatchNorm(_SPDBatchNorm):
    r"""Batch normalisation under the affine-invariant metric; arguments as :class:`GBWBatchNorm`.

    .. math:: W^{1/2} \exp\Bigl(\tfrac{s}{\sqrt{v^2 + \epsilon}} \log(G^{-1/2} X_i G^{-1/2})\Bigr) W^{1/2}

    with G one step of the Karcher flow from the arithmetic mean. n² + 1 parameters a channel.

    Source:
        Brooks, Schwander, Barbaresco, Schneider, Cord 2019, arXiv:1909.02414; the scale as in Chen, Song, Liu, Sebe
        2024, arXiv:2403.11261.

    Example:
        >>> a = torch.randn(8, 1, 3, 6, dtype=torch.float64)
        >>> AIRMBatchNorm(3)(a @ a.mT).shape
        torch.Size([8, 1, 3, 3])
    """

    def _normalise(self, x: Tensor) -> Tensor:
        mean = self._batch_mean(x) if self.training else self.running_mean
        (inverse, _) = spectral(mean, ("inv_sqrt", 0.0), floor=ROUNDING)
        logs = _log(inverse @ x @ inverse, x)
        if self.training:
            variance = self._statistic(logs).square().sum((-2, -1)).mean(0)
            with torch.no_grad():
                self._update(airm_geodesic(self.running_mean, mean, self.momentum), variance)
        else:
            variance = self.running_var.double()
        root, _ = spectral(self._point(self.weight), ("sqrt", 0.0))
        scaled, _ = spectral(self._factor(variance) * logs, ("exp", 0.0))
        return symmetric(root @ scaled @ root)

    def _batch_mean(self, x: Tensor) -> Tensor:
        x = self._statistic(x)
        root, inverse, values = spectral(x.mean(0), ("sqrt", 0.0), ("inv_sqrt", 0.0), floor=ROUNDING)
        check_positive("input", values)
        step = spectral(inverse @ x @ inverse, ("log", 0.0), floor=ROUNDING)[0].mean(0)
        return symmetric(root @ spectral(step, ("exp", 0.0))[0] @ root)


class LEMBatchNorm(_SPDBatchNorm):
    r"""Batch normalisation under the log-Euclidean metric; arguments as :class:`AIRMBatchNorm`.

    .. math:: \exp\Bigl(\tfrac{s}{\sqrt{v^2 + \epsilon}} (\log X_i - \operatorname{mean}_j \log X_j) + \log W\Bigr)

    Source:
        Chen, Song, Liu, Sebe 2024, arXiv:2403.11261.

    Example:
        >>> a = torch.randn(8, 1, 3, 6, dtype=torch.float64)
        >>> LEMBatchNorm(3)(a @ a.mT).shape
        torch.Size([8, 1, 3, 3])
    """

    def _normalise(self, x: Tensor) -> Tensor:
        logs = _log(x, x)
        if self.training:
            mean = self._statistic(logs).mean(0)
            logs = logs - mean
            variance = self._statistic(logs).square().sum((-2, -1)).mean(0)
            with torch.no_grad():
                running, _ = spectral(self.running_mean, ("log", 0.0), floor=ROUNDING)
                self._update(spectral(running.lerp(mean, self.momentum), ("exp", 0.0))[0], variance)
        else:
            logs = logs - spectral(self.running_mean, ("log", 0.0), floor=ROUNDING)[0]
            variance = self.running_var.double()
        bias, _ = spectral(self._point(self.weight), ("log", 0.0))
        return spectral(self._factor(variance) * logs + bias, ("exp", 0.0))[0]


def _map(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The transport map from X to Y, and the eigenvalues of X^{1/2} Y X^{1/2}."""
    root, inverse, _ = spectral(x, ("sqrt", 0.0), ("inv_sqrt", 0.0), floor=ROUNDING)
    middle, values = spectral(root @ y @ root, ("sqrt", 0.0), floor=ROUNDING)
    return inverse @ middle @ inverse, values


def _in_domain(moved: Tensor) -> Tensor:
    """Raise eigenvalues of I + L below the boundary; a Cholesky factor tells sooner than they do if there are any."""
    if can_read(moved):
        low = _BOUNDARY * torch.eye(moved.shape[-1], dtype=moved.dtype, device=moved.device)
        if not torch.linalg.cholesky_ex(moved.detach() - low).info.any():
            return moved
    return spectral(moved, ("clamp", _BOUNDARY))[0]


def _log(product: Tensor, x: Tensor) -> Tensor:
    logs, values = spectral(product, ("log", 0.0), floor=ROUNDING)
    _check_input(values, x)
    return logs


def _check_input(values: Tensor, x: Tensor) -> None:
    """Check X through the eigenvalues of A X A, which have the signs of those of X but for rounding."""
    if can_read(values) and not (values > 0).all():
        check_positive("input", torch.linalg.eigvalsh(x.detach()))


__all__ = ["AIRMBatchNorm", "GBWBatchNorm", "LEMBatchNorm", "VarAbout"]
