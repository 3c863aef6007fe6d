"""``netwright.layers.liegroups`` against SciPy."""

import math

import numpy as np
import pytest
import torch

from netwright.layers.liegroups import SL, SO, GLPlus, SPDManifold

DOUBLE = torch.float64
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("group", [SL(2, covariance=1.0, rotations="haar"), GLPlus(2, covariance=1.0)])
def test_charts_against_scipy(group: GLPlus) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    g = group.sample_pair(25, torch.Generator().manual_seed(0), dtype=DOUBLE).g
    p, r = group.polar(g)
    coordinates = group.xi_inv(g)
    for index, matrix in enumerate(g.numpy()):
        rotation, positive = linalg.polar(matrix, side="left")
        np.testing.assert_allclose(p[index], positive, atol=1e-12)
        np.testing.assert_allclose(r[index], rotation, atol=1e-12)
        if abs(coordinates[index, -1]) < math.sqrt(2) * (math.pi - 1e-6):
            algebra = linalg.logm(positive) + linalg.logm(rotation)
            np.testing.assert_allclose(group.hat(coordinates[index]), algebra.real, atol=1e-9)


@pytest.mark.parametrize("manifold", [SO(3), SPDManifold(3), SPDManifold(2, traceless=True), GLPlus(3), SL(2)])
def test_exponentials_against_scipy(manifold: SO | SPDManifold | GLPlus) -> None:
    linalg = pytest.importorskip("scipy.linalg")
    v = torch.randn(6, manifold.dim, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for x, g in zip(manifold.hat(v), manifold.expm(v), strict=True):
        np.testing.assert_allclose(g, linalg.expm(x.numpy()), rtol=1e-10, atol=1e-12)
