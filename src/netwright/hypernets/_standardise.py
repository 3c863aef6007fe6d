"""Standardisation in HyperZ·Z·W (Zhang 2024, arXiv:2401.17948): zero mean and unit variance, nothing learned."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks


def instance_std(input: Tensor) -> Tensor:
    """Zero mean and unit variance for every sample and channel; nothing is learned."""
    return functional.instance_norm(input)


class BatchStd(nn.Module):
    """Zero mean and unit variance for every channel; nothing is learned.

    Without running statistics, which is the method, those of the batch serve in eval mode too.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        channels: int,
        *,
        track_running_stats: bool = False,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.momentum = momentum
        self.track_running_stats = track_running_stats
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.register_buffer("running_mean", torch.zeros(channels, **factory) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(channels, **factory) if track_running_stats else None)

    def reset_parameters(self) -> None:
        """Forget the running statistics."""
        if self.running_mean is not None and self.running_var is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)

    def forward(self, input: Tensor) -> Tensor:
        of_batch = self.training or not self.track_running_stats
        return functional.batch_norm(
            input, self.running_mean, self.running_var, training=of_batch, momentum=self.momentum
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, track_running_stats={self.track_running_stats}"


class GroupBatchInstanceStd(nn.Module):
    """Standardises groups of channels in turn over the batch and over each sample (G-IBS).

    The mean of every channel over the batch is 0 afterwards. Nothing is learned. Without running statistics, which is
    the method, the output for one sample depends on the others of the batch, in eval mode too.

    Args:
        channels: Channels of the input ``(batch, channels, *map)``; divisible by ``groups``.
        groups: Number of groups; even.
        track_running_stats: Standardise over the batch with running statistics in eval mode.
        momentum: Weight of a new batch in these.
        device: Where they are.
        dtype: Their floating-point type.

    Raises:
        InputError: If ``groups`` is odd or does not divide the channels, the input has other channels, or is a single
            sample in training.

    Source:
        arXiv:2401.17948.

    Example:
        >>> y = GroupBatchInstanceStd(24)(5 + torch.randn(4, 24, 8, 8))
        >>> bool(y.mean((0, 2, 3)).abs().max() < 1e-5)
        True
    """

    def __init__(
        self,
        channels: int,
        groups: int = 12,
        *,
        track_running_stats: bool = False,
        momentum: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if groups < 2 or groups % 2:
            checks.fail("groups must be even", groups)
        checks.divisible("channels", channels, "groups", groups)
        self.channels = channels
        self.groups = groups
        self.batch_std = BatchStd(
            channels // 2, track_running_stats=track_running_stats, momentum=momentum, device=device, dtype=dtype
        )

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(batch, channels, length)")
        checks.size("input", input, 1, self.channels)
        check_batch(self, input)
        pairs = input.reshape(len(input), self.groups // 2, 2, -1, *input.shape[2:])
        even = self.batch_std(pairs[:, :, 0].flatten(1, 2))
        odd = instance_std(pairs[:, :, 1].flatten(1, 2))
        return torch.stack((even.view_as(pairs[:, :, 0]), odd.view_as(pairs[:, :, 1])), dim=2).flatten(1, 3)

    def extra_repr(self) -> str:
        return f"{self.channels}, groups={self.groups}"


def check_batch(module: nn.Module, input: Tensor) -> None:
    """Raise InputError for a single sample in training mode."""
    if module.training and len(input) == 1:
        checks.fail("standardisation over the batch needs at least 2 samples in training", "a batch of 1")


__all__ = ["BatchStd", "GroupBatchInstanceStd", "check_batch", "instance_std"]
