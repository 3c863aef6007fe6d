"""Complex layers against real ones: convolution by three or four products, by torch itself, stacked; whitening."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.layers._complex import stacked_convolution
from netwright.layers.complex import ComplexConv2d, ComplexLinear
from netwright.layers.complex_norm import ComplexBatchNorm2d

# batch, channels, pixels across: three products win with many channels, one stacked convolution with few
SHAPES = ((8, 64, 32), (32, 128, 8), (64, 24, 16), (64, 8, 16))


def four_products(layer: ComplexConv2d, z: Tensor) -> Tensor:
    def conv(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight, None, layer.stride, layer.padding)

    real, imag, w_real, w_imag = z.real, z.imag, layer.weight_real, layer.weight_imag
    return torch.complex(conv(real, w_real) - conv(imag, w_imag), conv(imag, w_real) + conv(real, w_imag))


def native(layer: ComplexConv2d, z: Tensor) -> Tensor:
    return functional.conv2d(z, layer.weight, None, layer.stride, layer.padding)


def stacked(layer: ComplexConv2d, z: Tensor) -> Tensor:
    return stacked_convolution(z, layer.weight_real, layer.weight_imag, None, None, layer._geometry)


def step(function: Callable[[Tensor], Tensor], layer: nn.Module, x: Tensor) -> Callable[[], object]:
    x = x.clone().requires_grad_()
    grad = torch.randn_like(function(x))
    return lambda: torch.autograd.grad(function(x), [x, *layer.parameters()], grad)


def main() -> None:
    torch.manual_seed(0)
    for batch, channels, size in SHAPES:
        z = torch.randn(batch, channels, size, size, dtype=torch.complex64)
        real = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        layer = ComplexConv2d(channels, channels, 3, padding=1, bias=False)
        others = {"four products": four_products, "torch's own": native, "stacked": stacked}
        side_by_side(
            f"3×3 convolution, {channels} channels, {size}×{size}, batch {batch}: training step",
            {
                "one real convolution": step(real, real, z.real),
                "ComplexConv2d": step(layer, layer, z),
                **{name: step(partial(function, layer), layer, z) for name, function in others.items()},
            },
            baseline="one real convolution",
            targets={"ComplexConv2d": 3.3},
        )
    for batch, channels, size in SHAPES[:2]:
        z = torch.randn(batch, channels, size, size, dtype=torch.complex64)
        pairs = torch.cat([z.real, z.imag], 1)
        norms = {
            "BatchNorm2d of as many numbers": (nn.BatchNorm2d(2 * channels), pairs),
            "BatchNorm2d of as many channels": (nn.BatchNorm2d(channels), z.real),
            "ComplexBatchNorm2d": (ComplexBatchNorm2d(channels), z),
            "ComplexBatchNorm2d, whiten=False": (ComplexBatchNorm2d(channels, whiten=False), z),
        }
        side_by_side(
            f"whitening, {channels} channels, {size}×{size}, batch {batch}: training step",
            {name: step(norm, norm, x) for name, (norm, x) in norms.items()},
            baseline="BatchNorm2d of as many numbers",
            targets={"ComplexBatchNorm2d": 3.0},
        )
    z = torch.randn(128, 512, dtype=torch.complex64)
    linear, complex_linear = nn.Linear(512, 512), ComplexLinear(512, 512)
    side_by_side(
        "linear 512 to 512, batch 128: training step",
        {"real": step(linear, linear, z.real), "ComplexLinear": step(complex_linear, complex_linear, z)},
        baseline="real",
    )


if __name__ == "__main__":
    main()
