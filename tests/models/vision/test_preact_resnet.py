"""Tests of ``netwright.models.vision.preact_resnet``."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from netwright.checks import InputError
from netwright.cost import count_params
from netwright.models.vision.preact_resnet import preact_resnet18


@pytest.mark.parametrize(
    ("width", "batch_norm", "count"), [(64, True, 11_171_146), (64, False, 11_164_362), (32, False, 2_792_810)]
)
def test_published_counts(width: int, batch_norm: bool, count: int) -> None:
    with torch.device("meta"):
        model = preact_resnet18(width, batch_norm=batch_norm)
        assert model(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert count_params(model) == count


def test_blocks_are_the_published_ones() -> None:
    """An unrolled forward pass: activations before convolutions, none after the last sum."""
    model, x = preact_resnet18(2, num_classes=3, batch_norm=False, in_channels=1).double(), torch.randn(2, 1, 32, 32)
    x = x.double()
    h = model.stem(x)
    for block in (block for stage in model.stages for block in stage):
        active = functional.relu(h)
        shortcut = h if block.shortcut is None else block.shortcut(active)
        h = block.branch[2](functional.relu(block.branch[0](active))) + shortcut
    expected = model.classifier(functional.avg_pool2d(h, 4).flatten(1))
    torch.testing.assert_close(model(x), expected)
    assert [sum(block.shortcut is not None for block in stage) for stage in model.stages] == [0, 1, 1, 1]


def test_normalisation_is_in_all_blocks_or_in_none() -> None:
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in preact_resnet18(2, batch_norm=on).modules()) for on in (1, 0)]
    assert norms == [16, 0]


@pytest.mark.parametrize("batch_norm", [True, False])
def test_trains_and_saves(batch_norm: bool) -> None:
    model = preact_resnet18(2, batch_norm=batch_norm)
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
    model.eval()
    again = preact_resnet18(2, batch_norm=batch_norm).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), model(x))


def test_traces_as_one_graph() -> None:
    model, x = preact_resnet18(2, batch_norm=False), torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="eager")(x), model(x))


def test_width_must_be_positive() -> None:
    with pytest.raises(InputError, match="width must be at least 1, got 0"):
        preact_resnet18(0)
