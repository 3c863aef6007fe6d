"""Efficient local attention (Xu, Wan 2024, arXiv:2403.01123): strips of a feature map gate its rows and columns.

:class:`ELA` is the layer, :class:`CoordinateAttention` (Hou, Zhou, Feng 2021, arXiv:2103.02907) what it is compared
with, :func:`insert_attention` puts such a layer into an existing network.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.surgery import swap

Variant = Literal["T", "B", "S", "L"]
Place = Literal["branch_end", "block_end", "depthwise", "norm"]

# kernel size, channels of a convolution group (1: depth-wise), groups of the normalisation
_VARIANTS: dict[str, tuple[int, int, int]] = {"T": (5, 1, 32), "B": (7, 1, 16), "S": (5, 8, 16), "L": (7, 8, 16)}

_NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)


class _Gate(torch.autograd.Function):
    """x · a_h · a_w in one new tensor; keeps x and the gates, and no product, for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a_h: Tensor, a_w: Tensor) -> Tensor:
        ctx.save_for_backward(x, a_h, a_w)
        return (x * a_h.unsqueeze(3)).mul_(a_w.unsqueeze(2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, a_h, a_w = ctx.saved_tensors
        product = grad * x
        grad_h = (product @ a_w.unsqueeze(3)).squeeze(3)
        grad_w = (a_h.unsqueeze(2) @ product).squeeze(2)
        if torch.is_grad_enabled():  # somebody wants the derivative of this gradient
            return grad * a_h.unsqueeze(3) * a_w.unsqueeze(2), grad_h, grad_w
        return torch.mul(grad, a_h.unsqueeze(3), out=product).mul_(a_w.unsqueeze(2)), grad_h, grad_w


def gate_rows_and_columns(x: Tensor, a_h: Tensor, a_w: Tensor) -> Tensor:
    """Maps ``(batch, channels, height, width)`` times gates of rows ``(…, height)`` and of columns ``(…, width)``.

    What it costs is the memory for the result, so it takes that once, where a product of three tensors takes it twice.
    """
    plain = torch.compiler.is_compiling() or x.is_meta or torch._C._are_functorch_transforms_active()
    if plain or not x.dtype == a_h.dtype == a_w.dtype:
        return x * a_h.unsqueeze(3) * a_w.unsqueeze(2)
    output: Tensor = _Gate.apply(x, a_h, a_w)  # type: ignore[no-untyped-call]
    return output


class ELA(nn.Module):
    """Gates for every row and every column, from the means over them.

        z_h = mean over the width, z_w = mean over the height,   (batch, channels, length)
        a = σ(GroupNorm(Conv1d(z))) for each,   y = x · a_h · a_w.

    No channel is squeezed, and the two strips do not meet before they gate. At the start the gates are about
    σ(0)² = 1/4, which shrinks what a trained network expects: for fine-tuning take ``init="identity"``.

    Args:
        channels: Channels of the maps ``(batch, channels, height, width)`` or ``(channels, height, width)``.
        variant: ``"T"``, ``"B"`` (depth-wise, kernels 5 and 7), ``"S"`` or ``"L"`` (eight channels a group).
        kernel_size: Of the convolution; odd. That of the variant if not given.
        conv_groups: Groups of the convolution; those of the variant if not given.
        norm_groups: Groups of the normalisation; those of the variant (32 or 16) if not given. ``"auto"`` takes the
            largest number up to that of the variant that divides ``channels``, for narrow layers.
        shared: One convolution and normalisation for both directions, or one each.
        init: ``"paper"``, or ``"identity"`` for gates of about 0.96 at the start.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If the variant is unknown, the kernel is even, groups do not divide the channels, or the input has
            another number of dimensions or channels.

    Source:
        arXiv:2403.01123, section 3. Whether the paper shares the convolution is not certain; both are offered.

    Example:
        >>> layer = ELA(64)
        >>> layer(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])
    """

    def __init__(
        self,
        channels: int,
        variant: Variant = "T",
        kernel_size: int | None = None,
        conv_groups: int | None = None,
        norm_groups: int | Literal["auto"] | None = None,
        shared: bool = True,
        *,
        init: Literal["paper", "identity"] = "paper",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.known("variant of ELA", variant, _VARIANTS)
        checks.known("init of ELA", init, ("paper", "identity"))
        kernel, width, most = _VARIANTS[variant]
        kernel = kernel if kernel_size is None else kernel_size
        if kernel < 1 or kernel % 2 == 0:
            checks.fail("kernel_size must be odd", kernel)
        if conv_groups is None:
            checks.divisible("channels", channels, "channels of a convolution group", width)
            conv_groups = channels // width
        checks.divisible("channels", channels, "conv_groups", conv_groups)
        if norm_groups == "auto":
            norm_groups = max(groups for groups in range(1, most + 1) if channels % groups == 0)
        norm_groups = most if norm_groups is None else norm_groups
        if norm_groups < 1 or channels % norm_groups:
            expected = (
                f"channels must be divisible by norm_groups = {norm_groups} (norm_groups='auto' finds some that are)"
            )
            checks.fail(expected, channels)
        self.channels = channels
        options = {"device": device, "dtype": dtype}

        def strips() -> nn.Sequential:
            conv = nn.Conv1d(
                channels,
                channels,
                kernel,
                padding=kernel // 2,
                groups=conv_groups,
                bias=False,
                **options,  # type: ignore[arg-type]
            )
            return nn.Sequential(conv, nn.GroupNorm(norm_groups, channels, **options))  # type: ignore[arg-type]

        self.strips = strips()
        self.strips_w = None if shared else strips()
        if init == "identity":
            for norm in self.modules():
                if isinstance(norm, nn.GroupNorm):
                    nn.init.constant_(norm.bias, 4.0)

    def gates(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Gates of the rows ``(batch, channels, height)`` and of the columns ``(batch, channels, width)``."""
        a_h: Tensor = self.strips(input.mean(dim=3)).sigmoid()
        a_w: Tensor = (self.strips if self.strips_w is None else self.strips_w)(input.mean(dim=2)).sigmoid()
        return a_h, a_w

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.channels)
        maps = input[None] if input.ndim == 3 else input
        a_h, a_w = self.gates(maps)
        output = gate_rows_and_columns(maps, a_h, a_w)
        return output[0] if input.ndim == 3 else output


class CoordinateAttention(nn.Module):
    """Coordinate attention: strips as in :class:`ELA`, squeezed together to few channels with batch normalisation.

        f = hardswish(BatchNorm(Conv1x1([z_h; z_w]))),   y = x · σ(Conv1x1(f_h)) · σ(Conv1x1(f_w)).

    Args:
        channels: Channels of the maps ``(batch, channels, height, width)``.
        reduction: The squeezed strips have ``max(8, channels / reduction)`` channels.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If ``reduction`` is below 1, or the input has another number of dimensions or channels.

    Source:
        arXiv:2103.02907, section 3.2.

    Example:
        >>> CoordinateAttention(64)(torch.randn(2, 64, 14, 10)).shape
        torch.Size([2, 64, 14, 10])
    """

    def __init__(
        self,
        channels: int,
        reduction: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("reduction", reduction, 1)
        squeezed = max(8, channels // reduction)
        self.channels = channels
        self.squeeze = nn.Sequential(
            nn.Conv1d(channels, squeezed, 1, device=device, dtype=dtype),
            nn.BatchNorm1d(squeezed, device=device, dtype=dtype),
            nn.Hardswish(),
        )
        self.expand_h = nn.Conv1d(squeezed, channels, 1, device=device, dtype=dtype)
        self.expand_w = nn.Conv1d(squeezed, channels, 1, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        checks.size("input", input, 1, self.channels)
        strips: Tensor = self.squeeze(torch.cat([input.mean(dim=3), input.mean(dim=2)], dim=2))
        a_h = self.expand_h(strips[:, :, : input.shape[2]]).sigmoid()
        a_w = self.expand_w(strips[:, :, input.shape[2] :]).sigmoid()
        return gate_rows_and_columns(input, a_h, a_w)


def insert_attention(model: nn.Module, factory: Callable[[int], nn.Module], where: Place = "branch_end") -> nn.Module:
    """A copy of ``model`` with attention layers inserted.

    A *block* is a module of a class of its own (no ``nn.Sequential``) with two convolutions or more in it, and none
    such inside: a residual block of any ResNet, an inverted bottleneck.

    Args:
        model: Any convolutional network.
        factory: ``factory(channels)`` makes an attention layer.
        where: ``"branch_end"`` after the last normalisation of each block's branch, that is before its addition;
            ``"block_end"`` after each block; ``"depthwise"`` after every depth-wise convolution; ``"norm"`` after the
            normalisation of every convolution, for networks without blocks.

    Raises:
        InputError: If the network has no such place, or ``where`` is unknown.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU())
        >>> [type(m).__name__ for m in insert_attention(model, ELA, "norm")[1]]
        ['BatchNorm2d', 'ELA']
    """
    checks.known("place", where, get_args(Place))
    chosen: dict[str, int] = {}  # name of a module, and the channels that it gives
    blocks = _blocks(model)
    if where == "block_end":
        chosen = {name: _convs(block)[-1].out_channels for name, block in blocks.items()}
    elif where == "branch_end":
        for name, block in blocks.items():
            norms = [key for key, layer in block.named_modules() if isinstance(layer, _NORMS) and not _is_shortcut(key)]
            if norms:
                chosen[f"{name}.{norms[-1]}"] = _features(block.get_submodule(norms[-1]))
    elif where == "depthwise":
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels:
                chosen[name] = layer.out_channels
    else:
        chosen = {name: _features(layer) for name, layer in model.named_modules() if isinstance(layer, _NORMS)}
    if not chosen:
        raise checks.InputError(f"the network has no place {where!r} for attention: {_MISSING[where]}")
    by_module = {model.get_submodule(name): channels for name, channels in chosen.items()}
    kinds = {type(module) for module in by_module}

    def follow(module: nn.Module) -> nn.Module:
        channels = _convs(module)[-1].out_channels if _convs(module) else _features(module)
        return nn.Sequential(module, factory(channels))

    return swap(model, dict.fromkeys(kinds, follow), where=lambda name, _: name in chosen)


_MISSING = {
    "branch_end": "no block of two convolutions with a normalisation was found",
    "block_end": "no block of two convolutions was found",
    "depthwise": "no depth-wise convolution was found",
    "norm": "no BatchNorm2d, GroupNorm or InstanceNorm2d was found",
}


def _convs(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    plain = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    wide = {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, plain) and len(_convs(module)) > 1
    }
    return {name: module for name, module in wide.items() if not any(other.startswith(f"{name}.") for other in wide)}


def _is_shortcut(name: str) -> bool:
    return any(word in name for word in ("shortcut", "downsample", "skip"))


def _features(norm: nn.Module) -> int:
    return int(norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features)  # type: ignore[arg-type]


__all__ = ["ELA", "CoordinateAttention", "Place", "Variant", "insert_attention"]
