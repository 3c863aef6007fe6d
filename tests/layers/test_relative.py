"""Tests of ``netwright.layers.relative``."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.data import load
from netwright.layers.relative import (
    Normalisation,
    RelativeNetwork,
    RelativeProjection,
    Similarity,
    relative_projection,
    to_relative,
)
from netwright.models.baselines import build_model
from netwright.training import Budget, Settings, evaluate, fit

DOUBLE = torch.float64
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)
every_similarity = pytest.mark.parametrize("similarity", SIMILARITIES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(n: int, seed: int = 1) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=seeded(seed), dtype=DOUBLE)).Q


# the definitions, one pair at a time or with another solver
DIRECT: dict[Similarity, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": lambda x, a: functional.cosine_similarity(x[:, None], a, dim=-1),
    "angular": lambda x, a: functional.cosine_similarity(x[:, None], a, dim=-1).clamp(-1, 1).arccos() / torch.pi,
    "euclidean": lambda x, a: (x[:, None] - a).square().sum(-1).sqrt(),
    "l1": lambda x, a: (x[:, None] - a).abs().sum(-1),
    "basis_change": lambda x, a: torch.linalg.lstsq(a.T, x.T, driver="gelsd").solution.T,
}


@every_similarity
@pytest.mark.parametrize(("anchors", "features"), [(3, 8), (20, 8), (300, 20)])
def test_is_the_direct_formula(similarity: Similarity, anchors: int, features: int) -> None:
    x, a = (torch.randn(n, features, generator=seeded(n)) for n in (30, anchors))
    expected = DIRECT[similarity](x.double(), a.double()).float()
    torch.testing.assert_close(relative_projection(x, a, similarity), expected, atol=2e-6, rtol=2e-6)
    stacked = relative_projection(x.view(2, 15, features), a, similarity)
    torch.testing.assert_close(stacked.flatten(0, 1), expected, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(relative_projection(x[0], a, similarity), expected[0], atol=2e-6, rtol=2e-6)


@settings(max_examples=10)
@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_rotation_and_scale_change_nothing(seed: int, scale: float) -> None:
    """In float32, to 1e-6, for the similarities of directions; without scale, for distances."""
    x, a = torch.randn(2, 12, 16, generator=seeded(seed))
    turn = rotation(16, seed).float()
    for similarity in ("cosine", "angular", "basis_change"):
        moved = relative_projection(scale * x @ turn, scale * a @ turn, similarity)
        atol = 1e-6 if similarity == "cosine" else 1e-4
        torch.testing.assert_close(moved, relative_projection(x, a, similarity), atol=atol, rtol=1e-4)
    distances = relative_projection(x @ turn, a @ turn, "euclidean")
    torch.testing.assert_close(distances, relative_projection(x, a, "euclidean"), atol=1e-5, rtol=1e-6)


def test_what_changes_and_what_does_not() -> None:
    x, a = (torch.randn(n, 6, dtype=DOUBLE) for n in (5, 10))
    shift, stretch = torch.randn(6, dtype=DOUBLE), torch.rand(6, dtype=DOUBLE) + 0.2
    mixing = torch.randn(6, 6, dtype=DOUBLE)
    for similarity in SIMILARITIES:
        before = relative_projection(x, a, similarity)

        def same(x: Tensor, a: Tensor, before: Tensor = before, similarity: Similarity = similarity) -> bool:
            return torch.allclose(relative_projection(x, a, similarity), before)

        assert same(x + shift, a + shift) == (similarity in ("euclidean", "l1"))
        assert same(x * stretch, a * stretch) == (similarity == "basis_change")
        assert same(x @ mixing, a @ mixing) == (similarity == "basis_change")
        assert same(3 * x, 3 * a) == (similarity in ("cosine", "angular", "basis_change"))


def test_basis_change_rebuilds_the_latent() -> None:
    x, a = (torch.randn(n, 6, dtype=DOUBLE) for n in (5, 10))
    torch.testing.assert_close(relative_projection(x, a, "basis_change") @ a, x)


@every_similarity
def test_gradients(similarity: Similarity) -> None:
    x, a = (torch.randn(n, 4, dtype=DOUBLE, requires_grad=True) for n in (3, 6))
    assert gradcheck(lambda x, a: relative_projection(x, a, similarity), (x, a))
    layer = RelativeProjection(6, similarity, normalise_output="layernorm", dtype=DOUBLE)
    assert gradcheck(layer, (x, a))


@every_similarity
def test_an_input_that_is_an_anchor_has_a_finite_gradient(similarity: Similarity) -> None:
    a = torch.randn(6, 4, generator=seeded())
    x = a[:3].clone().requires_grad_()
    relative_projection(x, a, similarity).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


@pytest.mark.parametrize("similarity", ["cosine", "angular"])
def test_a_latent_of_zeros(similarity: Similarity) -> None:
    x = torch.randn(3, 4)
    x[1] = 0
    x.requires_grad_()
    with pytest.warns(UserWarning, match="a latent of input is 0 and has no direction"):
        r = relative_projection(x, torch.randn(5, 4), similarity)
    torch.testing.assert_close(r[1], torch.full((5,), 0.0 if similarity == "cosine" else 0.5))
    r.sum().backward()
    assert x.grad is not None
    assert not x.grad[1].any()
    assert x.grad[0].any()
    with pytest.warns(UserWarning, match="a latent of anchors is 0"):
        RelativeProjection(torch.zeros(2, 4), similarity)(torch.randn(1, 4))


@every_similarity
def test_autocast_meta_and_sixteen_bits(similarity: Similarity) -> None:
    a = torch.randn(6, 8)
    layer = RelativeProjection(a, similarity, normalise_output="layernorm")
    x = torch.randn(5, 8, requires_grad=True)
    exact = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = layer(x)
        half.float().square().sum().backward()
    torch.testing.assert_close(half.float(), exact, atol=0.1, rtol=0.1)
    assert x.grad is not None
    assert (x.grad.dtype, layer.norm.weight.grad.dtype) == (torch.float32, torch.float32)
    short = copy.deepcopy(layer).bfloat16()(x.detach().bfloat16())
    assert short.dtype == torch.bfloat16
    torch.testing.assert_close(short.float(), exact, atol=0.2, rtol=0.2)
    with torch.device("meta"):
        assert RelativeProjection(6, similarity)(torch.empty(5, 8), torch.empty(6, 8)).shape == (5, 6)


def test_published_sizes_on_meta() -> None:
    """No parameters of its own; 2A with layer norm (500 anchors in the authors' autoencoders)."""
    with torch.device("meta"):
        counts = {
            kind: sum(p.numel() for p in RelativeProjection(500, normalise_output=kind).parameters())
            for kind in (None, *get_args(Normalisation))
        }
        plain = RelativeProjection(500, normalise_output="layernorm", affine=False)
    assert counts == {None: 0, "l2": 0, "layernorm": 1000, "batchnorm": 1000, "instancenorm": 1000}
    assert not list(plain.parameters())


def test_normalisations() -> None:
    x, a = (torch.randn(n, 8, dtype=DOUBLE) for n in (20, 6))
    r = relative_projection(x, a)
    expected = {
        "l2": r / r.norm(dim=1, keepdim=True),
        "layernorm": functional.layer_norm(r, (6,)),
        "batchnorm": (r - r.mean(0)) / (r.var(0, correction=0) + 1e-5).sqrt(),
        "instancenorm": (r - r.mean(0)) / (r.var(0, correction=0) + 1e-5).sqrt(),
    }
    for kind, value in expected.items():
        layer = RelativeProjection(a, normalise_output=kind, dtype=DOUBLE)
        torch.testing.assert_close(layer(x), value)
        torch.testing.assert_close(layer(x.view(4, 5, 8)).flatten(0, 1), value)
        # over the batch in eval mode too; batch norm has its running moments by then
        assert torch.allclose(layer.eval()(x), value) == (kind != "batchnorm")


def test_quantised_values_and_their_gradient() -> None:
    layer = RelativeProjection(torch.randn(6, 8), quantise=0.25)
    x = torch.randn(5, 8, requires_grad=True)
    r, exact = layer(x), relative_projection(x, layer.anchors)
    torch.testing.assert_close(r, (exact * 4).round() / 4)
    (straight,) = torch.autograd.grad(r.square().sum(), x)
    (expected,) = torch.autograd.grad((exact * 2 * r.detach()).sum(), x)
    torch.testing.assert_close(straight, expected)


def test_class_means() -> None:
    a, labels = torch.randn(6, 8), torch.tensor([0, 2, 1, 0, 2, 2])
    layer = RelativeProjection(a, aggregate="class_mean", labels=labels, normalise_output="layernorm")
    assert layer.out_features == 3
    x = torch.randn(5, 8)
    r = relative_projection(x, a)
    means = torch.stack([r[:, labels == c].mean(1) for c in range(3)], 1)
    torch.testing.assert_close(layer(x), functional.layer_norm(means, (3,)))


def test_round_trip(tmp_path: Path) -> None:
    def make() -> RelativeProjection:
        labels = torch.arange(6) % 3
        options = {"aggregate": "class_mean", "labels": labels, "normalise_output": "batchnorm"}
        return RelativeProjection(torch.randn(6, 8), "euclidean", **options)  # type: ignore[arg-type]

    first, second, third = make(), make(), make()
    x = torch.randn(5, 8)
    first(x)
    save_model(first, str(tmp_path / "layer.safetensors"))
    load_model(second, str(tmp_path / "layer.safetensors"))
    third.load_state_dict(first.state_dict())
    for other in (second, third):
        assert torch.equal(other.eval()(x), first.eval()(x))


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_compiles_as_one_graph(similarity: Similarity) -> None:
    layer = RelativeProjection(torch.randn(6, 8), similarity, normalise_output="layernorm")
    x = torch.randn(5, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_kept_anchors_follow_every_change() -> None:
    layer, x = RelativeProjection(torch.randn(6, 8)).eval(), torch.randn(5, 8)
    assert layer.prepare() is layer.prepare()
    for change in (
        lambda: layer.anchors.add_(torch.randn(6, 8)),
        lambda: layer.load_state_dict(RelativeProjection(torch.randn(6, 8)).state_dict()),
        lambda: (layer.train(), layer.anchors.data.copy_(torch.randn(6, 8)), layer.eval()),
    ):
        layer(x)
        change()
        torch.testing.assert_close(layer(x), relative_projection(x, layer.anchors))
    assert layer.double()(x.double()).dtype == DOUBLE


def test_works_under_vmap() -> None:
    a, x = torch.randn(6, 8), torch.randn(3, 5, 8)
    torch.testing.assert_close(torch.vmap(RelativeProjection(a))(x), relative_projection(x, a))


class TestNetwork:
    @staticmethod
    def make(encoder: nn.Module | None = None, **options: object) -> RelativeNetwork:
        encoder = encoder or nn.Sequential(nn.Linear(10, 8), nn.Tanh())
        projection = RelativeProjection(20, normalise_output="layernorm")
        anchors = torch.randn(20, 10, generator=seeded(5))
        return RelativeNetwork(encoder, projection, nn.Linear(20, 3), anchors, **options)  # type: ignore[arg-type]

    def test_is_encoder_projection_decoder(self) -> None:
        net, x = self.make(), torch.randn(7, 10)
        r = relative_projection(net.encoder(x), net.encoder(net.anchors))
        expected = net.decoder(functional.layer_norm(r, (20,)))
        for mode in (True, False):
            torch.testing.assert_close(net.train(mode)(x), expected)
            torch.testing.assert_close(net.encode(x), r)

    @pytest.mark.parametrize("together", [True, False])
    def test_no_gradient_through_the_anchors(self, together: bool) -> None:
        net, x = self.make(together=together), torch.randn(7, 10)
        net(x).square().sum().backward()
        frozen = copy.deepcopy(net.encoder)(net.anchors).detach()
        r = relative_projection(net.encoder(x), frozen)
        expected = torch.autograd.grad(net.decode(r).square().sum(), list(net.encoder.parameters()))
        for parameter, gradient in zip(net.encoder.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient)
        through = relative_projection(net.encoder(x), net.encoder(net.anchors))
        other = torch.autograd.grad(net.decode(through).square().sum(), list(net.encoder.parameters()))
        assert not torch.allclose(other[0], expected[0])

    def test_one_batch_for_batch_normalisation(self) -> None:
        norm = nn.BatchNorm1d(10)
        net, x = self.make(norm), torch.randn(7, 10)
        net(x)
        assert int(norm.num_batches_tracked) == 1
        torch.testing.assert_close(norm.running_mean, 0.1 * torch.cat([x, net.anchors]).mean(0))
        net = self.make(copy.deepcopy(norm), together=False)
        net(x)
        assert int(net.encoder.num_batches_tracked) == 3

    def test_refreshes_as_often_as_asked(self) -> None:
        sizes: list[int] = []
        net = self.make(refresh_every=3)
        net.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        x = torch.randn(7, 10)
        for _ in range(7):
            net(x)
        assert sizes == [27, 7, 7, 27, 7, 7, 27]
        assert "_latest" not in net.state_dict()
        net.eval()
        net.train()(x)
        assert sizes[-1] == 27

    def test_keeps_the_anchors_in_eval_mode_until_a_weight_changes(self) -> None:
        sizes: list[int] = []
        net, x = self.make().eval(), torch.randn(7, 10)
        net.encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        for _ in range(3):
            net(x)
        assert sorted(sizes) == [7, 7, 7, 20]
        with torch.no_grad():
            net.encoder[0].weight.mul_(-0.5)
        torch.testing.assert_close(net(x), copy.deepcopy(net).train()(x))
        assert sizes.count(20) == 2
        net.load_state_dict(self.make().state_dict())
        torch.testing.assert_close(net(x), copy.deepcopy(net).train()(x))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            net(x)
        torch.testing.assert_close(net(x), copy.deepcopy(net).train()(x))
        moved = net.double()(x.double())
        assert moved.dtype == DOUBLE

    def test_kept_anchors_serve_gradients_and_other_weights(self) -> None:
        net, x = self.make().eval(), torch.randn(7, 10)
        with torch.inference_mode():
            expected = net(x)
        x.requires_grad_()
        net(x).sum().backward()
        assert x.grad is not None
        twice = {
            name: torch.stack([p.detach(), -p.detach()]) for name, p in net.encoder.named_parameters(prefix="encoder")
        }
        both = torch.vmap(lambda weights: torch.func.functional_call(net, weights, (x.detach(),)))(twice)
        torch.testing.assert_close(both[0], expected)
        torch.testing.assert_close(both[1], expected)  # −tanh of all: the cosines are the same
        torch.testing.assert_close(net(x), expected)

    def test_dropout_that_is_left_on_is_drawn_anew(self) -> None:
        net = self.make(nn.Sequential(nn.Linear(10, 8), nn.Dropout(0.5))).eval()
        net.encoder[1].train()
        first, second = net._prepared_anchors(), net._prepared_anchors()
        assert not torch.equal(first, second)

    def test_trains_with_fit(self) -> None:
        digits = load("digits", train=200)
        anchors = digits.train.inputs[:30]
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
        projection = RelativeProjection(30, normalise_output="layernorm")
        net = RelativeNetwork(encoder, projection, nn.Linear(30, 10), anchors, together=False)
        fit(net, digits, Budget(epochs=10), settings=Settings(lr=0.02))
        assert evaluate(net, digits.test)["accuracy"] > 0.7

    def test_compiles_counts_and_round_trips(self, tmp_path: Path) -> None:
        net, x = self.make(), torch.randn(7, 10)
        compiled = torch.compile(net, fullgraph=True, backend="eager")
        for mode in (True, False):
            torch.testing.assert_close(compiled.train(mode)(x), net(x))
        with torch.device("meta"):
            assert copy.deepcopy(net).to("meta")(torch.empty(7, 10)).shape == (7, 3)
        save_model(net, str(tmp_path / "net.safetensors"))
        again = self.make()
        again.anchors.zero_()
        load_model(again, str(tmp_path / "net.safetensors"))
        assert torch.equal(again.eval()(x), net.eval()(x))

    def test_a_diverged_training_is_left_to_the_loop(self) -> None:
        net = self.make()
        with torch.no_grad():
            net.encoder[0].weight.fill_(torch.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert bool(net(torch.randn(7, 10)).isnan().all())
        with pytest.raises(ValueError, match="anchors must be finite, got NaN or infinity"):
            net.eval()(torch.randn(7, 10))


class TestToRelative:
    def test_the_last_linear_layer_sees_similarities(self) -> None:
        digits = load("digits")
        model = build_model("cnn", digits).eval()
        before = copy.deepcopy(model.state_dict())
        anchors = digits.train.inputs[:40]
        net = to_relative(model, anchors, "euclidean", normalise_output=None, refresh_every=2)
        assert (net.training, net.together, net.refresh_every) == (False, True, 2)
        assert (net.decoder.in_features, net.decoder.out_features) == (40, 10)
        x = digits.test.inputs[:5]
        with torch.no_grad():
            features, of_anchors = model[:-1](x), model[:-1](anchors)
            torch.testing.assert_close(net(x), net.decoder(torch.cdist(features, of_anchors)), atol=1e-3, rtol=1e-4)
        for name, value in before.items():
            assert torch.equal(model.state_dict()[name], value)
        assert not model.training
        assert not any(module._forward_hooks for module in (*model.modules(), *net.modules()))
        assert not to_relative(nn.Sequential(nn.Linear(4, 3)), torch.randn(5, 4)).together

    def test_what_does_not_fit(self) -> None:
        anchors = torch.randn(5, 4)
        for model, message in [
            (nn.Tanh(), r"must end in an nn\.Linear, found none"),
            (nn.Sequential(nn.Linear(4, 3), nn.Tanh()), r"the last one, '0', is followed by more"),
            (nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Linear(2, 3)), r"layer, '1', must have shape \(batch, features"),
        ]:
            with pytest.raises(ValueError, match=message):
                to_relative(model, anchors)
        with pytest.raises(ValueError, match="number of anchors must be at least 1, got 0"):
            to_relative(nn.Linear(4, 3), anchors[:0])


NAN = torch.tensor([[1.0, torch.nan]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RelativeProjection(0), "number of anchors must be at least 1, got 0"),
        (lambda: RelativeProjection(torch.zeros(0, 4)), "number of anchors must be at least 1, got 0"),
        (lambda: relative_projection(torch.ones(2, 4), torch.ones(0, 4)), "number of anchors must be at least 1"),
        (
            lambda: RelativeProjection(torch.zeros(4)),
            r"anchors must have shape \(anchors, features\), got shape \(4,\)",
        ),
        (lambda: RelativeProjection(torch.ones(2, 4).long()), "anchors must be of a floating-point type"),
        (lambda: RelativeProjection(3, "cosin"), "unknown similarity 'cosin'; did you mean 'cosine'"),  # type: ignore[arg-type]
        (lambda: relative_projection(NAN, NAN, "l2"), "unknown similarity 'l2'"),  # type: ignore[arg-type]
        (lambda: RelativeProjection(3, normalise_output="layer_norm"), "did you mean 'layernorm'"),  # type: ignore[arg-type]
        (lambda: RelativeProjection(3, quantise=0), "quantise must be positive, got 0"),
        (lambda: RelativeProjection(3, aggregate="mean"), "unknown aggregate 'mean'"),  # type: ignore[arg-type]
        (
            lambda: RelativeProjection(3, aggregate="class_mean"),
            "needs labels, a class for each of 3 anchors, got None",
        ),
        (
            lambda: RelativeProjection(3, aggregate="class_mean", labels=torch.zeros(2).long()),
            r"a class for each of 3 anchors, got torch.int64 of shape \(2,\)",
        ),
        (
            lambda: RelativeProjection(2, aggregate="class_mean", labels=torch.tensor([0, 2])),
            "every class must have an anchor, got none of class 1",
        ),
        (lambda: RelativeProjection(3)(torch.ones(2, 4)), "made without anchors; give them with every call"),
        (lambda: RelativeProjection(3)(torch.ones(2, 4), torch.ones(2, 4)), "there must be 3 anchors, got 2"),
        (
            lambda: RelativeProjection(torch.ones(3, 5))(torch.ones(2, 4)),
            r"input must have as many features as the anchors \(5\), got shape \(2, 4\)",
        ),
        (lambda: RelativeProjection(torch.ones(3, 4))(torch.ones(2, 4).long()), "input must be of a floating-point"),
        *[
            (lambda s=s: relative_projection(NAN, torch.eye(2), s), "input must be finite, got NaN or infinity")
            for s in SIMILARITIES
        ],
        *[
            (lambda s=s: relative_projection(torch.eye(2), NAN, s), "anchors must be finite, got NaN or infinity")
            for s in SIMILARITIES
        ],
        (
            lambda: RelativeProjection(torch.eye(2), normalise_output="instancenorm")(torch.ones(1, 2)),
            "batch size for normalise_output='instancenorm' must be at least 2, got 1",
        ),
        (
            lambda: RelativeNetwork(nn.Identity(), RelativeProjection(3), nn.Identity(), torch.ones(2, 4)),
            "the projection needs 3 anchors, got 2",
        ),
        (
            lambda: RelativeNetwork(
                nn.Identity(), RelativeProjection(2), nn.Identity(), torch.ones(2, 4), refresh_every=0
            ),
            "refresh_every must be at least 1, got 0",
        ),
    ],
)
def test_bad_input(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
