"""Tests of ``netwright.compression.binary_export``: packed layers compute what binary layers do."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from netwright.compression.binary_export import PackedConv2d, PackedLinear, export_binary
from netwright.layers.biper import BiPerConv2d, BiPerLinear, biper_layers, set_stage
from netwright.models.vision.biper_nets import biper_resnet18, biper_resnet20

GEOMETRIES = [
    {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1},
    {"in_channels": 6, "out_channels": 4, "kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "groups": 2},
    {"in_channels": 3, "out_channels": 9, "kernel_size": 3, "padding": "same", "dilation": 2, "bias": True},
    {"in_channels": 24, "out_channels": 9, "kernel_size": 3, "padding": 1, "groups": 3, "padding_mode": "reflect"},
    {"in_channels": 8, "out_channels": 8, "kernel_size": 3, "padding": 2, "groups": 8, "padding_mode": "circular"},
    {"in_channels": 70, "out_channels": 5, "kernel_size": 1, "padding": 1, "bias": True},
]


def trained_like(**given: object) -> BiPerConv2d:
    return BiPerConv2d(**given, stage=2, dtype=torch.float64).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("popcount", [False, True])
class TestPacked:
    @pytest.mark.parametrize("given", GEOMETRIES)
    def test_convolution_is_the_binary_one(self, popcount: bool, given: dict[str, object]) -> None:
        layer = trained_like(**given)
        packed = PackedConv2d.like(layer, popcount=popcount)
        x = torch.randn(2, layer.in_channels, 9, 8, dtype=torch.float64)
        x[0, 0] = 0  # whose sign is +1
        torch.testing.assert_close(packed(x), layer(x))
        torch.testing.assert_close(packed(x[0]), layer(x)[0])
        assert torch.equal(packed(x), PackedConv2d.like(layer)(x))

    @pytest.mark.parametrize("bias", [False, True])
    def test_linear_is_the_binary_one(self, popcount: bool, bias: bool) -> None:
        layer = BiPerLinear(77, 5, bias, stage=2, dtype=torch.float64).eval()
        packed = PackedLinear.like(layer, popcount=popcount)
        for shape in ((77,), (3, 77), (2, 3, 77), (0, 77)):
            x = torch.randn(shape, dtype=torch.float64)
            torch.testing.assert_close(packed(x), layer(x))

    def test_whole_network(self, popcount: bool, tmp_path: Path) -> None:
        model = biper_resnet20(depth=8, width=8, stage=2).eval()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # with a mean of 0, exact zeros would wait for a rounding error
                module.running_mean.normal_()  # type: ignore[union-attr]
        packed = export_binary(model, popcount=popcount)
        assert [type(m).__name__ for m in packed.modules() if "Conv" in type(m).__name__].count("PackedConv2d") == 6
        assert not any(isinstance(m, BiPerConv2d) for m in packed.modules())
        x = torch.randn(4, 3, 16, 16)
        with torch.no_grad():
            torch.testing.assert_close(packed(x), model(x), atol=1e-3, rtol=1e-3)
        save_model(packed, tmp_path / "packed.safetensors")
        other = export_binary(biper_resnet20(depth=8, width=8, stage=2).eval(), popcount=popcount)
        load_model(other, tmp_path / "packed.safetensors")
        with torch.no_grad():
            assert torch.equal(other(x), packed(x))
        saved = load_file(tmp_path / "packed.safetensors")
        assert sum(t.dtype == torch.uint8 for t in saved.values()) == 6
        with torch.device("meta"):
            absent = export_binary(biper_resnet20(depth=8, width=8, stage=2).eval(), popcount=popcount)
        absent.load_state_dict(packed.state_dict(), assign=True)
        with torch.no_grad():
            assert torch.equal(absent(x), packed(x))

    def test_other_types_and_autocast(self, popcount: bool) -> None:
        layer = BiPerConv2d(8, 8, 3, padding=1, stage=2, bias=True).eval()
        packed = PackedConv2d.like(layer, popcount=popcount)
        x = torch.randn(2, 8, 5, 5)
        expected = layer(x).detach()
        assert packed.half().packed.dtype == torch.uint8
        halved = packed(x.half())
        assert halved.dtype == torch.float16
        torch.testing.assert_close(halved.float(), expected, atol=0.05, rtol=0.01)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(packed.float()(x).float(), expected, atol=0.3, rtol=0.05)

    def test_on_meta(self, popcount: bool) -> None:
        packed = PackedConv2d(24, 8, 3, padding=1, popcount=popcount, device="meta")
        assert packed(torch.empty(2, 24, 7, 7, device="meta")).shape == (2, 8, 7, 7)
        assert packed.packed.shape == (8, 27)

    def test_has_nothing_to_train(self, popcount: bool) -> None:
        assert not list(PackedLinear(8, 8, True, popcount=popcount).parameters())


def test_traces_as_one_graph() -> None:
    layers = (BiPerConv2d(8, 4, 3, padding=1, stage=2), nn.Flatten(), BiPerLinear(100, 3, stage=2))
    packed = export_binary(nn.Sequential(*layers)).eval()
    packed[2].popcount = True
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        compiled = torch.compile(packed, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), packed(x))


def test_unpacking_lets_gradients_through() -> None:
    layer = trained_like(**GEOMETRIES[0])
    packed = PackedConv2d.like(layer)
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64, requires_grad=True)
    (mine,) = torch.autograd.grad(packed(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(mine, theirs)


def test_real_inputs_stay_real() -> None:
    layer = BiPerLinear(9, 4, stage=2, binarize_input=False)
    x = torch.randn(3, 9)
    packed = export_binary(nn.Sequential(layer), popcount=True)
    assert not packed[0].popcount
    torch.testing.assert_close(packed(x), layer(x))


@pytest.mark.parametrize("make", [biper_resnet18, biper_resnet20])
def test_size(make: Callable[..., nn.Module]) -> None:
    """A bit a weight and a number an output: a thirtieth of the bytes of float32 where there are enough channels."""
    with torch.device("meta"):
        model = make(stage=2)
        layers = nn.ModuleList(biper_layers(model).values())
        packed = export_binary(layers)
    weights = sum(layer.weight.numel() for layer in layers if isinstance(layer.weight, Tensor))
    outputs = sum(layer.out_channels for layer in layers if isinstance(layer, BiPerConv2d))
    size = sum(buffer.nbytes for buffer in packed.buffers())
    assert size == weights // 8 + 4 * outputs
    if make is biper_resnet18:
        assert 4 * (weights + outputs) / size > 30


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: export_binary(nn.Linear(2, 2)), "found no BiPer layer, got a Linear"),
        (
            lambda: export_binary(nn.Sequential(BiPerLinear(2, 2, stage=2), BiPerLinear(2, 2))),
            "only layers in stage 2 have binary weights, got stage 1 in 1",
        ),
        (lambda: PackedLinear.like(BiPerLinear(2, 2)), "got stage 1 in the layer"),
        (lambda: PackedLinear(2, 2, popcount=True, binarize_input=False), "popcount=True needs binary inputs"),
        (
            lambda: PackedConv2d(8, 4, 3, popcount=True)(torch.zeros(1, 4, 5, 5)),
            "dimension -3 of input must have size 8",
        ),
        (lambda: PackedLinear(8, 4)(torch.zeros(1, 8, dtype=torch.int32)), "floating-point type, got torch.int32"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_the_stage_of_the_model_is_left_alone() -> None:
    model = nn.Sequential(BiPerLinear(4, 4))
    set_stage(model, 2)
    export_binary(model)
    assert isinstance(model[0], BiPerLinear)
