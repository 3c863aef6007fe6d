"""HyperZ·Z·W (Zhang 2024, arXiv:2401.17948): kernels written by slow networks meet the feature map, twice.

:func:`hyperzzw_global` and :class:`HyperZZWLocal` are the operators; :class:`SlowNetGlobal`, :class:`SlowNetChannel`
and :class:`SlowNetLocal` write their kernels, and :func:`slow_neural_loss` is the local feedback to these. With them
come the other components of the paper. All work in one and in two dimensions.
:mod:`netwright.hypernets.hyperzzw_conv` puts the operators in the place of convolutions,
:mod:`netwright.models.vision.terminator` is the paper's network.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.hypernets._magnet import MagnetKernel
from netwright.hypernets._slow_networks import (
    CONTEXTS,
    KERNEL_LOSSES,
    Context,
    KernelLoss,
    SlowNetChannel,
    SlowNetGlobal,
    SlowNetLocal,
    slow_neural_loss,
)
from netwright.hypernets._standardise import BatchStd, GroupBatchInstanceStd, check_batch, instance_std
from netwright.layers._geometry import Size, padding_sides, sizes

CONVS: dict[int, type[nn.Conv1d | nn.Conv2d]] = {1: nn.Conv1d, 2: nn.Conv2d}


def hyperzzw_global(z: Tensor, w: Tensor, fast: Tensor) -> Tensor:
    r"""The global operator: the feature map, weighted by a hyper-kernel of its size, becomes a matrix.

    .. math:: \hat W = Z \odot W, \qquad Y_{bc} = \hat W_{bc} F_{bc}

    a product of H×W matrices for every sample and channel, so H = W. A sequence is no matrix; for it the product is
    element-wise too, :math:`Y = (Z \odot W) \odot F`.

    Args:
        z: The feature map Z, ``(batch, channels, height, width)`` or ``(batch, channels, length)``.
        w: The hyper-kernel W, ``(1, channels, height, width)`` or ``(1, channels, length)``.
        fast: The fast weights F, of the shape of ``z``.

    Returns:
        Of the shape of ``z``.

    Raises:
        InputError: If the map is not square, or the shapes differ.

    Source:
        arXiv:2401.17948. The paper reports sequences, but no code for them was released; what is done for these is our
        reading of its element-wise form.

    Example:
        >>> z = torch.randn(2, 3, 8, 8)
        >>> hyperzzw_global(z, torch.randn(1, 3, 8, 8), z).shape
        torch.Size([2, 3, 8, 8])
    """
    checks.dimensions("z", z, "(batch, channels, height, width)", "(batch, channels, length)")
    if w.shape[1:] != z.shape[1:] or fast.shape != z.shape:
        checks.fail(
            f"w and fast must fit z of shape {tuple(z.shape)}", f"shapes {tuple(w.shape)} and {tuple(fast.shape)}"
        )
    if z.ndim == 4 and z.shape[2] != z.shape[3]:
        checks.fail("the global operator needs square maps (height = width)", f"{z.shape[2]}×{z.shape[3]}")
    return weighted_product(z * w, fast)


def weighted_product(weights: Tensor, fast: Tensor) -> Tensor:
    """The product of Ŵ and F in :func:`hyperzzw_global`, where one Ŵ meets several F."""
    return weights @ fast if weights.ndim == 4 else weights * fast


def hyperzzw_elementwise(z: Tensor, w: Tensor) -> Tensor:
    """The operator with two element-wise products, (Z ⊙ W) ⊙ Z, as the interactions use it.

    Args:
        z: Any tensor.
        w: A kernel that is broadcast to it.

    Example:
        >>> hyperzzw_elementwise(torch.tensor([2.0, 3.0]), torch.tensor([1.0, -1.0]))
        tensor([ 4., -9.])
    """
    return z * w * z


class HyperZZWLocal(nn.Module):
    r"""The local operator: a depth-wise convolution with a kernel written from a feature map, then a channel mixer.

    .. math:: Y = \mathrm{GELU}\bigl(\mathrm{BS}(M (Z * K(Z')) + m)\bigr) + s

    with the kernel K of a :class:`SlowNetLocal`, standardisation over the batch BS, and one learned number s.

    Args:
        channels: Channels of the input ``(batch, channels, *map)``; the output has its size.
        kernel_size: Pixels of the kernel along each axis; odd.
        ndim: Axes of the map, 1 or 2.
        out_channels: Channels of the output; ``channels`` if not given.
        dilation: Of the convolution.
        groups: Groups of the channel mixer.
        padding_mode: Of the convolution, as in torch.
        hidden: Width of the slow network.
        n_layers: Its products.
        omega0: Its frequency.
        context: ``"batch"`` as published, or ``"sample"``; see :class:`SlowNetLocal`.
        track_running_stats: Whether BS uses running statistics in eval mode.
        faithful_release: See :class:`SlowNetLocal`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: As :class:`SlowNetLocal`.

    Source:
        arXiv:2401.17948.

    Example:
        >>> layer, z = HyperZZWLocal(12, 5), torch.randn(2, 12, 16, 16)
        >>> layer(z).shape, layer(z, z.flip(-1)).shape  # the kernel from z, applied to z or to another map
        (torch.Size([2, 12, 16, 16]), torch.Size([2, 12, 16, 16]))
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        ndim: int = 2,
        *,
        out_channels: int | None = None,
        dilation: Size = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        hidden: int = 32,
        n_layers: int = 2,
        omega0: float = 2000.0,
        context: Context = "batch",
        track_running_stats: bool = False,
        faithful_release: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.slow_net = SlowNetLocal(
            channels,
            kernel_size,
            ndim,
            hidden=hidden,
            n_layers=n_layers,
            omega0=omega0,
            context=context,
            faithful_release=faithful_release,
            **factory,
        )
        out_channels = channels if out_channels is None else out_channels
        self.ndim = ndim
        self.dilation = sizes("dilation", dilation, ndim)
        self.padding_mode = padding_mode
        self.channel_mixer = CONVS[ndim](channels, out_channels, 1, groups=groups, **factory)
        self.batch_std = BatchStd(out_channels, track_running_stats=track_running_stats, **factory)
        self.shift = nn.Parameter(torch.zeros(1, **factory))
        _draw_mixer(self.channel_mixer)

    def forward(self, source: Tensor, input: Tensor | None = None) -> Tensor:
        """Write the kernel from ``source``, apply it to ``input`` (to ``source`` if not given)."""
        z = source if input is None else input
        kernel = self.slow_net(source)
        checks.size("input", z, 1, self.slow_net.out_channels)
        mixed = self.channel_mixer(self._convolve(z, kernel.to(z.dtype)))
        output: Tensor = functional.gelu(self.batch_std(mixed)) + self.shift
        return output

    def _convolve(self, z: Tensor, kernel: Tensor) -> Tensor:
        size = self.slow_net.size
        padding = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, size, strict=True))
        if self.padding_mode != "zeros":
            sides = padding_sides(padding, size, self.dilation, (1,) * self.ndim)
            z, padding = functional.pad(z, sides, mode=self.padding_mode), (0,) * self.ndim
        conv = functional.conv1d if self.ndim == 1 else functional.conv2d
        if self.slow_net.context == "batch":
            if self.ndim == 2 and z.device.type == "cpu":
                # the backward pass of a depth-wise convolution takes a third of the time with the channels last
                z = z.contiguous(memory_format=torch.channels_last)
            out = conv(z, kernel, padding=padding, dilation=self.dilation, groups=z.shape[1])
            return out.contiguous()
        # every sample has its own kernel: the samples become groups of channels
        merged = z.reshape(1, -1, *z.shape[2:])
        out = conv(merged, kernel.flatten(0, 1), padding=padding, dilation=self.dilation, groups=merged.shape[1])
        return out.view(*z.shape[:2], *out.shape[2:])


class RGU(nn.Module):
    r"""Recursive gated unit: a gate of a gated value.

    .. math:: q = \mathrm{GELU}\bigl(\mathrm{IS}(W_k x \odot W_q W_v x)\bigr) + p, \qquad y = W_y q

    with 1×1 convolutions W, each with a bias, standardisation over each sample IS, and one bias map p over the pixels.

    Args:
        channels: Channels of input and output ``(batch, channels, *map)``.
        size: Pixels of the map along each axis.
        ndim: Axes of the map, 1 or 2.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Source:
        arXiv:2401.17948.

    Example:
        >>> RGU(12, 8)(torch.randn(2, 12, 8, 8)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        ndim: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.between("ndim", ndim, 1, 2)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.key_value = CONVS[ndim](channels, 2 * channels, 1, **factory)
        self.query = CONVS[ndim](channels, channels, 1, **factory)
        self.output = CONVS[ndim](channels, channels, 1, **factory)
        self.position_bias = nn.Parameter(torch.zeros(sizes("size", size, ndim), **factory))
        for linear in (self.key_value, self.query, self.output):
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        key, value = self.key_value(input).chunk(2, dim=1)
        q = functional.gelu(instance_std(key * self.query(value))) + self.position_bias
        output: Tensor = self.output(q)
        return output


class HyperChannelInteraction(nn.Module):
    r"""Gates channels by their means: :math:`x \odot \sigma((y \odot w) \odot y)` with y the mean over the map.

    Args:
        channels: Channels of input and output ``(batch, channels, *map)``.
        hidden: Width of the slow network that writes w.
        omega0: Its frequency.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Source:
        arXiv:2401.17948.

    Example:
        >>> HyperChannelInteraction(12)(torch.randn(2, 12, 8, 8)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 32,
        omega0: float = 2000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.slow_net = SlowNetChannel(channels, hidden=hidden, omega0=omega0, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, 1, self.slow_net.size[0])
        return input * torch.sigmoid(_channel_score(input, self.slow_net()))


class HyperInteraction(nn.Module):
    r"""Gates one map by another's means over pixels and over channels.

    .. math:: z \odot \sigma\bigl(s_c(o)\, s_s(o)\bigr)

    where :math:`s_c = (y \odot w) \odot y` of the mean y over the pixels, and :math:`s_s` the same of the mean over the
    channels, each with a slow network's weights.

    Args:
        channels: Channels of both maps ``(batch, channels, *map)``.
        size: Their pixels along each axis.
        ndim: Axes of the map, 1 or 2.
        channel_hidden: Width of the slow network over the channels.
        spatial_hidden: Width of the slow network over the pixels.
        omega0: Their frequency.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Source:
        arXiv:2401.17948.

    Example:
        >>> HyperInteraction(12, 8)(torch.randn(2, 12, 8, 8), torch.randn(2, 12, 8, 8)).shape
        torch.Size([2, 12, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        ndim: int = 2,
        *,
        channel_hidden: int = 16,
        spatial_hidden: int = 64,
        omega0: float = 2000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"omega0": omega0, "device": device, "dtype": dtype}
        self.slow_net_channel = SlowNetChannel(channels, hidden=channel_hidden, **factory)
        self.slow_net_spatial = SlowNetGlobal(1, size, ndim, hidden=spatial_hidden, **factory)

    def forward(self, scores: Tensor, input: Tensor) -> Tensor:
        """Gate ``input`` by the scores of ``scores``."""
        checks.size("scores", scores, 1, self.slow_net_channel.size[0])
        of_channels = _channel_score(scores, self.slow_net_channel())
        of_pixels = hyperzzw_elementwise(scores.mean(1, keepdim=True), self.slow_net_spatial())
        return input * torch.sigmoid(of_pixels * of_channels)


def _channel_score(input: Tensor, kernel: Tensor) -> Tensor:
    score = hyperzzw_elementwise(input.flatten(2).mean(-1), kernel)
    return score.view(*score.shape, *(1,) * (input.ndim - 2))


def _draw_mixer(mixer: nn.Conv1d | nn.Conv2d) -> None:
    nn.init.kaiming_normal_(mixer.weight)
    if mixer.bias is not None:
        nn.init.zeros_(mixer.bias)


__all__ = [
    "CONTEXTS",
    "KERNEL_LOSSES",
    "RGU",
    "BatchStd",
    "Context",
    "GroupBatchInstanceStd",
    "HyperChannelInteraction",
    "HyperInteraction",
    "HyperZZWLocal",
    "KernelLoss",
    "MagnetKernel",
    "SlowNetChannel",
    "SlowNetGlobal",
    "SlowNetLocal",
    "check_batch",
    "hyperzzw_elementwise",
    "hyperzzw_global",
    "instance_std",
    "slow_neural_loss",
    "weighted_product",
]
