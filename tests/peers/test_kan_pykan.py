"""B-spline layers against pykan's: the same grid and coefficients give the same outputs, also after a grid update."""

import pytest
import torch

from netwright.layers.kan import KANLayer

pykan = pytest.importorskip("kan.KANLayer", reason="pykan is not installed")


@pytest.mark.parametrize(("num", "order"), [(5, 3), (8, 2)])
def test_pykan_computes_the_same(num: int, order: int) -> None:
    theirs = pykan.KANLayer(in_dim=4, out_dim=3, num=num, k=order)
    mine = KANLayer(4, 3, num_basis=num + order, order=order)
    x = 2.5 * torch.rand(64, 4) - 1.25
    for _ in range(2):
        with torch.no_grad():
            mine.basis.knots.copy_(theirs.grid.t())
            mine.weight[..., :-1] = (theirs.coef * theirs.scale_sp.unsqueeze(-1)).transpose(0, 1)
            mine.weight[..., -1] = theirs.scale_base.t()
        torch.testing.assert_close(mine(x), theirs(x)[0], atol=1e-5, rtol=1e-5)
        theirs.update_grid_from_samples(x)
