"""Tests of ``netwright.training.relinear``."""

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netwright.layers.quadratic import QuadraticLinear, gaussian_init_, quadraticize
from netwright.models.vision.classic import MLP
from netwright.models.vision.qresnet import qresnet
from netwright.training.relinear import (
    CollapseMonitor,
    QuadraticCollapse,
    ReLinearShrink,
    ReZeroWrap,
    relinear_param_groups,
    rezero,
)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5, seed: int = 1) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(16, 8, generator=generator)
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def plain() -> nn.Module:
    return MLP(8, (16, 16), 3)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_with_rates_of_zero_training_is_the_conventional_one_bit_for_bit(
    plain: nn.Module, kind: Callable[..., torch.optim.Optimizer]
) -> None:
    quadratic = quadraticize(plain)
    train(quadratic, kind(relinear_param_groups(quadratic, 0.1, 0.0, 0.0), lr=0.1))
    train(plain, kind(plain.parameters(), lr=0.1))
    for ours, theirs in zip(list(quadratic)[1::2], list(plain)[1::2], strict=True):
        assert torch.equal(ours.weight_r, theirs.weight)
        assert torch.equal(ours.bias_r, theirs.bias)
        assert not ours.weight_g.any()
        assert not ours.weight_b.any()
        assert torch.equal(ours.bias_g, torch.ones_like(ours.bias_g))


def test_groups_hold_every_trained_parameter_once(plain: nn.Module) -> None:
    model = nn.Sequential(quadraticize(plain), nn.BatchNorm1d(3))
    model[0][1].weight_r.requires_grad_(False)
    groups = {g["name"]: g for g in relinear_param_groups(model, 0.1, 1e-3, 1e-4, weight_decay=5e-4)}
    held = [p for group in groups.values() for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(held) == len({id(p) for p in held})
    assert {name: group["lr"] for name, group in groups.items()} == {
        "rest": 0.1,
        "gate": 1e-3,
        "gate bias": 1e-3,
        "square": 1e-4,
    }
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "rest": 5e-4,
        "gate": 5e-4,
        "gate bias": 0.0,
        "square": 5e-4,
    }
    assert len(groups["square"]["params"]) == 6  # w_b and c of three layers
    compact = quadraticize(plain, "compact")
    assert [g["name"] for g in relinear_param_groups(compact, 0.1)] == ["rest", "square"]


def test_weight_decay_leaves_the_linear_path_open(plain: nn.Module) -> None:
    """Decayed like the rest, b_g would go to 0 and close it; in a group of its own it stays at 1."""
    model = quadraticize(plain)
    optimizer = torch.optim.SGD(relinear_param_groups(model, 0.1, 0.1, 0.1), lr=0.1, weight_decay=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(100):
        optimizer.step()
    assert torch.equal(model[1].bias_g, torch.ones(16))
    assert model[1].weight_r.abs().max() < 1e-3


@given(alpha=st.floats(0, 1), steps=st.integers(1, 4))
def test_alpha_shrinks_towards_the_start(alpha: float, steps: int) -> None:
    layer = QuadraticLinear(4, 4, dtype=torch.float64)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    before = copy.deepcopy(layer)
    shrink = ReLinearShrink(layer, alpha=alpha)
    for _ in range(steps):
        shrink()
    factor = alpha**steps
    torch.testing.assert_close(layer.weight_g, factor * before.weight_g)
    torch.testing.assert_close(layer.weight_b, factor * before.weight_b)
    torch.testing.assert_close(layer.bias_b, factor * before.bias_b)
    torch.testing.assert_close(layer.bias_g - 1, factor * (before.bias_g - 1))
    assert torch.equal(layer.weight_r, before.weight_r)
    assert torch.equal(layer.bias_r, before.bias_r)


def test_beta_is_the_proximal_step_of_the_l1_penalty() -> None:
    layer = QuadraticLinear(2, 1)
    with torch.no_grad():
        layer.weight_g.copy_(torch.tensor([[0.5, -0.05]]))
        layer.bias_g.fill_(0.7)
        layer.bias_b.fill_(-0.3)
    ReLinearShrink(layer, beta=0.1)()
    torch.testing.assert_close(layer.weight_g, torch.tensor([[0.4, 0.0]]))
    torch.testing.assert_close(layer.bias_g, torch.tensor([0.8]))
    torch.testing.assert_close(layer.bias_b, torch.tensor([-0.2]))


def test_shrinking_after_every_step_keeps_the_quadratic_part_small(plain: nn.Module) -> None:
    def size(*, shrink: bool) -> float:
        model = quadraticize(plain)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        if shrink:
            optimizer.register_step_post_hook(ReLinearShrink(model, alpha=0.5))
        train(model, optimizer, 20)
        return max(layer.weight_b.abs().max().item() for layer in list(model)[1::2])

    assert 0 < size(shrink=True) < 0.5 * size(shrink=False)


def test_monitor_names_the_layer_that_collapses(plain: nn.Module) -> None:
    deep = gaussian_init_(quadraticize(MLP(8, [64] * 7, 3)))
    with (
        CollapseMonitor(deep) as monitor,
        pytest.warns(QuadraticCollapse, match=r"quadratic layer '\d+' became (inf|nan)"),
    ):
        deep(10 * torch.randn(16, 8))
    assert monitor.collapsed
    assert monitor.peaks["1"].isfinite()
    assert not any(layer._forward_hooks for layer in deep.modules())


def test_monitor_is_silent_where_nothing_happens(plain: nn.Module) -> None:
    model = quadraticize(plain)
    with CollapseMonitor(model) as monitor:
        small, large = model(torch.ones(2, 8)), model(100 * torch.ones(2, 8))
        assert monitor.peaks["5"] == large.abs().max() > small.abs().max()
        model.eval()(1e30 * torch.ones(2, 8))  # evaluation is not watched
    assert not monitor.collapsed


def test_rezero_starts_blocks_as_their_shortcut() -> None:
    model = qresnet(8)
    new = rezero(model)
    gains = [module for module in new.modules() if isinstance(module, ReZeroWrap)]
    assert len(gains) == 3
    assert len(list(new.parameters())) == len(list(model.parameters())) + 3
    block, x = new.stages[0][0], torch.rand(2, 16, 4, 4)
    assert torch.equal(block(x), x)
    new(torch.randn(2, 3, 8, 8)).square().sum().backward()
    assert all(wrap.gain.grad != 0 for wrap in gains)


def _groups(**options: float) -> list[dict[str, Tensor]]:
    return relinear_param_groups(QuadraticLinear(2, 2), **{"lr": 0.1, **options})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _groups(gamma_g=-1e-5), "gamma_g must be at least 0, got -1e-05"),
        (lambda: _groups(gamma_b=-1.0), "gamma_b must be at least 0, got -1.0"),
        (lambda: _groups(lr=-1.0), "lr must be at least 0, got -1.0"),
        (lambda: _groups(weight_decay=-1.0), "weight_decay must be at least 0"),
        (lambda: relinear_param_groups(nn.Linear(2, 2), 0.1), "found no quadratic layer, got a Linear"),
        (lambda: CollapseMonitor(nn.Linear(2, 2)), "found no quadratic layer"),
        (lambda: ReLinearShrink(QuadraticLinear(2, 2)), "exactly one of alpha and beta must be given"),
        (lambda: ReLinearShrink(QuadraticLinear(2, 2), alpha=0.9, beta=0.1), "exactly one of alpha and beta"),
        (lambda: ReLinearShrink(QuadraticLinear(2, 2), alpha=1.1), r"alpha must be in \[0, 1\], got 1.1"),
        (lambda: ReLinearShrink(QuadraticLinear(2, 2), beta=-0.1), "beta must be at least 0"),
        (lambda: rezero(nn.Linear(2, 2)), "found no residual block, got a Linear"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
