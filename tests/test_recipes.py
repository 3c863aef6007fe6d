"""Tests of ``netwright.recipes``: parsing, options, chains. The recipes themselves are tested with their systems."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from netwright.bench.catalogue import read_recipes
from netwright.claims import read_claims
from netwright.data import ALL_TASKS, TABLES, Splits, Task, load
from netwright.data.loading import prepare
from netwright.data.raw import Raw
from netwright.recipes import Chain, Recipe, all_recipes, parse_chain
from netwright.training import Backprop


def recipe(name: str, **given: object) -> Recipe:
    return Recipe(name=name, claim="none", summary="for tests", tasks=ALL_TASKS, **given)


def append(layer: str) -> Recipe:
    return recipe(layer, build=lambda model, splits: nn.Sequential(model, getattr(nn, layer)()))


def test_build_steps_run_in_order_and_the_original_operator_chains() -> None:
    chain = append("ReLU") | append("Tanh") | append("Sigmoid")
    model = chain.build(nn.Linear(4, 3), load("iris"))
    assert [type(m).__name__ for m in (model[1], model[0][1], model[0][0][1])] == ["Sigmoid", "Tanh", "ReLU"]


def test_options_reach_all_steps_and_have_the_type_of_their_default() -> None:
    seen: list[dict[str, object]] = []

    def build(model: nn.Module, splits: object, **options: object) -> nn.Module:
        seen.append(options)
        return model

    base = recipe("scaled", options={"factor": 1.0, "kind": "a", "times": 3, "deep": False}, build=build)
    chain = Chain((base.with_options(factor=2, kind="b"),))
    chain.build(nn.Linear(1, 1), load("iris"))
    assert seen == [{"factor": 2.0, "kind": "b", "times": 3, "deep": False}]
    assert isinstance(seen[0]["factor"], float)
    assert str(chain) == "scaled[factor=2.0,kind=b,times=3,deep=False]"
    for wrong in ({"times": 2.5}, {"times": True}, {"deep": 1}, {"kind": 3}, {"factor": "much"}):
        with pytest.raises(ValueError, match=r"option '\w+' of recipe 'scaled' must be of type"):
            base.with_options(**wrong)
    with pytest.raises(ValueError, match=r"recipe 'scaled' has no option 'factr'; did you mean 'factor'\?"):
        base.with_options(factr=1)


def test_two_rules_are_an_error_that_names_them() -> None:
    one, two = (recipe(name, rule=lambda model, trainer: Backprop(model, trainer.optimizer(model))) for name in "ab")
    assert (one | append("ReLU")).make_rule is not None
    with pytest.raises(ValueError, match="a chain can have one learning rule, got 2: 'a' and 'b'"):
        one | two


def test_shares_of_the_budget_add_up() -> None:
    half = recipe("half", finish_share=lambda: 0.5)
    assert (half | append("ReLU")).training_share == 0.5
    with pytest.raises(ValueError, match="leaves nothing of the budget for training"):
        half | recipe("other-half", finish_share=lambda: 0.5)


def test_the_task_is_checked() -> None:
    tables = Recipe(name="for-tables", claim="none", summary="", tasks=TABLES)
    with pytest.raises(
        ValueError, match=r"recipe 'for-tables' is for tabular-.*; the data is for image-classification"
    ):
        Chain((tables,)).check_task(Task.IMAGE_CLASSIFICATION)


def test_parsing_is_the_inverse_of_printing() -> None:
    for name in all_recipes():
        chain = parse_chain(name)
        assert str(parse_chain(str(chain))) == str(chain)
    assert parse_chain("baseline") == Chain()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pmh", r"unknown recipe 'pmh'; did you mean 'phm'\?"),
        ("phm[m=2]", "recipe 'phm' has no option 'm'"),
        ("phm[n=two]", "option 'n' of recipe 'phm' must be of type int"),
        ("phm[n]", r"options must look like \[name=value,…\]"),
        ("phm[n=2", "recipes must look like"),
        ("phm++phm", "recipes must look like"),
        ("", "recipes must look like"),
    ],
)
def test_what_cannot_be_parsed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_chain(text)


NEEDS_ATTENTION = {"gpsa": "vit-tiny"}
NEEDS_BEFORE = {"gbw-norm": "cov-pool+gbw-norm"}


def data_for(name: str) -> Splits:
    if name != "location-encoder":
        return load("digits")
    generator = np.random.default_rng(0)
    places = pd.DataFrame({"lat": generator.uniform(-90, 90, 50), "lon": generator.uniform(-180, 180, 50)})
    return prepare(Raw(places, np.arange(50) % 2, Task.TABULAR_CLASSIFICATION, ("0", "1")), "places")


def test_every_recipe_belongs_to_a_claim_and_the_catalogue_reads_the_same() -> None:
    slugs = read_claims()
    imported = {(r.name, r.claim, r.summary) for r in all_recipes().values()}
    assert {(r.name, r.claim, r.summary) for r in read_recipes()} == imported
    assert {claim for _, claim, _ in imported} <= slugs.keys()


@pytest.mark.parametrize("name", sorted(all_recipes()))
def test_every_recipe_fits_a_named_model(name: str) -> None:
    from netwright.models.baselines import build_model, check_outputs

    chain = parse_chain(NEEDS_BEFORE.get(name, name))
    data = data_for(name)
    model = build_model(NEEDS_ATTENTION.get(name, "cnn" if len(data.input_shape) == 3 else "mlp"), data)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = chain.build(model, data)
    check_outputs(changed, data, name)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key])
