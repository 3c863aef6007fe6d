"""BiPer (Vargas et al. 2024, arXiv:2404.01278): binary weights as a square wave of a latent real weight.

:class:`BiPerConv2d` and :class:`BiPerLinear` stand in for torch's layers. A latent weight w becomes sin(ωw) in stage 1
of training and sign(sin(ωw)) in stage 2, with the sine as surrogate; inputs become their signs. :func:`set_stage`
changes the stage of a network; :mod:`netwright.compression.binary` puts the layers into one.
"""

import math
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers._geometry import Size, conv_arguments, linear_arguments
from netwright.layers.binary import BinaryConv2d, BinaryLinear
from netwright.layers.straight_through import binary_sign

STAGES = (1, 2)


class _SquareWave(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, freq: float) -> Tensor:
        return binary_sign((freq * input).sin_())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:  # noqa: ARG004
        input, ctx.freq = inputs  # noqa: A001
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradient * (ctx.freq * x).cos_().mul_(ctx.freq), None


def square_wave(input: Tensor, freq: float) -> Tensor:
    r"""A square wave of period 2π/ω, whose gradient is that of the sine of the same period.

    .. math:: y = \operatorname{sign}(\sin(ωx)), \qquad \frac{∂L}{∂x} := ω \cos(ωx) \frac{∂L}{∂y}

    Args:
        input: x, any shape.
        freq: The angular frequency ω, positive.

    Returns:
        −1 or +1, of the shape and type of ``input``; +1 where the sine is 0.

    Source:
        arXiv:2404.01278, equations 5 and 6.

    Example:
        >>> x = torch.tensor([-0.1, 0.0, 0.1, 0.2], requires_grad=True)
        >>> y = square_wave(x, freq=20.0)
        >>> y.detach()
        tensor([-1.,  1.,  1., -1.])
        >>> y.sum().backward()
        >>> torch.allclose(x.grad, 20 * torch.cos(20 * x))
        True
    """
    checks.positive("freq", freq)
    wave: Tensor = _SquareWave.apply(input, freq)  # type: ignore[no-untyped-call]
    return wave


class _Periodic(nn.Module):
    """Latent weight, scale, frequency and stage: what both BiPer layers share."""

    # a binary weight is never zero: pruning has nothing to take
    dense_parameters: ClassVar[frozenset[str]] = frozenset({"weight", "alpha"})
    weight: nn.Parameter
    alpha: nn.Parameter
    bias: Tensor | None

    def _make_parameters(
        self,
        weight: tuple[int, ...],
        bias: bool,
        freq: float,
        stage: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        make = partial(torch.empty, device=device, dtype=dtype)
        self.freq = freq
        self.stage = stage
        self.weight = nn.Parameter(make(weight))
        self.alpha = nn.Parameter(make(weight[0], *[1] * (len(weight) - 2)))
        self.register_parameter("bias", nn.Parameter(make(weight[0])) if bias else None)
        self._cache = Cache()
        self.reset_parameters()

    @property
    def freq(self) -> float:
        """The angular frequency ω: the weight's sign changes every π/ω."""
        return self._freq

    @freq.setter
    def freq(self, freq: float) -> None:
        checks.positive("freq", freq)
        self._freq = float(freq)

    @property
    def stage(self) -> int:
        """1: the weight is sin(ωw). 2: it is the sign of that."""
        return self._stage

    @stage.setter
    def stage(self, stage: int) -> None:
        if stage not in STAGES:
            checks.fail("stage must be 1 or 2", stage)
        self._stage = int(stage)

    def reset_parameters(self) -> None:
        """Draw w from Kaiming's normal distribution, as the authors' residual networks do, and the scale from U[0, 1).

        The bias is as torch's.
        """
        nn.init.kaiming_normal_(self.weight)
        nn.init.uniform_(self.alpha)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def binary_weight(self) -> Tensor:
        """sin(ωw) in stage 1, sign(sin(ωw)) in stage 2; of the shape of w, without the scale."""
        if self.stage == 1:
            return torch.sin(self.freq * self.weight)
        return square_wave(self.weight, self.freq)

    @property
    def scaled_weight(self) -> Tensor:
        """The binary weight times the scale of each output. In eval mode it is built once and kept."""
        if self.training or type(self.weight) is not nn.Parameter:
            return self._build()
        return self._cache.get(self._build, self.weight, self.alpha, key=(self.freq, self.stage))

    def _build(self) -> Tensor:
        return self.alpha.unsqueeze(-1) * self.binary_weight()

    @torch.no_grad()
    def _take_over(self, layer: nn.Linear | nn.Conv2d) -> None:
        """Take weight and bias, and scale such that every output keeps the mean square of its weights."""
        self.weight.copy_(layer.weight)
        binary = self.binary_weight().flatten(1).norm(dim=1)
        scale = self.weight.flatten(1).norm(dim=1) / binary
        self.alpha.copy_(torch.where(binary > 0, scale, 1.0).view_as(self.alpha))
        if self.bias is not None and layer.bias is not None:
            self.bias.copy_(layer.bias)
            self.bias.requires_grad_(layer.bias.requires_grad)
        self.weight.requires_grad_(layer.weight.requires_grad)
        self.alpha.requires_grad_(layer.weight.requires_grad)

    def get_extra_state(self) -> Tensor:
        # a tensor, so that safetensors can save it
        return torch.tensor([self.stage, self.freq], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        stage, freq = state.tolist()
        self.stage = int(stage)
        self.freq = freq

    def train(self, mode: bool = True) -> Self:
        if mode:
            self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, freq={self.freq:g}, stage={self.stage}"


class BiPerConv2d(_Periodic, BinaryConv2d):
    r"""Convolution of signs with binary weights: torch's, with the weight a square wave of a latent w.

    .. math:: y = α \left(\operatorname{sign}(x) * b\right) + \text{bias}, \qquad
              b = \begin{cases} \sin(ωw) & \text{stage 1} \\ \operatorname{sign}(\sin(ωw)) & \text{stage 2}\end{cases}

    Stage 1 is differentiable in w. In stage 2 the gradient of b is that of the sine, ω cos(ωw). The gradient of sign(x)
    is max(0, 2 − 2|x|), in training for x over its standard deviation in each sample. sign(0) = +1, unlike in the
    authors' code, so that weights and signals have two values; zeros that pad stay zeros. α and bias are per output
    channel; α is folded into the weight, which in eval mode is built once and kept.

    The stage and ω are part of ``state_dict``, and loading one sets them. Neither changes w.

    Args:
        in_channels: As in torch, as are all arguments up to ``padding_mode``; without a bias by default.
        out_channels: Channels of the output.
        kernel_size: As in torch.
        stride: As in torch.
        padding: As in torch.
        dilation: As in torch.
        groups: As in torch.
        bias: Whether there is a bias; it is not scaled.
        padding_mode: As in torch.
        freq: The angular frequency ω, the same in both stages.
        stage: 1 or 2; see :func:`set_stage`.
        binarize_input: Whether the input is reduced to its signs.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If ``freq`` is not positive, ``stage`` neither 1 nor 2, or the input has the wrong channels or is
            not floating-point.

    Source:
        arXiv:2404.01278, sections 3.1 and 3.3.

    Example:
        >>> layer = BiPerConv2d(16, 32, 3, padding=1, stage=2)
        >>> layer(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 32, 8, 8])
        >>> layer.binary_weight().unique()
        tensor([-1.,  1.], grad_fn=<Unique2Backward0>)
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
        freq: float = 20.0,
        stage: int = 1,
        binarize_input: bool = True,
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
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self._make_parameters(shape, bias, freq, stage, device, dtype)

    @classmethod
    def like(cls, conv: nn.Conv2d, freq: float = 20.0, *, stage: int = 1, binarize_input: bool = True) -> Self:
        """Replace ``conv``: its weight becomes w; every channel keeps the mean square of its weights, and its bias.

        In stage 1, small weights (|w| well below 1/ω) stay what they were, so that a trained network can be converted.
        """
        new = cls(**conv_arguments(conv), freq=freq, stage=stage, binarize_input=binarize_input)
        new._take_over(conv)
        return new


class BiPerLinear(_Periodic, BinaryLinear):
    """Linear layer on signs with binary weights; see :class:`BiPerConv2d`.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``, over which the standard deviation is.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        bias: Whether there is a bias; it is not scaled.
        freq: The angular frequency ω.
        stage: 1 or 2.
        binarize_input: Whether the input is reduced to its signs.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Example:
        >>> layer = BiPerLinear(64, 10)
        >>> layer(torch.randn(5, 64)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 10]), 650)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        *,
        freq: float = 20.0,
        stage: int = 1,
        binarize_input: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        BinaryLinear.__init__(self, in_features, out_features, binarize_input=binarize_input)
        self._make_parameters((out_features, in_features), bias, freq, stage, device, dtype)

    @classmethod
    def like(cls, linear: nn.Linear, freq: float = 20.0, *, stage: int = 1, binarize_input: bool = True) -> Self:
        """Replace ``linear``; see :meth:`BiPerConv2d.like`."""
        new = cls(**linear_arguments(linear), freq=freq, stage=stage, binarize_input=binarize_input)
        new._take_over(linear)
        return new


def biper_layers(model: nn.Module) -> dict[str, BiPerConv2d | BiPerLinear]:
    """The BiPer layers of ``model`` by name.

    Raises:
        InputError: If there is none.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, BiPerConv2d | BiPerLinear)}
    if not layers:
        raise checks.InputError(f"found no BiPer layer, got a {type(model).__name__}")
    return layers


def set_stage(model: nn.Module, stage: int) -> None:
    """Put all BiPer layers of ``model`` into stage 1 (real weights sin ωw) or 2 (binary weights); parameters stay.

    Raises:
        InputError: If there is no such layer, or no such stage.

    Example:
        >>> model = nn.Sequential(BiPerLinear(8, 4))
        >>> set_stage(model, 2)
        >>> model[0].stage
        2
    """
    for layer in biper_layers(model).values():
        layer.stage = stage


def sine_penalty(model: nn.Module) -> Tensor:
    r"""The sum over BiPer layers of the mean of :math:`\sin^2(ωw) = \tfrac12 - \tfrac12 \cos(2ωw)`.

    The authors' code for CIFAR-10 adds it to the loss, times 0.037 in stage 1 and 0.0468 in stage 2.

    Raises:
        InputError: If there is no BiPer layer.
    """
    layers = biper_layers(model).values()
    return torch.stack([torch.sin(layer.freq * layer.weight).square().mean() for layer in layers]).sum()


__all__ = [
    "STAGES",
    "BiPerConv2d",
    "BiPerLinear",
    "biper_layers",
    "set_stage",
    "sine_penalty",
    "square_wave",
]
