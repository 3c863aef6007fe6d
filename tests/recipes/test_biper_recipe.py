"""Tests of the recipe ``biper``: what it changes, both stages within the budget, alone and in chains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from netwright.bench.compare import compare
from netwright.bench.store import Store
from netwright.compression.binary_export import export_binary
from netwright.data import load
from netwright.layers.biper import biper_layers
from netwright.models.baselines import build_model
from netwright.recipes import parse_chain
from netwright.training import Budget, Settings, Trainer, evaluate, make_fabric


def trainer_for(chain_name: str, epochs: float = 4.0) -> tuple[nn.Module, Trainer]:
    splits, chain = load("digits"), parse_chain(chain_name)
    torch.manual_seed(0)
    model = chain.build(build_model("cnn", splits), splits)
    trainer = Trainer(
        splits,
        Budget(epochs=epochs),
        Settings(lr=1e-3, weight_decay=1e-3),
        seed=0,
        fabric=make_fabric(),
        make_rule=chain.make_rule,
        initial_state={name: tensor.clone() for name, tensor in model.state_dict().items()},
    )
    return model, trainer


def test_inner_layers_become_binary_and_see_signs() -> None:
    model, _ = trainer_for("biper[freq=15.0]")
    kinds = [
        type(m).__name__
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear) or m in biper_layers(model).values()
    ]
    assert kinds == ["Conv2d", "BiPerConv2d", "BiPerConv2d", "Linear"]
    assert {(m.freq, m.stage, m.binarize_input) for m in biper_layers(model).values()} == {(15.0, 1, True)}
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_both_stages_share_the_budget_and_end_in_one_bit_a_weight() -> None:
    model, trainer = trainer_for("biper[stage1=0.75]")
    chain = parse_chain("biper[stage1=0.75]")
    assert chain.training_share == 0.75
    trainer.fit(model, chain.training_share)
    assert {m.stage for m in biper_layers(model).values()} == {1}
    finished = chain.finish(model, trainer)
    assert {m.stage for m in biper_layers(finished).values()} == {2}
    first, second = (history.steps for history in trainer.histories)
    assert (first, second) == (3 * second, first // 3)
    accuracy = evaluate(finished, trainer.splits.test)["accuracy"]
    assert accuracy > 0.7
    packed = evaluate(export_binary(finished, popcount=True), trainer.splits.test)["accuracy"]
    assert packed == pytest.approx(accuracy, abs=0.01)


def test_second_stage_is_gentler(monkeypatch: pytest.MonkeyPatch) -> None:
    model, trainer = trainer_for("biper")
    seen: list[tuple[Settings, float]] = []
    monkeypatch.setattr(Trainer, "fit", lambda self, model, share: seen.append((self.settings, share)))
    parse_chain("biper[stage2_lr=0.5,stage1=0.6]").finish(model, trainer)
    [(settings, share)] = seen
    assert share == pytest.approx(0.4)
    assert settings == replace(trainer.settings, lr=5e-4, weight_decay=1e-4)


@pytest.mark.parametrize(
    "chain", ["evonorm+biper+gradient-noise", "lottery-ticket[rounds=1,density=0.95]+biper[stage1=0.8]"]
)
def test_runs_through_compare(chain: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "runs.db"))
    result = compare("digits", "cnn", [chain], seeds=(0,), budget="1epochs", store=store)
    assert not result.failed, [arm.failed for arm in result.arms]
    assert result.arms[1].metrics["accuracy"].mean > 0.05


def test_a_ticket_after_the_second_stage_is_refused() -> None:
    """It goes back to the weights before training, and with them to the first stage."""
    model, trainer = trainer_for("biper[stage1=0.4]", epochs=0.2)
    chain = parse_chain("biper[stage1=0.8]+lottery-ticket[rounds=1]")
    with pytest.raises(ValueError, match="put it before the recipes that change the network after training"):
        chain.finish(model, trainer)


def test_functional_activations_keep_real_inputs_and_linear_networks_work() -> None:
    splits = load("digits")
    model = parse_chain("biper").build(build_model("vit-tiny", splits), splits)
    assert len(biper_layers(model)) > 4
    model = parse_chain("biper").build(build_model("mlp", splits), splits)
    assert len(biper_layers(model)) == 1


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("biper[freq=0.0]", "option 'freq' of recipe 'biper' must be positive, got 0.0"),
        ("biper[stage1=1.0]", r"option 'stage1' of recipe 'biper' must be in \(0, 1\), got 1.0"),
        ("biper[stage1=0.0]", r"option 'stage1' of recipe 'biper' must be in \(0, 1\), got 0.0"),
        ("biper[stage2_lr=-1.0]", "option 'stage2_lr' of recipe 'biper' must be positive"),
        ("biper[omega=3.0]", "recipe 'biper' has no option 'omega'"),
        ("biper[stage1=0.3]+lottery-ticket", "leaves nothing of the budget for training"),
    ],
)
def test_bad_options(chain: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_chain(chain)


@pytest.mark.parametrize("chain", ["biper", "phm[n=2]+biper"])
def test_a_model_without_anything_to_change_is_refused(chain: str) -> None:
    splits = load("digits")
    model = build_model("linear" if chain == "biper" else "cnn", splits)
    with pytest.raises(ValueError, match="found no linear layer or 2-D convolution to replace between the first and"):
        parse_chain(chain).build(model, splits)
