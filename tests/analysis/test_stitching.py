"""Tests of ``netwright.analysis.stitching``."""

import copy
from collections.abc import Callable
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from netwright.analysis.similarity import mean_reciprocal_rank, neighbour_overlap
from netwright.analysis.stitching import (
    Selection,
    latent_similarity,
    retrieval_overlap,
    select_anchors,
    stitch,
)
from netwright.layers.relative import RelativeNetwork, RelativeProjection, Similarity, relative_projection

METHODS: tuple[Selection, ...] = get_args(Selection)
every_method = pytest.mark.parametrize("method", METHODS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(n: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=torch.float64)).Q


class TestSelectAnchors:
    @every_method
    def test_different_samples_and_reproducible(self, method: Selection) -> None:
        x, y = torch.randn(60, 2, 4, generator=seeded()), torch.arange(60) % 7
        state = torch.get_rng_state()
        first, second = (select_anchors(x, 25, method, y, seeded(3)) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, second)
        assert first.shape == (25,)
        assert len(first.unique()) == 25
        other = select_anchors(x, 25, method, y, seeded(4))
        assert torch.equal(first, other) == (method == "top_norm")
        assert set(select_anchors(x, 60, method, y, seeded()).tolist()) == set(range(60))

    @given(counts=st.lists(st.integers(1, 12), min_size=2, max_size=5), n=st.integers(1, 12))
    def test_stratified_takes_the_classes_in_turn(self, counts: list[int], n: int) -> None:
        y = torch.cat([torch.full((count,), 3 * c) for c, count in enumerate(counts)])
        y = y[torch.randperm(len(y), generator=seeded())]
        n = min(n, len(y))
        taken = y[select_anchors(y[:, None].float(), n, "stratified", y, seeded())]
        per_class = [int((taken == 3 * c).sum()) for c in range(len(counts))]
        assert all(got == count or got >= max(per_class) - 1 for got, count in zip(per_class, counts, strict=True))

    def test_farthest_points(self) -> None:
        x = torch.randn(40, 5, generator=seeded(), dtype=torch.float64)
        chosen = select_anchors(x, 10, "fps", generator=seeded(2)).tolist()
        units = functional.normalize(x, dim=1)
        for step in range(1, 10):
            largest = (units @ units[chosen[:step]].T).amax(1)
            assert largest[chosen[step]] == pytest.approx(float(largest.min()))
        twice = torch.cat([x[:3], x[:3]])
        assert len(select_anchors(twice, 6, "fps").unique()) == 6

    def test_kmeans_finds_the_middles_of_clusters(self) -> None:
        centres = 10 * torch.eye(4)
        around = [0.5 * torch.randn(4, 4, generator=seeded(s)) for s in range(4)]
        # the directions of a cluster lie about its axis in pairs
        around = [offset - torch.diag(offset.diagonal()) for offset in around]
        x = torch.cat([centres + sign * offset for offset in around for sign in (1, -1)] + [3 * centres])
        assert sorted(select_anchors(x, 4, "kmeans", generator=seeded()).tolist()) == [32, 33, 34, 35]

    def test_longest(self) -> None:
        x = torch.randn(30, 5)
        assert torch.equal(select_anchors(x, 7, "top_norm"), x.norm(dim=1).topk(7).indices)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: select_anchors(torch.ones(5, 2), 0), r"number of anchors must be in \[1, 5\], got 0"),
            (lambda: select_anchors(torch.ones(5, 2), 6), r"number of anchors must be in \[1, 5\], got 6"),
            (lambda: select_anchors(torch.ones(5, 2), 2, "unifrom"), "did you mean 'uniform'"),  # type: ignore[arg-type]
            (lambda: select_anchors(torch.ones(5, 2), 2, "stratified"), "needs the classes y of 5 samples, got None"),
            (
                lambda: select_anchors(torch.ones(5, 2), 2, "stratified", torch.ones(4)),
                "needs the classes y of 5 samples, got 4",
            ),
            (
                lambda: select_anchors(torch.ones(5, 2), 2, "kmeans"),
                "x must have 2 different directions for method 'kmeans', got 1",
            ),
            (lambda: select_anchors(torch.full((5, 2), torch.nan), 2, "fps"), "x must be finite"),
        ],
    )
    def test_bad_input(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()


def network(
    features: int, seed: int, anchors: Tensor, similarity: Similarity = "cosine", in_features: int = 10
) -> RelativeNetwork:
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Linear(in_features, features), nn.BatchNorm1d(features))
    projection = RelativeProjection(len(anchors), similarity, normalise_output="layernorm")
    return RelativeNetwork(encoder, projection, nn.Linear(len(anchors), 3), anchors)


class TestStitch:
    anchors = torch.randn(20, 10, generator=seeded(5))

    def test_encoder_of_one_norm_and_decoder_of_the_other(self) -> None:
        a, b = network(8, 1, self.anchors), network(5, 2, self.anchors)
        with torch.no_grad():
            b.projection.norm.weight.uniform_()
        x = torch.randn(7, 10)
        a(x), b(x)
        stitched = stitch(a, b)
        assert not stitched.training
        expected = b.eval().decode(relative_projection(a.eval().latents(x), a.latents(self.anchors)))
        torch.testing.assert_close(stitched(x), expected)
        torch.testing.assert_close(stitch(a.encoder, b, self.anchors)(x), expected)
        own = stitch(a.encoder, nn.Sequential(b.projection.norm, b.decoder), self.anchors)
        torch.testing.assert_close(own(x), expected)

    def test_leaves_the_networks_alone(self) -> None:
        a, b = network(8, 1, self.anchors), network(5, 2, self.anchors)
        before = copy.deepcopy((a.state_dict(), b.state_dict()))
        rng = torch.get_rng_state()
        stitched = stitch(a, b)
        stitched.train()(torch.randn(7, 10)).sum().backward()
        assert a.training
        assert b.training
        torch.set_rng_state(rng)
        for net, state in zip((a, b), before, strict=True):
            assert all(p.grad is None and p.requires_grad for p in net.parameters())
            assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())

    def test_a_rotated_space_of_another_width_makes_no_difference(self) -> None:
        """The defining property: nothing is lost between spaces that are equal up to rotation and scale."""
        a = network(8, 1, self.anchors).eval()
        turned = copy.deepcopy(a).double()
        wide = functional.pad(rotation(8), (0, 4)) @ rotation(12)  # 8 to 12 dimensions, lengths kept
        turn = nn.Linear(8, 12, bias=False, dtype=torch.float64)
        with torch.no_grad():
            turn.weight.copy_(3 * wide.T)
        turned.encoder.append(turn)
        x = torch.randn(7, 10)
        torch.testing.assert_close(stitch(turned.float(), a)(x), a(x), atol=1e-5, rtol=1e-5)

    def test_parallel_anchors_of_another_kind(self) -> None:
        """Inputs of B in another coding: with the translated anchors A's encoder serves B's decoder."""
        a, coding = network(8, 1, self.anchors).eval(), torch.randn(10, 6)
        b = network(5, 2, self.anchors @ coding, in_features=6)
        x = torch.randn(7, 10)
        expected = b.eval().decode(a.encode(x))
        torch.testing.assert_close(stitch(a, b, self.anchors)(x), expected)
        with pytest.raises(ValueError, match="got other samples; where they are parallel"):
            stitch(a, b)

    def test_bad_input(self) -> None:
        a, b = network(8, 1, self.anchors), network(5, 2, self.anchors[:15])
        with pytest.raises(ValueError, match="must share their anchors: the decoder expects 15, got 20"):
            stitch(a, b)
        with pytest.raises(ValueError, match="the decoder expects 20, got 3"):
            stitch(a, a, torch.randn(3, 10))
        with pytest.raises(ValueError, match="needs anchors_x, the anchors as inputs of the encoder, got none"):
            stitch(a.encoder, b)
        with pytest.raises(ValueError, match="got other samples"):
            stitch(a, network(5, 2, self.anchors + 1))
        with pytest.raises(ValueError, match="both networks must use the similarity 'l1', got 'cosine'"):
            stitch(a, network(5, 2, self.anchors, "l1"))


class TestLatentSimilarity:
    def test_relative_spaces_find_each_other_and_rotated_ones_do_not(self) -> None:
        """The authors' demonstration: 300 anchors, 128 dimensions, a rotation."""
        x = torch.randn(600, 128, generator=seeded())
        turned = x @ rotation(128).float()
        chosen = select_anchors(x, 300, generator=seeded())
        absolute = latent_similarity(x, turned)
        relative = latent_similarity(relative_projection(x, x[chosen]), relative_projection(turned, turned[chosen]))
        assert relative.cosine == pytest.approx(1, abs=1e-5)
        assert (relative.mrr, relative.jaccard) == (1, pytest.approx(1, abs=0.01))
        assert abs(absolute.cosine) < 0.1
        assert max(absolute.jaccard, absolute.mrr) < 0.1
        assert neighbour_overlap(x, turned) > 0.99  # within each space nothing has changed

    def test_is_the_definition_whatever_the_chunk(self) -> None:
        a = torch.randn(30, 5, generator=seeded(), dtype=torch.float64)
        b = a + 0.5 * torch.randn(30, 5, generator=seeded(1), dtype=torch.float64)
        cross, own = (functional.cosine_similarity(rows[:, None], b, dim=-1) for rows in (a, b))
        overlaps = []
        for i in range(30):
            first, second = (set(cosines[i].topk(4).indices.tolist()) for cosines in (cross, own))
            overlaps.append(len(first & second) / len(first | second))
        for chunk in (7, 100):
            assert float(retrieval_overlap(a, b, 4, chunk=chunk)) == pytest.approx(sum(overlaps) / 30)
        found = latent_similarity(a, b, 4)
        assert found.jaccard == pytest.approx(sum(overlaps) / 30)
        assert found.cosine == pytest.approx(float(cross.diagonal().mean()))
        assert found.mrr == pytest.approx(float(mean_reciprocal_rank(a, b)))

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: latent_similarity(torch.ones(5, 2), torch.ones(5, 3)), r"keys must have the shape \(5, 2\)"),
            (lambda: latent_similarity(torch.ones(5), torch.ones(5)), r"queries must have shape \(samples, features\)"),
            (lambda: latent_similarity(torch.ones(5, 2), torch.ones(5, 2)), r"k must be in \[1, 5\], got 10"),
            (lambda: retrieval_overlap(torch.ones(5, 2).long(), torch.ones(5, 2)), "queries must be of a floating"),
        ],
    )
    def test_bad_input(self, make: Callable[[], object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make()
