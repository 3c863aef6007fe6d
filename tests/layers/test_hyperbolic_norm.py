"""Tests of ``netwright.layers.hyperbolic_norm``: batch normalisation in the ball."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck

from netwright.cost import saved_bytes
from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_norm import Mean, PoincareBatchNorm, PoincareBatchNorm2d

DOUBLE = torch.float64
MEANS: tuple[Mean, Mean] = ("midpoint", "frechet")


def formula(u: Tensor, norm: PoincareBatchNorm, mean: Tensor | None = None, variance: Tensor | None = None) -> Tensor:
    """The layer step by step on the ball, as the paper has it."""
    ball = norm.ball
    x, target = ball.expmap0(u), ball.expmap0(norm.bias)
    if mean is None:
        mean = ball.midpoint(x) if norm.mean == "midpoint" else ball.frechet_mean(x)
    if variance is None:
        variance = ball.dist(x, mean, squared=True).mean()
    moved = ball.transp(mean, target, ball.logmap(mean, x))
    return ball.logmap0(ball.expmap(target, (norm.weight / (variance + norm.eps)).sqrt() * moved))


def scrambled(norm: PoincareBatchNorm) -> PoincareBatchNorm:
    with torch.no_grad():
        norm.bias.add_(0.3 * torch.randn_like(norm.bias))
        norm.weight.fill_(1.7)
    return norm


@given(c=st.floats(0.02, 3.0), size=st.floats(0.01, 5.0), shift=st.floats(-1, 1), mean=st.sampled_from(MEANS))
def test_it_is_the_formula(c: float, size: float, shift: float, mean: Mean) -> None:
    norm = scrambled(PoincareBatchNorm(3, PoincareBall(c), mean, dtype=DOUBLE))
    u = size * (torch.randn(10, 3, dtype=DOUBLE) + shift)
    torch.testing.assert_close(norm(u), formula(u, norm), rtol=1e-4, atol=1e-6)


def test_two_dimensions_are_points_of_all_pixels() -> None:
    ball = PoincareBall(0.1)
    norm, norm2d = PoincareBatchNorm(3, ball, dtype=DOUBLE), PoincareBatchNorm2d(3, ball, dtype=DOUBLE)
    u = torch.randn(4, 3, 5, 6, dtype=DOUBLE)
    expected = norm(u.movedim(1, -1).flatten(0, 2)).view(4, 5, 6, 3).movedim(-1, 1)
    torch.testing.assert_close(norm2d(u), expected)
    torch.testing.assert_close(norm2d.state_dict(), norm.state_dict())


@given(size=st.floats(0.05, 3.0), shift=st.floats(-2, 2))
def test_mean_and_variance_of_what_comes_out(size: float, shift: float) -> None:
    ball = PoincareBall(0.1)
    norm = PoincareBatchNorm(4, ball, "frechet", dtype=DOUBLE)
    x = ball.expmap0(norm(size * torch.randn(50, 4, dtype=DOUBLE) + shift))
    mean = ball.frechet_mean(x)
    assert mean.norm() < 1e-5
    assert ball.dist(x, mean, squared=True).mean().item() == pytest.approx(1, rel=1e-3)


def test_eval_uses_running_values_and_the_published_code_does_not() -> None:
    ball = PoincareBall(0.1)
    norm = scrambled(PoincareBatchNorm(3, ball, momentum=0.5, dtype=DOUBLE))
    mimic = PoincareBatchNorm(3, ball, use_batch_stats=True, dtype=DOUBLE)
    mimic.load_state_dict(norm.state_dict())
    u = torch.randn(200, 3, dtype=DOUBLE) + 0.5
    for _ in range(40):
        norm(u)
    x = ball.expmap0(u)
    mean = ball.midpoint(x)
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, ball.dist(x, mean, squared=True).mean())
    norm.eval()
    mimic.eval()
    few = u[:7]
    torch.testing.assert_close(norm(few), formula(few, norm, norm.running_mean, norm.running_var))
    torch.testing.assert_close(norm(few)[:3], norm(few[:3]))  # samples do not see each other
    torch.testing.assert_close(mimic(few), formula(few, norm))
    before = {name: value.clone() for name, value in mimic.state_dict().items()}
    mimic(few)
    torch.testing.assert_close(mimic.state_dict(), before)


def test_running_mean_moves_along_the_geodesic() -> None:
    ball = PoincareBall(0.5)
    norm = PoincareBatchNorm(2, ball, momentum=0.5, dtype=DOUBLE)
    point = torch.tensor([0.8, -0.4], dtype=DOUBLE)
    norm(ball.logmap0(point).expand(4, 2))
    torch.testing.assert_close(norm.running_mean, ball.midpoint(torch.stack([torch.zeros_like(point), point])))
    assert norm.running_var.item() == pytest.approx(0.5)


@pytest.mark.parametrize(("mean", "shift"), [("midpoint", 0.0), ("midpoint", 3.0), ("frechet", 1.0)])
def test_gradients(mean: Mean, shift: float) -> None:
    torch.manual_seed(0)
    norm = scrambled(PoincareBatchNorm2d(2, PoincareBall(0.4, learnable=True), mean, dtype=DOUBLE)).double()
    names = [name for name, _ in norm.named_parameters()]

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (u,))
        return output

    u = (torch.randn(2, 2, 1, 3, dtype=DOUBLE) + shift).requires_grad_()
    values = [parameter.detach().clone().requires_grad_() for parameter in norm.parameters()]
    assert gradcheck(call, (u, *values))
    norm.eval()
    assert gradcheck(call, (u, *values))


def test_written_backward_is_that_of_the_formula_and_keeps_less() -> None:
    results, kept = [], []
    u = torch.randn(4, 8, 6, 6, dtype=DOUBLE, requires_grad=True)
    for backward in ("written", "autograd"):
        norm = PoincareBatchNorm2d(8, PoincareBall(0.1, backward=backward), dtype=DOUBLE)  # type: ignore[arg-type]
        output = norm(u)
        results.append([output, *torch.autograd.grad(output.square().sum(), [u, *norm.parameters()])])
        kept.append(saved_bytes(norm, u))
    torch.testing.assert_close(results[0], results[1])
    assert kept[0] < 0.6 * kept[1]


@given(size=st.floats(1e-8, 1e8), shift=st.floats(-1e3, 1e3))
def test_float32_gives_finite_values_and_gradients(size: float, shift: float) -> None:
    norm = PoincareBatchNorm(3, PoincareBall(0.1))
    u = (size * torch.randn(6, 3) + shift).requires_grad_()
    output = norm(u)
    output.square().sum().backward()
    assert output.isfinite().all()
    assert u.grad is not None
    assert u.grad.isfinite().all()
    assert norm.eval()(u).isfinite().all()
    assert norm.running_mean.norm() < 0.1**-0.5


def test_float32_is_near_to_float64() -> None:
    norm = PoincareBatchNorm(8, PoincareBall(0.1))
    for size in (1e-2, 0.3, 1.5):
        u = size * (torch.randn(50, 8) + 1)
        expected = norm.double()(u.double())
        torch.testing.assert_close(norm.float()(u).double(), expected, rtol=1e-3, atol=1e-4)


def test_equal_points_and_a_negative_variance() -> None:
    norm = PoincareBatchNorm(3, PoincareBall(0.1))
    with torch.no_grad():
        norm.weight.fill_(-0.5)  # a step of an optimiser can do that
    u = torch.ones(4, 3, requires_grad=True)
    output = norm(u)
    output.sum().backward()
    assert output.abs().max() < 1e-3
    assert u.grad is not None
    assert u.grad.isfinite().all()


def test_counts_round_trip_meta_and_autocast(tmp_path: Path) -> None:
    norm = scrambled(PoincareBatchNorm2d(8, PoincareBall(0.1)))
    assert sum(p.numel() for p in norm.parameters()) == 9
    u = torch.randn(4, 8, 3, 3)
    expected = norm(u)
    save_model(norm, str(tmp_path / "norm.safetensors"))
    again = PoincareBatchNorm2d(8, PoincareBall(0.1))
    load_model(again, str(tmp_path / "norm.safetensors"))
    assert torch.equal(again.eval()(u), norm.eval()(u))
    with torch.device("meta"):
        assert PoincareBatchNorm2d(8)(torch.empty(4, 8, 3, 3)).shape == u.shape
    again.train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(again(u), expected)
        half = again(u.bfloat16())
    assert half.dtype == torch.bfloat16
    half.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in again.parameters())
    again.reset_parameters()
    torch.testing.assert_close(again.state_dict(), PoincareBatchNorm2d(8).state_dict())


def test_like_and_bad_input() -> None:
    ball = PoincareBall(0.2)
    norm = PoincareBatchNorm2d.like(nn.BatchNorm2d(5, momentum=0.3), ball)
    assert (norm.features, norm.momentum, norm.ball, norm.use_batch_stats) == (5, 0.3, ball, False)
    assert PoincareBatchNorm.like(nn.BatchNorm1d(5, track_running_stats=False)).use_batch_stats
    with pytest.raises(ValueError, match="unknown mean 'average'"):
        PoincareBatchNorm(4, mean="average")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features must be at least 1"):
        PoincareBatchNorm(0)
    with pytest.raises(ValueError, match="eps must be positive"):
        PoincareBatchNorm(4, eps=0)
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\]"):
        PoincareBatchNorm(4, momentum=2)
    with pytest.raises(ValueError, match="dimension 1 of input must have size 4"):
        PoincareBatchNorm(4)(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=r"input must have shape \(batch, channels, height, width\)"):
        PoincareBatchNorm2d(4)(torch.zeros(3, 4))
