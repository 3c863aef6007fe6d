"""Layers of the Poincaré ball (Shimizu et al. 2021, arXiv:2006.08210; van Spengler et al. 2023, arXiv:2303.14027).

All of them take and give tangent vectors at the origin, so that they mix with torch's layers: :class:`PoincareLinear`,
:class:`PoincareConv2d`, :func:`mobius_skip`; batch normalisation is in :mod:`netwright.layers.hyperbolic_norm`.
"""

import math
from functools import reduce
from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers._geometry import Size, conv_arguments, linear_arguments, padding_sides, sizes
from netwright.layers._hyperbolic import SquaredNorm, run, run_several
from netwright.layers._hyperboloid import Add, Connect, Lift, connect
from netwright.layers.hyperbolic import PoincareBall

Init = Literal["identity", "normal"]


class PoincareLinear(nn.Module):
    r"""The fully connected layer of the Poincaré ball, from tangent vectors to tangent vectors at the origin.

    With x = exp₀(input) and λ_x = 2/(1 − c|x|²), output k comes from the signed distance to the hyperplane that row
    z_k of the weight and the bias r_k describe:

    .. math:: v_k = \frac{2|z_k|}{\sqrt c} \operatorname{arsinh}\Bigl(\lambda_x \bigl\langle \sqrt c\,x,
        \tfrac{z_k}{|z_k|}\bigr\rangle \cosh(2\sqrt c\,r_k) - (\lambda_x - 1)\sinh(2\sqrt c\,r_k)\Bigr)

    .. math:: y = \frac{w}{1 + \sqrt{1 + c|w|^2}}, \quad w_k = \frac{\sinh(\sqrt c\,v_k)}{\sqrt c}, \quad
        \text{output} = \log_0(y)

    with projections after exp₀ and before log₀. For c → 0 it is the linear layer 2⟨z_k, x⟩ − 2|z_k|r_k. Its parameters
    are no points of the ball: any optimiser of torch trains them.

    Args:
        in_features: Size of the last dimension of the input ``(*, in_features)``.
        out_features: Size of the last dimension of the output ``(*, out_features)``.
        ball: The ball; of curvature −1 if not given.
        bias: Whether there is a bias r.
        init: ``"identity"``: half the rectangular identity, with which a square layer is the identity map, at any
            depth; ``"normal"``: standard deviation (2·in·out)^(−1/2), with which outputs shrink layer by layer.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If a size is below 1, ``init`` is unknown, or the input has another size.

    Source:
        arXiv:2006.08210, section 3; initialisation: arXiv:2303.14027, section 3. The authors' code multiplies
        λ_x = 2(1 − c|x|²) where the paper divides; this one divides.

    Example:
        >>> layer = PoincareLinear(4, 4, PoincareBall(c=0.5))
        >>> x = torch.tensor([0.1, 0.2, -0.3, 0.4])
        >>> torch.allclose(layer(x), x)
        True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        ball: PoincareBall | None = None,
        bias: bool = True,
        init: Init = "identity",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_features", in_features, 1)
        checks.at_least("out_features", out_features, 1)
        checks.known("init", init, get_args(Init))
        self.in_features = in_features
        self.out_features = out_features
        self.ball = PoincareBall() if ball is None else ball
        self.init: Init = init
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def like(cls, linear: nn.Linear, ball: PoincareBall | None = None, *, init: Init = "identity") -> Self:
        """Replace ``linear``: the same sizes and whether there is a bias; new weights."""
        return cls(**linear_arguments(linear), ball=ball, init=init)

    def reset_parameters(self) -> None:
        """Start anew."""
        _reset(self.weight, self.bias, self.init)

    def forward(self, input: Tensor) -> Tensor:
        checks.size("input", input, -1, self.in_features)
        wide = _wide(input)
        squared = run(SquaredNorm, self.ball.written, wide, -1)
        products = functional.linear(input, self.weight)
        rows = [tensor.reshape(-1, tensor.shape[-1]).T.unsqueeze(0) for tensor in (products, squared)]
        output = _connect(self.ball, rows[0], rows[1], self.weight, self.bias, 1.0)
        return output.squeeze(0).T.reshape(products.shape).to(input.dtype)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, init={self.init!r}"


class PoincareConv2d(nn.Module):
    r"""Convolution in the Poincaré ball: :class:`PoincareLinear` on β-concatenated patches of tangent vectors.

    The k·k pixels of a patch become one vector by multiplying with B(n/2, ½)/B(n_i/2, ½), where n_i channels in k·k
    pixels make n numbers; zeros of the padding are the origin. The patches are never formed: the layer needs their
    products with the weights, which are a convolution, and their norms, sums over a box.

    Args:
        in_channels: Channels of the input ``(batch, in_channels, height, width)``.
        out_channels: Channels of the output ``(batch, out_channels, height', width')``.
        kernel_size: As in torch.
        ball: See :class:`PoincareLinear`.
        stride: As in torch.
        padding: As in torch, words included.
        bias: Whether there is a bias r.
        init: See :class:`PoincareLinear`. The identity is that of the weight as a matrix with the inputs ordered by
            channel, row and column, as published: output j is number j of the patch.
        dilation: As in torch.
        groups: Only 1.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Raises:
        InputError: If a size is below 1, ``groups`` is not 1, ``init`` or ``padding`` is unknown, or the input has
            another shape.

    Source:
        arXiv:2006.08210, section 3; arXiv:2303.14027, section 3.

    Example:
        >>> PoincareConv2d(3, 8, 3, PoincareBall(c=0.1), stride=2, padding=1)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 8, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        ball: PoincareBall | None = None,
        stride: Size = 1,
        padding: Size | str = 0,
        bias: bool = True,
        init: Init = "identity",
        *,
        dilation: Size = 1,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_channels", in_channels, 1)
        checks.at_least("out_channels", out_channels, 1)
        checks.known("init", init, get_args(Init))
        if groups != 1:
            checks.fail("groups must be 1: a group of channels is no vector of the ball", groups)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = sizes("kernel_size", kernel_size, 2)
        self.stride = sizes("stride", stride, 2)
        self.padding = padding if isinstance(padding, str) else sizes("padding", padding, 2)
        self.dilation = sizes("dilation", dilation, 2)
        for name in ("kernel_size", "stride", "dilation"):
            checks.at_least(name, min(getattr(self, name)), 1)
        padding_sides(self.padding, self.kernel_size, self.dilation, self.stride)  # checks them
        self.ball = PoincareBall() if ball is None else ball
        self.init: Init = init
        self.scale = beta_ratio(in_channels, math.prod(self.kernel_size))
        weight = torch.empty(out_channels, in_channels, *self.kernel_size, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    @classmethod
    def like(cls, conv: nn.Conv2d, ball: PoincareBall | None = None, *, init: Init = "identity") -> Self:
        """Replace ``conv``: the same geometry and whether there is a bias; new weights.

        Raises:
            InputError: If ``conv`` has groups, or pads with other than zeros.
        """
        arguments = conv_arguments(conv)
        if arguments.pop("padding_mode") != "zeros":
            checks.fail("padding must be with zeros, the origin of the ball", conv.padding_mode)
        return cls(**arguments, ball=ball, init=init)

    def reset_parameters(self) -> None:
        """Start anew."""
        _reset(self.weight, self.bias, self.init)

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)", "(channels, height, width)")
        checks.size("input", input, -3, self.in_channels)
        products = functional.conv2d(input, self.weight, None, self.stride, self.padding, self.dilation)
        squared = self._box_sums(run(SquaredNorm, self.ball.written, _wide(input), -3)) * self.scale**2
        places = [tensor.reshape(-1, tensor.shape[-3], math.prod(tensor.shape[-2:])) for tensor in (products, squared)]
        output = _connect(self.ball, places[0], places[1], self.weight, self.bias, self.scale)
        return output.view_as(products).to(input.dtype)

    def _box_sums(self, squared: Tensor) -> Tensor:
        """Sums over the pixels of each patch; by shifts, as the backward of a convolution of one channel is slow."""
        sums = functional.pad(squared, padding_sides(self.padding, self.kernel_size, self.dilation, self.stride))
        for axis, (kernel, step, apart) in enumerate(zip(self.kernel_size, self.stride, self.dilation, strict=True)):
            lines = sums.movedim(axis - 2, -1)
            end = lines.shape[-1] - apart * (kernel - 1)
            shifted = (lines[..., apart * i : end + apart * i : step] for i in range(kernel))
            sums = reduce(torch.add, shifted).movedim(-1, axis - 2)
        return sums

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, bias={self.bias is not None}, init={self.init!r}"
        )


def beta_ratio(features: int, parts: int) -> float:
    """B(n/2, ½)/B(n_i/2, ½) for n = parts·n_i: what tangent vectors of n_i features are scaled by to be concatenated.

    Example:
        >>> beta_ratio(8, 1), round(beta_ratio(8, 9), 4)
        (1.0, 0.3242)
    """

    def log_beta(size: int) -> float:
        return math.lgamma(size / 2) - math.lgamma((size + 1) / 2)  # without the Γ(½) of both

    return math.exp(log_beta(features * parts) - log_beta(features))


def mobius_skip(f: Tensor, residual: Tensor, ball: PoincareBall, dim: int = 1) -> Tensor:
    """log₀(exp₀(f) ⊕ exp₀(residual)): the residual connection of the ball, on tangent vectors at the origin.

    Args:
        f: What the branch gives, the left summand; any shape with the vectors along ``dim``.
        residual: What goes past it, of the same shape.
        ball: The ball.
        dim: Where the channels are. The authors' code has the vectors of its skips along the width of the picture.

    Source:
        arXiv:2303.14027, section 3.

    Example:
        >>> f, r = torch.zeros(1, 2, 4, 4), torch.randn(1, 2, 4, 4)
        >>> torch.allclose(mobius_skip(f, r, PoincareBall(c=0.1)), r, atol=1e-5)
        True
    """
    if f.shape != residual.shape:
        checks.fail(f"residual must have the shape {tuple(f.shape)} of the branch", f"shape {tuple(residual.shape)}")
    wide_f, wide_r, c = _wide(f), _wide(residual), ball.c
    lifted = [lift(ball, c * run(SquaredNorm, ball.written, tensor, dim)) for tensor in (wide_f, wide_r)]
    product = c * (wide_f * wide_r).sum(dim, keepdim=True)
    alpha, beta = run_several(Add, ball.written, *lifted[0], *lifted[1], product)
    return (alpha * wide_f + beta * wide_r).to(f.dtype)


def lift(ball: PoincareBall, squared: Tensor) -> tuple[Tensor, ...]:
    """(a, X₀) of tangent vectors at the origin with c|u|² = ``squared``: their points are (1 + X₀, a√c u)."""
    return run_several(Lift, ball.written, squared)


def _connect(
    ball: PoincareBall, products: Tensor, squared: Tensor, weight: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """The layer from ⟨u, z⟩ ``(batch, outputs, places)`` and |u|² ``(batch, 1, places)``."""
    c = ball.c
    a, time = lift(ball, c * squared)
    norm = torch.linalg.vector_norm(_wide(weight).flatten(1), dim=1).unsqueeze(1)
    r = None if bias is None else _wide(bias).unsqueeze(1)
    arguments = (_wide(products), a, time, norm, r, scale, c)
    return run(Connect, True, *arguments) if ball.written else connect(*arguments)


def _reset(weight: Tensor, bias: Tensor | None, init: Init) -> None:
    rows = weight.shape[0]
    columns = weight[0].numel()
    with torch.no_grad():
        if init == "identity":
            weight.copy_((torch.eye(rows, columns, device=weight.device) / 2).view_as(weight))
        else:
            weight.normal_(0, (2 * rows * columns) ** -0.5)
        if bias is not None:
            bias.zero_()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


__all__ = ["Init", "PoincareConv2d", "PoincareLinear", "beta_ratio", "lift", "mobius_skip"]
