"""Tests of ``netwright.layers.equiangular``."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from netwright.layers.equiangular import (
    EBVHead,
    descent_direction,
    generate_ebv,
    replace_classifier,
    simplex_etf,
    welch_bound,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosines(vectors: Tensor) -> Tensor:
    """|cosine| of all pairs, 0 on the diagonal."""
    return (vectors @ vectors.T).abs().fill_diagonal_(0)


@pytest.mark.parametrize(("number", "dim"), [(6, 12), (12, 12), (40, 12), (64, 16), (2, 2)])
def test_all_pairs_stay_below_the_threshold(number: int, dim: int) -> None:
    basis = generate_ebv(number, dim, generator=seeded(), max_steps=5000)
    alpha = max(0.002, 1.5 * welch_bound(number, dim))
    assert basis.converged
    torch.testing.assert_close(basis.vectors.norm(dim=1), torch.ones(number))
    found = cosines(basis.vectors)
    assert found.max().item() == pytest.approx(basis.largest, abs=1e-6)
    assert basis.largest <= alpha + 1e-4
    assert found.sum().item() / (number * (number - 1)) == pytest.approx(basis.mean, rel=1e-4)
    assert basis.largest >= welch_bound(number, dim)


@given(st.integers(2, 30), st.integers(2, 10), st.integers(1, 30), st.floats(0.0, 0.6))
def test_the_direction_is_the_gradient_whatever_the_blocks(number: int, dim: int, rows: int, alpha: float) -> None:
    vectors = functional.normalize(torch.randn(number, dim, dtype=torch.float64))
    leaf = vectors.clone().requires_grad_()
    away = (leaf @ leaf.T).abs() * (1 - torch.eye(number))
    functional.relu(away - alpha).sum().backward()
    gradient = torch.full_like(vectors, math.nan)
    largest = descent_direction(vectors, alpha, rows, gradient)
    torch.testing.assert_close(gradient, leaf.grad)
    assert largest == pytest.approx(away.max().item())


def test_the_same_generator_gives_the_same_basis_and_steps_can_run_out() -> None:
    first, second = (generate_ebv(30, 8, generator=seeded(3), chunk=chunk) for chunk in (None, 7))
    torch.testing.assert_close(first.vectors, second.vectors)
    short = generate_ebv(30, 8, generator=seeded(3), max_steps=2)
    assert (short.steps, short.converged) == (2, False)
    torch.testing.assert_close(short.vectors.norm(dim=1), torch.ones(30))


def test_many_classes_need_no_square_of_memory() -> None:
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            seen.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, Tensor))
            return out

    with Watch():
        basis = generate_ebv(20_000, 4, 0.9999, max_steps=0, generator=seeded(), chunk=100)
        EBVHead(None, basis.vectors).predict(torch.randn(3, 4), chunk=1000)
    assert max(seen) <= 100 * 20_000


def test_the_published_welch_bound() -> None:
    assert welch_bound(1000, 100) == pytest.approx(0.09492, abs=5e-6)
    assert welch_bound(10, 10) == welch_bound(5, 10) == 0


@pytest.mark.parametrize(("number", "dim"), [(4, 3), (4, 7), (10, 9), (2, 2)])
def test_the_simplex_has_equal_angles(number: int, dim: int) -> None:
    simplex = simplex_etf(number, dim, seeded())
    expected = (1 + 1 / (number - 1)) * torch.eye(number) - 1 / (number - 1)
    torch.testing.assert_close(simplex @ simplex.T, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(simplex, simplex_etf(number, dim, seeded(1)))


def head(in_features: int | None = 6, number: int = 12, dim: int = 8) -> EBVHead:
    return EBVHead(in_features, generate_ebv(number, dim, generator=seeded()).vectors, 0.1)


def test_logits_are_cosines_and_the_prediction_is_the_nearest_vector() -> None:
    layer = head()
    x = torch.randn(2, 5, 6)
    features = layer.projection(x)
    expected = functional.cosine_similarity(features.unsqueeze(-2), layer.basis, dim=-1)
    torch.testing.assert_close(layer(x), expected / 0.1)
    distances = expected.arccos()
    for chunk in (8192, 5, 1):
        assert torch.equal(layer.predict(x, chunk), distances.argmin(-1))
    torch.testing.assert_close(layer(x), EBVHead(None, layer.basis, 0.1)(features))


def test_the_vectors_are_fixed_and_saved(tmp_path) -> None:
    layer = head()
    assert {name for name, _ in layer.named_parameters()} == {"projection.weight", "projection.bias"}
    save_file(layer.state_dict(), tmp_path / "w.safetensors")
    other = EBVHead(6, generate_ebv(12, 8, generator=seeded(9)).vectors, 0.1)
    other.load_state_dict(load_file(tmp_path / "w.safetensors"))
    x = torch.randn(3, 6)
    assert torch.equal(other(x), layer(x))


def test_loss() -> None:
    layer = head()
    x, classes = torch.randn(4, 6), torch.tensor([0, 3, 11, 3])
    expected = functional.cross_entropy(layer(x), classes, label_smoothing=0.1)
    torch.testing.assert_close(layer.loss(x, classes), expected)
    soft = functional.one_hot(classes, 12).float()
    torch.testing.assert_close(layer.loss(x, soft), expected)
    for wrong in (12, -1):
        with pytest.raises(ValueError, match=r"classes must be in 0 … 11, got"):
            layer.loss(x, torch.tensor([0, 3, wrong, 3]))


def test_new_classes_leave_the_old_ones_where_they_are(tmp_path) -> None:
    layer = head(number=12, dim=8)
    x = torch.randn(5, 6)
    before, logits = layer.basis.clone(), layer(x)
    added = layer.add_classes(6, generator=seeded(1), threshold=0.5)
    assert (layer.num_classes, added.converged) == (18, True)
    assert torch.equal(layer.basis[:12], before)
    torch.testing.assert_close(layer(x)[:, :12], logits)
    assert cosines(layer.basis)[12:].max().item() <= 0.5 + 1e-4
    layer.add_classes(1, generator=seeded(1), threshold=0.6)
    other = head(number=12, dim=8)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        head(dim=7).load_state_dict(layer.state_dict())


def test_gradients_autocast_meta_and_tracing() -> None:
    layer = head().double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(layer, {"projection.weight": w, "projection.bias": b}, (x,)),
        (x, *layer.parameters()),
    )
    layer, x = head(), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = layer(x)
    torch.testing.assert_close(low.float(), layer(x), rtol=0.1, atol=0.3)
    low.float().sum().backward()
    assert layer.projection.weight.grad.dtype == torch.float32
    with torch.device("meta"):
        assert EBVHead(2048, torch.empty(1000, 1000))(torch.empty(2, 2048)).shape == (2, 1000)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


def test_published_sizes() -> None:
    with torch.device("meta"):
        classifier = nn.Linear(2048, 1000)
        ebv = EBVHead.like(classifier, torch.empty(1000, 1000))
        assert sum(p.numel() for p in ebv.parameters()) == 2048 * 1000 + 1000  # what stays is the projection
        huge = EBVHead(None, torch.empty(100_000, 2048))
        assert sum(p.numel() for p in huge.parameters()) == 0
        assert sum(p.numel() for p in nn.Linear(2048, 100_000).parameters()) == 204_900_000


def test_a_network_gets_the_head_in_place_of_its_last_layer() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12, bias=False)).double().eval()
    new = replace_classifier(model, generate_ebv(12, 5, generator=seeded()).vectors, 0.2)
    assert [type(m) for m in new] == [nn.Linear, nn.ReLU, EBVHead]
    assert (new[2].temperature, new[2].projection.bias, new[2].training) == (0.2, None, False)
    assert new(torch.randn(3, 6, dtype=torch.float64)).dtype == torch.float64


def test_bad_input() -> None:
    for arguments, message in (
        (
            (64, 16, 0.2),
            r"threshold must be at least 0\.2182, the Welch bound of 64 vectors in 16 dimensions, got 0\.2",
        ),
        ((1, 16), "num_classes must be at least 2, got 1"),
        ((3, 1), "dim must be at least 2, got 1"),
        ((3, 4, 0.5, 10, 0.0), "lr must be positive"),
        ((3, 4, 0.5, 10, 0.1, 0), "chunk must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_ebv(*arguments)
    with pytest.raises(ValueError, match="dim of a simplex must be at least 9, got 8"):
        simplex_etf(10, 8)
    basis = generate_ebv(12, 8, generator=seeded()).vectors
    with pytest.raises(ValueError, match="rows of length 1, got lengths up to 2"):
        EBVHead(6, 2 * basis)
    with pytest.raises(ValueError, match="temperature must be positive"):
        EBVHead(6, basis, 0.0)
    with pytest.raises(ValueError, match="dimension -1 of features must have size 8"):
        EBVHead(None, basis)(torch.randn(3, 9))
    with pytest.raises(ValueError, match="dimension 0 of basis must have size 10"):
        EBVHead.like(nn.Linear(6, 10), basis)
    with pytest.raises(ValueError, match=r"must have an output for each of 12 classes, got Linear"):
        replace_classifier(nn.Sequential(nn.Linear(6, 10)), basis)
    with pytest.raises(ValueError, match=r"must end in an nn\.Linear for its classes, found none"):
        replace_classifier(nn.ReLU(), basis)


def test_a_zero_vector_is_warned_of() -> None:
    layer = EBVHead(None, generate_ebv(12, 8, generator=seeded()).vectors)
    x = torch.randn(3, 8)
    x[1] = 0
    with pytest.warns(UserWarning, match="a feature vector is 0 and has no direction"):
        logits = layer(x)
    assert logits[1].abs().max() == 0
    assert torch.isfinite(logits).all()
