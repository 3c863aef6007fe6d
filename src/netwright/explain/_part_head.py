"""The head of ProtoPNet (arXiv:1806.10574) and ST-ProtoPNet (arXiv:2301.04011): maps to prototypes to logits."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.explain._prototypes import class_members, products, squared_distances

Similarity = Literal["cosine", "projection", "l2"]

_ACTIVATIONS: dict[str, tuple[type[nn.Module], ...]] = {
    "cosine": (),
    "projection": (nn.Tanh, nn.Tanh),
    "l2": (nn.ReLU, nn.Sigmoid),
}
_LOG_EPSILON = 1e-4  # ProtoPNet's: the largest activation of an L2 prototype is log(1 / 1e-4)


class HeadOutput(NamedTuple):
    """What :class:`PrototypePartHead` gives.

    Attributes:
        logits: ``(batch, classes)``.
        similarities: What cluster and separation are about ``(batch, prototypes)``: the largest over all places of the
            cosine, or of minus the squared distance for ``"l2"``.
        activations: What the last layer sees ``(batch, prototypes)``: the largest value of each map.
        maps: How much every place looks like every prototype ``(batch, prototypes, height, width)``.
    """

    logits: Tensor
    similarities: Tensor
    activations: Tensor
    maps: Tensor


class PrototypePartHead(nn.Module):
    r"""Logits from how much some place of a map looks like each of some prototypes of every class.

    .. math:: \operatorname{logits}_c = \sum_j W_{cj} \max_{h, w} s(f_{hw}, p_j)

    with the features f of two 1×1 convolutions, and s the cosine, at least 0 (``"cosine"``), the product with the
    prototype of length 1 (``"projection"``; tanh after each convolution) or :math:`\log\frac{d + 1}{d + 10^{-4}}` of
    the squared distance d (``"l2"`` as in ProtoPNet; ReLU and a sigmoid after the convolutions).

    Prototypes start uniform on (0, 1), convolutions by Kaiming's rule, W with 1 for the own class and -0.5 for others.
    Comparison and last layer are computed in the precision of the parameters, also under autocast.

    Args:
        in_channels: Channels of the maps.
        num_classes: Number of classes, at least 2.
        per_class: Prototypes of each class.
        dim: Length of the prototypes.
        similarity: ``"cosine"``, ``"projection"`` or ``"l2"``.
        upsample: Factor by which the maps are made larger first, by bilinear interpolation.
        num_prototypes: Instead of ``per_class``: the number of all prototypes.
        device: Where the parameters are.
        dtype: Their type.

    Attributes:
        prototypes: ``(prototypes, dim)``, those of class 0 first.
        classes: The class of each prototype ``(prototypes,)``.
        source: The number of the picture each was pushed to ``(prototypes,)``; -1 where it was not.
        source_box: The place there, in pixels: left, top, right, bottom, without the ends ``(prototypes, 4)``.
        source_region: The box around what looks most like it there, in the same form.

    Raises:
        InputError: If a size is too small, prototypes cannot be shared equally among classes or there is no such
            similarity; in a forward pass, if the maps are not ``(batch, in_channels, height, width)``.

    Source:
        Wang, Liu, Chen, Liu, Tian, McCarthy, Frazer, Carneiro, "Learning Support and Trivial Prototypes for
        Interpretable Image Classification", ICCV 2023, arXiv:2301.04011, section 3 and supplement.

    Example:
        >>> head = PrototypePartHead(32, num_classes=10, per_class=3, dim=16)
        >>> out = head(torch.randn(2, 32, 7, 7))
        >>> out.logits.shape, out.maps.shape
        (torch.Size([2, 10]), torch.Size([2, 30, 7, 7]))
    """

    classes: Tensor
    members: Tensor
    source: Tensor
    source_box: Tensor
    source_region: Tensor

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        per_class: int = 5,
        dim: int = 64,
        similarity: Similarity = "cosine",
        *,
        upsample: int = 1,
        num_prototypes: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.at_least("num_classes", num_classes, 2)
        if num_prototypes is not None:
            checks.divisible("num_prototypes", num_prototypes, "num_classes", num_classes)
            per_class = num_prototypes // num_classes
        for name, value in {
            "in_channels": in_channels,
            "per_class": per_class,
            "dim": dim,
            "upsample": upsample,
        }.items():
            checks.at_least(name, value, 1)
        checks.known("similarity", similarity, get_args(Similarity))
        self.num_classes = num_classes
        self.similarity = similarity
        self.upsample = upsample
        self.add_on = nn.Sequential()
        for number, width in enumerate((in_channels, dim)):
            conv = nn.Conv2d(width, dim, 1, device=device, dtype=dtype)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_on.append(conv)
            self.add_on.extend(kind() for kind in _ACTIVATIONS[similarity][number : number + 1])
        self.prototypes = nn.Parameter(torch.rand(num_classes * per_class, dim, device=device, dtype=dtype))
        self.last_layer = nn.Linear(num_classes * per_class, num_classes, bias=False, device=device, dtype=dtype)
        classes = torch.arange(num_classes, device=device).repeat_interleave(per_class)
        self.register_buffer("classes", classes)
        self.register_buffer("members", torch.arange(len(classes), device=device).view(-1, per_class), persistent=False)
        for name, shape in {"source": (), "source_box": (4,), "source_region": (4,)}.items():
            self.register_buffer(name, torch.full((len(classes), *shape), -1, device=device))
        with torch.no_grad():
            own = classes == torch.arange(num_classes, device=device)[:, None]
            self.last_layer.weight.copy_(1.5 * own - 0.5)

    def features(self, maps: Tensor) -> Tensor:
        """Maps ``(batch, in_channels, *)`` to the features ``(batch, dim, height, width)`` of their places."""
        checks.dimensions("maps of the backbone", maps, "(batch, channels, height, width)")
        expected = self.add_on[0].in_channels
        if maps.shape[1] != expected:
            checks.fail(f"maps of the backbone must have in_channels = {expected} channels", maps.shape[1])
        # what has no activation gives the same after interpolation as before it, at a fraction of the cost
        if self.similarity == "cosine":
            return self._larger(self.add_on(maps))
        features: Tensor = self.add_on(self._larger(maps))
        return features

    def compare(self, features: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Activations and similarities of features ``(batch, dim, *places)``.

        Args:
            features: What :meth:`features` gives.
            prototypes: ``(prototypes, dim)``, or those of every sample ``(batch, prototypes, dim)``.

        Returns:
            Activations and similarities as in :class:`HeadOutput`, at every place ``(batch, prototypes, *places)``.
        """
        if self.similarity == "l2":
            distances = squared_distances(features, prototypes)
            return ((distances + 1) / (distances + _LOG_EPSILON)).log(), -distances
        projections = products(features, functional.normalize(prototypes, dim=-1))
        # many times faster than norm() over channels, and without a copy of the features
        cosines = projections * features.square().sum(1, keepdim=True).clamp(min=1e-24).rsqrt()
        if self.similarity == "projection":
            return projections, cosines
        cosines = cosines.relu()
        return cosines, cosines

    def forward(self, input: Tensor) -> HeadOutput:
        """Maps of a backbone ``(batch, in_channels, *)`` to all that :class:`HeadOutput` holds."""
        features = self.features(input)
        with nullcontext() if input.is_meta else torch.autocast(input.device.type, enabled=False):
            maps, similar = self.compare(features.to(self.prototypes.dtype), self.prototypes)
            activations = maps.flatten(2).amax(2)
            similarities = activations if similar is maps else similar.flatten(2).amax(2)
            return HeadOutput(self.last_layer(activations), similarities, activations, maps)

    @torch.no_grad()
    def normalise_prototypes_(self) -> None:
        """Scale every prototype to length 1, as after each update; those of ``"l2"`` are left as they are."""
        if self.similarity != "l2":
            self.prototypes.copy_(functional.normalize(self.prototypes, dim=1))

    @torch.no_grad()
    def keep_(self, numbers: Tensor) -> None:
        """Keep these prototypes alone, in the order of ``numbers``; optimisers have to be made anew.

        Raises:
            InputError: If a class would have none.
        """
        missing = sorted(set(range(self.num_classes)) - set(self.classes[numbers].tolist()))
        if missing:
            checks.fail("every class must keep a prototype", f"none of class {missing[0]}")
        self._set(self.prototypes[numbers], self.last_layer.weight[:, numbers])
        for name in ("classes", "source", "source_box", "source_region"):
            setattr(self, name, getattr(self, name)[numbers])
        self.members = class_members(self.classes)

    def forget_sources_(self) -> None:
        """Say that the prototypes are no patches of pictures any more."""
        for buffer in (self.source, self.source_box, self.source_region):
            buffer.fill_(-1)

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, num_prototypes={len(self.prototypes)}, similarity={self.similarity!r}"

    def _larger(self, maps: Tensor) -> Tensor:
        if self.upsample == 1:
            return maps
        return functional.interpolate(maps, scale_factor=float(self.upsample), mode="bilinear")

    def _set(self, prototypes: Tensor, weight: Tensor) -> None:
        self.prototypes = nn.Parameter(prototypes.clone(), self.prototypes.requires_grad)
        self.last_layer.weight = nn.Parameter(weight.clone(), self.last_layer.weight.requires_grad)
        self.last_layer.in_features = len(prototypes)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Make room for another number of prototypes first: a network that was pruned is loaded like any other."""
        classes = state_dict.get(f"{prefix}classes")
        if classes is not None and len(classes) != len(self.classes):
            number = len(classes)
            self._set(
                self.prototypes.new_empty(number, self.prototypes.shape[1]),
                self.last_layer.weight.new_empty(self.num_classes, number),
            )
            for name in ("classes", "source", "source_box", "source_region"):
                old = getattr(self, name)
                setattr(self, name, old.new_empty(number, *old.shape[1:]))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if not self.classes.is_meta:
            self.members = class_members(self.classes)


__all__ = ["HeadOutput", "PrototypePartHead", "Similarity"]
