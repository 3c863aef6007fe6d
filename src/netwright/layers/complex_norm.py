"""Complex normalisation (Trabelsi et al. 2018, arXiv:1705.09792, section 3.5): whitening of real and imaginary part.

A complex variable with unit variance may still be an ellipse in the plane; these layers multiply by the inverse square
root of the 2×2 covariance of its parts, in closed form. ``whiten=False`` normalises each part for itself: the ablation.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._complex import full_precision, needs_plain_formula, parts
from netwright.layers._complex_norm import BatchNormalise, inverse_sqrt_2x2, normalise, transform, transform_matrix


class _ComplexNorm(nn.Module):
    """Trainable symmetric 2×2 matrix γ (or a scale of each part) and complex shift β; the covariance to γV^{-1/2}."""

    dense_parameters: ClassVar[frozenset[str]] = frozenset({"weight", "bias"})
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        shape: tuple[int, ...],
        eps: float,
        affine: bool,
        whiten: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        checks.positive("eps", eps)
        dtype = None if dtype is None else dtype.to_real()
        self.eps = eps
        self.affine = affine
        self.whiten = whiten
        weight = nn.Parameter(torch.empty(3 if whiten else 2, *shape, device=device, dtype=dtype)) if affine else None
        bias = nn.Parameter(torch.empty(2, *shape, device=device, dtype=dtype)) if affine else None
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """γ is 1/√2 on the diagonal, so that E|y|² = 1, and 0 off it; β is 0."""
        if self.weight is not None and self.bias is not None:
            self.weight.fill_(1 / math.sqrt(2))
            if self.whiten:
                self.weight[1].zero_()
            self.bias.zero_()

    @torch.no_grad()
    def _take_affine(self, norm: nn.Module) -> Self:
        """Start from the scale and shift of ``norm``."""
        if self.weight is not None and self.bias is not None:
            if isinstance(norm.weight, Tensor):
                self.weight.mul_(norm.weight)
            if isinstance(norm.bias, Tensor):
                self.bias[0].copy_(norm.bias)
        return self

    def _rows(self, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None]:
        """γ and β, each of their rows viewed as ``shape``."""
        if self.weight is None or self.bias is None:
            return None, None
        return self.weight.view(-1, *shape), self.bias.view(2, *shape)


def _place(norm: nn.Module) -> dict[str, Any]:
    """Device and type of a layer's parameters."""
    weight = norm.weight
    return {"device": weight.device, "dtype": weight.dtype} if isinstance(weight, Tensor) else {}


class _ComplexBatchNorm(_ComplexNorm):
    """Whitening with the covariance of each channel over the batch, or over past batches in eval mode."""

    layouts: tuple[str, ...]
    running_mean: Tensor | None
    running_cov: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        whiten: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("num_features", num_features, 1)
        if momentum is not None:
            checks.between("momentum", momentum, 0, 1)
        super().__init__((num_features,), eps, affine, whiten, device, dtype)
        self.num_features = num_features
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        real = None if dtype is None else dtype.to_real()
        self.register_buffer("running_mean", None)
        self.register_buffer("running_cov", None)
        self.register_buffer("num_batches_tracked", None)
        if track_running_stats:
            self.running_mean = torch.zeros(2, num_features, device=device, dtype=real)
            self.running_cov = torch.ones(3, num_features, device=device, dtype=real)
            self.running_cov[1].zero_()
            self.num_batches_tracked = torch.zeros((), device=device, dtype=torch.long)

    @classmethod
    def like(cls, norm: nn.Module, *, whiten: bool = True) -> Self:
        """Replace a real batch normalisation: its channels, eps and momentum; γ is its scale / √2, β its shift."""
        sizes = (norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        return cls(*sizes, whiten=whiten, **_place(norm))._take_affine(norm)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        checks.dimensions("input", input, *self.layouts)
        checks.size("input", input, 1, self.num_features)
        dims = (0, *range(2, input.ndim))
        shape = (1, self.num_features, *[1] * (input.ndim - 2))
        weight, bias = self._rows(shape)
        with full_precision(input):
            if not self.training and self.running_mean is not None and self.running_cov is not None:
                mean, v = self.running_mean.view(2, *shape), self.running_cov.view(3, *shape)
                matrix = transform_matrix((v[0], v[1], v[2]), weight, self.eps, self.whiten)
                real, imag = parts(input)
                return transform(real - mean[0], imag - mean[1], matrix, bias)
            samples = input.numel() // self.num_features
            if samples < 2:
                expected = "the covariance of a channel needs at least 2 values"
                checks.fail(expected, f"input of shape {tuple(input.shape)}")
            if needs_plain_formula(input):
                output, mean, v = normalise(input, weight, bias, dims, self.eps, self.whiten)
            else:
                output, mean, v = BatchNormalise.apply(input, weight, bias, self.eps, self.whiten)  # type: ignore[no-untyped-call]
            if self.training:
                self._track(mean.flatten(1), v.flatten(1), samples)
            return output

    @torch.no_grad()
    def _track(self, mean: Tensor, cov: Tensor, samples: int) -> None:
        """Move the running mean and the running (unbiased) covariance towards those of a batch."""
        if self.running_mean is None or self.running_cov is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.detach().to(self.running_mean.dtype), weight)
        unbiased = cov.detach().to(self.running_cov.dtype) * (samples / (samples - 1))
        self.running_cov.lerp_(unbiased, weight)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, whiten={self.whiten}"
        )


class ComplexBatchNorm1d(_ComplexBatchNorm):
    """Whitening of complex ``(batch, channels)`` or ``(batch, channels, length)``; see :class:`ComplexBatchNorm2d`."""

    layouts = ("(batch, channels)", "(batch, channels, length)")


class ComplexBatchNorm2d(_ComplexBatchNorm):
    r"""Whitening of each channel of complex ``(batch, channels, height, width)``, then a trained 2×2 matrix and shift.

    .. math:: y = \gamma\, (V + \epsilon I)^{-1/2} (z - \mu) + \beta

    where z is the vector of real and imaginary part, V the 2×2 covariance of these over batch and pixels, γ symmetric.
    Running mean and (unbiased) covariance serve in eval mode. Parameters: 5 per channel (3 for γ, 2 for β); the 5
    statistics are buffers. Under autocast it stays in full precision.

    Args:
        num_features: Complex channels.
        eps: Added to both variances.
        momentum: Weight of a new batch in the running statistics; ``None``: the mean of all batches.
        affine: Whether there are γ and β.
        track_running_stats: Whether there are running statistics; without them those of the batch serve always.
        whiten: If not, each part is divided by its own deviation, and scaled by itself: 4 parameters per channel.
        device: Of parameters and statistics.
        dtype: Their type; of a complex type the real one.

    Raises:
        InputError: If the input is real, has another shape, or has one value per channel while its own covariance is
            needed.

    Source:
        arXiv:1705.09792, section 3.5. γ starts at 1/√2 on its diagonal as there; complexPyTorch starts it at √2,
        pytorch-complex at 1. The running covariance starts at I.

    Example:
        >>> z = torch.complex(torch.randn(64, 3, 8, 8), 5 * torch.randn(64, 3, 8, 8) + 1)
        >>> y = ComplexBatchNorm2d(3)(z).detach()
        >>> bool(torch.isclose(y.real.var(), y.imag.var(), atol=1e-3)), y.mean().abs().item() < 1e-5
        (True, True)
    """

    layouts = ("(batch, channels, height, width)",)


class ComplexBatchNorm3d(_ComplexBatchNorm):
    """Whitening of complex ``(batch, channels, depth, height, width)``; see :class:`ComplexBatchNorm2d`."""

    layouts = ("(batch, channels, depth, height, width)",)


class ComplexLayerNorm(_ComplexNorm):
    """Whitening of each sample over its last axes; then γ and β of every place, as :class:`ComplexBatchNorm2d`.

    Args:
        normalized_shape: Sizes of the last axes of the complex input ``(*, *normalized_shape)``.
        eps: Added to both variances.
        elementwise_affine: Whether there are γ (3 numbers for each place) and β (2).
        whiten: As in :class:`ComplexBatchNorm2d`.
        device: Of the parameters.
        dtype: Their type; of a complex type the real one.

    Raises:
        InputError: If the input is real, or has another shape.

    Example:
        >>> ComplexLayerNorm(16)(torch.randn(4, 16, dtype=torch.complex64)).shape
        torch.Size([4, 16])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        *,
        whiten: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        if not shape or math.prod(shape) < 2:
            checks.fail("normalized_shape must have at least 2 places", normalized_shape)
        super().__init__(shape, eps, elementwise_affine, whiten, device, dtype)
        self.normalized_shape = shape

    @classmethod
    def like(cls, norm: nn.Module, *, whiten: bool = True) -> Self:
        """Replace a real layer normalisation; γ is its scale / √2, β its shift."""
        sizes = (norm.normalized_shape, norm.eps, norm.elementwise_affine)
        return cls(*sizes, whiten=whiten, **_place(norm))._take_affine(norm)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        if tuple(input.shape[-len(self.normalized_shape) :]) != self.normalized_shape:
            checks.fail(f"input must have shape (*, {', '.join(map(str, self.normalized_shape))})", tuple(input.shape))
        dims = tuple(range(-len(self.normalized_shape), 0))
        with full_precision(input):
            return normalise(input, self.weight, self.bias, dims, self.eps, self.whiten)[0]

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, affine={self.affine}, whiten={self.whiten}"


class ComplexGroupNorm(_ComplexNorm):
    """Whitening of each sample and group of channels; then γ and β of every channel, as :class:`ComplexBatchNorm2d`.

    Args:
        num_groups: Groups of channels.
        num_channels: Channels of the complex input ``(batch, num_channels, *)``.
        eps: Added to both variances.
        affine: Whether there are γ and β.
        whiten: As in :class:`ComplexBatchNorm2d`.
        device: Of the parameters.
        dtype: Their type; of a complex type the real one.

    Raises:
        InputError: If the groups do not divide the channels, or the input is real, has other channels, or has one
            value in each group.

    Example:
        >>> ComplexGroupNorm(2, 16)(torch.randn(4, 16, 5, 5, dtype=torch.complex64)).shape
        torch.Size([4, 16, 5, 5])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        *,
        whiten: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.at_least("num_groups", num_groups, 1)
        checks.divisible("num_channels", num_channels, "num_groups", num_groups)
        super().__init__((num_channels,), eps, affine, whiten, device, dtype)
        self.num_groups = num_groups
        self.num_channels = num_channels

    @classmethod
    def like(cls, norm: nn.Module, *, whiten: bool = True) -> Self:
        """Replace a real group normalisation; γ is its scale / √2, β its shift."""
        sizes = (norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        return cls(*sizes, whiten=whiten, **_place(norm))._take_affine(norm)  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        if input.ndim < 2:
            checks.fail("input must have shape (batch, channels, *)", f"shape {tuple(input.shape)}")
        checks.size("input", input, 1, self.num_channels)
        batch, groups = input.shape[0], self.num_groups
        places = input[0].numel() // groups
        if places < 2:
            expected = "the covariance of a group needs at least 2 values"
            checks.fail(expected, f"input of shape {tuple(input.shape)} in {groups} groups")
        with full_precision(input):
            grouped = input.reshape(batch, groups, self.num_channels // groups, -1)
            weight, bias = self._rows((1, groups, self.num_channels // groups, 1))
            return normalise(grouped, weight, bias, (2, 3), self.eps, self.whiten)[0].view(input.shape)

    def extra_repr(self) -> str:
        return f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, whiten={self.whiten}"


__all__ = [
    "ComplexBatchNorm1d",
    "ComplexBatchNorm2d",
    "ComplexBatchNorm3d",
    "ComplexGroupNorm",
    "ComplexLayerNorm",
    "inverse_sqrt_2x2",
]
