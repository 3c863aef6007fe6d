"""Similarity of representations: invariances, reference values, and matchings against other solvers."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from netwright.analysis.similarity import (
    dead_units,
    jaccard,
    linear_cka,
    match_units,
    mean_reciprocal_rank,
    neighbour_overlap,
    neighbours,
    rsa,
    unit_correlations,
    unit_moments,
)
from netwright.checks import InputError


def _pair(samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(samples, 6, dtype=torch.float64, generator=generator)
    mix = torch.randn(6, 9, dtype=torch.float64, generator=generator)
    return a, torch.tanh(a @ mix)


@pytest.mark.parametrize("samples", [5, 40])  # Gram of the samples, Gram of the units
@pytest.mark.parametrize("debiased", [False, True])
def test_cka_does_not_see_rotation_scale_and_shift(samples: int, debiased: bool) -> None:
    a, b = _pair(samples)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    expected = linear_cka(a, b, debiased=debiased)
    torch.testing.assert_close(linear_cka(3 * a @ rotation + 7, b, debiased=debiased), expected)
    torch.testing.assert_close(linear_cka(b, a, debiased=debiased), expected)
    assert 0 < expected < 1


@pytest.mark.parametrize("samples", [5, 40])
def test_cka_is_the_cosine_of_centred_gram_matrices(samples: int) -> None:
    a, b = _pair(samples)
    centre = torch.eye(samples, dtype=torch.float64) - 1 / samples
    k, l = (centre @ x @ x.T @ centre for x in (a, b))
    torch.testing.assert_close(linear_cka(a, b), (k * l).sum() / (k.norm() * l.norm()))
    assert torch.autograd.gradcheck(linear_cka, (a.requires_grad_(), b.requires_grad_()))


def test_debiased_cka_of_unrelated_representations_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(20, 50, generator=generator) for _ in range(2)] for _ in range(200)]
    debiased = torch.stack([linear_cka(a, b, debiased=True) for a, b in pairs])
    plain = torch.stack([linear_cka(a, b) for a, b in pairs])
    assert abs(debiased.mean()) < 3 * debiased.std() / 200**0.5
    assert plain.mean() > 0.5


def test_cka_of_a_constant_is_zero() -> None:
    a, _ = _pair(10)
    assert linear_cka(a, torch.ones(10, 3, dtype=torch.float64)) == 0


def test_rsa_is_the_correlation_of_distances() -> None:
    a, b = _pair(12)
    first, second = (1 - np.corrcoef(x.numpy())[np.triu_indices(12, 1)] for x in (a, b))
    assert rsa(a, b).item() == pytest.approx(np.corrcoef(first, second)[0, 1])
    assert torch.autograd.gradcheck(rsa, (a.requires_grad_(), b.requires_grad_()))


def test_unit_correlations_are_numpys_also_from_a_stream() -> None:
    a, b = _pair(50)
    expected = torch.from_numpy(np.corrcoef(a.numpy(), b.numpy(), rowvar=False)[:6, 6:])
    torch.testing.assert_close(unit_correlations(a, b), expected)
    torch.testing.assert_close(unit_correlations(zip(a.split(7), b.split(7), strict=True)), expected)
    torch.testing.assert_close(unit_correlations(a), torch.from_numpy(np.corrcoef(a.numpy(), rowvar=False)))


def test_dead_units_correlate_with_nothing_and_stay_out_of_matchings() -> None:
    a, b = _pair(50)
    a[:, 2] = 5.0
    b[:, 0] = 0.0
    assert dead_units(unit_moments(a).covariance).tolist() == [False, False, True, False, False, False]
    correlations = unit_correlations(a, b)
    assert not correlations[2].any()
    assert not correlations[:, 0].any()
    for method in ("semi", "bipartite"):
        matching = match_units(correlations, method, absolute=True)  # type: ignore[arg-type]
        assert sorted(matching.units.tolist()) == [0, 1, 3, 4, 5]
        assert 0 not in matching.partners


@given(st.integers(2, 5), st.integers(2, 5), st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_bipartite_matching_is_the_best_of_all(rows: int, columns: int, seed: int) -> None:
    similarity = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    short, long = sorted((rows, columns))
    table = similarity if rows <= columns else similarity.T
    best = max(sum(table[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(long), short))
    matching = match_units(similarity)
    torch.testing.assert_close(matching.values.sum(), best)
    assert torch.equal(matching.values, similarity[matching.units, matching.partners])
    assert torch.equal(matching.values, matching.values.sort(descending=True).values)
    # each with its best partner, repeats allowed, is never worse
    semi = match_units(similarity, "semi").values
    assert semi.sort().values[-short:].sum() >= best - 1e-6


def test_a_permuted_copy_is_matched_exactly() -> None:
    a, _ = _pair(50)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    matching = match_units(unit_correlations(a, a[:, order]))
    assert torch.equal(order[matching.partners], matching.units)
    torch.testing.assert_close(matching.values, torch.ones(6, dtype=torch.float64))


def test_neighbours_are_those_of_all_cosines() -> None:
    _, b = _pair(30)
    rows = b / b.norm(dim=1, keepdim=True)
    cosines = (rows @ rows.T).fill_diagonal_(-2)
    assert torch.equal(neighbours(b, 4, chunk=7), cosines.argsort(1, descending=True)[:, :4])


def test_overlap_of_neighbours() -> None:
    a, b = _pair(60)
    assert neighbour_overlap(a, 5 * a) == 1
    # 2 of 6 different ones in common
    assert jaccard(torch.tensor([[1, 2, 3, 4]]), torch.tensor([[3, 4, 5, 6]])).item() == pytest.approx(2 / 6)
    unrelated = neighbour_overlap(torch.randn(2000, 5), torch.randn(2000, 5), 10)
    assert unrelated < 0.01
    assert unrelated < neighbour_overlap(a, b) < 1


def test_mean_reciprocal_rank() -> None:
    keys = torch.eye(4)
    assert mean_reciprocal_rank(keys, keys, chunk=3) == 1
    queries = torch.tensor([[1.0, 0.9, 0, 0], [1.0, 0.9, 0, 0], [0, 0, 1.0, 0], [3.0, 2, 2, 1]])
    # ranks 1, 2, 1, 4
    assert mean_reciprocal_rank(queries, keys).item() == pytest.approx((1 + 1 / 2 + 1 + 1 / 4) / 4)


def test_bad_input() -> None:
    a, b = _pair(10)
    with pytest.raises(InputError, match=r"b must have as many samples as a \(10\), got 9"):
        linear_cka(a, b[:9])
    with pytest.raises(InputError, match="number of samples must be at least 4"):
        linear_cka(a[:3], b[:3], debiased=True)
    with pytest.raises(InputError, match="a must have shape"):
        rsa(a[0], b)
    with pytest.raises(InputError, match="number of samples must be at least 3, got 2"):
        unit_correlations(a[:2], b[:2])
    with pytest.raises(InputError, match="a must be finite"):
        unit_correlations(a * torch.nan)
    with pytest.raises(InputError, match="unknown method 'both'"):
        match_units(a, "both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="living units on both sides"):
        match_units(torch.zeros(2, 2))
    with pytest.raises(InputError, match="similarity must be finite"):
        match_units(torch.full((2, 2), torch.nan))
    with pytest.raises(InputError, match=r"k must be in \[1, 9\], got 10"):
        neighbours(a, 10)
