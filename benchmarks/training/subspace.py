"""Random projections: Fastfood against elementwise passes, and all of them against a stored dense matrix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import amounts, side_by_side
from netwright.cost import peak_memory
from netwright.models.vision.classic import MLP
from netwright.training._projections import PROJECTIONS, make_projection
from netwright.training.subspace import SubspaceModel, fwht


def forward_and_backward(projection: nn.Module, dim: int, gradient: Tensor) -> Callable[[], None]:
    v = torch.randn(dim, requires_grad=True)

    def step() -> None:
        v.grad = None
        projection(v).backward(gradient)

    return step


def elementwise_passes(size: int, number: int) -> Callable[[], None]:
    x, out = torch.randn(size), torch.empty(size)

    def passes() -> None:
        for _ in range(number):
            torch.add(x, 1.0, out=out)

    return passes


def butterflies(x: Tensor) -> Tensor:
    """The transform as most write it: one pass of sums and differences per factor of two."""
    half = 1
    y = x
    while half < len(x):
        y = y.view(-1, 2, half)
        y = torch.stack((y[:, 0] + y[:, 1], y[:, 0] - y[:, 1]), 1)
        half *= 2
    return y.view(-1)


def training_step(model: nn.Module) -> Callable[[], None]:
    x, y = torch.randn(128, 784), torch.randint(10, (128,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def main() -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    size = 1_000_000
    fastfood = make_projection("fastfood", 1000, [size], 0, device, torch.float32)
    side_by_side(
        "Fastfood, d = 1,000, D = 1,000,000, forward and backward, against 20 elementwise passes over D",
        {
            "20 passes": elementwise_passes(size, 20),
            "Fastfood": forward_and_backward(fastfood, 1000, torch.randn(size)),
        },
        baseline="20 passes",
        targets={"Fastfood": 10.0},
    )
    x = torch.randn(2**20)
    side_by_side(
        "Walsh-Hadamard transform of 2^20 numbers",
        {"sums and differences": lambda: butterflies(x), "fwht": lambda: fwht(x)},
        baseline="sums and differences",
        rounds=10,
        targets={"fwht": 1.0},
    )

    dim, size = 1_000, 199_210
    kinds = [kind for kind in PROJECTIONS if kind != "dense-blocks"]
    projections = {kind: make_projection(kind, dim, [size], 0, device, torch.float32) for kind in kinds}
    gradient = torch.randn(size)
    title = "projection, d = 1,000, D = 199,210"
    side_by_side(
        f"{title}: forward and backward",
        {kind: forward_and_backward(projection, dim, gradient) for kind, projection in projections.items()},
        baseline="dense",
        rounds=10,
        targets={"fastfood": 1.0},
    )

    def memory(projection: nn.Module) -> int:
        stored = sum(buffer.nbytes for buffer in projection.buffers())
        return stored + peak_memory(projection, torch.sum, torch.zeros(dim, requires_grad=True))

    amounts(
        f"{title}: bytes stored, and the most alive in forward and backward",
        {kind: memory(projection) for kind, projection in projections.items()},
        baseline="dense",
        targets={"fastfood": 0.01},
    )
    del projections
    blocks = make_projection("dense-blocks", dim, [size], 0, device, torch.float32)
    side_by_side(
        f"{title}: dense, drawn anew, against Fastfood",
        {
            "fastfood": forward_and_backward(
                make_projection("fastfood", dim, [size], 0, device, torch.float32), dim, gradient
            ),
            "dense-blocks": forward_and_backward(blocks, dim, gradient),
        },
        baseline="fastfood",
        rounds=1,
    )

    side_by_side(
        "training step, 784-200-200-10, batch 128, d = 750",
        {
            "all parameters": training_step(MLP(784, (200, 200), 10)),
            **{
                kind: training_step(SubspaceModel(MLP(784, (200, 200), 10), 750, kind))
                for kind in ("fastfood", "sparse", "fjlt")
            },
        },
        baseline="all parameters",
        rounds=50,
    )


if __name__ == "__main__":
    main()
