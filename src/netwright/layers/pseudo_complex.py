"""Pseudo-complex layers on real pairs (Watcharasupat et al. 2021, arXiv:2110.00745): W x = (W_r + i W_i)(x_r + i x_i).

A complex tensor ``(batch, channels, ...)`` is kept as the real one ``(batch, channels, 2, ...)``, its real plane before
its imaginary one: nothing but real operations, so that networks train under autocast and export to ONNX.
Public names: :class:`PseudoComplex`, :func:`pseudo_complex_conv2d`, :class:`Planewise`,
:func:`planewise_batch_norm2d`, :func:`to_pairs`, :func:`from_pairs`, :func:`pair_product`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

_CONVOLVE: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


def to_pairs(z: Tensor) -> Tensor:
    """Complex ``(batch, channels, ...)`` as real pairs ``(batch, channels, 2, ...)``.

    Raises:
        InputError: If the tensor is not complex, or has no channels.
    """
    if not z.is_complex():
        checks.fail("a tensor to make pairs of must be complex", z.dtype)
    if z.ndim < 2:
        checks.fail("a tensor to make pairs of must have shape (batch, channels, ...)", f"shape {tuple(z.shape)}")
    return torch.stack([z.real, z.imag], dim=2)


def from_pairs(pairs: Tensor) -> Tensor:
    """Real pairs ``(batch, channels, 2, ...)`` as the complex ``(batch, channels, ...)``.

    Raises:
        InputError: If the tensor has no planes.

    Example:
        >>> z = torch.randn(4, 3, 5, dtype=torch.complex64)
        >>> torch.equal(from_pairs(to_pairs(z)), z)
        True
    """
    check_pairs(pairs)
    return torch.complex(*pairs.unbind(2))


def pair_product(a: Tensor, b: Tensor) -> Tensor:
    """The complex product of two tensors of real pairs whose shapes ``(batch, channels, 2, ...)`` broadcast.

    Raises:
        InputError: If one of them has no planes.
    """
    check_pairs(a)
    check_pairs(b)
    (ar, ai), (br, bi) = a.unbind(2), b.unbind(2)
    return torch.stack([ar * br - ai * bi, ar * bi + ai * br], dim=2)


def check_pairs(input: Tensor) -> None:
    """Check that a tensor is one of real pairs.

    Raises:
        InputError: If it is complex, or its third dimension is not of size 2.
    """
    if input.is_complex():
        checks.fail("input must be real pairs (batch, channels, 2, ...), see to_pairs", input.dtype)
    if input.ndim < 3 or input.shape[2] != 2:
        checks.fail("input must have shape (batch, channels, 2, ...)", f"shape {tuple(input.shape)}")


class PseudoComplex(nn.Module):
    r"""A complex layer out of two real ones, R and I.

    .. math:: y = \big(R(x_r) - I(x_i)\big) + i \big(R(x_i) + I(x_r)\big)

    For linear R and I with matrices (kernels) :math:`W_r, W_i` this is the complex :math:`(W_r + i W_i) x`, plus
    :math:`(b_r - b_i) + i (b_r + b_i)` if they have biases. A convolution is run once, on both planes, with the kernel
    :math:`\left(\begin{smallmatrix} W_r & -W_i \\ W_i & W_r \end{smallmatrix}\right)`; any other layer once for each
    plane.

    Args:
        layer_factory: Makes R, and in a second call I: ``partial(nn.Conv2d, 4, 8, 3)``, for instance.

    Shape:
        ``(batch, channels, 2, ...)`` to what the layer makes of ``(batch, channels, ...)``, in pairs.

    Raises:
        InputError: If the factory gives the same layer twice, or the input is complex or has no planes.

    Source:
        arXiv:2110.00745, section 2.

    Example:
        >>> layer = PseudoComplex(lambda: nn.Conv2d(2, 8, 3, padding=1))
        >>> layer(torch.randn(4, 2, 2, 33, 10)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([4, 8, 2, 33, 10]), 304)
    """

    def __init__(self, layer_factory: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.real = layer_factory()
        self.imag = layer_factory()
        if self.real is self.imag:
            checks.fail("layer_factory must make a new layer in each call", "the same one twice")

    def forward(self, input: Tensor) -> Tensor:
        check_pairs(input)
        real, imag = self.real, self.imag
        convolve = _CONVOLVE.get(type(real))
        if convolve is not None and real.padding_mode == "zeros":
            weight, bias = _stacked(real.weight, imag.weight), None
            if isinstance(real.bias, Tensor) and isinstance(imag.bias, Tensor):
                bias = torch.stack([real.bias - imag.bias, real.bias + imag.bias], 1).flatten()
            planes = input.flatten(1, 2)
            output = convolve(planes, weight, bias, real.stride, real.padding, real.dilation, real.groups)
            return torch.unflatten(output, 1, (-1, 2))
        x_r, x_i = input.unbind(2)
        return torch.stack([real(x_r) - imag(x_i), real(x_i) + imag(x_r)], dim=2)


def _stacked(real: Any, imag: Any) -> Tensor:
    """Kernel ``(2 out, 2 in, ...)`` on interleaved planes, from two of ``(out, in, ...)``."""
    rows = [torch.stack([real, -imag], 2), torch.stack([imag, real], 2)]
    return torch.stack(rows, 1).flatten(2, 3).flatten(0, 1)


def pseudo_complex_conv2d(
    in_channels: int, out_channels: int, kernel_size: int | tuple[int, int], **options: Any
) -> PseudoComplex:
    """A :class:`PseudoComplex` convolution of complex channels; takes what :class:`torch.nn.Conv2d` takes."""
    return PseudoComplex(partial(nn.Conv2d, in_channels, out_channels, kernel_size, **options))


class Planewise(nn.Module):
    """A real layer of 2n channels on the planes of n complex ones, each with its own parameters and statistics.

    The paper normalises so: real and imaginary planes on their own, not whitened together.

    Args:
        layer: Takes ``(batch, 2 channels, ...)``, where the planes of a channel lie side by side, and keeps the shape.

    Shape:
        ``(batch, channels, 2, ...)`` to the same.

    Example:
        >>> Planewise(nn.BatchNorm2d(16))(torch.randn(4, 8, 2, 33, 10)).shape
        torch.Size([4, 8, 2, 33, 10])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        check_pairs(input)
        return torch.unflatten(self.layer(input.flatten(1, 2)), 1, (-1, 2))


def planewise_batch_norm2d(channels: int, **options: Any) -> Planewise:
    """Batch normalisation of the planes of ``channels`` complex channels; options as of ``torch.nn.BatchNorm2d``."""
    return Planewise(nn.BatchNorm2d(2 * channels, **options))


__all__ = [
    "Planewise",
    "PseudoComplex",
    "check_pairs",
    "from_pairs",
    "pair_product",
    "planewise_batch_norm2d",
    "pseudo_complex_conv2d",
    "to_pairs",
]
