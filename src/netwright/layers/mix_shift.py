"""Mix-Shift (Zheng et al. 2022, arXiv:2202.06510): shifted copies, each mixed by a window that grows with the shift.

:class:`MixShift` is the layer, :func:`receptive_field` the map of what it sees.
:mod:`netwright.layers.mix_shift_conv` puts it in the place of convolutions.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers._geometry import is_depthwise, keeps_places

SHIFTS = (-2, -1, 0, 1, 2)
KERNELS = (1, 1, 3, 5, 7)

# above it, the one convolution costs more than the loop over chunks; torch has slow kernels for the largest windows
_LARGEST_WINDOW = 11


class MixShift(nn.Module):
    r"""Channels in chunks, each rolled sideways and up, mixed by depth-wise convolutions of its own, and summed.

    .. math:: y_i = K_i * \mathrm{roll}_{\rightarrow s_i}(x_i) + L_i * \mathrm{roll}_{\downarrow s_i}(x_i) + b_i + c_i

    :math:`x_i` is chunk i of the channels, :math:`s_i` its shift in pixels; the roll is circular. K and L are
    depth-wise kernels of :math:`k_i \times k_i` pixels, with zeros beyond the edges of the rolled map. With growing
    kernels, what comes from far away is mixed over a larger region. A kernel of one pixel is a factor and a bias for
    each channel.

    In eval mode all this is one depth-wise convolution, whose kernels (kept as long as the parameters stay as they are)
    hold those of both rolls at their shifted places, and a repair of the edges, where the roll wraps around. Only
    writing *through* ``.data`` of a parameter is invisible to it; call ``layer.train()`` after it. On the ``meta``
    device the convolutions of the equation are counted.

    Chunks are those of :func:`torch.chunk` (96 channels in five are 20, 20, 20, 20 and 16); where that would give fewer
    (16 channels in five), they are as equal as possible. Parameters: Σ_i 2 · chunk_i · (k_i² + 1).

    Args:
        dim: Channels of the input ``(batch, dim, height, width)`` or ``(dim, height, width)``, and of the output.
        shifts: Pixels for each chunk, to the right and down; below zero to the left and up.
        kernels: Size of the window of each chunk, odd.
        bias: Whether there are biases b and c.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If there are not as many kernels as shifts, a kernel is even, there are fewer channels than chunks,
            or a shift is not smaller than the height and the width of the input.

    Source:
        arXiv:2202.06510, section 3; the authors' code (MIT), for what lies beyond the edges.

    Example:
        >>> layer = MixShift(96)
        >>> layer(torch.randn(2, 96, 14, 14)).shape, layer.chunks, sum(p.numel() for p in layer.parameters())
        (torch.Size([2, 96, 14, 14]), (20, 20, 20, 20, 16), 3200)
    """

    horizontal_bias: nn.Parameter | None
    vertical_bias: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        shifts: Sequence[int] = SHIFTS,
        kernels: Sequence[int] = KERNELS,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_windows(shifts, kernels)
        checks.at_least(f"dim for {len(shifts)} chunks", dim, len(shifts))
        self.dim = dim
        self.shifts = tuple(shifts)
        self.kernels = tuple(kernels)
        self.chunks = _chunks(dim, len(shifts))

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        for direction in ("horizontal", "vertical"):
            for index, (size, kernel) in enumerate(zip(self.chunks, self.kernels, strict=True)):
                self.register_parameter(f"{direction}_{index}", empty(size, 1, kernel, kernel))
            self.register_parameter(f"{direction}_bias", empty(dim) if bias else None)
        reaches = [k // 2 for k in self.kernels]
        # how far the window over both rolls of all chunks reaches up and left, and down and right
        self._before = max(r + max(s, 0) for r, s in zip(reaches, self.shifts, strict=True))
        self._after = max(r - min(s, 0) for r, s in zip(reaches, self.shifts, strict=True))
        self._cache = Cache()
        self.reset_parameters()

    @classmethod
    def like(cls, conv: nn.Conv2d, shifts: Sequence[int] = SHIFTS, kernels: Sequence[int] = KERNELS) -> Self:
        """Replace a depth-wise convolution that keeps the size of the map: its bias and the power of its kernels.

        :func:`netwright.layers.mix_shift_conv.mix_shift_like` replaces any convolution.

        Raises:
            InputError: If ``conv`` is not depth-wise, or changes the size of the map.
        """
        if not (keeps_places(conv) and is_depthwise(conv) and conv.stride == (1, 1)):
            checks.fail("conv must be depth-wise, undilated and keep the size of the map", conv)
        return cls.like_depthwise(conv, shifts, kernels)

    @classmethod
    def like_depthwise(cls, conv: nn.Conv2d, shifts: Sequence[int], kernels: Sequence[int]) -> Self:
        """As :meth:`like`, for a convolution that may have a stride, which the new layer has not."""
        place = conv.weight
        new = cls(conv.in_channels, shifts, kernels, conv.bias is not None, device=place.device, dtype=place.dtype)
        with torch.no_grad():
            factor = (weight_power(conv.weight) / new.power()).sqrt()
            for weight in (*new.horizontal, *new.vertical):
                weight.mul_(factor)
        new.requires_grad_(conv.weight.requires_grad)
        for bias in (new.horizontal_bias, new.vertical_bias):  # their sum is what counts
            if bias is not None and conv.bias is not None:
                with torch.no_grad():
                    bias.copy_(conv.bias / 2)
                bias.requires_grad_(conv.bias.requires_grad)
        return new

    @property
    def horizontal(self) -> list[Tensor]:
        """The kernels K of the chunks, ``(channels, 1, k, k)`` each."""
        return [getattr(self, f"horizontal_{index}") for index in range(len(self.chunks))]

    @property
    def vertical(self) -> list[Tensor]:
        """The kernels L of the chunks, ``(channels, 1, k, k)`` each."""
        return [getattr(self, f"vertical_{index}") for index in range(len(self.chunks))]

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.dim)
        check_map(self.shifts, (input.shape[-2], input.shape[-1]))
        batch = input if input.ndim == 4 else input[None]
        window = self._before + self._after + 1
        plain = self.training or batch.device.type == "meta" or window > _LARGEST_WINDOW
        mixed = self._by_chunks(batch) if plain else self._at_once(batch)
        return mixed if input.ndim == 4 else mixed[0]

    def _by_chunks(self, input: Tensor) -> Tensor:
        """The equation, chunk after chunk."""
        horizontal = zip(self.horizontal, self._split(self.horizontal_bias), strict=True)
        vertical = zip(self.vertical, self._split(self.vertical_bias), strict=True)
        mixed = []
        for chunk, shift, sideways, upright in zip(
            torch.split(input, list(self.chunks), 1), self.shifts, horizontal, vertical, strict=True
        ):
            mixed.append(_rolled_conv(chunk, *sideways, shift, 3) + _rolled_conv(chunk, *upright, shift, 2))
        return torch.cat(mixed, 1)

    def _at_once(self, input: Tensor) -> Tensor:
        """All chunks and both rolls as one convolution, then what the edges lack; in the memory format of the input."""
        horizontal, vertical = self.horizontal, self.vertical
        bias = None
        if self.horizontal_bias is not None and self.vertical_bias is not None:
            bias = self.horizontal_bias + self.vertical_bias
        before, after = self._before, self._after
        padding = max(before, after)
        mixed = functional.conv2d(input, self._window(), bias, padding=padding, groups=self.dim)
        if before != after:  # a padding of its own would cost more than what is computed in vain here
            height, width = input.shape[-2:]
            skip = padding - before
            mixed = mixed[..., skip : skip + height, skip : skip + width].clone()
        first = 0
        for index, (size, shift) in enumerate(zip(self.chunks, self.shifts, strict=True)):
            if shift:
                mine, chunk = mixed.narrow(1, first, size), input.narrow(1, first, size)
                _repair_edges_(mine, chunk, horizontal[index], shift, 3)
                _repair_edges_(mine, chunk, vertical[index], shift, 2)
            first += size
        return mixed

    def _window(self) -> Tensor:
        """The kernels ``(dim, 1, window, window)`` of both rolls, each at its shifted place."""
        sources = (*self.horizontal, *self.vertical)
        if any(type(source) is not nn.Parameter for source in sources):  # inside of a functional call, or masked
            return self._build_window()
        return self._cache.get(self._build_window, *sources)

    def _build_window(self) -> Tensor:
        before, after = self._before, self._after
        windows = []
        for horizontal, vertical, shift in zip(self.horizontal, self.vertical, self.shifts, strict=True):
            reach = horizontal.shape[-1] // 2
            still = (before - reach, after - reach)
            moved = (before - reach - shift, after - reach + shift)
            windows.append(functional.pad(horizontal, moved + still) + functional.pad(vertical, still + moved))
        return torch.cat(windows)

    def _split(self, bias: Tensor | None) -> Sequence[Tensor | None]:
        return [None] * len(self.chunks) if bias is None else torch.split(bias, list(self.chunks))

    def reset_parameters(self) -> None:
        r"""Draw kernels and biases of each chunk from U(±1/k), as torch does for a depth-wise convolution."""
        with torch.no_grad():
            for weight in (*self.horizontal, *self.vertical):
                weight.uniform_(-1 / weight.shape[-1], 1 / weight.shape[-1])
            for bias in (self.horizontal_bias, self.vertical_bias):
                for part, kernel in zip(self._split(bias), self.kernels, strict=True):
                    if part is not None:
                        part.uniform_(-1 / kernel, 1 / kernel)

    def power(self) -> Tensor:
        """Mean over the channels of the sum of squares of their kernels: what white noise is amplified by."""
        return torch.stack([weight.square().sum() for weight in (*self.horizontal, *self.vertical)]).sum() / self.dim

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        bias = self.horizontal_bias is not None
        return f"{self.dim}, shifts={self.shifts}, kernels={self.kernels}, bias={bias}"


def receptive_field(layer: MixShift) -> Tensor:
    """How many channels look at each place around an output pixel.

    Chunk i sees its k_i × k_i window around the pixels s_i to the left and s_i above: what is rolled to the right
    comes from the left. Near the edges of the map the roll wraps around and the window is cut; this is the map away
    from them.

    Args:
        layer: A layer of any sizes.

    Returns:
        Counts ``(2r + 1, 2r + 1)``, int64, with the output pixel in the middle; r is the farthest that a chunk sees.

    Source:
        arXiv:2202.06510, figure 2.

    Example:
        >>> receptive_field(MixShift(2, shifts=(0, 1), kernels=(3, 1)))
        tensor([[1, 2, 1],
                [2, 1, 1],
                [1, 1, 1]])
    """
    reach = max(k // 2 + abs(s) for s, k in zip(layer.shifts, layer.kernels, strict=True))
    field = torch.zeros(2 * reach + 1, 2 * reach + 1, dtype=torch.int64)
    for size, shift, kernel in zip(layer.chunks, layer.shifts, layer.kernels, strict=True):
        seen = torch.zeros_like(field, dtype=torch.bool)
        still, moved = reach - kernel // 2, reach - kernel // 2 - shift
        seen[still : still + kernel, moved : moved + kernel] = True
        seen[moved : moved + kernel, still : still + kernel] = True
        field += size * seen
    return field


def check_windows(shifts: Sequence[int], kernels: Sequence[int]) -> None:
    """Check that there is an odd kernel for every shift."""
    checks.at_least("number of shifts", len(shifts), 1)
    if len(kernels) != len(shifts):
        checks.fail(f"kernels must be as many as shifts ({len(shifts)})", len(kernels))
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
        checks.fail("kernels must be odd and positive", tuple(kernels))


def check_map(shifts: Sequence[int], size: tuple[int, int], what: str = "the map") -> None:
    """Check that all shifts are smaller than the height and the width of a map."""
    farthest = max(map(abs, shifts))
    if farthest >= min(size):
        height, width = size
        checks.fail(f"shifts up to {farthest} pixels need more than {farthest} in {what}", f"{height}×{width}")


def _chunks(dim: int, number: int) -> tuple[int, ...]:
    size = -(-dim // number)
    if size * (number - 1) < dim:
        return (size,) * (number - 1) + (dim - size * (number - 1),)
    return tuple(dim // number + (index < dim % number) for index in range(number))


def _rolled_conv(input: Tensor, weight: Tensor, bias: Tensor | None, shift: int, dim: int) -> Tensor:
    """Roll, then convolve depth-wise."""
    rolled = input.roll(shift, dim) if shift else input
    return functional.conv2d(rolled, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))


def _repair_edges_(mixed: Tensor, input: Tensor, weight: Tensor, shift: int, dim: int) -> None:
    """Put right what one convolution with a shifted kernel does at the edges, where the roll wraps around.

    Rolled by s, the last s lines of pixels come back at the first s places; the shifted kernel sees zeros there. And it
    sees these lines in their old place beyond the other edge, where the rolled map has ended. Both are the convolution
    of just these lines: added at the one edge, taken away at the other.
    """
    size, lines, reach = input.shape[dim], abs(shift), weight.shape[-1] // 2
    wrapped = input.narrow(dim, size - lines if shift > 0 else 0, lines)
    new, old = (0, size) if shift > 0 else (size - lines, -lines)
    if reach == 0:
        factor = weight.to(mixed.dtype).view(-1, 1, 1)
        mixed.narrow(dim, new, lines).addcmul_(wrapped.to(mixed.dtype), factor)
        return
    padding = (reach, 2 * reach) if dim == 3 else (2 * reach, reach)
    wrapped = wrapped.contiguous(memory_format=torch.channels_last)  # the faster one for few pixels
    seen = functional.conv2d(wrapped, weight, padding=padding, groups=input.shape[1])
    for place, sign in ((new, 1), (old, -1)):
        first, last = max(place - reach, 0), min(place + lines + reach, size)
        if first < last:
            part = seen.narrow(dim, first - place + reach, last - first)
            mixed.narrow(dim, first, last - first).add_(part, alpha=sign)


def weight_power(weight: Tensor) -> Tensor:
    """Mean over the output channels of the sum of squares of their weights."""
    return weight.square().flatten(1).sum(1).mean()


__all__ = [
    "KERNELS",
    "SHIFTS",
    "MixShift",
    "check_map",
    "check_windows",
    "receptive_field",
    "weight_power",
]
