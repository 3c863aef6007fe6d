"""Tests of ``netwright.models.vision.convit``."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.layers.attention import Attention
from netwright.layers.gpsa import GPSA
from netwright.models.vision.convit import ConViT, convit


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("tiny", 5_710_512),
        ("small", 27_777_322),
        ("base", 86_540_040),
        ("tiny+", 9_972_912),
        ("small+", 48_979_882),
        ("base+", 153_134_856),
    ],
)
def test_published_counts(size: str, count: int) -> None:
    with torch.device("meta"):
        model = convit(size)
    assert count_params(model) == count
    kinds = [type(m) for m in model.modules() if isinstance(m, GPSA | Attention)]
    assert kinds == [GPSA] * 10 + [Attention] * 2


def small(**options: int) -> ConViT:
    return ConViT(8, 2, 1, 10, dim=16, depth=3, num_heads=4, **{"gpsa_layers": 2, **options})


def test_layers_start_local_in_spite_of_the_general_initialisation() -> None:
    for layer in small().attentions():
        assert torch.equal(layer.v.weight, torch.eye(16))
        assert layer.position_weight[:, 2].tolist() == [-1.0] * 4


def test_the_class_token_sees_the_picture_only_in_the_last_blocks() -> None:
    model = small()
    tokens = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: tokens.append(inputs[0].shape[1]))
    model(torch.randn(2, 1, 8, 8))
    assert tokens == [16, 16, 17]
    alone = small(gpsa_layers=3)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(alone(x), alone(-x))  # nothing follows that could tell the class token
    assert not torch.equal(model(x), model(-x))


def test_nonlocality_of_every_layer() -> None:
    model = small().eval()
    distances = model.nonlocality(torch.randn(3, 1, 8, 8))
    assert distances.shape == (2, 4)
    nn.init.constant_(model.attentions()[1].gate, -40.0)
    nn.init.constant_(model.attentions()[0].gate, 40.0)
    near, far = model.nonlocality(torch.randn(3, 1, 8, 8)).mean(1).tolist()
    assert near < far


def test_trains_and_keeps_its_result(tmp_path) -> None:
    model = small()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    other = small()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(other(x), model(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="pictures must be 8×8, got 8×10"):
        small()(torch.zeros(1, 1, 8, 10))
    with pytest.raises(ValueError, match="input must have shape"):
        small()(torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match=r"gpsa_layers must be in \[0, 3\], got 4"):
        small(gpsa_layers=4)
    with pytest.raises(ValueError, match="unknown size of ConViT 'tini'; did you mean 'tiny'"):
        convit("tini")
