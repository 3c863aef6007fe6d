"""SPD operations against pyriemann (and geomstats, geoopt), to 1e-8."""

import numpy as np
import pytest
import torch
from torch import Tensor

from netwright.layers.spd import (
    airm_distance,
    airm_geodesic,
    airm_mean,
    bw_distance,
    bw_exp,
    bw_geodesic,
    bw_log,
    bw_mean,
    lyapunov,
    spd_log,
    sym_exp,
)
from netwright.training.riemannian import MixedRiemannianSGD

pytestmark = pytest.mark.filterwarnings("ignore")


def matrices(number: int, n: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(number, n, 2 * n, dtype=torch.float64, generator=generator)
    return a @ a.mT / n


def close(mine: Tensor, theirs: object) -> None:
    torch.testing.assert_close(mine, torch.as_tensor(np.asarray(theirs)), rtol=1e-8, atol=1e-8)


def test_distances_means_and_geodesics_of_pyriemann() -> None:
    distance = pytest.importorskip("pyriemann.utils.distance", reason="pyriemann is not installed")
    from pyriemann.utils.geodesic import geodesic_riemann, geodesic_wasserstein
    from pyriemann.utils.mean import mean_logeuclid, mean_riemann, mean_wasserstein

    x, y = matrices(4), matrices(4, seed=1)
    for k in range(4):
        close(bw_distance(x[k], y[k]), distance.distance_wasserstein(x[k].numpy(), y[k].numpy()))
        close(airm_distance(x[k], y[k]), distance.distance_riemann(x[k].numpy(), y[k].numpy()))
        close(airm_geodesic(x[k], y[k], 0.3), geodesic_riemann(x[k].numpy(), y[k].numpy(), 0.3))
        close(bw_geodesic(x[k], y[k], 0.3), geodesic_wasserstein(x[k].numpy(), y[k].numpy(), 0.3))
    close(bw_mean(x), mean_wasserstein(x.numpy(), tol=1e-12, maxiter=200))
    close(airm_mean(x), mean_riemann(x.numpy(), tol=1e-12, maxiter=200))
    close(sym_exp(spd_log(x).mean(0)), mean_logeuclid(x.numpy()))


def test_metric_of_geomstats() -> None:
    reason = "geomstats is not installed, or not made for this NumPy"
    theirs = pytest.importorskip("geomstats.geometry.spd_matrices", reason=reason, exc_type=ImportError)
    metric = theirs.SPDBuresWassersteinMetric(theirs.SPDMatrices(6, equip=False))
    x, y = matrices(3), matrices(3, seed=1)
    close(bw_distance(x, y), metric.dist(x.numpy(), y.numpy()))
    log = bw_log(x, y)
    close(log, metric.log(y.numpy(), x.numpy()))
    close(bw_exp(x, log / 2), metric.exp((log / 2).numpy(), x.numpy()))
    squared = (lyapunov(x, log) @ x @ lyapunov(x, log)).diagonal(dim1=-2, dim2=-1).sum(-1)
    close(squared, metric.inner_product(log.numpy(), log.numpy(), x.numpy()))


def test_geometry_of_geoopt() -> None:
    geoopt = pytest.importorskip("geoopt", reason="geoopt is not installed")
    x, y = matrices(3), matrices(3, seed=1)
    spd = geoopt.manifolds.SymmetricPositiveDefinite("AIM")
    close(airm_distance(x, y), spd.dist(x, y))
    # one step of descent: the same gradient and the same exponential map
    gradient = matrices(1, seed=2)[0] - matrices(1, seed=3)[0]
    point = torch.nn.Parameter(x[0].clone())
    optimizer = MixedRiemannianSGD([{"params": [point], "manifold": "spd"}], lr=0.01)
    point.grad = gradient
    optimizer.step()
    close(point.detach(), spd.expmap(x[0], -0.01 * spd.egrad2rgrad(x[0], gradient)))
    q, _ = torch.linalg.qr(torch.randn(6, 3, dtype=torch.float64))
    stiefel = geoopt.manifolds.CanonicalStiefel()
    weight = torch.nn.Parameter(q.clone())
    optimizer = MixedRiemannianSGD([{"params": [weight], "manifold": "stiefel"}], lr=1e-6)
    weight.grad = gradient[:, :3].clone()
    optimizer.step()
    # another retraction, so that only the first order is the same
    direction = (weight.detach() - q) / -1e-6
    torch.testing.assert_close(direction, stiefel.egrad2rgrad(q, gradient[:, :3]), rtol=1e-4, atol=1e-4)
