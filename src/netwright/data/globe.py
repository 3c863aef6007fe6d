"""Data on the globe with a known truth: the checkerboard of Rußwurm et al. 2023 (arXiv:2310.06743), species sightings.

Places are longitude and latitude in degrees ``(N, 2)``. Public names: :func:`fibonacci_lattice`,
:func:`uniform_on_sphere`, :func:`great_circle`, :func:`nearest`, :func:`latitude_bands`, :func:`checkerboard`,
:func:`species_sightings`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from netwright import checks
from netwright.data.splits import Split, Splits, Task

_GOLDEN = (1 + math.sqrt(5)) / 2
_CHUNK = 4096


def fibonacci_lattice(points: int) -> Tensor:
    r"""Points that cover the sphere almost evenly, for any even number of them.

    .. math:: \text{lat}_i = \arcsin \frac{2i}{2N+1}, \qquad \text{lon}_i = 360 \, \frac{i \bmod \Phi}{\Phi}, \qquad
        i = -N \dots N-1

    with the golden ratio Φ, N half the number of points, and longitudes brought to (−180, 180].

    Args:
        points: How many, an even number.

    Returns:
        ``(points, 2)`` in float64.

    Source:
        González 2010, arXiv:0912.4540, as Rußwurm et al. 2023 use it.

    Example:
        >>> lattice = fibonacci_lattice(200)
        >>> lattice.shape, lattice[:, 1].abs().max() < 90
        (torch.Size([200, 2]), tensor(True))
    """
    checks.at_least("points", points, 2)
    checks.divisible("points", points, "2", 2)
    half = points // 2
    i = torch.arange(-half, half, dtype=torch.float64)
    lon = 360 * torch.remainder(i, _GOLDEN) / _GOLDEN
    lat = torch.rad2deg(torch.asin(2 * i / (2 * half + 1)))
    return torch.stack([torch.where(lon > 180, lon - 360, lon), lat], dim=1)


def uniform_on_sphere(samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Places drawn uniformly by area, ``(samples, 2)`` in float64."""
    checks.at_least("samples", samples, 1)
    return _places(torch.randn(samples, 3, dtype=torch.float64, generator=generator))


def great_circle(first: Tensor, second: Tensor) -> Tensor:
    r"""Distances along the sphere, in radians, by the haversine formula (exact for near places, too).

    .. math:: d = 2 \arcsin \sqrt{\sin^2 \tfrac{\Delta\phi}{2} + \cos\phi_1 \cos\phi_2 \sin^2 \tfrac{\Delta\lambda}{2}}

    Args:
        first: ``(…, 2)``.
        second: ``(…, 2)``, of a shape that broadcasts.

    Returns:
        ``(…)``; times 6,371 for kilometres on the Earth.

    Example:
        >>> berlin, santiago = torch.tensor([13.40, 52.52]), torch.tensor([-70.65, -33.45])
        >>> round(great_circle(berlin, santiago).item() * 6371, -2)
        12500.0
    """
    first, second = torch.deg2rad(first), torch.deg2rad(second)
    half = ((second - first) / 2).sin().square()
    chord = half[..., 1] + first[..., 1].cos() * second[..., 1].cos() * half[..., 0]
    return 2 * torch.asin(chord.clamp(0, 1).sqrt())


def nearest(lonlat: Tensor, support: Tensor) -> Tensor:
    """For each place the number of the nearest point of ``support`` ``(points, 2)``, ``(N,)`` int64."""
    targets = _unit_vectors(support.double())
    found = [(_unit_vectors(part.double()) @ targets.T).argmax(1) for part in torch.split(lonlat, _CHUNK)]
    return torch.cat(found)


def latitude_bands(lonlat: Tensor, edges: Sequence[float]) -> Tensor:
    """The number of the band of latitude that each place lies in, as :func:`netwright.training.score_groups` takes it.

    Args:
        lonlat: ``(N, 2)``.
        edges: Rising latitudes between the bands; n edges make n + 1 bands, and an edge belongs to the band above it.

    Example:
        >>> latitude_bands(torch.tensor([[0.0, -70.0], [0.0, 0.0], [0.0, 60.0]]), [-60, 60])
        tensor([0, 1, 2])
    """
    return torch.bucketize(lonlat[:, 1].contiguous(), torch.tensor(edges, dtype=lonlat.dtype), right=True)


def checkerboard(
    samples: int = 10_000, support: int = 200, classes: int = 16, *, test: int = 10_000, seed: int = 0
) -> Splits:
    """Cells of almost equal area on the sphere, coloured in turns: no easier at the equator than at the poles.

    The cells are those of a Fibonacci lattice: a place has the class i mod ``classes`` of the nearest point i. Training
    and validation places are uniform on the sphere, test places a finer lattice.

    Args:
        samples: Places for training, and as many for validation.
        support: Number of cells, even.
        classes: Number of classes, at most ``support``.
        test: Number of test places, even.
        seed: Draws the training and validation places.

    Returns:
        Splits with inputs ``(N, 2)``, longitude and latitude in degrees as they are, in float32.

    Source:
        Rußwurm et al. 2023, arXiv:2310.06743, section 4.

    Example:
        >>> splits = checkerboard(1_000, support=100, seed=1)
        >>> splits.train.inputs.shape, splits.test.inputs.shape, splits.outputs
        (torch.Size([1000, 2]), torch.Size([10000, 2]), 16)
    """
    checks.between("classes", classes, 2, support)
    cells = fibonacci_lattice(support)
    labels = torch.arange(-(support // 2), support // 2) % classes
    generator = torch.Generator().manual_seed(seed)

    def coloured(lonlat: Tensor) -> Split:
        return Split(lonlat.float(), labels[nearest(lonlat, cells)])

    return Splits(
        "checkerboard on the globe",
        coloured(uniform_on_sphere(samples, generator)),
        coloured(uniform_on_sphere(samples, generator)),
        coloured(fibonacci_lattice(test)),
        Task.TABULAR_CLASSIFICATION,
        (2,),
        tuple(str(number) for number in range(classes)),
        ("longitude", "latitude"),
    )


@dataclass(frozen=True, eq=False)
class Sightings:
    """Where species were seen; nobody says where they were not.

    Attributes:
        lonlat: Places ``(samples, 2)``, float32.
        species: What was seen there ``(samples,)``, int64.
        centres: Middle of the range of each species ``(species, 2)``.
        radii: Radius of each range in degrees ``(species,)``.
    """

    lonlat: Tensor
    species: Tensor
    centres: Tensor
    radii: Tensor

    def occurs(self, lonlat: Tensor) -> Tensor:
        """The truth: whether each species lives at each place, ``(N, species)``."""
        return great_circle(lonlat.double()[:, None], self.centres) <= torch.deg2rad(self.radii)


def species_sightings(
    samples: int,
    species: int,
    *,
    radii: tuple[float, float] = (10.0, 40.0),
    imbalance: float = 20.0,
    generator: torch.Generator | None = None,
) -> Sightings:
    """Sightings of species that each live within a circle of their own, some seen far more often than others.

    Args:
        samples: Number of sightings.
        species: Number of species.
        radii: Smallest and largest radius of a range, in degrees; drawn uniformly between them.
        imbalance: How many times more often the first species is seen than the last; geometric in between.
        generator: Source of randomness.

    Raises:
        InputError: If a number is not positive, or the radii are not rising within (0, 180].

    Example:
        >>> seen = species_sightings(500, 5, generator=torch.Generator().manual_seed(0))
        >>> seen.occurs(seen.lonlat)[torch.arange(500), seen.species].all()
        tensor(True)
    """
    checks.at_least("samples", samples, 1)
    checks.at_least("species", species, 1)
    checks.at_least("imbalance", imbalance, 1)
    low, high = radii
    if not 0 < low <= high <= 180:
        checks.fail("radii must be rising, in (0, 180] degrees", radii)
    centres = uniform_on_sphere(species, generator)
    widths = low + (high - low) * torch.rand(species, dtype=torch.float64, generator=generator)
    odds = imbalance ** -torch.linspace(0, 1, species, dtype=torch.float64)
    seen = torch.multinomial(odds, samples, replacement=True, generator=generator)
    # uniform in a circle around the North Pole, then the pole is turned into the centre
    height, turn = torch.rand(2, samples, dtype=torch.float64, generator=generator)
    limit = torch.deg2rad(widths[seen] * (1 - 1e-6)).cos()  # float32 places at the rim must not fall out
    cos = limit + (1 - limit) * height
    sin = (1 - cos.square()).clamp(min=0).sqrt()
    lon, lat = torch.deg2rad(centres[seen]).unbind(1)
    up = torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)
    east = torch.stack([-lon.sin(), lon.cos(), torch.zeros_like(lon)], dim=1)
    north = torch.linalg.cross(up, east)
    angle = 2 * math.pi * turn
    vectors = cos[:, None] * up + sin[:, None] * (angle.cos()[:, None] * east + angle.sin()[:, None] * north)
    return Sightings(_places(vectors).float(), seen, centres, widths)


def _unit_vectors(lonlat: Tensor) -> Tensor:
    lon, lat = torch.deg2rad(lonlat).unbind(1)
    return torch.stack([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], dim=1)


def _places(vectors: Tensor) -> Tensor:
    x, y, z = vectors.unbind(1)
    return torch.rad2deg(torch.stack([torch.atan2(y, x), torch.atan2(z, torch.hypot(x, y))], dim=1))


__all__ = [
    "Sightings",
    "checkerboard",
    "fibonacci_lattice",
    "great_circle",
    "latitude_bands",
    "nearest",
    "species_sightings",
    "uniform_on_sphere",
]
