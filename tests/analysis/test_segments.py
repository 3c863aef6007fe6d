"""Segments: runs, overlap, and the matching that makes the most of it."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from netwright.analysis.segments import (
    bin_accuracy,
    complex_iou,
    interval_iou,
    match_segments,
    mean_by_level,
    occupied,
    segment_scores,
    segments,
)
from netwright.checks import InputError

masks = st.lists(st.booleans(), min_size=1, max_size=40).map(lambda bits: torch.tensor(bits))


def random_scores(*shape: int) -> torch.Tensor:
    return torch.complex(torch.rand(shape), torch.rand(shape))


def test_rules_are_or_and_and_real() -> None:
    scores = torch.tensor([0.9 + 0.9j, 0.9 + 0.1j, 0.1 + 0.9j, 0.1 + 0.1j])
    assert occupied(scores).tolist() == [True, True, True, False]
    assert occupied(scores, rule="and").tolist() == [True, False, False, False]
    assert occupied(scores, rule="real").tolist() == [True, True, False, False]
    assert occupied(scores.real).tolist() == [True, True, False, False]
    assert occupied(scores, 0.95).any().item() is False


def test_dilation_widens_by_bins() -> None:
    mask = torch.tensor([[0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0]]).bool()
    assert occupied(mask, dilate=1).int().tolist() == [[0, 1, 1, 1, 0, 1, 1], [0] * 7]
    assert torch.equal(occupied(mask[0], dilate=2), occupied(mask, dilate=2)[0])


@given(masks)
def test_iou_of_a_mask_with_itself_is_one_and_with_its_complement_zero(mask: torch.Tensor) -> None:
    assert complex_iou(mask, mask).item() == 1
    assert complex_iou(mask, ~mask).item() == 0
    assert bin_accuracy(mask, mask).item() == 1


def test_iou_counts_by_line() -> None:
    scores, target = random_scores(5, 30), torch.rand(5, 30) < 0.3
    target[4] = False
    scores[4] = 0
    found = complex_iou(scores, target)
    assert found.dtype == torch.float64
    for line in range(5):
        ours = {j for j in range(30) if scores[line, j].real > 0.5 or scores[line, j].imag > 0.5}
        theirs = set(target[line].nonzero().flatten().tolist())
        expected = len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0
        assert found[line].item() == pytest.approx(expected)
    assert bin_accuracy(scores, target)[4].item() == 1


@given(masks)
def test_segments_are_the_runs(mask: torch.Tensor) -> None:
    expected, start = [], 0
    for value, run in itertools.groupby(mask.tolist()):
        length = len(list(run))
        if value:
            expected.append([start, start + length])
        start += length
    assert segments(mask).tolist() == expected


def test_segments_do_not_run_from_line_to_line() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]])
    assert segments(mask).tolist() == [[0, 1, 3], [1, 0, 1], [1, 2, 3]]
    assert segments(torch.zeros(2, 3)).shape == (0, 3)


def test_matching_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(30, (2, 5), generator=generator)
    intervals = torch.stack([start, start + 1 + torch.randint(15, (2, 5), generator=generator)], dim=-1)
    iou = interval_iou(*intervals)
    best = max(sum(iou[i, p].item() for i, p in enumerate(order)) for order in itertools.permutations(range(5)))
    matching = match_segments(*intervals)
    assert matching.iou.sum().item() == pytest.approx(best)
    assert len(set(matching.found.tolist())) == len(matching.found) == len(set(matching.truth.tolist()))
    torch.testing.assert_close(matching.iou, iou[matching.found, matching.truth])
    assert (matching.iou > 0).all()


def test_a_greedy_choice_would_be_worse() -> None:
    # the first segment overlaps both true ones, more with the second, which is all that the other one has
    found, truth = torch.tensor([[0, 10], [9, 12]]), torch.tensor([[0, 4], [4, 12]])
    matching = match_segments(found, truth)
    assert dict(zip(matching.found.tolist(), matching.truth.tolist(), strict=True)) == {0: 0, 1: 1}


def test_nothing_to_match() -> None:
    nothing = torch.empty(0, 2, dtype=torch.long)
    assert len(match_segments(nothing, torch.tensor([[0, 3]])).iou) == 0
    assert len(match_segments(torch.tensor([[0, 1]]), torch.tensor([[1, 3]])).iou) == 0


def test_scores_of_segments() -> None:
    truth = torch.zeros(3, 20, dtype=torch.bool)
    truth[0, 0:10], truth[0, 15:20], truth[1, 5:15] = True, True, True
    found = torch.zeros(3, 20, dtype=torch.bool)
    found[0, 0:8], found[1, 5:15], found[2, 3:4] = True, True, True  # IoU 0.8, none, 1; one of nothing
    scores = segment_scores(found, truth)
    assert scores.thresholds == (0.5, 0.7, 0.9)
    torch.testing.assert_close(scores.recall, torch.tensor([2, 2, 1]).double() / 3)
    torch.testing.assert_close(scores.precision, torch.tensor([2, 2, 1]).double() / 3)
    assert scores.mean_iou == pytest.approx((0.8 + 1) / 3)


def test_scores_without_segments_are_no_numbers() -> None:
    nothing = torch.zeros(2, 8, dtype=torch.bool)
    scores = segment_scores(nothing, nothing)
    assert scores.recall.isnan().all()
    assert scores.precision.isnan().all()
    assert math.isnan(scores.mean_iou)


def test_means_by_level() -> None:
    levels = torch.tensor([5.0, -10.0, 5.0, 0.0])
    assert mean_by_level(torch.tensor([1.0, 2.0, 2.0, 7.0]), levels) == [(-10.0, 2.0), (0.0, 7.0), (5.0, 1.5)]


def test_bad_input() -> None:
    scores = random_scores(2, 8)
    with pytest.raises(InputError, match="unknown rule 'xor'"):
        occupied(scores, rule="xor")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="dilate must be at least 0, got -1"):
        occupied(scores, dilate=-1)
    with pytest.raises(InputError, match=r"target must have the shape of the scores, \(2, 8\), got \(2, 7\)"):
        complex_iou(scores, torch.zeros(2, 7))
    with pytest.raises(InputError, match="mask must have shape"):
        segments(torch.zeros(2, 3, 4))
    with pytest.raises(InputError, match="segments of found must end after they start"):
        match_segments(torch.tensor([[3, 3]]), torch.tensor([[0, 3]]))
    with pytest.raises(InputError, match="dimension 1 of truth must have size 2"):
        match_segments(torch.tensor([[0, 3]]), torch.tensor([[0, 3, 4]]))
    with pytest.raises(InputError, match="threshold must be in"):
        segment_scores(torch.zeros(1, 3).bool(), torch.zeros(1, 3).bool(), (0.0,))
    with pytest.raises(InputError, match="target must have the shape of pred"):
        segment_scores(torch.zeros(1, 3).bool(), torch.zeros(1, 4).bool())
    with pytest.raises(InputError, match="values and levels must have one shape"):
        mean_by_level(torch.zeros(3), torch.zeros(4))
