"""Tests of ``netwright.models.vision.lie_resnet``."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor

from netwright.cost import count_params
from netwright.layers.liegroups import SL, SO, GLPlus, LieGroup
from netwright.models.vision.lie_resnet import LieResNet

GROUPS: list[LieGroup] = [SO(2), SL(2), GLPlus(2)]


def small(group: LieGroup | None = None, **options: object) -> LieResNet:
    return LieResNet(group, 4, 3, hidden=8, head=16, **options)  # type: ignore[arg-type]


def test_published_counts() -> None:
    with torch.device("meta"):
        network = LieResNet(SL(2))
        assert count_params(network) == 339_102
        assert count_params(network.lift) == 9_940
        assert [count_params(part) for part in (network.blocks[0].conv1, network.blocks[0].conv2, network.conv)] == [
            105_280
        ] * 3
        assert count_params(network.head) == 13_322
        assert count_params(LieResNet(GLPlus(2))) == 339_102 + 3 * 60


@pytest.mark.parametrize("group", [None, *GROUPS], ids=["plain", "SO", "SL", "GL+"])
def test_layout(group: LieGroup | None) -> None:
    """Sizes of the maps: 5×5 without padding, blocks that keep and pooling that halves, 5×5 without padding."""
    network = LieResNet(group, 4, 3, blocks=2, hidden=8, head=16)
    sizes = []
    for part in (network.lift, network.blocks[0], network.blocks[1], network.conv):
        part.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape)))
    network(torch.randn(2, 1, 28, 28)).sum().backward()
    n = 1 if group is None else 4
    assert sizes == [(2, 3, n, 24, 24), (2, 3, n, 24, 24), (2, 3, n, 12, 12), (2, 3, n, 2, 2)]
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_quarter_turns_change_nothing_with_four_rotations() -> None:
    """The samples are a group of their own, over which the largest value is taken; without a group they do."""
    x = torch.randn(2, 1, 20, 20, dtype=torch.float64)
    for group, invariant in ((SO(2), True), (None, False)):
        network = small(group, dtype=torch.float64).eval()
        assert torch.allclose(network(x.rot90(1, (-2, -1))), network(x)) is invariant


def test_samples_are_drawn_in_every_pass_unless_they_are_fixed() -> None:
    network, x = small(SL(2)).eval(), torch.randn(1, 1, 20, 20)
    assert not torch.allclose(network(x), network(x))
    network.redraw = False
    network.resample(torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = network(x)
        kernel = network.conv._kept._kept[2]  # type: ignore[index, union-attr]
        assert torch.equal(network(x), first)
        assert network.conv._kept._kept[2] is kernel  # type: ignore[index, union-attr]
        network.resample(torch.Generator().manual_seed(1))
        assert not torch.allclose(network(x), first)
        network.resample(torch.Generator().manual_seed(0))
        torch.testing.assert_close(network(x), first)
    first_samples, last_samples = network.samples()
    assert not torch.equal(first_samples.g, last_samples.g)
    network.redraw, network.num_samples = True, 7
    assert network.samples()[0].g.shape == (7, 2, 2)
    assert network(x).shape == (1, 10)


def test_the_last_convolution_relates_its_samples_to_those_of_the_layer_before() -> None:
    network = small(SL(2), redraw=False).eval()
    seen: list[tuple[Tensor, ...]] = []
    for part in (network.lift, network.blocks[0].conv2, network.conv):
        part.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(s.g for s in inputs[1:])))
    network(torch.randn(1, 1, 20, 20))
    (lift,), (block_in, block_out), (last_in, last_out) = seen
    assert torch.equal(lift, block_in)
    assert torch.equal(block_in, block_out)
    assert torch.equal(block_out, last_in)
    assert torch.equal(last_out, network.last_g)


def test_fixed_samples_are_part_of_the_state(tmp_path: Path) -> None:
    network, other = small(SL(2), redraw=False).eval(), small(SL(2), redraw=False).eval()
    save_model(network, tmp_path / "network.safetensors")
    load_model(other, tmp_path / "network.safetensors")
    x = torch.randn(1, 1, 20, 20)
    torch.testing.assert_close(other(x), network(x))


def test_autocast_and_compilation() -> None:
    network, x = small(GLPlus(2), redraw=False, dropout=0.0), torch.randn(2, 1, 20, 20)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(x)
        out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {parameter.grad.dtype for parameter in network.parameters()} == {torch.float32}  # type: ignore[union-attr]
    network.redraw = True
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert compiled(x).shape == (2, 10)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        LieResNet(SL(2), 0)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        LieResNet(SL(2), 4, 0)
    with pytest.raises(ValueError, match="blocks must be at least 1, got 0"):
        LieResNet(SL(2), 4, 4, blocks=0)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        LieResNet(SL(2), 4, 4, num_classes=0)
    with pytest.raises(ValueError, match="in_channels must be at least 1, got 0"):
        LieResNet(None, 4, 4, in_channels=0)
    with pytest.raises(ValueError, match="kernel_size must be odd and at least 3, got 4"):
        LieResNet(SL(2), 4, 4, kernel_size=4)
    with pytest.raises(ValueError, match="n must be 2 for samples, got 3"):
        LieResNet(SL(3), 4, 4)
    with pytest.raises(ValueError, match="leave 5×5 places to the last convolution, got 3×3"):
        small(SL(2))(torch.randn(1, 1, 10, 10))
