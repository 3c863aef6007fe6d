"""Terminator in eval mode with its hyper-kernels kept, against the same network that writes them for every batch."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import side_by_side
from netwright.hypernets.hyperzzw import MagnetKernel
from netwright.models.vision.terminator import Terminator


def infer(model: nn.Module, input: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.no_grad():
            return model(input)

    return run


def writing(model: nn.Module) -> nn.Module:
    """A copy whose slow networks keep nothing."""
    new = copy.deepcopy(model)
    for module in new.modules():
        if isinstance(module, MagnetKernel):
            module._keep = module._build
    return new


def compare(title: str, model: nn.Module, input: Tensor, rounds: int, target: float | None) -> None:
    model.eval()
    always = writing(model)
    candidates = {"written for every batch": infer(always, input), "kept": infer(model, input)}
    outputs = [run() for run in candidates.values()]
    assert torch.equal(*outputs), "the kept kernels change the prediction"
    side_by_side(
        title,
        candidates,
        baseline="written for every batch",
        rounds=rounds,
        targets=None if target is None else {"kept": target},
    )


def main() -> None:
    networks = {
        "Terminator 4-3-2, 8×8 pixels": (Terminator(size=8, factors=(4, 3, 2)), 8),
        "Terminator 4-3-2, 16×16 pixels": (Terminator(size=16, factors=(4, 3, 2)), 16),
        "Terminator as published, 32×32 pixels": (Terminator(), 32),
    }
    for name, (model, size) in networks.items():
        # writing costs the same for any batch, so its share is that of a single picture at most
        for batch, rounds, target in ((1, 60, 1 / 1.3), (16, 15, None)):
            compare(f"{name}, batch {batch}", model, torch.randn(batch, 3, size, size), rounds, target)


if __name__ == "__main__":
    main()
