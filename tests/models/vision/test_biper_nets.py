"""Tests of ``netwright.models.vision.biper_nets``: published sizes and the rules of the authors' networks."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.layers.biper import BiPerConv2d, biper_layers
from netwright.models.vision.biper_nets import biper_resnet18, biper_resnet20, biper_vgg_small
from netwright.models.vision.resnet import Block, PadShortcut, ResNet, conv

NETWORKS = {  # parameters and binary weights; of the released networks, without what these do not train
    biper_resnet18: (11_005_002, 10_985_472, 16),
    biper_resnet20: (270_522, 267_264, 18),
    biper_vgg_small: (4_661_770, 4_571_136, 5),
}


@pytest.mark.parametrize("make", NETWORKS)
def test_sizes_and_what_stays_real(make: type[nn.Module]) -> None:
    parameters, binary, number = NETWORKS[make]
    with torch.device("meta"):
        model = make()
    layers = biper_layers(model).values()
    assert count_params(model) == parameters
    assert sum(layer.weight.numel() for layer in layers) == binary
    assert len(layers) == number
    real = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert [type(m) for m in real] == [nn.Conv2d, nn.Linear]
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
    assert {(layer.freq, layer.stage, layer.bias) for layer in layers} == {(20.0, 1, None)}
    assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    with torch.device("meta"):
        other = make(100, 30.0, stage=2)
    assert {(layer.freq, layer.stage) for layer in biper_layers(other).values()} == {(30.0, 2)}
    assert other(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 100)


def test_shortcuts() -> None:
    with torch.device("meta"):
        deep, small = biper_resnet18(), biper_resnet20()
    for model, blocks, convolutions in ((deep, 8, 2), (small, 18, 1)):
        found = [m for m in model.modules() if isinstance(m, Block)]
        assert len(found) == blocks
        assert {sum(isinstance(m, BiPerConv2d) for m in block.modules()) for block in found} == {convolutions}
        changing = [block.shortcut for block in found if not isinstance(block.shortcut, nn.Identity)]
        assert all(isinstance(shortcut, PadShortcut) and shortcut.pool for shortcut in changing)
        assert [type(m) for m in model.classifier] == [nn.BatchNorm1d, nn.Linear]  # type: ignore[arg-type]
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 4, 4, 4)
    pooled = small.stages[1][0].shortcut.cpu()(x)  # type: ignore[index,operator]
    assert pooled.shape[-1] == 2
    assert pooled[0, 8].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert not pooled[0, :8].any()


def test_initial_weights_are_kaimings() -> None:
    model, vgg = biper_resnet20(), biper_vgg_small(image_size=8)
    assert model.stages[0][2].branch[0].weight.std().item() == pytest.approx((2 / 144) ** 0.5, rel=0.05)  # type: ignore[union-attr,index]
    widest = list(biper_layers(vgg).values())[1]  # 128 to 256 channels: the fan-out is twice the fan-in
    assert widest.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)


def test_other_pictures_and_convolutions() -> None:
    model = biper_resnet20(in_channels=1, depth=8, width=4, conv=conv)
    assert isinstance(model, ResNet)
    assert not any(isinstance(m, BiPerConv2d) for m in model.modules())
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert biper_resnet18(in_channels=1, conv=conv)(torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)).shape == (2, 10)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="depth must be 6n"):
        biper_resnet20(depth=10)
    with pytest.raises(ValueError, match="image_size must be divisible by the three poolings = 8, got 30"):
        biper_vgg_small(image_size=30)
    with pytest.raises(ValueError, match="freq must be positive"):
        biper_resnet20(freq=0)
