"""Tests of ``netwright.layers.mix_shift``."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck

from netwright.compression.masks import Mask, prunable
from netwright.cost import count_macs, count_params
from netwright.layers.mix_shift import MixShift, receptive_field
from netwright.layers.mix_shift_conv import mix_shift_like, to_mix_shift
from netwright.surgery import swapped

DOUBLE = torch.float64
STAGES = ((1, 1, 3, 5, 7), (1, 3, 3, 5, 7), (1, 5, 5, 5, 7), (1, 7, 7, 7, 7))
SMALL = {"shifts": (-1, 0, 2), "kernels": (1, 3, 5)}


def reference(layer: MixShift, input: Tensor) -> Tensor:
    """Chunk by chunk with torch's own roll and convolution, as the paper describes it."""
    outputs = []
    for direction, dim in (("horizontal", 3), ("vertical", 2)):
        weights, bias = getattr(layer, direction), getattr(layer, f"{direction}_bias")
        mixed, first = [], 0
        for chunk, weight, shift in zip(torch.split(input, layer.chunks, 1), weights, layer.shifts, strict=True):
            conv = nn.Conv2d(len(weight), len(weight), weight.shape[-1], padding="same", groups=len(weight))
            with torch.no_grad():
                conv.to(weight.dtype).weight.copy_(weight)
                conv.bias.zero_() if bias is None else conv.bias.copy_(bias[first : first + len(weight)])
            mixed.append(conv(torch.roll(chunk, shift, dim)))
            first += len(weight)
        outputs.append(torch.cat(mixed, 1))
    return sum(outputs)


@st.composite
def layers_and_maps(draw: st.DrawFn) -> tuple[MixShift, Tensor]:
    """Small layers, and maps from just larger than the shifts to larger than all windows."""
    number = draw(st.integers(1, 4))
    shifts = draw(st.lists(st.integers(-3, 3), min_size=number, max_size=number))
    kernels = draw(st.lists(st.sampled_from([1, 3, 5, 7]), min_size=number, max_size=number))
    low = max(map(abs, shifts)) + 1
    height, width = draw(st.integers(low, 12)), draw(st.integers(low, 12))
    layer = MixShift(draw(st.integers(number, 9)), shifts, kernels, bias=draw(st.booleans()), dtype=DOUBLE)
    return layer, torch.randn(draw(st.integers(1, 2)), layer.dim, height, width, dtype=DOUBLE)


@settings(max_examples=15)
@given(layers_and_maps())
def test_both_modes_are_rolls_convolutions_and_a_sum(given_layer: tuple[MixShift, Tensor]) -> None:
    layer, x = given_layer
    expected = reference(layer, x)
    torch.testing.assert_close(layer.train()(x), expected)
    torch.testing.assert_close(layer.eval()(x), expected)
    with torch.no_grad():  # kept kernels
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x.contiguous(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("kernels", STAGES)
@torch.no_grad()
def test_eval_mode_is_training_mode_to_1e5(kernels: tuple[int, ...]) -> None:
    layer, x = MixShift(20, kernels=kernels), torch.randn(2, 20, 14, 14)
    torch.testing.assert_close(layer.eval()(x), reference(layer, x), atol=1e-5, rtol=0)


def test_large_windows_and_meta_stay_with_the_chunks() -> None:
    far = MixShift(4, (-6, 6), (1, 7)).eval()
    x = torch.randn(1, 4, 9, 10)
    torch.testing.assert_close(far(x), reference(far, x))
    near = MixShift(96).eval()
    taps = sum(2 * size * kernel**2 for size, kernel in zip(near.chunks, near.kernels, strict=True))
    assert count_macs(copy.deepcopy(near).to("meta"), torch.empty(1, 96, 8, 8, device="meta")) == 64 * taps
    assert count_macs(near, torch.empty(1, 96, 8, 8)) > 64 * taps  # more of them, in fewer steps


@pytest.mark.parametrize(("dim", "chunks"), [(96, (20, 20, 20, 20, 16)), (16, (4, 3, 3, 3, 3)), (5, (1,) * 5)])
def test_chunks_are_torchs_where_it_gives_enough(dim: int, chunks: tuple[int, ...]) -> None:
    assert MixShift(dim).chunks == chunks
    torchs = [part.numel() for part in torch.zeros(dim).chunk(5)]
    assert len(torchs) < 5 or torchs == list(chunks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernels", STAGES)
def test_footprint_of_a_pixel_is_the_union_of_the_shifted_windows(kernels: tuple[int, ...], training: bool) -> None:
    layer = MixShift(11, kernels=kernels).train(training)
    x = torch.zeros(1, 11, 15, 15, requires_grad=True)
    layer(x)[0, :, 7, 7].sum().backward()
    expected = torch.zeros(11, 15, 15, dtype=torch.bool)
    first = 0
    for size, shift, kernel in zip(layer.chunks, layer.shifts, kernels, strict=True):
        half = kernel // 2
        for row, column in ((7, 7 - shift), (7 - shift, 7)):
            expected[first : first + size, row - half : row + half + 1, column - half : column + half + 1] = True
        first += size
    assert x.grad is not None
    assert torch.equal(x.grad[0] != 0, expected)
    field = receptive_field(layer)
    margin = (15 - len(field)) // 2
    assert torch.equal(field, expected.sum(0)[margin : 15 - margin, margin : 15 - margin])
    assert field.sum() == expected.sum()


def test_a_one_pixel_kernel_is_a_factor_and_a_bias() -> None:
    layer = MixShift(2, shifts=(1, 0), kernels=(1, 1))
    x = torch.randn(1, 2, 4, 4)
    a, b = layer.horizontal_0.item(), layer.vertical_0.item()
    bias = layer.horizontal_bias[0] + layer.vertical_bias[0]
    torch.testing.assert_close(layer(x)[:, 0], a * x[:, 0].roll(1, -1) + b * x[:, 0].roll(1, -2) + bias)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_in_double_precision(training: bool) -> None:
    layer = MixShift(3, **SMALL, dtype=DOUBLE).train(training)
    x = torch.randn(1, 3, 4, 5, dtype=DOUBLE, requires_grad=True)
    names, values = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, (x, *values))


@torch.no_grad()
def test_kept_kernels_follow_the_parameters() -> None:
    layer, x = MixShift(5).eval(), torch.randn(1, 5, 8, 8)

    def check() -> None:
        torch.testing.assert_close(layer(x), reference(layer, x))

    check()
    assert layer._window() is layer._window()
    for change in (
        lambda: layer.vertical_3.mul_(2),
        lambda: layer.horizontal_bias.add_(1),
        lambda: layer.load_state_dict(MixShift(5).state_dict()),
        lambda: layer.load_state_dict(MixShift(5).state_dict(), assign=True),
        lambda: layer.to(torch.bfloat16).to(torch.float32),
    ):
        change()
        check()
    layer.train()
    layer.horizontal_4.data.mul_(2)
    layer.eval()
    check()
    other = copy.deepcopy(layer)
    other.horizontal_4.mul_(3)
    torch.testing.assert_close(other(x), reference(other, x))


@pytest.mark.parametrize("training", [True, False])
def test_autocast_keeps_the_gradients_of_parameters_in_their_type(training: bool) -> None:
    layer = MixShift(10).train(training)
    x = torch.randn(2, 10, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), layer(x), atol=0.1, rtol=0.05)
    half.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}


@pytest.mark.parametrize("training", [True, False])
def test_compiles_as_one_graph(training: bool) -> None:
    layer, x = MixShift(3, **SMALL).train(training), torch.randn(1, 3, 8, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_layouts_state_and_meta(tmp_path: Path) -> None:
    layer, x = MixShift(10, **SMALL), torch.randn(2, 10, 7, 9)
    for each in (layer, copy.deepcopy(layer).eval()):
        torch.testing.assert_close(each(x[0]), each(x)[0])
        last = x.contiguous(memory_format=torch.channels_last)
        assert each(x).is_contiguous()
        assert each(last).is_contiguous(memory_format=torch.channels_last)
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = MixShift(10, **SMALL).eval()
    load_model(again, str(tmp_path / "layer.safetensors"))
    torch.testing.assert_close(again(x), layer(x))
    on_meta = MixShift(96, device="meta")
    assert on_meta(torch.empty(2, 96, 8, 8, device="meta")).shape == (2, 96, 8, 8)
    assert count_params(on_meta) == sum(2 * c * (k * k + 1) for c, k in zip(on_meta.chunks, on_meta.kernels))  # noqa: B905


def test_initial_kernels_are_those_of_torchs_depthwise_convolution() -> None:
    torch.manual_seed(0)
    layer = MixShift(2000, shifts=(0, 1), kernels=(3, 5))
    for mine, size in ((layer.horizontal_0, 3), (layer.vertical_1, 5)):
        theirs = nn.Conv2d(1000, 1000, size, groups=1000).weight
        assert mine.shape == theirs.shape
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.05)
        assert mine.abs().max().item() == pytest.approx(theirs.abs().max().item(), rel=0.01)
    assert layer.horizontal_bias[1000:].abs().max().item() == pytest.approx(1 / 5, rel=0.01)


def test_pruning_masks_reach_both_modes() -> None:
    model, x = nn.Sequential(MixShift(5, bias=False)), torch.randn(1, 5, 8, 8)
    weights = prunable(model)
    assert len(weights) == 10
    Mask({name: torch.zeros_like(weight) for name, weight in weights.items()}).attach_(model)
    assert not model(x).any()
    with torch.no_grad():
        assert not model.eval()(x).any()


CONVS: list[tuple[nn.Conv2d, int, type[nn.Module]]] = [
    (nn.Conv2d(10, 12, 3, padding=1), 7, nn.Sequential),
    (nn.Conv2d(10, 12, 5, stride=2, padding=2, bias=False), 8, nn.Sequential),
    (nn.Conv2d(10, 20, (3, 5), padding="same", groups=5), 8, nn.Sequential),
    (nn.Conv2d(10, 20, 3, padding=1, groups=10), 8, nn.Sequential),
    (nn.Conv2d(10, 10, 3, padding=1, groups=10), 7, MixShift),
    (nn.Conv2d(10, 10, 7, stride=(2, 3), padding=3, groups=10, bias=False), 9, nn.Sequential),
]


@pytest.mark.parametrize(("conv", "size", "kind"), CONVS)
def test_replacements_have_the_shape_and_the_power_of_the_convolution(
    conv: nn.Conv2d, size: int, kind: type[nn.Module]
) -> None:
    torch.manual_seed(1)
    new = mix_shift_like(conv, kernels=(1,) * 5)
    assert type(new) is kind
    x = torch.randn(100, 10, size, size)
    assert new(x).shape == conv(x).shape
    biases = [p for name, p in new.named_parameters() if name.endswith("bias")]
    assert bool(biases) == (conv.bias is not None)
    if conv.bias is not None:
        total = biases[0] if len(biases) == 1 else biases[0] + biases[1]
        torch.testing.assert_close(total, conv.bias)
    for b in [conv.bias, *biases]:
        if b is not None:
            nn.init.zeros_(b)
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # away from the zeros around the map
    ratios = torch.stack([mix_shift_like(conv)(x).square().mean() for _ in range(12)]) / conv(x)[inner].square().mean()
    assert 0.6 < ratios.mean().item() < 1.4


def test_replacements_select_the_pixels_that_the_stride_selects() -> None:
    conv = nn.Conv2d(5, 5, 3, stride=2, padding=1, groups=5)
    x = torch.randn(1, 5, 7, 8)
    new = mix_shift_like(conv)
    torch.testing.assert_close(new(x), new[0](x)[..., ::2, ::2])


def test_frozen_convolutions_give_frozen_layers() -> None:
    for conv in (nn.Conv2d(5, 7, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, groups=5)):
        conv.weight.requires_grad_(False)
        trained = {n for n, p in mix_shift_like(conv).named_parameters() if p.requires_grad}
        assert all(name.endswith("bias") for name in trained)
        assert trained


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),  # the stem has too few channels
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(16, 16, 3),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 10, 3, stride=2, padding=1),
        nn.Conv2d(10, 10, 3, padding=1),
    )


def test_converter_replaces_what_keeps_pixels_at_their_places() -> None:
    model, x = network(), torch.randn(2, 3, 14, 14)
    new = to_mix_shift(model, x, (-1, 0, 1, 1, 2))
    assert swapped(new) == ("1", "7", "8")
    assert new(x).shape == model(x).shape
    assert isinstance(model[1], nn.Conv2d)
    assert swapped(to_mix_shift(model, x, where=lambda name, _: name == "1")) == ("1",)


def test_converter_checks_or_fits_the_shifts() -> None:
    model, x = network(), torch.randn(2, 3, 10, 10)  # maps of 10×10, 4×4 and 2×2
    with pytest.raises(ValueError, match=r"shifts up to 2 pixels need more than 2 in the map of layer '8', got 2×2"):
        to_mix_shift(model, x)
    new = to_mix_shift(model, x, fit=True)
    assert [m.shifts for m in new.modules() if isinstance(m, MixShift)] == [
        (-2, -1, 0, 1, 2),
        (-2, -1, 0, 1, 2),
        (-1, -1, 0, 1, 1),
    ]
    assert new(x).shape == (2, 10, 2, 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixShift(10, (0, 1), (3,)), r"kernels must be as many as shifts \(2\), got 1"),
        (lambda: MixShift(10, (), ()), "number of shifts must be at least 1, got 0"),
        (lambda: MixShift(10, (0, 1), (3, 4)), r"kernels must be odd and positive, got \(3, 4\)"),
        (lambda: MixShift(10, (0, 1), (3, -1)), r"kernels must be odd and positive, got \(3, -1\)"),
        (lambda: MixShift(4), "dim for 5 chunks must be at least 5, got 4"),
        (lambda: MixShift(5)(torch.zeros(1, 5, 2, 9)), "shifts up to 2 pixels need more than 2 in the map, got 2×9"),
        (lambda: MixShift(5)(torch.zeros(1, 5, 9, 2)), "shifts up to 2 pixels need more than 2 in the map, got 9×2"),
        (lambda: MixShift(5)(torch.zeros(1, 6, 9, 9)), "dimension -3 of input must have size 5"),
        (lambda: MixShift(5)(torch.zeros(5, 9)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: MixShift.like(nn.Conv2d(5, 6, 3, padding=1)), "conv must be depth-wise, undilated and keep the size"),
        (lambda: mix_shift_like(nn.Conv2d(5, 6, 3)), "conv must be undilated, at least 3×3 and padded with zeros"),
        (
            lambda: to_mix_shift(nn.Conv2d(1, 8, 3, padding=1), torch.zeros(1, 1, 9, 9)),
            "found no undilated convolution",
        ),
        (lambda: to_mix_shift(nn.Flatten(), torch.zeros(1, 4), kernels=(2,) * 5), "kernels must be odd"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
