"""AF-KAN (Ta, Thai, Rahman, Sidorov, Gelbukh 2025, arXiv:2503.06112): KAN layers from pairs of activation functions.

:class:`AFKANLayer` has as many weights as a linear layer, since attention reduces the functions of each input to one
number before the inputs are mixed; :class:`AFKAN` is a network of them. :class:`ReLUKANLayer` (Qiu et al. 2024,
arXiv:2406.02075) is the ancestor, which has a coefficient for every function on every edge.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._af_kan import REDUCTIONS, GlobalAttention
from netwright.layers.kan import contract

FeatureNorm = Literal["sample", "batch"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": functional.softplus,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "selu": functional.selu,
    "tanh": torch.tanh,
}

# of x1 = σ(x - low) and x2 = σ(high - x)
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "quad1": lambda a, b: (a * b).square(),
    "quad2": lambda a, b: a * b + a.square() + b.square(),
    "sum": lambda a, b: a + b,
    "prod": lambda a, b: a * b,
    "sum_prod": lambda a, b: a + b + a * b,
    "cubic1": lambda a, b: (a + b) * (a.square() + b.square()),
    "cubic2": lambda a, b: (a * b).pow(3),
}


class AFKANLayer(nn.Module):
    r"""KAN layer whose functions come from pairs of activations and are reduced by attention.

    With K = ``grid + order`` learned phases :math:`l_k < h_k`, the same for all inputs,

    .. math::
        x^1_{ik} = \sigma(x_i - l_k), \quad x^2_{ik} = \sigma(h_k - x_i), \quad f_{ik} = F(x^1_{ik}, x^2_{ik}), \\
        y = W \, \sigma(\operatorname{norm}(\operatorname{reduce}(f)))

    where F is ``(x¹x²)²`` with ``func="quad1"``. The features f of a sample are brought to [0, 1] by their smallest and
    largest value before ``reduce`` makes one number of the K of an input. At the start :math:`l_k = k / grid` for k
    from −order, and :math:`h_k = l_k + (order + 1) / grid`. There are 2K + 1 + in · out + 2 in parameters and
    those of the reduction (K + 1 with ``"global"``).

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        grid: Intervals between the phases.
        order: Further phases below 0, and the width of the functions in intervals less one.
        activation: σ, one of :data:`ACTIVATIONS`.
        func: F, one of :data:`FUNCTIONS`.
        reduction: One of :data:`REDUCTIONS`, or several, of which forward takes the one that it is told.
        norm: ``"layer"``, ``"batch"`` or none.
        feature_norm: ``"sample"``; ``"batch"`` takes smallest and largest value over the whole batch, as the authors'
            code does, so that a prediction depends on its batch; ``None`` leaves the features as they are.
        bias: Whether the linear map has a bias; the published one has none.
        window: Functions in a window of ``reduction="local"``.
        step: Functions from one window to the next.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If a name is not known (the choices are listed), ``grid`` is below 1, ``order`` below 0, or a window
            has more functions than there are.

    Source:
        arXiv:2503.06112, section 3. The authors' code divides the features by their L2 norm first, which the scaling to
        [0, 1] undoes, and allocates the weights of all reductions, used or not.

    Example:
        >>> layer = AFKANLayer(64, 10)
        >>> layer(torch.randn(5, 64)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 10]), 788)
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: int = 3,
        order: int = 3,
        activation: str = "silu",
        func: str = "quad1",
        reduction: str | Sequence[str] = "global",
        norm: Literal["layer", "batch"] | None = "layer",
        feature_norm: FeatureNorm | None = "sample",
        bias: bool = False,
        *,
        window: int = 2,
        step: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_features", in_features, 1)
        checks.at_least("out_features", out_features, 1)
        checks.at_least("grid", grid, 1)
        checks.at_least("order", order, 0)
        _known("activation", activation, ACTIVATIONS)
        _known("func", func, FUNCTIONS)
        reductions = (reduction,) if isinstance(reduction, str) else tuple(reduction)
        checks.at_least("number of reductions", len(reductions), 1)
        for name in reductions:
            _known("reduction", name, REDUCTIONS)
        if norm is not None:
            _known("norm", norm, ("layer", "batch"))
        if feature_norm is not None:
            _known("feature_norm", feature_norm, ("sample", "batch"))
        self.in_features, self.out_features = in_features, out_features
        self.activation, self.func, self.feature_norm = activation, func, feature_norm
        functions = grid + order
        low = torch.arange(-order, grid) / grid
        self.low = nn.Parameter(low.to(device=device, dtype=dtype))
        self.high = nn.Parameter((low + (order + 1) / grid).to(device=device, dtype=dtype))
        self.temperature = nn.Parameter(torch.tensor(math.sqrt(in_features), device=device, dtype=dtype))
        made = nn.ModuleList(REDUCTIONS[name](functions, window, step) for name in reductions)
        self.reductions = made.to(device=device, dtype=dtype)
        self.norm: nn.Module = nn.Identity()
        if norm is not None:
            kind = nn.LayerNorm if norm == "layer" else nn.BatchNorm1d
            self.norm = kind(in_features, device=device, dtype=dtype)
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        )
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    @classmethod
    def like(
        cls,
        linear: nn.Linear,
        grid: int = 3,
        order: int = 3,
        activation: str = "silu",
        func: str = "quad1",
        reduction: str = "global",
    ) -> Self:
        """A new layer in place of ``linear``, of its features, device and type; it has no bias, as published."""
        return cls(
            linear.in_features,
            linear.out_features,
            grid,
            order,
            activation,
            func,
            reduction,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )

    def features(self, input: Tensor) -> Tensor:
        """The functions of every input, brought to [0, 1]: ``(batch, in_features)`` to ``(batch, in_features, K)``."""
        raw, scale = self._raw_features(input)
        return (raw if scale is None else (raw - scale[0]) / scale[1]).mT

    def _raw_features(self, input: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """The functions ``(batch, K, in_features)``, and what brings them to [0, 1]: their least value and spread."""
        activate = ACTIVATIONS[self.activation]
        x = input.unsqueeze(-2)
        # functions before inputs in memory, which makes all that follows faster
        low, high = self.low.unsqueeze(-1), self.high.unsqueeze(-1)
        raw = FUNCTIONS[self.func](activate(x - low), activate(high - x))
        if self.feature_norm is None:
            return raw, None
        flat = raw.flatten(1 if self.feature_norm == "sample" else 0)
        least, most = flat.min(dim=-1, keepdim=True).values, flat.max(dim=-1, keepdim=True).values
        spread = (most - least).clamp_min(torch.finfo(raw.dtype).tiny)
        return raw, (least.unsqueeze(-1), spread.unsqueeze(-1))

    def forward(self, input: Tensor, which: int = 0) -> Tensor:
        """Map ``(*, in_features)`` to ``(*, out_features)`` by the reduction number ``which``."""
        checks.size("input", input, -1, self.in_features)
        rows, temperature = input.reshape(-1, self.in_features), self.temperature.clamp_min(1.0)
        reduction = self.reductions[which]
        if isinstance(reduction, GlobalAttention):
            reduced = reduction.of_scaled(*self._raw_features(rows), temperature)
        else:
            reduced = reduction(self.features(rows), temperature)
        active = ACTIVATIONS[self.activation](self.norm(reduced))
        output = functional.linear(active, self.weight, self.bias)
        return output.view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, activation={self.activation!r}, func={self.func!r}"


# what several reductions side by side give
COMBINATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda paths: paths.sum(0),
    "product": lambda paths: paths.prod(0),
    "sum_product": lambda paths: paths.sum(0) + paths.prod(0),
    "quadratic": lambda paths: paths.sum(0) + paths.prod(0) + paths.square().sum(0),
}


class AFKAN(nn.Module):
    """A network of :class:`AFKANLayer`.

    Args:
        widths: Features of the input, of every hidden layer and of the output.
        grid: See :class:`AFKANLayer`.
        order: See :class:`AFKANLayer`.
        activation: See :class:`AFKANLayer`.
        func: See :class:`AFKANLayer`.
        reduction: One, or several: each makes a path through the whole network, and the paths share all weights but
            those of the reductions.
        norm: See :class:`AFKANLayer`.
        feature_norm: See :class:`AFKANLayer`.
        combine: How the outputs of several paths become one: ``"sum"``, ``"product"``, ``"sum_product"``, or
            ``"quadratic"``, which adds the squares to both.

    Raises:
        InputError: If there are fewer than two widths, or as :class:`AFKANLayer`.

    Source:
        arXiv:2503.06112, section 3.

    Example:
        >>> AFKAN([64, 32, 10])(torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        widths: Sequence[int],
        grid: int = 3,
        order: int = 3,
        activation: str = "silu",
        func: str = "quad1",
        reduction: str | Sequence[str] = "global",
        norm: Literal["layer", "batch"] | None = "layer",
        feature_norm: FeatureNorm | None = "sample",
        combine: str = "sum",
    ) -> None:
        super().__init__()
        checks.at_least("number of widths", len(widths), 2)
        _known("combine", combine, COMBINATIONS)
        self.combine = combine
        self.layers = nn.ModuleList(
            AFKANLayer(below, above, grid, order, activation, func, reduction, norm, feature_norm)
            for below, above in itertools.pairwise(widths)
        )
        self.paths = 1 if isinstance(reduction, str) else len(reduction)

    def forward(self, input: Tensor) -> Tensor:
        outputs = []
        for path in range(self.paths):
            x = input.flatten(1)
            for layer in self.layers:
                x = layer(x, path)
            outputs.append(x)
        return outputs[0] if self.paths == 1 else COMBINATIONS[self.combine](torch.stack(outputs))


class ReLUKANLayer(nn.Module):
    r"""KAN layer whose functions are squared products of two ReLU.

    .. math::
        y_o = b_o + \sum_{i,k} c_{oik} \frac{16 G^4}{(p + 1)^4}
        [\mathrm{ReLU}(x_i - l_{ik}) \, \mathrm{ReLU}(h_{ik} - x_i)]^2

    The factor makes the peak of every function 1. The phases are those of :class:`AFKANLayer`, learned for every input.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        grid: G, intervals between the phases.
        order: p.
        norm: Whether inputs pass a layer normalisation first.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If ``grid`` is below 1 or ``order`` below 0.

    Source:
        Qiu, Zhu, Gong, Chen, Wang 2024, arXiv:2406.02075, section 3.

    Example:
        >>> ReLUKANLayer(64, 10)(torch.randn(5, 64)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid: int = 3,
        order: int = 3,
        norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_features", in_features, 1)
        checks.at_least("out_features", out_features, 1)
        checks.at_least("grid", grid, 1)
        checks.at_least("order", order, 0)
        options = {"device": device, "dtype": dtype}
        self.in_features, self.out_features = in_features, out_features
        self.factor = 4 * grid**2 / (order + 1) ** 2
        low = (torch.arange(-order, grid) / grid)[:, None].repeat(1, in_features)
        self.low = nn.Parameter(low.to(device=device, dtype=dtype))
        self.high = nn.Parameter((low + (order + 1) / grid).to(device=device, dtype=dtype))
        self.norm = nn.LayerNorm(in_features, **options) if norm else nn.Identity()  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(out_features, in_features, grid + order, **options))  # type: ignore[arg-type]
        self.bias = nn.Parameter(torch.empty(out_features, **options))  # type: ignore[arg-type]
        # as torch starts the convolution over (K, in_features) that this is
        nn.init.kaiming_uniform_(self.weight.view(out_features, -1), a=math.sqrt(5))
        bound = 1 / math.sqrt(in_features * (grid + order))
        nn.init.uniform_(self.bias, -bound, bound)

    def features(self, input: Tensor) -> Tensor:
        """The functions of every input: ``(*, in_features)`` to ``(*, in_features, K)``."""
        x = input.unsqueeze(-2)
        return (functional.relu(x - self.low) * functional.relu(self.high - x) * self.factor).square().mT

    def forward(self, input: Tensor) -> Tensor:
        return contract(self.features(self.norm(input)), self.weight, self.bias)


def _known(kind: str, given: str, names: Iterable[str]) -> None:
    """As :func:`checks.known`, with all choices in the message: there are few."""
    if given not in set(names):
        raise checks.InputError(f"unknown {kind} {given!r}; choose one of {', '.join(names)}")


__all__ = [
    "ACTIVATIONS",
    "AFKAN",
    "COMBINATIONS",
    "FUNCTIONS",
    "REDUCTIONS",
    "AFKANLayer",
    "FeatureNorm",
    "ReLUKANLayer",
]
