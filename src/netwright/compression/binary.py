"""BiPer networks (Vargas et al. 2024, arXiv:2404.01278): binary layers for a real network, and what binarising loses.

:func:`to_biper` exchanges layers, :func:`quantization_error` measures what the sign loses of the sine of the weights,
:func:`laplace_quantization_error` says what it must be. :mod:`netwright.compression.binary_export` packs the result.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.biper import BiPerConv2d, BiPerLinear
from netwright.surgery import eval_mode, swap, swapped, torch_blocks

Scale = Literal["optimal", "unit"]


def quantization_error(weight: Tensor, freq: float, scale: Scale = "optimal", *, relative: bool = False) -> float:
    r"""Mean squared error of a square wave in the place of its sine.

    .. math:: E = \langle (\sin(ωw) - γ \operatorname{sign}(\sin(ωw)))^2 \rangle
              = \langle \sin^2 ωw \rangle - 2γ \langle |\sin ωw| \rangle + γ^2

    Args:
        weight: Latent weights w, any shape.
        freq: The angular frequency ω.
        scale: γ = 1 (``"unit"``), or the best one, :math:`γ = \langle |\sin ωw| \rangle` (``"optimal"``).
        relative: Divide by the mean of sin²(ωw).

    Raises:
        InputError: If ``freq`` is not positive, the scale is not known, or a relative error is asked for of zeros.

    Source:
        arXiv:2404.01278, section 3.2.

    Example:
        >>> weight = torch.distributions.Laplace(0.0, 0.1).sample((100_000,))
        >>> abs(quantization_error(weight, 20.0) - laplace_quantization_error(0.1, 20.0)) < 3e-3
        True
    """
    checks.positive("freq", freq)
    checks.floating_point("weight", weight)
    sine = torch.sin(freq * weight.detach().double())
    return _error(float(sine.abs().mean()), float(sine.square().mean()), scale, relative)


def laplace_sine_moments(b: float, freq: float) -> tuple[float, float]:
    r"""The means of \|sin(ωw)\| and of sin²(ωw) for w from a Laplace distribution of mean 0 and scale b.

    .. math:: \langle |\sin ωw| \rangle = \frac{x}{1 + x^2} \coth\frac{π}{2x}, \qquad
              \langle \sin^2 ωw \rangle = \frac{2x^2}{1 + 4x^2}, \qquad x = ωb

    Args:
        b: Scale: the mean of \|w\|.
        freq: The angular frequency ω.

    Example:
        >>> mean, square = laplace_sine_moments(b=1e6, freq=20.0)
        >>> abs(mean - 2 / math.pi) < 1e-6, abs(square - 0.5) < 1e-6
        (True, True)
    """
    checks.positive("b", b)
    checks.positive("freq", freq)
    x = freq * b
    return x / (1 + x * x) / math.tanh(math.pi / (2 * x)), 2 * x * x / (1 + 4 * x * x)


def laplace_quantization_error(b: float, freq: float, scale: Scale = "optimal", *, relative: bool = False) -> float:
    """What :func:`quantization_error` is for weights from a Laplace distribution.

    With the best scale it tends to 1/2 − 4/π² = 0.0947 as ωb grows, while the relative error falls from 1/2 (that of
    the plain sign of such weights) to 1 − 8/π² = 0.1894.

    Args:
        b: Scale of the distribution.
        freq: The angular frequency ω.
        scale: See :func:`quantization_error`.
        relative: See :func:`quantization_error`.

    Example:
        >>> round(laplace_quantization_error(b=1e6, freq=20.0, relative=True), 4)
        0.1894
    """
    return _error(*laplace_sine_moments(b, freq), scale, relative)


def _error(mean: float, square: float, scale: Scale, relative: bool) -> float:
    checks.known("scale", scale, get_args(Scale))
    error = square - mean**2 if scale == "optimal" else square - 2 * mean + 1
    if relative and square == 0:
        checks.fail("a relative error needs weights whose sine is not zero everywhere", "only zeros")
    return error / square if relative else error


def to_biper(
    model: nn.Module,
    example: Tensor,
    freq: float = 20.0,
    *,
    stage: int = 1,
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """A copy of ``model`` with BiPer layers for its inner linear layers and 2-D convolutions.

    As in the authors' networks, the first and the last of these layers stay real-valued, and Hardtanh replaces ReLU and
    ReLU6, whose outputs are of one sign. A layer whose input is of one sign also then keeps its real-valued input.
    Layers of torch's own attention and transformer blocks stay, since these blocks read the weights of their layers.

    Args:
        model: Any module.
        example: An input of the model: it shows which layers come first and last, and the signs of their inputs.
        freq: The angular frequency ω.
        stage: 1 or 2.
        where: Which of these layers to replace; all, if not given. See :func:`netwright.surgery.swap`.

    Raises:
        InputError: If no layer is left to replace.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> to_biper(model, torch.randn(16, 4))
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): Hardtanh(min_val=-1.0, max_val=1.0)
          (2): BiPerLinear(8, 8, bias=True, binarize_input=True, freq=20, stage=1)
          (3): Hardtanh(min_val=-1.0, max_val=1.0)
          (4): Linear(in_features=8, out_features=2, bias=True)
        )
    """
    inside = torch_blocks(model)
    new = swap(model, dict.fromkeys((nn.ReLU, nn.ReLU6), _hardtanh), lambda name, _: not name.startswith(inside))
    signs = _signs_of_inputs(new, example)

    def chosen(name: str, layer: nn.Module) -> bool:
        inner = name in list(signs)[1:-1] and not name.startswith(inside)
        return inner and (where is None or where(name, layer))

    new = swap(
        new,
        {
            nn.Conv2d: partial(BiPerConv2d.like, freq=freq, stage=stage),
            nn.Linear: partial(BiPerLinear.like, freq=freq, stage=stage),
        },
        chosen,
    )
    if not swapped(new):
        raise checks.InputError(
            "found no linear layer or 2-D convolution to replace between the first and the last of them, "
            f"got a {type(model).__name__} with {len(signs)} of them"
        )
    for name in swapped(new):
        layer = new.get_submodule(name)
        assert isinstance(layer, BiPerConv2d | BiPerLinear)
        layer.binarize_input = signs[name]
    return new


def _hardtanh(relu: nn.Module) -> nn.Module:
    return nn.Hardtanh(inplace=bool(getattr(relu, "inplace", False)))


def _signs_of_inputs(model: nn.Module, example: Tensor) -> dict[str, bool]:
    """The linear and 2-D convolutional layers in the order of the forward pass: do their inputs have both signs?"""
    signs: dict[str, bool] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):

            def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:  # noqa: ARG001
                both = bool((inputs[0] < 0).any()) and bool((inputs[0] >= 0).any())
                signs[name] = signs.get(name, False) or both

            handles.append(module.register_forward_pre_hook(record))
    try:
        with eval_mode(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return signs


__all__ = [
    "Scale",
    "laplace_quantization_error",
    "laplace_sine_moments",
    "quantization_error",
    "to_biper",
]
