"""Tests of ``netwright.training.gradient_noise``."""

import copy
import io
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from netwright.checks import InputError
from netwright.data import load
from netwright.data.splits import Batch
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, evaluate, make_fabric
from netwright.training.gradient_noise import (
    DeepMLP,
    GradientNoise,
    add_gradient_noise_,
    bad_init_,
    gradient_noise_std,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_with_gradient(*shape: int, gradient: float = 0.0, **options: Any) -> Tensor:
    weight = torch.zeros(*shape, requires_grad=True, **options)
    weight.grad = torch.full_like(weight, gradient)
    return weight


def test_published_schedule() -> None:
    std = [round(gradient_noise_std(step), 6) for step in (0, 1, 10, 100, 1000)]
    assert std == [0.547723, 0.452665, 0.283255, 0.153947, 0.081930]


@given(step=st.integers(0, 10**6), eta=st.floats(0, 10), gamma=st.floats(0, 2))
def test_variance_is_eta_over_a_power_of_the_update(step: int, eta: float, gamma: float) -> None:
    std = gradient_noise_std(step, eta, gamma)
    assert std**2 * (1 + step) ** gamma == pytest.approx(eta)
    assert gradient_noise_std(step + 1, eta, gamma) <= std


def test_noise_is_standard_normal_times_the_std() -> None:
    weight = weight_with_gradient(200_001, dtype=torch.float64)
    std = add_gradient_noise_([weight], step=3, generator=seeded())
    noise = weight.grad / std
    assert noise.mean().abs() < 4 / math.sqrt(len(noise))
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
    assert noise.pow(4).mean().item() == pytest.approx(3, abs=0.05)


def test_noise_of_entries_and_of_updates_is_uncorrelated() -> None:
    generator = seeded()
    draws = []
    for step in range(2000):
        weight = weight_with_gradient(40)
        draws.append(weight.grad)
        add_gradient_noise_([weight], step, gamma=0.0, eta=1.0, generator=generator)
    noise = torch.stack(draws)
    correlation = torch.corrcoef(noise.T) - torch.eye(40)
    assert correlation.abs().max() < 4.5 / math.sqrt(2000)
    lagged = (noise[1:] * noise[:-1]).mean(0)
    assert lagged.abs().max() < 4.5 / math.sqrt(2000)


def test_update_of_sgd_is_minus_lr_times_gradient_and_noise() -> None:
    weight, twin = weight_with_gradient(5, 3, gradient=0.5), weight_with_gradient(5, 3, gradient=0.5)
    generator = seeded(7)
    optimizer = GradientNoise(torch.optim.SGD([weight], lr=0.1), generator=seeded(7))
    expected = torch.zeros(5, 3)
    for step in range(3):
        twin.grad = torch.full_like(twin, 0.5)
        add_gradient_noise_([twin], step, generator=generator)
        expected -= 0.1 * twin.grad
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def test_without_noise_it_is_the_wrapped_optimiser() -> None:
    model = nn.Linear(4, 3)
    twin = copy.deepcopy(model)
    pairs = [(m, torch.optim.Adam(m.parameters(), lr=0.01)) for m in (model, twin)]
    noisy = GradientNoise(pairs[0][1], eta=0.0)
    x = torch.randn(8, 4)
    for _ in range(3):
        for m, optimizer in ((model, noisy), (twin, pairs[1][1])):
            optimizer.zero_grad()
            m(x).square().mean().backward()
            optimizer.step()
    assert torch.equal(model.weight, twin.weight)


def test_clipping_comes_first_unless_told_otherwise() -> None:
    norms = {}
    for clip_first in (True, False):
        weight = weight_with_gradient(1000, gradient=100.0)
        optimizer = GradientNoise(
            torch.optim.SGD([weight], lr=1.0), clip_norm=1.0, clip_first=clip_first, generator=seeded()
        )
        optimizer.step()
        norms[clip_first] = weight.detach().norm().item()
    assert norms[True] == pytest.approx(math.sqrt(0.3 * 1000 + 1), rel=0.1)
    assert norms[False] == pytest.approx(1.0, rel=1e-3)


def test_noise_on_the_update_goes_around_the_optimiser() -> None:
    by_sgd = []
    for where in ("gradient", "update"):
        weight = weight_with_gradient(50, gradient=0.3)
        GradientNoise(torch.optim.SGD([weight], lr=0.1), generator=seeded(), where=where).step()
        by_sgd.append(weight.detach())
    torch.testing.assert_close(*by_sgd)
    weight = weight_with_gradient(50, gradient=0.3)
    GradientNoise(torch.optim.Adam([weight], lr=0.1), generator=seeded(), where="update").step()
    noise = by_sgd[0] + 0.1 * 0.3
    torch.testing.assert_close(weight.detach(), noise - 0.1)  # Adam's first step has length lr
    weight = weight_with_gradient(50, gradient=0.3)
    GradientNoise(torch.optim.Adam([weight], lr=0.1), generator=seeded()).step()
    torch.testing.assert_close(weight.detach().abs(), torch.full((50,), 0.1))  # noise rescaled with the gradient


def test_a_run_that_was_interrupted_goes_on_with_the_same_noise() -> None:
    def run(interrupted: bool) -> Tensor:
        torch.manual_seed(3)
        weight = torch.zeros(20, requires_grad=True)
        optimizer = GradientNoise(torch.optim.SGD([weight], lr=0.1, momentum=0.9))
        for step in range(6):
            if interrupted and step == 3:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                file.seek(0)
                torch.manual_seed(99)
                optimizer = GradientNoise(torch.optim.SGD([weight], lr=0.7))
                optimizer.load_state_dict(torch.load(file, weights_only=True))
                assert optimizer.updates == 3
            weight.grad = weight.detach() - 1
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(interrupted=True), run(interrupted=False))


def test_parameters_without_gradient_and_untouched_rows_stay() -> None:
    frozen = torch.ones(4, requires_grad=True)
    table = nn.Embedding(10, 3, sparse=True)
    before = table.weight.detach().clone()
    optimizer = GradientNoise(torch.optim.SGD([frozen, table.weight], lr=0.1))
    table(torch.tensor([2, 2, 5])).sum().backward()
    optimizer.step()
    moved = (table.weight.detach() != before).any(1).nonzero().flatten()
    assert moved.tolist() == [2, 5]
    assert torch.equal(frozen.detach(), torch.ones(4))
    change = (table.weight.detach() - before)[[2, 5]] / -0.1
    assert (change - torch.tensor([[2.0], [1.0]])).abs().min() > 0  # every entry of a touched row has noise
    with pytest.raises(InputError, match="dense gradients"):
        GradientNoise(torch.optim.SGD([table.weight], lr=0.1), where="update").step()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_schedulers_and_fabric_take_it(precision: str) -> None:
    batch = Batch(torch.randn(16, 4), torch.randint(3, (16,)))
    model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    optimizer = GradientNoise(torch.optim.SGD(model.parameters(), lr=1.0), generator=seeded())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    fabric = make_fabric(precision=precision)
    wrapped, fabric_optimizer = fabric.setup(model, optimizer)
    by_hand = GradientNoise(torch.optim.SGD(twin.parameters(), lr=1.0), generator=seeded())
    for step in range(3):
        fabric_optimizer.zero_grad()
        fabric.backward(nn.functional.cross_entropy(wrapped(batch.inputs), batch.targets))
        fabric_optimizer.step()
        scheduler.step()
        by_hand.param_groups[0]["lr"] = 0.5**step
        by_hand.zero_grad()
        nn.functional.cross_entropy(twin(batch.inputs), batch.targets).backward()
        by_hand.step()
    assert optimizer.updates == 3
    assert fabric_optimizer.param_groups[0]["lr"] == 0.125
    torch.testing.assert_close(model.weight, twin.weight, atol=1e-6 if precision == "32-true" else 1e-2, rtol=0)


def test_noise_is_added_after_unscaling() -> None:
    weight = torch.zeros(1000, requires_grad=True)
    optimizer = GradientNoise(torch.optim.SGD([weight], lr=1.0), generator=seeded())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale((weight * 2).sum()).backward()
    scaler.step(optimizer)
    assert weight.mean().item() == pytest.approx(-2, abs=0.1)
    assert weight.std().item() == pytest.approx(gradient_noise_std(0), rel=0.1)


def test_closures_get_noise_each_time() -> None:
    weight = torch.ones(3, requires_grad=True)
    optimizer = GradientNoise(torch.optim.LBFGS([weight], max_iter=4), eta=1e-6, generator=seeded())
    seen: list[Tensor] = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()
        seen.append(weight.detach().clone())
        return loss  # type: ignore[return-value]

    assert optimizer.step(closure) is not None
    assert len(seen) > 1
    assert weight.detach().abs().max() < 1e-2
    assert optimizer.updates == 1


def test_copies_draw_the_same_noise() -> None:
    weight = weight_with_gradient(10)
    optimizer = GradientNoise(torch.optim.SGD([weight], lr=0.1))
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    optimizer.step()
    twin.param_groups[0]["params"][0].grad = weight.grad * 0
    start = twin.param_groups[0]["params"][0].detach().clone()
    weight_before = weight.detach().clone()
    weight.grad = torch.zeros(10)
    optimizer.load_state_dict(twin.state_dict())
    optimizer.step()
    twin.step()
    moved = twin.param_groups[0]["params"][0].detach() - start
    torch.testing.assert_close(weight.detach() - weight_before, moved)
    assert moved.abs().min() > 0


def test_processes_agree_on_the_seed_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(objects: list[int], src: int) -> None:
        assert src == 0
        objects[0] = 42

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    results = []
    for rank in range(2):
        torch.manual_seed(rank)
        weight = weight_with_gradient(10)
        GradientNoise(torch.optim.SGD([weight], lr=0.1)).step()
        results.append(weight.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types_of_parameters_are_kept(dtype: torch.dtype) -> None:
    weights = [weight_with_gradient(30, dtype=dtype), weight_with_gradient(30)]
    optimizer = GradientNoise(torch.optim.SGD(weights, lr=0.1))
    optimizer.step()
    assert weights[0].dtype == weights[0].grad.dtype == dtype
    assert all(weight.detach().abs().max() > 0 for weight in weights)


def test_from_all_zero_weights_only_noise_gets_anywhere() -> None:
    x, y = torch.randn(64, 8), torch.randint(3, (64,))
    for eta, symmetric in ((0.0, True), (0.3, False)):
        model = bad_init_(DeepMLP(8, 3, width=6, depth=3), std=0.0)
        optimizer = GradientNoise(torch.optim.SGD(model.parameters(), lr=0.1), eta=eta)
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        still = [name for name, parameter in model.named_parameters() if not parameter.any()]
        assert (len(still) == 7) is symmetric  # all but the output bias
        assert bool(still) is symmetric


def test_bad_start_has_the_std_and_no_biases() -> None:
    model = bad_init_(nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 100)), generator=seeded())
    assert model[0].weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model[2].weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert not model[0].bias.any()
    assert not model[2].bias.any()
    assert torch.equal(model[1].weight, torch.ones(64))


def test_published_size_of_the_deep_network() -> None:
    with torch.device("meta"):
        model = DeepMLP(784, 10)
    assert sum(parameter.numel() for parameter in model.parameters()) == 88_210
    assert sum(isinstance(layer, nn.Linear) for layer in model) == 21


def test_bad_input_is_named() -> None:
    weight = torch.zeros(3, requires_grad=True)
    sgd = torch.optim.SGD([weight], lr=0.1)
    with pytest.raises(InputError, match=r"eta must be at least 0, got -1"):
        GradientNoise(sgd, eta=-1)
    with pytest.raises(InputError, match=r"gamma must be at least 0, got -0.5"):
        GradientNoise(sgd, gamma=-0.5)
    with pytest.raises(InputError, match=r"clip_norm must be positive, got 0"):
        GradientNoise(sgd, clip_norm=0)
    with pytest.raises(InputError, match=r"unknown where 'gradients'; did you mean 'gradient'"):
        GradientNoise(sgd, where="gradients")
    for dtype in (torch.complex64, torch.int64):
        with pytest.raises(InputError, match=rf"real floating-point type, got one of {dtype}"):
            GradientNoise(torch.optim.SGD([torch.zeros(3, dtype=dtype)], lr=0.1))
    with pytest.raises(InputError, match=r"must have 'gradient_noise' .*got the keys state, param_groups"):
        GradientNoise(sgd).load_state_dict(sgd.state_dict())
    with pytest.raises(InputError, match=r"depth must be at least 1"):
        DeepMLP(4, 2, depth=0)


def test_recipe_trains_with_noise() -> None:
    splits = load("digits")
    chain = parse_chain("gradient-noise[eta=0.01]")
    torch.manual_seed(0)
    model = chain.build(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), splits)
    trainer = Trainer(
        splits,
        Budget(epochs=3),
        Settings(optimizer="sgd", lr=0.1, schedule="cosine"),
        seed=0,
        fabric=make_fabric(),
        make_rule=chain.make_rule,
    )
    optimizer = chain.make_rule(model, trainer).optimizer
    assert (optimizer.eta, optimizer.gamma) == (0.01, 0.55)
    history = trainer.fit(model)
    assert history.records[-1]["val_accuracy"] > 0.85
    assert evaluate(chain.finish(model, trainer), splits.val)["accuracy"] > 0.85
