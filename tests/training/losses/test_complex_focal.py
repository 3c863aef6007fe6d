"""Complex cross-entropy and focal loss."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from netwright.checks import InputError
from netwright.training.losses.complex_focal import ComplexBCELoss, ComplexFocalLoss

LOSSES = [ComplexBCELoss, ComplexFocalLoss, lambda **options: ComplexFocalLoss(1.0, 2.0, **options)]


def some(dtype: torch.dtype = torch.complex64) -> tuple[Tensor, Tensor]:
    return torch.randn(6, 10, dtype=dtype), torch.rand(6, 10) < 0.3


def test_defaults_are_those_of_the_paper() -> None:
    loss = ComplexFocalLoss()
    assert (loss.alpha, loss.gamma, loss.parts, loss.reduction) == (3.0, 1.0, "both", "mean")
    assert repr(loss) == "ComplexFocalLoss(alpha=3, gamma=1, parts='both', logits=False, reduction='mean')"


def test_value_by_hand() -> None:
    # BCE(0.8, 1) = −log 0.8 weighs 1 − 0.8; BCE(0.4, 1) = −log 0.4 weighs 1 − 0.4
    loss = ComplexFocalLoss(3.0, 1.0)(torch.tensor([0.8 + 0.4j]), torch.tensor([1.0]))
    assert loss.item() == pytest.approx(3 * (0.2 * -math.log(0.8) + 0.6 * -math.log(0.4)) / 2, rel=1e-6)
    loss = ComplexFocalLoss(1.0, 2.0)(torch.tensor([0.8 + 0.4j]), torch.tensor([0.0]))
    assert loss.item() == pytest.approx((0.8**2 * -math.log(0.2) + 0.4**2 * -math.log(0.6)) / 2, rel=1e-6)


def test_cross_entropy_is_torchs_of_both_parts() -> None:
    logits, target = some()
    each = functional.binary_cross_entropy_with_logits
    expected = (each(logits.real, target.float()) + each(logits.imag, target.float())) / 2
    torch.testing.assert_close(ComplexBCELoss(logits=True)(logits, target), expected)
    torch.testing.assert_close(
        ComplexBCELoss(logits=True, parts="real")(logits, target), each(logits.real, target.float())
    )


@pytest.mark.parametrize("make", LOSSES)
def test_logits_and_scores_say_the_same(make: Callable[..., ComplexBCELoss]) -> None:
    logits, target = some(torch.complex128)
    scores = torch.complex(logits.real.sigmoid(), logits.imag.sigmoid())
    torch.testing.assert_close(make(logits=True)(logits, target), make()(scores, target))


def test_no_focus_is_cross_entropy() -> None:
    logits, target = some()
    focal = ComplexFocalLoss(alpha=1.0, gamma=0.0, logits=True)(logits, target)
    torch.testing.assert_close(focal, ComplexBCELoss(logits=True)(logits, target))


def test_alpha_scales_and_gamma_dampens_what_is_right() -> None:
    logits, target = some()
    torch.testing.assert_close(
        ComplexFocalLoss(6.0, logits=True)(logits, target), 2 * ComplexFocalLoss(3.0, logits=True)(logits, target)
    )
    right = torch.where(target, 4.0 + 4.0j, -4.0 - 4.0j)
    plain = ComplexBCELoss(logits=True)(right, target)
    assert ComplexFocalLoss(1.0, 2.0, logits=True)(right, target) < 0.001 * plain


def test_parts_trade_places() -> None:
    logits, target = some()
    loss = ComplexFocalLoss(logits=True)
    torch.testing.assert_close(loss(torch.complex(logits.imag, logits.real), target), loss(logits, target))


def test_real_scores_have_one_part() -> None:
    logits, target = some()
    for options in ({}, {"parts": "real"}):
        loss = ComplexFocalLoss(logits=True, **options)
        torch.testing.assert_close(
            loss(logits.real, target), ComplexFocalLoss(logits=True, parts="real")(logits, target)
        )


def test_reductions() -> None:
    logits, target = some()
    each = ComplexFocalLoss(logits=True, reduction="none")(logits, target)
    assert each.shape == logits.shape
    torch.testing.assert_close(ComplexFocalLoss(logits=True)(logits, target), each.mean())
    torch.testing.assert_close(ComplexFocalLoss(logits=True, reduction="sum")(logits, target), each.sum())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients(gamma: float) -> None:
    logits = torch.randn(3, 4, dtype=torch.complex128, requires_grad=True)
    target = torch.tensor([0.0, 1.0, 1.0, 0.0]).expand(3, 4)
    assert torch.autograd.gradcheck(lambda z: ComplexFocalLoss(2.0, gamma, logits=True)(z, target), logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_finite_where_all_is_right(gamma: float) -> None:
    logits = torch.tensor([1e3 + 1e3j, -1e3 - 1e3j, -1e3 + 1e3j], requires_grad=True)
    ComplexFocalLoss(gamma=gamma, logits=True)(logits, torch.tensor([1.0, 0.0, 1.0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_under_autocast_and_compiled() -> None:
    logits, target = some()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ComplexFocalLoss()(torch.full((2,), 0.5, dtype=torch.bfloat16), torch.ones(2)).dtype == torch.float32
        loss = ComplexFocalLoss(logits=True)(logits, target)
    traced = torch.compile(ComplexFocalLoss(logits=True), fullgraph=True, backend="eager")
    torch.testing.assert_close(traced(logits, target), loss)


def test_bad_input() -> None:
    logits, target = some()
    with pytest.raises(InputError, match=r"target must have the shape of the scores, \(6, 10\), got \(6, 9\)"):
        ComplexFocalLoss()(logits, target[:, 1:])
    with pytest.raises(InputError, match="scores must be of a floating-point type"):
        ComplexFocalLoss()(torch.ones(3, dtype=torch.long), torch.ones(3))
    with pytest.raises(InputError, match="alpha must be positive, got 0"):
        ComplexFocalLoss(0.0)
    with pytest.raises(InputError, match="gamma must be at least 0, got -1"):
        ComplexFocalLoss(gamma=-1)
    with pytest.raises(InputError, match="unknown parts 'imag'"):
        ComplexBCELoss(parts="imag")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="unknown reduction 'max'"):
        ComplexBCELoss(reduction="max")  # type: ignore[arg-type]
