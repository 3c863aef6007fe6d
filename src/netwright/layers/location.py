"""Encodings of longitude and latitude beside spherical harmonics (the study of Rußwurm et al. 2023, arXiv:2310.06743).

The nine baselines of the study (:class:`Direct`, :class:`Cartesian3D`, :class:`Wrap`, :class:`Grid`, :class:`SphereC`,
:class:`SphereCPlus`, :class:`SphereM`, :class:`SphereMPlus`, :class:`Theory`), :func:`make_encoding` for all ten by
name, and :class:`FCNet`, the residual network of GeoPrior.
"""

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._lonlat import check_lonlat, sines_of_latitude, wrap_longitude
from netwright.layers.spherical_harmonics import SphericalHarmonics


class Direct(nn.Module):
    """Longitude λ and latitude φ in radians: torn at the date line, stretched at the poles.

    Shape:
        Longitude and latitude in degrees ``(N, 2)`` to ``(N, 2)``; the same input for all encodings of this file.

    Attributes:
        out_features: Size of the encoding.

    Raises:
        InputError: If the input is not ``(N, 2)``, a latitude is beyond ±90 or a longitude infinite.

    Example:
        >>> Direct()(torch.tensor([[180.0, -90.0]]))
        tensor([[ 3.1416, -1.5708]])
    """

    out_features = 2

    def forward(self, lonlat: Tensor) -> Tensor:
        check_lonlat(lonlat)
        # half open the other way than wrap_longitude: −180 and 180 are the two sides of the date line
        lon = lonlat[:, 0] - 360 * torch.round(lonlat[:, 0] / 360)
        return torch.deg2rad(torch.stack([lon, lonlat[:, 1]], dim=1))


class Cartesian3D(nn.Module):
    """The point (cos φ cos λ, cos φ sin λ, sin φ) of the unit sphere; arguments and errors as :class:`Direct`.

    Example:
        >>> Cartesian3D()(torch.tensor([[90.0, 0.0]])).round(decimals=4) + 0
        tensor([[0., 1., 0.]])
    """

    out_features = 3

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, sin, cos = _angles(lonlat)
        return torch.stack([cos * lon.cos(), cos * lon.sin(), sin], dim=1)


class Wrap(nn.Module):
    """(cos λ, sin λ, cos φ, sin φ), as GeoPrior has it; arguments and errors as :class:`Direct`.

    Source: Mac Aodha, Cole and Perona 2019, *Presence-Only Geographical Priors*, arXiv:1906.05272.
    """

    out_features = 4

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, sin, cos = _angles(lonlat)
        return torch.stack([lon.cos(), lon.sin(), cos, sin], dim=1)


class _Scales(nn.Module):
    """Angles divided by the radii r_s = r_min (r_max / r_min)^(s / (S − 1)), s = 0 … S − 1."""

    per_scale: int

    def __init__(self, frequencies: int = 32, min_radius: float = 10.0, max_radius: float = 360.0) -> None:
        super().__init__()
        checks.at_least("frequencies", frequencies, 2)
        checks.positive("min_radius", min_radius)
        if not min_radius < max_radius < math.inf:
            checks.fail(f"max_radius must be larger than min_radius = {min_radius}", max_radius)
        self.frequencies, self.min_radius, self.max_radius = frequencies, min_radius, max_radius
        self.out_features = self.per_scale * frequencies
        ratio = max_radius / min_radius
        # no buffer, which a change of the module's type would round
        self.inverse_radii = [ratio ** (-s / (frequencies - 1)) / min_radius for s in range(frequencies)]

    def scaled(self, lonlat: Tensor) -> tuple[Tensor, Tensor]:
        """λ / r_s and φ / r_s, ``(N, S)`` each."""
        check_lonlat(lonlat)
        lon = lonlat[:, :1] - 360 * torch.round(lonlat[:, :1] / 360)
        inverse = lonlat.new_tensor(self.inverse_radii)
        return lon * inverse, lonlat[:, 1:] * inverse

    def extra_repr(self) -> str:
        return f"frequencies={self.frequencies}, min_radius={self.min_radius}, max_radius={self.max_radius}"


class Grid(_Scales):
    """Sines and cosines of longitude and latitude, each by itself, at many scales.

    cos λ_s, sin λ_s, cos φ_s, sin φ_s with λ_s = λ° / r_s and radii r_s in geometric progression.

    Args:
        frequencies: Number S of scales, at least 2.
        min_radius: r_min, in degrees a radian.
        max_radius: r_max.

    Shape:
        Longitude and latitude in degrees ``(N, 2)`` to ``(N, 4 S)``.

    Raises:
        InputError: As :class:`Direct`; if there are fewer than 2 scales, or the radii are not positive and rising.

    Source:
        Mai et al. 2020, *Multi-Scale Representation Learning for Spatial Feature Distributions using Grid Cells*,
        arXiv:2003.00824; radii as in Rußwurm et al. 2023.

    Example:
        >>> Grid(frequencies=16)(torch.tensor([[13.4, 52.5]])).shape
        torch.Size([1, 64])
    """

    per_scale = 4

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        return torch.cat([lon.cos(), lon.sin(), lat.cos(), lat.sin()], dim=1)


class SphereC(_Scales):
    """Products as of Cartesian coordinates at many scales: sin φ_s, cos φ_s cos λ_s, cos φ_s sin λ_s; as :class:`Grid`.

    The released code repeats each of these numbers; here each stands once, ``(N, 3 S)``.

    Source: Mai et al. 2022, *Sphere2Vec*, arXiv:2201.10489, equation 4.
    """

    per_scale = 3

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        return torch.cat([lat.sin(), lat.cos() * lon.cos(), lat.cos() * lon.sin()], dim=1)


class SphereCPlus(_Scales):
    """:class:`SphereC` and :class:`Grid` together, ``(N, 6 S)``; source: Mai et al. 2022, equation 10."""

    per_scale = 6

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        cos = lat.cos()
        return torch.cat([lat.sin(), cos, lon.sin(), lon.cos(), cos * lon.cos(), cos * lon.sin()], dim=1)


class SphereM(_Scales):
    """Products that take one of the two angles at many scales and the other as it is, ``(N, 5 S)``; as :class:`Grid`.

    sin φ_s, cos φ_s cos λ, cos φ cos λ_s, cos φ_s sin λ, cos φ sin λ_s. Angles "as they are" count in radians, as the
    formula has them; the released code feeds degrees to sine and cosine here.

    Source: Mai et al. 2022, *Sphere2Vec*, arXiv:2201.10489, equation 6.
    """

    per_scale = 5

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        return torch.cat([lat.sin(), *_mixed(lonlat, lon, lat)], dim=1)


class SphereMPlus(_Scales):
    """:class:`SphereM` and :class:`Grid` together, ``(N, 8 S)``; source: Mai et al. 2022, arXiv:2201.10489."""

    per_scale = 8

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        return torch.cat([lat.sin(), lat.cos(), lon.sin(), lon.cos(), *_mixed(lonlat, lon, lat)], dim=1)


class Theory(_Scales):
    """Sines and cosines along three directions 120° apart, as grid cells fire, at many scales, ``(N, 6 S)``.

    sin⟨x, a_j⟩ / r_s and cos⟨x, a_j⟩ / r_s for x = (λ°, φ°) and a_1, a_2, a_3 = (1, 0), (−1, √3) / 2, (−1, −√3) / 2;
    arguments and errors as :class:`Grid`.

    Source: Gao et al. 2019, *Learning Grid Cells as Vector Representation of Self-Position*, ICLR; Mai et al. 2020.
    """

    per_scale = 6

    def forward(self, lonlat: Tensor) -> Tensor:
        lon, lat = self.scaled(lonlat)
        half, height = lon / 2, lat * (math.sqrt(3) / 2)
        along = torch.cat([lon, height - half, -height - half], dim=1)
        return torch.cat([along.sin(), along.cos()], dim=1)


def _angles(lonlat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Longitude in radians, sine and cosine of latitude."""
    check_lonlat(lonlat)
    return torch.deg2rad(wrap_longitude(lonlat[:, 0])), *sines_of_latitude(lonlat[:, 1])


def _mixed(lonlat: Tensor, lon: Tensor, lat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    single = torch.deg2rad(lonlat)
    cos_single = single[:, 1:].cos()
    return (
        lat.cos() * single[:, :1].cos(),
        cos_single * lon.cos(),
        lat.cos() * single[:, :1].sin(),
        cos_single * lon.sin(),
    )


ENCODINGS: dict[str, type[nn.Module]] = {
    "spherical-harmonics": SphericalHarmonics,
    "direct": Direct,
    "cartesian3d": Cartesian3D,
    "wrap": Wrap,
    "grid": Grid,
    "sphere-c": SphereC,
    "sphere-c-plus": SphereCPlus,
    "sphere-m": SphereM,
    "sphere-m-plus": SphereMPlus,
    "theory": Theory,
}


def make_encoding(name: str, **options: Any) -> nn.Module:
    """An encoding by its name.

    Args:
        name: One of ``ENCODINGS``.
        options: Arguments of its constructor, such as ``legendre_polys`` or ``min_radius``.

    Raises:
        InputError: If there is no such encoding, or it has no such option.

    Example:
        >>> make_encoding("grid", frequencies=8).out_features
        32
    """
    checks.known("encoding", name, ENCODINGS)
    kind = ENCODINGS[name]
    known = [] if kind.__init__ is nn.Module.__init__ else list(inspect.signature(kind).parameters)
    for option in options:
        checks.known(f"option of encoding {name!r}", option, known)
    return kind(**options)


class FCNet(nn.Module):
    """The residual perceptron of GeoPrior: linear and ReLU, four residual blocks, a linear layer without bias.

    A block adds ReLU(W₂ dropout(ReLU(W₁ x))) to x.

    Args:
        in_features: Size of the encoding.
        hidden: Width.
        out_features: Classes or values.
        blocks: Number of residual blocks.
        dropout: Share of the units of a block that are set to zero during training.
        device: Of the parameters.
        dtype: Of the parameters.

    Shape:
        ``(..., in_features)`` to ``(..., out_features)``.

    Source:
        Mac Aodha, Cole and Perona 2019, arXiv:1906.05272.

    Example:
        >>> FCNet(100, 64, 16)(torch.zeros(5, 100)).shape
        torch.Size([5, 16])
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        out_features: int,
        *,
        blocks: int = 4,
        dropout: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"in_features": in_features, "hidden": hidden, "out_features": out_features}.items():
            checks.at_least(name, value, 1)
        checks.at_least("blocks", blocks, 0)
        checks.between("dropout", dropout, 0, 1, open_high=True)
        self.entry = nn.Sequential(nn.Linear(in_features, hidden, True, device, dtype), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(hidden, hidden, True, device, dtype),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden, True, device, dtype),
                nn.ReLU(),
            )
            for _ in range(blocks)
        )
        self.readout = nn.Linear(hidden, out_features, False, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.entry(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.readout(x)
        return out


__all__ = [
    "ENCODINGS",
    "Cartesian3D",
    "Direct",
    "FCNet",
    "Grid",
    "SphereC",
    "SphereCPlus",
    "SphereM",
    "SphereMPlus",
    "Theory",
    "Wrap",
    "make_encoding",
]
