"""Tests of ``netwright.models.vision.mbconv``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from netwright.cost import count_macs, count_params
from netwright.models.vision.mbconv import (
    DepthwiseSeparable,
    MBConv,
    MobileNet,
    SqueezeExcite,
    Stage,
    efficientnet_b0,
    make_divisible,
    mobilenet_small,
    mobilenet_v2,
)


@pytest.mark.parametrize(
    ("make", "parameters", "macs"),
    [(mobilenet_v2, 3_504_872, 300_774_272), (efficientnet_b0, 5_288_548, 385_814_752)],
)
def test_published_sizes(make: object, parameters: int, macs: int) -> None:
    """Published: 3.5 M and 300 M; 5.3 M and 0.39 G."""
    with torch.device("meta"):
        model = make()
        assert count_params(model) == parameters
        assert count_macs(model, torch.empty(1, 3, 224, 224)) == macs


def test_a_narrower_mobilenet_keeps_its_head() -> None:
    with torch.device("meta"):
        model = mobilenet_v2(0.5)
    assert count_params(model) == 1_968_680
    assert model.classifier.in_features == 1280


@given(channels=st.floats(1, 2000), divisor=st.integers(1, 32))
def test_rounded_channels_are_near_and_divisible(channels: float, divisor: int) -> None:
    rounded = make_divisible(channels, divisor)
    assert rounded % divisor == 0
    assert rounded >= 0.9 * channels
    assert rounded <= channels + divisor


def test_squeeze_excite_is_a_gate_from_the_means() -> None:
    layer = SqueezeExcite(6, 3)
    x = torch.randn(2, 6, 4, 4)
    hidden = nn.functional.silu(x.mean((2, 3)) @ layer.reduce.weight[:, :, 0, 0].T + layer.reduce.bias)
    gate = torch.sigmoid(hidden @ layer.expand.weight[:, :, 0, 0].T + layer.expand.bias)
    torch.testing.assert_close(layer(x), x * gate[:, :, None, None])


def test_the_shortcut_is_there_where_shapes_allow() -> None:
    x = torch.randn(2, 8, 4, 4)
    block = MBConv(8, 8).eval()
    torch.testing.assert_close(block(x), x + block.branch(x))
    for other in (MBConv(8, 16), MBConv(8, 8, stride=2)):
        other.eval()
        torch.testing.assert_close(other(x), other.branch(x))


def test_a_block_without_expansion_is_depthwise_separable() -> None:
    x = torch.randn(2, 8, 4, 4)
    torch.manual_seed(0)
    block = MBConv(8, 16, 5, 1, 1, 0.25)
    torch.manual_seed(0)
    separable = DepthwiseSeparable(8, 16, 5, 1, 0.25)
    torch.testing.assert_close(separable(x), block(x))
    assert [m.groups for m in separable.branch if isinstance(m, nn.Conv2d)] == [8, 1]


def test_the_excitation_is_narrow_relative_to_the_input_of_the_block() -> None:
    block = MBConv(16, 16, expand_ratio=6, se_ratio=0.25)
    (excite,) = [m for m in block.branch if isinstance(m, SqueezeExcite)]
    assert (excite.reduce.in_channels, excite.reduce.out_channels) == (96, 4)


def test_dropped_paths_leave_the_input_and_rise_with_depth() -> None:
    block = MBConv(8, 8, drop_path=0.999).train()
    x = torch.randn(16, 8, 4, 4)
    assert torch.equal(block(x), x)
    stages = (Stage(4, 3, 1, 2, 8),)
    rates = [
        getattr(block.drop_path, "rate", 0.0)
        for block in MobileNet(stages, stem_channels=8, drop_path_rate=0.2).stages[0]
    ]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15])


def test_factories_make_every_layer() -> None:
    model = mobilenet_small(se_ratio=0.25, norm_act=lambda channels, act: nn.Identity())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert model.features(torch.randn(2, 3, 8, 8)).shape == (2, 64)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        MBConv(8, 8, 4)
    with pytest.raises(ValueError, match=r"expand_ratio must be at least 1, got 0.5"):
        MBConv(8, 8, expand_ratio=0.5)
    with pytest.raises(ValueError, match="se_ratio must be at least 0"):
        MBConv(8, 8, se_ratio=-1)
    with pytest.raises(ValueError, match="channels must be positive, got 0"):
        make_divisible(0)
    with pytest.raises(ValueError, match="width must be positive"):
        mobilenet_v2(0)
