"""Tests of ``netwright.layers.complex_network``."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.cost import count_params
from netwright.layers.complex import ComplexConv2d, ComplexDropout, ComplexLinear
from netwright.layers.complex_activations import Cardioid, ComplexMaxPool2d, CReLU, OnParts
from netwright.layers.complex_network import FromComplex, ToComplex, to_complex
from netwright.layers.complex_norm import ComplexBatchNorm2d, ComplexLayerNorm
from netwright.models.vision.resnet import resnet_cifar


def test_ways_in_and_out() -> None:
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(ToComplex("zero")(x), x.to(torch.complex128))
    z = ToComplex("pairs")(x)
    torch.testing.assert_close(z, torch.complex(x[:, :2], x[:, 2:]))
    torch.testing.assert_close(FromComplex("pairs")(z), x)
    torch.testing.assert_close(FromComplex("real")(z), x[:, :2])
    torch.testing.assert_close(FromComplex("abs")(z), (x[:, :2] ** 2 + x[:, 2:] ** 2).sqrt())
    spectrum = ToComplex("fft")(x)
    torch.testing.assert_close(spectrum.abs().square().sum(), x.square().sum())  # of the same norm
    torch.testing.assert_close(spectrum[:, :, 3, 3].real, x.mean((2, 3)) * 6)  # frequency 0 in the middle
    assert ToComplex()(z) is z
    assert FromComplex()(x) is x
    assert ToComplex()(x.bfloat16()).dtype == torch.complex64


def test_converter_replaces_every_layer() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.LayerNorm(6),
        nn.Linear(6, 10),
    )
    x = torch.randn(3, 1, 8, 8)
    new = to_complex(model, x[:2], activation="cardioid", whiten=False)
    kinds = [ComplexConv2d, ComplexBatchNorm2d, Cardioid, ComplexMaxPool2d, ComplexConv2d, Cardioid, OnParts]
    kinds += [nn.Flatten, ComplexDropout, ComplexLayerNorm, ComplexLinear]
    assert [type(layer) for layer in new[1]] == kinds
    assert not new[1][1].whiten
    assert new(x).shape == model(x).shape
    assert (new.eval()(x) >= 0).all()  # moduli
    assert count_params(to_complex(model[:3], x)[1][0]) == 2 * count_params(model[0])
    assert isinstance(model[0], nn.Conv2d)
    new(x).sum().backward()
    assert all(p.grad is not None for p in new.parameters())


@pytest.mark.parametrize("inputs", ["zero", "fft"])
def test_residual_network_and_signals_keep_their_size(inputs: str) -> None:
    model = resnet_cifar(8, 8, shortcut="B", in_channels=1)
    x = torch.randn(16, 1, 8, 8)
    new = to_complex(model, x, inputs=inputs, readout="real")
    assert new(x).shape == (16, 10)
    parameters = {kind: sum(count_params(m) for m in model.modules() if isinstance(m, kind)) for kind in (nn.Conv2d,)}
    complex_ones = sum(count_params(m) for m in new.modules() if isinstance(m, ComplexConv2d))
    assert complex_ones == 2 * parameters[nn.Conv2d]
    deep = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    x = torch.randn(500, 64)
    assert to_complex(deep, x)(x).square().mean().item() == pytest.approx(deep(x).square().mean().item(), rel=0.5)


def test_the_imaginary_parts_learn() -> None:
    """With zero imaginary parts of inputs and weights the network would stay real."""
    x = torch.randn(8, 4)
    new = to_complex(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), x)
    new(x).sum().backward()
    assert all(layer.weight_imag.grad.abs().sum() > 0 for layer in new[1] if isinstance(layer, ComplexLinear))


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, input: Tensor) -> Tensor:
        return functional.gelu(self.linear(input))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: to_complex(nn.ReLU(), torch.randn(2, 4)), "replaces linear and convolutional layers; .* got ReLU"),
        (lambda: to_complex(Functional(), torch.randn(2, 4)), "does not run with complex numbers"),
        (lambda: to_complex(nn.TransformerEncoderLayer(8, 2), torch.randn(2, 8)), "replaces linear and convolutional"),
        (lambda: to_complex(nn.Linear(4, 4), torch.randn(2, 4), inputs="fft"), "inputs='fft' needs pictures"),
        (lambda: to_complex(nn.Linear(4, 4), torch.randn(2, 4), inputs="pairs"), "unknown inputs 'pairs'"),
        (lambda: to_complex(nn.Linear(4, 4), torch.randn(2, 4), readout="pairs"), "unknown readout 'pairs'"),
        (lambda: to_complex(nn.Linear(4, 4), torch.randn(2, 4), activation="relu"), "did you mean '.relu'"),
        (lambda: ToComplex("complex"), "unknown way into complex numbers 'complex'"),  # type: ignore[arg-type]
        (lambda: ToComplex("pairs")(torch.randn(2, 3)), "channels of the input must be divisible by .* = 2, got 3"),
        (lambda: ToComplex()(torch.ones(2, dtype=torch.long)), "input must be of a floating-point type"),
        (lambda: FromComplex("phase"), "unknown way out of complex numbers 'phase'"),  # type: ignore[arg-type]
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_head_is_a_modulus() -> None:
    x = torch.randn(2, 4)
    assert isinstance(to_complex(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), x)[1][1], CReLU)
