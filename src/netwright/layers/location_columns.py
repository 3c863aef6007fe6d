"""Location encoding inside of a network for tables: two columns become an encoding of the place they name.

Public names: :class:`LocationColumns`, :func:`location_columns`, :class:`LocatedNetwork`, :func:`encode_location`.
"""

import math

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.data.globe import great_circle
from netwright.data.splits import Splits
from netwright.layers._lonlat import over_the_poles
from netwright.layers.spherical_harmonics import SphericalHarmonics
from netwright.surgery import eval_mode, swap


class LocationColumns(nn.Module):
    """Replace two normalised columns of a table by an encoding of the place; the other columns follow unchanged.

    Spherical harmonics are multiplied by √4π, so that each has mean square 1 over the sphere, as standardised columns
    have. Latitudes beyond a pole (noise may carry them there) are places on its other side.

    Args:
        features: Number of columns.
        lon: Number of the column of longitudes.
        lat: Number of the column of latitudes.
        mean: What 0 stands for in each column, in the user's units ``(features,)``; degrees in those two.
        std: What one unit stands for in each column ``(features,)``.
        encoding: Maps longitude and latitude in degrees ``(N, 2)`` to ``(N, encoding.out_features)``.

    Shape:
        ``(N, features)`` to ``(N, encoding.out_features + features − 2)``.

    Raises:
        InputError: If the two columns are the same or not there, or the statistics have another shape.

    Example:
        >>> columns = LocationColumns(3, 1, 0, torch.zeros(3), torch.ones(3), SphericalHarmonics(5))
        >>> columns(torch.tensor([[52.5, 13.4, 0.7]])).shape
        torch.Size([1, 26])
    """

    mean: Tensor
    std: Tensor
    others: Tensor

    def __init__(self, features: int, lon: int, lat: int, mean: Tensor, std: Tensor, encoding: nn.Module) -> None:
        super().__init__()
        if lon == lat or not all(0 <= column < features for column in (lon, lat)):
            checks.fail(f"longitude and latitude must be two of the {features} columns", f"columns {lon} and {lat}")
        for name, statistic in (("mean", mean), ("std", std)):
            if statistic.shape != (features,):
                checks.fail(f"{name} must have shape ({features},)", tuple(statistic.shape))
        self.lon, self.lat = lon, lat
        self.encoding = encoding
        self.scale = math.sqrt(4 * math.pi) if isinstance(encoding, SphericalHarmonics) else 1.0
        self.out_features = int(encoding.out_features) + features - 2  # type: ignore[arg-type]
        # float64: a coordinate is a difference of large numbers in float32 units
        self.register_buffer("mean", mean.double()[[lon, lat]])
        self.register_buffer("std", std.double()[[lon, lat]])
        others = [column for column in range(features) if column not in (lon, lat)]
        self.register_buffer("others", torch.tensor(others, dtype=torch.long), persistent=False)

    def places(self, inputs: Tensor) -> Tensor:
        """Longitude and latitude in degrees ``(N, 2)`` of normalised inputs, as float64."""
        return inputs[:, [self.lon, self.lat]].double() * self.std + self.mean

    def forward(self, inputs: Tensor) -> Tensor:
        checks.dimensions("inputs", inputs, "(N, features)")
        encoded = self.encoding(over_the_poles(self.places(inputs)).to(inputs.dtype))
        return torch.cat([self.scale * encoded, inputs[:, self.others]], dim=1)

    def extra_repr(self) -> str:
        return f"lon={self.lon}, lat={self.lat}"


def location_columns(
    splits: Splits, encoding: nn.Module, *, lat: str = "lat|latitude", lon: str = "lon|lng|long|longitude"
) -> LocationColumns:
    """Find the columns of a table that name a place.

    Args:
        splits: The table, as :func:`netwright.load` gives it.
        encoding: As in :class:`LocationColumns`.
        lat: Possible names of the column of latitudes in degrees, with ``|`` between them; capitals do not matter.
        lon: Likewise of longitudes.

    Raises:
        InputError: If not exactly one column has such a name, what it holds are no latitudes, or all places are so near
            to each other that spherical harmonics of this degree cannot tell them apart.
    """
    if splits.mean is None or splits.std is None or not splits.columns:
        raise checks.InputError("a location encoding needs a table with names and units of its columns")
    numbers = (_column(splits.columns, "lon", lon), _column(splits.columns, "lat", lat))
    columns = LocationColumns(len(splits.columns), *numbers, splits.mean, splits.std, encoding)
    for part in (splits.train, splits.val, splits.test):
        highest = columns.places(part.inputs)[:, 1].abs().max().item()
        if highest > 90.001:
            name = splits.columns[numbers[1]]
            checks.fail(f"column {name!r} must hold latitudes in degrees, within ±90", f"up to {highest:g}")
    if isinstance(encoding, SphericalHarmonics):
        places = columns.places(splits.train.inputs)
        extent = math.degrees(great_circle(places, places[:1]).max().item())
        resolution = 180 / encoding.legendre_polys
        if extent < resolution:
            raise checks.InputError(
                f"the places of this table lie within {extent:.3g}°, and {encoding.legendre_polys} degrees of "
                f"spherical harmonics tell apart what is {resolution:.3g}° away; give a larger legendre_polys (up to "
                "200), or leave the coordinates of so small an area as they are"
            )
    return columns


def _column(columns: tuple[str, ...], option: str, names: str) -> int:
    wanted = [name.strip().lower() for name in names.split("|")]
    found = [number for number, column in enumerate(columns) if column.strip().lower() in wanted]
    if len(found) == 1:
        return found[0]
    given = ", ".join(repr(columns[number]) for number in found) or "none"
    raise checks.InputError(
        f"a location encoding looks for one column of numbers called {' or '.join(wanted)}, found {given}; name it "
        f"(location-encoder[{option}=NAME]), one of: {', '.join(columns)}"
    )


class LocatedNetwork(nn.Module):
    """A network for tables behind :class:`LocationColumns`."""

    def __init__(self, columns: LocationColumns, network: nn.Module) -> None:
        super().__init__()
        self.columns = columns
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.network(self.columns(inputs))
        return out


def encode_location(model: nn.Module, example: Tensor, columns: LocationColumns) -> LocatedNetwork:
    """A copy of ``model`` that sees the encoding of a place instead of its longitude and latitude.

    Every linear layer that takes the columns as they are is replaced by a wider one with new first weights.

    Args:
        model: Maps a table ``(N, features)`` to anything; it is left as it is.
        example: A few rows, normalised.
        columns: Makes the wider table.

    Raises:
        InputError: If no ``nn.Linear`` takes the columns as they are, or the network cannot take more of them.

    Example:
        >>> columns = LocationColumns(3, 1, 0, torch.zeros(3), torch.ones(3), SphericalHarmonics(5))
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> encode_location(model, torch.rand(2, 3), columns).network[0]
        Linear(in_features=26, out_features=8, bias=True)
    """
    checks.dimensions("example", example, "(N, features)")
    first = _layers_that_take(model, example)
    if not first:
        raise checks.InputError(
            f"a location encoding widens the nn.Linear that takes the {example.shape[1]} columns of the table as they "
            "are; the network has none (put this recipe before those that replace layers)"
        )

    def wider(linear: nn.Linear) -> nn.Linear:
        weight = linear.weight
        return nn.Linear(
            columns.out_features, linear.out_features, linear.bias is not None, weight.device, weight.dtype
        )

    network = swap(model, {nn.Linear: wider}, where=lambda name, _: name in first)
    device = next((parameter.device for parameter in model.parameters()), example.device)
    located = LocatedNetwork(columns.to(device), network).train(model.training)
    try:
        with eval_mode(located), torch.no_grad():
            located(example.to(device))
    except (RuntimeError, ValueError, TypeError) as error:
        raise checks.InputError(
            f"the network must take the columns by its first linear layer alone to be given more of them; with "
            f"{columns.out_features} instead of {example.shape[1]} it fails: {error}"
        ) from error
    return located


def _layers_that_take(model: nn.Module, example: Tensor) -> set[str]:
    """Names of the linear layers whose input is the input of the model."""
    device = next((parameter.device for parameter in model.parameters()), example.device)
    example = example.to(device)
    found: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear:

            def look(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:  # noqa: ARG001
                if inputs and torch.equal(inputs[0], example):
                    found.add(name)

            handles.append(module.register_forward_pre_hook(look))
    try:
        with eval_mode(model), torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


__all__ = ["LocatedNetwork", "LocationColumns", "encode_location", "location_columns"]
