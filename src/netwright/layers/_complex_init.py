"""First weights of complex layers (Trabelsi et al. 2018, arXiv:1705.09792, section 3.6)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from netwright import checks

Criterion = Literal["glorot", "he"]
Kind = Literal["rayleigh", "unitary"]


@torch.no_grad()
def complex_init_(
    weight: Tensor,
    criterion: Criterion = "he",
    kind: Kind = "rayleigh",
    *,
    groups: int = 1,
    transposed: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Fill a complex weight in place so that the modulus of signals keeps its size.

    With :math:`\sigma = 1/\sqrt{fan_{in} + fan_{out}}` (glorot) or :math:`1/\sqrt{fan_{in}}` (he), the modulus is drawn
    from Rayleigh's distribution of scale σ and the phase uniformly from (−π, π]: real and imaginary part are
    independent normal variables of deviation σ, and :math:`E|w|^2 = 2\sigma^2`. ``"unitary"`` draws the weight of each
    group, seen as a matrix (first axis by all others), from the unitary (or half-unitary) matrices, and scales it to
    the same :math:`E|w|^2`.

    Args:
        weight: Complex, ``(out, in / groups, *kernel)``, or ``(in, out / groups, *kernel)`` if ``transposed``.
        criterion: ``"glorot"`` or ``"he"``.
        kind: ``"rayleigh"`` or ``"unitary"``.
        groups: Groups of the convolution.
        transposed: Whether the weight is that of a transposed convolution.
        generator: Source of randomness; torch's own if not given.

    Returns:
        ``weight``.

    Raises:
        InputError: If the weight is real or has fewer than two axes, or criterion or kind are not known.

    Source:
        arXiv:1705.09792, section 3.6. The authors' code gives unitary weights half of this mean square.

    Example:
        >>> w = complex_init_(torch.empty(64, 32, 3, 3, dtype=torch.complex64), "glorot")
        >>> abs(w.abs().square().mean().item() * (32 + 64) * 9 / 2 - 1) < 0.1
        True
    """
    checks.complex_valued("weight", weight)
    checks.at_least("axes of weight", weight.ndim, 2)
    checks.known("criterion", criterion, get_args(Criterion))
    checks.known("kind of complex weights", kind, get_args(Kind))
    checks.divisible("dimension 0 of weight", weight.shape[0], "groups", groups)
    receptive = math.prod(weight.shape[2:])
    first, second = weight.shape[0] // groups * receptive, weight.shape[1] * receptive
    fan_in, fan_out = (first, second) if transposed else (second, first)
    sigma = 1 / math.sqrt(fan_in + fan_out if criterion == "glorot" else fan_in)
    if weight.is_meta:
        return weight
    # complex normal numbers of unit variance have parts of variance 1/2
    weight.normal_(0, math.sqrt(2) * sigma, generator=generator)
    if kind == "unitary":
        matrices = weight.reshape(groups, weight.shape[0] // groups, -1)
        rows, columns = matrices.shape[1:]
        q, r = torch.linalg.qr(matrices if rows >= columns else matrices.mH)
        phases = torch.sgn(r.diagonal(dim1=-2, dim2=-1))  # without them QR would not draw uniformly
        q = q * phases.unsqueeze(-2)
        scale = sigma * math.sqrt(2 * max(rows, columns))
        weight.copy_((q if rows >= columns else q.mH).reshape(weight.shape) * scale)
    return weight


__all__ = ["Criterion", "Kind", "complex_init_"]
