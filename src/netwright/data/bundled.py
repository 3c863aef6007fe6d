"""Data sets that come with scikit-learn and need no download."""

from collections.abc import Sequence

import numpy as np

from netwright.data.raw import Raw
from netwright.data.slices import as_values, check_names
from netwright.data.splits import Task

BUNDLED: dict[str, str] = {
    "digits": "1,797 hand-written digits, gray, 8×8 (scikit-learn)",
    "iris": "150 flowers of 3 species, 4 measures (scikit-learn)",
    "wine": "178 wines of 3 growers, 13 measures (scikit-learn)",
    "breast-cancer": "569 tumours, malignant or benign, 30 measures (scikit-learn)",
    "diabetes": "442 patients, 10 measures; progression of the disease in numbers (scikit-learn)",
}


def read_bundled(name: str, slices: Sequence[str] = ()) -> Raw:
    """Read one of :data:`BUNDLED`.

    Args:
        name: Its name.
        slices: Columns whose values divide the samples into subgroups; pictures have none.

    Raises:
        InputError: If a slice is no column, or has too many different values.
    """
    from sklearn import datasets  # slow to import, and most callers bring data of their own

    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    columns = tuple(str(column) for column in bunch.feature_names)
    check_names(slices, () if name == "digits" else columns, name)
    values = {column: as_values(bunch.data[:, columns.index(column)], column, name) for column in slices}
    if name == "diabetes":
        numbers = bunch.target.astype(np.float64)[:, None]
        return Raw(bunch.data, numbers, Task.TABULAR_REGRESSION, columns=columns, slices=values)
    targets = bunch.target.astype(np.int64)
    classes = tuple(str(label) for label in bunch.target_names)
    if name == "digits":
        return Raw(bunch.images[:, None], targets, Task.IMAGE_CLASSIFICATION, classes)
    return Raw(bunch.data, targets, Task.TABULAR_CLASSIFICATION, classes, columns, slices=values)


__all__ = ["BUNDLED", "read_bundled"]
