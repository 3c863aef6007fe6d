"""Training of networks of prototypical parts (arXiv:2301.04011, arXiv:1806.10574): stages, push, pruning.

Public: :func:`train_stages` with its :class:`Schedule`, :func:`push`, :func:`prune`, :func:`merge_duplicates`, and
:class:`PartRule` for loops of one's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, RandomSampler

from netwright import checks
from netwright.data.splits import Batch, Splits
from netwright.explain._part_head import PrototypePartHead
from netwright.explain._part_search import PatchSearch
from netwright.explain.protopnet import PartNetwork, PartWeights, part_loss
from netwright.surgery import eval_mode
from netwright.training import Budget, Settings, fit
from netwright.training.fit import Record

Loader = Iterable[tuple[Tensor, Tensor]]
StageObserver = Callable[[str, int], None]


@dataclass(frozen=True)
class Schedule:
    """The stages of training; the defaults are those of ST-ProtoPNet for full pictures of CUB with ResNet-34.

    In the warm epochs the backbone stands still. After the last epoch, and before that at every ``push_every``-th from
    ``push_start`` on, prototypes are pushed, and then the last layers alone are trained.

    Attributes:
        epochs: Of the warm and the joint stage together.
        warm_epochs: Of the warm stage.
        push_start: First epoch, counted from 0, after which there may be a push.
        push_every: After epochs that this divides.
        last_epochs: Passes for the last layers after each push.
        lr_backbone: Learning rate of Adam; the paper has 1e-5 for ResNet-50.
        lr_heads: Of add-on layers and prototypes.
        lr_last: Of the last layers.
        weight_decay: L2 penalty of the backbone and the add-on layers.
        decay_at: Epochs before which the learning rates of the joint stage are multiplied by ``decay``.
        decay: That factor.
    """

    epochs: int = 120
    warm_epochs: int = 10
    push_start: int = 100
    push_every: int = 10
    last_epochs: int = 10
    lr_backbone: float = 1e-4
    lr_heads: float = 3e-3
    lr_last: float = 1e-4
    weight_decay: float = 1e-4
    decay_at: tuple[int, ...] = (29, 49, 69, 89, 109)
    decay: float = 0.2

    def __post_init__(self) -> None:
        checks.at_least("epochs", self.epochs, 1)
        checks.at_least("push_every", self.push_every, 1)
        for name in ("warm_epochs", "last_epochs", "push_start", "weight_decay"):
            checks.at_least(name, getattr(self, name), 0)
        for name in ("lr_backbone", "lr_heads", "lr_last", "decay"):
            checks.positive(name, getattr(self, name))

    @classmethod
    def cropped(cls) -> Self:
        """The paper's for cropped pictures, with ``similarity="projection"`` and ``upsample=1``."""
        return cls(epochs=30, warm_epochs=5, push_start=20, weight_decay=5e-4, decay_at=(7, 9, 11, 13))

    def pushes_after(self, epoch: int) -> bool:
        """Whether there is a push after this epoch."""
        return epoch == self.epochs - 1 or (epoch >= self.push_start and epoch % self.push_every == 0)


class PartRule:
    """A rule for :func:`netwright.training.fit`: the heads of a network take turns, one batch each.

    An update computes the backbone and one head. Prototypes are scaled to length 1 afterwards, and no longer count as
    patches of pictures if they or what is before them can have changed. Where only last layers are trained, the
    network is kept in eval mode, since running statistics of a backbone would move its features off the prototypes.

    ``fit`` has to be given ``model.classifier``, whose outputs it can evaluate.

    Args:
        model: The network, on its device.
        optimizer: Over some of its parameters.
        weights: Of the terms of the loss of each head; those of the network's paper if not given.
        augment: Changes the inputs of every batch, as :func:`netwright.data.affine.random_affine`.

    Example:
        >>> from netwright.data import load
        >>> from netwright.explain.protopnet import STProtoPNet
        >>> splits = load("digits", train=200)
        >>> model = STProtoPNet(nn.Conv2d(1, 8, 3), num_classes=10, per_class=1, dim=8, upsample=1)
        >>> rule = PartRule(model, Adam(model.parameters(), lr=0.003))
        >>> fit(model.classifier, splits, Budget(epochs=1), rule).steps
        4
    """

    def __init__(
        self,
        model: PartNetwork,
        optimizer: Optimizer,
        *,
        weights: Mapping[str, PartWeights] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.weights = weights or model.default_weights
        self.augment = augment
        self.steps = 0
        last = {model.head(name).last_layer.weight for name in model.heads}
        self.only_last = all(p in last for group in optimizer.param_groups for p in group["params"])

    def step(self, batch: Batch) -> dict[str, Tensor | float]:
        """One update with the loss of one head."""
        if self.only_last and self.model.training:
            self.model.eval()
        name = list(self.model.heads)[self.steps % len(self.model.heads)]
        head = self.model.head(name)
        x = batch.inputs if self.augment is None else self.augment(batch.inputs)
        out = head(self.model.backbone(x))
        loss = part_loss(head, out.logits, out.similarities, batch.targets, self.weights[name])
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        if not self.only_last:
            for head in _heads(self.model):
                head.normalise_prototypes_()
                head.forget_sources_()
        self.steps += 1
        return {"loss": loss.detach()}


def train_stages(
    model: PartNetwork,
    splits: Splits,
    schedule: Schedule | None = None,
    *,
    batch_size: int = 80,
    weights: Mapping[str, PartWeights] | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    device: str = "cpu",
    observer: StageObserver | None = None,
) -> list[Record]:
    """Train a network of prototypical parts in place: warm, joint, push, last layers.

    The paper's code trains on after its last push and keeps the best of the pushed networks; here the last epoch ends
    with a push, so that the prototypes of the result are patches of training pictures.

    Args:
        model: The network, with a backbone that was trained before, as the paper's.
        splits: The data; only ``train`` is learned from.
        schedule: How long and with which learning rates; the paper's for full pictures if not given.
        batch_size: Samples an update.
        weights: Of the terms of the loss of each head; those of the network's paper if not given.
        augment: Changes the inputs of every batch, as :func:`netwright.data.affine.random_affine`; not for the push.
        seed: Decides the order of the data and nothing else.
        device: Where to train.
        observer: Called with the name of a stage (``"warm"``, ``"joint"``, ``"push"``, ``"last layers"``) and the epoch
            after every epoch of the first two, every push and every training of the last layers.

    Returns:
        For every epoch of the warm and the joint stage, the record that :func:`netwright.training.fit` made of it.

    Raises:
        InputError: If a class has no picture, see :func:`push`.
    """
    schedule = schedule or Schedule()
    model.to(device)
    settings = Settings(batch_size=batch_size)
    add_on = [p for head in _heads(model) for p in head.add_on.parameters()]
    prototypes: list[Tensor] = [head.prototypes for head in _heads(model)]
    last: list[Tensor] = [head.last_layer.weight for head in _heads(model)]
    warm_groups = [
        {"params": add_on, "lr": schedule.lr_heads, "weight_decay": schedule.weight_decay},
        {"params": prototypes, "lr": schedule.lr_heads},
    ]
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    joint_groups = [dict(group) for group in warm_groups]
    if backbone:
        joint_groups.append({"params": backbone, "lr": schedule.lr_backbone, "weight_decay": schedule.weight_decay})
    warm, joint, final = (
        PartRule(model, Adam(groups), weights=weights, augment=augment)
        for groups in (warm_groups, joint_groups, [{"params": last, "lr": schedule.lr_last}])
    )

    def train(rule: PartRule, epochs: int, order: int) -> Record:
        budget = Budget(epochs=epochs)
        with _learning(model, rule.optimizer):
            history = fit(model.classifier, splits, budget, rule, settings=settings, seed=order, device=device)
        return history.records[-1]

    def observe(stage: str, epoch: int) -> None:
        if observer is not None:
            observer(stage, epoch)

    records: list[Record] = []
    for epoch in range(schedule.epochs):
        is_warm = epoch < schedule.warm_epochs
        if not is_warm and epoch in schedule.decay_at:
            for group in joint.optimizer.param_groups:
                group["lr"] *= schedule.decay
        record = train(warm if is_warm else joint, 1, 1000 * seed + 2 * epoch)
        records.append(record | {"epoch": epoch + 1.0})
        observe("warm" if is_warm else "joint", epoch)
        if schedule.pushes_after(epoch):
            push(model, splits.train.batches(1024))
            observe("push", epoch)
            if schedule.last_epochs:
                train(final, schedule.last_epochs, 1000 * seed + 2 * epoch + 1)
                observe("last layers", epoch)
    return records


@torch.no_grad()
def push(model: PartNetwork, loader: Loader, *, keep_pictures: bool = True) -> None:
    """Replace every prototype by the nearest patch of a training picture of its own class, and remember where it is.

    Nearest is what has the largest activation. ``source``, ``source_box`` and ``source_region`` of every head then say
    which picture and which place of it; training anything but the last layers makes them void. One batch is held at a
    time. The network stays in the mode it is in.

    Args:
        model: The network.
        loader: Batches of pictures and classes, in an order that is always the same and without augmentation: pictures
            are numbered as they come.
        keep_pictures: Keep the pictures that prototypes are from as ``model.pictures``, on the CPU.

    Raises:
        InputError: If a class has no picture, pictures differ in size, or the loader shuffles. The network is left as
            it was.
    """
    if isinstance(loader, DataLoader) and isinstance(loader.sampler, RandomSampler):
        raise checks.InputError(
            "the loader of a push must not shuffle: the number of a picture has to tell which it is; got shuffle=True"
        )
    searches = [PatchSearch(head, keep_pictures) for head in _heads(model)]
    device = searches[0].head.prototypes.device
    size: tuple[int, ...] | None = None
    with eval_mode(model):
        for x, y in loader:
            checks.dimensions("pictures", x, "(batch, channels, height, width)")
            size = size or tuple(x.shape[2:])
            if tuple(x.shape[2:]) != size:
                checks.fail(f"pictures must all be of {size[0]}×{size[1]}", f"{x.shape[2]}×{x.shape[3]}")
            maps = model.backbone(x.to(device))
            for search in searches:
                search.update(maps, y.to(device), x)
    for search in searches:
        search.check()
    assert size is not None
    pictures: dict[int, Tensor] = {}
    for search in searches:
        search.apply((size[0], size[1]))
        pictures |= search.pictures
    model.pictures = pictures


@torch.no_grad()
def prune(model: PartNetwork, loader: Loader, *, neighbours: int = 6, own: int = 3) -> dict[str, int]:
    """Remove prototypes that look like parts of pictures of other classes; every class keeps at least its best one.

    A prototype stays if at least ``own`` of the ``neighbours`` pictures that are most similar to it are of its class.
    Optimisers have to be made anew; the last layers should then be trained.

    Args:
        model: The network, after a push.
        loader: Batches of pictures and classes.
        neighbours: How many pictures are looked at.
        own: How many of these must be of the prototype's class.

    Returns:
        How many prototypes were removed from each head.

    Raises:
        InputError: If there is no picture, or ``own`` is not between 1 and ``neighbours``.

    Source:
        Chen et al. 2018, arXiv:1806.10574, supplement S8.
    """
    checks.between("own", own, 1, neighbours)
    best: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    with eval_mode(model):
        for x, y in loader:
            device = next(iter(_heads(model))).prototypes.device
            maps = model.backbone(x.to(device))
            for name in model.heads:
                similar = model.head(name)(maps).similarities.T
                classes = y.to(device).expand(len(similar), -1)
                if name in best:
                    similar, classes = torch.cat([best[name], similar], 1), torch.cat([labels[name], classes], 1)
                best[name], index = similar.topk(min(neighbours, similar.shape[1]), dim=1)
                labels[name] = classes.gather(1, index)
    checks.at_least("number of pictures", len(best), 1)
    removed = {}
    for name in model.heads:
        head = model.head(name)
        votes = (labels[name] == head.classes[:, None]).sum(1)
        of_class = torch.where(head.members >= 0, votes[head.members.clamp(min=0)], -1)
        keep = votes >= own
        keep[head.members.gather(1, of_class.argmax(1, keepdim=True))] = True
        removed[name] = int((~keep).sum())
        if removed[name]:
            head.keep_(keep.nonzero().flatten())
    return removed


@torch.no_grad()
def merge_duplicates(model: PartNetwork) -> dict[str, int]:
    """Make one prototype of those of a class that are the same, as two that were pushed to one patch: no logit changes.

    Returns:
        How many prototypes were removed from each head.
    """
    removed = {}
    for name in model.heads:
        head = model.head(name)
        rows = torch.cat([head.classes[:, None].to(head.prototypes), head.prototypes], dim=1)
        group = torch.unique(rows, dim=0, return_inverse=True)[1]
        numbers = torch.arange(len(rows), device=rows.device)
        first = torch.full_like(numbers, len(rows)).scatter_reduce(0, group, numbers, "amin")[group]
        keep = (first == numbers).nonzero().flatten()
        removed[name] = len(first) - len(keep)
        if removed[name]:
            weight = torch.zeros_like(head.last_layer.weight).index_add_(1, first, head.last_layer.weight)
            head.last_layer.weight.copy_(weight)
            head.keep_(keep)
    return removed


def _heads(model: PartNetwork) -> list[PrototypePartHead]:
    return [model.head(name) for name in model.heads]


@contextmanager
def _learning(model: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """Take gradients for the parameters of an optimiser alone: the others cost nothing."""
    learned = {p for group in optimizer.param_groups for p in group["params"]}
    before = {p: p.requires_grad for p in model.parameters()}
    for parameter in before:
        parameter.requires_grad_(parameter in learned)
    try:
        yield
    finally:
        for parameter, required in before.items():
            parameter.requires_grad_(required)


__all__ = ["PartRule", "Schedule", "merge_duplicates", "prune", "push", "train_stages"]
