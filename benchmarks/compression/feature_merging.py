"""Merging the channels of a layer as wide as VGG's widest, against all inner products anew before every merging."""

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import amounts
from netwright.compression.feature_merging import iterative_feature_merging

Groups = list[list[int]]


def anew(model: nn.Sequential, merges: int) -> Groups:
    """The published loop for the middle channels: all inner products before every merging, in single precision."""
    first, second = model[0].weight.detach().clone(), model[3].weight.detach().clone()
    counts = torch.ones(len(first))
    groups = [[channel] for channel in range(len(first))]
    for _ in range(merges):
        products = first.flatten(1) @ first.flatten(1).T
        columns = second.transpose(0, 1).flatten(1)
        products += columns @ columns.T
        squares = products.diagonal()
        distances = squares[:, None] + squares[None, :] - 2 * products
        distances.fill_diagonal_(torch.inf)
        i, j = sorted(divmod(int(distances.argmin()), len(groups)))
        kept = torch.arange(len(groups)) != j
        first[i] += first[j]
        second[:, i] = (second[:, i] * counts[i] + second[:, j] * counts[j]) / (counts[i] + counts[j])
        counts[i] += counts[j]
        first, second, counts = first[kept], second[:, kept], counts[kept]
        groups[i] = sorted(groups[i] + groups.pop(j))
    return groups


def seconds(function: Callable[[], Groups]) -> tuple[float, Groups]:
    start = time.process_time()
    groups = function()
    return time.process_time() - start, groups


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Conv2d(512, 512, 3), nn.BatchNorm2d(512), nn.ReLU(), nn.Conv2d(512, 512, 3)).eval()
    x: Tensor = torch.randn(1, 512, 5, 5)

    def kept_up_to_date() -> Groups:
        return iterative_feature_merging(model, beta=1.0, max_ratio=0.5, example_input=x).groups["0"]

    kept_up_to_date()
    naive, expected = seconds(lambda: anew(model, 256))
    own, groups = min((seconds(kept_up_to_date) for _ in range(3)), key=lambda pair: pair[0])
    assert groups == expected
    amounts(
        "merge 512 channels between two 3×3 convolutions into 256",
        {"all inner products anew": 1e3 * naive, "iterative_feature_merging": 1e3 * own},
        baseline="all inner products anew",
        targets={"iterative_feature_merging": 0.05},
        unit="ms",
    )


if __name__ == "__main__":
    main()
