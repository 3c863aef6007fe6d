"""Which layers of a network an inspection looks at, and where their outputs are best read."""

from torch import Tensor, nn
from torch.nn.modules import activation

from netwright.analysis.capture import run_order

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)
_ACTIVATIONS = tuple(kind for name in activation.__all__ if (kind := getattr(nn, name)) is not nn.MultiheadAttention)


def weight_layers(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """Names of the layers without children that have a weight matrix or kernel, in the order in which they run."""
    modules = dict(model.named_modules())
    return tuple(name for name in run_order(model, example) if _has_kernel(modules[name]))


def readouts(model: nn.Module, example: Tensor) -> dict[str, str]:
    """For every weight layer, where its result is complete: the normalisation or activation module right behind it.

    An activation module that runs at several places (one ``ReLU`` for all) is no place to read at, because it keeps
    its last output only; what stands before it is taken then.
    """
    modules = dict(model.named_modules())
    calls: dict[str, int] = {}
    order: list[str] = []
    handles = []
    for name, module in modules.items():
        if not any(module.children()):

            def record(module: nn.Module, inputs: object, output: object, name: str = name) -> None:  # noqa: ARG001
                order.append(name)
                calls[name] = calls.get(name, 0) + 1

            handles.append(module.register_forward_hook(record))
    try:
        run_order(model, example)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, str] = {}
    current = ""
    for name in order:
        module = modules[name]
        if _has_kernel(module):
            current = name
            found[name] = name
        elif current and isinstance(module, (*_NORMS, *_ACTIVATIONS)):
            if calls[name] == 1:
                found[current] = name
            else:
                current = ""
        else:
            current = ""
    return found


def classifier_of(model: nn.Module, example: Tensor) -> tuple[str, nn.Linear] | None:
    """The linear layer whose output is that of the network, if there is one."""
    modules = dict(model.named_modules())
    layers = run_order(model, example)
    last = layers[-1] if layers else ""
    module = modules.get(last)
    return (last, module) if isinstance(module, nn.Linear) else None


def spread(names: tuple[str, ...], most: int) -> tuple[str, ...]:
    """At most ``most`` names, evenly spaced, the first and the last among them."""
    if len(names) <= most:
        return names
    return tuple(names[round(index * (len(names) - 1) / (most - 1))] for index in range(most))


def _has_kernel(module: nn.Module) -> bool:
    if any(module.children()) or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return False
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


__all__ = ["classifier_of", "readouts", "spread", "weight_layers"]
