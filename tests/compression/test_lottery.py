"""Tests of ``netwright.compression.lottery``."""

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from netwright.checks import InputError
from netwright.compression.lottery import (
    LotteryResult,
    early_stopping_step,
    fractions_for,
    iterative_magnitude_pruning,
    magnitude_mask,
    one_shot_pruning,
)
from netwright.compression.masks import Mask, make_permanent, shapes_of
from netwright.data import load
from netwright.models.vision.classic import MLP, conv_n, lenet_300_100
from netwright.recipes import parse_chain
from netwright.training import Budget, History, Settings, Trainer, fit, make_fabric
from netwright.training.gradient_noise import GradientNoise

DIGITS = load("digits")


def untrained(model: nn.Module, start: int, stop: int) -> None:
    """A training function that does nothing."""


def train(model: nn.Module, start: int, stop: int) -> History:
    return fit(model, DIGITS, Budget(steps=stop - start), settings=Settings(lr=3e-3))


def small() -> nn.Module:
    return MLP(64, (20, 15), 10)


def run(**options: Any) -> LotteryResult:
    return iterative_magnitude_pruning(small, train, rounds=2, steps=10, **options)


def all_ones(**shapes: tuple[int, ...]) -> Mask:
    return Mask({name: torch.ones(shape) for name, shape in shapes.items()})


def test_published_densities_of_lenet() -> None:
    result = iterative_magnitude_pruning(lenet_300_100, untrained, rounds=15, steps=1)
    assert sum(parameter.numel() for parameter in lenet_300_100().parameters()) == 266_610
    assert result.levels[0].mask.size == 266_200
    densities = [round(100 * result.levels[level].density, 1) for level in (3, 7, 15)]
    assert densities == [51.3, 21.1, 3.6]


def test_published_size_of_conv_2() -> None:
    with torch.device("meta"):
        model = conv_n(2)
    assert sum(parameter.numel() for parameter in model.parameters()) == 4_301_642
    assert sum(math.prod(shape) for shape in shapes_of(model).values() if len(shape) == 4) == 38_592


@given(seed=st.integers(0, 1000), fraction=st.floats(0.0, 0.9), ties=st.booleans())
def test_exact_count_of_survivors_goes_and_the_smallest_go(seed: int, fraction: float, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(12, 9, generator=generator)
    weight = weight.round() if ties else weight
    mask = Mask.random({"w": (12, 9)}, {"w": 0.6}, generator=generator)
    smaller = magnitude_mask({"w": weight}, mask, fraction)
    assert smaller.kept == mask.kept - round(fraction * mask.kept)
    assert not (smaller["w"] & ~mask["w"]).any()
    gone = mask["w"] & ~smaller["w"]
    if gone.any():
        assert weight[gone].abs().max() <= weight[smaller["w"]].abs().min()
    assert magnitude_mask({"w": weight}, mask, fraction) == smaller


@given(seed=st.integers(0, 1000), fraction=st.floats(0.05, 0.6))
def test_global_scope_has_one_threshold(seed: int, fraction: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = {"a": torch.randn(12, 9, generator=generator), "b": 2 * torch.randn(20, 5, generator=generator)}
    mask = Mask.random({"a": (12, 9), "b": (20, 5)}, {"a": 0.6, "b": 0.8}, generator=generator)
    smaller = magnitude_mask(weights, mask, fraction, "global")
    assert smaller.kept == mask.kept - round(fraction * mask.kept)
    gone = torch.cat([weights[name][mask[name] & ~smaller[name]].abs() for name in mask])
    kept = torch.cat([weights[name][smaller[name]].abs() for name in mask])
    assert gone.max() <= kept.min()


def test_masks_are_those_of_torch_prune() -> None:
    model = small()
    layers = {"1.weight": model[1], "3.weight": model[3], "5.weight": model[5]}
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    mask = Mask.dense(model)
    for _ in range(2):
        mask = magnitude_mask(weights, mask, 0.3)
        for layer in layers.values():
            prune.l1_unstructured(layer, "weight", amount=0.3)
        assert all(torch.equal(mask[name], layer.weight_mask.bool()) for name, layer in layers.items())
    twin = small()
    dense = Mask.dense(twin)
    weights = {name: parameter.detach().clone() for name, parameter in twin.named_parameters()}
    layers = {"1.weight": twin[1], "3.weight": twin[3], "5.weight": twin[5]}
    prune.global_unstructured([(layer, "weight") for layer in layers.values()], prune.L1Unstructured, amount=0.4)
    mask = magnitude_mask(weights, dense, 0.4, "global")
    assert all(torch.equal(mask[name], layer.weight_mask.bool()) for name, layer in layers.items())


def test_ties_and_dead_weights_do_not_distort_the_count() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 3.0]])
    mask = Mask({"w": torch.tensor([[0, 1, 1, 1, 1, 1, 1, 1]])})
    smaller = magnitude_mask({"w": weight}, mask, 3 / 7)
    assert smaller["w"].tolist() == [[False, False, False, False, True, True, True, True]]


def test_survivors_go_back_to_their_first_weights() -> None:
    result = run()
    first = result.levels[0]
    assert [round(level.density, 3) for level in result.levels] == [1.0, 0.809, 0.654]
    for level, before in zip(result.levels[1:], result.levels[:-1], strict=True):
        assert level.mask == magnitude_mask(
            before.final_state, before.mask, {"1.weight": 0.2, "3.weight": 0.2, "5.weight": 0.1}
        )
        assert level.history.steps == 10
        for name, tensor in level.mask.items():
            assert not level.final_state[name][~tensor].any()
            assert not torch.equal(level.final_state[name], level.initial_state[name])
    ticket = make_permanent(result.ticket(2)).state_dict()
    for name, value in ticket.items():
        kept = result.levels[2].mask.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value, first.initial_state[name] * kept)


def test_late_rewinding_goes_back_to_a_trained_step() -> None:
    calls: list[tuple[int, int]] = []

    def train_and_note(model: nn.Module, start: int, stop: int) -> None:
        calls.append((start, stop))
        train(model, start, stop)

    result = iterative_magnitude_pruning(small, train_and_note, rounds=1, steps=10, rewind_step=3)
    assert calls == [(0, 3), (3, 10), (3, 10)]
    level = result.levels[1]
    assert not torch.equal(level.rewind_state["1.weight"], level.initial_state["1.weight"])
    ticket = result.ticket(1)
    torch.testing.assert_close(ticket[1].weight, level.rewind_state["1.weight"] * level.mask["1.weight"])
    result.train_ticket(1)
    assert calls[-1] == (3, 10)


def test_controls_keep_what_they_should_keep() -> None:
    result = run()
    level = result.levels[2]
    reinit, shuffled, global_shuffle, one_shot = (
        result.random_reinit(2),
        result.random_mask(2),
        result.random_mask(2, "global"),
        result.one_shot(2),
    )
    assert Mask.of(reinit) == level.mask
    assert not torch.equal(reinit[1].bias, level.initial_state["1.bias"])
    assert not torch.equal(reinit.state_dict()["1.weight"], result.ticket(2).state_dict()["1.weight"])
    for model, same_layers in ((shuffled, True), (global_shuffle, False), (one_shot, True)):
        mask = Mask.of(model)
        assert mask != level.mask
        assert mask.kept == level.mask.kept
        assert (mask.layer_densities() == level.mask.layer_densities()) is same_layers
        for name, tensor in mask.items():
            weight = model.state_dict()[name]
            assert torch.equal(weight, level.initial_state[name] * tensor)
    trained, history = result.train_ticket(2)
    assert history.steps == 10
    torch.testing.assert_close(trained.state_dict(), level.final_state)  # the same data order gives the same weights


def test_one_shot_cuts_once_to_the_density_of_the_rounds() -> None:
    once = one_shot_pruning(lenet_300_100, untrained, 7, steps=1)
    assert len(once.levels) == 2
    assert once.levels[1].density == pytest.approx(0.211, abs=5e-4)
    result = run(scope="global")
    assert Mask.of(result.one_shot(2)).kept == result.levels[2].mask.kept
    assert Mask.of(result.one_shot(2)).layer_densities()["5.weight"] == 1


def test_global_scope_spares_the_output_and_layers_can_differ() -> None:
    levels = run(scope="global").levels
    assert levels[2].mask.layer_densities()["5.weight"] == 1
    assert run(scope="global", fraction=0.5, output_fraction=0.5).levels[2].density == pytest.approx(0.25, abs=1e-3)
    rates = {"1.weight": 0.5, "3.weight": 0.1, "5.weight": 0.25}
    densities = run(fraction=rates).levels[1].mask.layer_densities()
    assert list(densities.values()) == pytest.approx([0.5, 0.9, 0.75], abs=0.01)
    assert list(run(ignore=["3"]).levels[2].mask) == ["1.weight", "5.weight"]


def test_biases_are_pruned_on_request() -> None:
    def shifted() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.Linear(10, 4))

    result = iterative_magnitude_pruning(shifted, untrained, rounds=1, steps=1, prune_biases=True)
    assert list(result.levels[1].mask) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert int(result.levels[1].mask["0.bias"].sum()) == 8


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("density", [0.05, 0.2, 0.7])
def test_fractions_end_at_the_density(scope: Any, density: float) -> None:
    model = lenet_300_100()
    mask = Mask.dense(model)
    weights = dict(model.named_parameters())
    fractions = fractions_for(mask, density, rounds=3, scope=scope)
    for _ in range(3):
        mask = magnitude_mask(weights, mask, fractions, scope)
    assert mask.density == pytest.approx(density, abs=2e-5)


def test_early_stopping_is_at_the_lowest_validation_loss() -> None:
    history = fit(small(), DIGITS, Budget(steps=40), settings=Settings(lr=0.03), evaluate_every=10)
    losses = {record["step"]: record["val_nll"] for record in history.records}
    assert losses[early_stopping_step(history)] == min(losses.values())
    with pytest.raises(InputError, match="at least one evaluation"):
        early_stopping_step(History())


def test_bad_input_is_named() -> None:
    for fraction in (0.0, 1.0, -0.2):
        with pytest.raises(InputError, match=rf"fraction of '1.weight' must be in \(0, 1\), got {fraction}"):
            run(fraction=fraction)
    with pytest.raises(InputError, match=r"output_fraction must be in \(0, 1\), got 1.0"):
        run(output_fraction=1.0)
    with pytest.raises(InputError, match=r"rounds must be at least 1, got 0"):
        iterative_magnitude_pruning(small, untrained, rounds=0, steps=10)
    with pytest.raises(InputError, match=r"rewind_step must be .* before the end of training \(10 steps\), got 10"):
        run(rewind_step=10)
    with pytest.raises(InputError, match=r"unknown scope 'network'"):
        run(scope="network")
    with pytest.raises(InputError, match=r"needs one fraction for all layers"):
        run(scope="global", output_fraction=0.5)
    weights = {"w": torch.randn(3, 2)}
    with pytest.raises(InputError, match=r"mask of 'w' must have shape \(3, 2\), got \(2, 3\)"):
        magnitude_mask(weights, all_ones(w=(2, 3)), 0.5)
    with pytest.raises(InputError, match=r"mask of 'w' must be of zeros and ones"):
        magnitude_mask(weights, Mask({"w": torch.randn(3, 2)}), 0.5)
    with pytest.raises(InputError, match=r"layer 'w' would keep none of its 6 weights"):
        magnitude_mask(weights, all_ones(w=(3, 2)), 0.95)
    with pytest.raises(InputError, match=r"weights must be finite"):
        magnitude_mask({"w": torch.full((3, 2), math.nan)}, all_ones(w=(3, 2)), 0.5)
    half = Mask({"w": torch.tensor([[0, 1], [1, 0]])})
    with pytest.raises(InputError, match=r"density must be below that of the network \(0.5\), got 0.7"):
        fractions_for(half, 0.7, 1)
    with pytest.raises(InputError, match=r"more than the last layer 'b' keeps \(100 weights\), got 0.4"):
        fractions_for(all_ones(a=(10, 10), b=(10, 10)), 0.4, 1, "global")


def arm(text: str, epochs: float = 8, **settings: Any) -> tuple[nn.Module, nn.Module, Trainer]:
    """Train digits by the chain: the model after training, and after its finish steps."""
    chain = parse_chain(text)
    torch.manual_seed(0)
    model = chain.build(MLP(64, (60,), 10), DIGITS)
    trainer = Trainer(
        DIGITS,
        Budget(epochs=epochs),
        Settings(**({"lr": 3e-3} | settings)),
        seed=0,
        fabric=make_fabric(),
        make_rule=chain.make_rule,
        initial_state=copy.deepcopy(model.state_dict()),
    )
    trainer.fit(model, chain.training_share)
    return model, chain.finish(model, trainer), trainer


def weights_of(model: nn.Module) -> Tensor:
    return torch.cat(
        [weight.detach().flatten() for name, weight in model.named_parameters() if name.endswith("weight")]
    )


def test_recipe_ends_at_the_density_and_costs_one_budget() -> None:
    model, final, trainer = arm("lottery-ticket[density=0.3]")
    assert float((weights_of(final) != 0).float().mean()) == pytest.approx(0.3, abs=1e-3)
    assert type(final[1]) is nn.Linear
    assert weights_of(model).all()  # what it was given is left alone
    assert len(trainer.histories) == 4
    assert sum(history.steps for history in trainer.histories) == trainer.max_steps
    assert trainer.histories[-1].records[-1]["val_accuracy"] > 0.7


def test_recipe_goes_back_to_the_first_weights() -> None:
    _, final, trainer = arm("lottery-ticket[density=0.5,rounds=1,scope=global]", epochs=0.1, optimizer="sgd", lr=1e-9)
    for name, weight in final.named_parameters():
        first = trainer.initial_state[name]
        torch.testing.assert_close(weight.detach(), first * (weight != 0), atol=1e-5, rtol=0)


def test_recipe_goes_with_noise_and_with_random_pruning() -> None:
    _, final, trainer = arm("gradient-noise[eta=0.001]+lottery-ticket", epochs=2)
    assert isinstance(trainer.make_rule(final, trainer).optimizer, GradientNoise)
    assert float((weights_of(final) != 0).float().mean()) == pytest.approx(0.2, abs=1e-3)
    for text in ("random-pruning[density=0.5]+lottery-ticket", "lottery-ticket+random-pruning[density=0.5]"):
        model, final, _ = arm(text, epochs=2)
        assert float((weights_of(final) != 0).float().mean()) == pytest.approx(0.2, abs=1e-3)
        kept_before = torch.cat([model.state_dict()[f"{layer}.weight"].flatten() for layer in (1, 3)]) != 0
        assert kept_before.float().mean() == pytest.approx(0.5, abs=1e-3)
        assert not (weights_of(final) != 0)[~kept_before].any()


def test_recipe_goes_with_hypercomplex_layers() -> None:
    _, final, _ = arm("phm[n=2]+lottery-ticket", epochs=2)
    names = shapes_of(final)
    assert not any("algebra" in name for name in names)
    state = final.state_dict()
    kept = sum(int(state[name].count_nonzero()) for name in names)
    assert kept / sum(map(math.prod, names.values())) == pytest.approx(0.2, abs=2e-3)


def test_recipe_says_what_it_cannot_do() -> None:
    with pytest.raises(InputError, match=r"density must be below that of the network \(0.1.*\), got 0.2"):
        arm("random-pruning[density=0.1]+lottery-ticket", epochs=0.1)
    _, _, trainer = arm("baseline", epochs=0.1)
    with pytest.raises(InputError, match="put it before the recipes that change the network"):
        parse_chain("lottery-ticket").finish(nn.Sequential(nn.Linear(64, 10)), trainer)
    with pytest.raises(InputError, match=r"unknown scope"):
        arm("lottery-ticket[scope=all]", epochs=0.1)
