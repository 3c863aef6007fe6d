"""CSV files: columns of numbers and of categories, one of them the target."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from netwright import checks
from netwright.data.labels import encode_labels, is_regression
from netwright.data.raw import Indices, Raw
from netwright.data.slices import as_values, check_names
from netwright.data.splits import Task

SEPARATORS = (",", ";", "\t")
COMMA_NUMBER = re.compile(r"(?:^|;)-?\d+,\d+(?:;|$)", re.MULTILINE)  # as spreadsheets write them in half of the world
POINT_NUMBER = re.compile(r"(?:^|;)-?\d+\.\d+(?:;|$)", re.MULTILINE)
MOST_LEVELS = 1000
FEW_LEVELS = 20


def read_table(
    path: Path,
    target: str | None,
    *,
    task: Literal["classification", "regression"] | None = None,
    drop: Sequence[str] = (),
    impute: bool = False,
    slices: Sequence[str] = (),
) -> Raw:
    """Read a CSV file with a header, separated by commas, semicolons or tabs (whichever the header has most of).

    In a file with semicolons numbers may have decimal commas. A first column without a name that only counts the rows,
    as pandas writes it, is left out. Columns of true and false are numbers 1 and 0. Every other column that is not
    numeric is a category.

    Args:
        path: The file, in UTF-8.
        target: Name of the column to predict.
        task: Seen from the target if not given.
        drop: Columns to leave out.
        impute: Let missing values through, for :func:`encode` to fill.
        slices: Columns whose values divide the samples into subgroups; the network sees them unless they are dropped.

    Raises:
        InputError: If the file or a column cannot be learned from; the message names it and says what to do.
    """
    frame = _parse(_decode(path), path)
    columns = [str(column) for column in frame.columns]
    if target is None:
        raise checks.InputError(
            f"{path} needs a target, the column to predict: give target=… (--target on the command line), one of "
            f"{_list(columns)}"
        )
    for kind, name in (("target", target), *(("column to drop", name) for name in drop)):
        if name not in columns:
            raise checks.InputError(f"{path} has no {kind} {name!r}; {checks.did_you_mean(name, columns)}")
    check_names(slices, columns, path)
    if target in slices:
        checks.fail("the target cannot be a slice; its classes are reported on anyway", repr(target))
    if target in drop:
        checks.fail("the target cannot be dropped", f"{target!r} for both")
    wanted, features = frame[target], _without_booleans(frame.drop(columns=[target, *drop]))
    if not len(features.columns):
        checks.fail(f"{path} must have at least one column besides the target {target!r}", "none")
    _check_complete(wanted.to_frame(), path, "the target must be known; remove those rows")
    _check_finite(features.join(wanted), path)
    _check_categories(features, path)
    if not impute:
        _check_complete(features, path, "fill them, remove those rows, or give impute=True (--impute)")

    values = {name: as_values(frame[name].to_numpy(), name, path) for name in slices}
    labels = _labels(wanted)
    if task == "regression" or (task is None and is_regression(labels)):
        if labels.dtype.kind not in "biuf":
            checks.fail(f"the target {target!r} of a regression must be numeric", f"{str(labels[0])!r} for instance")
        return Raw(features, labels.astype(np.float64)[:, None], Task.TABULAR_REGRESSION, slices=values)
    numbers, classes = encode_labels(labels)
    return Raw(features, numbers, Task.TABULAR_CLASSIFICATION, classes, slices=values)


def encode(
    features: pd.DataFrame, train: Indices
) -> tuple[NDArray[np.float64], tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Turn a table into numbers by what its training rows hold.

    Missing numbers become the median of the training rows, missing categories their most frequent level. A category
    becomes one column a level; a level that no training row has becomes all zeros.

    Returns:
        The table ``(samples, columns)``, the names of its columns, and for each column of categories which of these it
        became.
    """
    blocks: list[NDArray[np.float64]] = []
    names: list[str] = []
    categories: dict[str, tuple[int, ...]] = {}
    for name, column in features.items():
        known = column.iloc[train]
        if is_numeric_dtype(column):
            median = known.median()
            blocks.append(column.fillna(0 if pd.isna(median) else median).to_numpy(np.float64)[:, None])
            names.append(str(name))
            continue
        counts = known.astype(str).where(known.notna()).value_counts()
        filled = column.astype(str).where(column.notna(), _most_frequent(counts))
        levels = sorted(set(counts.index) | set(filled.iloc[train]))
        blocks.append((filled.to_numpy(dtype=object)[:, None] == np.array(levels, dtype=object)).astype(np.float64))
        categories[str(name)] = tuple(range(len(names), len(names) + len(levels)))
        names += [f"{name}={level}" for level in levels]
    return np.concatenate(blocks, axis=1), tuple(names), categories


def _most_frequent(counts: pd.Series[int]) -> str:
    most = counts[counts == counts.max()].index
    return min(str(level) for level in most) if len(most) else ""


def _decode(path: Path) -> str:
    content = path.read_bytes()
    if not content.strip():
        checks.fail(f"{path} must have a header and rows", "an empty file")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        checks.fail(
            f"{path} must be text in UTF-8; convert it with: iconv -f utf-16 -t utf-8 {path} > new.csv", "UTF-16"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        checks.fail(
            f"{path} must be text in UTF-8; convert it with: iconv -f latin1 -t utf-8 {path} > new.csv "
            "(if it is in another encoding than latin1, name that one)",
            f"byte 0x{content[error.start]:02x} at position {error.start} in line {line}",
        )


def _parse(text: str, path: Path) -> pd.DataFrame:
    if "\0" in text:
        checks.fail(f"{path} must be text", f"a zero byte at position {text.index(chr(0))}")
    header = text.lstrip().split("\n", 1)[0]
    separator = max(SEPARATORS, key=header.count)
    decimal = "," if separator == ";" and COMMA_NUMBER.search(text) and not POINT_NUMBER.search(text) else "."
    try:
        first_line = pd.read_csv(
            io.StringIO(text), sep=separator, header=None, nrows=1, dtype=str, skipinitialspace=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # it would cut rows that are too long
            frame = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                decimal=decimal,
                index_col=False,
                low_memory=False,
                skipinitialspace=True,
            )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise checks.InputError(f"{path} cannot be read as a table: {reason}") from error
    names = first_line.iloc[0]
    twice = names[names.notna() & names.duplicated()]
    if len(twice):
        checks.fail(f"the columns of {path} must have different names", f"{twice.iloc[0]!r} more than once")
    if not len(frame):
        checks.fail(f"{path} must have rows below the header", "none")
    first = frame.columns[0]
    unnamed = pd.isna(names.iloc[0]) and is_numeric_dtype(frame[first])
    if unnamed and (frame[first] == frame.index + frame[first].iloc[0]).all():
        frame = frame.drop(columns=first)
    return frame


def _without_booleans(features: pd.DataFrame) -> pd.DataFrame:
    """True and false as 1 and 0, also beside missing values, which pandas reads as objects."""
    features = features.copy()
    for name, column in features.items():
        if is_bool_dtype(column) or (column.notna().any() and column.dropna().map(lambda v: isinstance(v, bool)).all()):
            features[name] = column.astype("boolean").astype("Float64").to_numpy(np.float64, na_value=np.nan)
    return features


def _labels(column: pd.Series[Any]) -> NDArray[Any]:
    return column.to_numpy() if is_numeric_dtype(column) or is_bool_dtype(column) else column.astype(str).to_numpy(str)


def _check_complete(features: pd.DataFrame, path: Path, advice: str) -> None:
    missing = features.isna().sum()
    missing = missing[missing > 0]
    if len(missing):
        counts = _list([f"{name!r} ({count})" for name, count in missing.items()])
        raise checks.InputError(f"{path} has missing values in {counts} of {len(features)} rows; {advice}")


def _check_finite(frame: pd.DataFrame, path: Path) -> None:
    infinite = np.isinf(frame.select_dtypes("number")).sum()
    infinite = infinite[infinite > 0]
    if len(infinite):
        counts = _list([f"{name!r} ({count})" for name, count in infinite.items()])
        raise checks.InputError(f"{path} has infinite values in {counts}; correct them or remove those rows")


def _check_categories(features: pd.DataFrame, path: Path) -> None:
    """Refuse text that is no category: identifiers, dates, free text, and numbers with something strange among them."""
    unfit: list[str] = []
    shown: list[str] = []
    for name, column in features.items():
        known = column.dropna()
        if not len(known):
            raise checks.InputError(f"column {name!r} of {path} is empty; leave it out with drop=[{name!r}] (--drop)")
        if is_numeric_dtype(column):
            continue
        text = known.astype(str)
        levels, rows = text.nunique(), len(text)
        if levels <= FEW_LEVELS and levels < rows:
            continue
        strange = text[pd.to_numeric(text, errors="coerce").isna()]
        if len(strange) < rows / 10:
            others = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            checks.fail(
                f"column {name!r} of {path} must hold only numbers (an empty cell where one is missing)",
                f"{strange.iloc[0]!r} in row {strange.index[0] + 1}{others}",
            )
        if levels > rows // 2 or levels > MOST_LEVELS:
            unfit.append(str(name))
            shown.append(f"{name!r} ({levels} different texts in {rows} rows, such as {text.iloc[0]!r})")
    if unfit:
        raise checks.InputError(
            f"{path} has columns that are no categories but identifiers, dates or free text: {_list(shown)}; leave "
            f"them out with drop={unfit} (--drop) or turn them into numbers"
        )


def _list(items: Sequence[str], most: int = 10) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more


__all__ = ["encode", "read_table"]
