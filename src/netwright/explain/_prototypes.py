"""Prototypes in a latent space: distances of codes or feature maps to them, and the training patch nearest to each."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from netwright import checks

Distance = Callable[[Tensor, Tensor], Tensor]


def squared_distances(features: Tensor, prototypes: Tensor) -> Tensor:
    r"""Squared Euclidean distances of codes, or of every position of feature maps, to prototypes.

    .. math:: d_j = \max(0, \|z\|^2 + \|p_j\|^2 - 2 z^T p_j)

    which needs no array of ``batch × prototypes × features``.

    Args:
        features: Codes ``(batch, features)`` or maps ``(batch, features, *positions)``.
        prototypes: ``(prototypes, features)``, or those of every sample ``(batch, prototypes, features)``.

    Returns:
        ``(batch, prototypes)`` or ``(batch, prototypes, *positions)``.

    Raises:
        InputError: If the shapes do not fit.

    Example:
        >>> squared_distances(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([[3.0, 4.0]]))
        tensor([[25.],
                [16.]])
    """
    _check_shapes(features, prototypes)
    squares = prototypes.square().sum(-1)
    lengths = squares.view(*squares.shape, *[1] * (features.ndim - 2))
    return (features.square().sum(1, keepdim=True) + lengths - 2 * products(features, prototypes)).clamp(min=0)


def products(features: Tensor, prototypes: Tensor) -> Tensor:
    """Inner products of codes or maps with prototypes; shapes as for :func:`squared_distances`."""
    _check_shapes(features, prototypes)
    equation = "bq...,mq->bm..." if prototypes.ndim == 2 else "bq...,bmq->bm..."
    return torch.einsum(equation, features, prototypes)


class NearestPatches(NamedTuple):
    """For each prototype, the patch that is nearest to it.

    Attributes:
        sample: Number of the sample it is from, in the order of the batches ``(prototypes,)``, int64.
        position: Its place in the flattened map ``(prototypes,)``, int64; 0 for codes.
        distance: ``(prototypes,)``.
        patch: Its features ``(prototypes, features)``.
    """

    sample: Tensor
    position: Tensor
    distance: Tensor
    patch: Tensor


def nearest_patches(
    prototypes: Tensor, batches: Iterable[Tensor], distance: Distance = squared_distances
) -> NearestPatches:
    """Search a stream of codes or feature maps for the patch nearest to each prototype; the first one of equals.

    Args:
        prototypes: ``(prototypes, features)``.
        batches: Codes ``(batch, features)`` or maps ``(batch, features, *positions)``; one batch at a time is held.
        distance: ``distance(features, prototypes)`` as :func:`squared_distances` gives it.

    Raises:
        InputError: If there is no patch at all, or the shapes do not fit.

    Example:
        >>> found = nearest_patches(torch.tensor([[1.0, 1.0]]), [torch.zeros(2, 2), torch.ones(1, 2)])
        >>> int(found.sample), float(found.distance)
        (2, 0.0)
    """
    best: NearestPatches | None = None
    seen = 0
    for features in batches:
        _check_shapes(features, prototypes)
        if features.numel():
            found = _nearest_of(prototypes, features, distance, seen)
            best = found if best is None else _nearer(best, found)
        seen += len(features)
    if best is None:
        checks.fail("batches must hold at least 1 patch", 0)
    return best


def class_members(classes: Tensor) -> Tensor:
    """Which prototypes belong to each class.

    Args:
        classes: The class of each prototype ``(prototypes,)``, int64.

    Returns:
        Row c holds the numbers of the prototypes of class c, then -1 up to the length of the longest row.

    Example:
        >>> class_members(torch.tensor([0, 0, 2, 1, 2, 2]))
        tensor([[ 0,  1, -1],
                [ 3, -1, -1],
                [ 2,  4,  5]])
    """
    counts = torch.bincount(classes)
    order = classes.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    slots = torch.arange(len(classes), device=classes.device) - starts[classes[order]]
    members = classes.new_full((len(counts), int(counts.max())), -1)
    members[classes[order], slots] = order
    return members


class NearestOwnPatches:
    """Search a stream of maps for the patch of a sample of its own class that is nearest to each prototype.

    Only the distances of every sample to the prototypes of its class are computed, all samples of a batch at once.

    Args:
        prototypes: ``(prototypes, features)``.
        classes: The class of each ``(prototypes,)``, int64.
        distance: ``distance(features, prototypes)`` as :func:`squared_distances`, with prototypes of every sample.

    Attributes:
        found: The nearest patches so far; ``sample`` is -1 where there is none yet.

    Example:
        >>> search = NearestOwnPatches(torch.tensor([[0.0], [0.0]]), torch.tensor([0, 1]))
        >>> search.update(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1, 0, 1]))
        tensor([True, True])
        >>> search.found.sample
        tensor([1, 0])
    """

    def __init__(self, prototypes: Tensor, classes: Tensor, distance: Distance = squared_distances) -> None:
        checks.dimensions("prototypes", prototypes, "(prototypes, features)")
        self.prototypes, self.classes, self.distance = prototypes, classes, distance
        number = len(prototypes)
        none = torch.full((number,), -1, device=prototypes.device)
        self.found = NearestPatches(none, none, prototypes.new_full((number,), torch.inf), torch.zeros_like(prototypes))
        self.seen = 0
        self.members = class_members(classes)
        self.slot = (self.members[classes] == torch.arange(number, device=classes.device)[:, None]).int().argmax(1)

    def update(self, features: Tensor, labels: Tensor) -> Tensor:
        """Look at one more batch.

        Args:
            features: ``(batch, features, *positions)``.
            labels: Classes ``(batch,)``; samples of a class without prototypes count for nothing.

        Returns:
            For which prototypes there is a nearer patch now ``(prototypes,)``.

        Raises:
            InputError: If the shapes do not fit, a label is negative or a distance is NaN.
        """
        _check_shapes(features, self.prototypes)
        if labels.shape != features.shape[:1]:
            checks.fail(f"labels must have shape ({len(features)},)", f"shape {tuple(labels.shape)}")
        if not features.numel():
            self.seen += len(features)
            return torch.zeros_like(self.classes, dtype=torch.bool)
        checks.at_least("labels", int(labels.min()), 0)
        covered = labels < len(self.members)
        own = torch.where(covered[:, None], self.members[labels.clamp(max=len(self.members) - 1)], -1)
        distances = self.distance(features, self.prototypes[own.clamp(min=0)]).reshape(*own.shape, -1)
        if bool(distances.isnan().any()):
            raise checks.InputError("features must be finite, got NaN or infinity")
        smallest, position = distances.min(2)
        # what has no prototype goes to one more place, which is left out afterwards
        number = len(self.prototypes)
        to = torch.where(own >= 0, own, number)
        samples = torch.arange(len(features), device=own.device)[:, None].expand_as(own)
        best = smallest.new_full((number + 1,), torch.inf).scatter_reduce(0, to.flatten(), smallest.flatten(), "amin")
        winners = torch.where(smallest == best[to], samples, len(features))
        first = winners.new_full((number + 1,), len(features)).scatter_reduce(
            0, to.flatten(), winners.flatten(), "amin"
        )
        first, best = first[:number].clamp(max=len(features) - 1), best[:number]
        places = position[first, self.slot]
        better = best < self.found.distance
        patches = features.reshape(*features.shape[:2], -1)[first, :, places]
        self.found = _nearer(self.found, NearestPatches(first + self.seen, places, best, patches))
        self.seen += len(features)
        return better


def _nearest_of(prototypes: Tensor, features: Tensor, distance: Distance, seen: int) -> NearestPatches:
    distances = distance(features, prototypes).transpose(0, 1).flatten(1)
    smallest, index = distances.min(1)
    positions = distances.shape[1] // len(features)
    patches = features.movedim(1, -1).reshape(-1, features.shape[1])
    return NearestPatches(index // positions + seen, index % positions, smallest, patches[index])


def _nearer(best: NearestPatches, found: NearestPatches) -> NearestPatches:
    better = found.distance < best.distance
    sample, position, distance = (torch.where(better, new, old) for new, old in zip(found[:3], best[:3], strict=True))
    return NearestPatches(sample, position, distance, torch.where(better[:, None], found.patch, best.patch))


def _check_shapes(features: Tensor, prototypes: Tensor) -> None:
    checks.dimensions("prototypes", prototypes, "(prototypes, features)", "(batch, prototypes, features)")
    if features.ndim < 2:
        checks.fail("features must have shape (batch, features, *positions)", f"shape {tuple(features.shape)}")
    checks.size("features", features, 1, prototypes.shape[-1])
    if prototypes.ndim == 3:
        checks.size("prototypes", prototypes, 0, len(features))


__all__ = [
    "Distance",
    "NearestOwnPatches",
    "NearestPatches",
    "class_members",
    "nearest_patches",
    "products",
    "squared_distances",
]
