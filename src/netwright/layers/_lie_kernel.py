"""Kernels as functions of coordinates, and what the convolutions of ``netwright.layers.lie_conv`` share."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers._polar import at_least_single
from netwright.layers._spd_eigen import can_read
from netwright.layers.liegroups import LieGroup, Samples
from netwright.layers.siren import SirenLayer


class SirenKernel(nn.Module):
    r"""A convolution kernel as a function of coordinates: sine layers and a linear layer behind them.

    Weights of the first sine layer are U(±1/d) with d coordinates, later ones U(±√(6/hidden)/w0) with zero biases, and
    the last layer is U(±√(6/hidden) / √(in_channels·kernel_size²)), so that a convolution with its values keeps the
    size of what goes in.

    Args:
        coordinates: How many there are, d.
        in_channels: Channels that the convolution takes.
        out_channels: Channels that it gives.
        kernel_size: How many pixels wide it is; only for the start.
        hidden: Width of the sine layers.
        layers: Their number.
        w0: Their frequency.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Shape:
        Coordinates ``(…, d)`` to ``(…, out_channels, in_channels)``.

    Source:
        arXiv:2310.11366, section 5, and the published code. Sitzmann et al. (2020), whose sine layers these are, also
        draw the later biases, see :func:`netwright.layers.siren.siren_init_`.

    Example:
        >>> SirenKernel(5, 3, 8, 5)(torch.zeros(7, 5)).shape
        torch.Size([7, 8, 3])
    """

    def __init__(
        self,
        coordinates: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        hidden: int = 60,
        layers: int = 3,
        w0: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in {
            "coordinates": coordinates,
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "hidden": hidden,
            "layers": layers,
        }.items():
            checks.at_least(name, value, 1)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.first = SirenLayer(coordinates, hidden, w0, first=True, device=device, dtype=dtype)
        self.layers = nn.Sequential(
            *(SirenLayer(hidden, hidden, w0, device=device, dtype=dtype) for _ in range(layers - 1))
        )
        self.readout = nn.Linear(hidden, in_channels * out_channels, device=device, dtype=dtype)
        bound = math.sqrt(6 / hidden) / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.readout.weight, -bound, bound)
        nn.init.zeros_(self.readout.bias)
        root = 1 / math.sqrt(coordinates)
        nn.init.uniform_(self.first.linear.bias, -root, root)
        for layer in self.layers:
            assert isinstance(layer, SirenLayer)
            nn.init.zeros_(layer.linear.bias)

    def forward(self, *coordinates: Tensor) -> Tensor:
        """Read the kernel.

        Args:
            coordinates: ``(…, d)``, or several parts of them ``(…, d_i)``, one after the other, whose leading
                dimensions are broadcast: the first layer then takes every part only once.
        """
        linear = self.first.linear
        weights = torch.split(linear.weight, [part.shape[-1] for part in coordinates], 1)
        total: Tensor = linear.bias
        for part, weight in zip(coordinates, weights, strict=True):
            total = total + functional.linear(part, weight)
        values: Tensor = self.readout(self.layers(self.first.activation(total)))
        return values.reshape(*values.shape[:-1], self.out_channels, self.in_channels)


class SampledConv2d(nn.Module):
    """What the three convolutions share: the kernel network, the pixels it is read at, and the disc."""

    least_kernel_size: ClassVar[int] = 2
    relates_samples: ClassVar[bool] = False  # whether the kernel also reads the coordinates of g⁻¹h
    grid: Tensor

    def __init__(
        self,
        group: LieGroup,
        num_samples: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        *,
        hidden: int = 60,
        layers: int = 3,
        w0: float = 10.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("kernel_size", kernel_size, self.least_kernel_size)
        checks.at_least("num_samples", num_samples, 1)
        checks.at_least("stride", stride, 1)
        checks.at_least("padding", padding, 0)
        self.group = group
        self.num_samples = num_samples
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.padding = padding
        self.kernel = SirenKernel(
            2 + group.dim * self.relates_samples, in_channels, out_channels, kernel_size,
            hidden=hidden, layers=layers, w0=w0, device=device, dtype=dtype,
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype)) if bias else None
        # middles of the pixels, as (column, row)
        middles = (2 * torch.arange(kernel_size, device=device, dtype=torch.float64) + 1) / kernel_size - 1
        grid = torch.cartesian_prod(middles, middles).flip(-1).reshape(-1, 2)
        self.register_buffer("grid", grid.to(self.kernel.readout.weight.dtype), persistent=False)
        self._kept: Cache[Tensor] = Cache()

    def sample(self, generator: torch.Generator | None = None) -> Samples:
        """Draw ``num_samples`` elements of the group for the output of the layer, with their inverses."""
        return self.group.sample_pair(self.num_samples, generator, device=self.grid.device, dtype=self.grid.dtype)

    def train(self, mode: bool = True) -> Self:
        self._kept.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        return (
            f"{type(self.group).__name__}({self.group.n}), {self.in_channels}, {self.out_channels}, "
            f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}, "
            f"bias={self.bias is not None}"
        )

    def _weight(self, build: Callable[[], Tensor], *samples: Tensor) -> Tensor:
        """The kernel of these samples; in evaluation kept for as long as they and the parameters stay the same.

        It is always read in full precision: that is rarely done, and relations of samples need their digits.
        """
        place = samples[0].device.type
        with nullcontext() if place == "meta" else torch.autocast(place, enabled=False):
            if self.training:
                return build()
            return self._kept.get(build, *self.parameters(), *samples)

    def _read(self, points: Tensor, *relations: Tensor) -> Tensor:
        """The kernel at ``points`` ``(…, pixels, 2)`` within the disc."""
        values: Tensor = self.kernel(points, *relations)
        return values * self._disc(points)[..., None, None]

    def _disc(self, points: Tensor) -> Tensor:
        radius: Tensor = torch.linalg.vector_norm(points, dim=-1)
        if self.group.volume_preserving:
            return (radius <= 1 + 1e-6).to(points)
        soft: Tensor = torch.sigmoid(2 * (1 - radius))
        return soft

    def _on_plane(self, inverse: Tensor) -> Tensor:
        """Kernels at g⁻¹u, times |det g⁻¹| where g changes volumes: ``(samples, kernel_size², out, in)``."""
        values = self._read(self._moved_grid(inverse))
        if not self.group.volume_preserving:
            values = values * volumes(inverse)[:, None, None, None]
        return values

    def _moved_grid(self, inverse: Tensor) -> Tensor:
        """Where pixel x is read, g⁻¹x: ``(samples, pixels, 2)``."""
        return self.grid.to(inverse) @ inverse.mT

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """``weight`` is ``(outputs, inputs, pixels)``, with samples among outputs and inputs."""
        weight = weight.reshape(*weight.shape[:-1], self.kernel_size, self.kernel_size)
        return functional.conv2d(x, weight, None, self.stride, self.padding)

    def _check_maps(self, x: Tensor, samples: Samples) -> None:
        checks.dimensions("x", x, "(batch, channels, samples, height, width)")
        checks.size("x", x, 1, self.in_channels)
        checks.size("x", x, 2, len(samples.g))

    def _check_samples(self, name: str, samples: Samples) -> None:
        for part in samples:
            if part.dim() != 3 or tuple(part.shape[1:]) != (2, 2) or len(part) != len(samples.g):
                shapes = " and ".join(str(tuple(one.shape)) for one in samples)
                checks.fail(f"{name} must be elements (samples, 2, 2) with as many inverses", f"shapes {shapes}")
        # outside of the group kernels are wrong or not a number; half precision does not keep a determinant
        if can_read(samples.g) and samples.g.dtype in (torch.float32, torch.float64):
            self.group.check(samples.g.detach().cpu())


def volumes(g: Tensor) -> Tensor:
    """|det g| of matrices, which torch does not compute in half precision."""
    found: Tensor = torch.linalg.det(at_least_single(g)).abs().to(g.dtype)
    return found


__all__ = ["SampledConv2d", "SirenKernel", "volumes"]
