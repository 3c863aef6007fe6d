"""Tests of ``netwright.training.evaluation``."""

import itertools

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn_metrics
from torch import nn

from netwright.data import Split
from netwright.training import (
    calibration_error,
    evaluate,
    noise_robustness,
    predict,
    reliability,
    score,
    score_groups,
)


def test_classification_metrics_are_scikit_learns() -> None:
    inputs, targets = torch.randn(200, 5), torch.randint(4, (200,))
    model = nn.Linear(5, 4)
    found = evaluate(model, Split(inputs, targets))
    probabilities = model(inputs).detach().double().softmax(-1).numpy()
    assert found["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(targets, probabilities.argmax(-1)))
    assert found["nll"] == pytest.approx(sklearn_metrics.log_loss(targets, probabilities, labels=range(4)), rel=1e-5)
    by_class = [sklearn_metrics.brier_score_loss(targets == c, probabilities[:, c]) for c in range(4)]
    assert found["brier"] == pytest.approx(sum(by_class), rel=1e-5)


def test_regression_metrics_are_scikit_learns() -> None:
    inputs, targets = torch.randn(50, 3), torch.randn(50, 1)
    model = nn.Linear(3, 1)
    found = evaluate(model, Split(inputs, targets, target_std=2.0))
    predicted = model(inputs).detach()
    assert found["rmse"] == pytest.approx(2 * sklearn_metrics.root_mean_squared_error(targets, predicted), rel=1e-5)
    assert found["r2"] == pytest.approx(sklearn_metrics.r2_score(targets, predicted), rel=1e-5)


def test_calibration_error_by_hand() -> None:
    # confidences 0.9, 0.9, 0.6, 0.6: right, wrong, right, right
    probabilities = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]], dtype=torch.float64)
    targets = torch.tensor([0, 1, 0, 1])
    assert calibration_error(probabilities, targets, bins=10) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * (1 - 0.6))


def test_calibration_error_against_a_loop_over_bins() -> None:
    probabilities = torch.randn(500, 3, dtype=torch.float64).mul(2).softmax(-1)
    targets = torch.randint(3, (500,))
    confidence, predicted = (t.numpy() for t in probabilities.max(-1))
    right = predicted == targets.numpy()
    edges = np.linspace(0, 1, 16)
    inside = [(confidence > low) & (confidence <= high) for low, high in itertools.pairwise(edges)]
    expected = sum(abs(right[b].mean() - confidence[b].mean()) * b.mean() for b in inside if b.any())
    assert calibration_error(probabilities, targets) == pytest.approx(expected)


def test_noise_is_the_same_for_every_model_and_hurts() -> None:
    inputs = torch.randn(300, 2)
    targets = (inputs[:, 0] > 0).long()
    model = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))
    split = Split(inputs, targets)
    first, again = (noise_robustness(model, split, std=1.0, seed=1)["noisy_accuracy"] for _ in range(2))
    assert first == again < 0.9 < evaluate(model, split)["accuracy"]
    assert noise_robustness(model, split, std=0.0)["noisy_accuracy"] == 1.0


def test_prediction_keeps_modes_and_gradients_away() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Linear(3, 2))
    model[1].eval()
    outputs = predict(model, torch.ones(10, 3), batch_size=3)
    assert not outputs.requires_grad
    assert outputs.shape == (10, 2)
    torch.testing.assert_close(outputs, outputs[:1].expand(10, 2))
    assert (model[0].training, model[1].training) == (True, False)


def test_wrong_number_of_outputs_in_regression() -> None:
    with pytest.raises(ValueError, match=r"output of the model must have size 1, got shape \(4, 2\)"):
        evaluate(nn.Linear(3, 2), Split(torch.randn(4, 3), torch.randn(4, 1)))


def test_groups_are_scored_like_data_of_their_own() -> None:
    outputs, targets = torch.randn(50, 3, dtype=torch.float64), torch.randint(3, (50,))
    group_of = torch.randint(4, (50,)).clamp(max=2)  # nobody is in the last one
    found = score_groups(outputs, Split(torch.zeros(50, 1), targets), group_of, 4)
    assert found[3] == {"count": 0.0}
    for group in range(3):
        member = group_of == group
        alone = score(outputs[member], Split(torch.zeros(int(member.sum()), 1), targets[member]))
        expected = {"count": float(member.sum()), **{m: alone[m] for m in ("accuracy", "nll", "brier")}}
        assert found[group] == pytest.approx(expected)
    values = torch.randn(50, 2)
    regression = Split(torch.zeros(50, 1), values, target_std=3.0)
    (whole,) = score_groups(values + 0.5, regression, torch.zeros(50, dtype=torch.int64), 1)
    assert whole == pytest.approx({"count": 50.0, "rmse": 1.5})


def test_reliability_sums_to_the_whole() -> None:
    probabilities, targets = torch.rand(200, 4).softmax(-1), torch.randint(4, (200,))
    found = reliability(probabilities, targets, bins=7)
    assert found.count.sum() == 200
    assert found.right.sum() == (probabilities.argmax(-1) == targets).sum()
    assert found.confidence.sum().item() == pytest.approx(probabilities.double().max(-1).values.sum().item())
    edges = torch.arange(8) / 7
    for index in range(7):
        if found.count[index]:
            mean = found.confidence[index] / found.count[index]
            assert edges[index] < mean <= edges[index + 1]
