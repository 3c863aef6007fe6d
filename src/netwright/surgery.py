"""Swap layers in any model: the one mechanism by which an idea gets into a network that somebody else wrote."""

import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_LOG = logging.getLogger(__name__)


def swap(
    model: nn.Module,
    makers: Mapping[type[nn.Module], Callable[..., nn.Module]],
    where: Callable[[str, nn.Module], bool] | None = None,
) -> nn.Module:
    """Return a copy of ``model`` in which every matching layer is replaced.

    A layer matches when its type is a key of ``makers`` (the nearest class of its inheritance order counts) and
    ``where(name, layer)`` is true. Its replacement is ``makers[type](layer)``, moved to the device, the floating-point
    type and the train/eval mode of the layer that it replaces. Inside of a replaced layer nothing else is replaced.
    A layer or a parameter that is used at several places stays shared, also when it is replaced; parameters frozen with
    ``requires_grad=False`` stay frozen where the replacement has one of the same name.

    Args:
        model: Any module; it is left as it is.
        makers: Layer type to a function that builds the replacement, typically ``Part.like``.
        where: Which of the matching layers to replace; all, if not given. Names are those of ``model.named_modules()``.

    Returns:
        The new model. :func:`swapped` names what was replaced.

    Warns:
        UserWarning: If a parameter was shared with a layer whose replacement has none of the same name and shape.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> new = swap(model, {nn.ReLU: lambda relu: nn.SiLU()})
        >>> new[1], swapped(new)
        (SiLU(), ('1',))
    """
    model = copy.deepcopy(model)
    chosen = {
        old: (name, maker)
        for name, old in model.named_modules()
        if (maker := _maker(old, makers)) is not None and (where is None or where(name, old))
    }
    replaced: dict[nn.Module, nn.Module] = {}
    names: list[str] = []

    def rebuilt(module: nn.Module) -> nn.Module:
        if module in chosen:
            if module not in replaced:
                name, maker = chosen[module]
                replaced[module] = _settle(maker(module), module)
                names.append(name)
                _LOG.info("replaced %s: %s by %s", name or "the model", module, replaced[module])
            return replaced[module]
        for key, child in module._modules.items():
            if child is not None:
                module._modules[key] = rebuilt(child)
        return module

    shared = _shared_parameters(model)
    model = rebuilt(model)
    _tie(shared, replaced)
    model.__dict__["_swapped"] = tuple(names)
    return model


def swapped(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that the last :func:`swap` replaced to make this model; empty for any other model."""
    names: tuple[str, ...] = model.__dict__.get("_swapped", ())
    return names


def torch_blocks(model: nn.Module) -> tuple[str, ...]:
    """How the names of layers start that belong to torch's own attention and transformer blocks.

    These blocks read the weights of their layers themselves, so that what replaces such a layer would not be called.

    Example:
        >>> torch_blocks(nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 2)))
        ('1.', '1.self_attn.')
    """
    blocks = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    return tuple(f"{name}." if name else "" for name, module in model.named_modules() if isinstance(module, blocks))


def input_shapes(
    model: nn.Module, example: Tensor, kinds: type[nn.Module] | tuple[type[nn.Module], ...]
) -> dict[str, tuple[int, ...]]:
    """The shapes of what the layers of some ``kinds`` get as input, from one forward pass in eval mode.

    Args:
        model: Any module; it is left as it is.
        example: An input of the model.
        kinds: Types of the layers to look at.

    Returns:
        Name of the layer to the shape of its (last) input, batch included; layers that are not reached are missing.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3))
        >>> input_shapes(model, torch.zeros(1, 1, 10, 10), nn.Conv2d)
        {'0': (1, 1, 10, 10), '2': (1, 4, 4, 4)}
    """
    shapes: dict[str, tuple[int, ...]] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, kinds):

            def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:  # noqa: ARG001
                shapes[name] = tuple(inputs[0].shape)

            handles.append(module.register_forward_pre_hook(record))
    try:
        with eval_mode(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into eval mode, and every one of its modules back into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _maker(
    module: nn.Module, makers: Mapping[type[nn.Module], Callable[..., nn.Module]]
) -> Callable[..., nn.Module] | None:
    return next((makers[kind] for kind in type(module).__mro__ if kind in makers), None)


def _settle(new: nn.Module, old: nn.Module) -> nn.Module:
    """Give ``new`` the mode, device, floating-point type and frozen parameters of ``old``."""
    reference = next((t for t in itertools.chain(old.parameters(), old.buffers()) if t.is_floating_point()), None)
    if reference is not None and any(t.device != reference.device for t in new.parameters()):
        new = new.to(reference.device)
    if reference is not None:
        new = new.to(reference.dtype)
    frozen = {name for name, parameter in old.named_parameters() if not parameter.requires_grad}
    for name, parameter in new.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    return new.train(old.training)


def _shared_parameters(model: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The groups of places ``(module, name)`` that hold one and the same parameter."""
    places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(parameter, []).append((module, name))
    return [group for group in places.values() if len(group) > 1]


def _tie(groups: list[list[tuple[nn.Module, str]]], replaced: Mapping[nn.Module, nn.Module]) -> None:
    """Make the parameters of each group one again after some of their modules were replaced."""
    for group in groups:
        # a layer that was not replaced keeps the original, so it leads
        ordered = sorted(group, key=lambda place: place[0] in replaced)
        leader, leading_name = ordered[0]
        parameter = getattr(replaced.get(leader, leader), leading_name, None)
        for module, name in ordered[1:]:
            if module not in replaced:
                continue
            mine = replaced[module]._parameters.get(name)
            if mine is None or not isinstance(parameter, nn.Parameter) or mine.shape != parameter.shape:
                message = f"parameter {name!r} of {module} was shared, its replacement has none of the same shape"
                warnings.warn(message, stacklevel=3)
                continue
            replaced[module]._parameters[name] = parameter


__all__ = ["eval_mode", "input_shapes", "swap", "swapped", "torch_blocks"]
