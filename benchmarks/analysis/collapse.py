"""Class statistics and NC1 of 50,000 samples of width 512 against the loop over classes with outer products."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import amounts, side_by_side
from netwright.analysis.collapse import class_statistics, nc1, nc1_trace_ratio

OUTER_AT_ONCE = 50  # samples whose outer products fit into memory


def by_classes(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """As evaluations of collapse often do it: one class at a time, summing the outer product of every sample."""
    classes = int(labels.max()) + 1
    within = torch.zeros(features.shape[1], features.shape[1])
    means = torch.stack([features[labels == k].mean(0) for k in range(classes)])
    for k in range(classes):
        residual = features[labels == k] - means[k]
        for rows in residual.split(OUTER_AT_ONCE):
            within += (rows[:, :, None] * rows[:, None, :]).sum(0)
    between = torch.zeros_like(within)
    for mean in means:
        between += torch.outer(mean - features.mean(0), mean - features.mean(0))
    return within / len(features), between / classes


def by_full_inverse(features: Tensor, labels: Tensor) -> Tensor:
    statistics = class_statistics(features, labels)
    return (statistics.within * torch.linalg.pinv(statistics.between, hermitian=True)).sum()


def milliseconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    labels = torch.arange(50_000) % 10
    features = torch.randn(10, 512)[labels] + torch.randn(50_000, 512)
    amounts(
        "statistics of 50,000 × 512 features in 10 classes",
        {
            "loop over classes, outer products": milliseconds(lambda: by_classes(features, labels)),
            "class_statistics": min(milliseconds(lambda: class_statistics(features, labels)) for _ in range(5)),
        },
        baseline="loop over classes, outer products",
        targets={"class_statistics": 0.2},
        unit="ms",
    )
    side_by_side(
        "NC1 of the same features",
        {
            "class_statistics and a 512×512 pseudo-inverse": lambda: by_full_inverse(features, labels),
            "nc1": lambda: nc1(features, labels),
            "nc1_trace_ratio": lambda: nc1_trace_ratio(features, labels),
        },
        baseline="class_statistics and a 512×512 pseudo-inverse",
        rounds=7,
    )


if __name__ == "__main__":
    main()
