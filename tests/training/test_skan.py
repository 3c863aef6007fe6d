"""Tests of ``netwright.training.skan``."""

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from netwright.cost import count_params
from netwright.data.splits import Batch
from netwright.layers.selectable_kan import SKAN, SConvKAN2d, SKANLayer
from netwright.training.skan import SelectionSchedule, SelectiveTraining, prune_, selection_entropy

POOL = ("chebyshev", "fourier", "wavelet")


def batch() -> Batch:
    x = torch.rand(64, 2) * 2 - 1
    return Batch(x, torch.sin(3 * x[:, :1]) * x[:, 1:])


def test_phases_come_in_order_at_their_times() -> None:
    schedule = SelectionSchedule()
    phases = [schedule.phase(step / 100) for step in range(100)]
    assert Counter(phases) == {"full": 40, "selective": 40, "pruned": 20}
    assert phases == sorted(phases, key=("full", "selective", "pruned").index)
    assert SelectionSchedule(0.5, 0.5, 0.0).phase(1.0) == "selective"  # nothing is removed
    model = SKAN([2, 3, 1], pool=POOL)
    assert not schedule.advance_(model, 0.2)
    assert schedule.advance_(model, 0.5)
    assert not schedule.advance_(model, 0.6)
    assert {layer.phase for layer in model} == {"selective"}
    assert not schedule.advance_(model, 0.1)  # none goes back
    assert {layer.phase for layer in model} == {"selective"}
    late = SKAN([2, 3, 1], pool=POOL)
    assert schedule.advance_(late, 0.9)  # both steps at once
    assert {layer.phase for layer in late} == {"pruned"}


def test_pruning_reports_what_is_left_and_changes_no_output() -> None:
    model = nn.Sequential(SConvKAN2d(1, 4, 3, pool=POOL), nn.Flatten(), SKANLayer(16, 5, pool=POOL), nn.Linear(5, 2))
    with torch.no_grad():
        model[0].selection[:, 1] = 1
        model[2].selection[:2, 0] = 1
        model[2].selection[2:, 2] = 1
    for layer in (model[0], model[2]):
        layer.select_()
    x = torch.randn(3, 1, 4, 4)
    before, size = model(x), count_params(model)
    report = prune_(model)
    torch.testing.assert_close(model(x), before)
    assert report.families == {"0": {"fourier": 4}, "2": {"wavelet": 3, "chebyshev": 2}}
    assert report.parameters_before == size
    assert report.parameters_after == count_params(model) == 4 * 9 * 8 + 16 * 5 * 8 + 2 * 16 * 8 + 12
    text = f"0: fourier 4\n2: wavelet 3, chebyshev 2\nparameters: {size:,} to {count_params(model):,}"
    assert str(report) == text
    assert prune_(model).parameters_after == report.parameters_after  # nothing more to do


@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.Adam, {"amsgrad": True}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.SGD, {})],
)
def test_the_optimiser_goes_on_with_what_is_left(kind: type[torch.optim.Optimizer], options: dict[str, object]) -> None:
    model = SKAN([2, 4, 1], pool=POOL)
    others = [nn.Parameter(torch.ones(2))]
    optimizer = kind([{"params": list(model.parameters())}, {"params": others, "lr": 0.5}], lr=0.01, **options)

    def update() -> None:
        optimizer.zero_grad()
        inputs, targets = batch()
        (functional.mse_loss(model(inputs), targets) + others[0].sum()).backward()
        optimizer.step()

    for _ in range(5):
        update()
    for layer in model:
        layer.select_()
    prune_(model, optimizer)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for p in model.parameters()}
    assert optimizer.param_groups[1]["params"] == others
    assert set(optimizer.state) <= set(model.parameters()) | set(others)
    if options:
        assert set(optimizer.state) == set(model.parameters()) | set(others)
    before = [p.clone() for p in model.parameters()]
    update()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_what_the_optimiser_remembers_fits_the_gradients_of_what_is_left(kind: type[torch.optim.Optimizer]) -> None:
    """Momentum after an update from nothing is the gradient (Adam: a tenth), also that of the pruned layer."""
    layer = SKANLayer(2, 4, POOL, dtype=torch.float64)
    layer.selection.data.normal_()
    optimizer = kind(layer.parameters(), lr=0.0, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    layer.select_()
    x = torch.randn(9, 2, dtype=torch.float64)
    layer(x).square().sum().backward()
    optimizer.step()
    prune_(layer, optimizer)
    layer(x).square().sum().backward()
    for name in layer.families:
        weight = layer.family(name).weight
        memory = optimizer.state[weight]
        if kind is torch.optim.SGD:
            torch.testing.assert_close(memory["momentum_buffer"], weight.grad)
        else:
            torch.testing.assert_close(memory["exp_avg"], 0.1 * weight.grad)
            torch.testing.assert_close(memory["exp_avg_sq"], 0.001 * weight.grad.square())


def test_the_rule_goes_through_the_phases_and_learns() -> None:
    torch.manual_seed(1)
    model = SKAN([2, 6, 1], pool=POOL)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rule = SelectiveTraining(model, optimizer, steps=100)
    data, sizes, losses = batch(), [], []
    for _ in range(100):
        losses.append(float(rule.step(data)["loss"]))
        sizes.append((model[0].phase, count_params(model)))
    assert [phase for phase, _ in sizes] == ["full"] * 40 + ["selective"] * 40 + ["pruned"] * 20
    assert sizes[-1][1] < 0.5 * sizes[0][1]
    assert losses[-1] < 0.1 * losses[0]
    assert losses[80] < 1.1 * losses[79]  # pruning changes nothing


def test_time_counts_where_it_is_further_on(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("netwright.training.skan.time.perf_counter", lambda: now[0])
    model = SKAN([2, 2, 1], pool=POOL)
    rule = SelectiveTraining(model, torch.optim.SGD(model.parameters(), lr=0.01), steps=1000, seconds=10.0)
    phases = []
    for now[0] in (100.0, 103.9, 104.1, 107.9, 108.1):
        rule.step(batch())
        phases.append(model[0].phase)
    assert phases == ["full", "full", "selective", "selective", "pruned"]


def test_entropy_is_one_for_equal_weights_and_falls_when_it_is_punished() -> None:
    model = SKAN([2, 3, 1], pool=POOL)
    torch.testing.assert_close(selection_entropy(model), torch.tensor(1.0))
    torch.testing.assert_close(selection_entropy(SKAN([2, 3, 1], pool=POOL, mixing="free")), torch.tensor(1.0))
    model[0].selection.data.copy_(torch.tensor([0.5, 0.25, 0.25]).log())
    entropy = (0.5 * math.log(2) + 0.5 * math.log(4)) / math.log(3)
    torch.testing.assert_close(selection_entropy(model), torch.tensor((entropy + 1) / 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule = SelectiveTraining(
        model, optimizer, steps=10**6, entropy=1.0, loss=lambda outputs, targets: 0 * outputs.sum()
    )
    for _ in range(30):
        rule.step(batch())
    assert selection_entropy(model[0]) < entropy - 0.1
    model[0].select_()
    torch.testing.assert_close(selection_entropy(model[0]), torch.tensor(0.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SelectionSchedule(0.4, 0.4, 0.4), r"full \+ selective \+ prune must be 1, got 1.2"),
        (lambda: SelectionSchedule(0.0, 0.8, 0.2), "full must be positive, got 0.0"),
        (lambda: SelectionSchedule(0.8, 0.0, 0.2), "selective must be positive"),
        (lambda: SelectionSchedule(0.8, 0.4, -0.2), "prune must be at least 0"),
        (lambda: SelectionSchedule().phase(-0.1), "progress must be at least 0"),
        (
            lambda: prune_(nn.Sequential(SKANLayer(2, 2))),
            "prune_ needs layers in phase 'selective', got layer '0' in phase 'full'; select_ first",
        ),
        (lambda: prune_(nn.Linear(2, 2)), "found no selectable layer .*, got a Linear"),
        (lambda: selection_entropy(nn.Linear(2, 2)), "found no selectable layer"),
        (lambda: SelectiveTraining(*trained(nn.Linear(2, 2)), steps=5), "found no selectable layer"),
        (
            lambda: SelectiveTraining(*trained(SKANLayer(2, 2))),
            "selective training needs steps or seconds, got neither",
        ),
        (lambda: SelectiveTraining(*trained(SKANLayer(2, 2)), steps=5, entropy=-1), "entropy must be at least 0"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def trained(model: nn.Module) -> tuple[nn.Module, torch.optim.Optimizer]:
    return model, torch.optim.SGD(model.parameters(), lr=0.1)
