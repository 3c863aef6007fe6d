"""Into and out of complex numbers, and :func:`to_complex`: a real network as a complex one (arXiv:2302.04584)."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.complex import (
    ComplexConv1d,
    ComplexConv2d,
    ComplexConv3d,
    ComplexConvTranspose2d,
    ComplexDropout,
    ComplexLinear,
)
from netwright.layers.complex_activations import ACTIVATIONS, ComplexMaxPool2d, OnParts, make_activation
from netwright.layers.complex_norm import (
    ComplexBatchNorm1d,
    ComplexBatchNorm2d,
    ComplexBatchNorm3d,
    ComplexGroupNorm,
    ComplexLayerNorm,
)
from netwright.layers.norm_act import ACTIVATIONS as REAL_ACTIVATIONS
from netwright.surgery import eval_mode, swap, swapped, torch_blocks

Inputs = Literal["zero", "fft", "pairs"]
Readout = Literal["abs", "real", "pairs"]


class ToComplex(nn.Module):
    """Real numbers as complex ones; what is complex already passes.

    Args:
        how: ``"zero"``: imaginary part 0. ``"fft"``: the centred spectrum of each channel of pictures ``(*, height,
            width)``, of the same norm. ``"pairs"``: channels ``(batch, 2C, *)``, of which the second half are the
            imaginary parts of the first.

    Raises:
        InputError: If the way is not known, or the input has the wrong shape for it.

    Example:
        >>> ToComplex("pairs")(torch.ones(1, 6, 4, 4)).shape
        torch.Size([1, 3, 4, 4])
    """

    def __init__(self, how: Inputs = "zero") -> None:
        super().__init__()
        checks.known("way into complex numbers", how, get_args(Inputs))
        self.how = how

    def forward(self, input: Tensor) -> Tensor:
        if input.is_complex():
            return input
        checks.floating_point("input", input)
        if input.dtype in (torch.float16, torch.bfloat16):  # there are no complex numbers of these
            return self(input.float())  # type: ignore[no-any-return]
        if self.how == "zero":
            return torch.complex(input, torch.zeros_like(input))
        if self.how == "pairs":
            checks.divisible("channels of the input", input.shape[1], "parts of a number", 2)
            return torch.complex(*(part.contiguous() for part in input.chunk(2, 1)))
        if input.ndim < 4:
            checks.fail("inputs='fft' needs pictures (batch, channels, height, width)", f"shape {tuple(input.shape)}")
        spectrum: Tensor = torch.fft.fftshift(torch.fft.fft2(input, norm="ortho"), dim=(-2, -1))
        return spectrum

    def extra_repr(self) -> str:
        return self.how


class FromComplex(nn.Module):
    """Complex numbers as real ones: their modulus, their real part, or both parts as channels; real ones pass.

    Args:
        how: ``"abs"``, ``"real"`` or ``"pairs"``, the reverse of :class:`ToComplex`.

    Example:
        >>> FromComplex("abs")(torch.tensor([[3 + 4j]]))
        tensor([[5.]])
    """

    def __init__(self, how: Readout = "abs") -> None:
        super().__init__()
        checks.known("way out of complex numbers", how, get_args(Readout))
        self.how = how

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_complex():
            return input
        if self.how == "abs":
            return input.abs()
        return input.real if self.how == "real" else torch.cat([input.real, input.imag], 1)

    def extra_repr(self) -> str:
        return self.how


_WEIGHTED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: ComplexLinear.like,
    nn.Conv1d: ComplexConv1d.like,
    nn.Conv2d: ComplexConv2d.like,
    nn.Conv3d: ComplexConv3d.like,
    nn.ConvTranspose2d: ComplexConvTranspose2d.like,
}
_NORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.BatchNorm1d: ComplexBatchNorm1d.like,
    nn.BatchNorm2d: ComplexBatchNorm2d.like,
    nn.BatchNorm3d: ComplexBatchNorm3d.like,
    nn.GroupNorm: ComplexGroupNorm.like,
    nn.LayerNorm: ComplexLayerNorm.like,
}
# linear without weights: each part for itself
_LINEAR = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Upsample, nn.PixelShuffle),
)


def to_complex(
    model: nn.Module,
    example: Tensor,
    *,
    inputs: Inputs = "zero",
    readout: Readout = "abs",
    activation: str = "crelu",
    whiten: bool = True,
) -> nn.Module:
    """A copy of ``model`` that computes with complex numbers between its (real) input and its (real) output.

    Linear and convolutional layers, batch, group and layer normalisation, activations, max pooling and dropout are
    replaced by complex ones of the same sizes, and mean pooling is done for each part. Weights are new, with the mean
    square of those they replace: with real weights the network would stay real, since nothing would push it out of
    there. It has about twice the parameters; compare it with a wider real network, too.

    Args:
        model: A real network of layers; it is left as it is.
        example: An input, to see whether the copy runs.
        inputs: How inputs get complex; see :class:`ToComplex`. ``"pairs"`` halves the channels and so does not fit.
        readout: How outputs get real; see :class:`FromComplex`. ``"pairs"`` would double them and does not fit.
        activation: ``"crelu"``, ``"zrelu"``, ``"modrelu"``, ``"cmodrelu"`` or ``"cardioid"``, for all activations.
        whiten: Whether normalisation whitens both parts, or divides each by its own deviation.

    Raises:
        InputError: If a choice is not known, there is no linear or convolutional layer, or the copy does not run: it
            has a layer, or calls a function, that there is none of for complex numbers.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        >>> new = to_complex(model, torch.zeros(2, 1, 8, 8))
        >>> new[1][1], new(torch.randn(5, 1, 8, 8)).dtype
        (ComplexBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, whiten=True), torch.float32)
    """
    checks.known("inputs", inputs, ("zero", "fft"))
    checks.known("readout", readout, ("abs", "real"))
    checks.known("complex activation", activation, ACTIVATIONS)
    inside = torch_blocks(model)
    makers: dict[type[nn.Module], Callable[..., nn.Module]] = {
        **_WEIGHTED,
        **{kind: partial(like, whiten=whiten) for kind, like in _NORMS.items()},
        **dict.fromkeys(REAL_ACTIVATIONS, lambda _: make_activation(activation)),
        **dict.fromkeys(_LINEAR, OnParts),
        nn.MaxPool2d: ComplexMaxPool2d.like,
        nn.Dropout: lambda dropout: ComplexDropout(min(dropout.p, 0.999)),
    }
    body = swap(model, makers, lambda name, _: not name.startswith(inside))
    if not any(isinstance(body.get_submodule(name), tuple(_complex_layers())) for name in swapped(body)):
        checks.fail(
            "to_complex replaces linear and convolutional layers; the network must have one", type(model).__name__
        )
    new = nn.Sequential(ToComplex(inputs), body, FromComplex(readout))
    new.train(model.training)
    _check_runs(new, model, example)
    return new


def _complex_layers() -> list[type[nn.Module]]:
    return [ComplexLinear, ComplexConv1d, ComplexConv2d, ComplexConv3d, ComplexConvTranspose2d]


@torch.no_grad()
def _check_runs(new: nn.Module, model: nn.Module, example: Tensor) -> None:
    try:
        with eval_mode(new), eval_mode(model):
            shape, expected = new(example).shape, model(example).shape
    except (RuntimeError, NotImplementedError, TypeError, checks.InputError) as error:
        raise checks.InputError(
            "the network does not run with complex numbers: it has a layer, or calls a function, for which there is "
            f"no complex one ({error})"
        ) from error
    if shape != expected:
        checks.fail(f"the complex network must give outputs of shape {tuple(expected)}", tuple(shape))


__all__ = ["FromComplex", "Inputs", "Readout", "ToComplex", "to_complex"]
