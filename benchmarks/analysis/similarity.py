"""Correlations of units against pair by pair, the assignment of a wide layer, and sparse maps against the lasso."""

import time

import numpy as np
import torch
from sklearn.linear_model import Lasso

from benchmarks.timing import amounts, side_by_side
from netwright.analysis.convergent_learning import sparse_stitch
from netwright.analysis.similarity import match_units, unit_correlations, unit_moments


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a, b = torch.randn(2000, 256), torch.randn(2000, 256)
    rows_a, rows_b = a.T.contiguous().numpy(), b.T.contiguous().numpy()
    side_by_side(
        "correlations, 2,000 samples, 256 and 256 units",
        {
            "numpy, pair by pair": lambda: [np.corrcoef(x, y)[0, 1] for x in rows_a for y in rows_b],
            "unit_correlations": lambda: unit_correlations(a, b),
        },
        baseline="numpy, pair by pair",
        rounds=3,
        targets={"unit_correlations": 1 / 50},
    )
    similarity = torch.rand(4096, 4096)
    start = time.perf_counter()
    match_units(similarity)
    seconds = time.perf_counter() - start
    amounts(
        "matching 4,096 units to 4,096",
        {"a minute": 60.0, "match_units": seconds},
        baseline="a minute",
        targets={"match_units": 1.0},
        unit="s",
    )
    mixed = a @ torch.randn(256, 256) / 16 + 0.5 * b
    moments = unit_moments(a, mixed)
    x, y = ((u - u.mean(0)) / u.std(0, correction=0) for u in (a.double(), mixed.double()))
    side_by_side(
        "sparse maps from 256 to 256 units, penalty 0.1",
        {
            "scikit-learn's Lasso": lambda: Lasso(0.1, fit_intercept=False, tol=1e-8).fit(x.numpy(), y.numpy()),
            "sparse_stitch": lambda: sparse_stitch(moments, 0.1),
        },
        baseline="scikit-learn's Lasso",
        rounds=3,
    )


if __name__ == "__main__":
    main()
