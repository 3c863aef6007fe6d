"""Do two networks learn the same: reference solvers, limits, and groups that are known."""

import copy
import math

import networkx
import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from sklearn.cluster import SpectralClustering
from sklearn.linear_model import Lasso
from torch import Tensor, nn

from netwright.analysis.capture import Moments, outputs_of_layers
from netwright.analysis.convergent_learning import (
    hierarchical_clusters,
    joint_similarity,
    one_to_one_loss,
    shared_clusters,
    sparse_stitch,
    spectral_co_clusters,
    spectral_embedding,
    unit_mutual_information,
    within_between_ratio,
)
from netwright.analysis.similarity import match_units, unit_correlations, unit_moments
from netwright.checks import InputError
from netwright.models.vision.alexnet import alexnet


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _groups() -> tuple[Tensor, Tensor, list[int]]:
    """Units of A and B that vary in three groups: A has 2, 3, 1 of them, B has 3, 1, 2."""
    sources = _normal(400, 3)
    a = sources[:, [0, 0, 1, 1, 1, 2]] + 0.3 * _normal(400, 6, seed=1)
    b = sources[:, [0, 0, 0, 1, 2, 2]] + 0.3 * _normal(400, 6, seed=2)
    return a, b, [0, 0, 1, 1, 1, 2, 0, 0, 0, 1, 2, 2]


def test_a_network_with_permuted_units_is_recognised() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3), nn.ReLU())
    twin = copy.deepcopy(model)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        twin[0].weight.copy_(model[0].weight[order])
        twin[0].bias.copy_(model[0].bias[order])
        twin[2].weight.copy_(model[2].weight[:, order])
    x = torch.randn(20, 1, 9, 9)
    a, b = (outputs_of_layers(net, x, ["0", "3"], how="positions") for net in (model, twin))
    matching = match_units(unit_correlations(a["0"], b["0"]))
    assert torch.equal(order[matching.partners], matching.units)
    torch.testing.assert_close(matching.values, torch.ones(8, dtype=torch.float64))
    last = unit_correlations(a["3"], b["3"])
    torch.testing.assert_close(last.diagonal(), torch.ones(5, dtype=torch.float64))


def test_bipartite_total_equals_networkx() -> None:
    similarity = _normal(7, 9).tanh()
    graph = networkx.Graph()
    for i in range(7):
        for j in range(9):
            graph.add_edge(("a", i), ("b", j), weight=similarity[i, j].item())
    pairs = networkx.max_weight_matching(graph, maxcardinality=True)
    total = sum(graph[u][v]["weight"] for u, v in pairs)
    assert match_units(similarity).values.sum().item() == pytest.approx(total)


def test_information_between_a_unit_and_itself_is_its_entropy() -> None:
    x = _normal(6000, 2).relu()
    information = unit_mutual_information(x, x, bins=9)
    for unit in range(2):
        fractions = torch.tensor([(x[:, unit] == 0).double().mean()] + [(x[:, unit] > 0).double().mean() / 8] * 8)
        entropy = -(fractions * fractions.log2()).sum()
        assert information[unit, unit].item() == pytest.approx(entropy.item() - 64 / (2 * 6000 * math.log(2)), abs=1e-3)


def test_information_is_invariant_and_its_bias_is_corrected() -> None:
    x = _normal(300, 1)
    y = torch.stack([_normal(300, 1, seed=seed)[:, 0] for seed in range(1, 301)], 1).relu()
    independent = unit_mutual_information(x, y)
    uncorrected = independent + 81 / (2 * 300 * math.log(2))
    assert abs(independent.mean()) < 0.25 * uncorrected.mean()
    torch.testing.assert_close(unit_mutual_information(x.exp(), y), independent)
    torch.testing.assert_close(unit_mutual_information(y, x), independent.T)
    assert unit_mutual_information(x, torch.zeros(300, 1)).item() == 0


@pytest.mark.parametrize("penalty", [0.01, 0.1, 0.4])
def test_sparse_stitch_is_the_lasso(penalty: float) -> None:
    a = _normal(200, 12) @ _normal(12, 12, seed=1)
    b = a @ _normal(12, 4, seed=2) + 2 * _normal(200, 4, seed=3) + 5
    stitch = sparse_stitch(unit_moments(a, b), penalty)
    x, y = ((u - u.mean(0)) / u.std(0, correction=0) for u in (a, b))
    for unit in range(4):
        expected = Lasso(penalty, fit_intercept=False, tol=1e-10, max_iter=100_000).fit(x.numpy(), y[:, unit].numpy())
        np.testing.assert_allclose(stitch.weights[unit].numpy(), expected.coef_, atol=1e-4)
    residual = (y - x @ stitch.weights.T).square().mean(0)
    torch.testing.assert_close(stitch.loss, residual)


def test_stitch_as_a_layer_predicts_the_other_network() -> None:
    a = _normal(300, 6) * 3 + 1
    b = torch.cat([a[:, :2] @ _normal(2, 3, seed=1) - 4, torch.zeros(300, 1, dtype=torch.float64)], 1)
    stitch = sparse_stitch(unit_moments(a, b), 0)
    layer = stitch.layer().double()
    torch.testing.assert_close(layer(a), b, atol=1e-5, rtol=1e-5)
    maps = a[:16].T.reshape(1, 6, 4, 4)
    torch.testing.assert_close(stitch.layer(2).double()(maps).flatten(2)[0].T, b[:16], atol=1e-5, rtol=1e-5)
    assert stitch.loss[3].isnan()
    assert stitch.mean_loss < 1e-12


def test_stitch_of_two_alexnets_has_the_published_size() -> None:
    with torch.device("meta"):
        model = alexnet()
        maps = model[0](torch.zeros(1, 3, 227, 227))
        grouped = alexnet(groups=2)
    assert tuple(maps.shape[1:]) == (96, 55, 55)
    assert sum(p.numel() for p in model.parameters()) == 62_378_344
    assert sum(p.numel() for p in grouped.parameters()) == 60_965_224
    moments = unit_moments(_normal(300, 96), _normal(300, 96, seed=1))
    assert sum(p.numel() for p in sparse_stitch(moments, 0.5).layer(2).parameters()) == 9_312
    with pytest.raises(InputError, match="groups must be 1 or 2, got 3"):
        alexnet(groups=3)


def test_penalty_leads_from_dense_to_empty() -> None:
    a, b, _ = _groups()
    moments = unit_moments(a, b)
    path = [sparse_stitch(moments, penalty) for penalty in (0, 0.03, 0.3, 1)]
    used = [stitch.weights_per_unit for stitch in path]
    assert used == sorted(used, reverse=True)
    assert used[0] == 6
    assert used[-1] == 0
    losses = [stitch.mean_loss for stitch in path]
    assert losses == sorted(losses)
    assert losses[-1] == pytest.approx(1)
    assert losses[0] < one_to_one_loss(moments).nanmean() < 1


def test_one_to_one_loss_is_that_of_the_best_line() -> None:
    a, b, _ = _groups()
    loss = one_to_one_loss(unit_moments(a, b[:, :1]))
    slope = [np.polyfit(a[:, unit].numpy(), b[:, 0].numpy(), 1, full=True)[1][0] for unit in range(6)]
    assert loss.item() == pytest.approx(min(slope) / 400 / b[:, 0].var(correction=0).item())


def test_clusters_of_both_networks_are_found() -> None:
    a, b, truth = _groups()
    similarity = joint_similarity(unit_moments(a, b))
    labels = spectral_co_clusters(similarity, 3)
    same = labels[:, None] == labels
    expected = torch.tensor(truth)[:, None] == torch.tensor(truth)
    assert torch.equal(same, expected)
    theirs = SpectralClustering(3, affinity="precomputed", random_state=0).fit_predict(similarity.numpy())
    assert np.array_equal(same.numpy(), theirs[:, None] == theirs)
    assert within_between_ratio(similarity, labels) > 5
    nested = hierarchical_clusters(similarity, [2, 3])
    assert torch.equal(nested[3][:, None] == nested[3], expected)
    assert all(len(nested[2][labels == group].unique()) == 1 for group in range(3))


def test_dead_units_belong_to_no_cluster() -> None:
    a, b, _ = _groups()
    a[:, 1] = 0
    b[:, 5] = 2
    labels = spectral_co_clusters(joint_similarity(unit_moments(a, b)), 3)
    assert (labels == -1).nonzero().flatten().tolist() == [1, 11]
    assert len(labels[labels >= 0].unique()) == 3


def test_joint_similarity_is_numpys_correlation_without_diagonal() -> None:
    a, b, _ = _groups()
    b = -b
    expected = torch.from_numpy(np.corrcoef(np.hstack([a, b]), rowvar=False)).fill_diagonal_(0)
    torch.testing.assert_close(joint_similarity(unit_moments(a, b), absolute=True), expected.abs())
    torch.testing.assert_close(joint_similarity(unit_moments(a, b)), expected.clamp_min(0))


@pytest.mark.parametrize("normalised", [True, False])
def test_spectral_embedding_solves_its_eigenproblem(normalised: bool) -> None:
    a, b, _ = _groups()
    similarity = joint_similarity(unit_moments(a, b))
    degree = similarity.sum(1)
    laplacian = torch.diag(degree) - similarity
    if normalised:
        laplacian = laplacian / (degree.sqrt()[:, None] * degree.sqrt())
    vectors = torch.linalg.eigh(laplacian).eigenvectors
    # rows up to a common rotation, so their inner products
    rows = nn.functional.normalize(vectors[:, :3], dim=1)
    embedded = spectral_embedding(similarity, 3, normalised=normalised)
    torch.testing.assert_close(embedded @ embedded.T, rows @ rows.T)


def test_shared_clusters_and_their_angles() -> None:
    base = _normal(2000, 3)
    rotation = torch.from_numpy(ortho_group.rvs(2, random_state=0))
    moments = unit_moments(base, torch.cat([base[:, :2] @ rotation, base[:, 2:] + base[:, :1]], 1))
    first, second = shared_clusters(moments, torch.tensor([0, 0, 1, 0, 0, 1]))
    assert first.units_a.tolist() == first.units_b.tolist() == [0, 1]
    assert first.angle == pytest.approx(0, abs=1e-6)
    assert second.angle == pytest.approx(math.pi / 4, abs=0.05)
    assert shared_clusters(moments, torch.tensor([0, 0, 0, 1, 1, 1])) == []


def test_bad_input() -> None:
    a, b, _ = _groups()
    moments = unit_moments(a, b)
    similarity = joint_similarity(moments)
    with pytest.raises(InputError, match=r"b must have as many samples as a \(400\), got 399"):
        unit_mutual_information(a, b[1:])
    with pytest.raises(InputError, match="number of samples must be at least 3"):
        unit_mutual_information(a[:2], b[:2])
    with pytest.raises(InputError, match="bins must be at least 3"):
        unit_mutual_information(a, b, bins=2)
    with pytest.raises(InputError, match="b must be finite"):
        unit_mutual_information(a, b / 0)
    with pytest.raises(InputError, match="penalty must be at least 0"):
        sparse_stitch(moments, -1)
    with pytest.raises(InputError, match="no optimum within 1e-14 after 10 steps"):
        sparse_stitch(moments, 1e-3, max_steps=10, tolerance=1e-14)
    with pytest.raises(InputError, match="only units that do not vary"):
        sparse_stitch(unit_moments(a, torch.zeros(400, 1)), 0.1)
    with pytest.raises(InputError, match="at least one batch"):
        sparse_stitch(Moments(), 0.1)
    with pytest.raises(InputError, match=r"places must be in \[0, 3\]"):
        sparse_stitch(moments, 0.1).layer(4)
    for k in (1, 13):
        with pytest.raises(InputError, match=rf"k must be in \[2, 12\], got {k}"):
            spectral_co_clusters(similarity, k)
    with pytest.raises(InputError, match="symmetric and have no negative entries"):
        spectral_embedding(-similarity, 2)
    with pytest.raises(InputError, match="two groups"):
        within_between_ratio(similarity, torch.zeros(12))
    with pytest.raises(InputError, match="ks must name at least one"):
        hierarchical_clusters(similarity, [])
