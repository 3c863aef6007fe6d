"""Covariance pooling (Li, Xie, Wang, Zuo 2017, arXiv:1703.08050; Huang, Van Gool 2017, arXiv:1608.04233) for any CNN.

:func:`to_covariance_pooling` puts :class:`CovariancePooling` where a network pools or flattens its last feature map;
:func:`normalise_bimaps` puts a normalisation of SPD matrices behind every BiMap of a network.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.spd_layers import BiMap, CovPool, LogEig, ReEig
from netwright.surgery import eval_mode, swap, swapped

_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.AvgPool2d, nn.MaxPool2d)


class CovariancePooling(nn.Module):
    """The matrix logarithm of the covariance of channels over positions, reduced to n×n, as n² features.

    Args:
        channels: Channels of the input ``(batch, channels, height, width)``.
        n: Size of the covariance after BiMap; the channels, where these are fewer.
        eps: Added to the diagonal of the covariance; the least eigenvalue after BiMap.
        free: Whether BiMap trains with any optimiser; see :class:`netwright.layers.spd_layers.BiMap`.
        device: Of the weight.
        dtype: Of the weight. The matrices are in float64.

    Returns:
        ``(batch, n², 1, 1)`` in the type of the input: what pools and flattens a map leaves it as it is.

    Example:
        >>> CovariancePooling(64, n=16)(torch.randn(2, 64, 8, 8)).shape
        torch.Size([2, 256, 1, 1])
    """

    def __init__(
        self,
        channels: int,
        n: int = 16,
        eps: float = 1e-5,
        *,
        free: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        checks.at_least("n", n, 1)
        self.n = min(n, channels)
        bimap = BiMap(channels, self.n, free=free, device=device, dtype=dtype)
        self.spd = nn.Sequential(CovPool(eps), bimap, ReEig(eps), LogEig())

    def forward(self, input: Tensor) -> Tensor:
        features: Tensor = self.spd(input).flatten(1).to(input.dtype)
        return features[..., None, None]


def to_covariance_pooling(model: nn.Module, example: Tensor, n: int = 16, eps: float = 1e-5) -> nn.Module:
    """A copy of ``model`` that pools its last feature map by :class:`CovariancePooling`.

    The map is what the network pools over all positions, or flattens, to get the input of a linear layer; one forward
    pass tells which it is. That linear layer is replaced by one that reads n² features, pooling layers before it go.

    Args:
        model: A convolutional network; it is left as it is.
        example: An input of it, two samples or more.
        n: Size of the covariance after BiMap.
        eps: See :class:`CovariancePooling`.

    Raises:
        InputError: If there is no such map and layer, the map has fewer than two positions, or the network cannot take
            the features instead, for instance because it reshapes to a fixed number.

    Example:
        >>> cnn = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))
        >>> to_covariance_pooling(cnn, torch.randn(2, 3, 16, 16), n=8)[1:]
        Sequential(
          (1): Sequential(
            (0): ReLU()
            (1): CovariancePooling(
              (spd): Sequential(
                (0): CovPool(eps=1e-05)
                (1): BiMap(32, 8, free=True)
                (2): ReEig(eps=1e-05)
                (3): LogEig()
              )
            )
          )
          (2): Identity()
          (3): Flatten(start_dim=1, end_dim=-1)
          (4): Linear(in_features=64, out_features=5, bias=True)
        )
    """
    checks.at_least("n", n, 1)
    checks.positive("eps", eps)
    trace = _trace(model, example)
    feature_map, linear = trace.tail()
    old = model.get_submodule(linear)
    assert isinstance(old, nn.Linear)
    factory: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype}
    pooling = CovariancePooling(trace.channels(feature_map), n, eps, **factory)

    new = swap(model, {nn.Module: lambda module: nn.Sequential(module, pooling)}, lambda name, _: name == feature_map)
    makers: dict[type[nn.Module], Callable[..., nn.Module]] = {pool: lambda _: nn.Identity() for pool in _POOLS}
    makers[nn.Linear] = lambda _: nn.Linear(pooling.n**2, old.out_features, old.bias is not None, **factory)
    others = {linear, *trace.pools_after(feature_map)}
    new = swap(new, makers, lambda name, _: name in others)
    try:
        with eval_mode(new), torch.no_grad():
            shape = new(example).shape
    except Exception as error:
        raise checks.InputError(
            f"covariance pooling gives {pooling.n**2} features instead of {old.in_features}, with which the network "
            f"fails: {type(error).__name__}: {error}"
        ) from error
    if shape != trace.output_shape:
        checks.fail(f"with covariance pooling the output must stay {tuple(trace.output_shape)}", tuple(shape))
    return new


def normalise_bimaps(model: nn.Module, make: Callable[[BiMap], nn.Module]) -> nn.Module:
    """A copy of ``model`` in which ``make(bimap)`` follows every BiMap.

    Args:
        model: A network on SPD matrices.
        make: Makes the normalisation, for instance ``lambda bimap: GBWBatchNorm(bimap.n_out, free=bimap.free)``.

    Raises:
        InputError: If the model has no BiMap layer.

    Example:
        >>> from netwright.layers.spd_norm import LEMBatchNorm
        >>> normalise_bimaps(nn.Sequential(BiMap(9, 6)), lambda bimap: LEMBatchNorm(bimap.n_out))
        Sequential(
          (0): Sequential(
            (0): BiMap(9, 6, free=False)
            (1): LEMBatchNorm(6, channels=1, momentum=0.1, eps=1e-05, free=False)
          )
        )
    """

    def append(bimap: nn.Module) -> nn.Module:
        assert isinstance(bimap, BiMap)
        return nn.Sequential(bimap, make(bimap))

    new = swap(model, {BiMap: append})
    if not swapped(new):
        raise checks.InputError(
            "normalisation of SPD matrices goes behind BiMap layers, and the network has none; the recipe 'cov-pool' "
            "before it puts one into a convolutional network: cov-pool+gbw-norm"
        )
    return new


@dataclass
class _Trace:
    """What the modules of a network gave in one forward pass, in the order in which they finished.

    Attributes:
        maps: Name of the module and its output ``(batch, channels, height, width)``.
        linears: Name of the linear layer, its input, and how many entries of ``maps`` there were before it.
        calls: How often each module was called.
        pools: Name of the pooling layer, and its place in ``maps``.
        output_shape: Shape of what the network gave.
    """

    maps: list[tuple[str, Tensor]] = field(default_factory=list)
    linears: list[tuple[str, Tensor, int]] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    pools: list[tuple[str, int]] = field(default_factory=list)
    output_shape: torch.Size = field(default_factory=torch.Size)

    def tail(self) -> tuple[str, str]:
        """Names of the module that gives the last feature map and of the linear layer that reads it."""
        for linear, read, before in self.linears:
            for name, output in reversed(self.maps[:before]):
                if output[0, 0].numel() > 1 and self.calls[name] == self.calls[linear] == 1 and _reads(read, output):
                    return name, linear
        raise checks.InputError(
            "covariance pooling needs a feature map of at least 2 positions that the network pools over all positions, "
            "or flattens, straight into a linear layer; the network has none (an activation in between has to be a "
            "module of its own, such as nn.ReLU, to be found)"
        )

    def channels(self, name: str) -> int:
        return next(output.shape[1] for key, output in self.maps if key == name)

    def pools_after(self, feature_map: str) -> list[str]:
        index = next(index for index, (name, _) in enumerate(self.maps) if name == feature_map)
        return [name for name, place in self.pools if place > index]


def _trace(model: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace()
    handles = []
    for name, module in model.named_modules():

        def record(module: nn.Module, inputs: tuple[object, ...], output: object, name: str = name) -> None:
            trace.calls[name] = trace.calls.get(name, 0) + 1
            if isinstance(module, nn.Linear) and isinstance(inputs[0], Tensor) and inputs[0].dim() == 2:
                trace.linears.append((name, inputs[0], len(trace.maps)))
            if isinstance(output, Tensor) and output.dim() == 4 and name:
                if isinstance(module, _POOLS):
                    trace.pools.append((name, len(trace.maps)))
                trace.maps.append((name, output))

        handles.append(module.register_forward_hook(record))
    try:
        with eval_mode(model), torch.no_grad():
            trace.output_shape = model(example).shape
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _reads(input: Tensor, output: Tensor) -> bool:
    """Whether a linear layer's input is the flattened map, or its mean or maximum over all positions."""
    flat = output.flatten(2)
    candidates = (flat.flatten(1), flat.mean(-1), flat.amax(-1))
    return any(c.shape == input.shape and torch.allclose(c, input, rtol=1e-3, atol=1e-5) for c in candidates)


__all__ = ["CovariancePooling", "normalise_bimaps", "to_covariance_pooling"]
