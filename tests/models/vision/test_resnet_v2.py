"""Tests of ``netwright.models.vision.resnet_v2``."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.layers.evonorm import EvoNormS0
from netwright.models.vision.resnet_v2 import PreActBlock, ResNetV2, resnet_v2_50d, resnet_v2_cifar


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert count_params(resnet_v2_50d(norm_act=lambda channels, act: EvoNormS0(channels))) == 25_591_368
        assert count_params(resnet_v2_50d()) == 25_568_584
        assert resnet_v2_50d()(torch.empty(2, 3, 65, 65)).shape == (2, 1000)


def test_a_block_activates_before_it_convolves() -> None:
    block = PreActBlock(4, 4).eval()
    x = torch.randn(2, 4, 5, 5)
    nn.init.zeros_(block.branch[-1].weight)
    assert torch.equal(block(x), x)
    projecting = PreActBlock(4, 8, 2, project=True).eval()
    nn.init.zeros_(projecting.branch[-1].weight)
    torch.testing.assert_close(projecting(x), projecting.shortcut[0](projecting.norm_act(x)))


def test_a_pooling_shortcut_averages() -> None:
    block = PreActBlock(4, 4, 2, project=True, pool_shortcut=True, norm_act=lambda channels, act: nn.Identity())
    nn.init.zeros_(block.branch[-1].weight)
    nn.init.dirac_(block.shortcut[1].weight)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(block(x), nn.functional.avg_pool2d(x, 2))


@pytest.mark.parametrize("depth", [8, 20])
def test_depth_counts_convolutions_and_the_classifier(depth: int) -> None:
    model = resnet_v2_cifar(depth, 4)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth + 2  # two shortcuts
    acts = []
    resnet_v2_cifar(depth, 4, norm_act=lambda channels, act: acts.append(act) or nn.Identity())
    assert all(acts)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2.*got 9"):
        resnet_v2_cifar(9)
    with pytest.raises(ValueError, match=r"channels must be as many as stages \(2\), got 1"):
        ResNetV2((1, 1), (4,))
