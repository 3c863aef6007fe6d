"""Tests of ``netwright.layers.complex_activations``."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from netwright.layers.complex_activations import (
    ACTIVATIONS,
    Cardioid,
    CModReLU,
    ComplexMaxPool2d,
    CReLU,
    ModReLU,
    OnParts,
    SpectralUpsample2d,
    ZReLU,
    make_activation,
)

numbers = st.complex_numbers(max_magnitude=100, allow_nan=False)


@given(numbers, st.floats(-3, 0))
def test_activations_are_their_formulas(number: complex, b: float) -> None:
    z = torch.tensor([[number]], dtype=torch.complex128)
    modulus = abs(number)
    first = number if number.real > 0 and number.imag > 0 else 0
    expected = {
        CReLU(): complex(max(number.real, 0), max(number.imag, 0)),
        ZReLU(): first,
        ModReLU(1, b, dtype=torch.float64): max(modulus + b, 0) * number / modulus if modulus else 0,
        CModReLU(-b, dtype=torch.float64): max(1 + b / modulus, 0) * number if modulus else 0,
        Cardioid(): 0.5 * (1 + number.real / modulus) * number if modulus else 0,
    }
    for layer, value in expected.items():
        torch.testing.assert_close(layer(z), torch.tensor([[value]], dtype=torch.complex128), atol=1e-9, rtol=1e-6)


def test_real_numbers_see_relu() -> None:
    x = torch.randn(100)
    z = torch.complex(x, torch.zeros_like(x))
    for layer in (CReLU(), Cardioid()):
        torch.testing.assert_close(layer(z).real, functional.relu(x))


@pytest.mark.parametrize("name", ["modrelu", "cmodrelu", "cardioid"])
def test_phase_is_kept(name: str) -> None:
    z = torch.randn(50, 4, dtype=torch.complex128)
    y = make_activation(name, 4)(z)
    alive = y != 0
    torch.testing.assert_close(y[alive].angle(), z[alive].angle())
    if name != "cardioid":  # these commute with rotations
        turn = torch.tensor(0.6 + 0.8j, dtype=z.dtype)
        torch.testing.assert_close(make_activation(name, 4)(turn * z), turn * y)


def test_modrelu_has_a_bias_for_each_channel() -> None:
    layer = ModReLU(3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1.0, 0.0, -100.0]))
    z = torch.randn(2, 3, 4, 4, dtype=torch.complex64) * 3
    y = layer(z)
    torch.testing.assert_close(y[:, 0].abs(), (z[:, 0].abs() - 1).relu())
    torch.testing.assert_close(y[:, 1], z[:, 1])
    assert not y[:, 2].abs().any()
    assert CModReLU(0.3).threshold.requires_grad
    assert "threshold" in dict(CModReLU(0.3, learn=False).named_buffers())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients(name: str) -> None:
    layer = make_activation(name, 2).double()
    z = torch.randn(3, 2, 2, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(layer, (z,), fast_mode=True)
    assert gradgradcheck(layer, (z,), fast_mode=True)
    zero = torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)
    layer.float()(zero).abs().square().sum().backward()
    assert not zero.grad.abs().any()  # not nan
    with torch.device("meta"):
        assert make_activation(name, 2)(torch.empty(3, 2, dtype=torch.complex64)).shape == (3, 2)


def test_one_graph() -> None:
    layer = nn.Sequential(
        CReLU(), ModReLU(2), ComplexMaxPool2d(2), ZReLU(), Cardioid(), OnParts(nn.AvgPool2d(2)), SpectralUpsample2d(2)
    )
    z = torch.randn(2, 2, 8, 8, dtype=torch.complex64)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(z), layer(z))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(layer(z), layer(z))


@pytest.mark.parametrize("options", [{}, {"stride": 1}, {"padding": 1, "stride": (2, 3)}, {"ceil_mode": True}])
def test_max_pool_takes_the_largest_modulus(options: dict[str, object]) -> None:
    z = torch.randn(2, 3, 7, 9, dtype=torch.complex128, requires_grad=True)
    layer = ComplexMaxPool2d(3, **options)
    y = layer(z)
    modulus = functional.max_pool2d(z.abs(), 3, **options)
    torch.testing.assert_close(y.abs(), modulus)
    assert torch.isin(torch.view_as_real(y)[..., 0], z.real).all()  # whole numbers of the input
    parts = ComplexMaxPool2d(3, by="parts", **options)(z)
    torch.testing.assert_close(parts.real, functional.max_pool2d(z.real, 3, **options))
    assert gradcheck(layer, (z,), fast_mode=True)
    torch.testing.assert_close(layer(z[0]), y[0])


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 6), (7, 5)])
@pytest.mark.parametrize("factor", [2, (3, 2), (1, 4)])
def test_spectral_upsampling(height: int, width: int, factor: int | tuple[int, int]) -> None:
    x = torch.randn(2, height, width, dtype=torch.float64)
    layer = SpectralUpsample2d(factor)
    y = layer(torch.complex(x, torch.zeros_like(x)))
    down, across = layer.scale_factor
    torch.testing.assert_close(y[:, ::down, ::across].real, x)  # interpolation
    torch.testing.assert_close(y.imag, torch.zeros_like(y.imag))  # real stays real
    z = torch.randn(1, height, width, dtype=torch.complex128, requires_grad=True)
    assert gradcheck(layer, (z,), fast_mode=True)

    # a band-limited field is the same function on the finer grid
    def wave(rows: int, columns: int) -> Tensor:
        i, j = torch.arange(rows).double() / rows, torch.arange(columns).double() / columns
        return torch.exp(2j * torch.pi * (i[:, None] - 2 * j[None]))

    torch.testing.assert_close(layer(wave(height, width)), wave(height * down, width * across))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *(
            (lambda name=name: make_activation(name)(torch.randn(2, 1)), "input must be complex")
            for name in ACTIVATIONS
        ),
        (lambda: make_activation("crelo"), "unknown complex activation 'crelo'; did you mean 'crelu'"),
        (lambda: ModReLU(3)(torch.randn(2, 4, dtype=torch.complex64)), "dimension 1 of input must have size 3"),
        (lambda: ModReLU(3)(torch.randn(3, dtype=torch.complex64)), r"input must have shape \(batch, channels, \*\)"),
        (lambda: ModReLU(0), "num_features must be at least 1, got 0"),
        (lambda: CModReLU(-1.0), "threshold must be at least 0, got -1.0"),
        (lambda: ComplexMaxPool2d(2, by="phase"), "unknown way to pool 'phase'"),  # type: ignore[arg-type]
        (lambda: ComplexMaxPool2d(2)(torch.randn(1, 4, 4)), "input must be complex"),
        (lambda: OnParts(nn.Identity())(torch.randn(1, 4, 4)), "input must be complex"),
        (lambda: SpectralUpsample2d(0.5), "scale_factor must be at least 1, got 0.5"),
        (lambda: SpectralUpsample2d(1.5)(torch.randn(3, 3, dtype=torch.complex64)), "must be a whole number, got 1.5"),
        (lambda: SpectralUpsample2d()(torch.randn(4, 4)), "input must be complex"),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
