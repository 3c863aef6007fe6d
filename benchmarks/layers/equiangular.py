"""A step of generating equiangular basis vectors: closed-form gradient by blocks, against autograd on all cosines."""

import torch
from torch import Tensor
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import amounts, side_by_side
from netwright.layers.equiangular import descent_direction

ALPHA = 0.09


def peak_bytes(function: object) -> float:
    """The most memory that ``function`` holds at any moment beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()  # type: ignore[operator]
    held = most = 0
    changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for change in sorted(changes, key=lambda event: event.start_ns()):
        held += change.nbytes()
        most = max(most, held)
    return float(most)


def main() -> None:
    torch.manual_seed(0)
    for classes, dim in ((1000, 256), (4000, 256)):
        vectors = functional.normalize(torch.randn(classes, dim))
        gradient = torch.empty_like(vectors)
        leaf = vectors.clone().requires_grad_()

        def by_autograd(leaf: Tensor = leaf) -> Tensor:
            cosines = (leaf @ leaf.T).abs() - torch.eye(len(leaf))
            loss = functional.relu(cosines - ALPHA).sum()
            return torch.autograd.grad(loss, leaf)[0]

        def by_blocks(vectors: Tensor = vectors, gradient: Tensor = gradient) -> float:
            return descent_direction(vectors, ALPHA, 2**22 // len(vectors), gradient)

        by_blocks()
        torch.testing.assert_close(gradient, by_autograd(), rtol=1e-4, atol=1e-4)
        candidates = {"autograd, all cosines": by_autograd, "closed form, blocks": by_blocks}
        name = f"{classes} vectors in {dim} dimensions"
        side_by_side(
            f"one step, {name}",
            candidates,
            baseline="autograd, all cosines",
            rounds=10,
            targets={"closed form, blocks": 0.5} if classes == 4000 else None,
        )
        amounts(
            f"memory of one step, {name}",
            {label: peak_bytes(step) for label, step in candidates.items()},
            baseline="autograd, all cosines",
            targets={"closed form, blocks": 0.2} if classes == 4000 else None,
        )


if __name__ == "__main__":
    main()
