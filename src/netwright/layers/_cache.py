"""Keep what a layer computes from its parameters alone, for as long as these stay as they are."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", Tensor, tuple[Tensor, ...])


class Cache(Generic[T]):
    """A tensor, or several, computed from others, and what tells whether it still holds.

    It is dropped by any change of its sources that torch counts: an optimiser step, ``load_state_dict``, another device
    or floating-point type. Only writing *through* ``.data`` (``layer.weight.data.mul_(2)``) is invisible to torch;
    layers drop it in ``train()``. A copy starts empty: it counts the changes of its tensors from zero, so what is kept
    would not notice them.

    Example:
        >>> cache, weight = Cache(), torch.ones(2)
        >>> first = cache.get(lambda: 2 * weight, weight)
        >>> cache.get(lambda: 2 * weight, weight) is first
        True
        >>> _ = weight.add_(1)
        >>> cache.get(lambda: 2 * weight, weight)
        tensor([4., 4.])
    """

    def __init__(self) -> None:
        self._kept: tuple[Hashable, list[tuple[Tensor, Tensor, int]], T] | None = None

    def get(self, build: Callable[[], T], *sources: Tensor, key: Hashable = None) -> T:
        """What ``build`` makes of ``sources``, built anew where a gradient has to reach them.

        Args:
            build: Computes it.
            sources: All tensors that it computes it from.
            key: All else that it depends on.
        """
        if torch.compiler.is_compiling():
            return build()
        if torch.is_grad_enabled() and any(source.requires_grad for source in sources):
            return build()
        if self._kept is not None:
            kept_key, states, built = self._kept
            if kept_key == key and all(map(_is_same, states, sources)):
                return built
        if any(source.is_inference() for source in sources):  # these have no count of changes
            return build()
        # a tensor made in inference mode could not be used where the gradient of the input is wanted later
        with torch.inference_mode(False), torch.no_grad():
            built = build()
        if all(map(_is_plain, built if isinstance(built, tuple) else (built,))):
            self._kept = (key, list(map(_state, sources)), built)
        return built

    def clear(self) -> None:
        """Forget it."""
        self._kept = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_kept": None}


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def _state(tensor: Tensor) -> tuple[Tensor, Tensor, int]:
    """What tells whether a tensor is still the same: itself, its memory (held, so that none reuses it), its changes."""
    return tensor, tensor.detach(), tensor._version


def _is_same(state: tuple[Tensor, Tensor, int], tensor: Tensor) -> bool:
    known, memory, version = state
    return known is tensor and memory.data_ptr() == tensor.data_ptr() and version == tensor._version


__all__ = ["Cache"]
