"""Tests of ``netwright.compression.binary``: what binarising loses, and binary layers for a real network."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from netwright.compression.binary import (
    laplace_quantization_error,
    laplace_sine_moments,
    quantization_error,
    to_biper,
)
from netwright.layers.biper import BiPerConv2d, BiPerLinear, biper_layers
from netwright.surgery import swapped


class TestQuantizationError:
    @pytest.mark.parametrize("freq", [1.0, 5.0, 20.0, 200.0])
    def test_of_laplace_weights_is_the_closed_form(self, freq: float) -> None:
        weight = torch.distributions.Laplace(0.0, 0.1).sample((1_000_000,))
        sine = torch.sin(freq * weight)
        mean, square = laplace_sine_moments(0.1, freq)
        assert sine.abs().mean().item() == pytest.approx(mean, abs=1e-3)
        assert sine.square().mean().item() == pytest.approx(square, abs=1e-3)
        for scale in ("optimal", "unit"):
            expected = laplace_quantization_error(0.1, freq, scale)  # type: ignore[arg-type]
            assert quantization_error(weight, freq, scale) == pytest.approx(expected, abs=1e-3)  # type: ignore[arg-type]

    def test_is_the_mean_square_and_the_scale_is_the_best(self) -> None:
        weight = torch.randn(50, 20, dtype=torch.float64)
        sine = torch.sin(3 * weight)

        def error(scale: Tensor | float) -> float:
            return (sine - scale * sine.sign()).square().mean().item()

        best = sine.abs().mean()
        assert quantization_error(weight, 3.0) == pytest.approx(error(best))
        assert quantization_error(weight, 3.0, "unit") == pytest.approx(error(1.0))
        assert error(best) < min(error(best + 0.01), error(best - 0.01))
        relative = quantization_error(weight, 3.0, relative=True)
        assert relative == pytest.approx(error(best) / sine.square().mean().item())

    def test_limits(self) -> None:
        assert laplace_quantization_error(1e5, 20.0) == pytest.approx(1 / 2 - 4 / math.pi**2)
        assert laplace_quantization_error(1e5, 20.0, relative=True) == pytest.approx(1 - 8 / math.pi**2)
        # low frequencies: the sine is the weight itself, and the square wave its sign
        assert laplace_quantization_error(1e-4, 1.0, relative=True) == pytest.approx(0.5, abs=1e-6)
        gaussian = torch.randn(1_000_000)
        assert quantization_error(gaussian, 1e-3, relative=True) == pytest.approx(1 - 2 / math.pi, abs=3e-3)

    @given(st.floats(0.01, 30), st.floats(1.01, 3))
    def test_relative_error_falls_with_the_frequency(self, x: float, factor: float) -> None:
        lower = laplace_quantization_error(x, 1.0, relative=True)
        assert laplace_quantization_error(x, factor, relative=True) < lower

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: quantization_error(torch.ones(2), 0.0), "freq must be positive"),
            (lambda: quantization_error(torch.ones(2), 1.0, "best"), "unknown scale 'best'"),  # type: ignore[arg-type]
            (lambda: quantization_error(torch.ones(2, dtype=torch.int64), 1.0), "floating-point type, got torch.int64"),
            (lambda: quantization_error(torch.zeros(2), 1.0, relative=True), "sine is not zero everywhere"),
            (lambda: laplace_quantization_error(0.0, 1.0), "b must be positive"),
            (lambda: laplace_sine_moments(1.0, -1.0), "freq must be positive"),
        ],
    )
    def test_bad_input(self, call: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            call()


class Functional(nn.Module):
    """Calls ReLU as a function, and its layers in another order than it makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(8, 3)
        self.signed = nn.Linear(8, 8)
        self.positive = nn.Linear(8, 8)
        self.first = nn.Linear(4, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.positive(functional.relu(self.first(input)))
        out: Tensor = self.last(functional.relu(self.signed(hidden)))
        return out


class TestToBiper:
    def test_keeps_first_and_last_and_changes_activations(self) -> None:
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, bias=False),
            nn.ReLU6(),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.ReLU(),
            nn.Linear(16, 2),
        ).eval()
        new = to_biper(model, torch.randn(4, 1, 6, 6), freq=7.0, stage=2)
        assert swapped(new) == ("2", "5")
        kinds = [type(m).__name__ for m in new]
        assert kinds == [
            "Conv2d",
            "Hardtanh",
            "BiPerConv2d",
            "Hardtanh",
            "Flatten",
            "BiPerLinear",
            "Hardtanh",
            "Linear",
        ]
        assert [m.inplace for m in new if isinstance(m, nn.Hardtanh)] == [True, False, False]
        assert {(m.freq, m.stage, m.training) for m in biper_layers(new).values()} == {(7.0, 2, False)}
        assert isinstance(model[2], nn.Conv2d)
        assert new(torch.randn(2, 1, 6, 6)).shape == (2, 2)
        picked = to_biper(model, torch.randn(4, 1, 6, 6), where=lambda name, _: name == "5")
        assert list(biper_layers(picked)) == ["5"]

    def test_looks_at_the_order_of_the_calls_and_the_signs_of_the_inputs(self) -> None:
        new = to_biper(Functional(), torch.randn(32, 4))
        layers = biper_layers(new)
        assert {name: layer.binarize_input for name, layer in layers.items()} == {"signed": True, "positive": False}
        assert type(new.unused) is nn.Linear

    def test_leaves_torchs_transformer_alone(self) -> None:
        block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation=nn.ReLU())
        model = nn.Sequential(nn.Linear(4, 8), block, nn.Linear(8, 8), nn.Linear(8, 2))
        new = to_biper(model, torch.randn(2, 5, 4))
        assert list(biper_layers(new)) == ["2"]
        assert isinstance(new[1].activation, nn.ReLU)

    def test_a_trained_network_is_almost_kept_in_stage_1(self) -> None:
        """Small weights on inputs that are signs already: the sine is straight there."""
        layer = nn.Linear(16, 16)
        with torch.no_grad():
            layer.weight.mul_(0.02)
        new = BiPerLinear.like(layer)
        x = torch.where(torch.randn(5, 16) < 0, -1.0, 1.0)
        torch.testing.assert_close(new(x), layer(x), atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("model", [nn.Flatten(), nn.Linear(4, 2), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))])
    def test_nothing_to_replace(self, model: nn.Module) -> None:
        with pytest.raises(ValueError, match="found no linear layer or 2-D convolution to replace between"):
            to_biper(model, torch.randn(3, 4))

    def test_does_not_replace_its_own_layers(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), BiPerLinear(4, 4), BiPerConv2d(1, 1, 1), nn.Linear(4, 2))
        with pytest.raises(ValueError, match="found no linear layer"):
            to_biper(nn.Sequential(model[0], model[1], model[3]), torch.randn(3, 4))
