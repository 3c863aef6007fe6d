"""Tests of ``netwright.explain.protopnet_training``."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from netwright.data import load
from netwright.data.splits import Batch
from netwright.explain.protopnet import ProtoPNet, STProtoPNet, loss_terms
from netwright.explain.protopnet_training import PartRule, Schedule, push, train_stages
from netwright.training import Budget, Settings, evaluate, fit

SIMILARITIES = ("cosine", "projection", "l2")


def small(similarity: str = "cosine") -> STProtoPNet:
    backbone = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2)).double()
    return STProtoPNet(backbone, 3, 4, 5, similarity, dtype=torch.float64)


def pictures(samples: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.rand(samples, 1, 6, 8, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (samples,), generator=generator)


def by_loop(model: STProtoPNet, name: str, x: Tensor, y: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Prototype by prototype: the picture, the place and the patch with the largest activation."""
    head = model.head(name)
    features = head.features(model.backbone(x))
    maps = head.compare(features, head.prototypes)[0]
    for j, label in enumerate(head.classes):
        samples = (y == label).nonzero().flatten()
        place = int(maps[samples, j].flatten().argmax())
        sample, position = int(samples[place // maps[0, j].numel()]), place % maps[0, j].numel()
        yield sample, position, features[sample].flatten(1)[:, position]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("batch_size", [1, 7, 20])
@torch.no_grad()
def test_push_is_that_of_a_loop_over_prototypes(similarity: str, batch_size: int) -> None:
    model = small(similarity)
    x, y = pictures()
    model(x)  # running statistics that are not those of the start
    model.eval()
    expected = {name: list(by_loop(model, name, x, y)) for name in model.heads}
    model.train()
    push(model, zip(x.split(batch_size), y.split(batch_size), strict=True))
    assert model.training
    for name, found in expected.items():
        head = model.head(name)
        for j, (sample, position, patch) in enumerate(found):
            patch = patch if similarity == "l2" else functional.normalize(patch, dim=0)
            torch.testing.assert_close(head.prototypes[j], patch)
            assert int(head.source[j]) == sample
            row, column = divmod(position, 8)
            # maps of 3×4 are enlarged to 6×8, the size of the pictures
            assert head.source_box[j].tolist() == [column, row, column + 1, row + 1]
    assert model.sources() == sorted(model.pictures)
    assert all(torch.equal(model.pictures[number], x[number]) for number in model.sources())


@pytest.mark.parametrize("similarity", SIMILARITIES)
@torch.no_grad()
def test_a_prototype_is_found_again_in_its_picture(similarity: str) -> None:
    """The patch at ``source_box`` of the picture ``source`` is the prototype: maps are as large as the pictures."""
    model = small(similarity)
    x, y = pictures()
    push(model, [(x, y)])
    model.eval()
    for name in model.heads:
        head = model.head(name)
        columns, rows = head.source_box[:, 0], head.source_box[:, 1]
        patches = head.features(model.backbone(x[head.source]))[torch.arange(12), :, rows, columns]
        patches = patches if similarity == "l2" else functional.normalize(patches)
        torch.testing.assert_close(head.prototypes, patches)
        assert torch.equal(y[head.source], head.classes)


def test_a_picture_of_training_looks_like_itself() -> None:
    model = small()
    x, y = pictures()
    push(model, [(x, y)])
    number = model.sources()[0]
    own = [part for part in model.explain(x[number][None], top=24).parts if part.source == number]
    assert own
    for part in own:
        assert part.activation == pytest.approx(1)
        assert part.box == part.source_box
        assert part.region == part.source_region


def test_pushing_twice_changes_nothing() -> None:
    model = small()
    x, y = pictures()
    push(model, [(x, y)])
    before = copy.deepcopy(model.state_dict())
    push(model, zip(x.split(6), y.split(6), strict=True), keep_pictures=False)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-12)
    assert model.pictures == {}


def test_pushes_that_fail_leave_the_network_as_it_was() -> None:
    model = small()
    x, y = pictures()
    push(model, [(x, y)])
    before, kept = copy.deepcopy(model.state_dict()), set(model.pictures)
    with pytest.raises(ValueError, match="every class must have a picture for the push, got none of class 1, 2"):
        push(model, [(x, torch.zeros_like(y))])
    with pytest.raises(ValueError, match="every class must have a picture for the push, got none of class 0, 1, 2"):
        push(model, [])
    with pytest.raises(ValueError, match="pictures must all be of 6×8, got 6×7"):
        push(model, [(x, y), (x[..., 1:], y)])
    with pytest.raises(ValueError, match="must not shuffle: the number of a picture has to tell which it is"):
        push(model, DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(model.pictures) == kept
    push(model, DataLoader(TensorDataset(x, y), batch_size=4))
    assert all(torch.allclose(value, before[name]) for name, value in model.state_dict().items())


def test_heads_take_turns_and_prototypes_keep_their_length() -> None:
    model = small()
    x, y = pictures()
    rule = PartRule(model, torch.optim.Adam(model.parameters(), lr=0.01))
    push(model, [(x, y)])
    for turn in ("trivial", "support", "trivial"):
        other = model.head("support" if turn == "trivial" else "trivial")
        before = copy.deepcopy(other.state_dict())
        mine = model.head(turn).add_on[0].weight.clone()
        loss = rule.step(Batch(x, y))["loss"]
        assert torch.isfinite(torch.as_tensor(loss))
        assert not torch.equal(model.head(turn).add_on[0].weight, mine)
        for name in ("add_on.0.weight", "last_layer.weight"):
            assert torch.equal(other.state_dict()[name], before[name])
        for head in (other, model.head(turn)):
            torch.testing.assert_close(head.prototypes.norm(dim=1), torch.ones(12, dtype=torch.float64))
    assert model.sources() == []
    assert model.explain(x[:1]).parts[0].source is None


def test_last_layers_alone_leave_prototypes_where_they_are() -> None:
    """Also the running statistics of the backbone, without which features would move off the prototypes."""
    model = small()
    x, y = pictures()
    push(model, [(x, y)])
    before = copy.deepcopy(model.state_dict())
    model.train()
    rule = PartRule(model, torch.optim.Adam([model.head(name).last_layer.weight for name in model.heads]))
    for _ in range(2):
        rule.step(Batch(x, y))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"heads.trivial.last_layer.weight", "heads.support.last_layer.weight"}


def test_published_schedules() -> None:
    full, cropped = Schedule(), Schedule.cropped()
    assert [epoch for epoch in range(120) if full.pushes_after(epoch)] == [100, 110, 119]
    assert [epoch for epoch in range(30) if cropped.pushes_after(epoch)] == [20, 29]
    assert (full.warm_epochs, cropped.warm_epochs) == (10, 5)
    for schedule in (full, cropped):
        assert (schedule.lr_backbone, schedule.lr_heads, schedule.lr_last) == (1e-4, 3e-3, 1e-4)
        assert (schedule.decay, schedule.last_epochs) == (0.2, 10)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        Schedule(epochs=0)
    with pytest.raises(ValueError, match="last_epochs must be at least 0, got -1"):
        Schedule(last_epochs=-1)
    with pytest.raises(ValueError, match="lr_last must be positive, got 0"):
        Schedule(lr_last=0)


@pytest.mark.parametrize("kind", ["st", "one head"])
def test_digits_by_stages(kind: str) -> None:
    data = load("digits", train=400)
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    backbone = nn.Sequential(
        first, nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU()
    )
    head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 16, 10))
    fit(nn.Sequential(backbone, head), data, Budget(epochs=3), settings=Settings(lr=0.003))
    one_head = ProtoPNet(backbone, 10, 4, 16, "cosine")
    model = STProtoPNet(backbone, 10, 2, 16, upsample=1) if kind == "st" else one_head
    stages: list[tuple[str, int]] = []
    standing = backbone[1].weight.detach().clone()
    seen: dict[str, Tensor] = {}
    rates: list[bool] = []

    def observe(stage: str, epoch: int) -> None:
        stages.append((stage, epoch))
        if stage == "warm":
            assert torch.equal(backbone[1].weight, standing)
        if stage == "push":
            seen.update({name: model.head(name).prototypes.detach().clone() for name in model.heads})
        rates.append(all(p.requires_grad for p in model.parameters()))

    schedule = Schedule(6, 2, 3, 3, 2, lr_backbone=3e-3, lr_last=1e-3, decay_at=(5,))
    random = torch.get_rng_state()
    records = train_stages(model, data, schedule, batch_size=20, observer=observe)
    assert [record["epoch"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert torch.equal(torch.get_rng_state(), random)
    assert stages == [
        ("warm", 0),
        ("warm", 1),
        ("joint", 2),
        ("joint", 3),
        ("push", 3),
        ("last layers", 3),
        ("joint", 4),
        ("joint", 5),
        ("push", 5),
        ("last layers", 5),
    ]
    assert all(rates)
    assert not torch.equal(backbone[1].weight, standing)
    for name, prototypes in seen.items():
        assert torch.equal(model.head(name).prototypes, prototypes)
        assert torch.equal(data.train.targets[model.head(name).source], model.head(name).classes)
    assert evaluate(model.classifier, data.test)["accuracy"] > 0.7
    if kind == "st":
        between = {
            name: loss_terms(model.head(name), torch.zeros(2, 10), torch.zeros(2, 20), torch.tensor([0, 1]))[
                "discrimination"
            ].item()
            for name in model.heads
        }
        assert between["support"] > between["trivial"]


def test_augmentation_is_used_in_training_and_not_in_the_push() -> None:
    model = small()
    x, y = pictures()
    calls: list[int] = []

    def augment(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.flip(3)

    rule = PartRule(model, torch.optim.Adam(model.parameters()), augment=augment)
    rule.step(Batch(x, y))
    assert calls == [20]
    push(model, [(x, y)])
    assert calls == [20]
    assert torch.equal(model.pictures[model.sources()[0]], x[model.sources()[0]])
