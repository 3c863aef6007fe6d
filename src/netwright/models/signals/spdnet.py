"""Networks that read covariance matrices (arXiv:1608.04233), and the EEG network of arXiv:2504.00660."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.spd_layers import BiMap, CovPool, LogEig, ReEig
from netwright.layers.spd_norm import GBWBatchNorm

Norm = Callable[..., nn.Module]


class SPDNet(nn.Module):
    """BiMap, normalisation and ReEig for every pair of sizes, then LogEig and a linear classifier.

    Args:
        sizes: Sizes of the matrices, from the input to the last BiMap, such as ``(15, 12)``.
        num_classes: Outputs ``(batch, num_classes)``.
        norm: ``norm(n, free=free, dtype=dtype)`` makes the normalisation of n×n matrices; none if not given.
        in_channels: Channels of the input ``(batch, in_channels, n, n)``.
        eps: Of ReEig.
        free: See :class:`netwright.layers.spd_layers.BiMap`.
        dtype: Of the parameters.

    Raises:
        InputError: If there are fewer than two sizes, or one is larger than that before it.

    Source:
        arXiv:1608.04233.

    Example:
        >>> SPDNet((9, 6), num_classes=2, norm=GBWBatchNorm)(torch.eye(9).expand(4, 1, 9, 9)).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        num_classes: int,
        norm: Norm | None = None,
        in_channels: int = 1,
        *,
        eps: float = 1e-5,
        free: bool = False,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            checks.fail("sizes must be those of the input and of at least one BiMap", tuple(sizes))
        self.features = nn.Sequential()
        for n_in, n_out in pairwise(sizes):
            self.features.append(BiMap(n_in, n_out, in_channels, free=free, dtype=dtype))
            if norm is not None:
                self.features.append(norm(n_out, free=free, dtype=dtype))
            self.features.append(ReEig(eps))
            in_channels = 1
        self.features.extend([LogEig(), nn.Flatten()])
        self.classifier = nn.Linear(sizes[-1] ** 2, num_classes, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        features: Tensor = self.features(input)
        output: Tensor = self.classifier(features.to(self.classifier.weight.dtype))
        return output


class EEGSPDNet(nn.Module):
    """Spatial and temporal convolution, the covariance of what they give, :class:`SPDNet` on top.

    The defaults are the authors' network for steady-state visually evoked potentials (MAMEM SSVEP-II): 8 electrodes,
    5 classes. They train it with lr 2.5·10⁻³, momentum 0.9, weight decay 0.05, batches of 30, for 200 epochs.

    Args:
        electrodes: Rows of the input ``(batch, 1, electrodes, time)``.
        num_classes: Outputs ``(batch, num_classes)``.
        spatial: Channels after the convolution over electrodes.
        temporal: Channels after the convolution over time: the size of the covariance.
        kernel_size: Of the convolution over time.
        size: Of the matrices after BiMap.
        norm: See :class:`SPDNet`.
        free: See :class:`netwright.layers.spd_layers.BiMap`.

    Source:
        arXiv:2504.00660 and its code: 70,114 parameters with the default norm. (The code holds the running variance as
        12 more, which no gradient reaches.)

    Example:
        >>> EEGSPDNet()(torch.randn(2, 1, 8, 125)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        electrodes: int = 8,
        num_classes: int = 5,
        *,
        spatial: int = 125,
        temporal: int = 15,
        kernel_size: int = 36,
        size: int = 12,
        norm: Norm | None = GBWBatchNorm,
        free: bool = False,
    ) -> None:
        super().__init__()
        self.electrodes = electrodes
        self.convs = nn.Sequential(
            nn.Conv2d(1, spatial, (electrodes, 1)),
            nn.BatchNorm2d(spatial),
            nn.Conv2d(spatial, temporal, (1, kernel_size), padding=(0, kernel_size // 2)),
            nn.BatchNorm2d(temporal),
        )
        self.covariance = CovPool()
        self.spdnet = SPDNet((temporal, size), num_classes, norm, free=free)

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, 1, electrodes, time)")
        checks.size("input", input, 2, self.electrodes)
        output: Tensor = self.spdnet(self.covariance(self.convs(input)))
        return output


__all__ = ["EEGSPDNet", "SPDNet"]
