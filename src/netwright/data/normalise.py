"""Zero mean and unit variance by the statistics of the training part, and nothing but it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netwright import checks
from netwright.data.raw import Indices


@dataclass(frozen=True, eq=False)
class Scale:
    """Takes a mean off and divides by a standard deviation; what is constant in training becomes 0 everywhere.

    Attributes:
        mean: One number a channel or column.
        std: One number a channel or column; 0 where it is constant in training.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]

    @property
    def factor(self) -> NDArray[np.float64]:
        """1 / std, and 0 where the latter is 0."""
        return np.divide(1.0, self.std, out=np.zeros_like(self.std), where=self.std > 0)

    def images(self, images: NDArray[Any]) -> Tensor:
        """Normalise ``(samples, channels, height, width)`` of any type of number to float32."""
        result = torch.from_numpy(images.astype(np.float32, order="C"))
        shape = (1, -1, 1, 1)
        result -= torch.from_numpy(self.mean).float().view(shape)
        result *= torch.from_numpy(self.factor).float().view(shape)
        return result

    def columns(self, table: NDArray[np.float64], names: tuple[str, ...]) -> Tensor:
        """Normalise ``(samples, features)`` to float32; an error names the column that is too large for that."""
        with np.errstate(over="ignore", invalid="ignore"):
            result = torch.from_numpy(((table - self.mean) * self.factor).astype(np.float32))
        bad = np.flatnonzero(~torch.isfinite(result).all(0).numpy() | ~np.isfinite(self.std))
        if len(bad):
            checks.fail(
                f"column {names[bad[0]]!r} has numbers too large to be normalised; give it in other units",
                f"up to {np.abs(table[:, bad[0]]).max():.3g}",
            )
        return result


def scale_of_images(images: NDArray[Any], train: Indices) -> Scale:
    """Mean and standard deviation of every channel over all pixels of the training images."""
    channels = images.shape[1]
    mean, std = np.empty(channels), np.empty(channels)
    levels = np.arange(256)
    for channel in range(channels):
        pixels = images[train, channel]
        if images.dtype == np.uint8:  # exact, and without a copy that is eight times as large
            share = np.bincount(pixels.ravel(), minlength=256) / pixels.size
            mean[channel] = share @ levels
            std[channel] = np.sqrt(share @ (levels - mean[channel]) ** 2)
        else:
            mean[channel] = pixels.mean(dtype=np.float64)
            std[channel] = pixels.std(dtype=np.float64) if (pixels != pixels.flat[0]).any() else 0.0
    return Scale(mean, std)


def scale_of_columns(table: NDArray[np.float64], train: Indices) -> Scale:
    """Mean and standard deviation of every column over the training rows."""
    known = table[train]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = known.mean(0), known.std(0)
    std[(known == known[:1]).all(0)] = 0  # rounding can leave a constant column with a standard deviation of 1e-16
    return Scale(mean, std)


def scale_of_targets(values: NDArray[np.float64], train: Indices) -> Scale:
    """Mean of every output, and one standard deviation for all.

    One unit for all outputs, so that a root mean squared error over several of them is still in the user's units.
    """
    known = values[train]
    with np.errstate(over="ignore", invalid="ignore"):
        mean, std = known.mean(0), np.sqrt(known.var(0).mean())
    if (known == known[:1]).all():
        checks.fail("the target must have more than one value in the training part", f"only {known.flat[0]:g}")
    if not np.isfinite(std):
        checks.fail("the target has numbers too large to be normalised; give it in other units", f"{known.max():.3g}")
    return Scale(mean, np.full_like(mean, std))


__all__ = ["Scale", "scale_of_columns", "scale_of_images", "scale_of_targets"]
