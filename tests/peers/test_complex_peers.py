"""Complex layers against complexPyTorch's and the authors' own library, pytorch-complex, with the same weights."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from netwright.layers.complex import ComplexConv2d, ComplexConvTranspose2d, ComplexLinear
from netwright.layers.complex_activations import CModReLU, ComplexMaxPool2d, CReLU, ModReLU, ZReLU
from netwright.layers.complex_norm import ComplexBatchNorm2d, ComplexLayerNorm

pytestmark = pytest.mark.filterwarnings("ignore")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    theirs = pytest.importorskip("complexPyTorch.complexLayers", reason="complexPyTorch is not installed")
    authors = pytest.importorskip("torchcomplex.nn", reason="pytorch-complex is not installed")


def close(mine: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(mine, other.to(mine.dtype), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def take(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight_real.copy_(weight.real)
    layer.weight_imag.copy_(weight.imag)
    layer.bias_real.copy_(bias.real)
    layer.bias_imag.copy_(bias.imag)


@pytest.mark.parametrize(
    ("mine", "parts", "make", "shape"),
    [
        (ComplexLinear(6, 4), ("fc_r", "fc_i"), lambda: theirs.ComplexLinear(6, 4), (5, 6)),
        (
            ComplexConv2d(4, 6, 3, stride=2, padding=1, groups=2),
            ("conv_r", "conv_i"),
            lambda: theirs.ComplexConv2d(4, 6, 3, stride=2, padding=1, groups=2),
            (2, 4, 7, 6),
        ),
        (
            ComplexConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            ("conv_tran_r", "conv_tran_i"),
            lambda: theirs.ComplexConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
            (2, 4, 7, 6),
        ),
    ],
)
def test_complexpytorch(
    mine: nn.Module, parts: tuple[str, str], make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    other = make()
    real, imag = (getattr(other, part) for part in parts)
    # they add both biases to both parts: the real part gets b_r − b_i, the imaginary one b_r + b_i
    bias = torch.complex(real.bias - imag.bias, real.bias + imag.bias)
    take(mine, torch.complex(real.weight, imag.weight), bias)
    z = torch.randn(shape, dtype=torch.complex64)
    close(mine(z), other(z))


def test_authors_convolution() -> None:
    other = authors.Conv2d(8, 6, 3, padding=1)
    mine = ComplexConv2d(8, 6, 3, padding=1)
    b = other.bias  # added to both parts of the product, as in complexPyTorch
    take(mine, other.weight, torch.complex(b.real - b.imag, b.real + b.imag))
    z = torch.randn(2, 8, 7, 6, dtype=torch.complex64)
    close(mine(z), other(z))


@pytest.mark.parametrize("mode", [True, False])
def test_batch_norm_of_both(mode: bool) -> None:
    """γ starts at 1/√2 here and in the paper, at √2 in complexPyTorch, at 1 in pytorch-complex."""
    a, b = torch.randn(2, 8, 4, 6, 5)
    z = torch.complex(2 * a + 1, a + b)
    one, two = theirs.ComplexBatchNorm2d(4), authors.BatchNorm2d(4)
    mine = ComplexBatchNorm2d(4)
    with torch.no_grad():
        mine.weight.mul_(2**0.5)
        one.weight.div_(2**0.5)
    if mode:
        close(mine(z), two(z))
        close(mine(z), one(z))
    else:
        with torch.no_grad():
            mine.running_mean.normal_()
            mine.running_cov.copy_(torch.tensor([2.0, 0.5, 1.0])[:, None].expand(3, 4))
            one.running_mean.copy_(torch.complex(*mine.running_mean))
            one.running_covar.copy_(mine.running_cov[[0, 2, 1]].t())
            two.running_mean.copy_(mine.running_mean)
            two.running_var.copy_(mine.running_cov[[0, 1, 1, 2]].view(2, 2, 4))
        close(mine.eval()(z), two.eval()(z))
        close(mine(z), one.eval()(z))


def test_activations_and_pooling() -> None:
    z = torch.randn(2, 3, 8, 8, dtype=torch.complex64)
    close(CReLU()(z), authors.CReLU()(z))
    close(ZReLU()(z), authors.zReLU()(z))
    other = authors.modReLU()
    with torch.no_grad():
        other.bias.fill_(-0.3)
    close(ModReLU(1, bias=-0.3)(z), other(z))
    soft = authors.CmodReLU()
    with torch.no_grad():
        soft.threshold.fill_(0.3)
    close(CModReLU(0.3)(z), soft(z))
    close(ComplexMaxPool2d(2, by="abs")(z), theirs.ComplexMaxPool2d(2)(z))
    close(ComplexMaxPool2d(2, by="parts")(z), authors.MaxPool2d(2)(z))


def test_authors_layer_norm() -> None:
    z = torch.randn(4, 10, dtype=torch.complex64)
    close(ComplexLayerNorm(10)(z), authors.LayerNorm(10)(z))
