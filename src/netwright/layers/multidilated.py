"""Multidilated convolutions (D3Net; Takahashi and Mitsufuji 2020, arXiv:2010.01733): each source its own dilation.

In a dense block of growing dilations, a layer that applies one dilation to all earlier layers looks at the younger ones
with holes: blind spots. Here the dilation belongs to the *source*, so that nothing is skipped.
Public names: :class:`MultiDilatedConv2d`, :class:`D2Block` (dense, multidilated), :class:`D3Block` (dense D2 blocks).
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

KernelSize = int | tuple[int, int]
MakeLayer = Callable[..., nn.Module]


class MultiDilatedConv2d(nn.Module):
    r"""One convolution over several groups of channels, each with a dilation of its own.

    .. math:: y = \sum_i w_i *_{d_i} x_i + b

    Height and width are kept: each group is padded with zeros for its dilation.

    Args:
        in_groups: Channels of each :math:`x_i`; the input has them one after the other.
        out_channels: Channels of y.
        kernel_size: Odd; a number, or height and width.
        dilations: The :math:`d_i`; :math:`2^i`, i from 0, if not given.
        bias: Whether there is a bias b.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Shape:
        ``(batch, sum(in_groups), height, width)`` to ``(batch, out_channels, height, width)``.

    Raises:
        InputError: If there is no group, the dilations are not as many, the kernel is not odd, or the input is complex.

    Source:
        arXiv:2010.01733, section 2, equation 3.

    Example:
        >>> MultiDilatedConv2d([3, 8, 8], 8)(torch.randn(2, 19, 33, 20)).shape
        torch.Size([2, 8, 33, 20])
    """

    def __init__(
        self,
        in_groups: Sequence[int],
        out_channels: int,
        kernel_size: KernelSize = 3,
        dilations: Sequence[int] | None = None,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("number of groups", len(in_groups), 1)
        checks.at_least("channels of the smallest group", min(in_groups), 1)
        checks.at_least("out_channels", out_channels, 1)
        self.in_groups = tuple(in_groups)
        self.out_channels = out_channels
        self.kernel_size = _odd(kernel_size)
        self.dilations = _dilations(dilations, len(in_groups), "in_groups")
        # one kernel over all groups, so that the first weights see all the channels that they add up
        shape = (out_channels, sum(in_groups), *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights as ``torch.nn.Conv2d`` does."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        _check_real(input)
        checks.dimensions("input", input, "(batch, channels, height, width)")
        checks.size("input", input, 1, sum(self.in_groups))
        groups = [torch.split(tensor, list(self.in_groups), 1) for tensor in (input, self.weight)]
        total: Tensor | None = None
        for source, weight, dilation in zip(*groups, self.dilations, strict=True):
            bias = self.bias if total is None else None
            output = functional.conv2d(
                source, weight, bias, padding=_same(self.kernel_size, dilation), dilation=dilation
            )
            total = output if total is None else total + output
        assert total is not None
        return total

    def extra_repr(self) -> str:
        return f"{list(self.in_groups)}, {self.out_channels}, {self.kernel_size}, dilations={list(self.dilations)}"


class D2Block(nn.Module):
    r"""A dense block whose layers convolve each earlier layer with a dilation of that one's own.

    .. math:: y_l = \sum_{i<l} w_{l,i} *_{d_i} \psi_i(x_i), \qquad x_0 = \text{input}, \; x_l = y_l, \; d_i = 2^i

    with :math:`\psi_i` normalisation and activation. As the dilation and ψ depend on the source alone, a source is
    convolved once, to all later layers: L convolutions, not L(L+1)/2. Parameters of the convolutions without bias:
    :math:`\sum_i c_i \sum_{l>i} k_l K^2`, with :math:`c_0` the channels of the input, :math:`c_i = k_i` the growth, and
    kernels K×K. With 3×3 kernels each axis sees :math:`1 + 2 (2^L - 1)` bins.

    Args:
        in_channels: :math:`c_0`.
        growth: Channels k of each layer: one number for all, or as many as there are layers.
        depth: Number L of layers.
        kernel_size: Odd; a number, or height and width.
        dilations: The :math:`d_i`, :math:`2^i` if not given; ones make a plain dense block.
        out_layers: How many of the last layers are the output; all if not given.
        conv: Makes a convolution, with the arguments of :class:`torch.nn.Conv2d`;
            :func:`netwright.layers.pseudo_complex.pseudo_complex_conv2d` for complex channels.
        norm: Makes a normalisation of so many channels;
            :func:`netwright.layers.pseudo_complex.planewise_batch_norm2d` for complex channels.
        act: Makes an activation.
        bias: Whether the convolutions have biases.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Attributes:
        out_channels: Channels of the output.

    Shape:
        ``(batch, in_channels, height, width)`` to ``(batch, out_channels, height, width)``; with complex channels
        ``(batch, channels, 2, height, width)``.

    Raises:
        InputError: If growth or dilations are not as many as there are layers, ``out_layers`` is more than these, the
            kernel is not odd, or the input is complex.

    Source:
        arXiv:2010.01733, section 2; with all layers as the output, arXiv:2011.11844, section 3.

    Example:
        >>> block = D2Block(4, growth=8, depth=3)
        >>> block(torch.randn(2, 4, 33, 20)).shape, sum(conv.weight.numel() for conv in block.convs)
        (torch.Size([2, 24, 33, 20]), 2592)
    """

    def __init__(
        self,
        in_channels: int,
        growth: int | Sequence[int],
        depth: int,
        kernel_size: KernelSize = 3,
        dilations: Sequence[int] | None = None,
        *,
        out_layers: int | None = None,
        conv: MakeLayer = nn.Conv2d,
        norm: MakeLayer = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("in_channels", in_channels, 1)
        checks.at_least("depth", depth, 1)
        self.growth = _growth(growth, depth)
        self.kernel_size = _odd(kernel_size)
        self.dilations = _dilations(dilations, depth, "layers")
        self.out_layers = depth if out_layers is None else out_layers
        checks.between("out_layers", self.out_layers, 1, depth)
        self.out_channels = sum(self.growth[-self.out_layers :])
        at = {"device": device, "dtype": dtype}
        sources = (in_channels, *self.growth[:-1])
        later = list(accumulate(reversed(self.growth)))[::-1]
        self.norms = nn.ModuleList(norm(channels, **at) for channels in sources)
        self.acts = nn.ModuleList(act() for _ in sources)
        self.convs = nn.ModuleList(
            conv(source, out, self.kernel_size, padding=_same(self.kernel_size, d), dilation=d, bias=bias, **at)
            for source, out, d in zip(sources, later, self.dilations, strict=True)
        )

    def forward(self, input: Tensor) -> Tensor:
        _check_real(input)
        source, waiting = input, None  # what later layers have from earlier ones so far
        outputs: list[Tensor] = []
        for growth, norm, act, conv in zip(self.growth, self.norms, self.acts, self.convs, strict=True):
            sent = conv(act(norm(source)))
            waiting = sent if waiting is None else waiting + sent
            source, waiting = waiting[:, :growth], waiting[:, growth:]
            outputs.append(source)
        return torch.cat(outputs[-self.out_layers :], 1) if self.out_layers > 1 else source


class D3Block(nn.Module):
    r"""D2 blocks, densely connected: :math:`x_m = C_m(D_m([x_0, \dots, x_{m-1}]))`, output :math:`[x_0, \dots, x_M]`.

    :math:`D_m` is a :class:`D2Block`, :math:`C_m` a 1×1 convolution to fewer channels, with normalisation and
    activation before it.

    Args:
        in_channels: Channels of :math:`x_0`.
        growth: As of :class:`D2Block`.
        depth: Layers of each D2 block.
        num_d2: Number M of D2 blocks.
        compression: Channels of :math:`x_m` as a share of those of the D2 block before it, in (0, 1].
        kernel_size: As of :class:`D2Block`.
        dilations: As of :class:`D2Block`.
        out_layers: As of :class:`D2Block`.
        conv: As of :class:`D2Block`.
        norm: As of :class:`D2Block`.
        act: As of :class:`D2Block`.
        bias: As of :class:`D2Block`.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Attributes:
        out_channels: Channels of the output.

    Raises:
        InputError: As :class:`D2Block`, or if there is no D2 block, or the compression is outside (0, 1].

    Source:
        arXiv:2011.11844, section 3; the share is the authors' ``block_comp``.

    Example:
        >>> block = D3Block(4, growth=8, depth=3, num_d2=2, compression=0.5)
        >>> block(torch.randn(2, 4, 33, 20)).shape
        torch.Size([2, 28, 33, 20])
    """

    def __init__(
        self,
        in_channels: int,
        growth: int | Sequence[int],
        depth: int,
        num_d2: int,
        compression: float = 0.5,
        kernel_size: KernelSize = 3,
        dilations: Sequence[int] | None = None,
        *,
        out_layers: int | None = None,
        conv: MakeLayer = nn.Conv2d,
        norm: MakeLayer = nn.BatchNorm2d,
        act: Callable[[], nn.Module] = nn.ReLU,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("num_d2", num_d2, 1)
        checks.between("compression", compression, 0, 1, open_low=True)
        at = {"device": device, "dtype": dtype}
        self.blocks = nn.ModuleList()
        self.out_channels = in_channels
        for _ in range(num_d2):
            dense = D2Block(
                self.out_channels, growth, depth, kernel_size, dilations,
                out_layers=out_layers, conv=conv, norm=norm, act=act, bias=bias, device=device, dtype=dtype,
            )  # fmt: skip
            channels = max(1, round(compression * dense.out_channels))
            compress = conv(dense.out_channels, channels, 1, bias=bias, **at)
            self.blocks.append(nn.Sequential(dense, norm(dense.out_channels, **at), act(), compress))
            self.out_channels += channels

    def forward(self, input: Tensor) -> Tensor:
        _check_real(input)
        found = input
        for block in self.blocks:
            found = torch.cat([found, block(found)], 1)
        return found


def _odd(kernel_size: KernelSize) -> tuple[int, int]:
    height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if min(height, width) < 1 or height % 2 == 0 or width % 2 == 0:
        checks.fail("kernel_size must be odd, so that height and width can be kept", kernel_size)
    return height, width


def _same(kernel_size: tuple[int, int], dilation: int) -> tuple[int, int]:
    """Zeros on each side that keep height and width."""
    return dilation * (kernel_size[0] // 2), dilation * (kernel_size[1] // 2)


def _growth(growth: int | Sequence[int], depth: int) -> tuple[int, ...]:
    each = (growth,) * depth if isinstance(growth, int) else tuple(growth)
    if len(each) != depth:
        checks.fail(f"growth must be a number or as many as there are layers ({depth})", list(each))
    checks.at_least("smallest growth", min(each), 1)
    return each


def _dilations(dilations: Sequence[int] | None, number: int, of_what: str) -> tuple[int, ...]:
    each = tuple(2**i for i in range(number)) if dilations is None else tuple(dilations)
    if len(each) != number:
        checks.fail(f"dilations must be as many as {of_what} ({number})", list(each))
    checks.at_least("smallest dilation", min(each), 1)
    return each


def _check_real(input: Tensor) -> None:
    if input.is_complex():
        checks.fail(
            "input must be real; complex channels go in as pairs, see netwright.layers.pseudo_complex", input.dtype
        )


__all__ = ["D2Block", "D3Block", "MultiDilatedConv2d"]
