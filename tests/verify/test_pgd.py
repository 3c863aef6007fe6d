"""The attack against closed forms of linear networks, its box, and what it leaves alone."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netwright.checks import InputError
from netwright.verify.pgd import adversarial_accuracy, cross_entropy, margin, pgd


def _data(seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    return model, torch.rand(8, 5, dtype=torch.float64, generator=generator), torch.arange(8) % 3


@pytest.mark.parametrize("loss", [cross_entropy, margin])
@pytest.mark.parametrize("random_start", [True, False])
def test_on_a_linear_network_the_attack_reaches_the_worst_corner(loss: object, random_start: bool) -> None:
    """The optimum is x + ε sign(w_other − w_right), and 2ε of steps get there from anywhere."""
    weight = torch.randn(2, 6, dtype=torch.float64)
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(weight)
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 2
    attacked = pgd(model, x, y, 0.3, 0.1, 6, random_start=random_start, loss=loss)
    torch.testing.assert_close(attacked, x + 0.3 * (weight[1 - y] - weight[y]).sign())
    target = pgd(model, x, y, 0.3, 0.1, 6, random_start=random_start, loss=loss, targeted=True)
    torch.testing.assert_close(target, x - 0.3 * (weight[1 - y] - weight[y]).sign())


@given(
    seed=st.integers(0, 10_000),
    eps=st.floats(0, 2),
    alpha=st.floats(1e-3, 2),
    steps=st.integers(0, 4),
    random_start=st.booleans(),
)
def test_iterates_stay_in_the_box(seed: int, eps: float, alpha: float, steps: int, random_start: bool) -> None:
    model, x, y = _data(seed)
    attacked = pgd(model, x, y, eps, alpha, steps, random_start=random_start, lo=0.0, hi=1.0)
    assert attacked.shape == x.shape
    assert attacked.dtype == x.dtype
    assert not attacked.requires_grad
    assert bool(((attacked - x).abs() <= eps + 1e-12).all())
    assert 0 <= attacked.min() <= attacked.max() <= 1
    if eps == 0 or (steps == 0 and not random_start):
        torch.testing.assert_close(attacked, x)


def test_one_step_without_random_start_is_the_fast_gradient_sign_method() -> None:
    model, x, y = _data()
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)
    attacked = pgd(model, x, y, 0.1, 0.1, 1, random_start=False)
    torch.testing.assert_close(attacked, (x + 0.1 * gradient.sign()).detach())


def test_the_loss_rises_and_falls_when_targeted() -> None:
    model, x, y = _data()
    before = cross_entropy(model(x), y)
    assert cross_entropy(model(pgd(model, x, y, 0.2, 0.05)), y) > before
    assert cross_entropy(model(pgd(model, x, y, 0.2, 0.05, targeted=True)), y) < before


def test_samples_are_attacked_independently() -> None:
    model, x, y = _data()
    together = pgd(model, x, y, 0.2, 0.05, random_start=False)
    torch.testing.assert_close(pgd(model, x[3:4], y[3:4], 0.2, 0.05, random_start=False), together[3:4])


def test_bounds_and_sizes_may_differ_by_channel() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    x, y = torch.rand(5, 2, 4, 4), torch.arange(5) % 3
    eps = torch.tensor([0.1, 0.4]).view(2, 1, 1)
    lo, hi = torch.tensor([0.0, -0.2]).view(2, 1, 1), torch.tensor([1.0, 1.2]).view(2, 1, 1)
    attacked = pgd(model, x, y, eps, eps / 2, lo=lo, hi=hi)
    change = (attacked - x).abs().amax((0, 2, 3))
    torch.testing.assert_close(change, torch.tensor([0.1, 0.4]))
    assert attacked[:, 0].min() >= 0 > attacked[:, 1].min() >= -0.2
    assert attacked[:, 0].max() <= 1 < attacked[:, 1].max() <= 1.2


def test_margin_attacks_where_the_cross_entropy_is_flat() -> None:
    model, x, y = nn.Linear(2, 2, bias=False), torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    with torch.no_grad():
        model.weight.copy_(1e4 * torch.eye(2))
    assert torch.equal(pgd(model, x, y, 0.6, 0.2, random_start=False), x)
    assert adversarial_accuracy(model, x, y, 0.6, 0.2, random_start=False) == 1
    assert adversarial_accuracy(model, x, y, 0.6, 0.2, random_start=False, loss=margin) == 0
    torch.testing.assert_close(
        margin(torch.tensor([[1.0, 3.0, 2.0], [5.0, 1.0, 0.0]]), torch.tensor([1, 2])), torch.tensor(-1.0 + 5.0)
    )


def test_a_regression_network_is_attacked_with_its_own_loss() -> None:
    model, x, y = nn.Linear(2, 1, bias=False), torch.ones(3, 2), torch.zeros(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -0.5]]))
    attacked = pgd(model, x, y, 0.25, 0.25, loss=lambda outputs, targets: (outputs - targets).square().sum())
    torch.testing.assert_close(attacked, x + torch.tensor([0.25, -0.25]))


def test_the_model_and_the_random_state_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 3))
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[4].weight.requires_grad_(False)
    x, y = torch.rand(8, 5), torch.arange(8) % 3
    before, modes, random_state = copy.deepcopy(model.state_dict()), [m.training for m in model], torch.get_rng_state()
    with torch.no_grad():
        attacked = pgd(model, x, y, 0.2, 0.05)
        adversarial_accuracy(model, x, y, 0.2, 0.05)
    assert torch.equal(attacked, pgd(model, x, y, 0.2, 0.05))  # dropout is off, the start is seeded
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [m.training for m in model] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["0.weight"]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.weight"]
    assert not x.requires_grad


def test_the_generator_draws_the_start() -> None:
    model, x, y = _data()
    draws = [pgd(model, x, y, 0.2, 0.05, 0, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert 0.1 < (draws[0] - x).abs().max() <= 0.2


def test_accuracy_is_that_of_the_attacked_inputs_in_any_batches() -> None:
    model, x, y = _data()
    model = nn.Sequential(nn.Linear(5, 3)).double()
    attacked = pgd(model, x, y, 0.1, 0.05, random_start=False)
    right = (model(attacked).argmax(1) == y).double().mean().item()
    for batch_size in (3, 100):
        accuracy = adversarial_accuracy(model, x, y, 0.1, 0.05, random_start=False, batch_size=batch_size)
        assert accuracy == right
    clean = (model(x).argmax(1) == y).double().mean().item()
    assert adversarial_accuracy(model, x, y, 0.0, 0.05) == clean >= right


def test_autocast() -> None:
    model, x, y = nn.Linear(4, 3), torch.rand(5, 4), torch.arange(5) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attacked = pgd(model, x, y, 0.2, 0.05)
    assert attacked.dtype == torch.float32
    assert (attacked - x).abs().max() <= 0.2 + 1e-6


def test_bad_input() -> None:
    model, x, y = nn.Linear(4, 3), torch.rand(5, 4), torch.arange(5) % 3
    with pytest.raises(InputError, match=r"eps must be at least 0, got -0.1"):
        pgd(model, x, y, -0.1, 0.1)
    with pytest.raises(InputError, match="eps must be at least 0, got nan"):
        pgd(model, x, y, float("nan"), 0.1)
    with pytest.raises(InputError, match="alpha must be positive, got 0"):
        pgd(model, x, y, 0.1, torch.tensor([0.1, 0.1, 0.1, 0.0]))
    with pytest.raises(InputError, match="steps must be at least 0, got -1"):
        pgd(model, x, y, 0.1, 0.1, -1)
    with pytest.raises(InputError, match=r"x must be of a floating-point type, got torch.int64"):
        pgd(model, x.long(), y, 0.1, 0.1)
    with pytest.raises(InputError, match=r"y must have one entry for each of 5 inputs, got shape \(4,\)"):
        pgd(model, x, y[:4], 0.1, 0.1)
    with pytest.raises(InputError, match=r"x must be at most hi \(0.5\) everywhere, got 0.9"):
        pgd(model, x, y, 0.1, 0.1, hi=0.5)
    with pytest.raises(InputError, match=r"x must be at least lo \(the tensor given\) everywhere, got 0.0"):
        pgd(model, x, y, 0.1, 0.1, lo=torch.full((4,), 0.5))
    with pytest.raises(InputError, match="number of inputs must be at least 1, got 0"):
        adversarial_accuracy(model, x[:0], y[:0], 0.1, 0.1)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        adversarial_accuracy(model, x, y, 0.1, 0.1, batch_size=0)
