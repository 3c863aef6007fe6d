"""The coordinate network of HyperZ·Z·W (Zhang 2024, arXiv:2401.17948): a product of sines that writes a kernel."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers._geometry import Size, sizes


class MagnetKernel(nn.Module):
    r"""A multiplicative network of sines that maps coordinates to the weights of a kernel.

    On the grid c of the kernel's positions, each axis from −1 to 1:

    .. math:: h^{(0)} = \sin(\Omega_0 c + \phi_0), \quad
        h^{(i)} = \sin(\Omega_i c + \phi_i) \odot (W_i h^{(i-1)} + b_i) + p, \quad K = W_o h^{(n)} + b_o

    with one bias map p over the positions. :math:`\Omega_i` starts as U(±1/√ndim) times 2π ``omega0`` times samples of
    Gamma(``alpha`` / (i + 1), 1); W as Kaiming-uniform with gain 1, :math:`b_i` as 1, φ, p and :math:`b_o` as 0;
    :math:`W_o` is divided by the root of the number of positions, so that a sum over all of them has unit size.

    The kernel is computed in the precision of the parameters, also under autocast: at ``omega0`` = 2000 the phases
    reach 10⁵. In eval mode it is built once and kept until a parameter changes, training mode is entered, or a gradient
    has to reach the parameters. Only writing *through* ``.data`` is invisible; call ``train()`` after it.

    Args:
        ndim: Axes of the kernel, 1 or 2.
        hidden: Width of the network.
        out_channels: Channels of the kernel.
        n_layers: Number n of products.
        omega0: Frequency.
        size: Positions along each axis.
        alpha: Shape of the Gamma distribution.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Returns:
        From ``forward()``: the kernel, shape ``(out_channels, *size)``.

    Raises:
        InputError: If ``ndim`` is not 1 or 2, or another number is not positive.

    Source:
        arXiv:2401.17948; the network is that of Romero et al. 2021, arXiv:2110.08059. One released version
        has 2000 as ``omega0``, later ones read it from a file that was not published; which values gave the reported
        results is not known.

    Example:
        >>> MagnetKernel(2, hidden=64, out_channels=12, n_layers=2, size=32)().shape
        torch.Size([12, 32, 32])
    """

    dense_parameters: ClassVar[frozenset[str]] = frozenset(
        {"frequencies", "phases", "hidden_bias", "position_bias", "gate_bias", "alphas", "betas"}
    )

    def __init__(
        self,
        ndim: int,
        hidden: int,
        out_channels: int,
        n_layers: int,
        omega0: float = 2000.0,
        size: Size = 32,
        *,
        alpha: float = 6.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.between("ndim", ndim, 1, 2)
        checks.at_least("hidden", hidden, 1)
        checks.at_least("out_channels", out_channels, 1)
        checks.at_least("n_layers", n_layers, 1)
        checks.positive("omega0", omega0)
        checks.positive("alpha", alpha)
        self.size = sizes("size", size, ndim)
        for axis in self.size:
            checks.at_least("size", axis, 1)
        self.ndim = ndim
        self.hidden = hidden
        self.out_channels = out_channels
        self.n_layers = n_layers
        self.omega0 = omega0
        self.alpha = alpha
        self._factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.frequencies = self._parameter(n_layers + 1, hidden, ndim)
        self.phases = self._parameter(n_layers + 1, hidden)
        self.hidden_weight = self._parameter(n_layers, hidden, hidden)
        self.hidden_bias = self._parameter(n_layers, hidden)
        self.position_bias = self._parameter(*self.size)
        self.output_weight = self._parameter(out_channels, hidden)
        self.output_bias = self._parameter(out_channels)
        self._sources = tuple(self._parameters)  # what is kept depends on these
        self._cache: Cache[tuple[Tensor, ...]] = Cache()
        if type(self) is MagnetKernel:
            self.reset_parameters()

    def _parameter(self, *shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(*shape, **self._factory))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        for layer, frequencies in enumerate(self.frequencies):
            shape = torch.full_like(frequencies, self.alpha / (layer + 1), dtype=torch.float32)
            gamma = torch.distributions.Gamma(shape, torch.ones_like(shape), validate_args=False).sample()
            frequencies.uniform_(-1 / math.sqrt(self.ndim), 1 / math.sqrt(self.ndim))
            frequencies.mul_(2 * math.pi * self.omega0 * gamma)
        bound = math.sqrt(3 / self.hidden)
        self.hidden_weight.uniform_(-bound, bound)
        self.output_weight.uniform_(-bound, bound).div_(math.sqrt(math.prod(self.size)))
        self.hidden_bias.fill_(1)
        for zero in (self.phases, self.position_bias, self.output_bias):
            zero.zero_()

    def forward(self) -> Tensor:
        return self._keep()[0]

    def _build(self) -> tuple[Tensor, ...]:
        """What depends on the parameters alone; here the kernel."""
        with full_precision(self.frequencies):
            sines = self._sines()
            h = sines[0]
            for layer in range(self.n_layers):
                h = self._product(sines[layer + 1], h, layer)
            kernel = torch.addmm(self.output_bias[:, None], self.output_weight, h)
        return (kernel.view(self.out_channels, *self.size),)

    def _sines(self) -> Tensor:
        """Sines at all positions, shape ``(n_layers + 1, hidden, positions)``."""
        like: dict[str, Any] = {"device": self.frequencies.device, "dtype": self.frequencies.dtype}
        axes = [torch.linspace(-1, 1, axis, **like) for axis in self.size]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        # a sum of products and no matrix product, which some devices round to fewer digits than these phases have
        return torch.sin((self.frequencies[..., None] * grid).sum(-2) + self.phases[..., None])

    def _product(self, sine: Tensor, h: Tensor, layer: int) -> Tensor:
        linear = torch.matmul(self.hidden_weight[layer], h) + self.hidden_bias[layer, :, None]
        return sine * linear + self.position_bias.flatten()

    def _keep(self) -> tuple[Tensor, ...]:
        """The result of ``_build``, kept in eval mode."""
        sources = [getattr(self, name) for name in self._sources]
        if self.training or any(type(source) is not nn.Parameter for source in sources):
            return self._build()
        return self._cache.get(self._build, *sources)

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        size = "×".join(map(str, self.size))
        return f"{size}, {self.out_channels} channels, hidden={self.hidden}, n_layers={self.n_layers}"


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Without autocast."""
    device = tensor.device.type
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


__all__ = ["MagnetKernel", "full_precision"]
