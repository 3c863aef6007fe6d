"""Tests of ``netwright.data.divide``."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netwright.checks import InputError
from netwright.data.divide import allocate, divide
from netwright.data.raw import Raw
from netwright.data.splits import Task


def classification(counts: list[int], **official: np.ndarray) -> Raw:
    labels = np.repeat(np.arange(len(counts)), counts)
    classes = tuple(f"class {i}" for i in range(len(counts)))
    return Raw(np.zeros((len(labels), 1)), labels, Task.TABULAR_CLASSIFICATION, classes, **official)


def regression(samples: int) -> Raw:
    return Raw(np.zeros((samples, 1)), np.arange(samples, dtype=float)[:, None], Task.TABULAR_REGRESSION)


class_sizes = st.lists(st.integers(3, 60), min_size=2, max_size=12)


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=10), data=st.data())
def test_shares_add_up_and_leave_nobody_out(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(counts), sum(counts)))
    share = allocate(counts, total)
    assert share.sum() == total
    assert (share >= 1).all()
    assert (share <= counts).all()


def test_shares_are_proportional_where_they_can_be() -> None:
    assert allocate([50, 30, 20], 10).tolist() == [5, 3, 2]
    assert allocate([1, 999], 10).tolist() == [1, 9]
    assert allocate([10, 10, 10], 5).tolist() == [2, 2, 1]


@given(counts=class_sizes, seed=st.integers(0, 5))
def test_parts_are_disjoint_complete_and_hold_every_class(counts: list[int], seed: int) -> None:
    raw = classification(counts)
    division = divide(raw, seed=seed)
    assert sorted(np.concatenate(division)) == list(range(sum(counts)))
    for part in division:
        assert set(raw.targets[part]) == set(range(len(counts)))


@given(counts=st.lists(st.integers(40, 90), min_size=2, max_size=5), seed=st.integers(0, 5))
def test_classes_keep_their_shares(counts: list[int], seed: int) -> None:
    raw = classification(counts)
    for part, fraction in zip(divide(raw, seed=seed), (0.6, 0.2, 0.2), strict=True):
        np.testing.assert_allclose(np.bincount(raw.targets[part]), np.array(counts) * fraction, atol=2)


@given(counts=class_sizes, seed=st.integers(0, 3), data=st.data())
def test_a_subset_of_the_training_part_leaves_the_others_alone(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    raw = classification(counts)
    whole = divide(raw, seed=seed)
    size = data.draw(st.integers(len(counts), len(whole.train)))
    part = divide(raw, seed=seed, train=size)
    assert len(part.train) == size
    assert set(part.train) <= set(whole.train)
    assert set(raw.targets[part.train]) == set(range(len(counts)))
    np.testing.assert_array_equal(part.val, whole.val)
    np.testing.assert_array_equal(part.test, whole.test)


def test_the_seed_decides() -> None:
    raw = classification([40, 40])
    for first, again, other in zip(divide(raw, seed=1), divide(raw, seed=1), divide(raw, seed=2), strict=True):
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


def test_sizes_without_an_official_test_part() -> None:
    assert [len(part) for part in divide(classification([100] * 10), seed=0)] == [600, 200, 200]
    assert [len(part) for part in divide(regression(10), seed=0)] == [6, 2, 2]


def test_an_official_test_part_stays() -> None:
    test = np.arange(0, 1000, 5)
    division = divide(classification([500, 500], test=test), seed=3)
    np.testing.assert_array_equal(division.test, test)
    assert (len(division.train), len(division.val)) == (720, 80)


def test_at_most_5000_samples_are_taken_from_an_official_training_part() -> None:
    division = divide(classification([35_000, 35_000], test=np.arange(0, 70_000, 7)), seed=0)
    assert (len(division.train), len(division.val), len(division.test)) == (55_000, 5_000, 10_000)


def test_an_official_validation_part_stays() -> None:
    val, test = np.arange(0, 100, 10), np.arange(1, 100, 10)
    division = divide(classification([50, 50], val=val), seed=0)
    np.testing.assert_array_equal(division.val, val)
    assert (len(division.train), len(division.test)) == (72, 18)
    division = divide(classification([50, 50], val=val, test=test), seed=0)
    np.testing.assert_array_equal(division.test, test)
    assert len(division.train) == 80


@pytest.mark.parametrize("train", [0, 1, 601, -5])
def test_a_subset_must_be_possible(train: int) -> None:
    with pytest.raises(InputError, match=rf"at least 2 \(one per class\) and at most the 600 training.*got {train}"):
        divide(classification([500, 500]), seed=0, train=train)


def test_a_subset_for_a_regression() -> None:
    with pytest.raises(InputError, match="train must be at least 1 and at most the 6 training samples"):
        divide(regression(10), seed=0, train=0)
    assert len(divide(regression(10), seed=0, train=3).train) == 3


def test_rare_classes_are_named() -> None:
    with pytest.raises(InputError, match=r"at least 3 samples .* too few have 'class 1' \(2\), 'class 2' \(1\); leave"):
        divide(classification([10, 2, 1]), seed=0)
    with pytest.raises(InputError, match=r"and 3 more"):
        divide(classification([10, *[1] * 8]), seed=0)


def test_too_few_samples_for_a_regression() -> None:
    with pytest.raises(InputError, match="at least 3 samples, one for each part, got 2"):
        divide(regression(2), seed=0)
