"""Tests of ``netwright.training``: the loop, the budget, early stopping."""

import math
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from netwright.data import Batch, Split, Splits, load
from netwright.models.vision.classic import MLP
from netwright.training import Backprop, Budget, Diverged, Settings, Trainer, evaluate, fit, make_fabric, task_loss


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits")


class Recording:
    """A rule that learns nothing and remembers what it saw."""

    def __init__(self, loss: float = 1.0, seconds: float = 0.0) -> None:
        self.seen: list[torch.Tensor] = []
        self.loss, self.seconds = loss, seconds

    def step(self, batch: Batch) -> dict[str, float]:
        self.seen.append(batch.targets)
        time.sleep(self.seconds)
        return {"loss": self.loss}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return MLP(64, (), 10)


def test_equals_a_loop_written_by_hand(digits: Splits) -> None:
    settings = Settings(optimizer="sgd", lr=0.1, weight_decay=1e-3, batch_size=100)
    model, other = linear(), linear()
    fit(model, digits, Budget(epochs=2), settings=settings, seed=3)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(3)
    for _ in range(2):
        order = torch.randperm(len(digits.train), generator=generator)
        for indices in order.split(100):
            loss = nn.functional.cross_entropy(other(digits.train.inputs[indices]), digits.train.targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for mine, by_hand in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, by_hand, rtol=0, atol=0)


def test_leaving_fabrics_wrappers_out_does_not_change_the_numbers(digits: Splits) -> None:
    fabric, plain, wrapped = make_fabric(), linear(), linear()
    rule = Backprop(plain, torch.optim.Adam(plain.parameters()), fabric=fabric)
    model, optimizer = fabric.setup(wrapped, torch.optim.Adam(wrapped.parameters()))
    for batch in digits.train.batches(200):
        rule.step(batch)
        optimizer.zero_grad()
        fabric.backward(task_loss(model(batch.inputs), batch.targets))
        optimizer.step()
    for a, b in zip(plain.parameters(), wrapped.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_mixed_precision_trains(digits: Splits) -> None:
    model = linear()
    fit(model, digits, Budget(epochs=2), fabric=make_fabric(precision="bf16-mixed"), settings=Settings(lr=0.01))
    assert evaluate(model, digits.val)["accuracy"] > 0.8
    assert model[1].weight.dtype == torch.float32


def test_the_seed_decides_the_order_and_each_epoch_has_its_own(digits: Splits) -> None:
    rules = [Recording() for _ in range(3)]
    for rule, seed in zip(rules, (0, 0, 1), strict=True):
        fit(linear(), digits, Budget(epochs=2), rule, settings=Settings(batch_size=len(digits.train)), seed=seed)
    first, again, other = ([batch.tolist() for batch in rule.seen] for rule in rules)
    assert first == again
    assert first != other
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == sorted(digits.train.targets.tolist())


@pytest.mark.parametrize(
    ("budget", "steps"), [(Budget(steps=7), 7), (Budget(epochs=1.5), 16), (Budget(epochs=3, steps=5), 5)]
)
def test_the_budget_is_kept(digits: Splits, budget: Budget, steps: int) -> None:
    rule = Recording()
    history = fit(linear(), digits, budget, rule, settings=Settings(batch_size=100))
    assert len(digits.train) // 100 == 10  # the last batch is a partial one
    assert history.steps == len(rule.seen) == steps
    assert history.records[-1]["step"] == steps


def test_seconds_end_the_training(digits: Splits) -> None:
    history = fit(linear(), digits, Budget(seconds=0.2), Recording(seconds=0.02), evaluate_every=3)
    assert 3 <= history.steps <= 11
    assert history.seconds >= 0.2


def test_records_come_at_the_interval_and_at_the_end(digits: Splits) -> None:
    seen: list[dict[str, float]] = []
    fit(linear(), digits, Budget(steps=10), Recording(), evaluate_every=4, observer=seen.append)
    assert [record["step"] for record in seen] == [4, 8, 10]
    assert {"loss", "val_accuracy", "val_nll", "epoch", "seconds"} <= seen[0].keys()


def test_early_stopping_looks_at_the_validation_part_and_restores_the_best(digits: Splits) -> None:
    wrong = replace(digits.val, targets=(digits.val.targets + 1) % 10)  # learning makes this worse and worse
    model = linear()
    history = fit(model, replace(digits, val=wrong), Budget(epochs=50), patience=2, settings=Settings(lr=0.01))
    losses = [record["val_nll"] for record in history.records]
    assert len(losses) < 50
    assert history.best_step == history.records[losses.index(min(losses))]["step"]
    assert evaluate(model, wrong)["nll"] == pytest.approx(min(losses))


def test_the_test_part_is_not_read(digits: Splits) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> None:
            raise AssertionError("the test part was read")

    fit(linear(), replace(digits, test=Untouchable()), Budget(epochs=1), patience=1)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_said_with_its_step(digits: Splits, loss: float) -> None:
    with pytest.raises(Diverged, match=rf"the loss became {loss} between steps 1 and 4"):
        fit(linear(), digits, Budget(steps=10), Recording(loss), evaluate_every=4)


def test_regression_trains_on_standardised_targets_and_reports_in_units() -> None:
    data = load("diabetes")
    model = MLP(10, (), 1)
    fit(model, data, Budget(epochs=100), settings=Settings(lr=0.01))
    metrics = evaluate(model, data.test)
    assert 40 < metrics["rmse"] < 75
    assert metrics["r2"] > 0.3


def test_clipping_bounds_the_gradient() -> None:
    model = MLP(3, (), 2)
    rule = Backprop(model, torch.optim.SGD(model.parameters(), lr=1.0), clip_norm=1e-3)
    before = [p.detach().clone() for p in model.parameters()]
    rule.step(Batch(100 * torch.randn(8, 3), torch.randint(2, (8,))))
    moved = sum((p.detach() - old).square().sum() for p, old in zip(model.parameters(), before, strict=True))
    assert float(moved) ** 0.5 == pytest.approx(1e-3, rel=1e-3)


def test_the_cosine_ends_at_zero_after_its_warmup() -> None:
    settings = Settings(optimizer="sgd", lr=1.0, schedule="cosine", warmup=0.2)
    optimizer = settings.make_optimizer(MLP(2, (), 2).parameters())
    scheduler = settings.make_scheduler(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == pytest.approx(0.05)
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 0.001
    with pytest.raises(ValueError, match="schedule needs a budget in epochs or steps, got one in seconds"):
        settings.make_scheduler(optimizer, None)


def test_a_trainer_gives_shares_of_its_budget_to_rounds(digits: Splits) -> None:
    settings = Settings(batch_size=100)
    trainer = Trainer(digits, Budget(epochs=4), settings, seed=0, fabric=make_fabric())
    trainer.fit(linear(), 0.25)
    trainer.fit(linear(), 0.5)
    assert [history.steps for history in trainer.histories] == [11, 22]


@pytest.mark.parametrize("text", ["", "20", "epochs", "20 parsecs", "1.5steps", "-3epochs", "1.2.3s"])
def test_a_budget_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget"):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["0epochs", "0steps", "0s"])
def test_a_budget_of_zero(text: str) -> None:
    with pytest.raises(ValueError, match=r"budget in (epochs|steps|seconds) must be positive, got 0"):
        Budget.parse(text)
    with pytest.raises(ValueError, match="a budget needs epochs, steps or seconds"):
        Budget()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adma"}, "unknown optimizer 'adma'; did you mean 'adam'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"lr": 0.0}, "lr must be positive, got 0.0"),
        ({"lr": math.nan}, "lr must be positive, got nan"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
    ],
)
def test_settings_that_cannot_work(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_batches_of_several_processes_make_up_the_whole() -> None:
    split = Split(torch.arange(25.0), torch.arange(25))
    whole = list(split.batches(8, torch.Generator().manual_seed(1)))
    shares = [list(split.batches(8, torch.Generator().manual_seed(1), rank=rank, world_size=2)) for rank in (0, 1)]
    whole.pop()
    assert len(whole) == 3, "the last sample alone is not for two processes"
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted([*first.targets.tolist(), *second.targets.tolist()]) == sorted(batch.targets.tolist())
