"""Masks over the weights of a network: the shared block of unstructured pruning."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression.densities import Densities, Shapes, exact_counts

ShuffleMode = Literal["layerwise", "global"]

_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, nn.CrossMapLRN2d)
_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Mask(Mapping[str, Tensor]):
    """Which weights of a network live: parameter name to a bool tensor of the parameter's shape, in order; read-only.

    A mask meets a network in one of two ways. :meth:`apply_` zeroes the dead weights once. :meth:`attach_` keeps them
    at exactly zero from then on, whatever changes the parameters: neither momentum nor weight decay nor noise brings a
    weight back.

    Names stay as they are. ``model.state_dict()`` of a masked model has the plain names and real zeros, so it loads
    into a plain network (and the other way round); the mask itself is ``dict(mask)``, which safetensors can save, and
    ``Mask(loaded)``. :func:`make_permanent` turns a masked model back into a plain one whose zeros are real.

    Args:
        tensors: Parameter name to a tensor of zeros and ones (or bools).

    Raises:
        InputError: If a tensor has other values.

    Example:
        >>> from netwright.cost import count_nonzero
        >>> model = nn.Linear(4, 2)
        >>> mask = Mask({"weight": torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]])})
        >>> _ = mask.attach_(model)
        >>> mask.density, count_nonzero(model)
        (0.375, 5)
        >>> _ = make_permanent(model)
        >>> type(model).__name__, int(model.weight.count_nonzero())
        ('Linear', 3)
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: _as_bool(name, tensor) for name, tensor in tensors.items()}

    @classmethod
    def dense(cls, model: nn.Module, ignore: Iterable[str] = ()) -> Self:
        """The mask that keeps all weights of :func:`prunable`."""
        weights = prunable(model, ignore)
        return cls({name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()})

    @classmethod
    def random(
        cls,
        shapes: Shapes,
        densities: Mapping[str, float],
        *,
        exact: bool = True,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> Self:
        """Draw positions at random, with a density for every layer.

        Args:
            shapes: Parameter name to shape.
            densities: Parameter name to the fraction that is kept.
            exact: Keep exactly round(Σ density · size) weights in all, each layer within one of its share. Else every
                weight is kept with the probability ``density``, so that the counts hold on average only.
            generator: Where the positions come from; torch's own generator if not given.
            device: Where the mask is to be; that of the generator if not given.

        Raises:
            InputError: If a density is outside [0, 1], or a layer is left without a weight.
        """
        device = device or (generator.device if generator is not None else "cpu")
        sizes = {name: math.prod(shape) for name, shape in shapes.items()}
        keys = torch.rand(sum(sizes.values()), generator=generator, device=generator.device if generator else device)
        counts = exact_counts(shapes, densities) if exact else None
        mask = {}
        for (name, size), part in zip(sizes.items(), torch.split(keys, list(sizes.values())), strict=True):
            if counts is None:
                kept = part < densities[name]
            else:
                kept = torch.zeros(size, dtype=torch.bool, device=part.device)
                kept[part.topk(counts[name], sorted=False).indices] = True
            mask[name] = kept.view(*shapes[name]).to(device)
        drawn = cls(mask)
        drawn.check_not_empty()
        return drawn

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """The mask that is attached to a model; empty if there is none."""
        mask = {}
        for prefix, module in model.named_modules():
            for name in _masked_names(module):
                mask[f"{prefix}.{name}".lstrip(".")] = getattr(module, _buffer(name)) != 0
        return cls(mask)

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(self[name], other[name]) for name in self)

    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: "Mask") -> "Mask":
        """What lives in both; a layer that only one of them names is as that one says."""
        both = {**self, **other}
        return Mask({name: both[name] & self.get(name, both[name]) for name in both})

    def __repr__(self) -> str:
        return f"Mask({self.kept} of {self.size} weights in {len(self)} layers, density {self.density:.4f})"

    @property
    def size(self) -> int:
        """Number of weights that the mask is about."""
        return sum(tensor.numel() for tensor in self.values())

    @property
    def kept(self) -> int:
        """Number of weights that live."""
        return sum(int(tensor.sum()) for tensor in self.values())

    @property
    def density(self) -> float:
        """Fraction of the weights that live; 1 for an empty mask."""
        return self.kept / self.size if self.size else 1.0

    def layer_densities(self) -> Densities:
        """Fraction of the weights that live, by layer."""
        return {name: int(tensor.sum()) / tensor.numel() for name, tensor in self.items()}

    def shuffle(self, mode: ShuffleMode = "layerwise", generator: torch.Generator | None = None) -> "Mask":
        """The same number of living weights elsewhere: in each layer (``"layerwise"``) or in all (``"global"``)."""
        checks.known("mode", mode, ("layerwise", "global"))
        if mode == "layerwise":
            return Mask({name: _permuted(tensor.flatten(), generator).view_as(tensor) for name, tensor in self.items()})
        flat = _permuted(torch.cat([tensor.flatten() for tensor in self.values()]), generator)
        parts = torch.split(flat, [tensor.numel() for tensor in self.values()])
        return Mask({name: part.view_as(self[name]) for name, part in zip(self, parts, strict=True)})

    def to(self, device: torch.device | str) -> "Mask":
        """The same mask on another device."""
        return Mask({name: tensor.to(device) for name, tensor in self.items()})

    def check_not_empty(self) -> None:
        """Raise InputError, with its name, if a layer has no living weight."""
        for name, tensor in self.items():
            if not tensor.is_meta and not tensor.any():
                raise checks.InputError(f"layer {name!r} would keep none of its {tensor.numel()} weights")

    @torch.no_grad()
    def apply_(self, model: nn.Module) -> nn.Module:
        """Zero the dead weights of ``model`` once, in place.

        Raises:
            InputError: If the model has no parameter of a name, or of another shape.
        """
        for places in self._places(model).values():
            module, name, tensor = places[0]
            parameter = module._parameters[name]
            assert parameter is not None
            parameter.mul_(tensor.to(parameter))
        return model

    def attach_(self, model: nn.Module, *, gradients: bool = False) -> nn.Module:
        """Keep the dead weights of ``model`` at exactly zero from now on, in place; replaces a mask that was there.

        The modules get a subclass of their class in which reading a masked parameter zeroes its dead weights first, so
        that no forward pass, no copy and no ``state_dict`` sees another value.

        Args:
            model: The network.
            gradients: Also keep gradients from the dead weights, by making the read weight ``parameter * mask``. Only
                rules that look at norms (such as clipping) need it, and it costs two more passes over the weights.

        Returns:
            The model.

        Raises:
            InputError: If the model has no parameter of a name, or of another shape.
        """
        self.apply_(model)
        for places in self._places(model).values():
            for module, name, tensor in places:
                parameter = module._parameters[name]
                assert parameter is not None
                # in the parameter's type: a product of float and bool takes twice as long
                module.register_buffer(_buffer(name), tensor.to(parameter), persistent=False)
                _set_masked_names(module, (*_masked_names(module), name), gradients)
        return model

    def _places(self, model: nn.Module) -> dict[str, list[tuple[nn.Module, str, Tensor]]]:
        """Where each parameter is: a tied one has several places."""
        owners: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        names: dict[str, Tensor] = {}
        for prefix, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(parameter, []).append((module, name))
                    names[f"{prefix}.{name}".lstrip(".")] = parameter
        places = {}
        for name, tensor in self.items():
            checks.known("parameter", name, names)
            if tensor.shape != names[name].shape:
                checks.fail(f"mask of {name!r} must have shape {tuple(names[name].shape)}", tuple(tensor.shape))
            places[name] = [(module, own, tensor) for module, own in owners[names[name]]]
        return places


@torch.no_grad()
def make_permanent(model: nn.Module) -> nn.Module:
    """Take the attached masks off a model, in place, and leave real zeros in its parameters.

    Returns:
        The same model, plain again: its modules have their original classes.

    Example:
        >>> model = nn.Linear(100, 100)
        >>> mask = Mask.random({"weight": (100, 100)}, {"weight": 0.1}).attach_(model)
        >>> int(make_permanent(model).weight.count_nonzero())
        1000
    """
    for module in model.modules():
        for name in _masked_names(module):
            _zero_dead(module, name)
            delattr(module, _buffer(name))
        _set_masked_names(module, ())
    return model


def prunable(model: nn.Module, ignore: Iterable[str] = ()) -> dict[str, nn.Parameter]:
    """The parameters that pruning is about, by name.

    These have at least two dimensions, stand outside normalisation and embedding layers, and are not listed in the
    class attribute ``dense_parameters`` of their module. Biases and normalisation are not pruned and not counted.

    Args:
        model: Any network.
        ignore: Names of parameters or modules that stay dense.

    Raises:
        InputError: If there is no parameter or module of a name in ``ignore``, or nothing is left to prune.

    Example:
        >>> list(prunable(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))))
        ['0.weight', '3.weight']
    """
    ignore = list(ignore)
    _check_ignored(model, ignore)
    found: dict[str, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        if _is_norm_or_embedding(module):
            continue
        dense = getattr(type(module), "dense_parameters", ())
        for name, parameter in module._parameters.items():
            full = f"{prefix}.{name}".lstrip(".")
            if parameter is None or parameter.ndim < 2 or name in dense or is_ignored(full, ignore):
                continue
            if not any(parameter is other for other in found.values()):
                found[full] = parameter
    if not found:
        raise checks.InputError(
            "nothing to prune: no parameter with two or more dimensions outside norms and embeddings"
        )
    return found


def shapes_of(model: nn.Module, ignore: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
    """The shapes of the :func:`prunable` parameters by name; what the allocators take."""
    return {name: tuple(parameter.shape) for name, parameter in prunable(model, ignore).items()}


def is_ignored(name: str, ignore: Iterable[str]) -> bool:
    """Whether the parameter ``name`` is in ``ignore``, by its own name or that of a module around it."""
    return any(name == entry or name.startswith(f"{entry}.") for entry in ignore)


def _check_ignored(model: nn.Module, ignore: Iterable[str]) -> None:
    parameters = (name for name, _ in model.named_parameters(remove_duplicate=False))
    names = [name for name in itertools.chain(parameters, (name for name, _ in model.named_modules())) if name]
    for entry in ignore:
        checks.known("layer in ignore", entry, names)


def _is_norm_or_embedding(module: nn.Module) -> bool:
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag, *_NORMS)):
        return True
    return not isinstance(module, _PLAIN) and re.search(r"Norm(?![a-z])", type(module).__name__) is not None


def _as_bool(name: str, tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.bool:
        return tensor
    if not tensor.is_meta and bool(((tensor != 0) & (tensor != 1)).any()):
        raise checks.InputError(f"mask of {name!r} must be of zeros and ones, got other values")
    return tensor != 0


def _permuted(flat: Tensor, generator: torch.Generator | None) -> Tensor:
    device = flat.device if generator is None else generator.device
    return flat[torch.randperm(len(flat), generator=generator, device=device).to(flat.device)]


def _buffer(name: str) -> str:
    return f"_{name}_mask"


def _masked_names(module: nn.Module) -> tuple[str, ...]:
    names: tuple[str, ...] = getattr(type(module), "_masked_parameters", ())
    return names


def _set_masked_names(module: nn.Module, names: Iterable[str], gradients: bool = False) -> None:
    kind = type(module)
    plain = kind.__mro__[1] if _masked_names(module) else kind
    chosen = tuple(dict.fromkeys(names))
    module.__class__ = _masked_class(plain, chosen, gradients) if chosen else plain


@cache
def _masked_class(plain: type[nn.Module], names: tuple[str, ...], gradients: bool) -> type[nn.Module]:
    """A subclass in which the dead weights of the parameters ``names`` are zero whenever they are read.

    The parameters stay where they are, under their names; ``torch.nn.utils.parametrize`` would rename them.
    """

    def save_to_state_dict(self: nn.Module, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name in names:
            _zero_dead(self, name)
        plain._save_to_state_dict(self, destination, prefix, keep_vars)

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:  # noqa: ARG001
        return _new_masked, (plain, names, gradients), self.__dict__

    body: dict[str, Any] = {name: property(_reader(name, gradients)) for name in names}
    body |= {
        "_masked_parameters": names,
        "_save_to_state_dict": save_to_state_dict,
        "__reduce_ex__": reduce,
        "__doc__": plain.__doc__,
        "__module__": plain.__module__,
    }
    if issubclass(plain, nn.RNNBase):
        # these keep a list of their weights beside the parameters
        body["_flat_weights"] = property(
            lambda module: [getattr(module, name) for name in module._flat_weights_names], lambda *_: None
        )
    return type(f"Masked{plain.__name__}", (plain,), body)


def _reader(name: str, gradients: bool) -> Any:
    buffer = _buffer(name)

    def read(self: nn.Module) -> Tensor:
        parameter: Tensor = self._parameters[name]  # type: ignore[assignment]
        # what functional_call puts in the place of a parameter must not be changed, nor what is being traced
        if gradients or type(parameter) is not nn.Parameter or torch.compiler.is_compiling():
            return parameter * self._buffers[buffer]  # type: ignore[operator]
        _zero_dead(self, name)
        return parameter

    return read


def _zero_dead(module: nn.Module, name: str) -> None:
    parameter, mask = module._parameters[name], module._buffers[_buffer(name)]
    assert parameter is not None
    assert mask is not None
    # past autograd's eyes: it changes nothing that an earlier read has given
    parameter.data.mul_(mask)


def _new_masked(plain: type[nn.Module], names: tuple[str, ...], gradients: bool) -> nn.Module:
    kind: type[nn.Module] = _masked_class(plain, names, gradients)  # type: ignore[arg-type]
    return kind.__new__(kind)


__all__ = [
    "Mask",
    "is_ignored",
    "make_permanent",
    "prunable",
    "shapes_of",
]
