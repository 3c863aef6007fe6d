"""Where prototypes lie in pictures, and what each of them adds to a logit."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.explain._part_head import HeadOutput, PrototypePartHead

_VALUES_AT_ONCE = 4_000_000


@dataclass(frozen=True, eq=False)
class Part:
    """One prototype's share of a prediction: this looks like that. Boxes are left, top, right, bottom without the ends.

    Attributes:
        contribution: What it adds to the logit: activation × weight.
        activation: How much the picture looks like the prototype, at the most similar place.
        weight: Of the last layer, from the prototype to the class that is explained.
        head: Name of its head.
        number: Which prototype of that head it is.
        label: The class that it belongs to.
        box: The place in the picture that is most similar to it.
        region: The box around the twentieth of the picture that is most similar to it.
        map: How similar every place is ``(height, width)``.
        source: The number of the picture of training that the prototype is a patch of; ``None`` without a push.
        source_box: Which place of that picture it is.
        source_region: The box around the twentieth of that picture that is most similar to it.
        source_picture: That picture ``(channels, height, width)``, if it was kept.
    """

    contribution: float
    activation: float
    weight: float
    head: str
    number: int
    label: int
    box: tuple[int, ...]
    region: tuple[int, ...]
    map: Tensor
    source: int | None
    source_box: tuple[int, ...] | None
    source_region: tuple[int, ...] | None
    source_picture: Tensor | None


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why a picture has the logit that it has: ``logit`` is the sum of the contributions of the parts and of ``rest``.

    Attributes:
        label: The class that is explained.
        logit: Its logit.
        logits: Those of all classes ``(classes,)``.
        parts: What contributes most, first.
        rest: What all other prototypes contribute together.
        picture: The picture ``(channels, height, width)``.
    """

    label: int
    logit: float
    logits: Tensor
    parts: tuple[Part, ...]
    rest: float
    picture: Tensor


def grid_boxes(positions: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The pixels under places of a grid: left, top, right, bottom, without the ends.

    Args:
        positions: Numbers of places, row by row, of any shape.
        grid: Height and width of the grid.
        size: Height and width of the picture.

    Returns:
        ``(*positions.shape, 4)``, int64; neighbours share a pixel where the grid does not divide the picture.

    Example:
        >>> grid_boxes(torch.tensor([0, 15]), (14, 14), (224, 224))
        tensor([[ 0,  0, 16, 16],
                [16, 16, 32, 32]])
    """
    (rows, columns), (height, width) = grid, size
    row, column = positions // columns, positions % columns
    ends = (column * width // columns, row * height // rows)
    others = (-(-(column + 1) * width // columns), -(-(row + 1) * height // rows))
    return torch.stack((*ends, *others), dim=-1)


def regions(maps: Tensor, size: tuple[int, int], quantile: float = 0.95) -> Tensor:
    """The smallest boxes around the pixels at which maps are highest, once they are as large as the picture.

    Args:
        maps: ``(batch, height, width)``.
        size: Height and width of the picture; maps are enlarged by bicubic interpolation.
        quantile: Which fraction of the pixels lies below.

    Returns:
        Left, top, right, bottom without the ends ``(batch, 4)``, int64.

    Source:
        Chen et al. 2018, arXiv:1806.10574, section 2.3.

    Example:
        >>> regions(torch.eye(16)[12].view(1, 4, 4), (8, 8))
        tensor([[0, 6, 2, 8]])
    """
    # of the pixels in order, the first that is not below the quantile, which lies between two of them
    order = math.ceil(round(quantile * (size[0] * size[1] - 1), 6)) + 1
    found = []
    for chunk in torch.split(maps, max(1, _VALUES_AT_ONCE // (size[0] * size[1]))):
        enlarged = functional.interpolate(chunk[:, None], size=size, mode="bicubic", align_corners=False)[:, 0]
        high = enlarged >= enlarged.flatten(1).kthvalue(order, dim=1).values[:, None, None]
        rows, columns = high.any(2).int(), high.any(1).int()
        starts = (columns.argmax(1), rows.argmax(1))
        ends = (size[1] - columns.flip(1).argmax(1), size[0] - rows.flip(1).argmax(1))
        found.append(torch.stack((*starts, *ends), dim=1))
    return torch.cat(found)


def explain_parts(
    heads: Mapping[str, PrototypePartHead],
    outputs: Mapping[str, HeadOutput],
    picture: Tensor,
    label: int | None,
    top: int,
    pictures: Mapping[int, Tensor],
) -> Explanation:
    """What every prototype of all heads adds to a logit.

    Args:
        heads: The heads.
        outputs: What each gave for the one picture.
        picture: ``(channels, height, width)``.
        label: The class; the predicted one if ``None``.
        top: How many parts to give.
        pictures: Pictures of training by their numbers.
    """
    checks.at_least("top", top, 1)
    logits = torch.stack([out.logits[0] for out in outputs.values()]).sum(0)
    label = int(logits.argmax()) if label is None else label
    checks.between("label", label, 0, len(logits) - 1)
    size = (picture.shape[1], picture.shape[2])
    contributions = {
        name: out.activations[0] * heads[name].last_layer.weight[label].to(out.activations)
        for name, out in outputs.items()
    }
    owner = [(name, number) for name, values in contributions.items() for number in range(len(values))]
    everything = torch.cat(list(contributions.values()))
    order = everything.argsort(descending=True, stable=True)
    chosen = [owner[index] for index in order[:top].tolist()]
    maps = torch.stack([outputs[name].maps[0, number] for name, number in chosen])
    boxes = grid_boxes(maps.flatten(1).argmax(1), (maps.shape[1], maps.shape[2]), size).tolist()
    around = regions(maps.float(), size).tolist()
    parts = []
    for (name, number), one, box, region in zip(chosen, maps, boxes, around, strict=True):
        head, source = heads[name], int(heads[name].source[number])
        pushed = source >= 0
        parts.append(
            Part(
                contribution=float(contributions[name][number]),
                activation=float(outputs[name].activations[0, number]),
                weight=float(head.last_layer.weight[label, number]),
                head=name,
                number=number,
                label=int(head.classes[number]),
                box=tuple(box),
                region=tuple(region),
                map=one.clone(),
                source=source if pushed else None,
                source_box=tuple(head.source_box[number].tolist()) if pushed else None,
                source_region=tuple(head.source_region[number].tolist()) if pushed else None,
                source_picture=pictures.get(source),
            )
        )
    rest = float(everything[order[top:]].sum())
    return Explanation(label, float(logits[label]), logits, tuple(parts), rest, picture)


__all__ = ["Explanation", "Part", "explain_parts", "grid_boxes", "regions"]
