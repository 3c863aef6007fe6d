"""NPZ files: arrays of numbers or pictures and their targets. Never unpickled."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from netwright import checks
from netwright.data.labels import encode_labels, is_regression
from netwright.data.raw import Raw
from netwright.data.slices import as_values, check_names
from netwright.data.splits import Task

NAMES = (("x", "y"), ("images", "labels"), ("inputs", "targets"), ("data", "target"))
PARTS = ("train", "val", "test")


class _Pair(NamedTuple):
    inputs: NDArray[Any]
    targets: NDArray[Any]


def read_npz(
    path: Path, task: Literal["classification", "regression"] | None = None, slices: Sequence[str] = ()
) -> Raw:
    """Read inputs and targets under any of the usual names (:data:`NAMES`), also as ``train_…``, ``val_…``, ``test_…``.

    Inputs are tables ``(samples, features)``, or pictures ``(samples, height, width)``,
    ``(samples, height, width, channels)`` or ``(samples, channels, height, width)``.

    Args:
        path: The file. An array ``classes`` in it names the classes.
        task: Seen from the targets if not given; pictures are always classified.
        slices: Names of arrays with one value a sample (in divided data as ``train_…``, ``val_…``, ``test_…``), which
            divide the samples into subgroups.

    Raises:
        InputError: If the file is no NPZ, holds Python objects, or the arrays do not fit together.
    """
    parts, names, groups = _read(path, slices)
    inputs = _join([pair.inputs for pair in parts.values()], path)
    targets = _join([pair.targets for pair in parts.values()], path)
    bounds = np.cumsum([0, *(len(pair.inputs) for pair in parts.values())])
    places = {part: np.arange(bounds[i], bounds[i + 1]) for i, part in enumerate(parts)}
    val, test = places.get("val"), places.get("test")

    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if inputs.ndim > 2:
        if task == "regression" or (targets.dtype.kind == "f" and (targets != np.round(targets)).any()):
            checks.fail(f"pictures can only be classified: targets in {path} must be classes", "numbers to predict")
        numbers, classes = encode_labels(targets, names)
        pictures = channels_first(inputs)
        return Raw(pictures, numbers, Task.IMAGE_CLASSIFICATION, classes, val=val, test=test, slices=groups)

    inputs = inputs.astype(np.float64)
    columns = tuple(f"x{i}" for i in range(inputs.shape[1]))
    if task == "regression" or (task is None and names is None and is_regression(targets)):
        if targets.dtype.kind not in "biuf":
            checks.fail(f"the targets of a regression in {path} must be numbers", f"type {targets.dtype}")
        values = targets.astype(np.float64).reshape(len(targets), -1)
        return Raw(inputs, values, Task.TABULAR_REGRESSION, columns=columns, val=val, test=test, slices=groups)
    numbers, classes = encode_labels(targets, names)
    return Raw(inputs, numbers, Task.TABULAR_CLASSIFICATION, classes, columns, val, test, slices=groups)


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """Bring ``(samples, height, width)`` or ``(samples, height, width, channels)`` to ``(samples, channels, …)``.

    Four dimensions are channels last if only the last one can be a number of channels (1 to 4); where both can be, if
    the pixels are uint8, as picture libraries write them.
    """
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] <= 4, images.shape[3] <= 4
    return np.moveaxis(images, 3, 1) if last and (not first or images.dtype == np.uint8) else images


def _read(
    path: Path, slices: Sequence[str]
) -> tuple[dict[str, _Pair], NDArray[Any] | None, dict[str, NDArray[np.str_]]]:
    """The parts of the data, all of it as ``train`` if it is not divided, the names of the classes, and the slices."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                checks.fail(f"{path} must be written by np.savez(path, x=…, y=…)", "a single array")
            found = _find(file.files, path)
            parts = {
                part: _check(_array(file, x, path), _array(file, y, path), x, y, path) for part, (x, y) in found.items()
            }
            values = {name: _slice(file, name, parts, path) for name in slices}
            return parts, _array(file, "classes", path) if "classes" in file.files else None, values
    except checks.InputError:
        raise
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        checks.fail(f"{path} must be an NPZ file, as np.savez writes it", f"one that cannot be read ({error})")


def _array(file: np.lib.npyio.NpzFile, name: str, path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = file[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise checks.InputError(
            f"array {name!r} in {path} holds Python objects, which are never unpickled because that can run foreign "
            f"code; save it as numbers or text, for instance {name}.astype(float) or {name}.astype(str)"
        ) from error
    return array


def _slice(file: np.lib.npyio.NpzFile, name: str, parts: dict[str, _Pair], path: Path) -> NDArray[np.str_]:
    """One value for each sample of all parts, in their order."""
    names = [name] if name in file.files or len(parts) == 1 else [f"{part}_{name}" for part in parts]
    check_names(names, file.files, path)
    arrays = [_array(file, one, path) for one in names]
    column = arrays[0] if len(arrays) == 1 else _join(arrays, path)
    total = sum(len(pair.targets) for pair in parts.values())
    if column.shape[:1] != (total,):
        checks.fail(f"the slice {name!r} in {path} must have one value for each of the {total} samples", column.shape)
    return as_values(column, name, path)


def _find(names: list[str], path: Path) -> dict[str, tuple[str, str]]:
    for x, y in NAMES:
        if x in names and y in names:
            return {"train": (x, y)}
        divided = {part: (f"{part}_{x}", f"{part}_{y}") for part in PARTS}
        found = {part: pair for part, pair in divided.items() if set(pair) <= set(names)}
        if "train" in found:
            return found
    usual = ", ".join("/".join(pair) for pair in NAMES)
    raise checks.InputError(
        f"{path} must have inputs and targets as {usual}, or with train_ and test_ before these names, "
        f"got {', '.join(names) or 'no array'}"
    )


def _check(inputs: NDArray[Any], targets: NDArray[Any], x: str, y: str, path: Path) -> _Pair:
    if inputs.ndim not in (2, 3, 4) or 0 in inputs.shape:
        checks.fail(
            f"{x!r} in {path} must have shape (samples, features), (samples, height, width) or "
            "(samples, height, width, channels) without zeros",
            f"shape {inputs.shape}",
        )
    if inputs.dtype.kind not in "biuf":
        checks.fail(f"{x!r} in {path} must hold real numbers", f"type {inputs.dtype}")
    if targets.dtype.kind not in "biufUS":
        checks.fail(f"{y!r} in {path} must hold real numbers or text", f"type {targets.dtype}")
    if targets.ndim not in (1, 2) or len(targets) != len(inputs):
        checks.fail(
            f"{y!r} in {path} must have one entry for each of the {len(inputs)} samples in {x!r}",
            f"shape {targets.shape}",
        )
    for name, array in ((x, inputs), (y, targets)):
        if array.dtype.kind == "f" and (bad := int(np.count_nonzero(~np.isfinite(array)))):
            checks.fail(f"{name!r} in {path} must be finite", f"{bad} values that are NaN or infinite")
    return _Pair(inputs, targets)


def _join(arrays: list[NDArray[Any]], path: Path) -> NDArray[Any]:
    shapes = {array.shape[1:] for array in arrays}
    kinds = {array.dtype.kind in "US" for array in arrays}
    if len(shapes) > 1 or len(kinds) > 1:
        given = " and ".join(f"shape {array.shape} of type {array.dtype}" for array in arrays)
        checks.fail(f"training and test part in {path} must have samples of the same shape and kind", given)
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


__all__ = ["channels_first", "read_npz"]
