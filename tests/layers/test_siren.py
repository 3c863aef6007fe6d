"""Tests of ``netwright.layers.siren``."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from netwright.cost import count_params
from netwright.layers.siren import Sine, SirenLayer, SirenNet, siren_init_

DOUBLE = torch.float64


def test_is_the_formula() -> None:
    net = SirenNet(2, 5, 3, num_layers=2, w0=2.0, w0_initial=7.0)
    first, second = (layer.linear for layer in net.layers)
    x = torch.randn(4, 6, 2)
    hidden = torch.sin(7.0 * (x @ first.weight.T + first.bias))
    hidden = torch.sin(2.0 * (hidden @ second.weight.T + second.bias))
    torch.testing.assert_close(net(x), hidden @ net.readout.weight.T + net.readout.bias)


@pytest.mark.parametrize(("first", "w0", "bound"), [(True, 30.0, 1 / 16), (False, 1.0, 0.612), (False, 30.0, 0.0204)])
def test_first_weights(first: bool, w0: float, bound: float) -> None:
    linear = siren_init_(nn.Linear(16, 4000), w0, first=first)
    for parameter in (linear.weight, linear.bias):
        assert parameter.abs().max() <= bound * 1.001
        assert parameter.abs().max() > 0.99 * bound
        assert parameter.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    without = siren_init_(nn.Linear(16, 8, bias=False))
    assert without.bias is None


@pytest.mark.parametrize("w0", [1.0, 30.0])
def test_the_spread_does_not_change_with_depth(w0: float) -> None:
    """Theorem 1.8: before each sine standard normal, behind it arcsine distributed with variance 1/2."""
    x = torch.rand(2000, 1) * 2 - 1
    net = SirenNet(1, 256, 1, num_layers=8, w0=w0, w0_initial=30)
    for depth, layer in enumerate(net.layers):
        before = layer.activation.w0 * layer.linear(x)
        x = layer(x)
        if depth >= 2:
            assert before.std().item() == pytest.approx(1, abs=0.12)
            assert x.var().item() == pytest.approx(0.5, abs=0.1)


def test_dropout_is_before_the_sine_and_only_in_training() -> None:
    layer = SirenLayer(3, 200, dropout=0.4)
    x = torch.randn(50, 3)
    share = (layer(x) == 0).float().mean().item()  # sin(0) = 0
    assert share == pytest.approx(0.4, abs=0.03)
    layer.eval()
    torch.testing.assert_close(layer(x), torch.sin(layer.linear(x)))


def test_fits_a_picture_that_relu_blurs() -> None:
    """A wave of 4 periods, which a ReLU network of the same size does not get in so few steps."""
    x = torch.linspace(-1, 1, 64)[:, None]
    wave = torch.sin(4 * math.pi * x)
    losses = []
    relu = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    for net in (SirenNet(1, 32, 1, num_layers=2), relu):
        optimizer = torch.optim.Adam(net.parameters(), 1e-3)
        for _ in range(120):
            loss = (net(x) - wave).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1e-2 < 0.1 < losses[1]


def test_gradients_of_any_order() -> None:
    net = SirenNet(2, 4, 1, num_layers=2, w0_initial=3.0, dtype=DOUBLE)
    x = torch.randn(3, 2, dtype=DOUBLE, requires_grad=True)
    assert torch.autograd.gradcheck(net, x)
    assert torch.autograd.gradgradcheck(net, x)


def test_runs_wherever_torch_runs(tmp_path: Path) -> None:
    net = SirenNet(2, 8, 3)
    x = torch.randn(5, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.parameters())
    assert count_params(SirenNet(100, 64, 1, device="meta")) == 10_689
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x), net(x))
    save_model(net, str(tmp_path / "net.safetensors"))
    other = SirenNet(2, 8, 3)
    load_model(other, str(tmp_path / "net.safetensors"))
    assert torch.equal(other(x), net(x))


def test_what_does_not_work() -> None:
    for name, sizes in {"in_features": (0, 4, 1), "hidden": (2, 0, 1), "out_features": (2, 4, 0)}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            SirenNet(*sizes)
    with pytest.raises(ValueError, match="num_layers must be at least 1, got 0"):
        SirenNet(2, 8, 3, num_layers=0)
    for w0 in (0.0, -1.0, math.inf):
        with pytest.raises(ValueError, match="w0 must be positive"):
            Sine(w0)
        with pytest.raises(ValueError, match="w0 must be positive"):
            SirenNet(2, 8, 3, w0_initial=w0)
