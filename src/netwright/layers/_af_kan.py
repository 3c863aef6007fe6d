"""How AF-KAN (arXiv:2503.06112) reduces the K functions of every input to one number.

All reductions map features ``(batch, in, K)`` to ``(batch, in)``; ``temperature`` is at least 1.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks


class Affine(nn.Module):
    """A linear map, started as ``nn.Linear``, which what replaces linear layers of a network leaves alone."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_features).uniform_(-bound, bound))

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight, self.bias)


class GlobalAttention(nn.Module):
    """Σ_k f_ik · a_i with a = softmax over the inputs i of a linear score of f_i."""

    def __init__(self, functions: int, window: int, step: int) -> None:  # noqa: ARG002
        super().__init__()
        self.score = Affine(functions, 1)

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:
        return self.of_scaled(features.mT, None, temperature)

    def of_scaled(self, raw: Tensor, scale: tuple[Tensor, Tensor] | None, temperature: Tensor) -> Tensor:
        """The same for f = (raw − low) / spread with ``scale = (low, spread)``, ``raw`` being ``(batch, K, in)``.

        Both the score and the sum over k are linear in f, so that these two are scaled instead of all functions.
        """
        weight = self.score.weight
        both = torch.cat([weight, torch.ones_like(weight)])
        # as `both @ raw`, whose gradient would come in another layout of memory and make all before it slow
        combined = torch.bmm(both.expand(len(raw), -1, -1), raw)
        if scale is not None:
            low, spread = scale
            combined = (combined - both.sum(dim=1, keepdim=True) * low) / spread
        scores, total = combined.unbind(dim=1)
        weights: Tensor = ((scores + self.score.bias) / temperature).softmax(dim=-1)
        return total * weights


class SpatialAttention(nn.Module):
    """Σ_k f_ik · a_ik with a = softmax over k of a depth-wise convolution along the inputs."""

    def __init__(self, functions: int, window: int, step: int) -> None:  # noqa: ARG002
        super().__init__()
        self.conv = nn.Conv1d(functions, functions, 3, padding=1, groups=functions)

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:
        weights: Tensor = (self.conv(features.mT) / temperature).softmax(dim=-2)
        return (features.mT * weights).sum(dim=-2)


class Multistep(nn.Module):
    """A linear combination of the K functions, the same for all inputs."""

    def __init__(self, functions: int, window: int, step: int) -> None:  # noqa: ARG002
        super().__init__()
        self.linear = Affine(functions, 1)

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:  # noqa: ARG002
        output: Tensor = self.linear(features)
        return output.squeeze(-1)


class LocalAttention(nn.Module):
    """Attention between windows of neighbouring functions of an input, and a linear combination of what comes out."""

    def __init__(self, functions: int, window: int, step: int) -> None:
        super().__init__()
        checks.between("window", window, 1, functions)
        checks.at_least("step", step, 1)
        self.window, self.step = window, step
        self.query, self.key, self.value = (Affine(window, window) for _ in range(3))
        self.linear = Affine(((functions - window) // step + 1) * window, 1)

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:
        windows = features.unfold(-1, self.window, self.step)
        weights = (self.query(windows) @ self.key(windows).mT / temperature).softmax(dim=-1)
        output: Tensor = self.linear((weights @ self.value(windows)).flatten(-2))
        return output.squeeze(-1)


class SelfAttention(nn.Module):
    """Attention between the inputs, summed over the functions; its scores are not scaled by √K, which is small."""

    def __init__(self, functions: int, window: int, step: int) -> None:  # noqa: ARG002
        super().__init__()
        self.query, self.key, self.value = (Affine(functions, functions) for _ in range(3))

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:
        weights: Tensor = (self.query(features) @ self.key(features).mT / temperature).softmax(dim=-1)
        # to sum first is to multiply by a vector instead of a matrix
        mixed: Tensor = weights @ self.value(features).sum(dim=-1, keepdim=True)
        return mixed.squeeze(-1)


class MultiheadAttention(nn.Module):
    """Attention between the inputs with a head for each function, summed over the functions."""

    def __init__(self, functions: int, window: int, step: int) -> None:  # noqa: ARG002
        super().__init__()
        self.attention = nn.MultiheadAttention(functions, functions, batch_first=True)

    def forward(self, features: Tensor, temperature: Tensor) -> Tensor:  # noqa: ARG002
        mixed: Tensor
        mixed, _ = self.attention(features, features, features, need_weights=False)
        return mixed.sum(dim=-1)


REDUCTIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "global": GlobalAttention,
    "spatial": SpatialAttention,
    "multistep": Multistep,
    "local": LocalAttention,
    "self": SelfAttention,
    "multihead": MultiheadAttention,
}


__all__ = ["REDUCTIONS", "GlobalAttention"]
