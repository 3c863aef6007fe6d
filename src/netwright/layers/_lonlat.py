"""Places on the globe as longitude and latitude in degrees: checks, and one name for each place."""

import torch
from torch import Tensor

from netwright import checks


def check_lonlat(lonlat: Tensor) -> None:
    """Raise InputError unless ``lonlat`` is ``(N, 2)`` with finite longitudes and latitudes between the poles.

    Values cannot be looked at while compiling, on ``meta`` and inside of ``torch.func``; there only the shape counts.
    """
    checks.dimensions("lonlat", lonlat, "(N, 2)")
    checks.size("lonlat", lonlat, 1, 2)
    checks.floating_point("lonlat", lonlat)
    hidden = torch.compiler.is_compiling() or lonlat.is_meta or torch._C._are_functorch_transforms_active()
    if hidden or not len(lonlat):
        return
    lon, lat = lonlat.detach().unbind(1)
    wrong = ~(lat.abs() <= 90)
    if wrong.any():
        checks.fail("latitudes (the second column) must be in [-90, 90] degrees", f"{lat[wrong][0].item():g}")
    if not lon.isfinite().all():
        checks.fail("longitudes (the first column) must be finite", f"{lon[~lon.isfinite()][0].item():g}")


def wrap_longitude(lon: Tensor) -> Tensor:
    """The same meridian in (−180, 180]; what lies there already stays as it is, to the bit."""
    return lon - 360 * torch.ceil((lon - 180) / 360)


def over_the_poles(lonlat: Tensor) -> Tensor:
    """The places that are reached by walking on over a pole: latitude 95 is latitude 85 on the other side.

    Args:
        lonlat: ``(N, 2)``, any finite numbers.

    Returns:
        ``(N, 2)`` with latitudes in [−90, 90].

    Example:
        >>> over_the_poles(torch.tensor([[10.0, 95.0], [10.0, -20.0]])).tolist()
        [[190.0, 85.0], [10.0, -20.0]]
    """
    lon, lat = lonlat.unbind(1)
    lat = lat - 360 * torch.round(lat / 360)
    beyond = lat.abs() > 90
    lat = torch.where(beyond, torch.copysign(torch.full_like(lat, 180), lat) - lat, lat)
    return torch.stack([torch.where(beyond, lon + 180, lon), lat], dim=1)


def sines_of_latitude(lat: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of latitudes in degrees; the cosine is exactly 0 at the poles, so that these are one place."""
    return torch.sin(torch.deg2rad(lat)), torch.sin(torch.deg2rad(90 - lat.abs()))


__all__ = ["check_lonlat", "over_the_poles", "sines_of_latitude", "wrap_longitude"]
