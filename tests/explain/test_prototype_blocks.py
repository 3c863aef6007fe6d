"""Tests of ``netwright.explain._prototypes``."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch.autograd import gradcheck

from netwright.explain._prototypes import NearestOwnPatches, class_members, nearest_patches, squared_distances


@given(batch=st.integers(1, 6), prototypes=st.integers(1, 5), features=st.integers(1, 7), seed=st.integers(0, 99))
def test_distances_are_those_of_scipy(batch: int, prototypes: int, features: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, features, dtype=torch.float64, generator=generator)
    p = torch.randn(prototypes, features, dtype=torch.float64, generator=generator)
    expected = torch.from_numpy(cdist(z, p, "sqeuclidean"))
    torch.testing.assert_close(squared_distances(z, p), expected, atol=1e-12, rtol=1e-10)


def test_distances_of_maps_are_those_of_every_position() -> None:
    maps, p = torch.randn(3, 5, 2, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    found = squared_distances(maps, p)
    assert found.shape == (3, 6, 2, 4)
    for row in range(2):
        for column in range(4):
            torch.testing.assert_close(found[..., row, column], squared_distances(maps[..., row, column], p))


def test_rounding_makes_no_negative_distance() -> None:
    z = 1000 * torch.randn(50, 40)
    lengths = z.square().sum(1)
    assert (lengths[:, None] + lengths - 2 * z @ z.T).min() < 0
    assert squared_distances(z, z).min() == 0


def test_gradients() -> None:
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    p = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(squared_distances, (z, p))
    (gradient,) = torch.autograd.grad(squared_distances(z, p).sum(), p)
    torch.testing.assert_close(gradient, 2 * (4 * p - z.sum(0)))


@pytest.mark.parametrize("positions", [(), (3,), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_nearest_patches_are_those_of_a_search_of_all_at_once(positions: tuple[int, ...], batch_size: int) -> None:
    features, p = torch.randn(11, 5, *positions, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    found = nearest_patches(p, torch.split(features, batch_size))
    patches = features.flatten(2) if positions else features[:, :, None]
    patches = patches.movedim(1, -1)  # sample, position, feature
    everything = torch.from_numpy(cdist(p, patches.reshape(-1, 5), "sqeuclidean"))
    distance, place = everything.min(1)
    torch.testing.assert_close(found.distance, distance)
    assert torch.equal(found.sample, place // patches.shape[1])
    assert torch.equal(found.position, place % patches.shape[1])
    assert torch.equal(found.patch, patches[found.sample, found.position])
    torch.testing.assert_close((found.patch - p).square().sum(1), found.distance)


def test_the_first_of_equals_wins_and_empty_batches_count_for_nothing() -> None:
    same = torch.ones(2, 3)
    found = nearest_patches(torch.zeros(1, 3), [torch.empty(0, 3), same + 1, same, same])
    assert (found.sample.item(), found.distance.item()) == (2, 3.0)


def test_another_distance_can_be_given() -> None:
    def minus_cosine(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(prototypes).T

    features = torch.tensor([[1.0, 0.9], [9.0, 0.0]])
    assert nearest_patches(torch.tensor([[1.0, 0.0]]), [features]).sample.item() == 0
    assert nearest_patches(torch.tensor([[1.0, 0.0]]), [features], minus_cosine).sample.item() == 1


@pytest.mark.parametrize("positions", [(), (3,), (2, 3)])
@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_nearest_own_patches_are_those_among_samples_of_the_class(positions: tuple[int, ...], batch_size: int) -> None:
    """Classes with unequally many prototypes, and samples of a class without one."""
    features, p = torch.randn(11, 5, *positions, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    classes, labels = torch.tensor([2, 0, 0, 1, 0, 2]), torch.tensor([3, 2, 0, 1, 1, 2, 0, 3, 0, 2, 1])
    search = NearestOwnPatches(p, classes)
    before = search.found.distance
    for chunk, own in zip(torch.split(features, batch_size), torch.split(labels, batch_size), strict=True):
        better = search.update(chunk, own)
        assert torch.equal(better, search.found.distance < before)
        before = search.found.distance
    for j, label in enumerate(classes):
        samples = (labels == label).nonzero().flatten()
        expected = nearest_patches(p[j : j + 1], [features[samples]])
        found = [part[j] for part in search.found]
        assert found[0] == samples[expected.sample[0]]
        assert found[1] == expected.position[0]
        torch.testing.assert_close(found[2], expected.distance[0])
        assert torch.equal(found[3], expected.patch[0])


def test_of_equal_own_patches_the_first_wins() -> None:
    search = NearestOwnPatches(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
    same = torch.ones(3, 2, 4)
    assert search.update(same[:0], torch.tensor([], dtype=torch.long)).tolist() == [False] * 3
    assert search.update(same, torch.tensor([2, 1, 1])).tolist() == [False, True, True]
    assert search.update(same, torch.tensor([0, 1, 0])).tolist() == [True, False, False]
    assert search.found.sample.tolist() == [3, 1, 1]
    assert search.found.position.tolist() == [0, 0, 0]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_members_of_classes(classes: list[int]) -> None:
    members = class_members(torch.tensor(classes)).tolist()
    for label, row in enumerate(members):
        expected = [j for j, c in enumerate(classes) if c == label]
        assert row == expected + [-1] * (len(row) - len(expected))


def test_distances_to_prototypes_of_every_sample() -> None:
    maps, p = torch.randn(3, 5, 2, 4, dtype=torch.float64), torch.randn(3, 6, 5, dtype=torch.float64)
    expected = torch.cat([squared_distances(maps[i : i + 1], p[i]) for i in range(3)])
    torch.testing.assert_close(squared_distances(maps, p), expected)


def test_bad_input_of_a_search_in_classes() -> None:
    search = NearestOwnPatches(torch.rand(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got shape \(3,\)"):
        search.update(torch.rand(4, 3), torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="labels must be at least 0, got -1"):
        search.update(torch.rand(1, 3), torch.tensor([-1]))
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity"):
        search.update(torch.full((1, 3), torch.nan), torch.tensor([1]))
    with pytest.raises(ValueError, match=r"dimension 0 of prototypes must have size 2, got shape \(3, 4, 5\)"):
        squared_distances(torch.rand(2, 5), torch.rand(3, 4, 5))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"prototypes must have shape \(prototypes, features\)"):
        squared_distances(torch.rand(2, 3), torch.rand(3))
    with pytest.raises(
        ValueError, match=r"features must have shape \(batch, features, \*positions\), got shape \(3,\)"
    ):
        squared_distances(torch.rand(3), torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"dimension 1 of features must have size 3, got shape \(2, 4\)"):
        squared_distances(torch.rand(2, 4), torch.rand(2, 3))
    with pytest.raises(ValueError, match="batches must hold at least 1 patch, got 0"):
        nearest_patches(torch.rand(2, 3), [])
