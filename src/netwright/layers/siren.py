"""Sine layers (SIREN; Sitzmann et al., 2020): coordinate networks whose activations stay spread over any depth.

Public names: :class:`Sine`, :class:`SirenLayer`, :class:`SirenNet`, :func:`siren_init_`.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from netwright import checks


def siren_init_(linear: nn.Linear, w0: float = 1.0, *, first: bool = False) -> nn.Linear:
    """Draw weights and bias of a layer before a sine, so that activations stay spread alike over any depth.

    First layer: U(±1/n); later layers: U(±√6 / (w0 √n)), with n inputs. The paper writes U(±√(6/n)) for layers without
    a frequency, and divides by w0 where there is one, so that w0 (W x + b) is spread alike for every w0.

    Args:
        linear: Layer, changed in place.
        w0: Frequency of the sine behind it.
        first: Whether its inputs are the coordinates.

    Returns:
        The layer.

    Source: Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, 2020,
    arXiv:2006.09661, theorem 1.8 and section 3.2.
    """
    checks.positive("w0", w0)
    bound = 1 / linear.in_features if first else math.sqrt(6 / linear.in_features) / w0
    nn.init.uniform_(linear.weight, -bound, bound)
    if linear.bias is not None:
        nn.init.uniform_(linear.bias, -bound, bound)
    return linear


class Sine(nn.Module):
    """The activation sin(w0 x).

    Args:
        w0: Frequency, in radians for each unit of the input.
    """

    def __init__(self, w0: float = 1.0) -> None:
        super().__init__()
        checks.positive("w0", w0)
        self.w0 = w0

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.w0 * x)

    def extra_repr(self) -> str:
        return f"w0={self.w0}"


class SirenLayer(nn.Module):
    """A linear layer with a sine: sin(w0 (W x + b)).

    Args:
        in_features: Size of the inputs.
        out_features: Size of the outputs.
        w0: Frequency; 30 is the paper's for the first layer.
        first: Whether the inputs are the coordinates, which decides the first weights (:func:`siren_init_`).
        bias: Whether there is a bias b.
        dropout: Share of the outputs of the linear layer that are set to zero during training.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``.

    Source: Sitzmann et al., 2020, arXiv:2006.09661, section 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        w0: float = 1.0,
        *,
        first: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear = siren_init_(nn.Linear(in_features, out_features, bias, device, dtype), w0, first=first)
        self.dropout = nn.Dropout(dropout)
        self.activation = Sine(w0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.dropout(self.linear(x)))
        return out


class SirenNet(nn.Module):
    """Sine layers and a linear layer behind them, from coordinates to values.

    Args:
        in_features: Size of the coordinates.
        hidden: Width of the sine layers.
        out_features: Size of the values.
        num_layers: Number of sine layers.
        w0: Frequency of the sine layers behind the first.
        w0_initial: Frequency of the first one: how fast the network's functions may change with the coordinates.
        dropout: As of :class:`SirenLayer`.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``.

    Source: Sitzmann et al., 2020, arXiv:2006.09661, section 3.

    Example:
        >>> net = SirenNet(2, 64, 1, num_layers=2)
        >>> net(torch.zeros(5, 2)).shape
        torch.Size([5, 1])
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        num_layers: int = 2,
        *,
        w0: float = 1.0,
        w0_initial: float = 30.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "hidden": hidden, "out_features": out_features, "num_layers": num_layers}
        for name, value in sizes.items():
            checks.at_least(name, value, 1)
        widths = [in_features, *[hidden] * num_layers]
        self.layers = nn.Sequential(
            *(
                SirenLayer(
                    inputs, outputs, w0_initial if index == 0 else w0,
                    first=index == 0, dropout=dropout, device=device, dtype=dtype,
                )
                for index, (inputs, outputs) in enumerate(pairwise(widths))
            )
        )  # fmt: skip
        self.readout = siren_init_(nn.Linear(hidden, out_features, True, device, dtype), w0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.readout(self.layers(x))
        return out


__all__ = ["Sine", "SirenLayer", "SirenNet", "siren_init_"]
