"""ST-ProtoPNet (Wang et al. 2023, arXiv:2301.04011): parts of a picture look like parts of pictures of training.

Public: :class:`STProtoPNet`, its head :class:`PrototypePartHead`, :func:`st_loss`, and the single-headed
:class:`ProtoPNet` (Chen et al. 2018, arXiv:1806.10574). Training and the push onto patches of training pictures are in
:mod:`netwright.explain.protopnet_training`, pictures of explanations in :mod:`netwright.explain.protopnet_figure`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.analysis.class_moments import check_labels
from netwright.explain._part_explanations import Explanation, Part, explain_parts
from netwright.explain._part_head import HeadOutput, PrototypePartHead, Similarity
from netwright.surgery import eval_mode

Branch = Literal["trivial", "support"]


class STOutput(NamedTuple):
    """What :class:`STProtoPNet` gives; of pairs the first is of the trivial head, the second of the support head.

    Attributes:
        logits_trivial: ``(batch, classes)``.
        logits_support: ``(batch, classes)``.
        logits: Their sum, which decides.
        similarities: Two of ``(batch, prototypes)``, see :class:`HeadOutput`.
        maps: Two of ``(batch, prototypes, height, width)``.
    """

    logits_trivial: Tensor
    logits_support: Tensor
    logits: Tensor
    similarities: tuple[Tensor, Tensor]
    maps: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class PartWeights:
    """Weights of the :func:`loss_terms` of a head, none of them negative."""

    cross_entropy: float = 1.0
    cluster: float = 0.8
    separation: float = 0.08
    orthogonality: float = 0.0
    l1: float = 1e-4
    discrimination: float = 0.0
    closeness: float = 0.0

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            checks.at_least(f"weight of {name}", weight, 0)


class PartNetwork(nn.Module):
    """A backbone, and heads of prototypes whose logits add up: what :class:`STProtoPNet` and :class:`ProtoPNet` share.

    Args:
        backbone: Pictures to maps ``(batch, channels, height, width)``.
        heads: The heads by their names.

    Attributes:
        pictures: The pictures of training that prototypes come from, by their number, as the push leaves them. They are
            not in the state dict; fill in those of :meth:`sources` after loading to see them in explanations.
    """

    default_weights: ClassVar[Mapping[str, PartWeights]] = {}

    def __init__(self, backbone: nn.Module, heads: Mapping[str, PrototypePartHead]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)
        self.pictures: dict[int, Tensor] = {}

    @property
    def classifier(self) -> nn.Sequential:
        """Pictures to logits alone: the same modules as a network like any other."""
        return nn.Sequential(self, TakeLogits())

    def head(self, name: str) -> PrototypePartHead:
        """One of the heads."""
        checks.known("head", name, self.heads)
        head: PrototypePartHead = self.heads[name]  # type: ignore[assignment]
        return head

    def sources(self) -> list[int]:
        """The numbers of the pictures of training that prototypes come from."""
        numbers = torch.cat([self.head(name).source for name in self.heads])
        return sorted(set(numbers[numbers >= 0].tolist()))

    @torch.no_grad()
    def explain(self, x: Tensor, label: int | None = None, *, top: int = 10) -> Explanation:
        """Which parts of a picture speak for a class, and which parts of pictures of training they look like.

        The logit of the class is the sum of the contributions of all prototypes of all heads: activation × weight of
        the last layer. The network is left as it was.

        Args:
            x: One picture, as a batch of 1.
            label: The class; the predicted one if not given.
            top: How many parts to give, those that contribute most first; the others are summed up as ``rest``.

        Raises:
            InputError: If there is more than one picture, or no such class.
        """
        checks.dimensions("x", x, "(1, channels, height, width)")
        checks.size("x", x, 0, 1)
        x = x.to(next(iter(self.heads.parameters())).device)
        with eval_mode(self):
            maps = self.backbone(x)
            outputs = {name: self.head(name)(maps) for name in self.heads}
        heads = {name: self.head(name) for name in self.heads}
        return explain_parts(heads, outputs, x[0], label, top, self.pictures)


class ProtoPNet(PartNetwork):
    r"""One head of prototypes on any backbone: "this looks like that".

    Args:
        backbone: Pictures to maps ``(batch, channels, height, width)``.
        num_classes: Number of classes.
        per_class: Prototypes of each class.
        dim: Length of the prototypes.
        similarity: ``"l2"`` is the paper's own.
        upsample: Factor by which the maps are made larger.
        in_channels: Channels of the maps; if not given, those of the last convolution or batch normalisation.
        device: Where the parameters of the head are; the backbone stays where it is.
        dtype: Their type.

    Raises:
        InputError: See :class:`PrototypePartHead`; also if the channels of the backbone cannot be told.

    Source:
        Chen, Li, Tao, Barnett, Su, Rudin, "This Looks Like That: Deep Learning for Interpretable Image Recognition",
        NeurIPS 2019, arXiv:1806.10574.

    Example:
        >>> model = ProtoPNet(nn.Conv2d(3, 16, 3, stride=2), num_classes=4, per_class=2, dim=8)
        >>> model(torch.randn(2, 3, 17, 17)).logits.shape
        torch.Size([2, 4])
    """

    default_weights: ClassVar[Mapping[str, PartWeights]] = {"prototypes": PartWeights()}

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        per_class: int = 10,
        dim: int = 128,
        similarity: Similarity = "l2",
        upsample: int = 1,
        *,
        in_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = _channels_of(backbone) if in_channels is None else in_channels
        head = PrototypePartHead(
            channels, num_classes, per_class, dim, similarity, upsample=upsample, device=device, dtype=dtype
        )
        super().__init__(backbone, {"prototypes": head})

    def forward(self, input: Tensor) -> HeadOutput:
        out: HeadOutput = self.head("prototypes")(self.backbone(input))
        return out


class STProtoPNet(PartNetwork):
    r"""Two heads of prototypes on any backbone: trivial ones far from other classes, support ones near the border.

    .. math:: \operatorname{logits} = W^t \max_{h, w} s(f^t_{hw}, P^t) + W^s \max_{h, w} s(f^s_{hw}, P^s)

    Each head has its own add-on convolutions, prototypes and last layer without bias; :func:`st_loss` pulls the two
    kinds of prototypes apart.

    Args:
        backbone: Pictures to maps ``(batch, channels, height, width)``.
        num_classes: Number of classes.
        per_class: Prototypes of each class in each head; the paper has 5.
        dim: Length of the prototypes.
        similarity: ``"cosine"`` (full pictures), ``"projection"`` (cropped ones, with ``upsample=1``) or ``"l2"``.
        upsample: Factor by which the maps are made larger, 7×7 to 14×14; the paper leaves those of VGG as they are.
        in_channels: Channels of the maps; if not given, those of the last convolution or batch normalisation.
        device: Where the parameters of the heads are; the backbone stays where it is.
        dtype: Their type.

    Raises:
        InputError: See :class:`PrototypePartHead`; also if the channels of the backbone cannot be told.

    Source:
        Wang, Liu, Chen, Liu, Tian, McCarthy, Frazer, Carneiro, "Learning Support and Trivial Prototypes for
        Interpretable Image Classification", ICCV 2023, arXiv:2301.04011.

    Example:
        >>> from netwright.explain.protopnet_training import push
        >>> model = STProtoPNet(nn.Conv2d(3, 16, 3, stride=2), num_classes=4, per_class=2, dim=8)
        >>> x, y = torch.randn(8, 3, 17, 17), torch.arange(8) % 4
        >>> out = model(x)
        >>> out.logits.shape, out.maps[0].shape
        (torch.Size([8, 4]), torch.Size([8, 8, 16, 16]))
        >>> st_loss(model, out, y, "trivial").backward()
        >>> push(model, [(x, y)])
        >>> found = model.explain(x[:1], top=3)
        >>> [part.source is not None for part in found.parts]
        [True, True, True]
    """

    default_weights: ClassVar[Mapping[str, PartWeights]] = {
        "trivial": PartWeights(orthogonality=1e-3, discrimination=1.0),
        "support": PartWeights(separation=0.48, orthogonality=1e-3, closeness=1.0),
    }

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        per_class: int = 5,
        dim: int = 64,
        similarity: Similarity = "cosine",
        upsample: int = 2,
        *,
        in_channels: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        channels = _channels_of(backbone) if in_channels is None else in_channels
        heads = {
            branch: PrototypePartHead(
                channels, num_classes, per_class, dim, similarity, upsample=upsample, device=device, dtype=dtype
            )
            for branch in get_args(Branch)
        }
        super().__init__(backbone, heads)

    def forward(self, input: Tensor) -> STOutput:
        features = self.backbone(input)
        trivial, support = self.head("trivial")(features), self.head("support")(features)
        return STOutput(
            logits_trivial=trivial.logits,
            logits_support=support.logits,
            logits=trivial.logits + support.logits,
            similarities=(trivial.similarities, support.similarities),
            maps=(trivial.maps, support.maps),
        )


def loss_terms(head: PrototypePartHead, logits: Tensor, similarities: Tensor, y: Tensor) -> dict[str, Tensor]:
    r"""The parts of the loss of a head, by the names of :class:`PartWeights`.

    - ``cross_entropy``: of the logits of this head alone;
    - ``cluster``: minus the largest similarity to a prototype of the own class, mean over the batch;
    - ``separation``: the largest similarity to a prototype of another class, mean over the batch;
    - ``orthogonality``: :math:`\sum_c \|P_c P_c^\top - I\|_1` over the entries;
    - ``l1``: sum of the absolute weights of the last layer between prototypes and other classes;
    - ``discrimination``: mean over ordered pairs of classes of the largest product of their prototypes;
    - ``closeness``: mean over ordered pairs of classes of minus the smallest product of their prototypes.

    Products are those of the prototypes as they are, which have length 1 after every update; for ``"l2"``, where they
    do not, cosines.

    Args:
        head: The head.
        logits: What it gave ``(batch, classes)``.
        similarities: What it gave ``(batch, prototypes)``.
        y: Classes ``(batch,)``.

    Raises:
        InputError: If a label is outside of the classes.
    """
    check_labels(logits, y, head.num_classes)
    own = head.classes == y[:, None]
    wrong = head.classes != torch.arange(head.num_classes, device=head.classes.device)[:, None]
    # rows of fewer prototypes are filled up with their first one, which changes neither maximum nor minimum
    there = head.members >= 0
    members = torch.where(there, head.members, head.members[:, :1])
    prototypes = functional.normalize(head.prototypes, dim=1) if head.similarity == "l2" else head.prototypes
    by_class = prototypes[members]
    grams = by_class @ by_class.mT - torch.eye(by_class.shape[1], dtype=by_class.dtype, device=by_class.device)
    flat = by_class.flatten(0, 1)
    pairs = (flat @ flat.T).view(*members.shape, *members.shape)
    different = ~torch.eye(len(members), dtype=torch.bool, device=pairs.device)
    return {
        "cross_entropy": functional.cross_entropy(logits, y.long()),
        "cluster": -similarities.where(own, -torch.inf).amax(1).mean(),
        "separation": similarities.where(~own, -torch.inf).amax(1).mean(),
        "orthogonality": (grams.abs() * (there[:, :, None] & there[:, None])).sum(),
        "l1": (head.last_layer.weight.abs() * wrong).sum(),
        "discrimination": pairs.amax((1, 3))[different].mean(),
        "closeness": -pairs.amin((1, 3))[different].mean(),
    }


def part_loss(head: PrototypePartHead, logits: Tensor, similarities: Tensor, y: Tensor, weights: PartWeights) -> Tensor:
    """The sum of the :func:`loss_terms`, each times its weight."""
    terms = loss_terms(head, logits, similarities, y)
    total: Tensor = sum(weight * terms[name] for name, weight in vars(weights).items() if weight)
    return total


def st_loss(
    model: STProtoPNet, out: STOutput, y: Tensor, branch: Branch, coefs: Mapping[str, PartWeights] | None = None
) -> Tensor:
    """The loss of one of the two heads: the trivial one for even batches, the support one for odd batches.

    Args:
        model: The network.
        out: What it gave.
        y: Classes ``(batch,)``.
        branch: ``"trivial"`` or ``"support"``.
        coefs: Weights of the :func:`loss_terms` of either; the paper's if not given.

    Raises:
        InputError: If there is no such branch, or a label is outside of the classes.
    """
    checks.known("branch", branch, get_args(Branch))
    trivial = branch == "trivial"
    logits = out.logits_trivial if trivial else out.logits_support
    similarities = out.similarities[0 if trivial else 1]
    return part_loss(model.head(branch), logits, similarities, y, (coefs or model.default_weights)[branch])


class TakeLogits(nn.Module):
    """The ``logits`` of an output that has more."""

    def forward(self, input: HeadOutput | STOutput) -> Tensor:
        return input.logits


def _channels_of(backbone: nn.Module) -> int:
    """Channels of the last layer that says how many it has."""
    norms = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.SyncBatchNorm)
    for module in reversed(list(backbone.modules())):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return module.out_channels
        if isinstance(module, norms):
            return module.num_features
    raise checks.InputError("the backbone has no convolution or batch normalisation; give the channels as in_channels=")


__all__ = [
    "Explanation",
    "HeadOutput",
    "Part",
    "PartNetwork",
    "PartWeights",
    "ProtoPNet",
    "PrototypePartHead",
    "STOutput",
    "STProtoPNet",
    "loss_terms",
    "part_loss",
    "st_loss",
]
