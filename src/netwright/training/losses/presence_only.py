"""Losses for sightings without absences ("assume negative"; Cole et al. 2023, arXiv:2306.02564), and their training.

Public names: :func:`assume_negative`, :func:`assume_negative_locations`, :func:`assume_negative_species`,
:func:`balanced_weights`, :class:`PresenceOnly`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from netwright import checks
from netwright.data.globe import uniform_on_sphere
from netwright.data.splits import Batch
from netwright.training.rules import Backprop


def assume_negative(
    logits: Tensor, species: Tensor, elsewhere: Tensor, *, weight: float = 2048.0, class_weight: Tensor | None = None
) -> Tensor:
    r"""Full assume-negative loss: what was not seen counts as absent, there and at random places; sightings weigh more.

    .. math:: L = -\frac1S \sum_j \left( [z_j = 1]\, \lambda \log \hat y_j + [z_j = 0] \log(1 - \hat y_j)
        + \log(1 - \hat y'_j) \right)

    for one sighting z, the probabilities :math:`\hat y` of the S species there and :math:`\hat y'` at a random place;
    the mean over the batch. The weight λ balances the one positive against the many negatives.

    Args:
        logits: At the places of the sightings ``(batch, species)``.
        species: What was seen ``(batch,)``, int64.
        elsewhere: Logits at as many random places ``(batch, species)``.
        weight: λ.
        class_weight: One weight a species, by which each of its sightings counts (see :func:`balanced_weights`).

    Raises:
        InputError: If the shapes do not fit or λ is not positive.

    Source:
        Cole et al., *Spatial Implicit Neural Representations for Global-Scale Species Mapping*, 2023, arXiv:2306.02564,
        section 3; used by Rußwurm et al. 2023, arXiv:2310.06743, for iNaturalist.

    Example:
        >>> logits = torch.tensor([[4.0, -4.0]])
        >>> elsewhere = torch.tensor([[-1.0, -1.0]])
        >>> [assume_negative(logits, torch.tensor([seen]), elsewhere).item() // 1 for seen in (0, 1)]
        [18.0, 4116.0]
    """
    _check(logits, species, elsewhere)
    checks.positive("weight", weight)
    seen = functional.one_hot(species, logits.shape[1]).bool()
    positive = -weight * functional.logsigmoid(logits)
    terms = torch.where(seen, positive, functional.softplus(logits)) + functional.softplus(elsewhere)
    return _mean(terms.mean(1), species, class_weight)


def assume_negative_locations(
    logits: Tensor, species: Tensor, elsewhere: Tensor, *, class_weight: Tensor | None = None
) -> Tensor:
    r"""Same species, different location: the species that was seen counts as absent at one random place.

    .. math:: L = -\log \hat y_s - \log(1 - \hat y'_s)

    Arguments and source as :func:`assume_negative`. (The code released with arXiv:2310.06743 takes a random species at
    the random place; this is the formula of arXiv:2306.02564.)
    """
    _check(logits, species, elsewhere)
    here, there = (scores.gather(1, species[:, None])[:, 0] for scores in (logits, elsewhere))
    return _mean(functional.softplus(-here) + functional.softplus(there), species, class_weight)


def assume_negative_species(
    logits: Tensor, species: Tensor, *, class_weight: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    r"""Same location, different species: one other species, drawn at random, counts as absent where one was seen.

    .. math:: L = -\log \hat y_s - \log(1 - \hat y_{s'}), \qquad s' \ne s

    Arguments and source as :func:`assume_negative`; ``generator`` draws the other species.

    Raises:
        InputError: As :func:`assume_negative`; if there is only one species.
    """
    _check(logits, species, logits)
    checks.at_least("number of species", logits.shape[1], 2)
    steps = torch.randint(1, logits.shape[1], species.shape, generator=generator).to(species.device)
    other = (species + steps) % logits.shape[1]
    here, absent = (logits.gather(1, chosen[:, None])[:, 0] for chosen in (species, other))
    return _mean(functional.softplus(-here) + functional.softplus(absent), species, class_weight)


def balanced_weights(species: Tensor, number: int) -> Tensor:
    """Weights by which all species weigh the same, however often each was seen; their mean over sightings is 1.

    Args:
        species: All sightings of the training part ``(samples,)``.
        number: How many species there are; one that was never seen gets 0.

    Example:
        >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.bincount(species, minlength=number)
    checks.size("counts of species", counts, 0, number)
    present = (counts > 0).sum()
    return torch.where(counts > 0, len(species) / (present * counts.clamp(min=1)), 0.0)


class PresenceOnly:
    """Learning rule: each batch of sightings together with as many random places, by :func:`assume_negative`.

    Args:
        model: Maps longitude and latitude in degrees ``(N, 2)`` to logits of all species.
        optimizer: Any torch optimiser over its parameters.
        weight: λ.
        class_weight: See :func:`balanced_weights`.
        generator: Draws the places.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> rule = PresenceOnly(model, torch.optim.Adam(model.parameters()))
        >>> rule.step(Batch(torch.tensor([[13.4, 52.5]]), torch.tensor([1]))).keys()
        dict_keys(['loss'])
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        weight: float = 2048.0,
        class_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        checks.positive("weight", weight)
        self.generator = generator

        def loss(logits: Tensor, species: Tensor) -> Tensor:
            here, elsewhere = logits.chunk(2)
            return assume_negative(here, species, elsewhere, weight=weight, class_weight=class_weight)

        self._backprop = Backprop(model, optimizer, loss=loss)

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One forward pass over sightings and random places, one backward pass, one update."""
        places = uniform_on_sphere(len(batch.inputs), self.generator).to(batch.inputs)
        return self._backprop.step(Batch(torch.cat([batch.inputs, places]), batch.targets))


def _check(logits: Tensor, species: Tensor, elsewhere: Tensor) -> None:
    checks.dimensions("logits", logits, "(batch, species)")
    if species.shape != logits.shape[:1]:
        checks.fail(f"species must have shape ({len(logits)},), one for each row of the logits", tuple(species.shape))
    if elsewhere.shape != logits.shape:
        checks.fail(
            f"logits elsewhere must have the shape of the logits, {tuple(logits.shape)}", tuple(elsewhere.shape)
        )


def _mean(losses: Tensor, species: Tensor, class_weight: Tensor | None) -> Tensor:
    if class_weight is None:
        return losses.mean()
    return (losses * class_weight.to(losses)[species]).mean()


__all__ = [
    "PresenceOnly",
    "assume_negative",
    "assume_negative_locations",
    "assume_negative_species",
    "balanced_weights",
]
