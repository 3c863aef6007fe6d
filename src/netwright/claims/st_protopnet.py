"""Two kinds of prototypes: are they better than as many of one kind, and are the support ones nearer to the border?"""

import copy
from collections.abc import Iterator

import plotly.graph_objects as go
import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright.claims import Check, Claim, Measurement, Trial
from netwright.data import Splits, load
from netwright.explain.protopnet import PartNetwork, ProtoPNet, PrototypePartHead, STProtoPNet
from netwright.explain.protopnet_figure import explanation_figure
from netwright.explain.protopnet_training import Schedule, merge_duplicates, train_stages
from netwright.surgery import eval_mode
from netwright.training import Budget, Settings, evaluate, fit

CLAIM = Claim(
    slug="st-protopnet",
    title="Learning Support and Trivial Prototypes for Interpretable Image Classification",
    arxiv="2301.04011",
    year=2023,
    room="explain",
    says="Prototypes near the border of the classes and far from it classify better together than as many of one kind.",
    parts=(
        "explain.protopnet.STProtoPNet",
        "explain.protopnet.PrototypePartHead",
        "explain.protopnet.ProtoPNet",
        "explain.protopnet_training.train_stages",
        "explain.protopnet_training.push",
        "explain.protopnet_training.prune",
        "explain.protopnet_figure.explanation_figure",
    ),
    checks=(
        Check(
            "two kinds lose at most 0.2 points to as many prototypes of one kind",
            metric="accuracy",
            arm="ST-ProtoPNet",
            baseline="ProtoPNet",
            margin=-0.002,
        ),
        Check("two kinds are better", metric="accuracy", arm="ST-ProtoPNet", baseline="ProtoPNet"),
        Check(
            "support prototypes of different classes are nearer to each other than trivial ones",
            metric="largest cosine of prototypes of two classes, mean over pairs",
            arm="support prototypes",
            baseline="trivial prototypes",
            margin=0.1,
        ),
        Check(
            "after the push every prototype is a patch of a training picture",
            metric="largest distance of a prototype from its patch",
            arm="ST-ProtoPNet",
            exactly=0.0,
            tolerance=1e-6,
        ),
        Check(
            "the push costs less than 2 points",
            metric="accuracy at the push",
            arm="after the push",
            baseline="before the push",
            margin=-0.02,
        ),
    ),
    note="3,000 MNIST pictures (quick: digits of 8×8) instead of birds, cars and dogs of 224×224, and four layers of "
    "convolutions instead of VGG, ResNet and DenseNet; as there the backbone is trained with a plain head first, and "
    "all arms start from it. 3 prototypes of a class in each of two heads against 6 in one head, all of length 32, "
    "compared by the cosine on maps of twice the size. The one head has the same backbone, similarity, epochs and "
    "learning rates, and the loss of ProtoPNet (Chen et al. 2018): without the terms that pull prototypes together or "
    "apart. It learns from every batch, each of the two heads from every second. No augmentation. Cosines are those "
    "of the prototypes of the finished network, after the push. The numbers of epochs were chosen by time. In "
    "training, support prototypes do come nearer to each other, as the values before the push show; at the quick "
    "scale the patches of their own classes that they are pushed to lie further apart again. Where two kinds come out "
    "behind: each head learns from half of the batches, which counts when there are few epochs.",
)

DIM, PER_CLASS = 32, 3
COSINES = "largest cosine of prototypes of two classes, mean over pairs"


def run(trial: Trial) -> Iterator[Measurement]:
    """Both arms start from the same backbone and see the batches in the same order."""
    data = pictures(trial)
    trial.seed_everything()
    plain = trained_backbone(data, trial.pick(smoke=1, quick=4, full=3), seed=trial.seed, device=trial.device)
    yield Measurement("the backbone with a plain head", "accuracy", evaluate(plain, data.test)["accuracy"])
    schedule = trial.pick(
        smoke=Schedule(epochs=2, warm_epochs=1, push_start=2, last_epochs=1),
        quick=Schedule(epochs=5, warm_epochs=1, push_start=5, last_epochs=5, decay_at=(4,)),
        full=Schedule(epochs=8, warm_epochs=2, push_start=8, last_epochs=3, decay_at=(5, 7)),
    )
    for arm in ("ST-ProtoPNet", "ProtoPNet"):
        trial.seed_everything()
        model = with_prototypes(arm, copy.deepcopy(plain[0]), data.outputs)
        yield from train(trial, arm, model, data, schedule)
        yield Measurement(arm, "accuracy", evaluate(model.classifier, data.test)["accuracy"])
        yield Measurement(arm, "largest distance of a prototype from its patch", off_patches(model, data.train.inputs))
        for name in model.heads:
            shown = "ProtoPNet" if arm == "ProtoPNet" else f"{name} prototypes"
            yield Measurement(shown, COSINES, cosines_between(model.head(name)))
            alone = nn.Sequential(model.backbone, model.head(name), First())
            if arm != "ProtoPNet":
                yield Measurement(shown, "accuracy of one head alone", evaluate(alone, data.test)["accuracy"])
            pictures_used = len(set(model.head(name).source.tolist()))
            yield Measurement(shown, "pictures that prototypes are from", float(pictures_used))


def train(trial: Trial, arm: str, model: PartNetwork, data: Splits, schedule: Schedule) -> Iterator[Measurement]:
    """All stages, with a look at the network before and after the push."""
    looks: list[Measurement] = []

    def look(stage: str, epoch: int) -> None:
        if epoch < schedule.epochs - 1 or stage == "last layers":
            return
        when = "before the push" if stage != "push" else "after the push"
        shown = when if arm == "ST-ProtoPNet" else f"ProtoPNet, {when}"
        looks.append(Measurement(shown, "accuracy at the push", evaluate(model.classifier, data.test)["accuracy"]))
        if stage != "push":
            for name in model.heads:
                before = "ProtoPNet" if arm == "ProtoPNet" else f"{name} prototypes"
                looks.append(Measurement(f"{before}, before the push", COSINES, cosines_between(model.head(name))))

    size = trial.pick(smoke=20, quick=20, full=40)
    records = train_stages(model, data, schedule, batch_size=size, seed=trial.seed, device=trial.device, observer=look)
    for record in records:
        yield Measurement(arm, "validation accuracy by epoch", record["val_accuracy"], at=record["epoch"])
    yield from looks


class First(nn.Module):
    """The logits of a head."""

    def forward(self, input: tuple[Tensor, ...]) -> Tensor:
        return input[0]


def with_prototypes(arm: str, backbone: nn.Module, classes: int) -> PartNetwork:
    """As many prototypes in all, in two heads or in one."""
    if arm == "ST-ProtoPNet":
        return STProtoPNet(backbone, classes, PER_CLASS, DIM)
    return ProtoPNet(backbone, classes, 2 * PER_CLASS, DIM, "cosine", upsample=2)


def trained_backbone(data: Splits, epochs: int, *, seed: int, device: str) -> nn.Sequential:
    """Four convolutions, trained with a linear layer on their mean; ``[0]`` is the backbone."""
    channels, height, _ = data.input_shape
    backbone = nn.Sequential()
    # maps of MNIST are 7×7, those of the small digits 4×4
    pools = (True, False, True, False) if height > 16 else (False, False, True, False)
    for width, pool in zip((16, 32, 32, 32), pools, strict=True):
        backbone.extend([nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()])
        if pool:
            backbone.append(nn.MaxPool2d(2))
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, data.outputs)]
    plain = nn.Sequential(backbone, *head).to(device)
    fit(plain, data, Budget(epochs=epochs), settings=Settings(lr=3e-3, batch_size=40), seed=seed, device=device)
    return plain


@torch.no_grad()
def cosines_between(head: PrototypePartHead) -> float:
    """Over the ordered pairs of different classes, the mean of the largest cosine of their prototypes."""
    unit = functional.normalize(head.prototypes.double()).view(head.num_classes, -1, head.prototypes.shape[1])
    largest = torch.einsum("cid,ejd->ciej", unit, unit).amax((1, 3))
    return largest[~torch.eye(head.num_classes, dtype=torch.bool, device=unit.device)].mean().item()


@torch.no_grad()
def off_patches(model: PartNetwork, inputs: Tensor) -> float:
    """How far prototypes are from the features at the place of the picture that they are said to be from."""
    worst = 0.0
    with eval_mode(model):
        for name in model.heads:
            head = model.head(name)
            features = head.features(model.backbone(inputs[head.source.cpu()].to(head.prototypes.device)))
            columns = head.source_box[:, 0] * features.shape[3] // inputs.shape[3]
            rows = head.source_box[:, 1] * features.shape[2] // inputs.shape[2]
            numbers = torch.arange(len(rows), device=rows.device)
            patches = functional.normalize(features[numbers, :, rows, columns])
            worst = max(worst, (patches - head.prototypes).norm(dim=1).max().item())
    return worst


def pictures(trial: Trial) -> Splits:
    """MNIST, or the digits that come with scikit-learn."""
    if trial.scale == "full":
        return load("mnist-10k", train=3000, seed=trial.seed)
    return load("digits", train=trial.pick(smoke=100, quick=None, full=None), seed=trial.seed)


def draw() -> go.Figure:
    """Why a network takes a handwritten digit for what it is."""
    trial = Trial(seed=0, scale="quick")
    trial.seed_everything()
    data = pictures(trial)
    plain = trained_backbone(data, 4, seed=0, device="cpu")
    model = with_prototypes("ST-ProtoPNet", plain[0], data.outputs)
    train_stages(
        model, data, Schedule(epochs=5, warm_epochs=1, push_start=5, last_epochs=5, decay_at=(4,)), batch_size=20
    )
    merge_duplicates(model)
    return explanation_figure(model.explain(data.test.inputs[:1]), data.classes)


__all__ = ["CLAIM", "draw", "run"]
