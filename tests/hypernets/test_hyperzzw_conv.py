"""Tests of ``netwright.hypernets.hyperzzw_conv``."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.cost import count_macs_of_shape, count_params
from netwright.hypernets.hyperzzw import MagnetKernel
from netwright.hypernets.hyperzzw_conv import HyperZZWConv1d, HyperZZWConv2d, to_hyperzzw
from netwright.surgery import swapped

LAYERS: list[tuple[nn.Module, int | None, bool, tuple[int, ...]]] = [
    (nn.Conv2d(4, 6, 3, padding=1), 8, True, (3, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, padding=1), 8, False, (3, 4, 8, 8)),
    (nn.Conv2d(4, 6, (3, 1), padding="same"), None, True, (3, 4, 8, 5)),
    (nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, bias=False), 6, True, (3, 4, 6, 6)),
    (nn.Conv2d(4, 4, 5, padding=2, groups=4, padding_mode="reflect"), 6, True, (3, 4, 6, 6)),
    (nn.Conv1d(4, 6, 5, padding=2), None, True, (3, 4, 9)),
    (nn.Conv1d(4, 6, 3, padding="same", padding_mode="circular"), 9, True, (3, 4, 9)),
]
IDS = ["both", "global", "local", "groups", "depthwise", "conv1d", "conv1d-both"]
every_layer = pytest.mark.parametrize(("conv", "size", "local", "shape"), LAYERS, ids=IDS)
Conv = nn.Conv1d | nn.Conv2d


def build(conv: Conv, size: int | None, local: bool) -> HyperZZWConv1d | HyperZZWConv2d:
    part = HyperZZWConv1d if isinstance(conv, nn.Conv1d) else HyperZZWConv2d
    return part.like(conv, size, local=local)


@every_layer
def test_is_its_branches_side_by_side(conv: Conv, size: int | None, local: bool, shape: tuple[int, ...]) -> None:
    layer = build(conv, size, local)
    x = torch.randn(shape)
    views = []
    if local:
        views.append(layer.local(x))
    if size is not None:
        fast = functional.instance_norm(layer.fast(x))
        weighted = x * layer.slow_net()
        views.append(weighted @ fast if x.ndim == 4 else weighted * fast)
    out = torch.zeros(conv(x).shape)
    groups, inn, each = layer.groups, conv.in_channels // layer.groups, conv.out_channels // layer.groups
    weight = layer.bottleneck.weight.flatten(1)
    for group in range(groups):
        mine = slice(group * each, (group + 1) * each)
        for index, view in enumerate(views):
            part = view[:, group * inn : (group + 1) * inn]
            out[:, mine] += torch.einsum("oc,bc...->bo...", weight[mine, index :: len(views)], part)
    if conv.bias is not None:
        out += conv.bias.view(-1, *(1,) * (x.ndim - 2))
    torch.testing.assert_close(layer(x), out, atol=1e-5, rtol=1e-4)


@every_layer
def test_layouts_autocast_meta_and_round_trip(
    conv: Conv, size: int | None, local: bool, shape: tuple[int, ...], tmp_path: Path
) -> None:
    layer, x = build(conv, size, local), torch.randn(shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        half.float().square().mean().backward()
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), atol=0.1, rtol=0.1)
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = build(conv, size, local)
    load_model(again, str(tmp_path / "layer.safetensors"))
    layer.eval(), again.eval()
    torch.testing.assert_close(again(x), layer(x))
    torch.testing.assert_close(layer(x[0]), layer(x)[0])  # also: a prediction does not depend on the batch
    with torch.device("meta"):
        on_meta = build(conv.to("meta"), size, local)
        assert on_meta(torch.empty(shape)).shape == layer(x).shape
    conv.to_empty(device="cpu").reset_parameters()
    assert count_params(on_meta) == count_params(layer)


@every_layer
def test_like_keeps_what_it_can(conv: Conv, size: int | None, local: bool, shape: tuple[int, ...]) -> None:
    layers = [build(conv, size, local) for _ in range(30)]
    sums = torch.stack([layer.bottleneck.weight.square().flatten(1).sum(1).mean() for layer in layers])
    assert sums.mean().item() == pytest.approx(conv.weight.square().flatten(1).sum(1).mean().item(), rel=0.25)
    layer = layers[0]
    assert (layer.bottleneck.bias is None) == (conv.bias is None)
    if conv.bias is not None:
        assert torch.equal(layer.bottleneck.bias, conv.bias)
    frozen = build(conv.requires_grad_(False), size, local)
    conv.requires_grad_(True)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_signals_keep_their_size() -> None:
    conv = nn.Conv2d(32, 32, 3, padding=1)
    x = torch.randn(8, 32, 8, 8)
    ratio = HyperZZWConv2d.like(conv, 8)(x).std() / conv(x).std()
    assert 0.3 < ratio < 3


def test_gradients_in_double_precision() -> None:
    layer = HyperZZWConv2d(2, 3, 3, size=3, hidden_local=3, hidden_global=3, n_layers=1, omega0=0.3).double()
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, (x,))
    layer(x).square().sum().backward()
    assert all(parameter.grad.any() for name, parameter in layer.named_parameters() if name != "fast.bias")


def test_compiles_as_one_graph() -> None:
    layer = HyperZZWConv2d(4, 6, 3, size=6)
    x = torch.randn(2, 4, 6, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@given(height=st.integers(1, 6), width=st.integers(1, 6), batch=st.integers(2, 3))
def test_without_a_global_branch_maps_of_any_size_do(height: int, width: int, batch: int) -> None:
    layer = HyperZZWConv2d(2, 3, 3, hidden_local=3)
    assert layer(torch.randn(batch, 2, height, width)).shape == (batch, 3, height, width)


def user_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),  # the stem: too few channels
        nn.Conv2d(16, 16, 3, padding=1),  # 16×16
        nn.Conv2d(16, 16, 1),  # no neighbours
        nn.Conv2d(16, 16, 3, stride=2, padding=1),  # strided
        nn.Conv2d(16, 16, 3, padding=1, groups=16),  # 8×8
        nn.Conv2d(16, 16, 4, padding=2),  # an even kernel
        nn.Conv2d(16, 16, 3),  # the map shrinks
        nn.MaxPool2d((1, 2)),
        nn.Conv2d(16, 16, (1, 3), padding=(0, 1)),  # 7×3
        nn.Flatten(2),
        nn.Conv1d(16, 16, 3, padding=1),
        nn.Flatten(),
        nn.Linear(16 * 21, 10),
    )


class TestConverter:
    def test_replaces_what_keeps_the_size_of_its_map(self) -> None:
        model, example = user_model(), torch.randn(2, 3, 16, 16)
        new = to_hyperzzw(model, example)
        assert swapped(new) == ("1", "4", "8", "10")
        assert [new[int(name)].size for name in swapped(new)] == [16, 8, None, None]
        assert new(example).shape == (2, 10)
        assert isinstance(model[1], nn.Conv2d)
        local = to_hyperzzw(model, example, "local")
        assert [local[int(name)].size for name in swapped(local)] == [None] * 4
        alone = to_hyperzzw(model, example, "global")
        assert swapped(alone) == ("1", "4")
        assert alone[1].local is None
        assert swapped(to_hyperzzw(model, example, min_channels=1))[0] == "0"
        assert swapped(to_hyperzzw(model, example, where=lambda name, _: name == "4")) == ("4",)
        nets = [net for net in to_hyperzzw(model, example, omega0=30.0).modules() if isinstance(net, MagnetKernel)]
        assert {net.omega0 for net in nets} == {30.0}

    def test_a_shared_layer_stays_shared_and_one_that_is_not_reached_gets_no_global_branch(self) -> None:
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = self.second = nn.Conv2d(8, 8, 3, padding=1)
                self.unused = nn.Conv2d(8, 8, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return self.second(self.first(x))

        new = to_hyperzzw(Model(), torch.randn(2, 8, 5, 5))
        assert new.first is new.second
        assert new.first.size == 5
        assert new.unused.size is None

    def test_counts_without_memory(self) -> None:
        model = to_hyperzzw(user_model(), torch.randn(1, 3, 16, 16))
        assert count_macs_of_shape(model, (1, 3, 16, 16)) > 0

    @pytest.mark.parametrize(
        ("model", "options", "message"),
        [
            (nn.Linear(8, 8), {}, "found no convolution with an odd kernel ≥ 3, stride 1, .* got a Linear"),
            (nn.Conv2d(8, 8, 3), {}, "found no convolution"),
            (nn.Conv2d(8, 8, 3, padding=1), {"branches": "global"}, "8 input channels on square maps, got a Conv2d"),
            (nn.Conv2d(8, 8, 3, padding=1), {"branches": "locale"}, "unknown branches 'locale'; did you mean 'local'"),
            (nn.Conv2d(8, 8, 3, padding=1), {"min_channels": 0}, "min_channels must be at least 1"),
        ],
    )
    def test_what_cannot_be_converted(self, model: nn.Module, options: dict[str, object], message: str) -> None:
        example = torch.randn(2, 8) if isinstance(model, nn.Linear) else torch.randn(2, 8, 6, 5)
        with pytest.raises(ValueError, match=message):
            to_hyperzzw(model, example, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HyperZZWConv2d(4, 4, 3, padding=0), "padding that keeps the size of the map, got .* padding=0"),
        (
            lambda: HyperZZWConv2d(4, 4, 3, stride=2),
            r"the layer needs an odd kernel, stride 1 .* got .* stride=\(2, 2\)",
        ),
        (lambda: HyperZZWConv2d(4, 4, 4), "the layer needs an odd kernel"),
        (lambda: HyperZZWConv2d(4, 4, 3, local=False), "without the local branch the layer needs the size of the map"),
        (lambda: HyperZZWConv2d(4, 4, 3, size=1), "size must be at least 2, got 1"),
        (lambda: HyperZZWConv2d(4, 6, 3, groups=3), "in_channels must be divisible by groups = 3, got 4"),
        (lambda: HyperZZWConv2d(4, 6, 3, groups=4), "out_channels must be divisible by groups = 4, got 6"),
        (lambda: HyperZZWConv2d(4, 4, 3, groups=0), "groups must be at least 1, got 0"),
        (lambda: HyperZZWConv2d(4, 4, 3, padding_mode="mirror"), "unknown padding_mode 'mirror'"),
        (lambda: HyperZZWConv2d(4, 4, 3, omega0=-1.0), "omega0 must be positive, got -1"),
        (lambda: HyperZZWConv2d(4, 4, 3, size=6)(torch.randn(2, 4, 6, 5)), "must have 6×6 pixels, .* got 6×5"),
        (lambda: HyperZZWConv2d(4, 4, 3, size=6)(torch.randn(2, 3, 6, 6)), "dimension -3 of input must have size 4"),
        (
            lambda: HyperZZWConv1d(4, 4, 3)(torch.randn(4, 4, 4, 4)),
            r"input must have shape \(batch, channels, length\)",
        ),
        (lambda: HyperZZWConv2d.like(nn.Conv2d(4, 4, 3)), "padding that keeps the size"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
