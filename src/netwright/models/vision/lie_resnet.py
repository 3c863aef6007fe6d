"""The residual network of Mironenco and Forré (2023, arXiv:2310.11366): equivariant to affine maps by group samples.

Public names: :class:`LieResNet`, which without a group is the ordinary network of the same layout.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.layers.lie_conv import GroupConv2d, LiftingConv2d
from netwright.layers.liegroups import LieGroup, Samples


class _PlainConv2d(nn.Conv2d):
    """An ordinary convolution that takes maps over a group of one element; a picture becomes such a map."""

    def forward(self, input: Tensor, *samples: Samples) -> Tensor:  # noqa: ARG002 - there is one sample
        return super().forward(input if input.dim() == 4 else input.flatten(1, 2)).unsqueeze(2)


class _NormAct(nn.Module):
    """Layer normalisation over channels, samples and places, without parameters, and GELU."""

    def __init__(self, act: bool = True) -> None:
        super().__init__()
        self.act = act

    def forward(self, input: Tensor) -> Tensor:
        normalised = functional.layer_norm(input, input.shape[1:])
        return functional.gelu(normalised) if self.act else normalised


class LieBlock(nn.Module):
    """Residual block: ``gelu(x + branch(x))`` with two convolutions, all over the same group samples.

    Args:
        group: The group, or ``None`` for ordinary convolutions.
        num_samples: Number of samples that a convolution draws if asked to.
        width: Channels.
        kernel_size: Odd.
        kernel: Further arguments of :class:`~netwright.layers.lie_conv.GroupConv2d`.

    Shape:
        ``(batch, width, samples, height, width)``, kept.
    """

    def __init__(
        self, group: LieGroup | None, num_samples: int, width: int, kernel_size: int, **kernel: object
    ) -> None:
        super().__init__()
        self.conv1 = _conv(group, num_samples, width, kernel_size, kernel_size // 2, **kernel)
        self.conv2 = _conv(group, num_samples, width, kernel_size, kernel_size // 2, **kernel)
        self.norm_act = _NormAct()

    def forward(self, input: Tensor, samples: Samples) -> Tensor:
        hidden = self.norm_act(self.conv1(input, samples, samples))
        return functional.gelu(input + self.norm_act(self.conv2(hidden, samples, samples)))


class LieResNet(nn.Module):
    """A small residual network whose maps live on an affine group: lift, blocks, group convolution, largest value.

    Lift without padding, layer normalisation and GELU; each block is followed by layer normalisation, 2×2 max pooling
    and GELU; a group convolution without padding onto fresh samples; the largest value over samples and places; a
    linear layer, layer normalisation, GELU, dropout and a linear classifier. The samples are drawn anew in every
    forward pass, also in evaluation, unless ``redraw`` is false: then those of the last :meth:`resample` are used. They
    are part of the state, and in evaluation the kernels are kept.

    Args:
        group: ``SL(2)``, ``GLPlus(2)`` or ``SO(2)`` of :mod:`netwright.layers.liegroups`; ``None`` for ordinary
            convolutions in the same layout.
        num_samples: Group elements of each layer.
        width: Channels of every layer.
        blocks: Residual blocks; each halves the picture.
        num_classes: Outputs.
        in_channels: Channels of the pictures.
        kernel_size: Odd; of all convolutions.
        hidden: Width of the kernel networks.
        layers: Sine layers of the kernel networks.
        w0: Frequency of the kernel networks.
        head: Width of the linear layer.
        dropout: Before the classifier.
        redraw: Whether every forward pass draws its own samples; may be changed later.
        device: Where the parameters are.
        dtype: Their floating-point type.

    Shape:
        ``(batch, in_channels, height, width)`` to ``(batch, num_classes)``.

    Raises:
        InputError: If a size is below 1, the kernel is not odd, or pictures are too small for it.

    Source:
        arXiv:2310.11366, section 5.1 and appendix; with SL(2) 339,102 parameters. In the published code the last
        convolution takes the samples of its input from a draw that no layer before it used; here they are those of the
        layer before.

    Example:
        >>> from netwright.layers.liegroups import SL
        >>> LieResNet(SL(2), num_samples=4, width=6)(torch.randn(2, 1, 20, 20)).shape
        torch.Size([2, 10])
    """

    first_g: Tensor
    first_inverse: Tensor
    last_g: Tensor
    last_inverse: Tensor

    def __init__(
        self,
        group: LieGroup | None,
        num_samples: int = 10,
        width: int = 40,
        blocks: int = 1,
        num_classes: int = 10,
        *,
        in_channels: int = 1,
        kernel_size: int = 5,
        hidden: int = 60,
        layers: int = 3,
        w0: float = 10.0,
        head: int = 256,
        dropout: float = 0.3,
        redraw: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"num_samples": num_samples, "width": width, "blocks": blocks, "num_classes": num_classes}
        for name, value in (sizes | {"in_channels": in_channels, "head": head}).items():
            checks.at_least(name, value, 1)
        if kernel_size < 3 or kernel_size % 2 == 0:
            checks.fail("kernel_size must be odd and at least 3", kernel_size)
        self.group = group
        self.num_samples = 1 if group is None else num_samples
        self.redraw = redraw
        kernel: dict[str, object] = {"device": device, "dtype": dtype}
        if group is not None:
            kernel |= {"hidden": hidden, "layers": layers, "w0": w0}
        self.lift: nn.Module
        if group is None:
            self.lift = _PlainConv2d(in_channels, width, kernel_size, bias=False, device=device, dtype=dtype)
        else:
            self.lift = LiftingConv2d(group, num_samples, in_channels, width, kernel_size, bias=False, **kernel)  # type: ignore[arg-type]
        self.blocks = nn.ModuleList(LieBlock(group, num_samples, width, kernel_size, **kernel) for _ in range(blocks))
        self.pool = nn.MaxPool3d((1, 2, 2))
        self.conv = _conv(group, num_samples, width, kernel_size, 0, **kernel)
        self.norm, self.norm_act = _NormAct(act=False), _NormAct()
        self.head = nn.Sequential(
            nn.Linear(width, head, bias=False, device=device, dtype=dtype),
            nn.LayerNorm(head, device=device, dtype=dtype),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(head, num_classes, device=device, dtype=dtype),
        )
        for name, part in zip(_BUFFERS, (*self._draw(None), *self._draw(None)), strict=True):
            self.register_buffer(name, part)

    def _draw(self, generator: torch.Generator | None) -> Samples:
        weight = self.head[0].weight
        assert isinstance(weight, Tensor)
        if self.group is None:
            one = torch.eye(2, device=weight.device, dtype=weight.dtype)[None]
            return Samples(one, one)
        return self.group.sample_pair(self.num_samples, generator, device=weight.device, dtype=weight.dtype)

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draw the group samples that are used where ``redraw`` is false.

        Args:
            generator: Of the random numbers; torch's own if not given.
        """
        for name, part in zip(_BUFFERS, (*self._draw(generator), *self._draw(generator)), strict=True):
            getattr(self, name).copy_(part)

    def samples(self) -> tuple[Samples, Samples]:
        """What the next forward pass takes: the samples of lift and blocks, and those of the last convolution."""
        if self.redraw:
            return self._draw(None), self._draw(None)
        return Samples(self.first_g, self.first_inverse), Samples(self.last_g, self.last_inverse)

    def features(self, input: Tensor, first: Samples, last: Samples) -> Tensor:
        """Maps of the last convolution over the samples ``last``: ``(batch, width, samples, height, width)``."""
        maps: Tensor = self.norm_act(self.lift(input, first))
        for block in self.blocks:
            maps = functional.gelu(self.pool(self.norm(block(maps, first))))
        kernel = self.conv.kernel_size
        side = kernel if isinstance(kernel, int) else kernel[0]
        if min(maps.shape[-2:]) < side:
            expected = f"pictures must be large enough to leave {side}×{side} places to the last convolution"
            checks.fail(expected, f"{maps.shape[-2]}×{maps.shape[-1]} from pictures of shape {tuple(input.shape)}")
        out: Tensor = self.norm_act(self.conv(maps, first, last))
        return out

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.head(self.features(input, *self.samples()).amax((2, 3, 4)))
        return output


_BUFFERS = ("first_g", "first_inverse", "last_g", "last_inverse")


def _conv(
    group: LieGroup | None, num_samples: int, width: int, kernel_size: int, padding: int, **kernel: object
) -> GroupConv2d | _PlainConv2d:
    if group is None:
        return _PlainConv2d(width, width, kernel_size, padding=padding, bias=False, **kernel)  # type: ignore[arg-type]
    return GroupConv2d(group, num_samples, width, width, kernel_size, padding=padding, bias=False, **kernel)  # type: ignore[arg-type]


__all__ = ["LieBlock", "LieResNet"]
