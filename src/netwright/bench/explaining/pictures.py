"""Where a network looks: maps over pictures, drawn, and whether the pixels they point at matter."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.analysis.localisation import insertion_deletion, map_correlation
from netwright.bench.explaining.strips import strip
from netwright.bench.findings import Finding, Findings, Listing, Photograph, Section, rows
from netwright.data.folders import read_pictures
from netwright.data.splits import Splits, Task
from netwright.explain.cam import default_layer, grad_cam, guided_grad_cam, unit_reasons
from netwright.explain.eigen_cam import eigen_cam
from netwright.explain.guided import guided_backprop
from netwright.training import predict

_FOR_FAITHFULNESS = 64
_WHITES = (1.0, 16.0, 255.0, 65535.0)


class Found(NamedTuple):
    """A map at the size of the picture, and as coarse as the layer gave it; both ``(batch, height, width)``."""

    map: Tensor
    raw: Tensor


def _grad_cam(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> Found:
    found = grad_cam(model, x, layer, target)
    return Found(found.map, found.raw)


def _counterfactual(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> Found:
    found = grad_cam(model, x, layer, target, counterfactual=True)
    return Found(found.map, found.raw)


def _eigen_cam(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> Found:  # noqa: ARG001 - knows no class
    found = eigen_cam(model, x, layer)
    return Found(found.map, found.raw)


def _guided_grad_cam(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> Found:
    found = guided_grad_cam(model, x, layer, target).abs().amax(1)
    return Found(found, found)


def _guided_backprop(model: nn.Module, x: Tensor, layer: str, target: Tensor) -> Found:  # noqa: ARG001 - has no layer
    found = guided_backprop(model, x, target).abs().amax(1)
    return Found(found, found)


METHODS: Mapping[str, Callable[[nn.Module, Tensor, str, Tensor], Found]] = {
    "grad-cam": _grad_cam,
    "eigen-cam": _eigen_cam,
    "counterfactual": _counterfactual,
    "guided-grad-cam": _guided_grad_cam,
    "guided-backprop": _guided_backprop,
}
_WITHOUT_LAYER = frozenset(("guided-backprop",))
_PAPERS = {"eigen-cam": "eigen-cam"}  # of the others, grad-cam


@dataclass(frozen=True, eq=False)
class Pictures:
    """What is to be explained.

    Attributes:
        names: What each is called.
        inputs: As the network takes them ``(samples, channels, height, width)``.
        shown: As people see them, of the same shape, uint8.
        classes: Names of the classes; numbers stand for them if there are none.
        truths: True classes ``(samples,)``, if they are known.
    """

    names: tuple[str, ...]
    inputs: Tensor
    shown: NDArray[np.uint8]
    classes: tuple[str, ...] = ()
    truths: Tensor | None = None


def from_test_part(model: nn.Module, splits: Splits, number: int = 6, seed: int = 0) -> Pictures:
    """Samples of the test part: for at most half of them the surest mistakes, for the rest right answers at random.

    Raises:
        InputError: If the data are no pictures.
    """
    checks.at_least("number of samples", number, 1)
    _check_pictures(splits)
    test = splits.test
    probabilities = predict(model, test.inputs).softmax(1)
    sure, answer = probabilities.max(1)
    wrong = torch.nonzero(answer != test.targets)[:, 0]
    wrong = wrong[sure[wrong].argsort(descending=True)][: number // 2]
    right = torch.nonzero(answer == test.targets)[:, 0]
    right = right[torch.randperm(len(right), generator=torch.Generator().manual_seed(seed))][: number - len(wrong)]
    chosen = torch.cat([wrong, right])
    inputs = test.inputs[chosen]
    names = tuple(f"test sample {index}" for index in chosen.tolist())
    return Pictures(names, inputs, _shown(splits, inputs), splits.classes, test.targets[chosen])


def from_files(
    files: Sequence[Path],
    splits: Splits | None = None,
    *,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
) -> Pictures:
    """Pictures from files, brought to what the network takes.

    Args:
        files: The files.
        splits: The data that the network was made for: decides channels, size and normalisation.
        size: Without ``splits``: height and width; those of the files if not given.
        mean: Without ``splits``: what to take off each channel, black being 0 and white 1.
        std: Without ``splits``: what to divide each channel by then.

    Raises:
        InputError: If a file is no picture, sizes differ and none is given, or the numbers do not fit the channels.
    """
    if splits is None:
        checks.at_least("height and width of pictures", min(size or (1,)), 1)
        pixels = read_pictures(files, size)
        scale = [torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std)]
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, pixels.shape[1]):
                checks.fail(f"{name} must have one number for each of {pixels.shape[1]} channels", len(values))
        checks.positive("std", min(std))
        inputs = ((torch.from_numpy(pixels) / 255 - scale[0]) / scale[1]).float()
        return Pictures(tuple(map(str, files)), inputs, pixels)
    _check_pictures(splits)
    channels, height, width = splits.input_shape
    pixels = read_pictures(files, (height, width))
    if pixels.shape[1] > channels:
        gray = np.array([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1) * pixels
        pixels = gray.sum(1, keepdims=True).round().astype(np.uint8)
    pixels = np.repeat(pixels, channels // pixels.shape[1], axis=1)
    inputs = splits.normalised(torch.from_numpy(pixels).double() / 255 * _white(splits))
    return Pictures(tuple(map(str, files)), inputs, pixels, splits.classes)


def explain_pictures(
    model: nn.Module,
    pictures: Pictures,
    methods: Sequence[str] = ("grad-cam", "eigen-cam"),
    layer: str | None = None,
    target: str | None = None,
    *,
    splits: Splits | None = None,
    out: Path | None = None,
    seed: int = 0,
    console: Console | None = None,
    words: Mapping[str, str] | None = None,
) -> Findings:
    """Draw where a network looks, and measure whether the pixels it is said to look at matter.

    Args:
        model: Any network with a layer whose output has places; it is left as it was.
        pictures: What to explain.
        methods: Of :data:`METHODS`.
        layer: Name of the layer that is looked into; the last one with places if not given.
        target: Name of the class to explain; for each picture the one that is answered if not given.
        splits: The data; the faithfulness of the maps is then measured on 64 samples of its test part, else on the
            pictures.
        out: Folder for the drawn pictures, one PNG file each; none are written if not given.
        seed: Decides which samples are drawn.
        console: Where progress is shown; nowhere if not given.
        words: How the user named ``model``, ``weights`` and ``data``.

    Raises:
        InputError: If a method, the layer or the class is not known, or the network has no places.
    """
    words = words or {}
    checks.at_least("number of methods", len(methods), 1)
    methods = list(dict.fromkeys(methods))
    for method in methods:
        checks.known("method", method, METHODS)
    start = time.perf_counter()
    logits = predict(model, pictures.inputs)
    if logits.ndim != 2 or logits.shape[1] < 2:
        checks.fail("maps need a network that gives (batch, classes) of 2 classes or more", tuple(logits.shape))
    if layer is None and set(methods) - _WITHOUT_LAYER:
        try:
            layer = default_layer(model, pictures.inputs[:4])
        except checks.InputError as error:
            raise checks.InputError(f"{error}; --method guided-backprop needs no such layer") from error
    if out is not None:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise checks.InputError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    answers = logits.argmax(1)
    targets = answers if target is None else torch.full_like(answers, _class(target, pictures, logits.shape[1]))
    found = {
        method: METHODS[method](model, pictures.inputs, layer or "", targets)
        for method in track(methods, "maps", console=console, disable=console is None, transient=True)
    }
    photographs = _photographs(pictures, found, logits, targets, out)
    listings = [_answers(pictures, found, logits, targets)]
    if "grad-cam" in found:
        listings.append(_units(model, pictures, layer, targets))
    title = f"Where {words.get('model', type(model).__name__)} looks" + (f", in layer {layer!r}" if layer else "")
    drawn = Section(
        "pictures", title, listings=tuple(listings), photographs=tuple(photographs),
        seconds=time.perf_counter() - start,
    )  # fmt: skip
    start = time.perf_counter()
    inputs = pictures.inputs
    if splits is not None:
        order = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(seed))
        inputs = splits.test.inputs[order[:_FOR_FAITHFULNESS]]
    kept = [method for method in methods if method != "counterfactual"]
    judged = [
        _faithfulness(model, inputs, method, layer or "", seed)
        for method in track(kept, "faithfulness", console=console, disable=console is None, transient=True)
    ]
    faithful = Section(
        "faithfulness", "Do these pixels matter?", findings=tuple(judged), seconds=time.perf_counter() - start
    )
    return Findings(
        question=f"Why does {words.get('model', type(model).__name__)} answer as it does?",
        model=words.get("model", type(model).__name__),
        weights=words.get("weights", ""),
        data=words.get("data", f"{len(pictures.names)} pictures"),
        against="",
        sections=(drawn, faithful) if judged else (drawn,),
    )


def _photographs(
    pictures: Pictures, found: Mapping[str, Found], logits: Tensor, targets: Tensor, out: Path | None
) -> list[Photograph]:
    drawn = []
    for index, name in enumerate(pictures.names):
        maps = {method: maps.map[index].numpy(force=True) for method, maps in found.items()}
        png = strip(pictures.shown[index], maps)
        drawn.append(Photograph(_caption(pictures, index, logits[index], int(targets[index])), png))
        if out is not None:
            stem = re.sub(r"[^\w-]+", "-", Path(name).stem).strip("-") or "picture"
            (out / f"{index:03d}-{stem}.png").write_bytes(png)
    return drawn


def _caption(pictures: Pictures, index: int, logits: Tensor, target: int) -> str:
    probabilities = logits.softmax(0)
    answer = int(probabilities.argmax())
    said = f"{pictures.names[index]}: {_name(pictures, answer)} ({probabilities[answer]:.0%})"
    if pictures.truths is not None:
        truth = int(pictures.truths[index])
        said += ", right" if truth == answer else f", wrong: it is {_name(pictures, truth)}"
    return said if target == answer else f"{said}; maps of {_name(pictures, target)} ({probabilities[target]:.0%})"


def _answers(pictures: Pictures, found: Mapping[str, Found], logits: Tensor, targets: Tensor) -> Listing:
    first, *others = found
    headings = ["picture", "true", "answered", "probability", "explained"]
    headings += [f"{other} like {first} (correlation)" for other in others]
    likeness = [map_correlation(found[first].map, found[other].map) for other in others]
    probabilities, answers = logits.softmax(1).max(1)
    table = [
        (
            name,
            "" if pictures.truths is None else _name(pictures, int(pictures.truths[i])),
            _name(pictures, int(answers[i])),
            f"{probabilities[i]:.1%}",
            _name(pictures, int(targets[i])),
            *(f"{like[i]:.2f}" for like in likeness),
        )
        for i, name in enumerate(pictures.names)
    ]
    return Listing("Answers", tuple(headings), rows(table))


def _units(model: nn.Module, pictures: Pictures, layer: str | None, targets: Tensor) -> Listing:
    reasons = unit_reasons(grad_cam(model, pictures.inputs, layer, targets).alpha, top=3)

    def words(units: Sequence[tuple[str, float]]) -> str:
        return ", ".join(f"{name} ({value:.2g})" for name, value in units)

    table = [(name, words(r.positive), words(r.negative)) for name, r in zip(pictures.names, reasons, strict=True)]
    return Listing("Units of the layer that speak most", ("picture", "for the class", "against it"), rows(table))


def _faithfulness(model: nn.Module, inputs: Tensor, method: str, layer: str, seed: int) -> Finding:
    """How fast the probability falls while the pixels that the map ranks first are taken out, against chance."""
    answers = predict(model, inputs).argmax(1)
    maps = METHODS[method](model, inputs, layer, answers)
    raw = maps.raw.flatten(1)
    shuffled = raw[:, torch.randperm(raw.shape[1], generator=torch.Generator().manual_seed(seed))].view_as(maps.raw)
    chance = functional.interpolate(shuffled[:, None], inputs.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    fill = inputs.mean((0, 2, 3), keepdim=True)
    kept, by_chance = (
        insertion_deletion(model, inputs, ranking.double(), answers, steps=16, fill=fill).deletion_auc
        for ranking in (maps.map, chance)
    )
    gain = by_chance - kept
    error = gain.std(correction=1) / len(gain) ** 0.5 if len(gain) > 1 else torch.tensor(torch.inf)
    clear = bool(gain.mean() > 2 * error)
    return Finding(
        f"{method}: probability kept while its pixels go",
        kept.mean().item(),
        f"While the pixels that {method} ranks first are replaced by the mean brightness, the answered class keeps "
        f"{kept.mean():.1%} of probability, averaged over the way and {len(inputs)} pictures",
        f"the same maps with their places shuffled keep {by_chance.mean():.1%}, a difference of {gain.mean():.1%} ± "
        f"{2 * error:.1%}",
        "the maps point at pixels that matter"
        if clear
        else "the maps tell no more than chance here: do not read anything into them",
        unit="%",
        idea=_PAPERS.get(method, "grad-cam"),
    )


def _class(target: str, pictures: Pictures, number: int) -> int:
    names = pictures.classes or tuple(map(str, range(number)))
    checks.known("class", target, names)
    return names.index(target)


def _name(pictures: Pictures, number: int) -> str:
    return pictures.classes[number] if pictures.classes else str(number)


def _shown(splits: Splits, inputs: Tensor) -> NDArray[np.uint8]:
    if splits.mean is None:  # changed after loading: from the darkest to the brightest
        low, high = inputs.aminmax()
        own = (inputs - low) / (high - low).clamp_min(1e-12)
    else:
        own = splits.in_user_units(inputs) / _white(splits)
    return (own * 255).round().clamp(0, 255).to(torch.uint8).numpy()


def _white(splits: Splits) -> float:
    """What is white in the user's units: the smallest usual limit that no training picture exceeds."""
    most = splits.in_user_units(splits.train.inputs.amax((0, 2, 3), keepdim=True)).max().item()
    return next((white for white in _WHITES if most <= white * (1 + 1e-4)), most)


def _check_pictures(splits: Splits) -> None:
    if splits.task is not Task.IMAGE_CLASSIFICATION or splits.input_shape[0] not in (1, 3):
        checks.fail("maps need pictures with 1 or 3 channels", f"{splits.task} with inputs of {splits.input_shape}")


__all__ = ["METHODS", "Found", "Pictures", "explain_pictures", "from_files", "from_test_part"]
