"""Tests of ``netwright.models.vision.phc``: the sizes of the authors' networks."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from netwright.cost import count_params
from netwright.layers.hypercomplex import PHConv2d, PHMLinear
from netwright.models.vision.classic import vgg_bn
from netwright.models.vision.phc import phc_resnet, phc_resnet_small, phc_vgg


@pytest.mark.parametrize(
    ("depth", "n", "channels", "width", "parameters"),
    [
        (18, 2, 4, "standard", 5_594_794),
        (18, 4, 4, "standard", 2_805_962),
        (18, 3, 3, "large", 3_635_914),
        (50, 4, 4, "large", 5_692_074),
        (152, 3, 3, "large", 17_775_463),
    ],
)
def test_published_counts_of_resnets(depth: int, n: int, channels: int, width: str, parameters: int) -> None:
    with torch.device("meta"):
        assert count_params(phc_resnet(depth, n, channels, width)) == parameters  # type: ignore[arg-type]


def test_a_fixed_algebra_has_no_parameters() -> None:
    with torch.device("meta"):
        learned, fixed = (
            phc_resnet_small(20, 4, 4, **options) for options in ({}, {"algebra": "quaternion", "learn_algebra": False})
        )
    layers = sum(isinstance(module, PHConv2d) for module in learned.modules())
    assert count_params(learned) - count_params(fixed) == 64 * layers


def test_vgg_is_the_real_one_with_hypercomplex_layers() -> None:
    """Each convolution has n³ + weights / n parameters, and so has each of the two hidden linear layers."""
    n = 4
    with torch.device("meta"):
        model = phc_vgg(16, n, 4, bias=False)
        real = vgg_bn(16, in_channels=4)
    convs = [module for module in real.modules() if isinstance(module, nn.Conv2d)]
    norms = sum(2 * module.num_features for module in real.modules() if isinstance(module, nn.BatchNorm2d))
    hidden = 2 * (n**3 + 512 * 512 // n + 512)
    expected = sum(n**3 + conv.weight.numel() // n for conv in convs) + norms + hidden + 512 * 10 + 10
    assert count_params(model) == expected
    assert not any(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sum(isinstance(module, PHMLinear) for module in model.modules()) == 2


def test_networks_run_and_learn() -> None:
    for model, channels in ((phc_resnet_small(8, 3, 3, "large"), 3), (phc_vgg(11, 2, 4), 4)):
        outputs = model(torch.randn(2, channels, 32, 32))
        assert outputs.shape == (2, 10)
        outputs.square().sum().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: phc_resnet(18, 3, 3), "out_channels must be divisible by n = 3, got 64"),
        (lambda: phc_resnet(18, 4, 3), "in_channels must be divisible by n = 4, got 3"),
        (lambda: phc_resnet(19), "depth must be one of 18, 34, 50, 101, 152, got 19"),
        (lambda: phc_resnet(18, width="wide"), "unknown width 'wide'"),  # type: ignore[arg-type]
        (lambda: phc_resnet_small(9), "depth must be 6k"),
        (lambda: phc_vgg(12), "depth must be one of 11, 13, 16, 19, got 12"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        make()
