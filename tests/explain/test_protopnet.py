"""Tests of ``netwright.explain.protopnet``."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional

from netwright.cost import count_params
from netwright.explain._part_explanations import grid_boxes, regions
from netwright.explain.protopnet import (
    PartWeights,
    ProtoPNet,
    PrototypePartHead,
    STProtoPNet,
    loss_terms,
    part_loss,
    st_loss,
)
from netwright.explain.protopnet_figure import explanation_figure
from netwright.explain.protopnet_training import merge_duplicates, prune, push
from netwright.models.vision.classic import conv_n, vgg_bn
from netwright.models.vision.resnet import resnet_cifar

SIMILARITIES = ("cosine", "projection", "l2")


def small(similarity: str = "cosine", per_class: int = 2, dtype: torch.dtype = torch.float64) -> STProtoPNet:
    """Batch normalisation and dropout, so that modes and buffers matter."""
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3, 2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3)).to(dtype)
    return STProtoPNet(backbone, 3, per_class, 4, similarity, dtype=dtype)


def pictures(samples: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    return torch.rand(samples, 1, 6, 8, dtype=torch.float64, generator=generator), torch.arange(samples) % 3


def test_published_sizes_on_meta() -> None:
    backbone = nn.Conv2d(3, 512, 32, stride=32, device="meta")
    model = STProtoPNet(backbone, num_classes=200, device="meta")
    heads = [model.head("trivial"), model.head("support")]
    assert sum(count_params(head.add_on) for head in heads) == 73_984
    assert sum(head.prototypes.numel() for head in heads) == 128_000
    assert sum(count_params(head.last_layer) for head in heads) == 400_000
    assert count_params(model.heads) == 601_984
    out = model(torch.empty(2, 3, 224, 224, device="meta"))
    assert out.maps[0].shape == out.maps[1].shape == (2, 1000, 14, 14)
    assert out.similarities[0].shape == (2, 1000)
    assert out.logits.shape == out.logits_trivial.shape == out.logits_support.shape == (2, 200)
    assert PrototypePartHead(512, 200, num_prototypes=1000, device="meta").prototypes.shape == (1000, 64)


def test_places_of_the_grid_have_a_stride_of_16() -> None:
    boxes = grid_boxes(torch.arange(196), (14, 14), (224, 224))
    columns, rows = torch.arange(196) % 14, torch.arange(196) // 14
    assert torch.equal(boxes, torch.stack([16 * columns, 16 * rows, 16 * columns + 16, 16 * rows + 16], 1))
    # every pixel is under some place, also where the grid does not divide the picture
    uneven = grid_boxes(torch.arange(6), (2, 3), (5, 7))
    covered = torch.zeros(5, 7)
    for left, top, right, bottom in uneven.tolist():
        covered[top:bottom, left:right] = 1
    assert covered.all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_head_is_its_formula(similarity: str) -> None:
    head = PrototypePartHead(5, 3, 2, 4, similarity, upsample=2, dtype=torch.float64)
    maps = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    out = head(maps)
    first, second = (layer for layer in head.add_on if isinstance(layer, nn.Conv2d))
    x = nn.Upsample(scale_factor=2, mode="bilinear")(maps)
    acts = {"cosine": (lambda x: x,) * 2, "projection": (torch.tanh,) * 2, "l2": (torch.relu, torch.sigmoid)}
    features = acts[similarity][1](second(acts[similarity][0](first(x))))
    torch.testing.assert_close(head.features(maps), features)
    assert out.maps.shape == (2, 6, 4, 6)
    for j, p in enumerate(head.prototypes):
        f = features.movedim(1, -1)
        if similarity == "l2":
            d = (f - p).square().sum(-1)
            expected, similar = torch.log((d + 1) / (d + 1e-4)), -d
        else:
            similar = f @ p / p.norm() / f.norm(dim=-1)
            expected = similar.clamp(min=0) if similarity == "cosine" else f @ p / p.norm()
            similar = expected if similarity == "cosine" else similar
        torch.testing.assert_close(out.maps[:, j], expected)
        torch.testing.assert_close(out.activations[:, j], expected.amax((1, 2)))
        torch.testing.assert_close(out.similarities[:, j], similar.amax((1, 2)))
    torch.testing.assert_close(out.logits, out.activations @ head.last_layer.weight.T)


def test_prediction_is_the_sum_of_two_heads_on_one_backbone() -> None:
    model = small().eval()
    x, _ = pictures()
    out, maps = model(x), model.backbone(x)
    trivial, support = model.head("trivial")(maps), model.head("support")(maps)
    assert torch.equal(out.logits, trivial.logits + support.logits)
    assert torch.equal(out.similarities[1], support.similarities)
    assert torch.equal(model.classifier(x), out.logits)
    assert not torch.equal(trivial.maps, support.maps)


def test_start() -> None:
    head = PrototypePartHead(300, 4, 3, 128)
    own = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]) == torch.arange(4)[:, None]
    assert torch.equal(head.last_layer.weight, torch.where(own, 1.0, -0.5))
    assert head.last_layer.bias is None
    assert torch.equal(head.classes, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]))
    assert 0 <= head.prototypes.min() < 0.05 < 0.95 < head.prototypes.max() <= 1
    for layer in head.add_on:
        assert layer.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.03)
        assert not layer.bias.any()
    head.normalise_prototypes_()
    torch.testing.assert_close(head.prototypes.norm(dim=1), torch.ones(12))
    other = PrototypePartHead(3, 4, similarity="l2")
    before = other.prototypes.clone()
    other.normalise_prototypes_()
    assert torch.equal(other.prototypes, before)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("pruned", [False, True])
def test_loss_is_the_published_one(similarity: str, pruned: bool) -> None:
    """Against loops over samples, prototypes and pairs of classes; also where classes have unequally many."""
    model = small(similarity, per_class=3)
    head = model.head("support")
    if pruned:
        head.keep_(torch.tensor([0, 1, 2, 4, 6, 8]))
    x, y = pictures()
    out = model(x)
    terms = loss_terms(head, out.logits_support, out.similarities[1], y)
    similarities, classes = out.similarities[1], head.classes.tolist()
    p = head.prototypes / head.prototypes.norm(dim=1, keepdim=True) if similarity == "l2" else head.prototypes
    of = [[j for j, label in enumerate(classes) if label == c] for c in range(3)]
    own = [max(similarities[i, j] for j in of[y[i]]) for i in range(9)]
    wrong = [max(similarities[i, j] for j in range(len(classes)) if classes[j] != y[i]) for i in range(9)]
    orthogonality = sum((p[of[c]] @ p[of[c]].T - torch.eye(len(of[c]))).abs().sum() for c in range(3))
    pairs = [(c, d) for c in range(3) for d in range(3) if c != d]
    weight = head.last_layer.weight
    expected = {
        "cross_entropy": functional.cross_entropy(out.logits_support, y),
        "cluster": -sum(own) / 9,
        "separation": sum(wrong) / 9,
        "orthogonality": orthogonality,
        "l1": sum(weight[c, j].abs() for c in range(3) for j in range(len(classes)) if classes[j] != c),
        "discrimination": sum(max(p[i] @ p[j] for i in of[c] for j in of[d]) for c, d in pairs) / 6,
        "closeness": -sum(min(p[i] @ p[j] for i in of[c] for j in of[d]) for c, d in pairs) / 6,
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=lambda text, name=name: f"{name}: {text}")
    coefficients = [1, 0.8, 0.48, 1e-3, 1e-4, 0, 1]
    total = sum(k * value for k, value in zip(coefficients, expected.values(), strict=True))
    torch.testing.assert_close(st_loss(model, out, y, "support"), total)
    head = model.head("trivial")
    terms = loss_terms(head, out.logits_trivial, out.similarities[0], y)
    total = sum(k * value for k, value in zip([1, 0.8, 0.08, 1e-3, 1e-4, 1, 0], terms.values(), strict=True))
    torch.testing.assert_close(st_loss(model, out, y, "trivial"), total)


def test_the_loss_of_protopnet_is_about_distances() -> None:
    """Chen et al. 2018: 0.8 × smallest distance to the own class, -0.08 × that to others, 1e-4 × L1."""
    model = ProtoPNet(nn.Conv2d(1, 5, 3), 3, per_class=2, dim=4).double()
    x, y = pictures()
    out = model(x)
    features = model.head("prototypes").features(model.backbone(x)).flatten(2)
    d = torch.stack([(features - p[:, None]).square().sum(1).amin(1) for p in model.head("prototypes").prototypes], 1)
    own = torch.tensor([0, 0, 1, 1, 2, 2]) == y[:, None]
    weight = model.head("prototypes").last_layer.weight
    expected = (
        functional.cross_entropy(out.logits, y)
        + 0.8 * d.where(own, torch.inf).amin(1).mean()
        - 0.08 * d.where(~own, torch.inf).amin(1).mean()
        + 1e-4 * weight[weight < 0].abs().sum()
    )
    head = model.head("prototypes")
    torch.testing.assert_close(part_loss(head, out.logits, out.similarities, y, PartWeights()), expected)


def test_each_loss_moves_its_own_head() -> None:
    model = small()
    x, y = pictures()
    st_loss(model, model(x), y, "support").backward()
    assert all(p.grad is None or not p.grad.any() for p in model.head("trivial").parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.head("support").parameters())
    assert model.backbone[0].weight.grad.any()


def test_closeness_and_discrimination_pull_in_opposite_directions() -> None:
    found = {}
    for name in ("closeness", "discrimination"):
        torch.manual_seed(1)
        head = PrototypePartHead(2, 4, 2, 8)
        head.normalise_prototypes_()
        weights = PartWeights(**dict.fromkeys(vars(PartWeights()), 0.0) | {name: 1.0})
        y = torch.arange(4)
        for _ in range(30):
            (gradient,) = torch.autograd.grad(
                part_loss(head, torch.zeros(4, 4), torch.zeros(4, 8), y, weights), head.prototypes
            )
            with torch.no_grad():
                head.prototypes.sub_(gradient)
            head.normalise_prototypes_()
        products = head.prototypes @ head.prototypes.T
        found[name] = products[head.classes[:, None] != head.classes].mean().item()
    assert found["closeness"] > 0.95
    assert found["discrimination"] < 0.3


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_gradients(similarity: str) -> None:
    model = small(similarity, per_class=1).eval()
    model.head("trivial").normalise_prototypes_()
    x, y = pictures(2)
    x = x[:, :, :4, :4]

    def loss(x: Tensor, prototypes: Tensor, weight: Tensor) -> Tensor:
        values = {"heads.trivial.prototypes": prototypes, "heads.trivial.last_layer.weight": weight}
        out = torch.func.functional_call(model, values, (x,))
        return part_loss(
            model.head("trivial"), out.logits_trivial, out.similarities[0], y, PartWeights(orthogonality=0.1)
        )

    head = model.head("trivial")
    inputs = x, head.prototypes.detach().clone(), head.last_layer.weight.detach().clone()
    assert gradcheck(loss, [tensor.requires_grad_() for tensor in inputs])


def test_comparisons_are_precise_under_autocast() -> None:
    model = small(dtype=torch.float32)
    x, y = pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x.float())
        st_loss(model, out, y, "trivial").backward()
    assert out.maps[0].dtype == out.logits.dtype == torch.float32
    assert model.head("trivial").prototypes.grad.dtype == torch.float32
    maps = torch.rand(2, 4, 3, 3)
    head = PrototypePartHead(4, 2, 2, 4, "l2")
    head.add_on = nn.Identity()
    head.features = lambda maps: maps  # only the comparison is left
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.cdist(maps.flatten(2).mT, head.prototypes).square().movedim(1, 2).amin(2)
        torch.testing.assert_close(head(maps).similarities, -expected, atol=1e-5, rtol=1e-5)


def test_traces_as_one_graph() -> None:
    model = small().eval()
    x, _ = pictures()
    traced = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x).logits, model(x).logits)


@pytest.mark.parametrize("similarity", ["projection", "l2"])
def test_other_heads_trace_as_one_graph(similarity: str) -> None:
    head = PrototypePartHead(2, 2, 1, 2, similarity)
    x = torch.rand(1, 2, 2, 2)
    torch.testing.assert_close(torch.compile(head, backend="eager", fullgraph=True)(x).maps, head(x).maps)


def test_round_trips_keep_where_prototypes_come_from(tmp_path: Path) -> None:
    """Also those of a network that was pruned, into one that was not."""
    model = small(per_class=3)
    x, y = pictures(18)
    push(model, [(x, y)])
    for pruned in (False, True):
        if pruned:
            model.head("support").keep_(torch.tensor([0, 3, 4, 8]))
        again, third = small(per_class=3), small(per_class=3)
        again.load_state_dict(model.state_dict())
        save_model(model, str(tmp_path / "model.safetensors"))
        load_model(third, str(tmp_path / "model.safetensors"))
        for other in (again, third):
            assert torch.equal(other.eval()(x).logits, model.eval()(x).logits)
            assert other.sources() == model.sources() != []
            for name in ("classes", "source", "source_box", "source_region", "members"):
                assert torch.equal(getattr(other.head("support"), name), getattr(model.head("support"), name))
            assert st_loss(other, other(x), y, "support") == st_loss(model, model(x), y, "support")


@pytest.mark.parametrize(
    ("backbone", "side"),
    [
        (resnet_cifar(8).train(), 0),
        (nn.Sequential(*list(vgg_bn(11, widths=(4, 4, 4, 4, 4)).children())[:-3]), 2),
        (nn.Sequential(*list(conv_n(2).children())[:-1]), 32),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 7, 1), nn.BatchNorm2d(7), nn.ReLU()), 60),
    ],
)
def test_backbones_of_users(backbone: nn.Module, side: int) -> None:
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4) % 2
    model = STProtoPNet(backbone, 2, 1, 8)
    if side == 0:
        with pytest.raises(
            ValueError, match=r"maps of the backbone must have shape \(batch, channels, height, width\)"
        ):
            model(x)
        return
    assert model(x).maps[0].shape == (4, 2, side, side)
    push(model, [(x, y)])
    assert len(model.explain(x[:1]).parts) == 4


@given(
    similarity=st.sampled_from(SIMILARITIES),
    label=st.sampled_from([None, 0, 1, 2]),
    top=st.integers(1, 14),
    seed=st.integers(0, 99),
)
def test_contributions_add_up_to_the_logit(similarity: str, label: int | None, top: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = small(similarity).eval()
    for name in model.heads:
        nn.init.normal_(model.head(name).last_layer.weight)
    x, _ = pictures()
    logits = model(x[:1]).logits[0].detach()
    found = model.explain(x[:1], label, top=top)
    assert found.label == (int(logits.argmax()) if label is None else label)
    torch.testing.assert_close(found.logits, logits)
    total = sum(part.contribution for part in found.parts) + found.rest
    assert total == pytest.approx(float(logits[found.label]), abs=1e-9)
    assert total == pytest.approx(found.logit, abs=1e-9)
    assert len(found.parts) == min(top, 12)
    contributions = [part.contribution for part in found.parts]
    assert contributions == sorted(contributions, reverse=True)
    if top >= 12:
        assert found.rest == 0
    for part in found.parts:
        assert part.contribution == pytest.approx(part.activation * part.weight)
        assert part.weight == model.head(part.head).last_layer.weight.detach()[found.label, part.number]
        assert part.label == part.number // 2


def test_explanations_say_where() -> None:
    """A bright spot makes one place of the map stand out; the source is the picture that the patch is from."""
    model = STProtoPNet(nn.AvgPool2d(2), 2, 1, 2, upsample=1, in_channels=2).double()
    for name in model.heads:
        head = model.head(name)
        for layer in head.add_on:
            nn.init.eye_(layer.weight[:, :, 0, 0])
    with torch.no_grad():
        model.head("trivial").prototypes.copy_(torch.eye(2))
        model.head("support").prototypes.copy_(torch.eye(2))
    x = torch.full((3, 2, 8, 12), 0.1, dtype=torch.float64)
    x[0, 0, 2:4, 6:8] = 1  # like class 0 at place (1, 3)
    x[1, 1, 6:8, 0:2] = 1  # like class 1 at place (3, 0)
    x[2, 1, 4:6, 10:12] = 2
    push(model, [(x[:1], torch.tensor([0])), (x[1:2], torch.tensor([1]))])
    assert model.sources() == [0, 1]
    found = model.explain(x[2:])
    assert found.label == 1
    best = found.parts[0]
    assert best.box == (10, 4, 12, 6)
    assert (best.label, best.source, best.source_box) == (1, 1, (0, 6, 2, 8))
    assert torch.equal(best.source_picture, x[1])
    assert best.map.shape == (4, 6)
    assert divmod(int(best.map.argmax()), 6) == (2, 5)
    left, top, right, bottom = best.region
    assert 8 <= left < right == 12
    assert 2 <= top < bottom <= 7
    left, top, right, bottom = best.source_region
    assert 0 == left < right <= 4
    assert 5 <= top < bottom == 8
    assert all(part.source == part.label for part in found.parts)
    model.pictures.clear()
    assert model.explain(x[2:]).parts[0].source_picture is None


def test_regions_hold_a_twentieth_of_the_pixels() -> None:
    maps = torch.zeros(3, 7, 7)
    maps[0, 2, 4] = maps[1, 6, 0] = 1
    maps[2] = torch.arange(49.0).view(7, 7)
    boxes = regions(maps, (56, 56))
    masks = torch.nn.functional.interpolate(maps[:, None], size=(56, 56), mode="bicubic")[:, 0]
    for mask, (left, top, right, bottom) in zip(masks, boxes.tolist(), strict=True):
        high = mask >= mask.flatten().quantile(0.95)
        inside = torch.zeros_like(high)
        inside[top:bottom, left:right] = True
        assert not (high & ~inside).any()
        rows, columns = high.any(1).nonzero(), high.any(0).nonzero()
        assert (left, top) == (columns.min(), rows.min())
        assert (right, bottom) == (columns.max() + 1, rows.max() + 1)


def test_looking_leaves_everything_as_it_was() -> None:
    model = small().train()
    model.backbone[1].eval()
    x, y = pictures()
    push(model, [(x, y)])
    st_loss(model, model(x), y, "trivial").backward()
    model.backbone[0].weight.grad = None
    state, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    random = torch.get_rng_state()
    model.explain(x[:1])
    assert prune(model, [(x, y)], neighbours=9, own=1) == {"trivial": 0, "support": 0}
    explanation_figure(model.explain(x[:1], 2))
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    for name, parameter in model.named_parameters():
        before = grads[name]
        assert (parameter.grad is None) == (before is None)
        assert before is None or torch.equal(parameter.grad, before)


def test_figures() -> None:
    model = small()
    x, y = pictures()
    figure = explanation_figure(model.explain(x[:1], top=4), ("<a>", "b", "c"), parts=3)
    images = [trace for trace in figure.data if trace.type == "image"]
    assert len(images) == 3
    assert [trace.text[0] for trace in figure.data if trace.type == "scatter"] == ["no push yet"] * 3
    push(model, [(x, y)])
    found = model.explain(x[:1], 0)
    figure = explanation_figure(found, ("<a>", "b", "c"), parts=2)
    assert [trace.type for trace in figure.data] == ["image"] * 4
    assert figure.data[0].z.shape == (6, 8, 3)
    assert figure.data[0].z.min() == 0
    assert figure.data[0].z.max() == 255
    assert len(figure.layout.shapes) == 8
    assert figure.layout.title.text.startswith("&lt;a&gt;: logit")
    headings = [note.text for note in figure.layout.annotations]
    assert any(f"{found.parts[0].contribution:+.2f}" in heading for heading in headings)
    push(model, [(x, y)], keep_pictures=False)
    figure = explanation_figure(model.explain(x[:1]), parts=1)
    assert figure.data[1].text[0] == f"picture {model.explain(x[:1]).parts[0].source} was not kept"
    for name in model.heads:
        nn.init.constant_(model.head(name).last_layer.weight, -1.0)
    figure = explanation_figure(model.explain(x[:1]))
    assert len(figure.data) == 2  # nothing speaks for the class: what speaks least against it
    with pytest.raises(ValueError, match="parts must be at least 1, got 0"):
        explanation_figure(found, parts=0)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_merging_duplicates_changes_no_logit(similarity: str) -> None:
    model = small(similarity, per_class=4)
    x, y = pictures(3)  # one picture a class and few places: several prototypes share a patch
    push(model, [(x, y)])
    for name in model.heads:
        nn.init.normal_(model.head(name).last_layer.weight)
    expected = model.eval()(x).logits
    removed = merge_duplicates(model)
    torch.testing.assert_close(model(x).logits, expected)
    for name, number in removed.items():
        head = model.head(name)
        assert len(head.prototypes) == 12 - number == len(head.prototypes.unique(dim=0)) == len(head.source)
        assert head.last_layer.in_features == 12 - number
    assert sum(removed.values()) > 0
    assert merge_duplicates(model) == {"trivial": 0, "support": 0}


def test_pruning_keeps_what_looks_like_its_own_class() -> None:
    """Features are the picture's two numbers: three samples of class 0 and four of class 1 are near (1, 0)."""
    model = ProtoPNet(nn.Identity(), 2, 2, 2, "cosine", in_channels=2)
    head = model.head("prototypes")
    for layer in head.add_on:
        nn.init.eye_(layer.weight[:, :, 0, 0])
    with torch.no_grad():
        head.prototypes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.9, 0.1]]))
    x = torch.tensor([[1.0, 0.0], [1.0, 0.01], [1.0, 0.02], [0.0, 1.0], [0.1, 1.0]] + [[1.0, 0.03]] * 2)[
        :, :, None, None
    ]
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    split = [(x[:4], y[:4]), (x[4:], y[4:])]
    # prototype 2 of class 1 sees class 0 first; 3 sees both samples of class 1 among its four nearest
    assert prune(model, split, neighbours=3, own=2) == {"prototypes": 1}
    assert head.classes.tolist() == [0, 0, 1]
    torch.testing.assert_close(head.prototypes[2], torch.tensor([0.9, 0.1]))
    assert head.last_layer.weight.shape == (2, 3)
    # no prototype is good enough: the best of each class stays
    assert prune(model, split, neighbours=7, own=7) == {"prototypes": 1}
    assert head.classes.tolist() == [0, 1]


def test_bad_input() -> None:
    x, y = pictures()
    model = small()
    with pytest.raises(ValueError, match="num_prototypes must be divisible by num_classes = 3, got 10"):
        PrototypePartHead(4, 3, num_prototypes=10)
    with pytest.raises(ValueError, match="unknown similarity 'cosin'; did you mean 'cosine'"):
        PrototypePartHead(4, 3, similarity="cosin")
    for name in ("in_channels", "per_class", "dim", "upsample"):
        make = partial(PrototypePartHead, **{"in_channels": 4, "num_classes": 3} | {name: 0})
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            make()
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        PrototypePartHead(4, 1)
    with pytest.raises(ValueError, match=r"maps of the backbone must have shape .*, got shape \(9, 48\)"):
        STProtoPNet(nn.Flatten(), 3, in_channels=4)(x)
    with pytest.raises(ValueError, match="maps of the backbone must have in_channels = 4 channels, got 1"):
        STProtoPNet(nn.Identity(), 3, in_channels=4)(x)
    with pytest.raises(ValueError, match="no convolution or batch normalisation; give the channels as in_channels="):
        STProtoPNet(nn.Identity(), 3)
    out = model(x)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got 3"):
        st_loss(model, out, y + 1, "trivial")
    with pytest.raises(ValueError, match="unknown branch 'suport'; did you mean 'support'"):
        st_loss(model, out, y, "suport")
    with pytest.raises(ValueError, match=r"weight of cluster must be at least 0, got -0\.8"):
        PartWeights(cluster=-0.8)
    with pytest.raises(ValueError, match="unknown head 'prototypes'"):
        model.head("prototypes")
    with pytest.raises(ValueError, match="every class must keep a prototype, got none of class 1"):
        model.head("trivial").keep_(torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"dimension 0 of x must have size 1, got shape \(9, 1, 6, 8\)"):
        model.explain(x)
    with pytest.raises(ValueError, match=r"x must have shape \(1, channels, height, width\)"):
        model.explain(x[0])
    with pytest.raises(ValueError, match=r"label must be in \[0, 2\], got 3"):
        model.explain(x[:1], 3)
    with pytest.raises(ValueError, match="top must be at least 1, got 0"):
        model.explain(x[:1], top=0)
    with pytest.raises(ValueError, match=r"own must be in \[1, 6\], got 7"):
        prune(model, [(x, y)], own=7)
    with pytest.raises(ValueError, match="number of pictures must be at least 1, got 0"):
        prune(model, [])
