"""One verb for every source of data: a name, a CSV or NPZ file, a folder of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from netwright import checks
from netwright.data.arrays import read_npz
from netwright.data.bundled import BUNDLED, read_bundled
from netwright.data.divide import Division, divide
from netwright.data.normalise import Scale, scale_of_columns, scale_of_images, scale_of_targets
from netwright.data.public import CUT_DOWN, PUBLIC, cut_down_file, read_public
from netwright.data.raw import Raw
from netwright.data.slices import slices_of_test
from netwright.data.splits import Split, Splits, Task

TABLE_SUFFIXES = (".csv", ".tsv")
TASKS = ("classification", "regression")


def load(
    source: str | Path,
    *,
    target: str | None = None,
    task: Literal["classification", "regression"] | None = None,
    seed: int = 0,
    train: int | None = None,
    impute: bool = False,
    drop: Sequence[str] = (),
    image_size: int | tuple[int, int] | None = None,
    slices: Sequence[str] = (),
) -> Splits:
    """Load a data set, divide it into training, validation and test part, and normalise it.

    Data without an official test part is divided 60 : 20 : 20. An official test part stays the test part, and 10 % of
    the rest (at most 5,000 samples) are for validation. Classes keep their shares. Inputs (and the target of a
    regression) are brought to zero mean and unit variance with the statistics of the training part alone: pictures by
    channel, tables by column. Categories of a table become one-hot columns of 0 and 1.

    Args:
        source: A name (:func:`known_sets` lists them), ``FILE.csv``, ``FILE.tsv``, ``FILE.npz``, or a folder that has a
            sub-folder of pictures for each class. A name comes before a folder that is called the same; write
            ``./digits`` for the folder.
        target: The column of a CSV file that is to be predicted.
        task: Whether the target of a CSV or NPZ file is a class or a number. If not given, it is a number if it is
            numeric with more than 20 different values or with values that are not whole.
        seed: Decides which sample is in which part, and nothing else is random.
        train: Keep only so many training samples, stratified; the validation and test part stay as they are.
        impute: Fill missing values of a CSV file with the median (numbers) or the most frequent value (categories) of
            the training part; without it they are an error.
        drop: Columns of a CSV file to leave out.
        image_size: Height and width to bring the pictures of a folder to; one number for squares.
        slices: Columns whose values divide the test part into subgroups to report on, each with 2 to 50 different
            values: of a CSV file (also one that is dropped), of a table that comes with scikit-learn, or arrays of an
            NPZ file with one value a sample.

    Returns:
        The three parts, held in memory as float32 (images ``(samples, channels, height, width)``).

    Raises:
        InputError: If there is no such data, or it cannot be learned from as it is; the message says what to do.

    Example:
        >>> splits = load("digits", seed=1, train=500)
        >>> len(splits.train), len(splits.val), len(splits.test), splits.input_shape, len(splits.classes)
        (500, 359, 359, (1, 8, 8), 10)
        >>> load("diggits")
        Traceback (most recent call last):
            ...
        netwright.checks.InputError: unknown data set 'diggits'; did you mean 'digits'?
    """
    kind = kind_of(source)
    if task is not None:
        checks.known("task", task, TASKS)
    _only_for(kind, "table", target=target, impute=impute or None, drop=drop or None)
    _only_for(kind, "folder", image_size=image_size)
    if kind not in ("table", "npz"):
        _only_for(kind, "table", task=task)
    asked = (slices,) if isinstance(slices, str) else tuple(dict.fromkeys(slices))
    if asked and kind not in ("table", "npz", "bundled"):
        checks.fail(
            "slices are columns of a CSV file or of a bundled table, or arrays of an NPZ file (classes are reported on "
            "anyway); leave them out",
            f"slices={asked} for data of another kind",
        )

    if kind == "table":
        from netwright.data.tables import read_table

        dropped = [drop] if isinstance(drop, str) else drop
        raw = read_table(Path(source), target, task=task, drop=dropped, impute=impute, slices=asked)
    elif kind == "npz":
        raw = read_npz(Path(source), task, asked)
    elif kind == "folder":
        from netwright.data.folders import read_folder

        raw = read_folder(Path(source), image_size)
    elif kind == "bundled":
        raw = read_bundled(str(source), asked)
    elif kind == "cut-down":
        raw = read_npz(cut_down_file(str(source)))
    else:
        raw = read_public(str(source))
    return prepare(raw, str(source), seed=seed, train=train)


def prepare(raw: Raw, name: str, *, seed: int = 0, train: int | None = None) -> Splits:
    """Divide and normalise data that has been read."""
    division = divide(raw, seed=seed, train=train)
    inputs, columns, categories, scale = _inputs(raw, division)
    targets, std = _targets(raw, division)
    train_part, val, test = (Split(x, y, std) for x, y in zip(inputs, targets, strict=True))
    features = None if raw.features is None else torch.from_numpy(raw.features)
    return Splits(
        name,
        train_part,
        val,
        test,
        task=raw.task,
        input_shape=tuple((train_part.inputs if features is None else features).shape[1:]),
        classes=raw.classes,
        columns=columns,
        categories=categories,
        edges=None if raw.edges is None else torch.from_numpy(raw.edges),
        features=features,
        slices=slices_of_test(raw.slices, division.test),
        mean=None if scale is None else torch.from_numpy(scale.mean),
        std=None if scale is None else torch.from_numpy(scale.std),
    )


def _inputs(
    raw: Raw, division: Division
) -> tuple[list[Tensor], tuple[str, ...], Mapping[str, tuple[int, ...]], Scale | None]:
    """Inputs of each part, the names of a table's columns, which of them are categories, and the normalisation."""
    if not isinstance(raw.inputs, np.ndarray):
        from netwright.data.tables import encode

        table, columns, categories = encode(raw.inputs, division.train)
        scale = scale_of_columns(table, division.train)
        for places in categories.values():  # so that a level that is not there stays 0
            scale.mean[list(places)], scale.std[list(places)] = 0, 1
        return [scale.columns(table[part], columns) for part in division], columns, categories, scale
    if raw.task is Task.NODE_CLASSIFICATION:
        return [torch.from_numpy(raw.inputs[part]) for part in division], (), {}, None
    if raw.task is Task.IMAGE_CLASSIFICATION:
        scale = scale_of_images(raw.inputs, division.train)
        return [scale.images(raw.inputs[part]) for part in division], (), {}, scale
    scale = scale_of_columns(raw.inputs, division.train)
    return [scale.columns(raw.inputs[part], raw.columns) for part in division], raw.columns, {}, scale


def _targets(raw: Raw, division: Division) -> tuple[list[Tensor], float]:
    """Targets of each part, and what one unit of them is."""
    if raw.classes:
        return [torch.from_numpy(raw.targets[part].astype(np.int64)) for part in division], 1.0
    values = raw.targets.astype(np.float64)
    scale = scale_of_targets(values, division.train)
    names = ("target",) * values.shape[1]
    return [scale.columns(values[part], names) for part in division], float(scale.std[0])


def known_sets() -> dict[str, str]:
    """The data sets that have a name, and what each is.

    Example:
        >>> known_sets()["iris"]
        '150 flowers of 3 species, 4 measures (scikit-learn)'
    """
    return BUNDLED | {name: entry.about for name, entry in PUBLIC.items()} | CUT_DOWN


def kind_of(source: str | Path) -> str:
    """What ``source`` is: ``bundled``, ``public``, ``cut-down``, ``table``, ``npz`` or ``folder``.

    Raises:
        InputError: If it is none of these; the message has a close match.
    """
    name = str(source)
    if isinstance(source, str):
        for kind, names in (("bundled", BUNDLED), ("public", PUBLIC), ("cut-down", CUT_DOWN)):
            if name in names:
                return kind
    path = Path(source)
    if name and path.is_dir():
        return "folder"
    if name and path.exists():
        suffix = path.suffix.lower()
        if suffix in TABLE_SUFFIXES:
            return "table"
        if suffix == ".npz":
            return "npz"
        checks.fail("data must be a .csv, .tsv or .npz file, or a folder of pictures", name)
    if path.suffix or len(path.parts) > 1 or name.endswith("/"):
        _no_such_file(path)
    wanted = name.lower().replace("_", "-")  # MNIST and breast_cancer are names elsewhere
    raise checks.InputError(f"unknown data set {name!r}; {checks.did_you_mean(wanted, known_sets())}")


def _no_such_file(path: Path) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise checks.InputError(f"no such file: {path}; the folder {folder} does not exist either")
    beside = [other.name for other in folder.iterdir() if not other.name.startswith(".")]
    close = checks.did_you_mean(path.name, beside)
    hint = close if close.startswith("did") else f"looked in {folder.resolve()}"
    raise checks.InputError(f"no such file: {path}; {hint}")


def _only_for(kind: str, wanted: str, **options: object) -> None:
    where = {"table": "CSV files", "folder": "folders of pictures"}[wanted]
    if "task" in options:
        where = "CSV and NPZ files"
    for name, value in options.items():
        if value is not None and kind != wanted:
            checks.fail(f"{name} is for {where} only; leave it out", f"{name}={value!r} for data of another kind")


__all__ = ["kind_of", "known_sets", "load", "prepare"]
