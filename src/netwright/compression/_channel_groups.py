"""Groups of axes that are the same channels: the records behind :mod:`netwright.compression.channels`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netwright.compression._channel_layers import Role


class Slot(NamedTuple):
    """One axis, or a stretch of one, of one tensor that runs along the channels of a group.

    Channel c owns the entries ``start + c * repeat`` to ``start + (c + 1) * repeat - 1`` of dimension ``dim``.

    Attributes:
        tensor: Name of the parameter or buffer, as in ``state_dict``.
        dim: Its dimension.
        role: ``"producer"``: rows of a layer that makes the channels; ``"consumer"``: columns of a layer that reads
            them; ``"scale"``: what multiplies a channel (depthwise filter, slope of PReLU); ``"vector"``: what grows
            with it (bias; γ, β and running mean of BatchNorm); ``"variance"``: the running variance.
        start: First entry.
        repeat: Entries of each channel: more than 1 behind a flattening.
    """

    tensor: str
    dim: int
    role: Role
    start: int = 0
    repeat: int = 1

    def positions(self, channels: Tensor) -> Tensor:
        """The entries that belong to some channels, in order."""
        return (self.start + channels[:, None] * self.repeat + torch.arange(self.repeat)).flatten()

    def matrix(self, tensor: Tensor, channels: int) -> Tensor:
        """The entries of each of ``channels`` channels as a row of a matrix ``(channels, entries)``."""
        stretch = tensor.narrow(self.dim, self.start, channels * self.repeat).movedim(self.dim, 0)
        return stretch.reshape(channels, self.repeat, *stretch.shape[1:]).reshape(channels, -1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only change together.

    Attributes:
        name: The first layer that makes them.
        channels: How many there are.
        layers: All layers that make them, tied by additions or shared weights.
        slots: All axes that run along them.
        fixed: Why their number cannot change; empty if it can.
        curved: What they pass through that is not positively homogeneous, f(ax) = a f(x) for a > 0; else empty.
    """

    name: str
    channels: int
    layers: tuple[str, ...]
    slots: tuple[Slot, ...]
    fixed: str = ""
    curved: str = ""


class Segment(NamedTuple):
    """A stretch of an axis: the channels of group ``key``, or entries of no group (``None``)."""

    key: int | None
    channels: int
    repeat: int = 1


Segments = tuple[Segment, ...]


@dataclass
class _Record:
    channels: int
    layers: dict[str, None] = field(default_factory=dict)
    slots: dict[Slot, None] = field(default_factory=dict)
    fixed: str = ""
    curved: str = ""


class Book:
    """Groups in the making: which axes were found to be the same channels so far (union-find).

    Args:
        model: The network whose tensors are written down; shared ones under their first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parents: list[int] = []
        self._records: list[_Record] = []
        self._uses: dict[tuple[str, int], Segments] = {}
        self._names = {
            tensor: name for tensors in (model.named_parameters(), model.named_buffers()) for name, tensor in tensors
        }
        self._elsewhere: dict[str, str] = {}

    def make(self, layer: str, weight: Tensor, dim: int) -> Segments:
        """The channels that a layer makes; those of a shared weight are the same."""
        known = self._uses.get((self._names[weight], dim))
        if known is None:
            self._parents.append(len(self._parents))
            self._records.append(_Record(weight.shape[dim]))
            known = (Segment(len(self._parents) - 1, weight.shape[dim]),)
        for segment in known:
            if segment.key is not None:
                self._of(segment).layers[layer] = None
        return known

    def use(self, tensor: Tensor, dim: int, role: Role, segments: Segments) -> None:
        """A tensor has an axis along these channels."""
        name = self._names[tensor]
        known = self._uses.setdefault((name, dim), segments)
        if known != segments:
            self.join(known, segments, f"{name!r} is used for different channels")
        start = 0
        for segment in segments:
            if segment.key is not None:
                self._of(segment).slots[Slot(name, dim, role, start, segment.repeat)] = None
            start += segment.channels * segment.repeat

    def use_elsewhere(self, tensor: Tensor, reason: str) -> None:
        """A tensor is read outside of its layer, so that its shape must stay."""
        if tensor in self._names:
            self._elsewhere[self._names[tensor]] = reason

    def join(self, first: Segments, second: Segments, reason: str) -> Segments:
        """Tie two axes that have to be alike; where they cannot be, fix them for that ``reason``."""
        if [segment[1:] for segment in first] != [segment[1:] for segment in second]:
            self.fix((*first, *second), reason)
            return first
        for one, two in zip(first, second, strict=True):
            if one.key is None or two.key is None:
                self.fix((one, two), reason)
            else:
                self._tie(self._find(one.key), self._find(two.key))
        return first

    def fix(self, segments: Iterable[Segment], reason: str) -> None:
        """These channels have to stay as many as they are."""
        for segment in segments:
            if segment.key is not None:
                record = self._of(segment)
                record.fixed = record.fixed or reason

    def bend(self, segments: Iterable[Segment], reason: str) -> None:
        """These channels pass through something that is not positively homogeneous."""
        for segment in segments:
            if segment.key is not None:
                record = self._of(segment)
                record.curved = record.curved or reason

    def groups(self) -> list[ChannelGroup]:
        """What was found, in the order of the forward pass."""
        found = []
        for key, record in enumerate(self._records):
            if self._find(key) != key:
                continue
            slots = tuple(record.slots)
            elsewhere = (self._elsewhere[slot.tensor] for slot in slots if slot.tensor in self._elsewhere)
            fixed = record.fixed or next(elsewhere, "")
            layers = tuple(record.layers)
            found.append(ChannelGroup(layers[0], record.channels, layers, slots, fixed, record.curved))
        return found

    def _of(self, segment: Segment) -> _Record:
        assert segment.key is not None
        return self._records[self._find(segment.key)]

    def _find(self, key: int) -> int:
        while self._parents[key] != key:
            key = self._parents[key]
        return key

    def _tie(self, one: int, two: int) -> None:
        first, second = sorted((one, two))
        if first == second:
            return
        self._parents[second] = first
        kept, gone = self._records[first], self._records[second]
        kept.layers |= gone.layers
        kept.slots |= gone.slots
        kept.fixed = kept.fixed or gone.fixed
        kept.curved = kept.curved or gone.curved


def own_tensor(layer: nn.Module, name: str) -> Tensor | None:
    """A parameter or buffer of a layer itself, if it has one of that name."""
    tensor = layer._parameters.get(name)
    return layer._buffers.get(name) if tensor is None else tensor


__all__ = ["Book", "ChannelGroup", "Segment", "Segments", "Slot", "own_tensor"]
