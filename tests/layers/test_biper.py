"""Tests of ``netwright.layers.biper`` and ``netwright.layers.binary``."""

import copy
import math
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

from netwright.cost import count_macs, count_params
from netwright.layers.binary import binary_input
from netwright.layers.biper import BiPerConv2d, BiPerLinear, biper_layers, set_stage, sine_penalty, square_wave
from netwright.layers.straight_through import sign_poly
from netwright.surgery import swap

Layer = BiPerConv2d | BiPerLinear


def conv(**given: object) -> BiPerConv2d:
    return BiPerConv2d(4, 6, 3, padding=1, **given)  # type: ignore[arg-type]


def linear(**given: object) -> BiPerLinear:
    return BiPerLinear(12, 5, **given)  # type: ignore[arg-type]


KINDS: list[tuple[Callable[..., Layer], tuple[int, ...]]] = [(conv, (3, 4, 5, 6)), (linear, (3, 12))]


class TestSquareWave:
    @given(st.floats(-5, 5), st.floats(0.1, 60))
    def test_is_the_sign_of_the_sine_with_the_gradient_of_the_sine(self, value: float, freq: float) -> None:
        x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        y = square_wave(x, freq)
        assert y.item() == (-1 if math.sin(freq * value) < 0 else 1)
        y.backward(torch.tensor([3.0], dtype=torch.float64))
        assert x.grad is not None
        assert x.grad.item() == pytest.approx(3 * freq * math.cos(freq * value), abs=1e-9)

    def test_has_the_period_of_two_pi_over_omega(self) -> None:
        freq = 20.0
        x = torch.linspace(0.01, 0.3, 57, dtype=torch.float64)
        assert torch.equal(square_wave(x, freq), square_wave(x + 2 * math.pi / freq, freq))
        assert torch.equal(square_wave(x, freq), -square_wave(x + math.pi / freq, freq))
        assert square_wave(torch.zeros(1), freq).item() == 1


class TestInput:
    @pytest.mark.parametrize(("shape", "dims"), [((3, 4, 5, 6), 3), ((2, 3, 7), 1), ((4, 5, 5), 3), ((9,), 1)])
    def test_rescaled_signs_have_the_gradient_of_their_parts(self, shape: tuple[int, ...], dims: int) -> None:
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        gradient = torch.randn(shape, dtype=torch.float64)
        signs = binary_input(x, dims, rescale=True)
        variance = x.var(dim=tuple(range(-dims, 0)), keepdim=True)
        parts = sign_poly(x / (variance + 1e-5).sqrt())
        assert torch.equal(signs, parts)
        (mine,) = torch.autograd.grad(signs, x, gradient)
        (theirs,) = torch.autograd.grad(parts, x, gradient)
        torch.testing.assert_close(mine, theirs)
        assert not torch.allclose(mine, torch.autograd.grad(sign_poly(x), x, gradient)[0])

    def test_maps_over_samples_and_over_gradients(self) -> None:
        x, gradients = torch.randn(4, 3, 5), torch.randn(6, 4, 3, 5)

        def slope(row: Tensor, gradient: Tensor) -> Tensor:
            _, backward = torch.func.vjp(lambda row: binary_input(row, 1, rescale=True), row)
            (result,) = backward(gradient)
            return result

        together = slope(x, gradients[0])
        torch.testing.assert_close(torch.vmap(slope)(x, gradients[0]), together)
        each = torch.vmap(slope, in_dims=(None, 0))(x, gradients)
        torch.testing.assert_close(each[0], together)

    @pytest.mark.parametrize("rescale", [False, True])
    def test_gradient_has_a_gradient(self, rescale: bool) -> None:
        x = torch.randn(3, 8, requires_grad=True)
        (first,) = torch.autograd.grad(binary_input(x, 1, rescale=rescale).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert second.any()

    def test_of_one_number_or_of_constants_is_finite(self) -> None:
        for x in (torch.zeros(3, 1), torch.full((2, 8), 300.0), torch.full((2, 8), -1e4)):
            x.requires_grad_()
            binary_input(x, 1, rescale=True).sum().backward()
            assert x.grad is not None
            assert x.grad.isfinite().all()

    def test_eval_mode_skips_the_division_and_changes_no_sign(self) -> None:
        x = torch.randn(2, 4, 5, 5)
        assert torch.equal(binary_input(x, 3, rescale=True), binary_input(x, 3, rescale=False))
        layer = conv(stage=2)
        torch.testing.assert_close(layer.eval()(x), layer.train()(x))


@pytest.mark.parametrize(("make", "shape"), KINDS)
class TestLayer:
    def test_forward_is_the_scaled_product_with_signs(self, make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
        for stage in (1, 2):
            layer = make(stage=stage, freq=7.0, bias=True, dtype=torch.float64)
            x = torch.randn(shape, dtype=torch.float64)
            x[0, 0] = 0  # whose sign is +1
            signs = torch.where(x < 0, -1.0, 1.0).double()
            wave = torch.sin(7 * layer.weight)
            weight = wave if stage == 1 else torch.where(wave < 0, -1.0, 1.0).double()
            assert layer.bias is not None
            if isinstance(layer, BiPerConv2d):
                assert layer.alpha.shape == (6, 1, 1)
                expected = layer.alpha * functional.conv2d(signs, weight, padding=1) + layer.bias[:, None, None]
            else:
                expected = layer.alpha * functional.linear(signs, weight) + layer.bias
            torch.testing.assert_close(layer(x), expected)

    def test_gradient_of_the_weight_in_stage_2_is_that_of_the_sine(
        self, make: Callable[..., Layer], shape: tuple[int, ...]
    ) -> None:
        layer = make(stage=2, dtype=torch.float64)
        x = torch.randn(shape, dtype=torch.float64)
        layer(x).square().sum().backward()
        wave = layer.binary_weight().detach().requires_grad_()
        scaled = layer.alpha.detach().unsqueeze(-1) * wave
        signs = binary_input(x, 3 if x.ndim == 4 else 1, rescale=True)
        out = functional.conv2d(signs, scaled, padding=1) if x.ndim == 4 else functional.linear(signs, scaled)
        out.square().sum().backward()
        assert wave.grad is not None
        torch.testing.assert_close(layer.weight.grad, 20 * torch.cos(20 * layer.weight.detach()) * wave.grad)

    def test_gradcheck(self, make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
        layer = make(freq=3.0, bias=True, binarize_input=False, dtype=torch.float64)
        names, parameters = zip(*layer.named_parameters(), strict=True)
        x = torch.randn(shape, dtype=torch.float64)[:2].requires_grad_()

        def call(x: Tensor, *values: Tensor) -> Tensor:
            out: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), (x,))
            return out

        assert gradcheck(call, (x, *parameters), fast_mode=True)
        layer.binarize_input = True
        assert gradcheck(lambda *values: call(x.detach(), *values), parameters, fast_mode=True)

    def test_stage_and_frequency_are_saved_and_the_parameters_stay(
        self, make: Callable[..., Layer], shape: tuple[int, ...], tmp_path: Path
    ) -> None:
        layer = make(freq=15.0, bias=True)
        before = copy.deepcopy(list(layer.parameters()))
        set_stage(layer, 2)
        assert all(map(torch.equal, before, layer.parameters()))
        x = torch.randn(shape)
        other, third, fourth = make(bias=True), make(bias=True), make(bias=True)
        other.load_state_dict(layer.state_dict())
        save_model(layer, tmp_path / "layer.safetensors")
        load_model(third, tmp_path / "layer.safetensors")
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        fourth.load_state_dict(torch.load(tmp_path / "layer.pt"))
        for loaded in (other, third, fourth, copy.deepcopy(layer)):
            assert (loaded.stage, loaded.freq) == (2, 15.0)
            assert torch.equal(loaded(x), layer(x))

    def test_autocast_and_half(self, make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
        layer, x = make(stage=2, bias=True), torch.randn(shape)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(x)
            out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert {p.grad.dtype for p in layer.parameters() if p.grad is not None} == {torch.float32}
        torch.testing.assert_close(out.float(), layer(x), atol=0.15, rtol=0.05)
        halved = x.bfloat16().requires_grad_()
        layer.bfloat16()(halved).sum().backward()
        assert halved.grad is not None
        assert halved.grad.dtype == torch.bfloat16

    def test_without_a_batch_and_on_meta(self, make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
        layer, x = make(), torch.randn(shape)
        torch.testing.assert_close(layer(x[0]), layer(x)[0])
        with torch.device("meta"):
            absent = make()
        assert absent(torch.empty(shape, device="meta")).is_meta
        assert count_params(absent) == count_params(layer)
        plain = nn.Conv2d(4, 6, 3, padding=1) if len(shape) == 4 else nn.Linear(12, 5)
        assert count_macs(layer, x) == count_macs(plain, x)

    def test_maps_over_parameters(self, make: Callable[..., Layer], shape: tuple[int, ...]) -> None:
        layer, x = make(stage=2).eval(), torch.randn(shape)
        parameters = {name: torch.stack([p.detach(), -p.detach()]) for name, p in layer.named_parameters()}
        both = torch.vmap(lambda p: torch.func.functional_call(layer, p, (x,)))(parameters)
        with torch.no_grad():
            torch.testing.assert_close(both[0], layer(x))
        # both the scale and the square wave change their sign
        torch.testing.assert_close(both[1], both[0])


# torch's tracer makes an instance of the function class, of which torch itself warns
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_traces_as_one_graph() -> None:
    model = nn.Sequential(conv(stage=1), nn.Flatten(), BiPerLinear(180, 2, stage=2))
    x = torch.randn(2, 4, 5, 6, requires_grad=True)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    (mine,) = torch.autograd.grad(compiled(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(mine, theirs)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_linear_takes_any_leading_dimensions_each_row_on_its_own() -> None:
    layer = linear()
    x = torch.randn(2, 3, 12, requires_grad=True)
    layer(x).square().sum().backward()
    rows = x.detach().reshape(6, 12).requires_grad_()
    layer(rows).square().sum().backward()
    assert rows.grad is not None
    torch.testing.assert_close(x.grad, rows.grad.view(2, 3, 12))


def test_geometry_is_torchs() -> None:
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    signs = torch.where(x < 0, -1.0, 1.0).double()
    for geometry in (
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2},
        {"kernel_size": 3, "padding": "same", "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 2, "padding_mode": "circular", "bias": True},
        {"kernel_size": (1, 3), "padding": "valid", "groups": 6},
    ):
        plain = nn.Conv2d(6, 6, **{"bias": False, **geometry}, dtype=torch.float64)  # type: ignore[arg-type]
        layer = BiPerConv2d.like(plain)
        with torch.no_grad():
            plain.weight.copy_(layer.scaled_weight)
        torch.testing.assert_close(layer(x), plain(signs))


class TestLike:
    def test_keeps_weight_bias_and_the_mean_square_of_each_output(self) -> None:
        for stage in (1, 2):
            plain = nn.Conv2d(8, 4, 3, padding=1, dtype=torch.float64)
            layer = BiPerConv2d.like(plain, freq=9.0, stage=stage)
            assert torch.equal(layer.weight, plain.weight)
            assert torch.equal(layer.bias, plain.bias)  # type: ignore[arg-type]
            torch.testing.assert_close(
                layer.scaled_weight.square().mean((1, 2, 3)), plain.weight.square().mean((1, 2, 3))
            )

    def test_of_small_weights_is_the_layer_itself_in_stage_1(self) -> None:
        plain = nn.Linear(8, 4)
        with torch.no_grad():
            plain.weight.mul_(0.01)
        torch.testing.assert_close(BiPerLinear.like(plain).scaled_weight, plain.weight, atol=1e-6, rtol=1e-3)

    def test_of_zeros_is_finite_and_on_meta_works(self) -> None:
        plain = nn.Linear(8, 4)
        nn.init.zeros_(plain.weight)
        assert BiPerLinear.like(plain)(torch.randn(2, 8)).isfinite().all()
        assert BiPerLinear.like(plain.to("meta")).weight.is_meta

    def test_frozen_and_tied_weights_stay_so(self) -> None:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        new = swap(model, {nn.Linear: BiPerLinear.like})
        assert new[0].weight is new[1].weight
        model[0].weight.requires_grad_(False)
        frozen = BiPerLinear.like(model[0])
        assert [p.requires_grad for p in (frozen.weight, frozen.alpha, frozen.bias) if p is not None] == [
            False,
            False,
            True,
        ]


class TestKeptWeight:
    @torch.no_grad()
    def test_is_built_once_and_follows_stage_frequency_and_parameters(self) -> None:
        layer = linear().eval()
        assert layer.scaled_weight is layer.scaled_weight
        for change in (
            lambda: set_stage(layer, 2),
            lambda: setattr(layer, "freq", 3.0),
            lambda: layer.alpha.mul_(2),
            lambda: layer.weight.add_(0.5),
            lambda: layer.load_state_dict(linear().state_dict()),
        ):
            before = layer.scaled_weight
            change()
            fresh = layer.alpha.unsqueeze(-1) * layer.binary_weight()
            assert torch.equal(layer.scaled_weight, fresh)
            assert not torch.equal(fresh, before)
        kept = layer.scaled_weight
        assert layer.train().eval().scaled_weight is not kept

    def test_reaches_the_parameters_where_a_gradient_is_wanted(self) -> None:
        layer = conv(stage=2).eval()
        x = torch.randn(2, 4, 5, 5, requires_grad=True)
        with torch.no_grad():
            layer(x)
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        assert x.grad is not None
        assert x.grad.any()


def test_initial_values() -> None:
    layer = BiPerConv2d(64, 128, 3)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 576), rel=0.02)
    assert 0 <= layer.alpha.min() < 0.1 < 0.9 < layer.alpha.max() < 1
    assert layer.bias is None
    assert layer.stage == 1
    assert layer.freq == 20


def test_penalty_is_the_one_of_the_authors() -> None:
    model = nn.Sequential(linear(freq=3.0), nn.Linear(5, 5), BiPerLinear(5, 2))
    expected = sum(0.5 - 0.5 * torch.cos(2 * m.freq * m.weight).mean() for m in biper_layers(model).values())
    torch.testing.assert_close(sine_penalty(model), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: conv(freq=0.0), "freq must be positive, got 0.0"),
        (lambda: linear(freq=-1.0), "freq must be positive, got -1.0"),
        (lambda: linear(freq=math.inf), "freq must be positive, got inf"),
        (lambda: conv(stage=3), "stage must be 1 or 2, got 3"),
        (lambda: linear(stage=0), "stage must be 1 or 2, got 0"),
        (lambda: square_wave(torch.zeros(1), 0.0), "freq must be positive"),
        (lambda: BiPerConv2d(4, 6, 3, groups=4), "out_channels must be divisible by groups = 4, got 6"),
        (lambda: BiPerConv2d(4, 6, 3, padding_mode="mirror"), "unknown padding_mode 'mirror'"),
        (lambda: conv()(torch.zeros(1, 3, 5, 5)), r"dimension -3 of input must have size 4, got shape \(1, 3, 5, 5\)"),
        (lambda: linear()(torch.zeros(2, 11)), r"dimension -1 of input must have size 12, got shape \(2, 11\)"),
        (lambda: conv()(torch.zeros(4, 5)), r"input must have shape \(batch, channels, height, width\)"),
        (lambda: conv()(torch.zeros(1, 4, 5, 5, dtype=torch.int64)), "floating-point type, got torch.int64"),
        (lambda: linear()(torch.zeros(2, 12, dtype=torch.bool)), "floating-point type, got torch.bool"),
        (lambda: set_stage(nn.Linear(2, 2), 2), "found no BiPer layer, got a Linear"),
        (lambda: set_stage(linear(), 3), "stage must be 1 or 2, got 3"),
        (lambda: sine_penalty(nn.ReLU()), "found no BiPer layer, got a ReLU"),
    ],
)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
