"""Which channels iterative feature merging merges: the search, on inner products that are kept up to date."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression._channel_groups import ChannelGroup, Slot

# a squared distance below this part of the squared norms is what rounding leaves of 0
_ROUNDING = 1e-13


class Step(NamedTuple):
    """One merging of two channels.

    Attributes:
        round: Number of the round, from 0.
        layer: Name of the group.
        first: The smallest of the original channels that made the first one.
        second: The same of the second one.
        distance: Their squared distance.
        largest: The largest squared distance between two channels of the group at that moment.
    """

    round: int
    layer: str
    first: int
    second: int
    distance: float
    largest: float


@dataclass
class Products:
    """Inner products between the channels of one group, kept up to date.

    Attributes:
        group: The group.
        sums: Products of what is summed when channels merge: incoming weights.
        means: Products of what is averaged: outgoing weights.
        counts: How many original channels are in each.
        table: The channels that the rows of ``sums`` and ``means`` belong to.
        gone: Rows of channels that were merged into others since the last clearing; they are 0.
        into: For every channel that was merged into another one, that one.
        done: Whether nothing changed since no pair was near enough.
    """

    group: ChannelGroup
    sums: Tensor
    means: Tensor
    counts: list[int]
    table: list[int]
    gone: list[int] = field(default_factory=list)
    into: dict[int, int] = field(default_factory=dict)
    done: bool = False

    @property
    def left(self) -> int:
        """How many channels are left."""
        return len(self.table) - len(self.gone)

    def distances(self) -> Tensor:
        """Squared distances between the rows."""
        products = self.sums + self.means
        squares = products.diagonal()
        return (squares[:, None] + squares[None, :]).sub_(products, alpha=2)

    def nearest(self) -> tuple[int, int, float, float]:
        """The nearest pair of channels, their squared distance, and the largest of all."""
        matrix = self.distances()
        gone = torch.tensor(self.gone, dtype=torch.long, device=matrix.device)
        matrix.index_fill_(0, gone, 0.0).index_fill_(1, gone, 0.0)
        largest = float(matrix.max())
        matrix.fill_diagonal_(math.inf).index_fill_(0, gone, math.inf).index_fill_(1, gone, math.inf)
        # much faster than argmin of the whole matrix
        one = int(matrix.amin(1).argmin())
        one, two = sorted((one, int(matrix[one].argmin())))
        smallest = float(matrix[one, two])
        squares = sum(float(products[row, row]) for products in (self.sums, self.means) for row in (one, two))
        return self.table[one], self.table[two], 0.0 if smallest < _ROUNDING * squares else smallest, largest

    def share(self, first: int, second: int) -> float:
        """The part of the original channels in both that the first one has."""
        return self.counts[first] / (self.counts[first] + self.counts[second])

    def combine(self, products: Tensor, first: int, second: int, one: float, two: float) -> None:
        """Put ``one`` times the first channel plus ``two`` times the second in the place of the first."""
        row, other = self.table.index(first), self.table.index(second)
        for lines in (products, products.T):
            lines[row].mul_(one).add_(lines[other], alpha=two)
            lines[other].zero_()

    def take_in(self, first: int, second: int) -> None:
        """Note that the second channel is part of the first one from now on."""
        self.counts[first] += self.counts[second]
        self.into[second] = first
        self.gone.append(self.table.index(second))
        if len(self.gone) > len(self.table) // 16:
            self._clear()

    def _clear(self) -> None:
        rows = sorted(set(range(len(self.table))) - set(self.gone))
        index = torch.tensor(rows, device=self.sums.device)
        self.sums, self.means = (m.index_select(0, index).index_select(1, index) for m in (self.sums, self.means))
        self.table = [self.table[row] for row in rows]
        self.gone = []

    def members(self) -> list[list[int]]:
        """Which original channels are in each of those that are left."""
        found: dict[int, list[int]] = {}
        for channel in range(self.group.channels):
            last = channel
            while last in self.into:
                last = self.into[last]
            found.setdefault(last, []).append(channel)
        return list(found.values())


class Search:
    """Merges channels of a network in float64, group by group.

    Merging two channels of a group changes its own inner products by a sum of rows and of columns. The same weights are
    also those of a neighbouring group, along another dimension, whose products change by a matrix of low rank.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> None:
        named: Mapping[str, Tensor] = dict(model.named_parameters())
        wanted = {slot.tensor: slot for group in groups for slot in group.slots if _counts(named, slot)}
        self.weights = {name: named[name].detach().to(torch.float64, copy=True) for name in wanted}
        for name, weight in self.weights.items():
            if weight.is_meta:
                raise checks.InputError(f"weights must have values, {name!r} is on the meta device")
            if not math.isfinite(float(weight.sum())):
                raise checks.InputError(
                    f"weights must be finite, {name!r} has infinite ones or such that are no number"
                )
        self.slots = {g.name: [slot for slot in g.slots if slot.tensor in self.weights] for g in groups}
        self.groups: dict[str, Products] = {}
        for group in groups:
            device = self.weights[self.slots[group.name][0].tensor].device
            totals = torch.zeros(2, group.channels, group.channels, dtype=torch.float64, device=device)
            for slot in self.slots[group.name]:
                rows = slot.matrix(self.weights[slot.tensor], group.channels)
                totals[int(slot.role != "producer")].addmm_(rows, rows.T)
            own = Products(group, totals[0], totals[1], [1] * group.channels, list(range(group.channels)))
            self.groups[group.name] = own
        self.neighbours: dict[str, list[tuple[Products, Slot]]] = {}
        for name, slots in self.slots.items():
            for slot in slots:
                self.neighbours.setdefault(slot.tensor, []).append((self.groups[name], slot))

    def run(self, beta: float, max_ratio: float) -> list[Step]:
        """Merge until no group has a pair that is near enough."""
        history: list[Step] = []
        number, merged = 0, True
        while merged:
            merged = False
            for name, own in self.groups.items():
                channels = own.group.channels
                spent = channels - own.left + 1 > max_ratio * channels + 1e-9
                if own.done or spent or own.left < 2:
                    continue
                first, second, distance, largest = own.nearest()
                own.done = distance > beta * largest
                if not own.done:
                    self.merge(own, first, second)
                    history.append(Step(number, name, first, second, distance, largest))
                    merged = True
            number += 1
        return history

    def merge(self, own: Products, first: int, second: int) -> None:
        """Merge two channels in all weights, and keep all products that change up to date."""
        share = own.share(first, second)
        # one kind after the other: a weight that both makes and reads these channels has a place in both
        for products, summed, one, two in ((own.sums, True, 1.0, 1.0), (own.means, False, share, 1 - share)):
            for slot in self.slots[own.group.name]:
                if (slot.role == "producer") == summed:
                    self._merge_weights(slot, first, second, one, two)
            own.combine(products, first, second, one, two)
        own.take_in(first, second)

    def _merge_weights(self, slot: Slot, first: int, second: int, one: float, two: float) -> None:
        weight = self.weights[slot.tensor]
        x, y = (weight.narrow(slot.dim, slot.start + c * slot.repeat, slot.repeat) for c in (first, second))
        for other, its in self.neighbours[slot.tensor]:
            if its.dim != slot.dim:
                _update(other, its, x, y, one, two)
        x.mul_(one).add_(y, alpha=two)
        y.zero_()


def _counts(named: Mapping[str, Tensor], slot: Slot) -> bool:
    return slot.role in ("producer", "consumer", "scale") and slot.tensor in named and named[slot.tensor].ndim > 1


def _update(other: Products, slot: Slot, first: Tensor, second: Tensor, one: float, two: float) -> None:
    """The products of another group after X and Y, slices of its weights, have become aX + bY."""
    rows = torch.tensor(other.table, device=first.device)
    x, y = (slot.matrix(part, other.group.channels).index_select(0, rows) for part in (first, second))
    # what they change by: (aX + bY)(aX + bY)ᵀ − XXᵀ − YYᵀ
    left = torch.cat([(one * one - 1) * x + one * two * y, one * two * x + (two * two - 1) * y], 1)
    target = other.sums if slot.role == "producer" else other.means
    target.addmm_(left, torch.cat([x, y], 1).T)
    other.done = False


__all__ = ["Products", "Search", "Step"]
