"""Tests of ``netwright.theory.collapse``: closed form and descent of the unconstrained-features model."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from netwright.analysis.collapse import nc1, nc2, nc3, products
from netwright.checks import InputError
from netwright.theory.collapse import DeepLinearUFM, UFMState
from netwright.theory.collapse_gain import vanishing_size
from netwright.training import Diverged

# sizes, widths, weight decays, feature decay, loss, bias
MODELS = {
    "one layer": ((9, 6, 3), (4,), 5e-3, 5e-3, "mse", False),
    "own decays": ((9, 6, 3, 3), (5, 6, 4), (1e-3, 4e-3, 2e-3), 3e-3, "mse", False),
    "balanced": ((5, 5, 5), (5, 4), 2e-3, 4e-3, "mse", False),
    "bias": ((5, 5, 5), (5, 4), 2e-3, 4e-3, "mse", True),
    "bias, imbalanced": ((9, 6, 3), (5, 4), 2e-3, 4e-3, "mse", True),
    "narrow": ((9, 6, 3), (5, 2), 2e-3, 4e-3, "mse", False),
    "vanishing": ((14, 8, 1), (5, 4), 2.5e-2, 2.5e-2, "mse", False),
    "cross-entropy": ((5, 5, 5), (5, 4), 2e-3, 2e-3, "ce", False),
    "cross-entropy, bias": ((5, 5, 5, 5), (3,), 2e-3, 2e-3, "ce", True),
}


def make(name: str) -> DeepLinearUFM:
    return DeepLinearUFM(*MODELS[name])  # type: ignore[arg-type]


def parts(state: UFMState) -> list[Tensor]:
    return [*state.weights, state.features] + ([] if state.bias is None else [state.bias])


def rebuilt(state: UFMState, flat: Tensor) -> UFMState:
    shapes = [part.shape for part in parts(state)]
    pieces = [p.view(s) for p, s in zip(torch.split(flat, [s.numel() for s in shapes]), shapes, strict=True)]
    depth = len(state.weights)
    return UFMState(tuple(pieces[:depth]), pieces[depth], pieces[-1] if state.bias is not None else None, state.curve)


def by_lbfgs(model: DeepLinearUFM, start: UFMState) -> tuple[float, UFMState]:
    """An independent minimiser: scipy's, with gradients by autograd."""

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(flat).requires_grad_()
        value = model.objective(rebuilt(start, leaf))
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    first = torch.cat([part.flatten() for part in parts(start)]).numpy()
    found = minimize(objective, first, jac=True, method="L-BFGS-B", options={"maxiter": 5000, "ftol": 0, "gtol": 1e-10})
    return float(found.fun), rebuilt(start, torch.from_numpy(found.x))


@pytest.mark.parametrize("name", MODELS)
def test_the_closed_form_is_stationary_and_has_the_stated_loss(name: str) -> None:
    model = make(name)
    solution, state = model.global_minimum(), model.minimiser()
    leaves = [part.requires_grad_() for part in parts(state)]
    value = model.objective(state)
    assert value.item() == pytest.approx(solution.loss, rel=1e-12)
    for gradient in torch.autograd.grad(value, leaves):
        assert float(gradient.abs().max()) < 1e-12
    outputs = model.class_features(state) @ products(state.weights)[0].T + solution.bias
    torch.testing.assert_close(outputs.T, solution.logits)
    for layer in range(len(model.dims) + 1):
        torch.testing.assert_close(model.gram(state, layer), model.predicted_gram(layer))
    if name == "narrow":
        assert int((solution.p > 0).sum()) == 2
    if name == "vanishing":
        assert (solution.p > 0).tolist() == [True, True, False]


@pytest.mark.parametrize("name", MODELS)
def test_no_other_minimiser_finds_a_lower_loss(name: str) -> None:
    """L-BFGS from several starts reaches the stated minimum, and nothing below it."""
    model = make(name)
    found = [by_lbfgs(model, model.initial(std, seed))[0] for seed, std in enumerate((0.2, 0.5, 1.0))]
    loss = model.global_minimum().loss
    assert min(found) >= loss - 1e-9
    assert min(found) == pytest.approx(loss, abs=1e-8)


@pytest.mark.parametrize("name", ["one layer", "own decays", "bias, imbalanced", "cross-entropy, bias"])
def test_descent_takes_the_steps_of_torch(name: str) -> None:
    model = make(name)
    state = model.initial(0.3, seed=1)
    leaves = [part.clone().requires_grad_() for part in parts(state)]
    optimizer = torch.optim.SGD(leaves, lr=0.2, momentum=0.8)
    for _ in range(30):
        depth = len(model.dims)
        bias = leaves[-1] if model.bias else None
        value = model.objective(UFMState(tuple(leaves[:depth]), leaves[depth], bias, state.curve))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    found = model.fit(lr=0.2, momentum=0.8, steps=30, init_std=0.3, seed=1)
    for mine, theirs in zip(parts(found), leaves, strict=True):
        torch.testing.assert_close(mine, theirs.detach())
    assert found.curve[-1, 0] == 30
    assert found.curve[-1, 1].item() == pytest.approx(model.objective(found).item())


@pytest.mark.parametrize("depth", [1, 2])
def test_descent_collapses_to_the_predicted_geometry(depth: int) -> None:
    model = DeepLinearUFM([12, 6, 3], [8] * depth, 5e-3, 5e-3)
    state = model.fit(steps=3000, init_std=0.3)
    solution = model.global_minimum()
    assert model.objective(state).item() - solution.loss < 1e-6
    for layer in range(depth + 1):
        predicted = model.predicted_gram(layer)
        assert float((model.gram(state, layer) - predicted).norm() / predicted.norm()) < 1e-2
    assert nc1(state.features, model.labels) < 1e-3
    product = products(state.weights)[0]
    assert nc2(product, "gof", s=solution.s_weights.prod(0)) < 1e-2
    assert nc3(product, model.class_features(state), "gof", s=solution.p) < 1e-2


def test_a_class_below_the_threshold_loses_its_features() -> None:
    n = vanishing_size(21, [6e-2], 6e-2)  # 1.59
    assert 1 < n < 2
    model = DeepLinearUFM([12, 8, 1], [6], 6e-2, 6e-2)
    state = model.fit(steps=3000)
    lengths = model.class_features(state).norm(dim=1)
    assert lengths[2] < 1e-6
    assert lengths[1] > 0.1
    torch.testing.assert_close(lengths, model.global_minimum().s_features, atol=1e-6, rtol=0)


def test_closed_form_of_one_layer() -> None:
    n = torch.tensor([40.0, 30.0, 9.0, 2.0], dtype=torch.float64)
    lam_w, lam_h, samples = 4e-3, 1e-3, 81
    solution = DeepLinearUFM([40, 30, 9, 2], [4], lam_w, lam_h).global_minimum()
    p = 1 - samples * (lam_w * lam_h / n).sqrt()
    torch.testing.assert_close(solution.p, p)
    torch.testing.assert_close(solution.s_weights[0].square(), (n * lam_h / lam_w).sqrt() - samples * lam_h)
    torch.testing.assert_close(solution.s_features.square(), p * (lam_w / (n * lam_h)).sqrt())


def test_equal_decays_give_the_published_singular_values() -> None:
    sizes, depth, decay = [200, 100, 50, 50], 3, 5e-4
    solution = DeepLinearUFM(sizes, [64] * depth, decay, decay).global_minimum()
    x = (solution.p / (1 - solution.p)) ** (1 / depth)
    s = (400 * decay * x**depth) ** (1 / (2 * depth))
    for layer in solution.s_weights:
        torch.testing.assert_close(layer, s)
    # the features and the products with them
    squared = s ** (2 * depth)
    torch.testing.assert_close(solution.s_features.square(), squared / (squared + 400 * decay) ** 2)
    torch.testing.assert_close(solution.p, squared / (squared + 400 * decay))


def test_decayed_squares_are_equal_across_layers() -> None:
    model = make("own decays")
    solution = model.global_minimum()
    shares = torch.tensor(model.weight_decays, dtype=torch.float64)[:, None] * solution.s_weights.square()
    n = torch.tensor(model.n_per_class)
    for share in shares:
        torch.testing.assert_close(share, n * model.feature_decay * solution.s_features.square())


def test_geometries() -> None:
    etf = torch.eye(3, dtype=torch.float64) - 1 / 3
    for name, geometry in (("bias", "etf"), ("cross-entropy", "etf"), ("balanced", "of"), ("one layer", "gof")):
        model = make(name)
        assert model.global_minimum().geometry == geometry
        gram = model.predicted_gram(1)
        target = {"etf": etf, "of": torch.eye(3).double(), "gof": gram.diag().diag()}[geometry]
        torch.testing.assert_close(gram / gram.norm(), target / target.norm())
    assert make("bias, imbalanced").global_minimum().geometry == "centred"
    # a bias changes nothing but the mean: the gain is that without one
    torch.testing.assert_close(make("bias").global_minimum().p, make("balanced").global_minimum().p[:2])
    torch.testing.assert_close(make("bias").global_minimum().bias, torch.full((3,), 1 / 3).double())


def test_cross_entropy_logits_have_the_margin() -> None:
    solution = make("cross-entropy").global_minimum()
    torch.testing.assert_close(solution.logits, solution.p[0] * (torch.eye(3, dtype=torch.float64) - 1 / 3))


def test_a_narrow_layer_keeps_the_largest_classes() -> None:
    solution = DeepLinearUFM([3, 9, 6], [5, 2], 2e-3, 4e-3).global_minimum()
    assert (solution.p > 0).tolist() == [False, True, True]
    assert solution.unique
    tied = DeepLinearUFM([9, 3, 3], [5, 2], 2e-3, 4e-3).global_minimum()
    assert (tied.p > 0).tolist() == [True, True, False]
    assert not tied.unique
    assert make("balanced").global_minimum().unique


def test_fit_starts_where_it_is_told_and_reports_divergence() -> None:
    model = make("one layer")
    start = model.minimiser(torch.Generator().manual_seed(3))
    found = model.fit(steps=5, start=start)
    torch.testing.assert_close(found.features, start.features)
    with pytest.raises(Diverged, match=r"a smaller lr may help"):
        model.fit(lr=1e4, steps=200)


def test_bad_models() -> None:
    good: dict[str, object] = {"n_per_class": [4, 4], "dims": [3, 3], "weight_decays": 1e-3, "feature_decay": 1e-3}
    for change, message in (
        ({"n_per_class": [4]}, r"number of classes must be at least 2, got 1"),
        ({"n_per_class": [4, 0]}, r"samples of a class must be at least 1, got 0"),
        ({"dims": []}, r"number of layers must be at least 1, got 0"),
        ({"dims": [3, 0]}, r"width of a layer must be at least 1, got 0"),
        ({"weight_decays": -1.0}, r"weight decay must be in \[0, inf\), got -1.0"),
        ({"weight_decays": [1.0]}, r"as many as layers \(2\), got 1"),
        ({"feature_decay": -1.0}, r"feature decay must be in \[0, inf\), got -1.0"),
        ({"loss": "mes"}, r"unknown loss 'mes'; did you mean 'mse'"),
    ):
        with pytest.raises(InputError, match=message):
            DeepLinearUFM(**{**good, **change})  # type: ignore[arg-type]
    for change, message in (
        ({"feature_decay": 0.0}, r"decay of a closed-form minimum must be positive, got 0"),
        ({"loss": "ce", "n_per_class": [4, 5]}, r"needs classes of equal size, got \[4, 5\]"),
        ({"loss": "ce", "n_per_class": [4] * 5}, r"narrowest layer.* must be at least 4, got 3"),
    ):
        with pytest.raises(InputError, match=message):
            DeepLinearUFM(**{**good, **change}).global_minimum()  # type: ignore[arg-type]
    model = DeepLinearUFM(**good)  # type: ignore[arg-type]
    for layer in (-1, 3):
        with pytest.raises(InputError, match=rf"layer must be in \[0, 2\], got {layer}"):
            model.predicted_gram(layer)
    with pytest.raises(InputError, match=r"momentum must be in \[0, 1\)"):
        model.fit(momentum=1.0)
    with pytest.raises(InputError, match=r"lr must be positive, got nan"):
        model.fit(lr=math.nan)
