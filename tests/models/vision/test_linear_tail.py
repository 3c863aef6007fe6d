"""Tests of ``netwright.models.vision.linear_tail``."""

import pytest
import torch

from netwright.analysis.collapse import metrics_by_depth, products
from netwright.checks import InputError
from netwright.cost import count_params
from netwright.models.vision.linear_tail import LinearTailMLP


@pytest.mark.parametrize(("width", "layers", "parameters"), [(512, 1, 2898954), (512, 3, 3423242), (2048, 1, 27324426)])
def test_published_sizes(width: int, layers: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count_params(LinearTailMLP(width=width, linear_layers=layers)) == parameters


def test_the_tail_is_linear_and_starts_orthogonal() -> None:
    model = LinearTailMLP(12, 8, relu_layers=2, linear_layers=3, num_classes=4, bias=False, norm=False)
    inputs = torch.randn(20, 3, 4)
    features = model.features(inputs)
    assert (features < 0).any()
    torch.testing.assert_close(model(inputs), features @ products(model.tail_weights)[0].T)
    for weight in model.tail_weights:
        torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)))
    assert len(metrics_by_depth(features, torch.arange(20) % 4, model.tail_weights)) == 3


def test_state_dict_and_autocast() -> None:
    model, again = (LinearTailMLP(12, 8, relu_layers=1, linear_layers=2, num_classes=4) for _ in range(2))
    again.load_state_dict(model.state_dict())
    inputs = torch.randn(6, 12)
    torch.testing.assert_close(model.eval()(inputs), again.eval()(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(inputs).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_bad_sizes() -> None:
    with pytest.raises(InputError, match=r"linear_layers must be at least 1, got 0"):
        LinearTailMLP(linear_layers=0)
    with pytest.raises(InputError, match=r"width must be at least 1, got 0"):
        LinearTailMLP(width=0)
