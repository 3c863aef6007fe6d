"""Kolmogorov–Arnold layers: B-splines against the way the first implementation computed them, and the other families.

The baseline is written here after pykan: Cox and de Boor's recursion on ``(batch, inputs, knots)``, an einsum into
``(batch, inputs, outputs)``, on which scales, the residual branch and a mask act, then the sum over the inputs. What
pykan keeps for its plots, two more copies of the edges, is left out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.layers.hypercomplex import infer, step
from benchmarks.timing import amounts, side_by_side
from netwright.cost import saved_bytes
from netwright.layers.kan import BASES, KANLayer


class EdgewiseKAN(nn.Module):
    """Every edge's value, one by one."""

    def __init__(self, in_features: int, out_features: int, num: int = 5, order: int = 3) -> None:
        super().__init__()
        self.order = order
        knots = -1 + 2 / num * torch.arange(-order, num + order + 1)
        self.register_buffer("grid", knots.repeat(in_features, 1))
        self.coef = nn.Parameter(0.1 * torch.randn(in_features, out_features, num + order))
        self.scale_base = nn.Parameter(torch.randn(in_features, out_features) / in_features**0.5)
        self.scale_sp = nn.Parameter(torch.ones(in_features, out_features))
        self.register_buffer("mask", torch.ones(in_features, out_features))

    def forward(self, x: Tensor) -> Tensor:
        values = self.basis(x)
        edges = torch.einsum("bik,iok->bio", values, self.coef)
        edges = self.scale_base * functional.silu(x).unsqueeze(-1) + self.scale_sp * edges
        return (self.mask * edges).sum(1)

    def basis(self, x: Tensor) -> Tensor:
        x, grid = x.unsqueeze(-1), self.grid
        values = ((x >= grid[:, :-1]) & (x < grid[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            rising = (x - grid[:, : -(k + 1)]) / (grid[:, k:-1] - grid[:, : -(k + 1)])
            falling = (grid[:, k + 1 :] - x) / (grid[:, k + 1 :] - grid[:, 1:-k])
            values = rising * values[..., :-1] + falling * values[..., 1:]
        return values


def main() -> None:
    torch.manual_seed(0)
    for batch, inputs, outputs in ((1024, 64, 64), (64, 784, 64), (256, 16, 16)):
        x = 2 * torch.rand(batch, inputs) - 1
        x.requires_grad_()
        theirs, mine = EdgewiseKAN(inputs, outputs), KANLayer(inputs, outputs)
        with torch.no_grad():
            mine.weight[..., :-1] = (theirs.coef * theirs.scale_sp.unsqueeze(-1)).transpose(0, 1)
            mine.weight[..., -1] = theirs.scale_base.t()
        torch.testing.assert_close(mine(x), theirs(x), atol=1e-4, rtol=1e-4)
        for name, run in (("forward", infer), ("training step", step)):
            side_by_side(
                f"B-spline layer, batch {batch}, {inputs} to {outputs}: {name}",
                {"edge by edge": run(theirs, x), "KANLayer": run(mine, x)},
                baseline="edge by edge",
                targets={"KANLayer": 0.2} if (batch, inputs) == (1024, 64) else None,
            )
        amounts(
            f"B-spline layer, batch {batch}, {inputs} to {outputs}: saved for the backward pass",
            {"edge by edge": saved_bytes(theirs, x), "KANLayer": saved_bytes(mine, x)},
            baseline="edge by edge",
            unit="bytes",
        )
    x = torch.randn(1024, 64, requires_grad=True)
    side_by_side(
        "all families, batch 1024, 64 to 64, 8 functions: training step",
        {"linear": step(nn.Linear(64, 64), x)} | {name: step(KANLayer(64, 64, name), x) for name in BASES},
        baseline="linear",
    )


if __name__ == "__main__":
    main()
