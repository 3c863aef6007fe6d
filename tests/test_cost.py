"""Tests of ``netwright.cost``."""

import pytest
import torch
from torch import nn

from netwright import cost


def test_parameters_count_once_when_shared() -> None:
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    assert cost.count_params(nn.Sequential(a, b)) == 16 + 4 + 4
    a.bias.requires_grad_(False)
    assert cost.count_params(a, trainable_only=True) == 16


def test_nonzero_parameters() -> None:
    layer = nn.Linear(4, 4)
    nn.init.zeros_(layer.bias)
    assert cost.count_nonzero(layer) == 16


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_macs_of_a_convolution(device: str) -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, device=device)
    assert cost.count_macs(conv, torch.empty(2, 3, 10, 10, device=device)) == 2 * 100 * 8 * 3 * 9


def test_macs_on_meta_leave_the_model_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 6))
    assert cost.count_macs_of_shape(model, (7, 4)) == 7 * (20 + 30)
    assert model.training
    assert model[0].weight.device.type == "cpu"


def test_saved_bytes_are_those_of_the_activations() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    # the ReLU keeps its result for itself, and the second layer keeps the same tensor as its input
    assert cost.saved_bytes(model, torch.randn(3, 10)) == 3 * 20 * 4
    # sin keeps its input: two tensors for two of them, but the first is the caller's
    x = torch.randn(100, requires_grad=True)
    assert cost.saved_bytes(lambda t: t.sin().sin(), x) == 400


def test_peak_memory_of_a_chain_of_sines() -> None:
    class Sines(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))
            self.depth = depth

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            x = input * self.scale
            for _ in range(self.depth):
                x = x.sin()
            return x

    x = torch.randn(1000)
    shallow, deep = (cost.peak_memory(Sines(depth), torch.sum, x) for depth in (10, 30))
    assert deep - shallow == 20 * 4000
    assert cost.peak_memory(Sines(10), torch.sum, x) == shallow


def test_latency_is_positive_and_keeps_the_mode() -> None:
    model = nn.Dropout()
    assert cost.latency(model, torch.randn(3), repeats=2) > 0
    assert model.training
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        cost.latency(model, torch.randn(3), repeats=0)
