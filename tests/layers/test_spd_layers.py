"""Tests of ``netwright.layers.spd_layers``."""

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.autograd import gradcheck

from netwright.layers.spd import spd_log
from netwright.layers.spd_layers import BiMap, CovPool, LogEig, ReEig


def test_covariance_is_that_of_torch() -> None:
    x = torch.randn(3, 4, 5, 6)
    found = CovPool(eps=0.1)(x)
    assert found.dtype == torch.float64
    for one, sample in zip(found, x, strict=True):
        torch.testing.assert_close(one[0], sample.double().flatten(1).cov() + 0.1 * torch.eye(4, dtype=torch.float64))


def test_covariance_of_fewer_positions_than_channels_is_positive_definite() -> None:
    values = torch.linalg.eigvalsh(CovPool(eps=1e-3)(torch.randn(2, 10, 4)))
    torch.testing.assert_close(values[..., :7], torch.full((2, 1, 7), 1e-3, dtype=torch.float64))


@pytest.mark.parametrize("free", [False, True])
def test_bimap_is_a_congruence_by_orthonormal_columns_summed_over_channels(free: bool) -> None:
    layer = BiMap(5, 3, in_channels=2, out_channels=4, free=free)
    if free:
        nn.init.normal_(layer.weight)
    weight = layer.orthonormal()
    torch.testing.assert_close(weight.mT @ weight, torch.eye(3, dtype=torch.float64).expand(4, 2, 3, 3))
    x = CovPool()(torch.randn(6, 5, 20)).expand(-1, 2, -1, -1) * torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    y = layer(x)
    expected = sum(weight[3, i].mT @ x[5, i] @ weight[3, i] for i in range(2))
    torch.testing.assert_close(y[5, 3], expected)
    assert torch.linalg.eigvalsh(y).min() > 0


def test_free_weight_gives_the_nearest_orthonormal_matrix() -> None:
    layer = BiMap(6, 4, free=True)
    before = layer.orthonormal().clone()
    torch.testing.assert_close(before, layer.weight)  # it starts orthonormal
    with torch.no_grad():
        layer.weight.add_(torch.randn_like(layer.weight))
    u, _, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    torch.testing.assert_close(layer.orthonormal(), u @ v)


def test_rectification_and_logarithm() -> None:
    x = torch.diag(torch.tensor([4.0, 1e-9, -1.0], dtype=torch.float64)).expand(2, 1, 3, 3)
    rectified = ReEig(1e-3)(x)
    torch.testing.assert_close(rectified[0, 0], torch.diag(torch.tensor([4.0, 1e-3, 1e-3], dtype=torch.float64)))
    torch.testing.assert_close(LogEig()(rectified), spd_log(rectified))


def test_gradients_state_and_types() -> None:
    layers = nn.Sequential(BiMap(4, 3, free=True), ReEig(0.3), LogEig())
    x = CovPool()(torch.randn(2, 4, 9, dtype=torch.float64)).requires_grad_()
    assert gradcheck(layers, x)
    assert gradcheck(lambda weight: torch.func.functional_call(layers, {"0.weight": weight}, x), layers[0].weight)
    other = nn.Sequential(BiMap(4, 3, free=True), ReEig(0.3), LogEig())
    other.load_state_dict(load(save(layers.state_dict())))
    assert torch.equal(other(x), layers(x))
    half = layers.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = half(x)
        out.sum().backward()
    assert out.dtype == torch.float64
    assert half[0].weight.grad.dtype == torch.float32
    compiled = torch.compile(layers, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layers(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"n_out must be in \[1, 3\], got 4"):
        BiMap(3, 4)
    with pytest.raises(ValueError, match=r"input must be matrices \(…, 3, 3\), got shape \(1, 1, 4, 4\)"):
        BiMap(3, 2)(torch.eye(4).view(1, 1, 4, 4))
    with pytest.raises(ValueError, match="dimension 1 of input must have size 1"):
        BiMap(3, 2)(torch.eye(3).expand(1, 2, 3, 3))
    with pytest.raises(ValueError, match="at least 2 positions"):
        CovPool()(torch.ones(2, 3, 1))
    with pytest.raises(ValueError, match="eps must be positive"):
        ReEig(0)
    with pytest.raises(ValueError, match=r"got an eigenvalue of -2"):
        LogEig()(-2 * torch.eye(2).view(1, 1, 2, 2))
    with pytest.raises(ValueError, match="symmetric"):
        ReEig()(torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
