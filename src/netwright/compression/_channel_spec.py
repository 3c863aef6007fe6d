"""Groups of channels said by hand, for networks that cannot be traced."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from netwright import checks
from netwright.compression._channel_groups import ChannelGroup, Slot, own_tensor
from netwright.compression._channel_layers import LayerAxes, axes_of, why_no_rule


@dataclass(frozen=True)
class ChannelSpec:
    """Groups of channels said by hand, for a network that cannot be traced; nothing else is then changed.

    Attributes:
        groups: Name of a group (usually that of its first layer) to the layers that make or scale its channels
            (linear, convolutional, depthwise, BatchNorm) and the layers that read them. Behind a flattening a channel
            owns as many consecutive columns as fit.

    Example:
        >>> from netwright.compression.channels import channel_graph
        >>> spec = ChannelSpec({"0": (["0", "1"], ["5"])})
        >>> model = nn.Sequential(
        ...     nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10)
        ... )
        >>> channel_graph(model, spec=spec).groups["0"].slots[-1]
        Slot(tensor='5.weight', dim=1, role='consumer', start=0, repeat=9)
    """

    groups: Mapping[str, tuple[Sequence[str], Sequence[str]]]


def groups_from_spec(model: nn.Module, spec: ChannelSpec) -> list[ChannelGroup]:
    """The groups that a spec describes.

    Raises:
        InputError: If a layer does not exist, has no rule or does not fit, or an axis is in two groups.
    """
    if not spec.groups:
        raise checks.InputError("a spec needs at least one group, got none")
    names = {tensor: name for named in (model.named_parameters(), model.named_buffers()) for name, tensor in named}
    taken: dict[tuple[str, int], str] = {}
    groups = []
    for name, (makers, readers) in spec.groups.items():
        axes = {layer: _axes_of(model, layer) for layer in (*makers, *readers)}
        making = tuple(layer for layer in makers if axes[layer].makes)
        if not making:
            raise checks.InputError(
                f"group {name!r} in spec names no linear or convolutional layer that makes channels"
            )
        weight, dim, _ = axes[making[0]].makes[0]
        channels = model.get_submodule(making[0]).get_parameter(weight).shape[dim]
        slots: dict[Slot, None] = {}
        wanted = [(layer, axis) for layer in makers for axis in (*axes[layer].makes, *axes[layer].keeps)]
        wanted += [(layer, axis) for layer in readers for axis in axes[layer].reads]
        for layer, (attribute, own_dim, role) in wanted:
            tensor = own_tensor(model.get_submodule(layer), attribute)
            if tensor is None:
                continue
            if taken.setdefault((names[tensor], own_dim), name) != name:
                other = taken[names[tensor], own_dim]
                raise checks.InputError(
                    f"layer {layer!r} has the same channels in groups {other!r} and {name!r} of spec"
                )
            size = tensor.shape[own_dim]
            checks.divisible(f"channels of {layer!r} in group {name!r}", size, f"channels of {making[0]!r}", channels)
            slots[Slot(names[tensor], own_dim, role, 0, size // channels)] = None
        groups.append(ChannelGroup(name, channels, making, tuple(slots)))
    return groups


def _axes_of(model: nn.Module, layer: str) -> LayerAxes:
    modules = dict(model.named_modules())
    checks.known("layer in spec", layer, [name for name in modules if name])
    axes = axes_of(modules[layer])
    if axes is None:
        raise checks.InputError(
            f"layer {layer!r} in spec {why_no_rule(modules[layer])}; leave its channels out of spec"
        )
    return axes


__all__ = ["ChannelSpec", "groups_from_spec"]
