"""Tests of ``netwright.theory.collapse_gain``: the scalar problems of neural collapse."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from netwright.checks import InputError
from netwright.theory.collapse_gain import collapse_gain, collapse_root, cross_entropy_gain, vanishing_size


def test_published_gains() -> None:
    """The official direct optimisation: n = 200, 100, 50, 50 and decays of 5e-4."""
    one = collapse_gain([200, 100, 50], 400, [5e-4], 5e-4)
    two = collapse_gain([200, 100, 50], 400, [5e-4, 5e-4], 5e-4)
    np.testing.assert_allclose(one, [0.985858, 0.980000, 0.971716], atol=1e-6)
    np.testing.assert_allclose(two, [0.994140, 0.990688, 0.985190], atol=1e-6)


decays = st.lists(st.floats(1e-5, 1e-2), min_size=1, max_size=5)


@given(n=st.integers(1, 500), samples=st.integers(500, 2000), weights=decays, features=st.floats(1e-5, 1e-2))
def test_both_published_forms_agree(n: int, samples: int, weights: list[float], features: float) -> None:
    p, x = (form([n], samples, weights, features).item() for form in (collapse_gain, collapse_root))
    depth = len(weights)
    if p == 0:  # then the root is missing, or has the higher loss
        assert x**depth <= (depth - 1) * (1 + 1e-9) + 1e-9
    else:
        assert p == pytest.approx(x**depth / (x**depth + 1), rel=1e-9)


@given(n=st.floats(1, 500), samples=st.integers(500, 2000), weights=decays, features=st.floats(1e-5, 1e-2))
def test_gain_is_the_minimum_of_the_scalar_loss(n: float, samples: int, weights: list[float], features: float) -> None:
    depth = len(weights)

    def loss(p: float) -> float:
        penalty = (math.prod(weights) * n * features) ** (1 / (depth + 1)) * p ** (2 / (depth + 1))
        return n / (2 * samples) * (p - 1) ** 2 + (depth + 1) / 2 * penalty

    p = collapse_gain([n], samples, weights, features).item()
    assert loss(p) <= min(loss(q) for q in np.linspace(0, 1, 2001)) + 1e-15


@given(samples=st.integers(10, 2000), weights=decays, features=st.floats(1e-5, 1e-2))
def test_a_class_vanishes_exactly_below_its_threshold(samples: int, weights: list[float], features: float) -> None:
    n = vanishing_size(samples, weights, features)
    depth = len(weights)
    below, above = collapse_gain([n * (1 - 1e-6), n * (1 + 1e-6)], samples, weights, features).tolist()
    assert below == 0
    assert above == pytest.approx((depth - 1) / depth, abs=1e-5)
    assert above > 0


def test_threshold_of_one_layer() -> None:
    assert vanishing_size(300, [2e-3], 5e-3) == pytest.approx(300**2 * 2e-3 * 5e-3)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
@pytest.mark.parametrize("decay", [1e-5, 1e-3, 2e-2, 0.3])
@pytest.mark.parametrize("classes", [2, 10])
def test_cross_entropy_margin_is_the_minimum(depth: int, decay: float, classes: int) -> None:
    def loss(p: float) -> float:
        level = (decay**depth * 50 * decay) ** (1 / (depth + 1))
        penalty = (classes - 1) * (depth + 1) / 2 * level * p ** (2 / (depth + 1))
        return math.log1p((classes - 1) * math.exp(-p)) + penalty

    p = cross_entropy_gain(50, classes, [decay] * depth, decay).item()
    grid = np.concatenate([[0.0], np.geomspace(1e-3, 40, 2000)])
    best = grid[np.argmin([loss(q) for q in grid])]
    refined = minimize_scalar(loss, bounds=(0.99 * best, 1.01 * best), method="bounded").fun if best else loss(0)
    assert loss(p) <= refined + 1e-14
    assert p == pytest.approx(best, rel=0.01)


def test_both_kinds_of_margin_occur() -> None:
    assert cross_entropy_gain(50, 10, [0.3] * 3, 0.3) == 0
    assert cross_entropy_gain(50, 10, [1e-5] * 3, 1e-5) > 5


def test_bad_input() -> None:
    with pytest.raises(InputError, match=r"smallest class size must be positive, got 0"):
        collapse_gain([3, 0], 400, [5e-4], 5e-4)
    for function in (collapse_gain, collapse_root):
        with pytest.raises(InputError, match=r"decay must be positive, got -0.1"):
            function([3], 400, [-0.1], 5e-4)
    with pytest.raises(InputError, match=r"decay must be positive, got 0"):
        vanishing_size(400, [5e-4], 0)
    with pytest.raises(InputError, match=r"number of layers must be at least 1, got 0"):
        vanishing_size(400, [], 5e-4)
    with pytest.raises(InputError, match=r"samples must be positive, got 0"):
        collapse_gain([3], 0, [5e-4], 5e-4)
    with pytest.raises(InputError, match=r"number of classes must be at least 2, got 1"):
        cross_entropy_gain(50, 1, [5e-4], 5e-4)
    assert isinstance(collapse_gain(torch.tensor([3.0]), 400, [5e-4], 5e-4), torch.Tensor)
