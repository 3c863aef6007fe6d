"""Tests of ``netwright.analysis.collapse`` and ``netwright.analysis.class_moments``."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from netwright.analysis.capture import capture
from netwright.analysis.collapse import (
    ClassMoments,
    class_statistics,
    collapse_metrics,
    metrics_by_depth,
    nc1,
    nc1_trace_ratio,
    nc2,
    nc3,
    nc4,
    products,
    self_duality,
)
from netwright.checks import InputError


def example(samples: int = 60, width: int = 7, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    labels = torch.minimum(labels, torch.randint(classes, (samples,), generator=generator) + 1)
    centres = torch.randn(classes, width, dtype=torch.float64, generator=generator)
    noise = torch.randn(samples, width, dtype=torch.float64, generator=generator)
    return centres[labels] + 0.3 * noise, labels


def simplex(classes: int, width: int) -> Tensor:
    """Rows on a simplex equiangular tight frame, turned at random."""
    frame = torch.eye(classes, dtype=torch.float64) - 1 / classes
    return frame @ torch.linalg.qr(torch.randn(width, classes, dtype=torch.float64))[0].T


def by_loops(features: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both covariances, written out sample by sample."""
    H, y = features.numpy(), labels.numpy()
    classes = range(y.max() + 1)
    means = [H[y == k].mean(0) for k in classes]
    within = sum(np.outer(h - means[k], h - means[k]) for h, k in zip(H, y, strict=True)) / len(H)
    between = sum(np.outer(means[k] - H.mean(0), means[k] - H.mean(0)) for k in classes) / len(means)
    return within, between


def test_statistics_are_the_definition() -> None:
    features, labels = example()
    statistics = class_statistics(features, labels)
    within, between = by_loops(features, labels)
    np.testing.assert_allclose(statistics.within, within, atol=1e-14)
    np.testing.assert_allclose(statistics.between, between, atol=1e-14)
    torch.testing.assert_close(statistics.global_mean, features.mean(0))
    assert statistics.counts.tolist() == labels.bincount().tolist()


def test_covariances_add_up_to_that_of_all_samples_when_classes_are_equal() -> None:
    labels = torch.arange(60) % 4
    features = torch.randn(60, 5, dtype=torch.float64) + labels[:, None]
    statistics = class_statistics(features, labels)
    torch.testing.assert_close(statistics.within + statistics.between, features.T.cov(correction=0))


@pytest.mark.parametrize(("width", "classes"), [(7, 4), (3, 6), (1, 2)])
def test_nc1_is_the_trace_with_the_pseudo_inverse(width: int, classes: int) -> None:
    features, labels = example(200, width, classes)
    within, between = by_loops(features, labels)
    expected = np.trace(within @ scipy.linalg.pinv(between)) / classes
    assert nc1(features, labels).item() == pytest.approx(expected, rel=1e-9)
    assert class_statistics(features, labels).nc1().item() == pytest.approx(expected, rel=1e-9)


@given(cut=st.integers(1, 59), second=st.integers(1, 59))
def test_batches_give_the_statistics_of_the_whole(cut: int, second: int) -> None:
    features, labels = example()
    whole = class_statistics(features, labels)
    one, other = ClassMoments(4, 7), ClassMoments(4, 7)
    low, high = min(cut, second), max(cut, second)
    for moments, part in ((one, slice(0, low)), (other, slice(low, high)), (other, slice(high, 60))):
        if len(labels[part]):
            moments.update(features[part], labels[part])
    one.merge(other)
    for name in ("counts", "means", "global_mean", "within"):
        torch.testing.assert_close(getattr(one.statistics(), name), getattr(whole, name))


def test_more_samples_than_are_held_at_once() -> None:
    labels = torch.arange(20_000) % 3
    features = torch.randn(20_000, 4) + labels[:, None]
    statistics = class_statistics(features, labels)
    residual = features.double() - statistics.means[labels]
    torch.testing.assert_close(statistics.within, residual.T @ residual / 20_000)
    assert statistics.nc1().item() == pytest.approx(nc1(features, labels).item(), rel=1e-9)


def test_tiny_variability_far_from_the_origin_is_not_lost() -> None:
    """Raw second moments would lose it: it is 1e-10 of the mean square."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4000) % 2
    noise = 1e-4 * torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    moments = ClassMoments(2, 3)
    for part in range(0, 4000, 100):
        moments.update((noise + 10.0 + labels[:, None])[part : part + 100], labels[part : part + 100])
    expected = class_statistics(noise, labels).within
    torch.testing.assert_close(moments.statistics().within, expected, rtol=1e-9, atol=1e-16)


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_both_forms_of_nc1_ignore_shift_scale_and_rotation(scale: float, shift: float) -> None:
    features, labels = example()
    turn = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    moved = scale * features @ turn + shift
    assert nc1(moved, labels).item() == pytest.approx(nc1(features, labels).item(), rel=1e-7)
    assert nc1_trace_ratio(moved, labels).item() == pytest.approx(nc1_trace_ratio(features, labels).item(), rel=1e-7)


def test_nc1_of_collapsed_and_of_confused_classes() -> None:
    labels = torch.arange(12) % 3
    assert nc1(torch.eye(3)[labels], labels).item() == 0
    # the same features in every class: no variability between classes is left to compare with
    confused = torch.arange(12.0).div(3, rounding_mode="floor")[:, None] + torch.ones(12, 5)
    assert nc1(confused, labels).item() == math.inf
    assert nc1_trace_ratio(confused, labels).item() == math.inf
    statistics = class_statistics(confused, labels)
    assert statistics.nc1().item() == statistics.nc1_trace_ratio().item() == math.inf


def test_trace_ratio_is_that_of_the_statistics() -> None:
    features, labels = example()
    statistics = class_statistics(features, labels)
    expected = statistics.within.trace() / statistics.between.trace()
    torch.testing.assert_close(nc1_trace_ratio(features, labels), expected)
    torch.testing.assert_close(statistics.nc1_trace_ratio(), expected)


def test_measures_can_be_differentiated() -> None:
    features, labels = example(24, 3, 3)
    features.requires_grad_()
    weight = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda h: nc1(h, labels), (features,))
    assert gradcheck(lambda h: nc1_trace_ratio(h, labels), (features,))
    assert gradcheck(nc2, (weight,))
    assert gradcheck(lambda w: nc3(w, features[:3]), (weight,))


@pytest.mark.parametrize("classes", [2, 5])
def test_frames_are_recognised(classes: int) -> None:
    orthogonal = 2 * torch.linalg.qr(torch.randn(9, classes, dtype=torch.float64))[0].T
    lengths = torch.linspace(1, 3, classes, dtype=torch.float64)
    assert nc2(3 * simplex(classes, 9)).item() < 1e-12
    assert nc2(orthogonal, "of").item() < 1e-12
    assert nc2(lengths[:, None] * orthogonal, "gof", s=7 * lengths).item() < 1e-12
    # the distance between the two regular frames
    expected = torch.linalg.matrix_norm(
        (torch.eye(classes) - 1 / classes) / math.sqrt(classes - 1) - torch.eye(classes) / math.sqrt(classes)
    )
    assert nc2(orthogonal, "etf").item() == pytest.approx(expected.item(), abs=1e-6)
    assert nc2(lengths[:, None] * orthogonal, "of").item() > 0.1


def test_alignment_of_weight_and_means() -> None:
    frame = simplex(4, 6)
    assert nc3(frame, 5 * frame + 2.0).item() < 1e-12  # the common part of the means is taken off
    assert nc3(frame, -frame).item() == pytest.approx(2)
    diagonal = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert nc3(torch.eye(4), torch.diag(diagonal), "gof", s=diagonal).item() < 1e-12
    assert self_duality(frame, 3 * frame + 1.0).item() < 1e-7
    assert self_duality(frame, -frame).item() == pytest.approx(2)
    means = torch.randn(4, 6, dtype=torch.float64)
    assert self_duality(2 * means, means, centre=False).item() < 1e-12


def test_a_given_global_mean_is_the_one_taken_off() -> None:
    features, labels = example()
    statistics = class_statistics(features, labels)
    centred = statistics.means - statistics.global_mean
    product = centred @ centred.T
    target = (torch.eye(4, dtype=torch.float64) - 0.25) / math.sqrt(3)
    expected = (product / product.norm() - target).norm().item()
    found = nc3(centred, statistics.means, global_mean=statistics.global_mean).item()
    assert found == pytest.approx(expected)


def test_nc4_counts_disagreements() -> None:
    features, labels = example(300, 5, 4)
    means = class_statistics(features, labels).means
    weight, bias = torch.randn(4, 5, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    nearest = torch.cdist(features, means).argmin(1)
    expected = ((features @ weight.T + bias).argmax(1) != nearest).double().mean()
    torch.testing.assert_close(nc4(features, means, weight, bias), expected)
    # the linear classifier that is the nearest class mean
    assert nc4(features, means, 2 * means, -means.square().sum(1)).item() == 0


def test_products_and_depth() -> None:
    weights = [torch.randn(6, 7, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64), simplex(4, 5)]
    full, middle, last = products(weights)
    torch.testing.assert_close(full, weights[2] @ weights[1] @ weights[0])
    torch.testing.assert_close(middle, weights[2] @ weights[1])
    assert last is weights[2]
    features, labels = example()
    found = metrics_by_depth(features, labels, weights)
    assert found[0] == collapse_metrics(features, labels, full)
    assert found[2] == collapse_metrics(features @ weights[0].T @ weights[1].T, labels, last)
    assert found[2].nc2 < 1e-12


@pytest.mark.parametrize("target", ["etf", "of"])
def test_a_collapsed_layer_has_all_measures_at_zero(target: str) -> None:
    labels = torch.arange(40) % 4
    frame = simplex(4, 6) if target == "etf" else torch.linalg.qr(torch.randn(6, 4, dtype=torch.float64))[0].T
    shift = 5.0 if target == "etf" else 0.0
    bias = -shift * frame.sum(1)
    metrics = collapse_metrics(3 * frame[labels] + shift, labels, frame, bias, target=target)
    assert all(value < 1e-7 for value in vars(metrics).values()), metrics


def test_a_users_network_is_measured_and_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs, labels = torch.randn(30, 3), torch.arange(30) % 2
    model.eval()
    state = torch.get_rng_state()
    with capture(model, ["2"]) as recorded:
        model(inputs)
    metrics = collapse_metrics(recorded["2"], labels, model[3].weight, model[3].bias)
    assert 0 <= metrics.nc4 <= 1
    assert 0 < metrics.nc1 < math.inf
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_floating_point_types_are_measured_in_double(dtype: torch.dtype) -> None:
    features, labels = example()
    metrics = collapse_metrics(features.to(dtype), labels.to(torch.int32), torch.randn(4, 7).to(dtype))
    exact = nc1(features.to(dtype).double(), labels)
    assert metrics.nc1 == pytest.approx(exact.item(), rel=1e-9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert nc1(features.to(dtype), labels).item() == pytest.approx(exact.item(), rel=1e-9)


@pytest.mark.parametrize("measure", [class_statistics, nc1, nc1_trace_ratio])
def test_bad_features_and_labels(measure: object) -> None:
    features, labels = example(12, 3, 3)
    cases: list[tuple[str, tuple[object, ...]]] = [
        (r"labels must be from 0 to 2, got 3", (features, labels.clamp(min=1) * 0 + 3, 3)),
        (r"labels must be from 0 to .*, got -1", (features, labels - 1)),
        (r"every class must have a sample, got none of class 3, 4", (features, labels, 5)),
        (r"number of classes must be at least 2, got 1", (features, 0 * labels)),
        (r"labels must be as many as features \(12\), got 11", (features, labels[:-1])),
        (r"width of the features must be at least 1, got 0", (features[:, :0], labels)),
        (r"number of samples must be at least 1, got 0", (features[:0], labels[:0])),
        (r"labels must be integers, got torch.float64", (features, labels.double())),
        (r"features must have shape \(samples, width\)", (features[0], labels)),
        (r"features must be of a floating-point type", (labels[:, None], labels)),
        (r"features must be finite", (features / 0, labels)),
    ]
    for message, arguments in cases:
        with pytest.raises(InputError, match=message):
            measure(*arguments)  # type: ignore[operator]


def test_bad_weights() -> None:
    weight = torch.randn(3, 4)
    with pytest.raises(InputError, match=r"'gof' needs the lengths s"):
        nc2(weight, "gof")
    with pytest.raises(InputError, match=r"'gof' needs the lengths s"):
        nc3(weight, weight, "gof")
    with pytest.raises(InputError, match=r"dimension 0 of s must have size 3"):
        nc2(weight, "gof", s=torch.ones(4))
    with pytest.raises(InputError, match=r"unknown frame 'eft'; did you mean 'etf'"):
        nc2(weight, "eft")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"number of classes in weight must be at least 2, got 1"):
        nc2(weight[:1])
    with pytest.raises(InputError, match=r"width of weight must be at least 1, got 0"):
        nc2(weight[:, :0])
    with pytest.raises(InputError, match=r"weight must have an entry other than 0"):
        nc2(0 * weight)
    with pytest.raises(InputError, match=r"means must have the shape \(3, 4\) of the weight, got \(4, 4\)"):
        nc3(weight, torch.eye(4))
    with pytest.raises(InputError, match=r"dimension 1 of features must have size 4"):
        nc4(torch.randn(5, 3), weight, weight)
    with pytest.raises(InputError, match=r"dimension 0 of weight must have size 4"):
        products([torch.eye(3), weight])
    with pytest.raises(InputError, match=r"unknown frame without lengths 'gof'"):
        collapse_metrics(weight, torch.arange(3), weight, target="gof")  # type: ignore[arg-type]


def test_bad_moments() -> None:
    with pytest.raises(InputError, match=r"number of classes must be at least 2, got 1"):
        ClassMoments(1, 3)
    with pytest.raises(InputError, match=r"width of the features must be at least 1, got 0"):
        ClassMoments(2, 0)
    moments = ClassMoments(2, 3)
    with pytest.raises(InputError, match=r"dimension 1 of features must have size 3"):
        moments.update(torch.randn(4, 2), torch.arange(4) % 2)
    with pytest.raises(InputError, match=r"must have shape \(2, 3\), got \(3, 3\)"):
        moments.merge(ClassMoments(3, 3))
    moments.update(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InputError, match=r"none of class 1"):
        moments.statistics()
