"""Binary layers for inference: one bit a weight, saved and computed with as such.

:func:`export_binary` exchanges trained BiPer layers for :class:`PackedConv2d` and :class:`PackedLinear`, which hold
packed weights, a scale for each output, and nothing else.
"""

import math
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.compression.bits import as_words, count_bits, pack_signs, packed_matmul, unpack_signs
from netwright.layers._geometry import Size
from netwright.layers.binary import BinaryConv2d, BinaryLinear
from netwright.layers.biper import BiPerConv2d, BiPerLinear, biper_layers
from netwright.surgery import swap


class _Packed(nn.Module):
    """Packed weight, scale, bias: what both packed layers share."""

    packed: Tensor
    alpha: Tensor
    bias: Tensor | None
    popcount: bool
    binarize_input: bool

    def _make_buffers(
        self,
        weight: tuple[int, ...],
        bias: bool,
        popcount: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        if popcount and not self.binarize_input:
            raise checks.InputError("popcount=True needs binary inputs, got binarize_input=False")
        self.popcount = popcount
        size = math.prod(weight[1:])
        make = partial(torch.zeros, device=device)
        self.register_buffer("packed", make(weight[0], -(-size // 8), dtype=torch.uint8))
        self.register_buffer("alpha", make(weight[0], *[1] * (len(weight) - 2), dtype=dtype))
        self.register_buffer("bias", make(weight[0], dtype=dtype) if bias else None)

    def _take_over(self, layer: BiPerConv2d | BiPerLinear) -> None:
        with torch.no_grad():
            # the kernel's pixels before its channels, so that the bits of a pixel lie together
            self.packed.copy_(pack_signs(layer.binary_weight().movedim(1, -1).flatten(1)))
            self.alpha.copy_(layer.alpha)
            if self.bias is not None and layer.bias is not None:
                self.bias.copy_(layer.bias)

    def _finish(self, products: Tensor) -> Tensor:
        """Scale and shift the products of signs."""
        if self.bias is None:
            return products * self.alpha
        return torch.addcmul(self.bias.view_as(self.alpha), products, self.alpha)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, popcount={self.popcount}"


class PackedConv2d(_Packed, BinaryConv2d):
    """Convolution with packed binary weights, for inference: what :class:`BiPerConv2d` is in stage 2.

    Two ways of computing, which give the same. By default each call unpacks the weights and convolves: floats of one
    layer exist at a time, and gradients of the input flow. With ``popcount`` the signs of the input are packed, too,
    and products counted bit by bit (XNOR and popcount), without a floating-point weight; there is no gradient then.

    Args:
        in_channels: As in torch, as are all arguments up to ``padding_mode``.
        out_channels: Channels of the output.
        kernel_size: As in torch.
        stride: As in torch.
        padding: As in torch.
        dilation: As in torch.
        groups: As in torch.
        bias: Whether there is a bias.
        padding_mode: As in torch.
        binarize_input: Whether the input is reduced to its signs.
        popcount: How to compute.
        device: Where the buffers are.
        dtype: Floating-point type of scale and bias.

    Raises:
        InputError: If ``popcount`` is asked for without ``binarize_input``, or the input has the wrong channels or is
            not floating-point.

    Example:
        >>> layer = BiPerConv2d(16, 32, 3, padding=1, stage=2).eval()
        >>> packed = PackedConv2d.like(layer, popcount=True)
        >>> packed.packed.shape, packed.packed.dtype
        (torch.Size([32, 18]), torch.uint8)
        >>> x = torch.randn(2, 16, 8, 8)
        >>> torch.allclose(packed(x), layer(x), atol=1e-4)
        True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size | str = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = False,
        padding_mode: str = "zeros",
        *,
        binarize_input: bool = True,
        popcount: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        BinaryConv2d.__init__(
            self,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            binarize_input=binarize_input,
        )
        self._make_buffers((out_channels, in_channels // groups, *self.kernel_size), bias, popcount, device, dtype)

    @classmethod
    def like(cls, layer: BiPerConv2d, *, popcount: bool = False) -> Self:
        """Pack ``layer``; ``popcount`` is ignored where its input is real-valued."""
        new = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            padding_mode=layer.padding_mode,
            **_common_arguments(layer, popcount),
        )
        new._take_over(layer)
        return new.train(layer.training)

    def binary_weight(self) -> Tensor:
        """The weight as −1 and +1, made anew from its bits."""
        inner = self.in_channels // self.groups
        signs = unpack_signs(self.packed, math.prod(self.kernel_size) * inner, self.alpha.dtype)
        return signs.view(self.out_channels, *self.kernel_size, inner).movedim(-1, 1)

    def _signs(self, input: Tensor) -> Tensor:
        return input if self.popcount else super()._signs(input)  # packing takes the signs

    def _convolve(self, input: Tensor) -> Tensor:
        if not self.popcount:
            return self._finish(self._conv2d(input, self.binary_weight(), None))
        padded, _ = self._padded(input)
        batched = padded if padded.ndim == 4 else padded.unsqueeze(0)
        sides = (0, 0, 0, 0) if self.padding_mode != "zeros" else self.sides
        output = self._finish(self._count(batched, sides).to(input.dtype))
        return output if padded.ndim == 4 else output.squeeze(0)

    def _count(self, input: Tensor, sides: tuple[int, ...]) -> Tensor:
        """Products of the signs of ``(batch, channels, height, width)``, padded by zeros on all ``sides``."""
        batch, _, height, width = input.shape
        inner = self.in_channels // self.groups
        # (batch, height, width, groups, bytes)
        packed = pack_signs(input.permute(0, 2, 3, 1).reshape(batch, height, width, self.groups, inner))
        patches = self._patches(functional.pad(packed, (0, 0, 0, 0, *sides)))
        out_height, out_width = patches.shape[1:3]
        words = as_words(patches.flatten(-2)).flatten(0, 2).transpose(0, 1)
        weight = self._bytes_of_pixels()
        by_group = as_words(weight.reshape(self.groups, self.out_channels // self.groups, -1))
        products = packed_matmul(words, by_group, math.prod(self.kernel_size) * inner)
        products = products.view(self.groups, batch, out_height, out_width, -1).permute(1, 0, 4, 2, 3).flatten(1, 2)
        if any(sides):
            products = products + self._padding_counted(weight, height, width, sides)
        return products

    def _patches(self, pixels: Tensor) -> Tensor:
        """What lies under the kernel: ``(batch, height', width', groups, pixels of the kernel, bytes)``."""
        (down, right), (kernel_height, kernel_width) = self.dilation, self.kernel_size
        height = (pixels.shape[1] - down * (kernel_height - 1) - 1) // self.stride[0] + 1
        width = (pixels.shape[2] - right * (kernel_width - 1) - 1) // self.stride[1] + 1
        shifted = [
            pixels[
                :,
                row * down : row * down + (height - 1) * self.stride[0] + 1 : self.stride[0],
                column * right : column * right + (width - 1) * self.stride[1] + 1 : self.stride[1],
            ]
            for row in range(kernel_height)
            for column in range(kernel_width)
        ]
        return torch.stack(shifted, dim=-2)

    def _bytes_of_pixels(self) -> Tensor:
        """The weight as ``(out_channels, pixels of the kernel, bytes)``, in which every pixel starts a byte."""
        pixels, inner = math.prod(self.kernel_size), self.in_channels // self.groups
        if inner % 8 == 0:
            return self.packed.view(self.out_channels, pixels, -1)
        signs = unpack_signs(self.packed, pixels * inner, self.alpha.dtype)
        return pack_signs(signs.view(self.out_channels, pixels, inner))

    def _padding_counted(self, weight: Tensor, height: int, width: int, sides: tuple[int, ...]) -> Tensor:
        """What has to be added because pixels of the padding were taken for −1 and are 0: the weights they met."""
        ones = count_bits(as_words(weight)).sum(-1, dtype=torch.int64)
        weights = (2 * ones - self.in_channels // self.groups).to(self.alpha.dtype)
        inside = functional.pad(weights.new_ones(1, height, width, 1, 1), (0, 0, 0, 0, *sides))
        outside = 1 - self._patches(inside)[0, :, :, 0, :, 0]
        met: Tensor = torch.einsum("hwp,op->ohw", outside, weights)
        return met.to(torch.int32)


class PackedLinear(_Packed, BinaryLinear):
    """Linear layer with packed binary weights, for inference; see :class:`PackedConv2d`.

    Args:
        in_features: As in torch.
        out_features: As in torch.
        bias: Whether there is a bias.
        binarize_input: Whether the input is reduced to its signs.
        popcount: See :class:`PackedConv2d`.
        device: Where the buffers are.
        dtype: Floating-point type of scale and bias.

    Example:
        >>> packed = PackedLinear.like(BiPerLinear(64, 10, stage=2))
        >>> packed(torch.randn(5, 64)).shape, packed.packed.numel()
        (torch.Size([5, 10]), 80)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        binarize_input: bool = True,
        popcount: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        BinaryLinear.__init__(self, in_features, out_features, binarize_input=binarize_input)
        self._make_buffers((out_features, in_features), bias, popcount, device, dtype)

    @classmethod
    def like(cls, layer: BiPerLinear, *, popcount: bool = False) -> Self:
        """Pack ``layer``; ``popcount`` is ignored where its input is real-valued."""
        new = cls(layer.in_features, layer.out_features, **_common_arguments(layer, popcount))
        new._take_over(layer)
        return new.train(layer.training)

    def binary_weight(self) -> Tensor:
        """The weight as −1 and +1, made anew from its bits."""
        return unpack_signs(self.packed, self.in_features, self.alpha.dtype)

    def _signs(self, input: Tensor) -> Tensor:
        return input if self.popcount else super()._signs(input)

    def _multiply(self, input: Tensor) -> Tensor:
        if not self.popcount:
            return self._finish(functional.linear(input, self.binary_weight()))
        rows = as_words(pack_signs(input.reshape(-1, self.in_features)))
        products = packed_matmul(rows, as_words(self.packed), self.in_features)
        return self._finish(products.to(input.dtype)).view(*input.shape[:-1], self.out_features)


def export_binary(model: nn.Module, *, popcount: bool = False) -> nn.Module:
    """A copy of ``model`` whose BiPer layers hold one bit a weight: ``in·out·kernel / 8`` bytes and a scale per output.

    The copy computes what the model does in stage 2, from the bits; it is for inference and cannot be trained further.
    Its ``state_dict`` holds the bits, as ``torch.uint8``. To load one, export a model of the same architecture (which
    may be on the ``meta`` device, with ``assign=True``) and load into that.

    Args:
        model: A network with BiPer layers, all in stage 2.
        popcount: Compute by counting bits rather than by unpacking; see :class:`PackedConv2d`. Layers with real-valued
            inputs unpack in any case.

    Raises:
        InputError: If there is no BiPer layer, or one is in stage 1.

    Example:
        >>> model = nn.Sequential(BiPerConv2d(64, 64, 3, stage=2), nn.ReLU())
        >>> export_binary(model)
        Sequential(
          (0): PackedConv2d(64, 64, kernel_size=(3, 3), ..., popcount=False)
          (1): ReLU()
        )
    """
    for name, layer in biper_layers(model).items():
        _check_stage(layer, name)
    makers: dict[type[nn.Module], Any] = {
        BiPerConv2d: partial(PackedConv2d.like, popcount=popcount),
        BiPerLinear: partial(PackedLinear.like, popcount=popcount),
    }
    return swap(model, makers)


def _check_stage(layer: BiPerConv2d | BiPerLinear, name: str = "") -> None:
    if layer.stage != 2:
        raise checks.InputError(
            f"only layers in stage 2 have binary weights, got stage {layer.stage} in {name or 'the layer'}; "
            "train in stage 2 after set_stage(model, 2)"
        )


def _common_arguments(layer: BiPerConv2d | BiPerLinear, popcount: bool) -> dict[str, Any]:
    _check_stage(layer)
    return {
        "bias": layer.bias is not None,
        "binarize_input": layer.binarize_input,
        "popcount": popcount and layer.binarize_input,
        "device": layer.weight.device,
        "dtype": layer.weight.dtype,
    }


__all__ = ["PackedConv2d", "PackedLinear", "export_binary"]
