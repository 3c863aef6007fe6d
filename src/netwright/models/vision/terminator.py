"""Terminator (Zhang 2024, arXiv:2401.17948): slow-fast blocks of ten branches, without residual connections."""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.hypernets.hyperzzw import (
    CONVS,
    KERNEL_LOSSES,
    RGU,
    Context,
    GroupBatchInstanceStd,
    HyperChannelInteraction,
    HyperInteraction,
    HyperZZWLocal,
    KernelLoss,
    MagnetKernel,
    SlowNetGlobal,
    check_batch,
    instance_std,
    slow_neural_loss,
    weighted_product,
)

_DROPOUTS: dict[int, type[nn.Dropout1d | nn.Dropout2d]] = {1: nn.Dropout1d, 2: nn.Dropout2d}


class SFNEBlock(nn.Module):
    r"""Slow-fast neural encoding: ten views of one feature map, concatenated and mixed.

    With a slow network's kernel W and :math:`\hat W = Z \odot W`:

    .. math:: f = \mathrm{IS}(\mathrm{RGU}_1(\hat W) + \mathrm{RGU}_2(Z)), \quad m = \mathrm{IS}(W_m Z), \quad
        e = \mathrm{IS}(\mathrm{HyperChannel}(Z)), \quad o = \hat W f

    The branches are o, :math:`\hat W m`, :math:`\hat W e`, σ(o) ⊙ o, f, the hyper-interaction of o with Z, and four
    local operators of sizes 3, 9, 5, 7: the kernel from Z applied to e, from e to Z, from m to Z, from Z to m. Outputs
    of earlier blocks are repeated along the channels and concatenated too. A 1×1 convolution makes ``factor`` times the
    channels, then follow standardisation in groups, GELU, one learned number and dropout of whole channels.

    Args:
        channels: Channels of the input ``(batch, channels, *map)``.
        factor: The output has ``channels * factor`` channels, which ``groups`` must divide.
        size: Pixels of the square map along each axis (or of the sequence).
        ndim: Axes of the map, 1 or 2.
        earlier: How many outputs of earlier blocks are given to ``forward``.
        n_layers: Products of the slow network of the global kernel.
        kernel_sizes: Of the four local operators; odd.
        dropout: Probability of a channel to be dropped.
        groups: Of the standardisation.
        omega0: Frequency of all slow networks.
        context: ``"batch"`` as published, or ``"sample"``; see :class:`netwright.hypernets.hyperzzw.SlowNetLocal`.
        track_running_stats: Whether standardisation over the batch uses running statistics in eval mode.
        faithful_release: See :class:`netwright.hypernets.hyperzzw.SlowNetLocal`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Returns:
        From ``forward(input, earlier)``: the output ``(batch, channels * factor, *map)`` and the global kernel ``(1,
        channels, *map)``.

    Raises:
        InputError: If ``groups`` does not divide the new channels, the map is not of this size, or the input is a
            single sample in training.

    Source:
        arXiv:2401.17948.

    Example:
        >>> output, kernel = SFNEBlock(3, 4, size=16)(torch.randn(2, 3, 16, 16))
        >>> output.shape, kernel.shape
        (torch.Size([2, 12, 16, 16]), torch.Size([1, 3, 16, 16]))
    """

    def __init__(
        self,
        channels: int,
        factor: int,
        size: int,
        *,
        ndim: int = 2,
        earlier: int = 0,
        n_layers: int = 2,
        kernel_sizes: Sequence[int] = (3, 9, 5, 7),
        dropout: float = 0.0,
        groups: int = 12,
        omega0: float = 2000.0,
        context: Context = "batch",
        track_running_stats: bool = False,
        faithful_release: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("size", size, 2)
        checks.at_least("factor", factor, 1)
        checks.at_least("earlier", earlier, 0)
        checks.between("dropout", dropout, 0, 1, open_high=True)
        if len(kernel_sizes) != 4:
            checks.fail("kernel_sizes must be four", kernel_sizes)
        checks.divisible("channels * factor", channels * factor, "groups", groups)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        slow: dict[str, Any] = {"omega0": omega0, **factory}
        self.channels = channels
        self.size = (size,) * ndim
        self.earlier = earlier
        self.slow_net = SlowNetGlobal(channels, size, ndim, n_layers=n_layers, **slow)
        self.rgu_slow = RGU(channels, size, ndim, **factory)
        self.rgu_fast = RGU(channels, size, ndim, **factory)
        self.channel_mixer = CONVS[ndim](channels, channels, 1, **factory)
        self.channel_interaction = HyperChannelInteraction(channels, **slow)
        self.interaction = HyperInteraction(channels, size, ndim, **slow)
        self.local = nn.ModuleList(
            HyperZZWLocal(
                channels,
                kernel_size,
                ndim,
                context=context,
                track_running_stats=track_running_stats,
                faithful_release=faithful_release,
                **slow,
            )
            for kernel_size in kernel_sizes
        )
        self.bottleneck = CONVS[ndim]((10 + earlier) * channels, factor * channels, 1, **factory)
        self.standardise = GroupBatchInstanceStd(
            factor * channels, groups, track_running_stats=track_running_stats, **factory
        )
        self.shift = nn.Parameter(torch.zeros(1, **factory))
        self.dropout = _DROPOUTS[ndim](dropout)
        for mixer in (self.channel_mixer, self.bottleneck):
            nn.init.kaiming_normal_(mixer.weight)
            if mixer.bias is not None:
                nn.init.zeros_(mixer.bias)

    def forward(self, input: Tensor, earlier: Sequence[Tensor] = ()) -> tuple[Tensor, Tensor]:
        self._check(input, earlier)
        kernel = self.slow_net()
        W = input * kernel
        fast = instance_std(self.rgu_slow(W) + self.rgu_fast(input))
        mixed = instance_std(self.channel_mixer(input))
        gated = instance_std(self.channel_interaction(input))
        out, out_mixed, out_gated = (weighted_product(W, f) for f in (fast, mixed, gated))
        first, second, third, fourth = self.local
        repeated = [output.repeat(1, self.channels // output.shape[1], *(1,) * len(self.size)) for output in earlier]
        # in the order of the released code
        branches = [
            out,
            second(gated, input),
            *repeated[:1],
            fast,
            out_mixed,
            first(input, gated),
            torch.sigmoid(out) * out,
            third(mixed, input),
            out_gated,
            fourth(input, mixed),
            *repeated[1:],
            self.interaction(out, input),
        ]
        encoded = self.standardise(self.bottleneck(torch.cat(branches, dim=1)))
        return self.dropout(functional.gelu(encoded) + self.shift), kernel

    def _check(self, input: Tensor, earlier: Sequence[Tensor]) -> None:
        axes = "length" if len(self.size) == 1 else "height, width"
        checks.dimensions("input", input, f"(batch, channels, {axes})")
        checks.size("input", input, 1, self.channels)
        if tuple(input.shape[2:]) != self.size:
            expected = "×".join(map(str, self.size))
            checks.fail(f"input must have {expected} pixels", "×".join(map(str, input.shape[2:])))
        check_batch(self, input)
        if len(earlier) != self.earlier:
            checks.fail(f"the block needs {self.earlier} earlier outputs", len(earlier))
        for output in earlier:
            checks.divisible("channels", self.channels, "those of an earlier output", output.shape[1])


class Terminator(nn.Module):
    """Slow-fast blocks at full resolution, the mean over the map, a linear classifier. No residual connections.

    Block i also gets the outputs of the blocks i − 2, i − 3 … as many as ``earlier`` says: as published 0, 0, 1, 1, 2.
    The first slow network has three products, the later ones two.

    Standardisation over the batch without running statistics and kernels that depend on the batch are the method: a
    prediction depends on the other samples of its batch, *in eval mode too*: these have to be mixed as in training, and
    a batch in the order of the classes is predicted badly. ``context="sample"`` with
    ``track_running_stats=True`` is a variant whose predictions do not. In eval mode kernels that depend on no input are
    built once and kept.

    The released code also adds a number between the blocks that it never trains, so stays 0; it is left out.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, *map)``; times the first factor, divisible by 12.
        size: Pixels of the square map along each axis.
        num_classes: Outputs ``(batch, num_classes)``.
        factors: By how much each block multiplies the channels.
        ndim: Axes of the map: 2 for pictures, 1 for sequences.
        earlier: Number of earlier outputs that each block gets.
        dropout: Of each block; 0, then 0.05, if not given.
        slow_loss: Variant of :func:`netwright.hypernets.hyperzzw.slow_neural_loss`.
        omega0: Frequency of all slow networks.
        context: ``"batch"`` or ``"sample"``.
        track_running_stats: Whether standardisation over the batch uses running statistics in eval mode.
        faithful_release: The released code forgets to register some scalars, 2,560 in the network below.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If 12 does not divide the channels after the first block, ``earlier`` or ``dropout`` are not one for
            each block, an input is not of this size, or is a single sample in training.

    Source:
        arXiv:2401.17948. On 32×32 pictures in 10 classes: 1,339,415 parameters, 1,336,855 with ``faithful_release``.

    Example:
        >>> model = Terminator(size=8, factors=(4, 3))
        >>> logits, loss = model(torch.randn(2, 3, 8, 8), return_slow_loss=True)
        >>> logits.shape, loss.shape
        (torch.Size([2, 10]), torch.Size([]))
    """

    def __init__(
        self,
        in_channels: int = 3,
        size: int = 32,
        num_classes: int = 10,
        factors: Sequence[int] = (4, 3, 2, 2, 2),
        *,
        ndim: int = 2,
        earlier: Sequence[int] | None = None,
        dropout: Sequence[float] | None = None,
        slow_loss: KernelLoss = "tile",
        omega0: float = 2000.0,
        context: Context = "batch",
        track_running_stats: bool = False,
        faithful_release: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("number of factors", len(factors), 1)
        checks.known("variant of the slow neural loss", slow_loss, KERNEL_LOSSES)
        blocks = range(len(factors))
        earlier = [i // 2 for i in blocks] if earlier is None else earlier
        dropout = [0.05 if i else 0.0 for i in blocks] if dropout is None else dropout
        for name, given in (("earlier", earlier), ("dropout", dropout)):
            if len(given) != len(factors):
                checks.fail(f"{name} must be as many as factors, one a block ({len(factors)})", len(given))
        for block, number in enumerate(earlier):
            if not 0 <= number <= max(0, block - 1):
                checks.fail(f"block {block} can have 0 to {max(0, block - 1)} earlier outputs", number)
        channels = list(accumulate(factors, mul, initial=in_channels))
        self.factors = tuple(factors)
        self.slow_loss = slow_loss
        self.blocks = nn.ModuleList(
            SFNEBlock(
                channels[i],
                factors[i],
                size,
                ndim=ndim,
                earlier=earlier[i],
                n_layers=2 if i else 3,
                dropout=dropout[i],
                omega0=omega0,
                context=context,
                track_running_stats=track_running_stats,
                faithful_release=faithful_release,
                device=device,
                dtype=dtype,
            )
            for i in blocks
        )
        self.classifier = nn.Linear(channels[-1], num_classes, device=device, dtype=dtype)
        nn.init.kaiming_normal_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    @overload
    def forward(self, input: Tensor, return_slow_loss: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, input: Tensor, return_slow_loss: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, input: Tensor, return_slow_loss: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits, and the slow neural loss where ``return_slow_loss`` asks for it."""
        outputs: list[Tensor] = []
        kernels: list[Tensor] = []
        output = input
        for i, block in enumerate(self.blocks):
            assert isinstance(block, SFNEBlock)
            output, kernel = block(output, [outputs[i - 2 - back] for back in range(block.earlier)])
            outputs.append(output)
            kernels.append(kernel)
        logits: Tensor = self.classifier(output.flatten(2).mean(-1))
        if return_slow_loss:
            return logits, slow_neural_loss(kernels, self.factors, self.slow_loss)
        return logits


def norm_penalty(model: nn.Module, weight: float = 4e-5, slow_weight: float = 1e-6) -> Tensor:
    r"""The regularisation of the published recipe: norms, not their squares, and next to nothing on slow networks.

    .. math:: \lambda \Bigl(\sum_{\theta\ \mathrm{fast}} \lVert\theta\rVert_2
        + \lambda_s \sum_{\theta\ \mathrm{slow}} \lVert\theta\rVert_2\Bigr)

    Args:
        model: A network with slow networks in it.
        weight: λ.
        slow_weight: :math:`\lambda_s`.

    Source:
        arXiv:2401.17948, released code, where which parameter counts as fast is a matter of its name.

    Example:
        >>> round(norm_penalty(nn.Linear(2, 2, bias=False).apply(lambda m: nn.init.eye_(m.weight)), 1.0).item(), 4)
        1.4142
    """
    slow = {parameter for net in model.modules() if isinstance(net, MagnetKernel) for parameter in net.parameters()}
    norms = [parameter.norm() * (slow_weight if parameter in slow else 1.0) for parameter in model.parameters()]
    return weight * torch.stack(norms).sum()


__all__ = ["SFNEBlock", "Terminator", "norm_penalty"]
