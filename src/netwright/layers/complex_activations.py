"""Complex activations, pooling and upsampling (arXiv:2302.04584; Trabelsi et al. 2018, arXiv:1705.09792, section 3.4).

Split activations (CReLU) treat both parts for themselves; the others look at the modulus or the phase. None but the
identity is both bounded and holomorphic; what backward computes is torch's conjugate Wirtinger gradient.
"""

from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import Size, sizes


class CReLU(nn.Module):
    """ReLU of the real part + i·ReLU of the imaginary part, of any shape.

    Source:
        arXiv:1705.09792, equation 4.

    Example:
        >>> CReLU()(torch.tensor([1 - 2j, -1 + 3j]))
        tensor([1.+0.j, 0.+3.j])
    """

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        return torch.view_as_complex(torch.view_as_real(input.resolve_conj()).relu())


class ZReLU(nn.Module):
    """The input where its phase is in (0, π/2), that is where both parts are positive, else zero.

    Source:
        Guberman 2016, arXiv:1602.09046; arXiv:1705.09792, equation 5.

    Example:
        >>> ZReLU()(torch.tensor([1 + 2j, 1 - 2j, -1 + 2j]))
        tensor([1.+2.j, 0.+0.j, 0.+0.j])
    """

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        return torch.where((input.real > 0) & (input.imag > 0), input, 0.0)


def shrink_modulus(input: Tensor, bias: Tensor | float) -> Tensor:
    """ReLU(|z| + b)·z/|z|, and 0 at z = 0; ``bias`` has to broadcast against ``input``."""
    modulus = input.abs()
    positive = modulus > 0
    # a division by zero would turn the gradient into nan, even where its result is not used
    scale = (modulus + bias).relu() / torch.where(positive, modulus, 1.0)
    return input * torch.where(positive, scale, 0.0)


class ModReLU(nn.Module):
    r"""ReLU of the modulus, shifted by a trained b of each channel; the phase stays.

    .. math:: y = \operatorname{ReLU}(|z| + b)\, z / |z|

    Where b ≥ 0 it is not an activation any more, since it silences nothing; hence it starts slightly below.

    Args:
        num_features: Channels, dimension 1 of the input ``(batch, num_features, *)``; or 1, one b for all.
        bias: Where every b starts.
        device: Where b is.
        dtype: Its type; of a complex type the real one.

    Raises:
        InputError: If the input is real or has other channels.

    Source:
        Arjovsky, Shah, Bengio 2016, arXiv:1511.06464; arXiv:1705.09792, equation 3.

    Example:
        >>> ModReLU(1, bias=-1.0)(torch.tensor([[3 + 4j, 0.5j]])).detach()
        tensor([[2.4000+3.2000j, 0.0000+0.0000j]])
    """

    def __init__(
        self,
        num_features: int = 1,
        bias: float = -0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("num_features", num_features, 1)
        self.num_features = num_features
        dtype = None if dtype is None else dtype.to_real()
        self.bias = nn.Parameter(torch.full((num_features,), float(bias), device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        if self.num_features > 1:
            if input.ndim < 2:
                checks.fail("input must have shape (batch, channels, *)", f"shape {tuple(input.shape)}")
            checks.size("input", input, 1, self.num_features)
            return shrink_modulus(input, self.bias.view(-1, *[1] * (input.ndim - 2)))
        return shrink_modulus(input, self.bias)

    def extra_repr(self) -> str:
        return f"{self.num_features}"


class CModReLU(nn.Module):
    r"""Soft threshold of the modulus, one for all channels; the phase stays.

    .. math:: y = \operatorname{ReLU}(1 - t / |z|)\, z

    This is :class:`ModReLU` with b = −t.

    Args:
        threshold: t, at least 0.
        learn: Whether t is a parameter, else it is a constant buffer.
        device: Where t is.
        dtype: Its type; of a complex type the real one.

    Source:
        As in the authors' library (github.com/soumickmj/pytorch-complex).

    Example:
        >>> CModReLU(1.0, learn=False)(torch.tensor([3 + 4j, 0.5j]))
        tensor([2.4000+3.2000j, 0.0000+0.0000j])
    """

    threshold: Tensor

    def __init__(
        self,
        threshold: float = 0.1,
        *,
        learn: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("threshold", threshold, 0)
        value = torch.tensor(float(threshold), device=device, dtype=None if dtype is None else dtype.to_real())
        if learn:
            self.threshold = nn.Parameter(value)
        else:
            self.register_buffer("threshold", value)

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        return shrink_modulus(input, -self.threshold)


class Cardioid(nn.Module):
    r"""The input, weakened by its phase: whole along the positive real axis, nothing along the negative one.

    .. math:: y = \tfrac12 (1 + \cos\angle z)\, z = \tfrac12 (1 + \operatorname{Re} z / |z|)\, z

    Of real numbers it is ReLU.

    Source:
        Virtue, Yu, Lustig 2017, arXiv:1707.00070.

    Example:
        >>> Cardioid()(torch.tensor([2 + 0j, -2 + 0j, 2j]))
        tensor([2.+0.j, -0.+0.j, 0.+1.j])
    """

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        modulus = input.abs()
        cosine = input.real / torch.where(modulus > 0, modulus, 1.0)
        return input * (0.5 + 0.5 * cosine)


ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "crelu": lambda _: CReLU(),
    "zrelu": lambda _: ZReLU(),
    "modrelu": ModReLU,
    "cmodrelu": lambda _: CModReLU(),
    "cardioid": lambda _: Cardioid(),
}


def make_activation(name: str, num_features: int = 1) -> nn.Module:
    """The activation of that name, for so many channels.

    Raises:
        InputError: If there is none; the message offers a close match.

    Example:
        >>> make_activation("modrelu", 8)
        ModReLU(8)
    """
    checks.known("complex activation", name, ACTIVATIONS)
    return ACTIVATIONS[name](num_features)


class ComplexMaxPool2d(nn.Module):
    """The number of largest modulus of each window of ``(*, height, width)``, with its phase.

    Args:
        kernel_size: As in :class:`torch.nn.MaxPool2d`.
        stride: As there; ``kernel_size`` if not given.
        padding: As there.
        dilation: As there.
        ceil_mode: As there.
        by: ``"abs"``, or ``"parts"``: the largest real and the largest imaginary part, which may be of two numbers.

    Source:
        arXiv:2302.04584.

    Example:
        >>> ComplexMaxPool2d(2)(torch.tensor([[[1 + 1j, -3 + 0j], [2j, 0.5 + 0j]]]))
        tensor([[[-3.+0.j]]])
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        dilation: Size = 1,
        ceil_mode: bool = False,
        *,
        by: Literal["abs", "parts"] = "abs",
    ) -> None:
        super().__init__()
        checks.known("way to pool", by, ("abs", "parts"))
        self.kernel_size = sizes("kernel_size", kernel_size, 2)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, 2)
        self.padding = sizes("padding", padding, 2)
        self.dilation = sizes("dilation", dilation, 2)
        self.ceil_mode = ceil_mode
        self.by = by

    @classmethod
    def like(cls, pool: nn.MaxPool2d) -> Self:
        """Replace ``pool``: the same windows."""
        return cls(pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode)

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        if self.by == "parts":
            return torch.complex(self._pool(input.real)[0], self._pool(input.imag)[0])
        with torch.no_grad():
            _, places = self._pool(torch.view_as_real(input.resolve_conj()).square().sum(-1))
        return input.flatten(-2).gather(-1, places.flatten(-2)).view(places.shape)

    def _pool(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return functional.max_pool2d_with_indices(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        return f"{self.kernel_size}, stride={self.stride}, padding={self.padding}, by={self.by!r}"


class OnParts(nn.Module):
    """Any real module, applied to the real and to the imaginary part: for mean pooling and other linear maps.

    Example:
        >>> OnParts(nn.AvgPool1d(2))(torch.tensor([[1 + 2j, 3 + 0j]]))
        tensor([[2.+1.j]])
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        return torch.complex(self.module(input.real), self.module(input.imag))


class SpectralUpsample2d(nn.Module):
    """Upsampling of ``(*, height, width)`` by zeros around its spectrum: the band-limited picture, sampled more finely.

    The values of the input stay at every ``scale_factor``-th pixel, and a real picture stays real: the coefficient of
    the highest frequency of an even size is split between its two signs.

    Args:
        scale_factor: How many times more pixels, at least 1; for both axes, or for each.

    Raises:
        InputError: If the factor is below 1, or gives no whole number of pixels.

    Source:
        arXiv:2302.04584 (interpolation by zero-filled k-space); sinc interpolation of periodic signals.

    Example:
        >>> wave = torch.exp(2j * torch.pi * torch.arange(8) / 8).expand(8, 8)
        >>> finer = SpectralUpsample2d(2)(wave)
        >>> torch.allclose(finer[0], torch.exp(2j * torch.pi * torch.arange(16) / 16), atol=1e-6)
        True
    """

    def __init__(self, scale_factor: float | tuple[float, float] = 2) -> None:
        super().__init__()
        self.scale_factor = scale_factor if isinstance(scale_factor, tuple) else (scale_factor, scale_factor)
        for factor in self.scale_factor:
            checks.at_least("scale_factor", factor, 1)

    def forward(self, input: Tensor) -> Tensor:
        checks.complex_valued("input", input)
        height, width = self.scale_factor
        return _upsample(_upsample(input, -2, height), -1, width)

    def extra_repr(self) -> str:
        return f"scale_factor={self.scale_factor}"


def _upsample(input: Tensor, dim: int, factor: float) -> Tensor:
    size = input.shape[dim]
    new = round(size * factor)
    if abs(new - size * factor) > 1e-6:
        checks.fail("scale_factor times the size must be a whole number", f"{factor} × {size}")
    if new == size:
        return input
    spectrum = torch.fft.fft(input, dim=dim, norm="forward")
    positive, negative = (
        spectrum.narrow(dim, 0, (size + 1) // 2),
        spectrum.narrow(dim, size - (size - 1) // 2, (size - 1) // 2),
    )
    middle = [] if size % 2 else [spectrum.narrow(dim, size // 2, 1) / 2]
    zeros = list(input.shape)
    zeros[dim] = new - size - len(middle)
    parts = [positive, *middle, input.new_zeros(zeros), *middle, negative]
    finer: Tensor = torch.fft.ifft(torch.cat(parts, dim), dim=dim, norm="forward")
    return finer


__all__ = [
    "ACTIVATIONS",
    "CModReLU",
    "CReLU",
    "Cardioid",
    "ComplexMaxPool2d",
    "ModReLU",
    "OnParts",
    "SpectralUpsample2d",
    "ZReLU",
    "make_activation",
    "shrink_modulus",
]
