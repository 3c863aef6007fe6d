"""Data sets that come with scikit-learn and need no download."""

import numpy as np

from netwright.data.raw import Raw
from netwright.data.splits import Task

BUNDLED: dict[str, str] = {
    "digits": "1,797 hand-written digits, gray, 8×8 (scikit-learn)",
    "iris": "150 flowers of 3 species, 4 measures (scikit-learn)",
    "wine": "178 wines of 3 growers, 13 measures (scikit-learn)",
    "breast-cancer": "569 tumours, malignant or benign, 30 measures (scikit-learn)",
    "diabetes": "442 patients, 10 measures; progression of the disease in numbers (scikit-learn)",
}


def read_bundled(name: str) -> Raw:
    """Read one of :data:`BUNDLED`."""
    from sklearn import datasets  # slow to import, and most callers bring data of their own

    bunch = getattr(datasets, f"load_{name.replace('-', '_')}")()
    columns = tuple(str(column) for column in bunch.feature_names)
    if name == "diabetes":
        return Raw(bunch.data, bunch.target.astype(np.float64)[:, None], Task.TABULAR_REGRESSION, columns=columns)
    targets = bunch.target.astype(np.int64)
    classes = tuple(str(label) for label in bunch.target_names)
    if name == "digits":
        return Raw(bunch.images[:, None], targets, Task.IMAGE_CLASSIFICATION, classes)
    return Raw(bunch.data, targets, Task.TABULAR_CLASSIFICATION, classes, columns)


__all__ = ["BUNDLED", "read_bundled"]
