"""Tests of ``netwright.training.losses.presence_only``."""

import math

import pytest
import torch
from torch import Tensor

from netwright.data.globe import species_sightings, uniform_on_sphere
from netwright.data.splits import Batch
from netwright.models.fields.location_encoder import LocationEncoder
from netwright.training.losses.presence_only import (
    PresenceOnly,
    assume_negative,
    assume_negative_locations,
    assume_negative_species,
    balanced_weights,
)

DOUBLE = torch.float64


def scores(batch: int = 5, species: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, species, dtype=DOUBLE, requires_grad=True),
        torch.randint(species, (batch,)),
        torch.randn(batch, species, dtype=DOUBLE, requires_grad=True),
    )


def test_are_the_formulas() -> None:
    logits, species, elsewhere = scores()
    here, there = logits.sigmoid().tolist(), elsewhere.sigmoid().tolist()
    full, locations = 0.0, 0.0
    for i, seen in enumerate(species.tolist()):
        for j in range(4):
            full -= 7 * math.log(here[i][j]) if j == seen else math.log(1 - here[i][j])
            full -= math.log(1 - there[i][j])
        locations -= math.log(here[i][seen]) + math.log(1 - there[i][seen])
    assert assume_negative(logits, species, elsewhere, weight=7.0).item() == pytest.approx(full / 20)
    assert assume_negative_locations(logits, species, elsewhere).item() == pytest.approx(locations / 5)


def test_the_other_species_is_another_one_and_any() -> None:
    # with certain logits the loss of a sighting is 2000 where the other species is the one that also looks present
    logits = torch.tensor([[1000.0, 1000.0, -1000.0]]).repeat(3_000, 1)
    seen = torch.zeros(3_000, dtype=torch.long)
    loss = assume_negative_species(logits, seen, generator=torch.Generator().manual_seed(0))
    assert loss.item() == pytest.approx(500, rel=0.1)  # 1000 in half of the cases, 0 in the others
    with pytest.raises(ValueError, match="number of species must be at least 2, got 1"):
        assume_negative_species(torch.zeros(2, 1), torch.zeros(2, dtype=torch.long))


def test_gradients_and_certain_logits() -> None:
    logits, species, elsewhere = scores()
    assert torch.autograd.gradcheck(lambda a, b: assume_negative(a, species, b, weight=3.0), (logits, elsewhere))
    assert torch.autograd.gradcheck(lambda a, b: assume_negative_locations(a, species, b), (logits, elsewhere))
    sure = torch.full((2, 3), -1e4, requires_grad=True)
    loss = assume_negative(sure, torch.tensor([0, 1]), sure)
    loss.backward()
    assert loss.isfinite()  # log(sigmoid(-1e4)) by itself is not
    assert sure.grad is not None
    assert sure.grad.isfinite().all()


def test_balanced_weights() -> None:
    species = torch.tensor([0] * 90 + [1] * 9 + [2])
    weights = balanced_weights(species, 4)
    assert weights[3] == 0
    totals = torch.zeros(4).index_add_(0, species, weights[species])
    torch.testing.assert_close(totals, torch.tensor([100 / 3] * 3 + [0.0]))
    logits, _, elsewhere = torch.randn(100, 4), None, torch.randn(100, 4)
    whole = assume_negative(logits, species, elsewhere, class_weight=weights)
    parts = [assume_negative(logits[species == s], species[species == s], elsewhere[species == s]) for s in range(3)]
    torch.testing.assert_close(whole, torch.stack(parts).mean())
    with pytest.raises(ValueError, match="dimension 0 of counts of species must have size 2"):
        balanced_weights(species, 2)


def test_finds_the_ranges_of_species_from_sightings_alone() -> None:
    seen = species_sightings(3_000, 5, radii=(25.0, 50.0), generator=torch.Generator().manual_seed(0))
    model = LocationEncoder(out_features=5, legendre_polys=6, hidden=32)
    generator = torch.Generator().manual_seed(1)
    weights = balanced_weights(seen.species, 5)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    rule = PresenceOnly(model, optimizer, weight=5.0, class_weight=weights, generator=generator)
    losses = []
    for _ in range(100):
        batch = torch.randint(3_000, (256,), generator=generator)
        losses.append(float(rule.step(Batch(seen.lonlat[batch], seen.species[batch]))["loss"]))
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    places = uniform_on_sphere(1_000, generator).float()
    with torch.no_grad():
        scores, truth = model(places), seen.occurs(places)
    for species in range(5):
        inside, outside = scores[truth[:, species], species], scores[~truth[:, species], species]
        better = (inside[:, None] > outside).float().mean().item()  # area under the ROC curve
        assert better > 0.93


def test_what_does_not_work() -> None:
    logits, species, elsewhere = scores()
    for arguments, message in [
        ((logits[0], species, elsewhere), r"logits must have shape \(batch, species\)"),
        (
            (logits, species[:-1], elsewhere),
            r"species must have shape \(5,\), one for each row of the logits, got \(4,\)",
        ),
        (
            (logits, species, elsewhere[:, :-1]),
            r"logits elsewhere must have the shape of the logits, \(5, 4\), got \(5, 3\)",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            assume_negative(*arguments)
        with pytest.raises(ValueError, match=message):
            assume_negative_locations(*arguments)
    with pytest.raises(ValueError, match="weight must be positive, got 0"):
        assume_negative(logits, species, elsewhere, weight=0)
