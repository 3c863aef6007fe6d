"""Tests of ``netwright.models.vision.classic``."""

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.models.vision.classic import MLP, conv_n, lenet_5, lenet_300_100, vgg_bn


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lenet_300_100, 266_610),
        (lenet_5, 61_706),
        (lambda: conv_n(2), 4_301_642),
        (lambda: conv_n(4), 2_425_930),
        (lambda: conv_n(6), 2_262_602),
        (lambda: vgg_bn(16), 14_728_266),
        (lambda: vgg_bn(19), 20_040_522),
    ],
)
def test_published_counts(make: object, count: int) -> None:
    with torch.device("meta"):
        assert count_params(make()) == count


def test_conv_2_has_the_published_number_of_convolution_weights() -> None:
    convs = [m.weight.numel() for m in conv_n(2).modules() if isinstance(m, nn.Conv2d)]
    assert sum(convs) == 38_592


def test_shapes() -> None:
    assert conv_n(4, in_channels=1, image_size=16)(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    assert vgg_bn(11, 7).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert lenet_5()(torch.randn(2, 1, 28, 28)).shape == (2, 10)


def test_mlp_with_norm_and_activation_of_ones_own() -> None:
    model = MLP(6, (5, 4), 3, act=nn.Tanh, norm=nn.BatchNorm1d)
    kinds = [type(layer).__name__ for layer in model]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "Tanh", "Linear", "BatchNorm1d", "Tanh", "Linear"]


def test_a_slice_of_an_mlp_is_a_sequence() -> None:
    model = MLP(6, (5,), 3)
    assert [type(layer).__name__ for layer in model[1:3]] == ["Linear", "ReLU"]
    assert model[-1].out_features == 3


def test_what_is_not_known() -> None:
    with pytest.raises(ValueError, match="layers must be 2, 4 or 6, got 3"):
        conv_n(3)
    with pytest.raises(ValueError, match="depth must be one of 11, 13, 16, 19, got 12"):
        vgg_bn(12)
