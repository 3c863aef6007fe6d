"""Channels of a network: which axes of which tensors are the same channel, and networks with fewer of them.

The shared block of structured pruning. :func:`channel_graph` finds the groups of axes that can only change together:
rows of the layer that makes a channel, its bias, BatchNorm's vectors, depthwise filters, columns of the layers that
read it, and all of that again for every layer that is tied to it by an addition. :func:`select`, :func:`merge` and
:func:`mask_nodes` work on these groups.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression._channel_groups import ChannelGroup, Slot
from netwright.compression._channel_input import check_runs, guess_input, on_device
from netwright.compression._channel_layers import axes_of, is_depthwise, set_sizes
from netwright.compression._channel_spec import ChannelSpec, groups_from_spec
from netwright.compression._channel_trace import trace
from netwright.compression.masks import Mask

BatchNormRule = Literal["std", "reference"]
Chosen = Mapping[str, Tensor | Sequence[int]]


@dataclass(frozen=True)
class ChannelGraph:
    """The groups of channels of one network.

    Attributes:
        groups: By name, those whose number of channels can change, in the order of the forward pass.
        fixed: By name, those that have to stay as they are; ``fixed[name].fixed`` says why.
        folds: Name of a BatchNorm to the layer before it, where nothing else reads what that layer gives.
        inputs: Shapes of the inputs that the network was traced with; empty for a graph from a spec.
    """

    groups: Mapping[str, ChannelGroup]
    fixed: Mapping[str, ChannelGroup]
    folds: Mapping[str, str] = field(default_factory=dict)
    inputs: tuple[tuple[int, ...], ...] = ()

    def group(self, layer: str) -> ChannelGroup:
        """The group of the channels that a layer makes.

        Raises:
            InputError: If there is no such layer, or its channels cannot change; the message says why.
        """
        for group in self.groups.values():
            if layer == group.name or layer in group.layers:
                return group
        for group in self.fixed.values():
            if layer in group.layers:
                raise checks.InputError(f"the channels of {layer!r} cannot change: {group.fixed}")
        names = [name for group in self.groups.values() for name in (group.name, *group.layers)]
        raise checks.InputError(f"unknown layer with channels {layer!r}; {checks.did_you_mean(layer, set(names))}")

    def why_fixed(self) -> str:
        """Every group that cannot change, with the reason, as one text; empty if there is none."""
        return "; ".join(f"{name}: {group.fixed}" for name, group in self.fixed.items())


def channel_graph(
    model: nn.Module, example_input: Tensor | tuple[Tensor, ...] | None = None, *, spec: ChannelSpec | None = None
) -> ChannelGraph:
    """Find the axes of a network's tensors that are the same channels.

    The network is traced with torch.fx and run once in eval mode, and the channels are followed on the way: through
    torch's linear and (also transposed and depthwise) convolutional layers, BatchNorm, activations, pooling, padding,
    additions, products, concatenation, flattening and other changes of shape. What has no rule fixes the channels that
    reach it, as do the outputs; the graph says so. The model is left as it is.

    Args:
        model: Any network.
        example_input: An input (or several) of the network. Without one, inputs that the first layer takes are tried:
            pictures of usual sizes, or rows of features.
        spec: The groups, said by hand; nothing is traced then.

    Returns:
        The groups.

    Raises:
        InputError: If the network cannot be traced, or fails on its input; if a spec names a layer that does not exist
            or has no channel rule, or sizes that do not agree.

    Example:
        >>> from netwright.models.vision.classic import lenet_5
        >>> graph = channel_graph(lenet_5(), torch.zeros(1, 1, 28, 28))
        >>> {name: group.channels for name, group in graph.groups.items()}
        {'0': 6, '3': 16, '7': 120, '9': 84}
        >>> graph.group("3").slots[-1]  # a channel owns 25 columns behind the flattening
        Slot(tensor='7.weight', dim=1, role='consumer', start=0, repeat=25)
        >>> graph.why_fixed()
        '11: they are outputs of the network'
    """
    if spec is not None:
        return ChannelGraph({group.name: group for group in groups_from_spec(model, spec)}, {})
    inputs = (example_input,) if isinstance(example_input, Tensor) else example_input
    inputs = guess_input(model) if inputs is None else on_device(model, inputs)
    book, folds = trace(model, inputs)
    groups = book.groups()
    return ChannelGraph(
        {group.name: group for group in groups if not group.fixed},
        {group.name: group for group in groups if group.fixed},
        folds,
        tuple(tuple(tensor.shape) for tensor in inputs),
    )


def select(model: nn.Module, graph: ChannelGraph, kept: Chosen) -> nn.Module:
    """A network with only some of the channels: really smaller, with the same modules and names.

    Args:
        model: The network of ``graph``; it is left as it is.
        graph: From :func:`channel_graph`.
        kept: Layer to the channels to keep, as indices or a bool mask; other groups keep all.

    Returns:
        The smaller network. It gives what ``model`` gives with the other channels masked by :func:`mask_nodes`.

    Raises:
        InputError: If a layer's channels cannot change, indices do not fit, or a group would be left without channels.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> select(model, channel_graph(model), {"0": [1, 3, 5]})
        Sequential(
          (0): Linear(in_features=4, out_features=3, bias=True)
          (1): ReLU()
          (2): Linear(in_features=3, out_features=2, bias=True)
        )
    """
    dropped = _dropped(graph, kept)
    order = {group.name: indices for group, indices in _chosen(graph, kept)}
    tensors = _tensors(model)
    changed: dict[str, Tensor] = {}
    for (name, dim), slots in _axes(graph, dropped).items():
        tensor = changed.get(name, tensors[name])
        pieces, at = [], 0
        for slot, group in slots:
            pieces.append(torch.arange(at, slot.start))
            pieces.append(slot.positions(order[group.name]))
            at = slot.start + group.channels * slot.repeat
        pieces.append(torch.arange(at, tensor.shape[dim]))
        changed[name] = tensor.index_select(dim, torch.cat(pieces).to(tensor.device))
    return _with_tensors(model, changed, graph)


def merge(
    model: nn.Module,
    graph: ChannelGraph,
    groups: Mapping[str, Sequence[Sequence[int]]],
    *,
    batchnorm: BatchNormRule = "std",
) -> nn.Module:
    r"""A network in which some channels became one: really smaller, with the same modules and names.

    Rows and biases of the layers that make the channels and BatchNorm's vectors are summed over the channels that
    become one, columns of the layers that read them and depthwise filters are averaged. Where the merged channels were
    equal and all that they pass through is positively homogeneous, the network computes what it did before. For that
    the standard deviation of BatchNorm has to be summed, not the variance:

    .. math:: σ'^2 + ε = \Bigl(\sum_i \sqrt{σ_i^2 + ε}\Bigr)^2

    Args:
        model: The network of ``graph``; it is left as it is.
        graph: From :func:`channel_graph`.
        groups: Layer to a list of lists: which of the old channels make each of the new ones.
        batchnorm: ``"std"`` sums standard deviations as above, ``"reference"`` variances as the code of Chen et al.
            2023 does.

    Returns:
        The smaller network.

    Raises:
        InputError: If the lists are not a partition of a group's channels, or these cannot change.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> with torch.no_grad():
        ...     _ = model[0].weight[2].copy_(model[0].weight[0]), model[0].bias[2].copy_(model[0].bias[0])
        >>> merged = merge(model, channel_graph(model), {"0": [[0, 2], [1]]})
        >>> x = torch.randn(5, 4)
        >>> merged[0].out_features, torch.allclose(merged(x), model(x), atol=1e-6)
        (2, True)
    """
    checks.known("batchnorm rule", batchnorm, get_args(BatchNormRule))
    merged = {graph.group(layer).name: _partition(graph.group(layer), lists) for layer, lists in groups.items()}
    tensors = _tensors(model)
    changed: dict[str, Tensor] = {}
    for (name, dim), slots in _axes(graph, merged).items():
        tensor = changed.get(name, tensors[name].double())
        target, weight = torch.arange(tensor.shape[dim]), torch.ones(tensor.shape[dim], dtype=torch.float64)
        shift = 0
        for slot, group in slots:
            into = merged[group.name]
            stop = slot.start + group.channels * slot.repeat
            own = into[:, None] * slot.repeat + torch.arange(slot.repeat)
            target[slot.start : stop] = own.flatten() + slot.start - shift
            if slot.role in ("consumer", "scale"):
                weight[slot.start : stop] = (1 / into.bincount().double())[into].repeat_interleave(slot.repeat)
            shift += (group.channels - int(into.max()) - 1) * slot.repeat
            target[stop:] = torch.arange(stop, tensor.shape[dim]) - shift
        changed[name] = _sum_into(tensor, dim, target, weight, _epsilon(model, name, slots, batchnorm))
    return _with_tensors(model, {name: tensor.to(tensors[name]) for name, tensor in changed.items()}, graph)


def mask_nodes(model: nn.Module, graph: ChannelGraph, kept: Chosen) -> Mask:
    """The mask that silences channels: all parameters that belong to them, those that read them included.

    The masked network gives what :func:`select` gives, at the old size: to be trained sparse, or to be compared.

    Args:
        model: The network of ``graph``.
        graph: From :func:`channel_graph`.
        kept: See :func:`select`.

    Raises:
        InputError: See :func:`select`.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask_nodes(model, channel_graph(model), {"0": [1, 3, 5]})
        Mask(21 of 56 weights in 3 layers, density 0.3750)
    """
    dropped = _dropped(graph, kept)
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for (name, dim), slots in _axes(graph, dropped).items():
        if name not in parameters:
            continue
        mask = masks.setdefault(name, torch.ones_like(parameters[name], dtype=torch.bool))
        for slot, group in slots:
            mask.index_fill_(dim, slot.positions(dropped[group.name]).to(mask.device), False)
    return Mask(masks)


def resize_like(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy of ``model`` whose layers have the sizes, and the values, of another state of the same names.

    Args:
        model: A network of the structure in which ``state`` was made, with other numbers of channels.
        state: As from ``state_dict`` of a network that :func:`select` or :func:`merge` gave.

    Raises:
        InputError: If the names differ, or a tensor has another shape in a layer whose size cannot change.

    Example:
        >>> state = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).state_dict()
        >>> resize_like(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), state)[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    names = model.state_dict()
    for name in sorted(state.keys() ^ names.keys()):
        where = "model" if name in state else "state"
        raise checks.InputError(f"the {where} has no {name!r}, so that this is not the structure of the state")
    tensors = _tensors(model)
    changed = {}
    for name, tensor in tensors.items():
        if name in state and state[name].shape != tensor.shape:
            layer = model.get_submodule(name.rpartition(".")[0])
            if axes_of(layer) is None or state[name].ndim != tensor.ndim:
                checks.fail(f"{name!r} must have shape {tuple(tensor.shape)}", tuple(state[name].shape))
            changed[name] = tensor.new_empty(state[name].shape)
    new = _with_tensors(model, changed, None)
    new.load_state_dict(dict(state))
    return new


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones under their first."""
    return {
        name: tensor.detach() for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named
    }


def _axes(graph: ChannelGraph, names: Mapping[str, object]) -> dict[tuple[str, int], list[tuple[Slot, ChannelGroup]]]:
    """By tensor and dimension, the stretches that belong to groups in ``names``, from the first to the last."""
    axes: dict[tuple[str, int], list[tuple[Slot, ChannelGroup]]] = {}
    for name in names:
        for slot in graph.groups[name].slots:
            axes.setdefault((slot.tensor, slot.dim), []).append((slot, graph.groups[name]))
    return {key: sorted(slots, key=lambda pair: pair[0].start) for key, slots in axes.items()}


def _chosen(graph: ChannelGraph, kept: Chosen) -> list[tuple[ChannelGroup, Tensor]]:
    chosen = []
    for layer, given in kept.items():
        group = graph.group(layer)
        indices = torch.as_tensor(given).detach().cpu()
        if indices.dtype == torch.bool:
            checks.size(f"mask of the channels of {layer!r}", indices, 0, group.channels)
            indices = indices.nonzero().flatten()
        if not indices.numel():
            raise checks.InputError(f"layer {layer!r} would keep none of its {group.channels} channels")
        if indices.is_floating_point() or indices.ndim != 1 or len(set(indices.tolist())) < len(indices):
            checks.fail(f"channels of {layer!r} must be different whole numbers or a bool mask", given)
        if int(indices.min()) < 0 or int(indices.max()) >= group.channels:
            checks.fail(f"channels of {layer!r} must be in [0, {group.channels - 1}]", given)
        chosen.append((group, indices.long()))
    return chosen


def _dropped(graph: ChannelGraph, kept: Chosen) -> dict[str, Tensor]:
    dropped = {}
    for group, indices in _chosen(graph, kept):
        lost = torch.ones(group.channels, dtype=torch.bool)
        lost[indices] = False
        dropped[group.name] = lost.nonzero().flatten()
    return dropped


def _partition(group: ChannelGroup, lists: Sequence[Sequence[int]]) -> Tensor:
    """For every old channel the number of the new one."""
    if sorted(channel for members in lists for channel in members) != list(range(group.channels)) or not all(lists):
        checks.fail(f"groups of {group.name!r} must name each of its {group.channels} channels once", lists)
    into = torch.empty(group.channels, dtype=torch.long)
    for new, members in enumerate(lists):
        into[torch.tensor(members)] = new
    return into


def _epsilon(
    model: nn.Module, name: str, slots: list[tuple[Slot, ChannelGroup]], batchnorm: BatchNormRule
) -> float | None:
    """ε of the BatchNorm whose running variance this is, if standard deviations are to be summed."""
    if slots[0][0].role != "variance" or batchnorm == "reference":
        return None
    eps: float = model.get_submodule(name.rpartition(".")[0]).eps  # type: ignore[assignment]
    return eps


def _sum_into(tensor: Tensor, dim: int, target: Tensor, weight: Tensor, eps: float | None) -> Tensor:
    """Weighted sums of the entries along ``dim`` that have the same target; of √(entry + ε) if ε is given."""
    shape = list(tensor.shape)
    shape[dim] = int(target.max()) + 1
    target = target.to(tensor.device)
    if eps is not None:
        summed = tensor.new_zeros(shape).index_add_(dim, target, (tensor + eps).sqrt())
        return summed.square() - eps
    factor = weight.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1 - dim))
    return tensor.new_zeros(shape).index_add_(dim, target, tensor * factor)


def _with_tensors(model: nn.Module, changed: Mapping[str, Tensor], graph: ChannelGraph | None) -> nn.Module:
    """A copy of ``model`` with other tensors in the place of some, and layers of the sizes that these have."""
    old = {tensor: name for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named}
    # what is replaced is not copied first
    new = copy.deepcopy(model, {id(tensor): None for tensor, name in old.items() if name in changed})
    made: dict[str, nn.Parameter] = {}
    for before, after in zip(model.modules(), new.modules(), strict=True):
        touched = False
        for name, parameter in before._parameters.items():
            if parameter is not None and old[parameter] in changed:
                own = old[parameter]
                made.setdefault(own, nn.Parameter(changed[own].contiguous(), parameter.requires_grad))
                after._parameters[name] = made[own]
                touched = True
        for name, buffer in before._buffers.items():
            if buffer is not None and old.get(buffer) in changed:
                after._buffers[name] = changed[old[buffer]].contiguous()
                touched = True
        if touched:
            set_sizes(after, is_depthwise(before))
    if graph is not None and graph.inputs:
        check_runs(new, graph.inputs)
    return new


__all__ = [
    "BatchNormRule",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelSpec",
    "Slot",
    "channel_graph",
    "mask_nodes",
    "merge",
    "resize_like",
    "select",
]
