"""Selectable KAN layers: all families together against the sum of what each takes alone, and what pruning gives."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.layers.hypercomplex import step
from benchmarks.timing import side_by_side
from netwright.layers.kan import KANLayer
from netwright.layers.selectable_kan import POOL, SConvKAN2d, Selectable, SKANLayer


def pruned(layer: Selectable) -> Selectable:
    assert layer.selection is not None
    nn.init.normal_(layer.selection)
    layer.select_()
    layer.prune_()
    return layer


def in_a_row(layers: list[nn.Module], x: Tensor) -> Callable[[], None]:
    steps = [step(layer, x) for layer in layers]

    def run() -> None:
        for one in steps:
            one()

    return run


def main() -> None:
    torch.manual_seed(0)
    for batch, inputs, outputs in ((1024, 64, 64), (64, 784, 64)):
        x = torch.randn(batch, inputs, requires_grad=True)
        families: list[nn.Module] = [KANLayer(inputs, outputs, name) for name in POOL]
        side_by_side(
            f"six families, batch {batch}, {inputs} to {outputs}: training step",
            {
                "one layer each": in_a_row(families, x),
                "SKANLayer": step(SKANLayer(inputs, outputs), x),
                "SKANLayer, pruned (nodes)": step(pruned(SKANLayer(inputs, outputs)), x),
                "SKANLayer, pruned (layer)": step(pruned(SKANLayer(inputs, outputs, select="layer")), x),
            },
            baseline="one layer each",
            targets={"SKANLayer": 1.3},
        )
    pictures = torch.randn(16, 32, 16, 16, requires_grad=True)
    each: list[nn.Module] = [SConvKAN2d(32, 32, 3, padding=1, pool=(name,)) for name in POOL]
    side_by_side(
        "six families, 3×3 convolution of 32 channels, 16×16, batch 16: training step",
        {
            "one layer each": in_a_row(each, pictures),
            "SConvKAN2d": step(SConvKAN2d(32, 32, 3, padding=1), pictures),
            "SConvKAN2d, pruned (nodes)": step(pruned(SConvKAN2d(32, 32, 3, padding=1)), pictures),
            "SConvKAN2d, pruned (layer)": step(pruned(SConvKAN2d(32, 32, 3, padding=1, select="layer")), pictures),
        },
        baseline="one layer each",
        targets={"SConvKAN2d": 1.3},
        rounds=10,
    )


if __name__ == "__main__":
    main()
