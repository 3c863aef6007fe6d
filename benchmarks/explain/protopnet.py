"""The push against a loop over prototypes, the order of add-on layers and interpolation, and the cost of a head."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.data.splits import Batch
from netwright.explain._part_explanations import grid_boxes
from netwright.explain.protopnet import PrototypePartHead, STProtoPNet
from netwright.explain.protopnet_training import PartRule, push

CLASSES, PICTURES, CHANNELS, SIDE = 200, 100, 512, 7


class Maps(nn.Module):
    """Maps of a backbone that were computed before: pictures are their numbers."""

    def __init__(self, maps: Tensor) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, input: Tensor) -> Tensor:
        return self.maps[input[:, 0, 0, 0].long()]


@torch.no_grad()
def push_by_loop(model: STProtoPNet, batches: list[tuple[Tensor, Tensor]]) -> dict[str, np.ndarray]:
    """As the authors' code: distances of all pictures to all prototypes, then prototype by prototype in NumPy."""
    pushed = {}
    for name in ("trivial", "support"):
        head = model.head(name)
        number = len(head.prototypes)
        smallest, patches = np.full(number, np.inf), np.zeros((number, head.prototypes.shape[1]))
        sources, places, regions = np.full(number, -1), np.full(number, -1), np.full((number, 4), -1)
        for start, (x, y) in enumerate(batches):
            features = head.features(model.backbone(x))
            unit = functional.normalize(head.prototypes)[:, :, None, None]
            distances = np.copy((-functional.conv2d(functional.normalize(features), unit)).numpy())
            units = np.copy(functional.normalize(features).numpy())
            of_class: dict[int, list[int]] = {label: [] for label in range(head.num_classes)}
            for index, label in enumerate(y):
                of_class[label.item()].append(index)
            for j in range(number):
                samples = of_class[int(head.classes[j])]
                if not samples:
                    continue
                mine = distances[samples][:, j]
                if mine.min() < smallest[j]:
                    sample, row, column = np.unravel_index(np.argmin(mine), mine.shape)
                    smallest[j] = mine.min()
                    patches[j] = units[samples[sample], :, row, column]
                    sources[j] = samples[sample] + start * PICTURES
                    places[j] = row * mine.shape[2] + column
                    regions[j] = region(-mine[sample], x.shape[2:])
        pushed[name] = np.concatenate([patches, sources[:, None], places[:, None]], axis=1)
    return pushed


def region(activation: np.ndarray, size: tuple[int, int]) -> tuple[int, int, int, int]:
    enlarged = functional.interpolate(torch.from_numpy(activation)[None, None], size=size, mode="bicubic")[0, 0].numpy()
    high = enlarged >= np.percentile(enlarged, 95)
    rows, columns = np.flatnonzero(high.any(1)), np.flatnonzero(high.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def check_equal(model: STProtoPNet, batches: list[tuple[Tensor, Tensor]]) -> None:
    expected = push_by_loop(model, batches)
    push(model, batches)
    for name, found in expected.items():
        head = model.head(name)
        np.testing.assert_allclose(head.prototypes.detach(), found[:, :-2], atol=1e-5)
        np.testing.assert_array_equal(head.source, found[:, -2])
        boxes = grid_boxes(torch.from_numpy(found[:, -1]).long(), (2 * SIDE, 2 * SIDE), (32, 32))
        torch.testing.assert_close(head.source_box, boxes)


def step(head: PrototypePartHead, maps: Tensor, *, interpolate_first: bool) -> Callable[[], object]:
    parameters = list(head.parameters())

    def run() -> object:
        if interpolate_first:
            larger = functional.interpolate(maps, scale_factor=2.0, mode="bilinear")
            features = head.add_on(larger)
        else:
            features = head.features(maps)
        return torch.autograd.grad(features.square().sum(), parameters[1:5])

    return run


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    maps = torch.randn(2 * PICTURES, CHANNELS, SIDE, SIDE)
    # a picture of 32×32 that holds the number of its maps; the backbone is the same for both and left out
    x = torch.arange(2 * PICTURES, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 32, 32)
    y = torch.arange(2 * PICTURES) % CLASSES
    batches = list(zip(x.split(PICTURES), y.split(PICTURES), strict=True))
    model = STProtoPNet(Maps(maps), CLASSES, in_channels=CHANNELS).eval()
    check_equal(model, batches)
    torch.manual_seed(0)
    model = STProtoPNet(Maps(maps), CLASSES, in_channels=CHANNELS).eval()
    side_by_side(
        "push of 2 × 1,000 prototypes over 200 pictures with maps of 512×7×7, add-on layers included",
        {"prototype by prototype": lambda: push_by_loop(model, batches), "push": lambda: push(model, batches)},
        baseline="prototype by prototype",
        rounds=5,
        targets={"push": 0.1},
    )
    head = PrototypePartHead(CHANNELS, CLASSES, upsample=2)
    side_by_side(
        "features of 20 maps of 512×7×7 at twice the size, with gradients",
        {
            "interpolation, then add-on layers": step(head, maps[:20], interpolate_first=True),
            "add-on layers, then interpolation": step(head, maps[:20], interpolate_first=False),
        },
        baseline="interpolation, then add-on layers",
        rounds=20,
    )
    net = STProtoPNet(nn.Conv2d(3, CHANNELS, 32, stride=32), CLASSES)
    pictures, labels = torch.randn(20, 3, 224, 224), torch.arange(20)
    rule = PartRule(net, torch.optim.Adam(net.parameters(), lr=1e-3))

    def both() -> None:
        out = net(pictures)
        (functional.cross_entropy(out.logits, labels)).backward()

    side_by_side(
        "a training step on 20 pictures of 224×224 with a backbone of one convolution",
        {
            "both heads, cross-entropy alone": both,
            "one head, all terms, Adam": lambda: rule.step(Batch(pictures, labels)),
        },
        baseline="both heads, cross-entropy alone",
        rounds=10,
    )


if __name__ == "__main__":
    main()
