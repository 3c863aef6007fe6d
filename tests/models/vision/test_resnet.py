"""Tests of ``netwright.models.vision.resnet``."""

import pytest
import torch
from torch import nn

from netwright.cost import count_macs, count_params
from netwright.models.vision.resnet import Block, PadShortcut, ResNet, resnet_4stage, resnet_cifar


@pytest.mark.parametrize(
    ("depth", "shortcut", "width", "count"),
    [
        (20, "A", 16, 269_722),
        (32, "A", 16, 464_154),
        (44, "A", 16, 658_586),
        (56, "A", 16, 853_018),
        (110, "A", 16, 1_727_962),
        (20, "B", 16, 272_474),
        (20, "B", 8, 68_786),
        (20, "B", 24, 611_074),
    ],
)
def test_published_counts_for_cifar(depth: int, shortcut: str, width: int, count: int) -> None:
    with torch.device("meta"):
        model = resnet_cifar(depth, width, shortcut=shortcut)
    assert count_params(model) == count


@pytest.mark.parametrize(("depth", "count"), [(18, 11_173_962), (50, 23_520_842), (152, 58_156_618)])
def test_published_counts_of_four_stages(depth: int, count: int) -> None:
    with torch.device("meta"):
        model = resnet_4stage(depth)
    assert count_params(model) == count


def test_macs_of_resnet_20() -> None:
    with torch.device("meta"):
        macs = count_macs(resnet_cifar(20), torch.empty(1, 3, 32, 32))
    assert macs == 40_551_040  # the 41 million of the paper's kind of count


def test_the_pad_shortcut_is_a_strided_identity_between_zeros() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = PadShortcut(4, 10, stride=2)(x)
    torch.testing.assert_close(out[:, 3:7], x[:, :, ::2, ::2])
    assert out[:, :3].abs().sum() == out[:, 7:].abs().sum() == 0


def test_the_pooling_shortcut_is_a_mean_between_zeros() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = PadShortcut(4, 10, stride=2, pool=True)(x)
    torch.testing.assert_close(out[:, 3:7], (x[:, :, ::2] + x[:, :, 1::2]).unflatten(-1, (3, 2)).mean(-1) / 2)
    assert out[:, :3].abs().sum() == out[:, 7:].abs().sum() == 0
    assert PadShortcut(4, 4, stride=2, pool=True)(x[..., :5, :5]).shape == (2, 4, 3, 3)  # as a strided convolution


def test_single_blocks_have_a_shortcut_around_every_convolution() -> None:
    model = ResNet([2, 2], [4, 8], kind="single", shortcut="pool", act=nn.Hardtanh)
    blocks = [m for m in model.modules() if isinstance(m, Block)]
    assert [[type(m) for m in block.branch] for block in blocks] == [[nn.Conv2d, nn.BatchNorm2d]] * 4
    assert [type(block.act) for block in blocks] == [nn.Hardtanh] * 4
    assert [type(block.shortcut) for block in blocks] == [nn.Identity, nn.Identity, PadShortcut, nn.Identity]
    assert model(torch.randn(2, 3, 9, 9)).shape == (2, 10)


def test_a_block_with_a_dead_branch_is_its_shortcut() -> None:
    block = Block(4, 4).eval()
    nn.init.zeros_(block.branch[3].weight)
    x = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(block(x), x.relu())


def test_factories_make_every_part() -> None:
    made: list[str] = []

    def conv(i: int, o: int, k: int, stride: int = 1, padding: int = 0) -> nn.Module:
        made.append("conv")
        return nn.Conv2d(i, o, k, stride, padding)

    def norm_act(channels: int, act: bool) -> nn.Module:
        made.append(f"norm {act}")
        return nn.Identity()

    def attention(channels: int) -> nn.Module:
        made.append("attention")
        return nn.Identity()

    model = resnet_cifar(8, 4, shortcut="B", conv=conv, norm_act=norm_act, attention=attention)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert made.count("attention") == 3
    assert made.count("conv") == 1 + 3 * 2 + 2
    assert (made.count("norm True"), made.count("norm False")) == (1 + 3, 3 + 2)
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 10)


def test_bad_depths() -> None:
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .*got 10"):
        resnet_cifar(10)
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        resnet_4stage(20)
    with pytest.raises(ValueError, match="unknown shortcut 'C'"):
        resnet_cifar(8, shortcut="C")
    with pytest.raises(ValueError, match="unknown kind of block 'basics'; did you mean 'basic'"):
        resnet_cifar(8, kind="basics")
