"""Tests of ``netwright.layers.ela``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from netwright.cost import count_params, saved_bytes
from netwright.layers.ela import ELA, CoordinateAttention, gate_rows_and_columns, insert_attention
from netwright.models.vision.mbconv import MBConv
from netwright.models.vision.resnet import resnet_4stage, resnet_cifar


@pytest.mark.parametrize(("variant", "count"), [("T", 1792), ("B", 2304), ("S", 10752), ("L", 14848)])
def test_published_counts_of_a_layer(variant: str, count: int) -> None:
    assert count_params(ELA(256, variant, device="meta")) == count
    assert count_params(ELA(256, variant, shared=False, device="meta")) == 2 * count


def test_published_counts_in_residual_networks() -> None:
    assert count_params(CoordinateAttention(256, device="meta")) == 6680
    with torch.device("meta"):
        plain18, plain50 = (count_params(resnet_4stage(depth)) for depth in (18, 50))

        def added(depth: int, attention) -> int:
            return count_params(resnet_4stage(depth, attention=attention)) - (plain18 if depth == 18 else plain50)

        assert added(18, lambda c: ELA(c, "T")) == 13_440
        assert added(18, lambda c: ELA(c, "B")) == 17_280
        assert added(18, CoordinateAttention) == 74_736
        assert added(50, lambda c: ELA(c, "B")) == 135_936
        assert added(50, CoordinateAttention) == 1_917_832
        inserted = insert_attention(resnet_4stage(18), lambda c: ELA(c, "B"))
        assert count_params(inserted) - plain18 == 17_280


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("variant", ["T", "B", "S", "L"])
def test_output_is_the_formula(variant: str, shared: bool) -> None:
    layer = ELA(32, variant, norm_groups="auto", shared=shared)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(3, 32, 5, 7)
    conv, norm = layer.strips
    conv_w, norm_w = (conv, norm) if shared else layer.strips_w
    a_h = norm(conv(x.mean(3))).sigmoid()
    a_w = norm_w(conv_w(x.mean(2))).sigmoid()
    expected = x * a_h[..., None] * a_w[..., None, :]
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[0]), expected[0])


def test_a_map_and_its_transpose_are_treated_alike_if_the_convolution_is_shared() -> None:
    layer = ELA(32)
    x = torch.randn(2, 32, 6, 6)
    torch.testing.assert_close(layer(x.mT), layer(x).mT)


def test_coordinate_attention_is_the_formula() -> None:
    layer = CoordinateAttention(32, reduction=2).eval()
    nn.init.normal_(layer.squeeze[1].running_mean)
    x = torch.randn(3, 32, 5, 7)
    f_h, f_w = (layer.squeeze(z) for z in (x.mean(3), x.mean(2)))  # in eval mode the strips do not meet
    expected = x * layer.expand_h(f_h).sigmoid()[..., None] * layer.expand_w(f_w).sigmoid()[..., None, :]
    torch.testing.assert_close(layer(x), expected)


def test_the_first_gates() -> None:
    x = torch.randn(4, 64, 16, 16)
    share = (ELA(64)(x) / x).mean().item()
    assert share == pytest.approx(0.25, abs=0.05)
    share = (ELA(64, init="identity")(x) / x).mean().item()
    assert share == pytest.approx(0.95, abs=0.03)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))
def test_gating_and_its_gradients_are_those_of_the_product(channels: int, height: int, width: int) -> None:
    tensors = [
        torch.randn(2, channels, *shape, dtype=torch.float64, requires_grad=True)
        for shape in ((height, width), (height,), (width,))
    ]
    x, a_h, a_w = tensors
    expected = x * a_h.unsqueeze(3) * a_w.unsqueeze(2)
    found = gate_rows_and_columns(*tensors)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, tensors, weights), torch.autograd.grad(expected, tensors, weights)
    )


def test_gradients_of_both_orders() -> None:
    x = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    gates = [torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True) for n in (2, 4)]
    assert torch.autograd.gradgradcheck(gate_rows_and_columns, (x, *gates))
    layer = ELA(4, kernel_size=3, norm_groups=2).double()
    y = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def function(y: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (y,))

    assert torch.autograd.gradcheck(function, (y, *values))
    slopes = torch.vmap(torch.func.grad(lambda y: layer(y).sum()))(y.detach())
    torch.testing.assert_close(slopes, torch.autograd.grad(layer(y).sum(), y)[0])


def test_keeps_one_map_for_backward() -> None:
    x = torch.randn(2, 64, 32, 32, requires_grad=True)
    assert saved_bytes(ELA(64), x) < 0.3 * x.numel() * 4  # the input itself is not counted


@pytest.mark.parametrize("shared", [True, False])
def test_saved_under_autocast_on_meta_and_traced(shared: bool, tmp_path) -> None:
    layer = ELA(32, shared=shared)
    x = torch.randn(2, 32, 6, 5)
    save_file(layer.state_dict(), tmp_path / "w.safetensors")
    other = ELA(32, shared=shared)
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    assert torch.equal(other(x), layer(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), rtol=0.05, atol=0.05)
    low.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in layer.parameters())
    assert ELA(32, shared=shared, device="meta")(x.to("meta")).is_meta
    for part in (layer, CoordinateAttention(32)):
        torch.testing.assert_close(torch.compile(part, fullgraph=True, backend="eager")(x), part(x))


class Bottle(nn.Module):
    """A block as the well-known libraries write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64)
        self.downsample = nn.Sequential(nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.downsample(x)


def test_places_in_a_residual_block() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3), Bottle())
    end = insert_attention(model, ELA)
    assert [type(m).__name__ for m in end[1].bn2] == ["BatchNorm2d", "ELA"]
    assert [type(m).__name__ for m in (end[1].bn1, end[1].downsample[1])] == ["BatchNorm2d"] * 2
    after = insert_attention(model, ELA, "block_end")
    assert [type(m).__name__ for m in after[1]] == ["Bottle", "ELA"]
    everywhere = insert_attention(model, ELA, "norm")
    assert sum(isinstance(m, ELA) for m in everywhere.modules()) == 3
    x = torch.randn(2, 3, 8, 8)
    for changed in (end, after, everywhere):
        assert changed(x).shape == model(x).shape
    assert not any(isinstance(m, ELA) for m in model.modules())


def test_places_in_our_networks() -> None:
    resnet = insert_attention(resnet_cifar(8, 32), ELA)
    twin = resnet_cifar(8, 32, attention=ELA)
    assert count_params(resnet) == count_params(twin)
    inverted = nn.Sequential(MBConv(32, 32, 3, expand_ratio=2))
    after = insert_attention(inverted, lambda c: ELA(c, norm_groups="auto"), "depthwise")
    assert [m.channels for m in after.modules() if isinstance(m, ELA)] == [64]
    assert after(torch.randn(2, 32, 6, 6)).shape == (2, 32, 6, 6)


def test_bad_input() -> None:
    for arguments, message in (
        ({"channels": 64, "kernel_size": 4}, "kernel_size must be odd, got 4"),
        ({"channels": 60, "variant": "S"}, "channels must be divisible by channels of a convolution group = 8, got 60"),
        ({"channels": 64, "conv_groups": 5}, "channels must be divisible by conv_groups = 5"),
        ({"channels": 16}, r"divisible by norm_groups = 32 \(norm_groups='auto' finds some that are\), got 16"),
        ({"channels": 64, "variant": "M"}, r"unknown variant of ELA 'M'; known are: B, L, S, T"),
        ({"channels": 64, "init": "zero"}, "unknown init of ELA 'zero'"),
    ):
        with pytest.raises(ValueError, match=message):
            ELA(**arguments)
    assert ELA(24, norm_groups="auto").strips[1].num_groups == 24
    assert ELA(40, "B", norm_groups="auto").strips[1].num_groups == 10
    with pytest.raises(ValueError, match=r"input must have shape \(batch, channels, height, width\)"):
        ELA(64)(torch.zeros(2, 64))
    with pytest.raises(ValueError, match="dimension -3 of input must have size 64"):
        ELA(64)(torch.zeros(2, 63, 4, 4))
    with pytest.raises(ValueError, match="reduction must be at least 1"):
        CoordinateAttention(64, 0)
    for where, message in (
        ("branch_end", "no block of two convolutions with a normalisation"),
        ("block_end", "no block of two convolutions"),
        ("depthwise", "no depth-wise convolution"),
        ("norm", "no BatchNorm2d, GroupNorm"),
    ):
        with pytest.raises(ValueError, match=message):
            insert_attention(nn.Sequential(nn.Conv2d(3, 64, 3)), ELA, where)
    with pytest.raises(ValueError, match="unknown place 'blocks_end'; did you mean 'block_end'"):
        insert_attention(Bottle(), ELA, "blocks_end")
