"""Networks of longitude and latitude: an encoding, then a network (Rußwurm et al. 2023, arXiv:2310.06743).

Public name: :class:`LocationEncoder`.
"""

from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers.location import FCNet, make_encoding
from netwright.layers.siren import SirenNet

Network = Literal["linear", "fcnet", "siren"]


class LocationEncoder(nn.Module):
    """Any encoding of the study with any of its networks.

    The defaults are the paper's for land and ocean: 10 degrees of spherical harmonics, SIREN with 2 layers of 64.

    Args:
        encoding: A name of :data:`netwright.layers.location.ENCODINGS`, or a module of one's own that maps longitude
            and latitude ``(N, 2)`` to ``(N, features)`` and has ``out_features``.
        network: ``"linear"``, ``"fcnet"`` or ``"siren"``.
        out_features: Classes or values.
        hidden: Width of the network.
        num_layers: Sine layers of SIREN.
        dropout: Of the network; 0.5 for FCNet and 0 for SIREN, if not given.
        device: Of the parameters.
        dtype: Of the parameters.
        options: Arguments of the encoding, such as ``legendre_polys``.

    Shape:
        Longitude and latitude in degrees ``(N, 2)`` to ``(N, out_features)``.

    Raises:
        InputError: If a name or an option is not known; by the input, as the encodings.

    Source:
        Rußwurm et al. 2023, arXiv:2310.06743, section 3.

    Example:
        >>> model = LocationEncoder(out_features=1)
        >>> model(torch.tensor([[13.4, 52.5]])).shape, sum(p.numel() for p in model.parameters())
        (torch.Size([1, 1]), 10689)
    """

    def __init__(
        self,
        encoding: str | nn.Module = "spherical-harmonics",
        network: Network = "siren",
        out_features: int = 1,
        *,
        hidden: int = 64,
        num_layers: int = 2,
        dropout: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        checks.known("network", network, get_args(Network))
        checks.at_least("out_features", out_features, 1)
        self.encoding = make_encoding(encoding, **options) if isinstance(encoding, str) else encoding
        if not isinstance(encoding, str) and options:
            checks.fail("options belong to an encoding that is given by its name", f"{sorted(options)} and a module")
        features = getattr(self.encoding, "out_features", None)
        if not isinstance(features, int):
            checks.fail("an encoding must have out_features, the size of what it returns", type(encoding).__name__)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.encoding.to(**factory)
        if network == "linear":
            self.network: nn.Module = nn.Linear(features, out_features, **factory)
        elif network == "fcnet":
            share = 0.5 if dropout is None else dropout
            self.network = FCNet(features, hidden, out_features, dropout=share, **factory)
        else:
            self.network = SirenNet(features, hidden, out_features, num_layers, dropout=dropout or 0.0, **factory)

    def forward(self, lonlat: Tensor) -> Tensor:
        out: Tensor = self.network(self.encoding(lonlat))
        return out

    def param_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """For the optimiser: weight decay on the network, none on what an encoding of one's own may learn."""
        return [
            {"params": list(self.network.parameters()), "weight_decay": weight_decay},
            {"params": list(self.encoding.parameters()), "weight_decay": 0.0},
        ]


__all__ = ["LocationEncoder", "Network"]
