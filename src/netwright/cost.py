"""What a network costs: parameters, multiply-adds, bytes saved for backward, peak memory, latency.

All but latency are exact and repeatable: they count what torch does rather than time it, and the counts of parameters
and multiply-adds also work on the ``meta`` device, where a published size costs no memory.
"""

import copy
import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from netwright import checks
from netwright.surgery import eval_mode


def count_params(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; one that several layers share counts once.

    Example:
        >>> count_params(nn.Linear(10, 5))
        55
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def count_nonzero(model: nn.Module) -> int:
    """Number of parameters that are not zero: what is left after pruning; masks that are attached count.

    Example:
        >>> count_nonzero(nn.Linear(3, 2)), count_nonzero(nn.BatchNorm1d(4))
        (8, 4)
    """
    # parameters are read as their module reads them, which may be through a mask; shared ones count once
    places = {
        parameter: (module, name)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }
    return sum(int(torch.count_nonzero(getattr(module, name))) for module, name in places.values())


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of one forward pass in eval mode: matrix products, convolutions and attention.

    Element-wise work is not counted, as is usual. The model is left as it is; with a model and inputs on the ``meta``
    device nothing is computed.

    Example:
        >>> count_macs(nn.Linear(10, 5), torch.randn(3, 10))
        150
    """
    counter = FlopCounterMode(display=False)
    with eval_mode(model), torch.no_grad(), counter:
        model(*inputs)
    return int(counter.get_total_flops()) // 2


def count_macs_of_shape(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Multiply-adds of one forward pass on inputs of these shapes, counted on a copy on the ``meta`` device."""
    on_meta = copy.deepcopy(model).to("meta")
    return count_macs(on_meta, *(torch.empty(shape, device="meta") for shape in shapes))


def saved_bytes(function: Callable[..., Any], *inputs: Tensor) -> int:
    """Bytes that autograd keeps between forward and backward pass; parameters and the inputs themselves not counted.

    Args:
        function: A model, or any function of tensors.
        inputs: What it is called with.

    Example:
        >>> x = torch.randn(100, requires_grad=True)
        >>> saved_bytes(torch.exp, x)  # keeps its result
        400
    """
    free = {_storage(t) for t in inputs}
    if isinstance(function, nn.Module):
        free |= {_storage(p) for p in function.parameters()}
    sizes: dict[int, int] = {}
    keep: list[Tensor] = []  # a storage that is freed meanwhile could give its address to another one

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in free:
            sizes[_storage(tensor)] = tensor.untyped_storage().nbytes()
            keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function(*inputs)
        total = sum(sizes.values())
    del outputs
    return total


def peak_memory(model: nn.Module, loss: Callable[[Tensor], Tensor], *inputs: Tensor) -> int:
    """Largest number of bytes alive at once in one forward and backward pass, beyond parameters and inputs.

    Tensors are followed by their storage from creation to release, on any device; what a kernel allocates inside of
    itself is not seen.

    Args:
        model: The network; its gradients are released afterwards.
        loss: ``loss(outputs)`` as a scalar.
        inputs: What the model is called with.
    """
    live = _LiveBytes()
    with live:
        loss(model(*inputs)).backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    return live.peak


def latency(model: nn.Module, *inputs: Tensor, repeats: int = 30) -> float:
    """Median time of one forward pass in eval mode, in seconds.

    Args:
        model: The network; it is left in the mode it was in.
        inputs: What it is called with.
        repeats: Timed passes, after three untimed ones.
    """
    checks.at_least("repeats", repeats, 1)
    on_gpu = any(t.is_cuda for t in inputs)
    times = []
    with eval_mode(model), torch.inference_mode():
        for turn in range(repeats + 3):
            start = time.perf_counter()
            model(*inputs)
            if on_gpu:
                torch.cuda.synchronize()
            if turn >= 3:
                times.append(time.perf_counter() - start)
    return statistics.median(times)


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the storages that are created while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self.known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.before: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _storage(tensor) not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.now -= size


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


__all__ = [
    "count_macs",
    "count_macs_of_shape",
    "count_nonzero",
    "count_params",
    "latency",
    "peak_memory",
    "saved_bytes",
]
