"""Tests of ``netwright.layers.hyperbolic_layers``: linear layer, convolution, Möbius skip."""

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
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_layers import Init, PoincareConv2d, PoincareLinear, beta_ratio, mobius_skip
from netwright.layers.hyperbolic_norm import PoincareBatchNorm2d

DOUBLE = torch.float64


def formula(u: Tensor, weight: Tensor, bias: Tensor | None, ball: PoincareBall, *, multiply: bool = False) -> Tensor:
    """The layer step by step on the ball, as the paper has it; with ``multiply``, λ_x as in the authors' code."""
    c = ball._number()
    root = math.sqrt(c)
    x = ball.expmap0(u)
    room = 1 - c * x.square().sum(-1, keepdim=True)
    factor = 2 * room if multiply else 2 / room
    norm = weight.norm(dim=1)
    angle = 2 * root * (torch.zeros_like(norm) if bias is None else bias)
    v = 2 * norm / root * (factor * root * (x @ weight.T) / norm * angle.cosh() - (factor - 1) * angle.sinh()).asinh()
    w = (root * v).sinh() / root
    y = w / (1 + (1 + c * w.square().sum(-1, keepdim=True)).sqrt())
    return ball.logmap0(ball.project(y))


def scrambled(layer: nn.Module, size: float = 0.4) -> nn.Module:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return layer


@given(c=st.floats(0.05, 3.0), size=st.floats(0.1, 20.0), bias=st.booleans())
def test_linear_layer_is_the_formula(c: float, size: float, bias: bool) -> None:
    layer = scrambled(PoincareLinear(4, 3, PoincareBall(c), bias, dtype=DOUBLE))
    assert isinstance(layer, PoincareLinear)
    u = size * torch.randn(2, 5, 4, dtype=DOUBLE)
    torch.testing.assert_close(layer(u), formula(u, layer.weight, layer.bias, layer.ball), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(layer(u[0, 0]), layer(u)[0, 0])


def test_the_conformal_factor_divides() -> None:
    """The authors' code multiplies: another function, and no identity at the identity initialisation."""
    ball = PoincareBall(1.0)
    layer = PoincareLinear(4, 4, ball, dtype=DOUBLE)
    u = torch.randn(10, 4, dtype=DOUBLE)
    torch.testing.assert_close(layer(u), u)
    multiplied = formula(u, layer.weight, layer.bias, ball, multiply=True)
    assert (multiplied - u).abs().max() > 0.1


def test_flat_space_gives_a_linear_layer() -> None:
    layer = scrambled(PoincareLinear(4, 3, PoincareBall(1e-10), dtype=DOUBLE))
    assert isinstance(layer, PoincareLinear)
    u = torch.randn(5, 4, dtype=DOUBLE)
    torch.testing.assert_close(
        layer(u), 2 * (u @ layer.weight.T - layer.weight.norm(dim=1) * layer.bias), rtol=1e-6, atol=1e-6
    )


GEOMETRIES = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (3, 2), "padding": (2, 0), "dilation": (1, 2)},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 3, "padding": "same"},
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_convolution_is_the_linear_layer_on_concatenated_patches(geometry: dict[str, object]) -> None:
    ball = PoincareBall(0.5)
    conv = scrambled(PoincareConv2d(2, 5, ball=ball, dtype=DOUBLE, **geometry))  # type: ignore[arg-type]
    assert isinstance(conv, PoincareConv2d)
    u = torch.randn(2, 2, 7, 6, dtype=DOUBLE)
    padding = tuple(k // 2 for k in conv.kernel_size) if conv.padding == "same" else conv.padding
    patches = functional.unfold(u, conv.kernel_size, conv.dilation, padding, conv.stride).transpose(1, 2)
    patches = patches * beta_ratio(2, math.prod(conv.kernel_size))
    expected = formula(patches, conv.weight.flatten(1), conv.bias, ball)
    output = conv(u)
    torch.testing.assert_close(output.flatten(2).transpose(1, 2), expected)
    torch.testing.assert_close(conv(u[0]), output[0])  # without a batch dimension
    plain = nn.Conv2d(2, 5, **geometry)  # type: ignore[arg-type]
    assert output.shape == plain(u.float()).shape


def test_many_samples_are_worked_on_in_turns() -> None:
    conv = PoincareConv2d(2, 8, 3, PoincareBall(0.5), padding=1, init="normal", dtype=DOUBLE)
    u = torch.randn(70, 2, 20, 20, dtype=DOUBLE, requires_grad=True)  # 224,000 numbers in the output
    output = conv(u)
    torch.testing.assert_close(output[40:], conv(u[40:]))
    output.square().sum().backward()
    written = [u.grad, *(p.grad for p in conv.parameters())]
    conv.zero_grad()
    u.grad = None
    conv.ball.backward = "autograd"
    conv(u).square().sum().backward()
    torch.testing.assert_close(written, [u.grad, *(p.grad for p in conv.parameters())])


def test_beta_concatenation_keeps_the_expected_norm() -> None:
    """The ratio of beta functions, and the limit √(n_i/n) of many channels."""
    for features, parts in ((1, 9), (8, 9), (3, 4)):
        numbers = torch.tensor([features * parts / 2, features / 2, 0.5], dtype=DOUBLE)
        whole, part, half = numbers.lgamma()
        ratio = (whole - (numbers[0] + 0.5).lgamma() - part + (numbers[1] + 0.5).lgamma()).exp()
        assert half > 0
        assert beta_ratio(features, parts) == pytest.approx(ratio.item())
    assert beta_ratio(10_000, 9) == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize(("init", "low", "high"), [("identity", 0.999, 1.001), ("normal", 0.0, 1e-6)])
def test_norms_over_depth(init: Init, low: float, high: float) -> None:
    ball = PoincareBall(1.0)
    net = nn.Sequential(*[PoincareLinear(32, 32, ball, init=init) for _ in range(20)])
    u = functional.normalize(torch.randn(100, 32)) * 0.5
    ratio = net(u).norm(dim=1).mean().item() / 0.5
    assert low < ratio < high


def test_rectangular_identity() -> None:
    conv = PoincareConv2d(2, 12, 3)
    matrix = conv.weight.detach().flatten(1)
    assert torch.equal(matrix, torch.eye(12, 18) / 2)
    assert conv.bias is not None
    assert not conv.bias.any()
    spread = PoincareLinear(40, 60, init="normal").weight.std().item()
    assert spread == pytest.approx((2 * 40 * 60) ** -0.5, rel=0.1)


@given(c=st.floats(0.05, 3.0), size=st.floats(0.1, 10.0))
def test_skip_is_the_mobius_addition(c: float, size: float) -> None:
    ball = PoincareBall(c)
    f, r = size * torch.randn(2, 3, 4, 2, 2, dtype=DOUBLE)
    expected = ball.logmap0(ball.mobius_add(ball.expmap0(f, 1), ball.expmap0(r, 1), 1), 1)
    torch.testing.assert_close(mobius_skip(f, r, ball), expected, rtol=1e-4, atol=1e-6)
    flat = [t.movedim(1, -1) for t in (f, r, expected)]
    torch.testing.assert_close(mobius_skip(flat[0], flat[1], ball, dim=-1), flat[2], rtol=1e-4, atol=1e-6)


Make = Callable[[PoincareBall], nn.Module]
LAYERS: list[tuple[Make, tuple[int, ...]]] = [
    (lambda ball: PoincareLinear(4, 3, ball), (5, 4)),
    (lambda ball: PoincareLinear(4, 3, ball, bias=False, init="normal"), (2, 3, 4)),
    (lambda ball: PoincareConv2d(2, 3, 3, ball, stride=2, padding=1), (2, 2, 5, 4)),
    (lambda ball: PoincareConv2d(2, 3, (1, 2), ball, bias=False), (2, 2, 3, 3)),
]
every_layer = pytest.mark.parametrize(("make", "shape"), LAYERS, ids=["linear", "no bias", "conv", "conv no bias"])


@every_layer
@pytest.mark.parametrize("size", [1.0, 30.0], ids=["inside", "boundary"])
def test_gradients_of_inputs_weights_and_curvature(make: Make, shape: tuple[int, ...], size: float) -> None:
    torch.manual_seed(1)
    layer = scrambled(make(PoincareBall(0.8, learnable=True)).double(), 0.2)
    names = [name for name, _ in layer.named_parameters()]
    assert "ball.raw_c" in names

    def call(u: Tensor, *parameters: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (u,))
        return output

    u = (size * torch.randn(shape, dtype=DOUBLE)).requires_grad_()
    values = [parameter.detach().clone().requires_grad_() for parameter in layer.parameters()]
    assert gradcheck(call, (u, *values))
    if u.ndim == 2:
        assert gradgradcheck(call, (u, *values))
    plain = copy.deepcopy(layer)
    for module in plain.modules():
        if isinstance(module, PoincareBall):
            module.backward = "autograd"
    torch.testing.assert_close(plain(u), layer(u))


@every_layer
def test_round_trip_meta_and_autocast(make: Make, shape: tuple[int, ...], tmp_path: Path) -> None:
    layer, u = scrambled(make(PoincareBall(0.5))), torch.randn(shape)
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = make(PoincareBall(0.5))
    load_model(again, str(tmp_path / "layer.safetensors"))
    expected = layer(u)
    assert torch.equal(again(u), expected)
    assert layer.to(torch.bfloat16)(u.bfloat16()).dtype == torch.bfloat16
    layer = layer.float()
    with torch.device("meta"):
        assert make(PoincareBall(0.5))(torch.empty(shape)).shape == expected.shape
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = again(u)
        assert output.dtype == torch.float32
        torch.testing.assert_close(output, expected, rtol=0.05, atol=0.05)
    output.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in again.parameters())


# torch's tracer makes an instance of each function class, of which torch itself warns
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
def test_traces_without_breaks() -> None:
    conv = PoincareConv2d(2, 3, 3, PoincareBall(0.5))
    norm = PoincareBatchNorm2d(3, conv.ball).eval()
    u = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        for layer, maps in ((conv, u), (norm, conv(u))):
            compiled = torch.compile(layer, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(maps), layer(maps))


@given(size=st.floats(1e-10, 1e10))
def test_float32_gives_finite_values_and_gradients(size: float) -> None:
    layer = PoincareLinear(3, 4, PoincareBall(0.1))
    with torch.no_grad():
        layer.weight[1] *= 100  # √c v is beyond what sinh can hold
        layer.weight[3] = 0  # a pruned neuron
    u = (torch.tensor([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]]) * size).requires_grad_()
    output = layer(u)
    output.sum().backward()
    assert output.isfinite().all()
    assert all(t is not None and t.isfinite().all() for t in (u.grad, layer.weight.grad))
    assert output.norm(dim=1).max() <= math.atanh(0.996) / math.sqrt(0.1) + 1e-4


def test_like_keeps_the_geometry() -> None:
    ball = PoincareBall(0.3)
    linear = PoincareLinear.like(nn.Linear(4, 6, bias=False, dtype=DOUBLE), ball, init="normal")
    assert (linear.in_features, linear.out_features, linear.bias, linear.init) == (4, 6, None, "normal")
    assert linear.weight.dtype == DOUBLE
    assert linear.ball is ball
    twin = nn.Conv2d(2, 6, (3, 1), stride=2, padding=(1, 0), dilation=(2, 1))
    conv = PoincareConv2d.like(twin, ball)
    u = torch.randn(2, 2, 9, 8)
    assert conv(u).shape == twin(u).shape
    assert conv.bias is not None


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="groups must be 1: a group of channels is no vector of the ball, got 2"):
        PoincareConv2d(4, 4, 3, groups=2)
    with pytest.raises(ValueError, match="groups must be 1"):
        PoincareConv2d.like(nn.Conv2d(4, 4, 3, groups=4))
    with pytest.raises(ValueError, match="padding must be with zeros, the origin of the ball, got reflect"):
        PoincareConv2d.like(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="unknown init 'eye'"):
        PoincareLinear(4, 4, init="eye")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown padding 'full'"):
        PoincareConv2d(4, 4, 3, padding="full")
    with pytest.raises(ValueError, match="stride must be at least 1"):
        PoincareConv2d(4, 4, 3, stride=0)
    for make in (lambda: PoincareLinear(0, 4), lambda: PoincareConv2d(0, 4, 3)):
        with pytest.raises(ValueError, match="must be at least 1, got 0"):
            make()
    with pytest.raises(ValueError, match="dimension -1 of input must have size 4"):
        PoincareLinear(4, 4)(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="dimension -3 of input must have size 4"):
        PoincareConv2d(4, 4, 3)(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="input must have shape"):
        PoincareConv2d(4, 4, 3)(torch.zeros(4, 8))
    with pytest.raises(ValueError, match="residual must have the shape"):
        mobius_skip(torch.zeros(2, 3), torch.zeros(2, 4), PoincareBall())
