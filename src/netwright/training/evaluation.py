"""How good a trained network is on one part of the data."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.data.splits import Split
from netwright.surgery import eval_mode

# name of a metric -> which direction is better
METRICS: dict[str, str] = {
    "accuracy": "higher",
    "nll": "lower",
    "ece": "lower",
    "brier": "lower",
    "noisy_accuracy": "higher",
    "rmse": "lower",
    "r2": "higher",
    "noisy_rmse": "lower",
}


def evaluate(model: nn.Module, split: Split, *, batch_size: int = 1024) -> dict[str, float]:
    """Accuracy, negative log-likelihood, calibration error and Brier score; RMSE and R² for regression.

    - ``accuracy``: fraction of samples whose largest logit is the right class;
    - ``nll``: mean of −log p(right class), in nats;
    - ``ece``: expected calibration error, see :func:`calibration_error`;
    - ``brier``: mean over samples of Σ_c (p_c − [c is right])², between 0 and 2;
    - ``rmse``: root mean squared error, in the units of the target; ``r2``: 1 − squared error / variance of the target.

    The model is run in eval mode and left in the mode it was in.
    """
    return score(predict(model, split.inputs, batch_size=batch_size), split)


def score(outputs: Tensor, split: Split) -> dict[str, float]:
    """As :func:`evaluate`, of the outputs ``(samples, outputs)`` that a model gave for a part of the data."""
    targets = split.targets.to(outputs.device)
    if not split.is_classification:
        checks.size("output of the model", outputs, -1, targets.shape[-1])
        squared = (outputs - targets).square().mean().item()
        spread = (targets - targets.mean(0)).square().mean().item()
        return {
            "rmse": math.sqrt(squared) * split.target_std,
            "r2": 1 - squared / spread if spread > 0 else math.nan,
        }
    log_probabilities = outputs.log_softmax(-1)
    probabilities = log_probabilities.exp()
    right = functional.one_hot(targets, outputs.shape[-1])
    return {
        "accuracy": (outputs.argmax(-1) == targets).double().mean().item(),
        "nll": functional.nll_loss(log_probabilities, targets).item(),
        "ece": calibration_error(probabilities, targets),
        "brier": (probabilities - right).square().sum(-1).mean().item(),
    }


def noise_robustness(model: nn.Module, split: Split, *, std: float = 0.5, seed: int = 0) -> dict[str, float]:
    """Accuracy (or RMSE) with Gaussian noise of ``std`` on the normalised inputs, the same noise for every model.

    Empty for inputs that are no measurements (the numbers of a graph's nodes).
    """
    if not split.inputs.is_floating_point():
        return {}
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(split.inputs.shape, generator=generator, dtype=split.inputs.dtype)
    noisy = Split(split.inputs + std * noise.to(split.inputs.device), split.targets, split.target_std)
    metric = "accuracy" if split.is_classification else "rmse"
    return {f"noisy_{metric}": evaluate(model, noisy)[metric]}


@torch.no_grad()
def predict(model: nn.Module, inputs: Tensor, *, batch_size: int = 1024) -> Tensor:
    """Outputs of the model in eval mode, ``(samples, outputs)``, in float32 or better, on the model's device."""
    device = next((p.device for p in model.parameters()), inputs.device)
    with eval_mode(model):
        outputs = torch.cat([model(chunk.to(device)) for chunk in torch.split(inputs, batch_size)])
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


@dataclass(frozen=True)
class Reliability:
    """How often a network is right where it is how sure, in equally wide bins of confidence.

    Attributes:
        count: Samples in each bin.
        confidence: Sum over the samples of each bin of the probability of the predicted class.
        right: How many samples of each bin were predicted rightly.
    """

    count: Tensor
    confidence: Tensor
    right: Tensor


def reliability(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Reliability:
    """What a reliability diagram draws: accuracy against confidence.

    Args:
        probabilities: ``(samples, classes)``.
        targets: Classes ``(samples,)``.
        bins: Number of bins on (0, 1].

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, section 2.

    Example:
        >>> found = reliability(torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]]), torch.tensor([0, 1, 1]), bins=2)
        >>> found.count.tolist(), found.right.tolist()
        ([0.0, 3.0], [0.0, 2.0])
    """
    confidence, predicted = probabilities.double().max(-1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64, device=values.device).index_add_(0, bin_of, values)

    right = (predicted == targets).double()
    return Reliability(summed(torch.ones_like(confidence)), summed(confidence), summed(right))


def calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    r"""Expected calibration error with equally wide bins of confidence.

    .. math:: \mathrm{ECE} = \sum_b \frac{n_b}{n} \, |\mathrm{accuracy}_b - \mathrm{confidence}_b|

    Args:
        probabilities: ``(samples, classes)``.
        targets: Classes ``(samples,)``.
        bins: Number of bins on (0, 1].

    Source:
        Guo, Pleiss, Sun, Weinberger 2017, arXiv:1706.04599, equation 3.
    """
    found = reliability(probabilities, targets, bins)
    return (found.right - found.confidence).abs().sum().item() / len(targets)


def score_groups(outputs: Tensor, split: Split, group_of: Tensor, groups: int) -> list[dict[str, float]]:
    """Metrics of groups of samples: ``accuracy``, ``nll`` and ``brier``; ``rmse`` for regression.

    These are the metrics of :func:`evaluate` that are means over samples, so that small groups do not distort them.

    Args:
        outputs: Of a network on ``split``, ``(samples, outputs)``.
        split: The samples.
        group_of: The number of the group of each sample ``(samples,)``, int64.
        groups: How many groups there are.

    Returns:
        For each group, its number of samples as ``count`` and, unless that is 0, its metrics.
    """
    group_of, targets = group_of.to(outputs.device), split.targets.to(outputs.device)
    if not split.is_classification:
        by_sample = {"rmse": (outputs - targets).square().mean(-1)}
    else:
        log_probabilities = outputs.log_softmax(-1)
        right = functional.one_hot(targets, outputs.shape[-1])
        by_sample = {
            "accuracy": (outputs.argmax(-1) == targets).double(),
            "nll": functional.nll_loss(log_probabilities, targets, reduction="none"),
            "brier": (log_probabilities.exp() - right).square().sum(-1),
        }
    counts = torch.bincount(group_of, minlength=groups).tolist()
    sums = {
        metric: torch.zeros(groups, dtype=torch.float64, device=outputs.device)
        .index_add_(0, group_of, values.double())
        .tolist()
        for metric, values in by_sample.items()
    }
    found = []
    for group, count in enumerate(counts):
        means = {metric: values[group] / count for metric, values in sums.items()} if count else {}
        if "rmse" in means:
            means["rmse"] = math.sqrt(means["rmse"]) * split.target_std
        found.append({"count": float(count), **means})
    return found


__all__ = [
    "METRICS",
    "Reliability",
    "calibration_error",
    "evaluate",
    "noise_robustness",
    "predict",
    "reliability",
    "score",
    "score_groups",
]
