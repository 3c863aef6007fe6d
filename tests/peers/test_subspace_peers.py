"""The sparse projection against scikit-learn's very sparse random projection, which the official code uses."""

import math

import pytest
import torch

from netwright.training._projections import make_projection

random_projection = pytest.importorskip("sklearn.random_projection")


def test_density_is_that_of_sklearn() -> None:
    size, dim = 10_000, 60
    theirs = random_projection.SparseRandomProjection(dim, random_state=0).fit(torch.zeros(1, size).numpy())
    ours = make_projection("sparse", dim, [size], 0, torch.device("cpu"), torch.float32)
    assert theirs.density_ == pytest.approx(1 / math.sqrt(size))
    drawn = len(ours.rows)
    assert abs(drawn - theirs.components_.nnz) < 6 * math.sqrt(drawn)
    assert len(set(abs(theirs.components_.data).round(9))) == 1  # its entries, too, differ by their sign alone
