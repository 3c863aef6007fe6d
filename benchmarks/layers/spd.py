"""Normalisation of SPD matrices against loops with one SVD for each matrix, in the style of the released code."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.layers.spd_layers import BiMap, LogEig, ReEig
from netwright.layers.spd_norm import GBWBatchNorm


class LoopFunction(torch.autograd.Function):
    """A function of the eigenvalues, one SVD a matrix, with the derivative by masked differences."""

    @staticmethod
    def forward(ctx, x, function, derivative):
        u, s = torch.zeros_like(x), torch.zeros(x.shape[:-1], dtype=x.dtype)
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                u[i, j], s[i, j], _ = torch.svd(x[i, j])
        values = function(s)
        ctx.save_for_backward(u, s, values)
        ctx.derivative = derivative
        return u @ loop_diagonal(values) @ u.mT

    @staticmethod
    def backward(ctx, grad):
        u, s, values = ctx.saved_tensors
        quotient = (values.unsqueeze(-1) - values.unsqueeze(-2)) / (s.unsqueeze(-1) - s.unsqueeze(-2))
        quotient[~quotient.isfinite()] = 0
        weighted = (quotient + loop_diagonal(ctx.derivative(s))) * (u.mT @ grad @ u)
        return u @ weighted @ u.mT, None, None


def loop_diagonal(values: Tensor) -> Tensor:
    out = torch.zeros(*values.shape, values.shape[-1], dtype=values.dtype)
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            out[i, j] = values[i, j].diag()
    return out


def loop_sqrt(x: Tensor) -> Tensor:
    return LoopFunction.apply(x, torch.sqrt, lambda s: 0.5 / s.sqrt())


def loop_inv_sqrt(x: Tensor) -> Tensor:
    return LoopFunction.apply(x, torch.rsqrt, lambda s: -0.5 / s.sqrt() ** 3)


def loop_log(x: Tensor) -> Tensor:
    return LoopFunction.apply(x, torch.log, lambda s: 1 / s)


def loop_rectify(x: Tensor) -> Tensor:
    return LoopFunction.apply(x, lambda s: s.clamp_min(1e-5), lambda s: (s > 1e-5).double())


class LoopGBW(nn.Module):
    """The published algorithm with a map of its own for each step, θ = 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(n).double() + torch.diag(torch.arange(1, n + 1) * 1e-7))
        self.metric = nn.Parameter(torch.eye(n).double())
        self.scale = nn.Parameter(torch.ones(1).double())
        self.register_buffer("running_mean", torch.eye(n).double())

    def forward(self, x: Tensor) -> Tensor:
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        power = LoopFunction.apply(x, lambda s: s**1.0, lambda s: s**0.0)
        inverse = loop_inv_sqrt(self.metric[None, None])
        y = inverse @ power @ inverse
        weight = (inverse @ self.weight @ loop_inv_sqrt(self.metric[None, None]))[0, 0]
        with torch.no_grad():
            first = y.mean(0, keepdim=True)
            root = loop_sqrt(first)
            half = loop_inv_sqrt(first) @ loop_sqrt(root @ y @ root).mean(0, keepdim=True)
            mean = half @ half.mT
            distances = y.diagonal(0, -2, -1).sum(-1) + x.shape[-1]
            variance = (distances - 2 * loop_sqrt(y).diagonal(0, -2, -1).sum(-1)).mean()
            self.running_mean.copy_(loop_geodesic(self.running_mean, mean[0, 0], 0.1))
        root, inverse_root = loop_sqrt(mean), loop_inv_sqrt(mean)
        product = root @ loop_sqrt(root @ y @ root) @ inverse_root
        u, s, _ = torch.svd(mean)
        log = u.mT @ (product + product.mT - 2 * mean) @ u
        v = u @ ((2 / (s.unsqueeze(-1) + s.unsqueeze(-2))).sqrt() * log) @ u.mT
        centred = eye + v + v @ v / 4
        v = self.scale / (variance + 1e-5).sqrt() * 2 * (loop_sqrt(centred) - eye)
        v = 2 * (loop_sqrt(eye + v + v @ v / 4) - eye)
        u, s, _ = torch.svd(weight)
        v = u @ (((s.unsqueeze(-1) + s.unsqueeze(-2)) / 2).sqrt() * (u.mT @ v @ u)) @ u.mT
        u, s, _ = torch.svd(weight)
        solution = u @ ((u.mT @ v @ u) / (s.unsqueeze(-1) + s.unsqueeze(-2))) @ u.mT
        z = weight + v + solution @ weight @ solution
        root = loop_sqrt(self.metric[None, None])
        return LoopFunction.apply(root @ z @ root, lambda s: s**1.0, lambda s: s**0.0)


def loop_geodesic(a: Tensor, b: Tensor, t: float) -> Tensor:
    root, inverse = loop_sqrt(a[None, None])[0, 0], loop_inv_sqrt(a[None, None])[0, 0]
    product = root @ loop_sqrt((root @ b @ root)[None, None])[0, 0] @ inverse
    return (1 - t) ** 2 * a + t**2 * b + t * (1 - t) * (product + product.mT)


class Function(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, input: Tensor) -> Tensor:
        return self.function(input)


def step(layer: nn.Module, input: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad()
        layer(input).square().sum().backward()

    return run


def main() -> None:
    for batch, n, target in ((30, 12, 0.1), (128, 32, None)):
        a = torch.randn(batch, 1, n, 2 * n, dtype=torch.float64)
        x = (a @ a.mT / n).requires_grad_()
        where = f"({batch}, 1, {n}, {n})"
        targets = None if target is None else {"batched": target}
        rounds = 20 if batch == 30 else 5
        side_by_side(
            f"GBW batch normalisation {where}: training step",
            {"loop, one SVD a matrix": step(LoopGBW(n), x), "batched": step(GBWBatchNorm(n), x)},
            baseline="loop, one SVD a matrix",
            rounds=rounds,
            targets=targets,
        )
        bimap = BiMap(n + 3, n)
        a = torch.randn(batch, 1, n + 3, 2 * n, dtype=torch.float64)
        wide = (a @ a.mT / n).requires_grad_()
        loops = nn.Sequential(bimap, LoopGBW(n), Function(loop_rectify), Function(loop_log))
        batched = nn.Sequential(bimap, GBWBatchNorm(n), ReEig(), LogEig())
        side_by_side(
            f"BiMap, GBW, ReEig, LogEig {where}: training step",
            {"loop, one SVD a matrix": step(loops, wide), "batched": step(batched, wide)},
            baseline="loop, one SVD a matrix",
            rounds=rounds,
            targets=targets,
        )


if __name__ == "__main__":
    main()
