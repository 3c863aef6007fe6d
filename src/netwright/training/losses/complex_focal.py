"""Focal and plain cross-entropy of complex scores, as CMuSeNet (2025, arXiv:2506.11048) trains with them.

Both parts of a score speak of the same yes or no: ``ComplexBCELoss``, ``ComplexFocalLoss``.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks

Parts = Literal["both", "real"]
Reduction = Literal["mean", "sum", "none"]


class ComplexBCELoss(nn.Module):
    r"""Binary cross-entropy of the real and of the imaginary part of a score with the same target, averaged.

    .. math:: L(z, y) = \tfrac12 \big( \mathrm{BCE}(\Re z, y) + \mathrm{BCE}(\Im z, y) \big), \qquad
        \mathrm{BCE}(p, y) = -y \log p - (1 - y) \log(1 - p)

    Takes scores ``(...)`` with both parts in [0, 1], and targets ``(...)`` of 0 and 1, as numbers or booleans. Real
    scores have one part. In float32 at least, also under autocast.

    Args:
        parts: ``"both"``, or ``"real"`` for the real part alone.
        logits: Whether the parts are logits, which is steadier than scores near 0 and 1.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``; the mean over elements and parts is the first.

    Raises:
        InputError: If the shapes differ or the scores are no floating-point or complex numbers.

    Source:
        arXiv:2506.11048.

    Example:
        >>> scores = torch.tensor([0.9 + 0.8j, 0.1 + 0.3j])
        >>> round(ComplexBCELoss()(scores, torch.tensor([1.0, 0.0])).item(), 4)
        0.1976
    """

    def __init__(self, *, parts: Parts = "both", logits: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__()
        checks.known("parts", parts, get_args(Parts))
        checks.known("reduction", reduction, get_args(Reduction))
        self.parts = parts
        self.logits = logits
        self.reduction = reduction

    def weigh(self, entropy: Tensor) -> Tensor:
        """The loss of elements whose cross-entropy is ``entropy``."""
        return entropy

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        if scores.shape != target.shape:
            checks.fail(f"target must have the shape of the scores, {tuple(scores.shape)}", tuple(target.shape))
        if not scores.is_complex():
            checks.floating_point("scores", scores)
            parts = scores[None]
        elif self.parts == "real":
            parts = scores.real[None]
        else:
            parts = torch.stack([scores.real, scores.imag])
        parts = parts.to(torch.promote_types(parts.dtype, torch.float32))
        truth = target.to(parts.dtype).expand_as(parts)
        with torch.autocast(parts.device.type, enabled=False):  # cross-entropy of scores is refused there
            if self.logits:
                entropy = functional.binary_cross_entropy_with_logits(parts, truth, reduction="none")
            else:
                entropy = functional.binary_cross_entropy(parts, truth, reduction="none")
            loss = self.weigh(entropy).mean(0)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        return f"parts={self.parts!r}, logits={self.logits}, reduction={self.reduction!r}"


class ComplexFocalLoss(ComplexBCELoss):
    r"""Focal loss of the real and of the imaginary part of a score with the same target, averaged.

    .. math:: L(z, y) = \tfrac12 \sum_{p \in \{\Re z, \Im z\}} \alpha (1 - p_t)^\gamma \, \mathrm{BCE}(p, y), \qquad
        p_t = e^{-\mathrm{BCE}(p, y)}

    Arguments and shapes as for :class:`ComplexBCELoss`, which is the case α = 1, γ = 0.

    Args:
        alpha: Weight of all elements.
        gamma: How much less elements weigh that are right already.
        parts: See :class:`ComplexBCELoss`.
        logits: See :class:`ComplexBCELoss`.
        reduction: See :class:`ComplexBCELoss`.

    Raises:
        InputError: As :class:`ComplexBCELoss`; if alpha is not positive or gamma negative.

    Source:
        arXiv:2506.11048; the weight is that of Lin, Goyal, Girshick, He, Dollár 2017, arXiv:1708.02002.

    Example:
        >>> loss = ComplexFocalLoss(logits=True)
        >>> loss(torch.tensor([2.0 + 3.0j]), torch.tensor([True])) < loss(torch.tensor([0.1 + 0.1j]), torch.ones(1))
        tensor(True)
    """

    def __init__(
        self,
        alpha: float = 3.0,
        gamma: float = 1.0,
        *,
        parts: Parts = "both",
        logits: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(parts=parts, logits=logits, reduction=reduction)
        checks.positive("alpha", alpha)
        checks.at_least("gamma", gamma, 0)
        self.alpha = alpha
        self.gamma = gamma

    def weigh(self, entropy: Tensor) -> Tensor:
        """The loss of elements whose cross-entropy is ``entropy``."""
        wrong = -torch.expm1(-entropy)
        if self.gamma != 1:
            # a power below 1 has no finite slope at 0, where an element is right already
            wrong = wrong.clamp_min(torch.finfo(wrong.dtype).tiny) ** self.gamma
        return self.alpha * wrong * entropy

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}, gamma={self.gamma:g}, {super().extra_repr()}"


__all__ = ["ComplexBCELoss", "ComplexFocalLoss"]
