"""EvoNorm (Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967): one layer for normalisation and activation together.

The layers that the paper's search found: the B-series (B0, B1, B2) divides by statistics of the batch, the S-series (S0,
S1, S2) by statistics of one sample, so that it does not care how small the batch is. :func:`replace_norm_act` puts
them into a network that somebody else wrote.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.norm_act import channels_of, swap_norm_act

Kind = Literal["B0", "B1", "B2", "S0", "S1", "S2"]
KINDS: tuple[Kind, ...] = ("B0", "B1", "B2", "S0", "S1", "S2")

# below this slope, the gradient of v is summed directly instead of as a difference of two sums; see _GroupGate.backward
_SMALL_SLOPE = 0.05


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
        function = _plain_group_gate if _needs_plain_formula(input) else _GroupGate.apply
        out: Tensor = function(input, self.v, self.weight, self.bias, self.groups, self.eps, self.centered)
        return out

    def extra_repr(self) -> str:
        return f"{self.num_features}, groups={self.groups}, apply_act={self.apply_act}, eps={self.eps}"

    @classmethod
    def like(cls, norm: nn.Module, groups: int = 32, apply_act: bool = True) -> Self:
        """Replace ``norm`` (and the activation after it, with ``apply_act``); γ and β start where those of ``norm`` are.

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
        arXiv:2004.02967, table 2.

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
        arXiv:2004.02967, appendix (alternative layers of the search).
    """


class EvoNormS2(_SampleSeries):
    r"""SiLU of the input, divided by the root mean square of its group of channels; arguments as :class:`EvoNormS0`.

    .. math:: y = \frac{x\,\sigma(x)}{\sqrt{\operatorname{mean}_{w,h,c/g}(x^2) + \epsilon}}\,\gamma + \beta

    Source:
        arXiv:2004.02967, appendix (alternative layers of the search).
    """

    centered = False


class _BatchSeries(_EvoNorm):
    """What B0, B1 and B2 share: ``x / max(√(s_b² + ε), gate(x))`` with a running estimate of the batch variance s_b²."""

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
    r"""The input divided by the larger of the batch's deviation and a line through the sample's: no activation function.

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
        arXiv:2004.02967, table 2.

    Example:
        >>> layer = EvoNormB0(64)
        >>> layer(torch.randn(2, 64, 8, 8)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([2, 64, 8, 8]), 192)
    """

    slope = True

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        function = _plain_batch_gate if _needs_plain_formula(input) else _BatchGate.apply
        out: tuple[Tensor, Tensor] = function(input, self.v, self.weight, self.bias, variance, self.eps, True)
        return out


class EvoNormB1(_BatchSeries):
    r"""The input divided by the larger of the batch's deviation and a gate; arguments as :class:`EvoNormB0`.

    .. math:: y = \frac{x}{\max\left(\sqrt{s^2_{b,w,h}(x)+\epsilon},\;
        (x + 1)\sqrt{\operatorname{mean}_{w,h}(x^2)+\epsilon}\right)}\,\gamma + \beta

    Source:
        arXiv:2004.02967, appendix (alternative layers of the search).
    """

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        x = _widen(input)
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
        arXiv:2004.02967, appendix (alternative layers of the search).
    """

    def _normalise(self, input: Tensor, variance: Tensor | None) -> tuple[Tensor, Tensor]:
        function = _plain_batch_gate if _needs_plain_formula(input) else _BatchGate.apply
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


def _needs_plain_formula(input: Tensor) -> bool:
    """Compilers and ``torch.func`` see through the plain formula, and the former fuse it themselves."""
    return torch.compiler.is_compiling() or input.is_meta or torch._C._are_functorch_transforms_active()


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _plain_group_gate(
    input: Tensor, v: Tensor | None, weight: Tensor, bias: Tensor, groups: int, eps: float, centered: bool
) -> Tensor:
    """S-series from torch's own differentiable functions; ``v`` of ``None`` is 1."""
    x = _widen(input)
    batch, channels = x.shape[:2]
    grouped = x.reshape(batch, groups, -1)
    power = grouped.var(dim=-1, correction=0) if centered else grouped.square().mean(dim=-1)
    std = (power + eps).sqrt().repeat_interleave(channels // groups, dim=1).view(batch, channels, 1, 1)
    gate = torch.sigmoid(x if v is None else x * _per_channel(v, x))
    return (x * gate / std * _per_channel(weight, x) + _per_channel(bias, x)).to(input.dtype)


def _plain_batch_gate(
    input: Tensor,
    v: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    variance: Tensor | None,
    eps: float,
    centered: bool,
) -> tuple[Tensor, Tensor]:
    """B0 and B2 from torch's own differentiable functions; ``v`` of ``None`` is −1."""
    x = _widen(input)
    if variance is None:
        variance = x.var(dim=(0, 2, 3), correction=0)
    spatial = (2, 3)
    power = x.var(spatial, correction=0, keepdim=True) if centered else x.square().mean(spatial, keepdim=True)
    right = (-x if v is None else x * _per_channel(v, x)) + (power + eps).sqrt()
    left = _per_channel((variance.to(x.dtype) + eps).sqrt(), x)
    out = x / torch.maximum(left, right) * _per_channel(weight, x) + _per_channel(bias, x)
    return out.to(input.dtype), variance


def _per_channel(vector: Tensor, x: Tensor) -> Tensor:
    return vector.to(x.dtype).view(1, -1, 1, 1)


def _moments(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and 1/√(variance + eps) of every group, ``(batch, groups)``, and a spare tensor of the shape of ``x``.

    The kernel of group normalisation takes the moments six times faster on a CPU than ``torch.var_mean``; what it
    normalised on the way is of no use here, but its memory is.
    """
    batch, channels, height, width = x.shape
    spare, mean, rstd = torch.native_group_norm(x, None, None, batch, channels, height * width, groups, eps)
    return mean, rstd, spare


def _affine_rows(x: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """``x * scale + shift`` in one pass, with one scale and shift for every sample and channel ``(batch, channels)``.

    Batch normalisation with mean 0 and variance 1 is this, twice as fast on a CPU as ``torch.addcmul`` with broadcasting.
    """
    rows = scale.numel()
    zeros, ones, empty = scale.new_zeros(rows), scale.new_ones(rows), scale.new_empty(0)
    out = torch.empty_like(x) if out is None else out
    flat_x, flat_out = (t.view(1, rows, *x.shape[2:]) for t in (x, out))
    arguments = (flat_x, scale.reshape(rows), shift.reshape(rows), zeros, ones, False, 0.0, 0.0)
    torch.native_batch_norm(*arguments, out=(flat_out, empty, empty.clone()))
    return out


def _row_sums(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over the pixels of ``a * b`` and of ``a``, both ``(batch, channels)``, in one pass over the two tensors."""
    batch, channels = a.shape[:2]
    rows = batch * channels
    zeros, ones = a.new_zeros(rows), a.new_ones(rows)
    flat_a, flat_b = (t.view(1, rows, *t.shape[2:]) for t in (a, b))
    # the gradients of scale and shift of a batch normalisation with mean 0 and variance 1 are just these sums
    _, products, sums = torch.ops.aten.native_batch_norm_backward(
        flat_a, flat_b, None, zeros, ones, None, None, False, 0.0, [False, True, True]
    )
    return products.view(batch, channels), sums.view(batch, channels)


class _GroupGate(torch.autograd.Function):
    """S-series, fused as far as torch's kernels go: γ·x·σ(v₁x)/std + β; keeps x, the parameters and the statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        centered: bool,
    ) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            x = _widen(input).contiguous()
            channels = x.shape[1]
            mean, rstd, spare = _moments(x, groups, eps)
            if not centered:
                rstd, mean = (rstd.pow(-2) + mean.square()).rsqrt(), torch.zeros_like(mean)
            scale = _spread(rstd, channels) * weight.to(x.dtype)
            # memory that is new to the process costs more time than what is done in it, so all of this is in place
            if v is None:
                z = spare.copy_(x)
            else:
                slope = _away_from_zero(v.to(x.dtype))
                z = torch.mul(x, slope.view(1, -1, 1, 1), out=spare)
                scale = scale / slope
            gated = nn.functional.silu(z, inplace=True)
            out = _affine_rows(gated, scale, bias.to(x.dtype).expand_as(scale), out=gated if x.is_cpu else None)
        ctx.save_for_backward(input, v, weight, bias, mean, rstd)
        ctx.settings = (groups, eps, centered)
        return out.to(input.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, v, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            parameters = (input, v, weight, bias)
            return (*_plain_gradients(_plain_group_gate, parameters, ctx.settings, ctx, grad), None, None, None)
        x, g = _widen(input).contiguous(), _widen(grad).contiguous()
        batch, channels = x.shape[:2]
        groups = mean.shape[1]
        rstd_rows = _spread(rstd, channels)
        scale = rstd_rows * weight.to(x.dtype)
        slope = None if v is None else _away_from_zero(v.to(x.dtype))
        z = x.clone() if slope is None else x * slope.view(1, -1, 1, 1)
        direct = nn.functional.silu(z)
        gated, shifts = _row_sums(g, direct)
        if slope is not None:
            gated = gated / slope  # Σ g·x·σ(v₁x) over the pixels
        # the gradient through x alone, with the statistics held fixed
        torch.ops.aten.silu_backward.grad_input(g, z, grad_input=direct)

        grad_v = None
        if v is not None and slope is not None and ctx.needs_input_grad[1]:
            if v.is_cpu and bool((v.abs() >= _SMALL_SLOPE).all()):
                # Σ g·x²·σ′ is what the sum over `direct` has beyond `gated`, divided by the slope; two passes fewer
                curved = (_row_sums(direct, x)[0] - gated) / slope
            else:
                curved = _row_sums(torch.ops.aten.sigmoid_backward(g, z.sigmoid_()).mul_(x), x)[0]
            grad_v = (curved * scale).sum(0).to(v.dtype)

        grad_input = None
        if ctx.needs_input_grad[0]:
            size = x.numel() // (batch * groups)
            pull = (gated * weight.to(x.dtype)).view(batch, groups, -1).sum(-1) * rstd.pow(3) / -size
            grad_input = _affine_rows(x, _spread(pull, channels), _spread(-pull * mean, channels), out=z)
            grad_input = grad_input.addcmul_(direct, scale[..., None, None]).to(input.dtype)
        grad_weight = (gated * rstd_rows).sum(0).to(weight.dtype)
        return grad_input, grad_v, grad_weight, shifts.sum(0).to(bias.dtype), None, None, None


class _BatchGate(torch.autograd.Function):
    """B0 and B2: γ·x/max(std_b, v₁x + root_i) + β; keeps x, the parameters and the statistics.

    Second output: the variance over batch and pixels, which no gradient passes.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        v: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        variance: Tensor | None,
        eps: float,
        centered: bool,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(input.device.type, enabled=False):
            x = _widen(input).contiguous()
            mean, rstd, spare = _moments(x, x.shape[1], eps)
            batch_mean = mean.mean(0)
            if variance is None:
                # the variance of everything is the mean of the variances and the variance of the means
                used = (rstd.pow(-2) - eps + (mean - batch_mean).square()).mean(0).clamp_min(0)
            else:
                used = variance.to(x.dtype)
            root = rstd.reciprocal() if centered else (rstd.pow(-2) + mean.square()).sqrt()
            left = (used + eps).sqrt()
            right = _affine_rows(x, _slope_rows(v, root), root, out=spare)
            denominator = torch.maximum(right, left.view(1, -1, 1, 1), out=right)
            quotient = torch.div(x, denominator, out=denominator)
            rows = (t.to(x.dtype).expand_as(root) for t in (weight, bias))
            out = _affine_rows(quotient, *rows, out=quotient if x.is_cpu else None)
        ctx.save_for_backward(input, v, weight, bias, variance, mean, root, left)
        ctx.settings = (eps, centered)
        used = used.clone() if used is variance else used
        ctx.mark_non_differentiable(used)
        return out.to(input.dtype), used

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        input, v, weight, bias, variance, mean, root, left = ctx.saved_tensors
        eps, centered = ctx.settings
        if torch.is_grad_enabled():
            parameters, settings = (input, v, weight, bias), (variance, eps, centered)
            gradients = _plain_gradients(lambda *args: _plain_batch_gate(*args)[0], parameters, settings, ctx, grad)
            return (*gradients, None, None, None)
        x, g = _widen(input).contiguous(), _widen(grad).contiguous()
        batch, _, height, width = x.shape
        slope = _slope_rows(v, root)
        scale = weight.to(x.dtype)
        right = _affine_rows(x, slope, root)
        by_sample = right > left.view(1, -1, 1, 1)
        denominator = torch.maximum(right, left.view(1, -1, 1, 1), out=right)
        quotient = g / denominator
        scales, _ = _row_sums(quotient, x)
        # the gradient of the denominator is −γ times this, which is applied to the sums instead
        pulled = torch.div(quotient, denominator, out=denominator).mul_(x)
        everywhere = -scale * pulled.sum((2, 3)) if variance is None else None
        grad_slopes, grad_root = (-scale * sums for sums in _row_sums(pulled.mul_(by_sample), x))

        grad_v = None if v is None else grad_slopes.sum(0).to(v.dtype)
        grad_input = None
        if ctx.needs_input_grad[0]:
            pull = grad_root / (root * height * width)
            shift = -pull * mean if centered else torch.zeros_like(pull)
            if everywhere is not None:
                batch_pull = (everywhere - grad_root).sum(0) / (left * (batch * height * width))
                pull, shift = pull + batch_pull, shift - batch_pull * mean.mean(0)
            grad_input = _affine_rows(x, pull, shift).addcmul_(quotient, scale.view(1, -1, 1, 1))
            grad_input = grad_input.addcmul_(pulled, (-scale * slope)[..., None, None]).to(input.dtype)
        grad_weight, grad_bias = scales.sum(0).to(weight.dtype), g.sum((0, 2, 3)).to(bias.dtype)
        return grad_input, grad_v, grad_weight, grad_bias, None, None, None


def _plain_gradients(
    function: Callable[..., Tensor], parameters: tuple[Tensor | None, ...], settings: tuple[Any, ...], ctx: Any, grad: Tensor
) -> list[Tensor | None]:
    """Gradients that can be differentiated again, by the plain formula."""
    needed = [p for p, needs in zip(parameters, ctx.needs_input_grad, strict=False) if needs and p is not None]
    with torch.autocast(grad.device.type, enabled=False):
        found = iter(torch.autograd.grad(function(*parameters, *settings), needed, grad, create_graph=True))
    chosen = zip(parameters, ctx.needs_input_grad, strict=False)
    return [next(found) if needs and p is not None else None for p, needs in chosen]


def _spread(per_group: Tensor, channels: int) -> Tensor:
    """Values of groups ``(batch, groups)`` for each of their channels ``(batch, channels)``."""
    return per_group.repeat_interleave(channels // per_group.shape[1], dim=1)


def _slope_rows(v: Tensor | None, like: Tensor) -> Tensor:
    """v₁, which is −1 where the layer has none, for every sample and channel."""
    return -torch.ones_like(like) if v is None else v.to(like.dtype).expand_as(like)


def _away_from_zero(slope: Tensor) -> Tensor:
    """So that x·σ(vx) = silu(vx)/v also at v = 0; what this changes is far below the resolution of the type."""
    tiny = 1e-30 if slope.dtype == torch.float64 else 1e-20
    return torch.where(slope.abs() < tiny, tiny, slope)


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
