"""Local complexity (Humayun, Balestriero, Baraniuk 2024, arXiv:2402.15555): how a network folds space at a point.

:func:`local_complexity` estimates it around points of any dimension, :class:`ComplexityTracker` follows it while a
network learns, and :func:`count_regions_on_segment` counts linear regions along a line exactly.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules import pooling

from netwright import checks
from netwright.analysis._segment import Segment, distinct, rows_of
from netwright.analysis.capture import watch_activations
from netwright.surgery import eval_mode

_VALUES_AT_ONCE = 2**20


@dataclass(frozen=True, eq=False)
class LocalComplexity:
    """How many units' hyperplanes cut the neighbourhoods of some points.

    Attributes:
        layers: The module that runs each activation function, in the order in which they run; of one that runs several
            times, the later ones are called ``"name (2)"`` and so on.
        counts: ``(points, layers)``, int64.
        units: Number of units of each layer, places of convolutions included.
    """

    layers: tuple[str, ...]
    counts: Tensor
    units: tuple[int, ...]

    @property
    def fractions(self) -> Tensor:
        """Counts as fractions of the units of their layer, ``(points, layers)``, float64."""
        return self.counts / torch.tensor(self.units, dtype=torch.float64)

    @property
    def total(self) -> Tensor:
        """Local complexity of every point: the sum over layers, ``(points,)``."""
        return self.counts.sum(1)


def local_complexity(
    model: nn.Module,
    points: Tensor,
    radius: float = 0.005,
    vertices: int = 40,
    *,
    layers: Iterable[str] | None = None,
    orthogonal: bool = True,
    include_centre: bool = False,
    generator: torch.Generator | None = None,
) -> LocalComplexity:
    r"""Count the units whose sign differs between the vertices of a small cross-polytope around each point.

    .. math:: \mathrm{LC}_\ell(x) = \#\{\, i : \exists\, p, q:\;
        \operatorname{sign} z_i^\ell(x + r v_p) \ne \operatorname{sign} z_i^\ell(x + r v_q) \,\},
        \qquad v \in \{\pm q_1, \dots, \pm q_{P/2}\}

    with z the input of an activation function and q orthonormal directions, the same for all points. In the first layer
    of a ReLU network these are the hyperplanes through the hull of the vertices; in later ones the count is a lower
    bound of them, since a folded hyperplane may enter and leave the hull between the vertices. Whatever the network
    does before an activation (residual sums, normalisation) is part of z. Of activations without a fold at 0 (GELU,
    tanh) the sign of their input counts too. The model is run in eval mode, without autocast, and left as it was.

    Args:
        model: A network with activation functions (:data:`netwright.analysis.capture.ACTIVATIONS`).
        points: ``(points, *input_shape)``, single or double precision.
        radius: r, in units of the input.
        vertices: P; even, at most twice the input's dimension if orthogonal.
        layers: Which activations to count, named as :attr:`LocalComplexity.layers` does; all, if not given.
        orthogonal: Without it directions are drawn independently and scaled to length 1.
        include_centre: Let the point itself be one vertex more.
        generator: Draws the directions; one with seed 0 if not given.

    Raises:
        InputError: If the radius is not positive, ``vertices`` is odd, below 2 or too many, points or weights are not
            of single or double precision, the model runs no activation function, or none of a name.

    Source:
        arXiv:2402.15555, section 3.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 0.0]])), model[0].bias.zero_()
        >>> local_complexity(model, torch.tensor([[0.01, 5.0], [3.0, 5.0]]), radius=0.1, vertices=4).total
        tensor([1, 0])
    """
    steps = _steps(points, radius, vertices, orthogonal, include_centre, generator)
    return _measure(model, points, steps, layers)


def frame(
    points: Tensor, vertices: int, *, orthogonal: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Half of the vertices of a cross-polytope of radius 1: directions ``(vertices / 2, *input_shape)``."""
    if points.ndim < 2:
        checks.fail("points must have shape (points, *input_shape)", f"shape {tuple(points.shape)}")
    checks.at_least("number of points", len(points), 1)
    if points.dtype not in (torch.float32, torch.float64):
        checks.fail("points must be of single or double precision", points.dtype)
    checks.at_least("vertices", vertices, 2)
    checks.divisible("vertices", vertices, "the two signs of a direction", 2)
    size, number = points[0].numel(), vertices // 2
    if orthogonal and number > size:
        checks.fail(f"vertices must be at most twice the input's dimension ({size}) to be orthogonal", vertices)
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.randn(size, number, dtype=torch.float64, generator=generator, device=generator.device)
    columns = torch.linalg.qr(drawn).Q if orthogonal else nn.functional.normalize(drawn, dim=0)
    return columns.T.reshape(number, *points.shape[1:]).to(points)


def _steps(
    points: Tensor,
    radius: float,
    vertices: int,
    orthogonal: bool = True,
    include_centre: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The way from a point to each vertex, ``(vertices, *input_shape)``."""
    checks.positive("radius", radius)
    directions = frame(points, vertices, orthogonal=orthogonal, generator=generator)
    steps = radius * torch.cat([directions, -directions])
    return torch.cat([steps, torch.zeros_like(steps[:1])]) if include_centre else steps


@torch.no_grad()
def _measure(model: nn.Module, points: Tensor, steps: Tensor, layers: Iterable[str] | None = None) -> LocalComplexity:
    weight = next((p for p in model.parameters() if p.is_floating_point()), points)
    if weight.dtype not in (torch.float32, torch.float64):
        checks.fail("weights must be of single or double precision, or their rounding counts as folds", weight.dtype)
    chunk = max(1, _VALUES_AT_ONCE // steps.numel())
    steps = steps.to(weight.device)
    counts = []
    # one block of memory for all chunks: fresh pages for each cost more than the sums
    room = points.new_empty(min(chunk, len(points)), *steps.shape, device=weight.device)
    cut = _CutUnits(len(steps))
    with eval_mode(model), torch.autocast(weight.device.type, enabled=False), watch_activations(model, cut.see):
        for part in torch.split(points, chunk):
            cut.start(len(part))
            model(torch.add(part.to(weight.device)[:, None], steps, out=room[: len(part)]).flatten(0, 1))
            if not cut.counts:
                raise checks.InputError(
                    "the model must run activation functions such as ReLU for its space to be folded, got none"
                )
            counts.append(torch.stack(list(cut.counts.values()), 1).cpu())
    names = tuple(cut.counts)
    chosen = names if layers is None else tuple(layers)
    for name in chosen:
        checks.known("layer with an activation", name, names)
    columns = [names.index(name) for name in chosen]
    return LocalComplexity(chosen, torch.cat(counts)[:, columns], tuple(cut.units[name] for name in chosen))


class _CutUnits:
    """Counts, layer by layer, the units that cut each neighbourhood while a batch of vertices runs."""

    def __init__(self, vertices: int) -> None:
        self.vertices = vertices
        self.units: dict[str, int] = {}
        self.start(0)

    def start(self, points: int) -> None:
        """Forget the last batch and expect one of so many points."""
        self.points = points
        self.counts: dict[str, Tensor] = {}

    def see(self, layer: str, function: str, entering: Tensor) -> None:  # noqa: ARG002
        rows = rows_of(entering, self.points * self.vertices)
        if rows is None:
            return
        name, times = layer, 1
        while name in self.counts:
            times += 1
            name = f"{layer} ({times})"
        around_each = rows.view(self.points, self.vertices, -1)
        # two passes over the values take a fifth of the time of torch.aminmax, which vectorises badly here
        self.counts[name] = ((around_each.amin(1) <= 0) & (around_each.amax(1) > 0)).sum(1)
        self.units[name] = rows.shape[1]


class ComplexityTracker:
    """Follows local complexity around several sets of points while a network learns.

    Call it with the number of updates so far, as often as you like: it measures when a step is due. As it takes the
    records of :func:`netwright.training.fit` too, it can be its ``observer``. The model is left as it was, and so are
    the random generators. All measurements use the same directions, which are drawn once.

    Args:
        model: The network that learns.
        probes: Name to points ``(points, *input_shape)``, usually of the training part, the test part and random ones
            (:func:`random_probes`).
        steps: When to measure, such as :func:`log_spaced`; a step that was passed over is made up for at the next
            call. At every call if not given.
        radius: As of :func:`local_complexity`.
        vertices: As of :func:`local_complexity`.
        orthogonal: As of :func:`local_complexity`.
        include_centre: As of :func:`local_complexity`.
        generator: Draws the directions; one with seed 0 if not given.

    Attributes:
        steps: Steps at which it was measured.
        means: Name of the probes to the local complexity of the network, mean over points, at each of these steps.
        layers: Name of the probes to the means of every layer at each of these steps, ``(layers,)``, float64.

    Raises:
        InputError: If there are no probes, or their shapes differ; and as :func:`local_complexity`.

    Example:
        >>> model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)), torch.randn(32, 4)
        >>> tracker = ComplexityTracker(model, {"train": x, "random": random_probes(x)}, log_spaced(100), vertices=8)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for step in range(101):
        ...     tracker(step)
        ...     loss = model(x).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        >>> tracker.steps[:5], tracker.steps[-1], len(tracker.means["train"]) == len(tracker.steps)
        ([0, 1, 2, 3, 4], 100, True)
    """

    def __init__(
        self,
        model: nn.Module,
        probes: Mapping[str, Tensor],
        steps: Iterable[int] | None = None,
        *,
        radius: float = 0.005,
        vertices: int = 40,
        orthogonal: bool = True,
        include_centre: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        shapes = {name: tuple(points.shape[1:]) for name, points in probes.items()}
        if len(set(shapes.values())) != 1:
            checks.fail("probes must be one or more sets of points of the same shape", shapes)
        self.model = model
        self.probes = dict(probes)
        self.steps: list[int] = []
        self.means: dict[str, list[float]] = {name: [] for name in probes}
        self.layers: dict[str, list[Tensor]] = {name: [] for name in probes}
        self._due = None if steps is None else sorted(set(steps), reverse=True)
        first = next(iter(self.probes.values()))
        self._steps = _steps(first, radius, vertices, orthogonal, include_centre, generator)

    def __call__(self, at: int | Mapping[str, float]) -> None:
        """Measure if it is due; ``at`` is the number of updates so far, or a record that has it as ``"step"``."""
        step = at if isinstance(at, int) else int(at["step"])
        if self._due is not None:
            if not self._due or step < self._due[-1]:
                return
            while self._due and self._due[-1] <= step:
                self._due.pop()
        self.steps.append(step)
        for name, points in self.probes.items():
            counts = _measure(self.model, points, self._steps.to(points)).counts.double().mean(0)
            self.layers[name].append(counts)
            self.means[name].append(counts.sum().item())


def log_spaced(last: int, number: int = 50) -> tuple[int, ...]:
    """Steps from 0 to ``last``, equally spaced in the logarithm; at most ``number`` after 0.

    Example:
        >>> log_spaced(100, 5)
        (0, 1, 3, 10, 32, 100)
    """
    checks.at_least("last step", last, 1)
    checks.at_least("number of steps", number, 2)
    return 0, *sorted({round(last ** (i / (number - 1))) for i in range(number)})


def random_probes(points: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """As many points, uniform between the smallest and the largest value of ``points``; seed 0 if no generator."""
    generator = generator or torch.Generator().manual_seed(0)
    low, high = points.aminmax()
    drawn = torch.rand(points.shape, generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * drawn.to(points)


def count_regions_on_segment(model: nn.Module, a: Tensor, b: Tensor) -> int:
    """The exact number of linear regions that the segment from ``a`` to ``b`` runs through.

    One more than :func:`breakpoints_on_segment`, which says how and for which networks.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(1.0), model[0].bias.copy_(torch.tensor([-0.25, -0.5]))
        >>> count_regions_on_segment(model, torch.tensor([0.0]), torch.tensor([1.0]))
        3
    """
    return len(breakpoints_on_segment(model, a, b)) + 1


@torch.no_grad()
def breakpoints_on_segment(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    r"""Where on the segment from ``a`` to ``b`` a unit of a piecewise linear network switches.

    Between the breakpoints :math:`t_0 < t_1 < \dots` of the activations that run before it, the input z of an
    activation is linear in :math:`t`, so that its zeros are exactly

    .. math:: t = t_j + (t_{j+1} - t_j) \frac{z(t_j)}{z(t_j) - z(t_{j+1})},

    and are breakpoints too. This is repeated activation by activation, on a copy of the model in eval mode and float64.

    Args:
        model: A network of affine layers and of ReLU, leaky ReLU or PReLU; normalisation must have fixed statistics.
        a: Start, an input of the model without the batch dimension.
        b: End, of the same shape.

    Returns:
        Places t of the breakpoints, ascending, in (0, 1), float64. Those that differ by less than 1e-12 count as one.

    Raises:
        InputError: If an activation folds elsewhere than at 0 (GELU, tanh, hardtanh, …), if there is max pooling, or if
            something else bends between the breakpoints, such as softmax, layer normalisation or a product; if a and
            b differ in shape, or no activation function is run.

    Source:
        The partition of arXiv:2402.15555, section 2, along one dimension.

    Example:
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        >>> with torch.no_grad():
        ...     _ = model[0].weight.fill_(1.0), model[0].bias.fill_(-0.25)
        >>> breakpoints_on_segment(model, torch.tensor([0.0]), torch.tensor([1.0])).tolist()
        [0.25]
    """
    checks.floating_point("a", a)
    if a.shape != b.shape:
        checks.fail(f"b must have the shape of a, {tuple(a.shape)}", f"shape {tuple(b.shape)}")
    for name, module in model.named_modules():
        if isinstance(module, (pooling._MaxPoolNd, pooling._AdaptiveMaxPoolNd)):
            checks.fail("regions cannot be counted through max pooling, which folds where two inputs are equal", name)
    exact = copy.deepcopy(model).double().eval()
    device = next((p.device for p in exact.parameters()), a.device)
    segment = Segment(exact, a.to(device, torch.float64), b.to(device, torch.float64))
    places = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
    index = 0
    while (zeros := segment.zeros(index, places)) is not None:
        places = distinct(torch.cat([places, zeros]))
        index += 1
    if index == 0:
        raise checks.InputError("the model must run activation functions such as ReLU to have regions, got none")
    return places[1:-1].cpu()


__all__ = [
    "ComplexityTracker",
    "LocalComplexity",
    "breakpoints_on_segment",
    "count_regions_on_segment",
    "frame",
    "local_complexity",
    "log_spaced",
    "random_probes",
]
