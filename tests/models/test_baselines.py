"""Tests of ``netwright.models.baselines``: models by name. Models from files are tested with the command line."""

import pytest
import torch

from netwright.data import Splits, load
from netwright.models.baselines import NAMED, build_model


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load("digits")


@pytest.mark.parametrize("name", NAMED)
def test_every_named_model_fits_small_and_large_pictures(name: str, digits: Splits) -> None:
    build_model(name, digits)
    large = digits.map(lambda x: x.repeat(1, 3, 4, 4))
    model = build_model(name, large)
    assert model(torch.randn(3, 3, 32, 32)).shape == (3, 10)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_models_for_tables_fit_regression(name: str) -> None:
    assert build_model(name, load("diabetes"))(torch.randn(3, 10)).shape == (3, 1)


def test_a_seed_decides_the_weights(digits: Splits) -> None:
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(build_model("cnn", digits)[0].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_pictures_that_are_too_small(digits: Splits) -> None:
    with pytest.raises(ValueError, match="model 'cnn' needs pictures of at least 4×4, got 2×2"):
        build_model("cnn", digits.map(lambda x: x[:, :, :2, :2]))
    with pytest.raises(ValueError, match="model 'vit-tiny' needs square pictures, got 8×4"):
        build_model("vit-tiny", digits.map(lambda x: x[..., :4]))
