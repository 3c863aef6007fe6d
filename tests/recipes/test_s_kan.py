"""Tests of the recipe ``s-kan``: what it replaces, its phases within the budget, alone and in chains."""

from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.cost import count_nonzero, count_params
from netwright.data import load
from netwright.layers.selectable_kan import SConvKAN2d, SKANLayer, selectable_layers
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.surgery import swapped
from netwright.training import Budget, Settings, Trainer, make_fabric


def trainer_for(chain: str, steps: int, **given: object) -> Trainer:
    splits = load("digits")
    budget = given.pop("budget", Budget(steps=steps))
    return Trainer(
        splits,
        budget,
        Settings(lr=0.01),
        seed=0,
        fabric=make_fabric(),
        make_rule=parse_chain(chain).make_rule,
        **given,
    )


def test_it_replaces_all_linear_layers_but_the_last_or_else_convolutions() -> None:
    splits = load("digits")
    plain = build_model("mlp", splits)
    model = parse_chain("s-kan").build(plain, splits)
    assert swapped(model) == ("1", "3")
    first, second = selectable_layers(model).values()
    assert first.pool == ("bspline", "rbf", "chebyshev", "fourier", "wavelet", "silu")
    # the knots span what the layer gets, where that varies
    with torch.no_grad():
        inputs = model[:3](splits.train.inputs[:256])
    grid = second.family("bspline").basis.grid
    assert ((grid[0] <= inputs.amin(0)) & (grid[-1] >= inputs.amax(0))).all()
    model = parse_chain("s-kan[pool=chebyshev/silu,num_basis=2,select=layer]").build(build_model("cnn", splits), splits)
    layers = list(selectable_layers(model).values())
    assert [type(layer) for layer in layers] == [SConvKAN2d] * 3
    assert layers[0].selection.shape == (2,)
    with pytest.raises(ValueError, match="found no linear layer before the last one"):
        parse_chain("s-kan[convs=no]").build(build_model("cnn", splits), splits)
    with pytest.raises(ValueError, match="found no linear layer or 2-D convolution before the last one"):
        parse_chain("s-kan").build(build_model("linear", splits), splits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("pool=bspline/spline", r"unknown family 'spline'; did you mean 'bspline'\?"),
        ("select=nodes", "unknown select 'nodes'"),
        ("mixing=hard", "unknown mixing 'hard'"),
        ("convs=all", "unknown convs 'all'; known are: auto, no, yes"),
        ("selective=0.9,prune=0.2", "full must be positive"),
        ("entropy=-1", "entropy must be at least 0"),
        ("num_basis=3", r"num_basis must be at least order \+ 1 = 4"),
    ],
)
def test_options_are_checked(options: str, message: str) -> None:
    splits = load("digits")
    with pytest.raises(ValueError, match=message):
        parse_chain(f"s-kan[{options}]").build(build_model("mlp", splits), splits)


@pytest.mark.parametrize("budget", [Budget(steps=20), Budget(steps=10**6, seconds=0.4)])
def test_the_three_phases_share_the_budget(budget: Budget) -> None:
    name = "s-kan[pool=rbf/chebyshev/silu,num_basis=4]"
    chain, trainer = parse_chain(name), trainer_for(name, 20, budget=budget)
    assert chain.training_share == pytest.approx(0.8)
    model = chain.build(build_model("mlp", trainer.splits), trainer.splits)
    size = count_params(model)
    trainer.fit(model, chain.training_share)
    layers = selectable_layers(model).values()
    assert {layer.phase for layer in layers} == {"selective"}
    outputs = model.eval()(trainer.splits.test.inputs)
    pruned = parse_chain(name.replace("]", ",prune=0.0]")).finish(model, trainer)
    torch.testing.assert_close(pruned(trainer.splits.test.inputs), outputs, atol=1e-4, rtol=1e-4)
    assert count_params(pruned) < 0.6 * size
    assert {layer.phase for layer in layers} == {"pruned"}
    chain.finish(model, trainer)
    rounds = [history.steps for history in trainer.histories]
    if budget.seconds is None:
        assert rounds == [16, 4]
    else:
        assert [history.seconds for history in trainer.histories] == pytest.approx([0.32, 0.08], abs=0.1)


def test_an_early_epoch_that_was_the_best_is_pruned_all_the_same() -> None:
    trainer = trainer_for("s-kan", 8, patience=1)
    chain = parse_chain("s-kan[pool=silu/fourier,num_basis=2]")
    model = chain.build(build_model("mlp", trainer.splits), trainer.splits)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer.fit(model)
    model.load_state_dict(state)  # as `patience` does
    assert {layer.phase for layer in selectable_layers(model).values()} == {"full"}
    chain.finish(model, trainer)
    assert {layer.phase for layer in selectable_layers(model).values()} == {"pruned"}


@pytest.mark.parametrize("chain", ["lottery-ticket[density=0.5,rounds=1]+{}", "{}+random-pruning[density=0.5]"])
def test_pruned_weights_do_not_grow_again(chain: str) -> None:
    name = chain.format("s-kan[pool=chebyshev/silu,num_basis=4]")
    splits = load("digits")
    steps = parse_chain(name)
    model = steps.build(build_model("mlp", splits), splits)
    initial = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    trainer = trainer_for(name, 15, initial_state=initial)
    trainer.fit(model, steps.training_share)
    model = steps.finish(model, trainer)
    assert {type(layer) for layer in selectable_layers(model).values()} == {SKANLayer}
    assert {layer.phase for layer in selectable_layers(model).values()} == {"pruned"}
    assert count_nonzero(model) < 0.7 * count_params(model)


@pytest.mark.parametrize("order", ["evonorm+{}", "{}+evonorm"])
def test_convolutions_in_a_chain(order: str) -> None:
    splits = load("digits")
    chain = parse_chain(order.format("s-kan[pool=silu/fourier,num_basis=2]"))
    model = chain.build(build_model("cnn", splits), splits)
    assert len(selectable_layers(model)) == 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    trainer = trainer_for(str(chain), 2)
    trainer.fit(model, chain.training_share)
    model = chain.finish(model, trainer)
    assert torch.isfinite(model(splits.test.inputs[:8])).all()


def test_it_runs_through_compare(tmp_path: Path) -> None:
    chain = "s-kan[pool=rbf/chebyshev,num_basis=4]"
    result = compare("digits", "mlp", [chain], seeds=(0,), budget="2epochs", store=Store(str(tmp_path / "runs.db")))
    assert not result.failed, [arm.failed for arm in result.arms]
    baseline, arm = result.arms
    assert arm.metrics["accuracy"].mean > 0.5
    assert arm.costs["parameters"] > baseline.costs["parameters"]
