"""Tests of ``netwright.layers.complex``."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional

from netwright.cost import count_params
from netwright.layers.complex import (
    ComplexConv1d,
    ComplexConv2d,
    ComplexConv3d,
    ComplexConvTranspose2d,
    ComplexDropout,
    ComplexLinear,
    complex_init_,
)

COMPLEX = torch.complex64
# a real layer, what replaces it, the shape of an input; the first of each kind is stacked, the second by three products
LAYERS: list[tuple[nn.Module, type[nn.Module], tuple[int, ...]]] = [
    (nn.Linear(6, 4), ComplexLinear, (5, 3, 6)),
    (nn.Linear(6, 4, bias=False), ComplexLinear, (6,)),
    (nn.Conv1d(3, 4, 3, padding=1), ComplexConv1d, (2, 3, 9)),
    (nn.Conv1d(6, 4, 3, groups=2, dilation=2), ComplexConv1d, (2, 6, 9)),
    (nn.Conv2d(3, 4, 3, padding="same"), ComplexConv2d, (2, 3, 6, 7)),
    (nn.Conv2d(32, 32, 3, stride=2, padding=1), ComplexConv2d, (2, 32, 5, 6)),
    (nn.Conv2d(4, 4, (3, 2), padding=1, groups=4, padding_mode="circular"), ComplexConv2d, (2, 4, 6, 5)),
    (nn.Conv2d(30, 32, (3, 5), padding="same", bias=False), ComplexConv2d, (1, 30, 5, 6)),
    (nn.Conv3d(2, 3, 3, padding=1), ComplexConv3d, (2, 2, 4, 4, 4)),
    (nn.Conv3d(10, 10, 3, bias=False), ComplexConv3d, (1, 10, 3, 4, 4)),
    (nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), ComplexConvTranspose2d, (2, 4, 4, 5)),
    (nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2, dilation=2), ComplexConvTranspose2d, (2, 8, 4, 5)),
]
IDS = [f"{type(layer).__name__}-{number % 2}" for number, (layer, _, _) in enumerate(LAYERS)]
every_layer = pytest.mark.parametrize(("real", "kind", "shape"), LAYERS, ids=IDS)


def with_bias(layer: nn.Module) -> nn.Module:
    """A layer whose bias is not zero."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith("bias"):
                parameter.normal_()
    return layer


def by_parts(real: nn.Module, layer: nn.Module, x: Tensor) -> Tensor:
    """The definition, from four applications of a real layer."""

    def apply(weight: Tensor, part: Tensor) -> Tensor:
        parameters = {"weight": weight}
        if real.bias is not None:
            parameters["bias"] = torch.zeros_like(real.bias, dtype=weight.dtype)
        return functional_call(real, parameters, (part,))

    w_real, w_imag = layer.weight_real, layer.weight_imag
    y = torch.complex(apply(w_real, x.real) - apply(w_imag, x.imag), apply(w_imag, x.real) + apply(w_real, x.imag))
    if layer.bias is None:
        return y
    axis = -1 if isinstance(real, nn.Linear) else -1 - len(real.kernel_size)
    return y + layer.bias.view([-1 if d == axis % y.ndim else 1 for d in range(y.ndim)])


@every_layer
def test_is_the_product_of_complex_numbers(real: nn.Module, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = with_bias(kind.like(real)).double()
    x = torch.randn(shape, dtype=torch.complex128)
    torch.testing.assert_close(layer(x), by_parts(real, layer, x))
    if not isinstance(real, nn.Linear):
        torch.testing.assert_close(layer(x[0]), layer(x)[0])  # without a batch dimension
    factor = torch.tensor(0.6 - 0.8j, dtype=x.dtype)  # complex linear, not only real linear
    shift = 0 if layer.bias is None else layer(torch.zeros_like(x))
    torch.testing.assert_close(layer(factor * x) - shift, factor * (layer(x) - shift))


@every_layer
def test_counts_bias_and_mean_square(real: nn.Module, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer = kind.like(real)
    assert count_params(layer) == 2 * count_params(real)
    assert layer.weight.shape == real.weight.shape
    torch.testing.assert_close(layer.weight.abs().square().mean(), real.weight.square().mean())
    assert (layer.bias is None) == (real.bias is None)
    if real.bias is not None:
        torch.testing.assert_close(layer.bias, torch.complex(real.bias, torch.zeros_like(real.bias)))
    with torch.device("meta"):
        on_meta = kind.like(copy.deepcopy(real).to("meta"))
        expected = real(torch.empty(shape, device="cpu")).shape
        assert on_meta(torch.empty(shape, dtype=COMPLEX)).shape == expected
        assert count_params(on_meta) == count_params(layer)


@every_layer
def test_gradients_and_round_trip(
    real: nn.Module, kind: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Against autograd through the definition, once and twice."""
    layer = with_bias(kind.like(real)).double()
    x = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    weights = torch.randn_like(layer(x))

    def gradients(function: Callable[[Tensor], Tensor], *, twice: bool) -> list[Tensor]:
        leaves = [x, *layer.parameters()]
        loss = (function(x) * weights).real.sum() if not twice else function(x).abs().square().sum()
        found = torch.autograd.grad(loss, leaves, create_graph=twice)
        if twice:
            found = torch.autograd.grad(sum(g.abs().square().sum() for g in found), leaves)
        return list(found)

    for twice in (False, True):
        mine, reference = (gradients(function, twice=twice) for function in (layer, lambda x: by_parts(real, layer, x)))
        for a, b in zip(mine, reference, strict=True):
            torch.testing.assert_close(a, b)
    save_model(layer, str(tmp_path / "layer.safetensors"))
    again = kind.like(real).double()
    load_model(again, str(tmp_path / "layer.safetensors"))
    torch.testing.assert_close(again(x), layer(x))


@pytest.mark.parametrize("stacked", [True, False])
def test_gradcheck(stacked: bool) -> None:
    layer = ComplexConv2d(2, 2, 2, padding=1, dtype=torch.complex128)
    layer._stacked = stacked
    x = torch.randn(1, 2, 2, 2, dtype=torch.complex128, requires_grad=True)
    names = [name for name, _ in layer.named_parameters()]

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert gradcheck(run, (x, *layer.parameters()))
    assert gradgradcheck(run, (x, *layer.parameters()))


def test_frozen_parts_get_no_gradient() -> None:
    layer = ComplexConv2d(32, 32, 3)
    layer.requires_grad_(False)
    x = torch.randn(1, 32, 4, 4, dtype=COMPLEX, requires_grad=True)
    layer(x).abs().sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in layer.parameters())
    layer.weight_real.requires_grad_(True)
    layer(x.detach()).abs().sum().backward()
    assert layer.weight_real.grad is not None
    assert layer.weight_imag.grad is None
    linear = nn.Linear(3, 3).requires_grad_(False)
    assert not any(p.requires_grad for p in ComplexLinear.like(linear).parameters())


@pytest.mark.parametrize(("real", "kind", "shape"), [LAYERS[i] for i in (0, 5, 10)])
def test_autocast_and_compile(real: nn.Module, kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    layer, x = kind.like(real), torch.randn(shape, dtype=COMPLEX)
    expected = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
    assert half.dtype == COMPLEX
    torch.testing.assert_close(half, expected)
    half.abs().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected)


def test_works_with_torch_func() -> None:
    layer = ComplexConv2d(32, 32, 3)
    x = torch.randn(3, 2, 32, 4, 4, dtype=COMPLEX)
    torch.testing.assert_close(torch.vmap(layer)(x), torch.stack([layer(one) for one in x]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("criterion", ["glorot", "he"])
@pytest.mark.parametrize("kind", ["rayleigh", "unitary"])
@pytest.mark.parametrize(("groups", "transposed"), [(1, False), (2, False), (2, True)])
def test_init_has_the_mean_square_of_the_criterion(criterion: str, kind: str, groups: int, transposed: bool) -> None:
    """Rayleigh's distribution of scale σ has mean square 2σ²."""
    w = torch.empty(40, 30, 3, 3, dtype=torch.complex128)
    complex_init_(w, criterion, kind, groups=groups, transposed=transposed)
    inner, outer = (40 // groups, 30) if transposed else (30, 40 // groups)
    fan = (inner + outer) * 9 if criterion == "glorot" else inner * 9
    assert w.abs().square().mean().item() == pytest.approx(2 / fan, rel=0.05)


def test_init_is_rayleigh_in_modulus_and_uniform_in_phase() -> None:
    generator = torch.Generator().manual_seed(0)
    w = complex_init_(torch.empty(100, 100, dtype=torch.complex128), generator=generator)
    modulus, phase = w.abs().flatten().sort().values, w.angle().flatten().sort().values
    steps = (torch.arange(10_000) + 0.5) / 10_000
    distribution = 1 - torch.exp(-modulus.square() * 100 / 2)  # σ² = 1/100
    assert (distribution - steps).abs().max() < 1.95 / math.sqrt(10_000)  # Kolmogorov's 99.9 % bound
    assert ((phase + math.pi) / (2 * math.pi) - steps).abs().max() < 1.95 / math.sqrt(10_000)
    again = complex_init_(torch.empty(100, 100, dtype=torch.complex128), generator=generator.manual_seed(0))
    assert torch.equal(w, again)


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 4, 3, 3)])
def test_unitary_init_is_unitary_up_to_scale(shape: tuple[int, ...]) -> None:
    w = complex_init_(torch.empty(shape, dtype=torch.complex128), kind="unitary").flatten(1)
    small = w @ w.mH if w.shape[0] <= w.shape[1] else w.mH @ w
    torch.testing.assert_close(small / small[0, 0], torch.eye(len(small), dtype=w.dtype))


def test_he_keeps_the_size_of_signals_through_crelu() -> None:
    layer = ComplexLinear(256, 256, bias=False)
    x = torch.randn(500, 256, dtype=COMPLEX)
    for _ in range(2):
        y = layer(torch.complex(functional.relu(x.real), functional.relu(x.imag)))
        assert y.abs().square().mean().item() == pytest.approx(x.abs().square().mean().item(), rel=0.1)
        x = y
        layer.reset_parameters("he", "unitary")


@settings(max_examples=8, deadline=None)
@given(st.floats(0, 0.9), st.integers(0, 1000))
def test_dropout_drops_whole_numbers(p: float, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(400, dtype=COMPLEX)
    y = ComplexDropout(p)(x)
    dropped = y == 0
    torch.testing.assert_close(y[~dropped], x[~dropped] / (1 - p))
    assert dropped.double().mean().item() == pytest.approx(p, abs=0.15)
    assert torch.equal(ComplexDropout(p).eval()(x), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ComplexLinear(3, 3)(torch.randn(2, 3)),
            r"input must be complex \(torch.complex\(x, .*got torch.float",
        ),
        (lambda: ComplexConv2d(3, 3, 3)(torch.randn(2, 3, 5, 5)), "input must be complex"),
        (lambda: ComplexDropout()(torch.randn(2, 3)), "input must be complex"),
        (lambda: ComplexLinear(3, 3)(torch.randn(2, 4, dtype=COMPLEX)), "dimension -1 of input must have size 3"),
        (lambda: ComplexConv1d(3, 3, 3)(torch.randn(2, 4, 5, dtype=COMPLEX)), "dimension -2 of input must have size 3"),
        (
            lambda: ComplexConv2d(3, 3, 3)(torch.randn(3, 5, dtype=COMPLEX)),
            r"input must have shape \(batch, chan",
        ),
        (lambda: ComplexLinear(0, 3), "in_features must be at least 1, got 0"),
        (lambda: ComplexConv2d(4, 6, 3, groups=4), "out_channels must be divisible by groups = 4, got 6"),
        (lambda: ComplexConv2d(4, 4, (3, 3, 3)), "kernel_size must be a number or 2 numbers"),
        (lambda: ComplexConv2d(4, 4, 3, padding="sane"), "unknown padding 'sane'; did you mean 'same'"),
        (lambda: ComplexConv2d(4, 4, 3, stride=2, padding="same"), "padding 'same' needs stride 1"),
        (lambda: ComplexConv2d(4, 4, 3, padding_mode="mirror"), "unknown padding_mode 'mirror'"),
        (lambda: ComplexDropout(1.0), r"p must be in \[0, 1\), got 1.0"),
        (lambda: complex_init_(torch.empty(3, 3)), "weight must be complex"),
        (lambda: complex_init_(torch.empty(3, dtype=COMPLEX)), "axes of weight must be at least 2, got 1"),
        (lambda: complex_init_(torch.empty(3, 3, dtype=COMPLEX), "hee"), "unknown criterion 'hee'; did you mean"),  # type: ignore[arg-type]
        (
            lambda: complex_init_(torch.empty(3, 3, dtype=COMPLEX), kind="unit"),
            "unknown kind of complex weights 'unit'",
        ),  # type: ignore[arg-type]
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
