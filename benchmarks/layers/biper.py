"""Binary convolutions against torch's of equal shape: eval, a training step, packed inference, and bytes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import amounts, side_by_side
from netwright.compression.binary_export import PackedConv2d, export_binary
from netwright.layers.biper import BiPerConv2d, biper_layers
from netwright.models.vision.biper_nets import biper_resnet18


def infer(layer: nn.Module, input: Tensor) -> Callable[[], Tensor]:
    layer.eval()

    def run() -> Tensor:
        with torch.no_grad():
            return layer(input)

    return run


def step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    layer.train()
    leaf = input.clone().requires_grad_()

    def run() -> None:
        layer.zero_grad()
        layer(leaf).sum().backward()

    return run


def main() -> None:
    # the C library gives memory back to the system, and pays for it page by page, until it has seen larger blocks;
    # a network's own tensors teach it the same
    torch.empty(30 * 2**20, dtype=torch.uint8)
    for batch, channels, size in ((8, 64, 32), (32, 64, 16), (32, 128, 8), (1, 512, 4)):
        title = f"3×3 convolution, {channels} channels, {size}×{size}, batch {batch}"
        x = torch.randn(batch, channels, size, size)
        real = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        binary = BiPerConv2d(channels, channels, 3, padding=1, stage=2)
        rounds = 200 if batch > 1 else 800
        side_by_side(
            f"{title}: eval",
            {"torch": infer(real, x), "BiPer": infer(binary, x)},
            baseline="torch",
            rounds=rounds,
            targets={"BiPer": 1.10},
        )
        side_by_side(
            f"{title}: eval, from one bit a weight",
            {
                "torch": infer(real, x),
                "packed, unpacking": infer(PackedConv2d.like(binary), x),
                "packed, counting bits": infer(PackedConv2d.like(binary, popcount=True), x),
            },
            baseline="torch",
        )
        if batch > 1:
            side_by_side(
                f"{title}: training step", {"torch": step(real, x), "BiPer": step(binary, x)}, baseline="torch"
            )
    layers = nn.ModuleList(biper_layers(biper_resnet18(stage=2)).values())
    amounts(
        "bytes of the binary layers of ResNet-18",
        {
            "float32": sum(parameter.nbytes for parameter in layers.parameters()),
            "packed": sum(buffer.nbytes for buffer in export_binary(layers).buffers()),
        },
        baseline="float32",
        targets={"packed": 1 / 30},
    )


if __name__ == "__main__":
    main()
