"""Training: :func:`fit`, and the learning rules that can stand in for plain backprop."""

from netwright.training.budget import Budget, Settings
from netwright.training.evaluation import (
    METRICS,
    Reliability,
    calibration_error,
    evaluate,
    noise_robustness,
    predict,
    reliability,
    score,
    score_groups,
)
from netwright.training.fit import Diverged, History, Observer, Record, fit, make_backprop
from netwright.training.rules import Backprop, Loss, Rule, make_fabric, task_loss
from netwright.training.trainer import Trainer

__all__ = [
    "METRICS",
    "Backprop",
    "Budget",
    "Diverged",
    "History",
    "Loss",
    "Observer",
    "Record",
    "Reliability",
    "Rule",
    "Settings",
    "Trainer",
    "calibration_error",
    "evaluate",
    "fit",
    "make_backprop",
    "make_fabric",
    "noise_robustness",
    "predict",
    "reliability",
    "score",
    "score_groups",
    "task_loss",
]
