"""Tests of ``netwright.theory.collapse_perturbation``."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from netwright.analysis.collapse import nc1_trace_ratio
from netwright.checks import InputError
from netwright.theory.collapse import DeepLinearUFM
from netwright.theory.collapse_perturbation import NearbyFeatureModel

Y = torch.arange(24) % 4


def given_features(noise: float = 0.3, width: int = 5, seed: int = 0, samples: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, width, dtype=torch.float64, generator=generator)
    each = torch.randn(samples, width, dtype=torch.float64, generator=generator)
    return centres[torch.arange(samples) % 4] + noise * each


def within(change: Tensor, y: Tensor) -> Tensor:
    """The part of a change that sums to 0 in every class."""
    means = torch.stack([change[y == k].mean(0) for k in range(int(y.max()) + 1)])
    return change - means[y]


def by_lbfgs(model: NearbyFeatureModel) -> float:
    """Least loss of the joint problem by scipy's L-BFGS with gradients by autograd."""
    n, d, k = *model.H0.shape, model.classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        leaf = torch.from_numpy(flat).requires_grad_()
        value = model.loss(leaf[: n * d].view(n, d), leaf[n * d :].view(k, d))
        (gradient,) = torch.autograd.grad(value, leaf)
        return value.item(), gradient.numpy()

    start = torch.cat([model.H0.flatten(), model.optimal_classifier(model.H0).flatten()]).numpy()
    options = {"maxiter": 20_000, "maxfun": 50_000, "ftol": 0, "gtol": 1e-10}
    return float(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).fun)


@pytest.mark.parametrize("width", [3, 5, 40])  # narrower than the classes; wider than the samples
@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_fit_is_stationary_and_no_worse_than_lbfgs(width: int, beta: float) -> None:
    model = NearbyFeatureModel(given_features(width=width), Y, 0.02, 0.05, beta)
    solution = model.fit()
    assert solution.converged
    assert solution.residual < 1e-10
    assert solution.loss == pytest.approx(by_lbfgs(model), abs=1e-8)
    H, W = solution.features.requires_grad_(), solution.classifier.requires_grad_()
    for gradient in torch.autograd.grad(model.loss(H, W), (H, W)):
        assert float(gradient.abs().max()) < 1e-10
    torch.testing.assert_close(model.optimal_classifier(H), W.detach())
    torch.testing.assert_close(model.optimal_features(W.detach()), H.detach())


def test_residual_is_the_gradient() -> None:
    model = NearbyFeatureModel(given_features(), Y, 0.02, 0.05, 0.7)
    H = torch.randn(24, 5, dtype=torch.float64, requires_grad=True)
    W = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(model.loss(H, W), (H, W))
    expected = max(float(gradient.abs().max()) for gradient in gradients)
    assert model.residual(H.detach(), W.detach()) == pytest.approx(expected)


def test_the_pull_decides_between_the_given_and_the_collapsed_features() -> None:
    H0 = given_features()
    far = NearbyFeatureModel(H0, Y, 0.02, 0.05, 1e8).fit()
    torch.testing.assert_close(far.features, H0, atol=1e-6, rtol=0)
    ratios = [nc1_trace_ratio(NearbyFeatureModel(H0, Y, 0.02, 0.05, b).fit().features, Y) for b in (0.1, 1, 10, 100)]
    assert ratios == sorted(ratios)
    assert ratios[-1] < nc1_trace_ratio(H0, Y)


def test_without_a_pull_it_is_the_unconstrained_model() -> None:
    lam_w, lam_h = 0.03, 0.08
    solution = NearbyFeatureModel(given_features(), Y, lam_w, lam_h, 0.0).fit()
    free = DeepLinearUFM([6] * 4, [5], lam_w / 4, lam_h / 24)
    expected = free.global_minimum()
    assert solution.loss == pytest.approx(expected.loss, abs=1e-10)
    torch.testing.assert_close(expected.p, torch.full((4,), 1 - (lam_w * lam_h) ** 0.5, dtype=torch.float64))
    assert nc1_trace_ratio(solution.features, Y) < 1e-12
    gram = solution.features[:4] @ solution.features[:4].T
    torch.testing.assert_close(gram, free.predicted_gram(0), atol=1e-7, rtol=0)


@pytest.mark.parametrize("width", [3, 6])
def test_linear_response_has_an_error_of_second_order(width: int) -> None:
    H0 = given_features(width=width)
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.7)
    direction = torch.randn(24, width, dtype=torch.float64)
    response, base = model.first_order(direction), model.minimum

    def error(eps: float) -> float:
        moved = NearbyFeatureModel(H0 + eps * direction, Y, 0.02, 0.05, 0.7).fit(tol=1e-14)
        dH = moved.features - base.features - eps * response.features
        dW = moved.classifier - base.classifier - eps * response.classifier
        return float(dH.norm() + dW.norm())

    assert error(1e-3) / error(5e-4) == pytest.approx(4, rel=0.05)


def test_linear_response_is_that_of_the_full_hessian() -> None:
    H0 = given_features(samples=8, width=3)
    y = torch.arange(8) % 4
    model = NearbyFeatureModel(H0, y, 0.02, 0.05, 0.7)
    H, W = model.minimum.features, model.minimum.classifier

    def loss(flat: Tensor) -> Tensor:
        return model.loss(flat[:24].view(8, 3), flat[24:].view(4, 3))

    hessian = torch.autograd.functional.hessian(loss, torch.cat([H.flatten(), W.flatten()]))
    direction = torch.randn(8, 3, dtype=torch.float64)
    # the gradient in the features contains -beta/N times the given ones
    pull = torch.cat([0.7 / 8 * direction.flatten(), torch.zeros(12, dtype=torch.float64)])
    expected = torch.linalg.solve(hessian, pull)
    response = model.first_order(direction)
    torch.testing.assert_close(response.features.flatten(), expected[:24])
    torch.testing.assert_close(response.classifier.flatten(), expected[24:])


@pytest.mark.parametrize("width", [3, 6])
def test_deviations_from_collapse_shrink_by_the_stated_factors(width: int) -> None:
    H0 = given_features(noise=0.0, width=width)
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.7)
    change = within(torch.randn(24, width, dtype=torch.float64), Y)
    short, full = model.first_order(change, within_class=True), model.first_order(change)
    torch.testing.assert_close(short.features, full.features)
    assert float(full.classifier.abs().max()) < 1e-10
    factors, directions = model.shrinkage()
    torch.testing.assert_close(directions @ directions.T, torch.eye(width, dtype=torch.float64))
    torch.testing.assert_close(short.features @ directions.T, change @ directions.T * factors)
    assert bool((factors < 1).all())
    if width > 4:
        torch.testing.assert_close(factors[4:], torch.full((width - 4,), 0.7 / 0.75, dtype=torch.float64))
    singular = torch.linalg.svdvals(model.minimum.classifier)
    torch.testing.assert_close(factors[: len(singular)], 0.7 / (singular.square() + 0.75))


@pytest.mark.parametrize("seed", range(4))
def test_variability_falls_along_the_flow(seed: int) -> None:
    H0 = given_features(noise=1.0, seed=seed)
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.7)
    ratios, last = model.gradient_flow(step=1e-2, n=300)
    assert bool((ratios.diff() < 0).all())
    assert ratios[0] == nc1_trace_ratio(H0, Y)
    assert ratios[-1] == nc1_trace_ratio(last, Y)


def test_flow_with_the_pull_ends_at_the_minimum() -> None:
    model = NearbyFeatureModel(given_features(), Y, 0.02, 0.05, 0.7)
    _, last = model.gradient_flow(step=0.3, n=300, pull=True)
    torch.testing.assert_close(last, model.minimum.features, atol=1e-8, rtol=0)


def test_a_step_of_the_flow_is_down_the_gradient() -> None:
    """Samples times the gradient of the loss without pull, at the best classifier."""
    H0 = given_features()
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.0)
    H = H0.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.loss(H, model.optimal_classifier(H0)), H)
    _, last = model.gradient_flow(step=0.1, n=1)
    torch.testing.assert_close(last, H0 - 0.1 * 24 * gradient)


def test_class_weights_make_up_for_unequal_sizes() -> None:
    """Weights of 2 are as good as a second copy of every sample."""
    H0 = given_features(samples=12)
    y = torch.arange(12) % 4
    single = y >= 2
    twice = torch.cat([H0, H0[single]])
    weights = torch.tensor([2.0, 2.0, 1.0, 1.0])
    copied = NearbyFeatureModel(twice, torch.cat([y, y[single]]), 0.02, 0.05, 0.7, weights)
    # every class counts as 6 samples among 24, as against 18
    plain = NearbyFeatureModel(torch.cat([H0, H0]), torch.cat([y, y]), 0.02 * 18 / 24, 0.05, 0.7)
    torch.testing.assert_close(copied.fit().features[:12], plain.fit().features[:12])
    change = torch.randn(18, 5, dtype=torch.float64)
    both = [copied.first_order(scale * change).features for scale in (1.0, -2.0)]
    torch.testing.assert_close(-2 * both[0], both[1])
    moved = NearbyFeatureModel(copied.H0 + 1e-6 * change, copied.y, 0.02, 0.05, 0.7, weights).fit(tol=1e-14)
    numeric = (moved.features - copied.fit(tol=1e-14).features) / 1e-6
    torch.testing.assert_close(both[0], numeric, atol=1e-4, rtol=0)


def test_stopping_early_says_so() -> None:
    solution = NearbyFeatureModel(given_features(), Y, 0.02, 0.05, 0.1).fit(steps=3)
    assert not solution.converged
    assert solution.sweeps == 3
    assert solution.residual > 1e-10


def test_given_tensors_stay_as_they_are() -> None:
    H0 = given_features().float().requires_grad_()
    before, state = H0.detach().clone(), torch.get_rng_state()
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.7)
    model.fit()
    model.gradient_flow(H0, n=3)
    assert torch.equal(H0.detach(), before)
    assert H0.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_bad_input() -> None:
    H0 = given_features()
    for arguments, message in (
        ((H0, Y, 0.1, 0.1, -1.0), r"beta must be in \[0, inf\), got -1.0"),
        ((H0, Y, -0.1, 0.1, 1.0), r"lam_w must be in \[0, inf\), got -0.1"),
        ((H0, Y, 0.1, -0.1, 1.0), r"lam_h must be in \[0, inf\), got -0.1"),
        (
            (H0[1:], Y[1:], 0.1, 0.1, 1.0),
            r"classes must be of equal size or be given weights, got sizes \[5, 6, 6, 6\]",
        ),
        ((H0, Y, 0.1, 0.1, 1.0, torch.ones(3)), r"dimension 0 of weights must have size 4"),
        ((H0, Y, 0.1, 0.1, 1.0, torch.tensor([1.0, 0, 1, 1])), r"smallest class weight must be positive, got 0"),
        ((H0, Y[:-1], 0.1, 0.1, 1.0), r"labels must be as many as features \(24\), got 23"),
        ((H0, Y + 1, 0.1, 0.1, 1.0), r"every class must have a sample"),
        ((H0 / 0, Y, 0.1, 0.1, 1.0), r"given features must be finite"),
    ):
        with pytest.raises(InputError, match=message):
            NearbyFeatureModel(*arguments)  # type: ignore[arg-type]


def test_bad_calls() -> None:
    H0 = given_features()
    flat = H0.clone()
    flat[:, 1] = flat[:, 0]
    for features in (flat, given_features(width=40)):
        model = NearbyFeatureModel(features, Y, 0.0, 0.0, 0.0)
        with pytest.raises(InputError, match=r"lam_w must be positive where the features do not span"):
            model.optimal_classifier(features)
        with pytest.raises(InputError, match=r"lam_w must be positive where the features do not span"):
            model.fit()
    with pytest.raises(InputError, match=r"lam_h \+ beta must be positive, got 0"):
        NearbyFeatureModel(H0, Y, 0.1, 0.0, 0.0).fit()
    model = NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.7)
    with pytest.raises(InputError, match=r"must sum to 0 in every class, got a sum of"):
        model.first_order(torch.ones(24, 5), within_class=True)
    with pytest.raises(InputError, match=r"needs given features that are equal in every class, got deviations"):
        model.first_order(within(H0, Y), within_class=True)
    with pytest.raises(InputError, match=r"delta_H0 must have the shape \(24, 5\)"):
        model.first_order(torch.ones(24, 4))
    with pytest.raises(InputError, match=r"beta of a first-order response must be positive, got 0"):
        NearbyFeatureModel(H0, Y, 0.02, 0.05, 0.0).first_order(H0)
    with pytest.raises(InputError, match=r"H must have the shape \(24, 5\) of the given features"):
        model.gradient_flow(torch.ones(3, 5))
    with pytest.raises(InputError, match=r"step must be positive, got 0"):
        model.gradient_flow(step=0)
    with pytest.raises(InputError, match=r"dimension 1 of W must have size 5"):
        model.optimal_features(torch.ones(4, 4))
