"""The slow networks of HyperZ·Z·W (Zhang 2024, arXiv:2401.17948), and the local feedback to them."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.hypernets._magnet import MagnetKernel, full_precision
from netwright.layers._geometry import Size

Context = Literal["batch", "sample"]
CONTEXTS = ("batch", "sample")
KernelLoss = Literal["tile", "channel-sum"]
KERNEL_LOSSES = ("tile", "channel-sum")


class SlowNetGlobal(MagnetKernel):
    """Writes a hyper-kernel of the size of the feature map, one weight for every channel and pixel.

    Args:
        channels: Channels of the feature map.
        size: Its pixels along each axis.
        ndim: Its axes, 1 or 2.
        hidden: See :class:`MagnetKernel`.
        n_layers: See :class:`MagnetKernel`.
        omega0: See :class:`MagnetKernel`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Returns:
        From ``forward()``: ``(1, channels, *size)``.

    Example:
        >>> SlowNetGlobal(12, 8)().shape, SlowNetGlobal(12, 8, ndim=1)().shape
        (torch.Size([1, 12, 8, 8]), torch.Size([1, 12, 8]))
    """

    def __init__(
        self,
        channels: int,
        size: Size,
        ndim: int = 2,
        *,
        hidden: int = 64,
        n_layers: int = 2,
        omega0: float = 2000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(ndim, hidden, channels, n_layers, omega0, size, device=device, dtype=dtype)
        self.reset_parameters()

    def forward(self) -> Tensor:
        return super().forward().unsqueeze(0)


class SlowNetChannel(MagnetKernel):
    """Writes one weight for every channel, with the number of the channel as its coordinate.

    Args:
        channels: Number of channels.
        hidden: See :class:`MagnetKernel`.
        n_layers: See :class:`MagnetKernel`.
        omega0: See :class:`MagnetKernel`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Returns:
        From ``forward()``: ``(1, channels)``.

    Example:
        >>> SlowNetChannel(12)().shape
        torch.Size([1, 12])
    """

    def __init__(
        self,
        channels: int,
        *,
        hidden: int = 32,
        n_layers: int = 2,
        omega0: float = 2000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, hidden, 1, n_layers, omega0, channels, device=device, dtype=dtype)
        self.reset_parameters()


class SlowNetLocal(MagnetKernel):
    r"""Writes a depth-wise kernel that depends on the feature map: HyperZ·Z·W inside of the slow network.

    The map is averaged to the size of the kernel, reduced to the hidden channels and averaged over the batch,
    :math:`g = \mathrm{GELU}(W_f W_r \bar x)`; after each product of :class:`MagnetKernel` follow a renormalisation by
    channel, in which no gradient flows through the first h, and a gate:

    .. math:: h \leftarrow a_i \operatorname{sg}(h) + b_i\, h / \lVert h \rVert, \qquad
        h \leftarrow h \odot (G_i g + c_i)

    ``context="batch"`` is the method: the kernel, and so every prediction, depends on the other samples of the batch,
    in eval mode too. With ``context="sample"`` every sample writes a kernel of its own.

    Args:
        channels: Channels of the feature map.
        kernel_size: Pixels of the kernel along each axis; odd.
        ndim: Axes of the map, 1 or 2.
        hidden: See :class:`MagnetKernel`.
        n_layers: See :class:`MagnetKernel`.
        omega0: See :class:`MagnetKernel`.
        context: ``"batch"`` or ``"sample"``.
        faithful_release: The released code forgets to register a and b, which so stay 1 and 0.1; they are parameters
            unless this is set.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Returns:
        From ``forward(input)`` with input ``(batch, channels, *map)``: ``(channels, 1, *kernel_size)`` for the batch,
        or ``(batch, channels, 1, *kernel_size)`` for the samples.

    Raises:
        InputError: If the kernel's size is even, the input has another shape, or is a single sample in training with
            ``context="batch"``.

    Source:
        arXiv:2401.17948.

    Example:
        >>> SlowNetLocal(12, 5)(torch.randn(3, 12, 16, 16)).shape
        torch.Size([12, 1, 5, 5])
        >>> SlowNetLocal(12, 5, context="sample")(torch.randn(3, 12, 16, 16)).shape
        torch.Size([3, 12, 1, 5, 5])
    """

    def __init__(
        self,
        channels: int,
        kernel_size: Size,
        ndim: int = 2,
        *,
        hidden: int = 32,
        n_layers: int = 2,
        omega0: float = 2000.0,
        context: Context = "batch",
        faithful_release: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(ndim, hidden, channels, n_layers, omega0, kernel_size, device=device, dtype=dtype)
        checks.known("context", context, CONTEXTS)
        if not all(axis % 2 for axis in self.size):
            checks.fail("kernel_size must be odd", kernel_size)
        self.context = context
        self.reduce_weight = self._parameter(hidden, channels)
        self.reduce_bias = self._parameter(hidden)
        self.context_weight = self._parameter(hidden, hidden)
        self.context_bias = self._parameter(hidden)
        self.gate_weight = self._parameter(n_layers, hidden, hidden)
        self.gate_bias = self._parameter(n_layers, hidden)
        if not faithful_release:
            self.alphas = self._parameter(n_layers, hidden)
            self.betas = self._parameter(n_layers, hidden)
            self._sources += ("alphas", "betas")
        self.faithful_release = faithful_release
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for weight, bias in (
            (self.reduce_weight, self.reduce_bias),
            (self.context_weight, self.context_bias),
        ):
            bound = 1 / math.sqrt(weight.shape[1])
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        bound = math.sqrt(3 / self.hidden)
        self.gate_weight.uniform_(-bound, bound)
        self.gate_bias.fill_(1)
        if not self.faithful_release:
            self.alphas.fill_(1)
            self.betas.fill_(0.1)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        axes = "length" if self.ndim == 1 else "height, width"
        checks.dimensions("input", input, f"(batch, channels, {axes})")
        checks.size("input", input, 1, self.out_channels)
        if self.context == "batch" and self.training and len(input) == 1:
            checks.fail("context='batch' needs at least 2 samples in training", "a batch of 1")
        # pooling and the reduction are linear, so the mean over the batch may come first
        source = input.to(self.frequencies.dtype)
        if self.context == "batch":
            source = source.mean(0, keepdim=True)
        h, sines = self._keep()
        with full_precision(self.frequencies):
            gates = self._gates(source)
            h = h * gates[0]
            for layer in range(1, self.n_layers):
                h = self._renormalise(self._product(sines[layer - 1], h, layer), layer) * gates[layer]
            kernel = torch.matmul(self.output_weight, h) + self.output_bias[:, None]
        kernel = kernel.view(len(source), self.out_channels, 1, *self.size)
        return kernel[0] if self.context == "batch" else kernel

    def _build(self) -> tuple[Tensor, ...]:
        """The hidden state before it meets the context, and the sines of the later layers."""
        with full_precision(self.frequencies):
            sines = self._sines()
            return self._renormalise(self._product(sines[1], sines[0], 0), 0), sines[2:]

    def _gates(self, input: Tensor) -> Tensor:
        """The gates of all layers, shape ``(n_layers, batch, hidden, positions)``."""
        pool = functional.adaptive_avg_pool1d if self.ndim == 1 else functional.adaptive_avg_pool2d
        pooled = pool(input, self.size).flatten(2)  # type: ignore[arg-type]
        reduced = torch.matmul(self.reduce_weight, pooled) + self.reduce_bias[:, None]
        g = functional.gelu(torch.matmul(self.context_weight, reduced) + self.context_bias[:, None])
        return torch.matmul(self.gate_weight[:, None], g) + self.gate_bias[:, None, :, None]

    def _renormalise(self, h: Tensor, layer: int) -> Tensor:
        unit = functional.normalize(h, dim=-1)
        if self.faithful_release:
            return h.detach() + 0.1 * unit
        return self.alphas[layer, :, None] * h.detach() + self.betas[layer, :, None] * unit

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, context={self.context!r}"


def slow_neural_loss(kernels: Sequence[Tensor], factors: Sequence[int] = (), variant: KernelLoss = "tile") -> Tensor:
    r"""The local feedback of the slow networks: how far the global kernels of all pairs of blocks are from each other.

    .. math:: L = \sum_{j < i} \operatorname{mean}\bigl((\operatorname{tile}(K_j) - K_i)^2\bigr)

    where the channels of :math:`K_j` are repeated until they are as many as those of :math:`K_i`. It is a mean over the
    entries of the kernel, so its size does not grow with them.

    Args:
        kernels: Global hyper-kernels ``(1, channels, *size)`` of the blocks in order.
        factors: By how much each block multiplies the channels; read off the kernels if not given.
        variant: ``"tile"`` as above; ``"channel-sum"`` compares the sums over the channels instead.

    Raises:
        InputError: If there are less than two kernels, their maps differ, or one has not the channels that the factors
            demand.

    Source:
        arXiv:2401.17948; the second variant is in the released code only.

    Example:
        >>> slow_neural_loss([torch.zeros(1, 3, 8, 8), torch.ones(1, 12, 8, 8)], factors=(4,))
        tensor(1.)
    """
    checks.known("variant of the slow neural loss", variant, KERNEL_LOSSES)
    if len(kernels) < 2:
        checks.fail("the slow neural loss needs the kernels of at least 2 blocks", len(kernels))
    if any(kernel.shape[2:] != kernels[0].shape[2:] for kernel in kernels):
        checks.fail("kernels must have the same size", [tuple(kernel.shape) for kernel in kernels])
    if variant == "channel-sum":
        sums = torch.stack([kernel.sum(1) for kernel in kernels])
        pairs = torch.combinations(torch.arange(len(kernels), device=sums.device))
        return (sums[pairs[:, 0]] - sums[pairs[:, 1]]).square().flatten(1).mean(1).sum()
    channels = [kernel.shape[1] for kernel in kernels]
    for block, factor in enumerate(factors[: len(kernels) - 1]):
        if channels[block + 1] != channels[block] * factor:
            checks.fail(f"kernel {block + 1} must have {channels[block]} · {factor} channels", channels[block + 1])
    losses = []
    for deep in range(1, len(kernels)):
        for shallow in range(deep):
            checks.divisible(f"channels of kernel {deep}", channels[deep], "those of an earlier one", channels[shallow])
            # a view in place of the tiled kernel
            tiles = kernels[deep].reshape(-1, *kernels[shallow].shape[1:])
            losses.append((tiles - kernels[shallow]).square().mean())
    return torch.stack(losses).sum()


__all__ = [
    "CONTEXTS",
    "KERNEL_LOSSES",
    "Context",
    "KernelLoss",
    "SlowNetChannel",
    "SlowNetGlobal",
    "SlowNetLocal",
    "slow_neural_loss",
]
