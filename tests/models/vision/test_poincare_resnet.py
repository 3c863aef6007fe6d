"""Tests of ``netwright.models.vision.poincare_resnet``."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional

from netwright.cost import count_params, saved_bytes
from netwright.layers.hyperbolic import PoincareBall
from netwright.models.vision.poincare_resnet import PoincareResNet, euclidean_twin


@pytest.mark.parametrize(
    ("channels", "depth", "classes", "parameters"),
    [((8, 16, 32), 20, 10, 68_757), ((4, 8, 16), 32, 100, 31_391), ((16, 32, 64), 32, 10, 466_841)],
)
def test_published_counts(channels: tuple[int, ...], depth: int, classes: int, parameters: int) -> None:
    with torch.device("meta"):
        model = PoincareResNet(classes, channels, depth)
        assert count_params(model) == parameters
        twin = euclidean_twin(classes, channels, depth)
    # torch's batch normalisation has 2C parameters, the ball's C + 1
    norms = [len(module.running_mean) for module in model.modules() if hasattr(module, "running_mean")]
    assert count_params(twin) - parameters == sum(width - 1 for width in norms)


def test_shapes_on_meta() -> None:
    with torch.device("meta"):
        x = torch.empty(2, 3, 15, 17)
        assert PoincareResNet(7, depth=8)(x).shape == euclidean_twin(7, depth=8)(x).shape == (2, 7)


def test_one_ball_and_no_parameter_on_it() -> None:
    model = PoincareResNet(10, depth=8, learnable=True)
    balls = {id(module) for module in model.modules() if isinstance(module, PoincareBall)}
    assert len(balls) == 1
    assert len([name for name, _ in model.named_parameters() if "raw_c" in name]) == 1


def test_trains_with_any_optimiser_and_round_trips(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PoincareResNet(3, (4, 6, 8), depth=8, in_channels=1, learnable=True)
    x = torch.randn(24, 1, 8, 8)
    y = torch.arange(24) % 3
    x[y == 1, :, :4] += 2
    x[y == 2, :, :, 4:] += 2
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(24):
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    model.eval()
    assert (model(x).argmax(1) == y).float().mean() > 0.8  # with the running midpoints
    torch.testing.assert_close(model(x[:2]), model(x)[:2], rtol=1e-4, atol=1e-4)
    save_model(model, str(tmp_path / "model.safetensors"))
    again = PoincareResNet(3, (4, 6, 8), depth=8, in_channels=1, learnable=True)
    load_model(again, str(tmp_path / "model.safetensors"))
    torch.testing.assert_close(again.eval()(x), model(x))


def test_written_backward_is_that_of_autograd_with_less_memory() -> None:
    results, kept = [], []
    for backward in ("written", "autograd"):
        torch.manual_seed(0)
        model = PoincareResNet(10, depth=8, init="normal", backward=backward).double()  # type: ignore[arg-type]
        x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
        loss = model(x).square().sum()
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        kept.append(saved_bytes(model, x))
    torch.testing.assert_close(results[0], results[1])
    assert kept[0] < 0.6 * kept[1]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="c must be positive"):
        PoincareResNet(c=0)
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2"):
        PoincareResNet(depth=10)
    with pytest.raises(ValueError, match="channels must be three numbers, one a stage"):
        PoincareResNet(channels=(8, 16))
    with pytest.raises(ValueError, match="classes must be at least 1"):
        PoincareResNet(0)
