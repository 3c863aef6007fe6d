"""The push of one head: which patches of training pictures are nearest to its prototypes, and where these lie."""

import torch
from torch import Tensor

from netwright import checks
from netwright.explain._part_explanations import grid_boxes, regions
from netwright.explain._part_head import PrototypePartHead
from netwright.explain._prototypes import NearestOwnPatches


class PatchSearch:
    """The nearest patches for one head, and what is remembered of them."""

    def __init__(self, head: PrototypePartHead, keep_pictures: bool) -> None:
        self.head = head
        self.keep_pictures = keep_pictures
        self.pictures: dict[int, Tensor] = {}
        self.maps: Tensor | None = None
        self.nearest = NearestOwnPatches(
            head.prototypes, head.classes, lambda features, prototypes: -head.compare(features, prototypes)[0]
        )

    def update(self, maps: Tensor, labels: Tensor, x: Tensor) -> None:
        before, features = self.nearest.seen, self.head.features(maps)
        better = self.nearest.update(features, labels).nonzero().flatten()
        if self.maps is None:
            self.maps = features.new_zeros(len(self.head.classes), *features.shape[2:])
        if not len(better):
            return
        found = self.nearest.found
        samples = found.sample[better] - before
        involved, row = torch.unique(samples, return_inverse=True)
        patches = found.patch[self.nearest.members[labels[involved]].clamp(min=0)]
        self.maps[better] = self.head.compare(features[involved], patches)[0][row, self.nearest.slot[better]]
        if self.keep_pictures:
            now = set(found.sample.tolist())
            self.pictures = {number: picture for number, picture in self.pictures.items() if number in now}
            self.pictures |= {before + index: x[index].cpu().clone() for index in set(samples.tolist())}

    def check(self) -> None:
        """Raise an error where a class had no picture."""
        missing = sorted(set(self.head.classes[self.nearest.found.sample < 0].tolist()))
        if missing:
            checks.fail("every class must have a picture for the push", f"none of class {', '.join(map(str, missing))}")

    def apply(self, size: tuple[int, int]) -> None:
        assert self.maps is not None
        head, found = self.head, self.nearest.found
        head.prototypes.copy_(found.patch)
        head.normalise_prototypes_()
        head.source.copy_(found.sample)
        head.source_box.copy_(grid_boxes(found.position, (self.maps.shape[1], self.maps.shape[2]), size))
        head.source_region.copy_(regions(self.maps.float(), size))


__all__ = ["PatchSearch"]
