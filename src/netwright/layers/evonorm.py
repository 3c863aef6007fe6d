"""EvoNorm (Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967): one layer for normalisation and activation together.

The layers that the paper's search found: the B-series (B0, B1, B2) divides by statistics of the batch, the S-series
(S0, S1, S2) by statistics of one sample, so that it does not care how small the batch is. :func:`replace_norm_act`
puts them into a network that somebody else wrote.
"""

from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._evonorm import (
    BatchGate,
    GroupGate,
    needs_plain_formula,
    plain_batch_gate,
    plain_group_gate,
    widen,
)
from netwright.layers.norm_act import channels_of, swap_norm_act

Kind = Literal["B0", "B1", "B2", "S0", "S1", "S2"]
KINDS: tuple[Kind, ...] = ("B0", "B1", "B2", "S0", "S1", "S2")


class _EvoNorm(nn.Module):
    """Scale γ and shift β for every channel, and the slope v₁ where the layer has one."""

    weight: nn.Parameter
    bias: nn.Parameter
    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        apply_act: bool,
        eps: float,
        slope: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        checks.at_least("num_features", num_features, 1)
        checks.positive("eps", eps)
        self.num_features = num_features
        self.apply_act = apply_act
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        v = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype)) if slope and apply_act else None
        self.register_parameter("v", v)

    def _check(self, input: Tensor) -> None:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        checks.size("input", input, 1, self.num_features)

    def _affine(self, input: Tensor) -> Tensor:
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return input * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)

    def _take_affine(self, norm: nn.Module) -> Self:
        """Start from the scale and shift of ``norm``, so that a branch that starts at 0 still does."""
        with torch.no_grad():
            for mine, theirs in ((self.weight, norm.weight), (self.bias, norm.bias)):
                if isinstance(theirs, Tensor) and not theirs.is_meta:
                    mine.copy_(theirs)
        return self


class _SampleSeries(_EvoNorm):
    """What S0, S1 and S2 share: the gate ``x·σ(v₁x)`` divided by a statistic of a group of channels of one sample."""

    slope = False
    centered = True

    def __init__(
        self,
        num_features: int,
        groups: int = 32,
        apply_act: bool = True,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act, eps, self.slope, device, dtype)
        checks.divisible("num_features", num_features, "groups", groups)
        self.groups = groups

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        if not self.apply_act:
            return self._affine(input)
        function = plain_group_gate if needs_plain_formula(input) else GroupGate.apply
        out: Tensor = function(input, self.v, self.weight, self.bias, self.groups, self.eps, self.centered)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, apply_act={self.apply_act}, eps={self.eps}"

    @classmethod
    def like(cls, norm: nn.Module, groups: int = 32, apply_act: bool = True) -> Self:
        """Replace ``norm`` (and the activation after it, with ``apply_act``); γ and β are taken over.

        Args:
            norm: A 2-D batch, group or instance normalisation.
            groups: As in the constructor; where it does not divide the channels, the largest number below it that does.
            apply_act: Whether an activation follows ``norm``.
        """
        checks.at_least("groups", groups, 1)
        channels = channels_of(norm)
        fitting = max(divisor for divisor in range(1, min(groups, channels) + 1) if channels % divisor == 0)
        weight = norm.weight if isinstance(norm.weight, Tensor) else None
        factory: dict[str, Any] = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
        return cls(channels, fitting, apply_act, float(norm.eps), **factory)._take_affine(norm)  # type: ignore[arg-type]


class EvoNormS0(_SampleSeries):
    r"""Gate of the input, divided by the standard deviation of its group of channels: no batch statistics at all.

    .. math:: y = \frac{x\,\sigma(v_1 x)}{\sqrt{s^2_{w,h,c/g}(x) + \epsilon}}\,\gamma + \beta

    with the biased variance :math:`s^2` over the pixels and the channels of a group of one sample. Nothing is centred.
    Backward keeps the input and the statistics, no other tensor of the input's size; a second derivative falls back
    on the plain formula. Statistics are taken in float32 where the input is half precision.

    Args:
        num_features: Channels of the input ``(batch, num_features, height, width)``; the output has the same shape.
        groups: Groups of channels.
        apply_act: Without it the layer is :math:`\gamma x + \beta` alone, as released.
        eps: Added to the variance.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InputError: If the groups do not divide the channels, or the input is not 4-D or has other channels.

    Source:
        arXiv:2004.02967.

    Example:
        >>> layer = EvoNormS0(64)
        >>> layer(torch.randn(2, 64, 8, 8)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([2, 64, 8, 8]), 192)
    """

    slope = True


class EvoNormS1(_SampleSeries):
    r"""SiLU of the input, divided by the standard deviation of its group of channels; arguments as :class:`EvoNormS0`.

    .. math:: y = \frac{x\,\sigma(x)}{\sqrt{s^2_{w,h,c/g}(x) + \epsilon}}\,\gamma + \beta

    Source:
        arXiv:2004.02967 (further layers that the search found).
    """


class EvoNormS2(_SampleSeries):
    r"""SiLU of the input, divided by the root mean square of its group of channels; arguments as :class:`EvoNormS0`.

    .. math:: y = \frac{x\,\sigma(x)}{\sqrt{\operatorname{mean}_{w,h,c/g}(x^2) + \epsilon}}\,\gamma + \beta

    Source:
        arXiv:2004.02967 (further layers that the search found).
    """

    centered = False


class _BatchSeries(_EvoNorm):
    """What B0, B1 and B2 share: ``x / max(√(s_b² + ε), gate(x))`` with a running estimate of the batch variance."""

    slope = False
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        apply_act: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, apply_act, eps, self.slope, device, dtype)
        checks.between("momentum", momentum, 0, 1)
        self.momentum = momentum
        self.register_buffer("running_var", torch.ones(num_features, device=device, dtype=dtype))

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        if not self.apply_act:
            return self._affine(input)
        samples = input.numel() // self.num_features
        if self.training and samples < 2:
            expected = "a batch variance in training needs batch·height·width of at least 2"
            checks.fail(expected, f"input of shape {tuple(input.shape)}")
        out, variance = self._normalise(input, None if self.training else self.running_var)
        if self.training:
            with torch.no_grad():
                unbiased = variance.detach().to(self.running_var.dtype) * (samples / (samples - 1))
                self.running_var.lerp_(unbiased, self.momentum)
        return out

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The output, and the batch variance that it was made with (``variance`` if given)."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.num_features}, apply_act={self.apply_act}, momentum={self.momentum}, eps={self.eps}"

    @classmethod
    def like(cls, norm: nn.Module, apply_act: bool = True) -> Self:
        """Replace ``norm`` (and the activation after it, with ``apply_act``); γ, β and running variance are taken over.

        Args:
            norm: A 2-D batch, group or instance normalisation.
            apply_act: Whether an activation follows ``norm``.
        """
        weight = norm.weight if isinstance(norm.weight, Tensor) else None
        factory: dict[str, Any] = {} if weight is None else {"device": weight.device, "dtype": weight.dtype}
        momentum = getattr(norm, "momentum", None)
        new = cls(channels_of(norm), apply_act, 0.1 if momentum is None else momentum, float(norm.eps), **factory)  # type: ignore[arg-type]
        variance = getattr(norm, "running_var", None)
        if isinstance(variance, Tensor) and not variance.is_meta:
            new.running_var.copy_(variance)
        return new._take_affine(norm)


class EvoNormB0(_BatchSeries):
    r"""The input divided by the larger of the batch's deviation and a gate: no activation function at all.

    .. math:: y = \frac{x}{\max\left(\sqrt{s^2_{b,w,h}(x)+\epsilon},\; v_1 x + \sqrt{s^2_{w,h}(x)+\epsilon}\right)}
        \,\gamma + \beta

    with biased variances over batch and pixels (:math:`s_{b,w,h}`) and over the pixels of one sample (:math:`s_{w,h}`).
    In eval mode a running estimate, updated with the unbiased variance, stands for the former; the latter is always
    computed. Backward keeps the input and the statistics, no other tensor of the input's size; a second
    derivative falls back on the plain formula. Statistics are taken in float32 where the input is half precision.

    Args:
        num_features: Channels of the input ``(batch, num_features, height, width)``; the output has the same shape.
        apply_act: Without it the layer is :math:`\gamma x + \beta` alone, as released.
        momentum: Weight of a new batch in the running variance.
        eps: Added to the variances.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        InputError: If the input is not 4-D, has other channels, or has one value per channel in training.

    Source:
        arXiv:2004.02967.

    Example:
        >>> layer = EvoNormB0(64)
        >>> layer(torch.randn(2, 64, 8, 8)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([2, 64, 8, 8]), 192)
    """

    slope = True

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        function = plain_batch_gate if needs_plain_formula(input) else BatchGate.apply
        out: tuple[Tensor, Tensor] = function(input, self.v, self.weight, self.bias, variance, self.eps, True)
        return out


class EvoNormB1(_BatchSeries):
    r"""The input divided by the larger of the batch's deviation and a gate; arguments as :class:`EvoNormB0`.

    .. math:: y = \frac{x}{\max\left(\sqrt{s^2_{b,w,h}(x)+\epsilon},\;
        (x + 1)\sqrt{\operatorname{mean}_{w,h}(x^2)+\epsilon}\right)}\,\gamma + \beta

    Source:
        arXiv:2004.02967 (further layers that the search found).
    """

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        x = widen(input)
        if variance is None:
            variance = x.var(dim=(0, 2, 3), correction=0)
        root_mean_square = (x.square().mean(dim=(2, 3), keepdim=True) + self.eps).sqrt()
        left = (variance.to(x.dtype) + self.eps).sqrt().view(1, -1, 1, 1)
        out = self._affine(x / torch.maximum(left, (x + 1) * root_mean_square))
        return out.to(input.dtype), variance


class EvoNormB2(_BatchSeries):
    r"""The input divided by the larger of the batch's deviation and a gate; arguments as :class:`EvoNormB0`.

    .. math:: y = \frac{x}{\max\left(\sqrt{s^2_{b,w,h}(x)+\epsilon},\;
        \sqrt{\operatorname{mean}_{w,h}(x^2)+\epsilon} - x\right)}\,\gamma + \beta

    Source:
        arXiv:2004.02967 (further layers that the search found).
    """

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        function = plain_batch_gate if needs_plain_formula(input) else BatchGate.apply
        out: tuple[Tensor, Tensor] = function(input, None, self.weight, self.bias, variance, self.eps, False)
        return out


_LAYERS: dict[str, type[_SampleSeries] | type[_BatchSeries]] = {
    "B0": EvoNormB0,
    "B1": EvoNormB1,
    "B2": EvoNormB2,
    "S0": EvoNormS0,
    "S1": EvoNormS1,
    "S2": EvoNormS2,
}


def replace_norm_act(
    model: nn.Module, kind: Kind = "S0", groups: int = 32, activations: tuple[type[nn.Module], ...] = ()
) -> nn.Module:
    """A copy of ``model`` in which EvoNorm stands for every 2-D normalisation *and* the activation that follows it.

    A normalisation without an activation after it becomes γx + β (``apply_act=False``), as in the released layers. What
    follows what is found by tracing; see :func:`netwright.layers.norm_act.swap_norm_act` for the cases.

    Args:
        model: Any convolutional network; it is left as it is.
        kind: ``"B0"``, ``"B1"``, ``"B2"``, ``"S0"``, ``"S1"`` or ``"S2"``.
        groups: Of the S-series; where it does not divide the channels, the largest number below it that does.
        activations: Module types of the model's own that are activations.

    Raises:
        InputError: If there is no such kind, no 2-D normalisation in the model, or no telling which activation belongs
            to which normalisation.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
        >>> replace_norm_act(model, "S0", groups=8)[1:]
        Sequential(
          (1): EvoNormS0(16, groups=8, apply_act=True, eps=1e-05)
          (2): Identity()
        )
    """
    checks.known("kind of EvoNorm", kind, KINDS)
    layer = _LAYERS[kind]
    like = partial(layer.like, groups=groups) if issubclass(layer, _SampleSeries) else layer.like
    return swap_norm_act(model, lambda norm, act: like(norm, apply_act=act), activations=activations)


__all__ = [
    "KINDS",
    "EvoNormB0",
    "EvoNormB1",
    "EvoNormB2",
    "EvoNormS0",
    "EvoNormS1",
    "EvoNormS2",
    "Kind",
    "replace_norm_act",
]
