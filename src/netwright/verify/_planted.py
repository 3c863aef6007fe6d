"""Instances with a planted counterexample, and whether the strongest attacks still miss it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.surgery import eval_mode
from netwright.verify.bounds import MARGIN, Box
from netwright.verify.pgd import output_margins, strongest

# step as a multiple of the radius, and number of steps: the attacks that a published instance has survived
SCHEDULE: tuple[tuple[float, int], ...] = (
    (0.25, 0), (0.25, 100), (0.02, 100), (0.02, 250), (0.02, 500), (0.01, 1000), (0.01, 3000), (0.01, 5000),
)  # fmt: skip

# attack(model, x, y, box) gives one input for each of x
Attack = Callable[[nn.Module, Tensor, Tensor, Box], Tensor]


@dataclass(frozen=True, eq=False)
class InstanceSet:
    """Inputs with a planted counterexample, and as many without.

    Attributes:
        x: Inputs ``(num, *shape)`` around each of which a counterexample is planted.
        y: Their classes ``(num,)``.
        target: The classes of the planted counterexamples.
        x_cex: The planted counterexamples, within :attr:`box`.
        x_clean: Inputs around which none is planted.
        y_clean: Their classes.
        radius: Radius of the L∞ balls, epsilon · data_range.
        data_range: All inputs lie in ``[-data_range, data_range]``.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    x_cex: Tensor
    x_clean: Tensor
    y_clean: Tensor
    radius: float
    data_range: float

    def __post_init__(self) -> None:
        lower, upper = self.box
        if self.x_cex.shape != self.x.shape or not bool(((self.x_cex >= lower) & (self.x_cex <= upper)).all()):
            raise checks.InputError("planted counterexamples must lie within the balls around their inputs")

    @property
    def box(self) -> Box:
        """The balls around ``x``, cut at the range of the data."""
        return self._box(self.x)

    @property
    def clean_box(self) -> Box:
        """The balls around ``x_clean``."""
        return self._box(self.x_clean)

    def keep(self, mask: Tensor) -> Self:
        """Those planted instances alone for which ``mask`` ``(num,)`` is true; all clean ones stay."""
        checks.size("mask", mask, 0, len(self.x))
        kept = {name: getattr(self, name)[mask.to(self.x.device)] for name in ("x", "y", "target", "x_cex")}
        return replace(self, **kept)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        names = ("x", "y", "target", "x_cex", "x_clean", "y_clean")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def _box(self, x: Tensor) -> Box:
        # in the type of the inputs: a planted point is then inside to the last bit
        bound = self.data_range
        return Box((x - self.radius).clamp(-bound, bound), (x + self.radius).clamp(-bound, bound))


def make_instances(
    shape: tuple[int, ...],
    epsilon: float,
    num: int = 10,
    data_range: float = 0.1,
    generator: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    most_rejected: int = 10_000,
) -> InstanceSet:
    r"""Random inputs with random labels of two classes, and a planted counterexample in the ball around each.

    Inputs are uniform in :math:`[-r, r]`. The planted point is :math:`x + \delta`: δ is drawn uniformly in the ball of
    radius :math:`\epsilon r`; entries of at least 98 % of the radius stay (drawn again until there is one), all others
    get one small common value within :math:`\pm r/100`. Balls do not overlap, neither with the balls of other inputs
    nor with those around their planted points: :math:`\|x_i - x_j\|_\infty > 2 \epsilon r`.

    Args:
        shape: Shape of one input.
        epsilon: Radius of the balls as a fraction of ``data_range``.
        num: Number of inputs with a planted point, and again as many without.
        data_range: r.
        generator: Draws everything, on the CPU; one with seed 0 if not given.
        dtype: Type of the inputs; torch's default if not given.
        most_rejected: After how many inputs in a row that overlapped to give up.

    Raises:
        InputError: If ``epsilon`` is not between 0 and 1 (balls of radius ``data_range`` cannot be disjoint), ``num``
            is below 1 or ``data_range`` is not positive.
        RuntimeError: If no room is found for another ball.

    Source:
        Zhou et al. 2024, arXiv:2412.03154, section 3.

    Example:
        >>> made = make_instances((10,), epsilon=0.5, num=3)
        >>> made.x.shape, made.x_clean.shape, bool((made.x_cex <= made.box.upper).all())
        (torch.Size([3, 10]), torch.Size([3, 10]), True)
    """
    checks.at_least("num", num, 1)
    checks.positive("data_range", data_range)
    radius = epsilon * data_range
    if not 0 < radius < data_range:
        checks.fail(f"the radius epsilon·data_range must be above 0 and below data_range = {data_range:g}", radius)
    generator = generator or torch.Generator().manual_seed(0)
    dtype = dtype or torch.get_default_dtype()

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=dtype)

    def planted(x: Tensor) -> Tensor:
        while True:
            noise = uniform(-radius, radius)
            stays = noise.abs() >= 0.98 * radius
            if bool(stays.any()):
                break
        common = (2 * float(torch.rand(1, generator=generator)) - 1) * data_range / 100
        lower, upper = ((x + way * radius).clamp(-data_range, data_range) for way in (-1, 1))
        return (x + torch.where(stays, noise, common)).clamp(lower, upper)

    def apart(x: Tensor, others: Sequence[Tensor]) -> bool:
        return not others or bool(((torch.stack(list(others)) - x).abs().flatten(1).amax(1) > 2 * radius).all())

    bases: list[Tensor] = []
    points: list[Tensor] = []
    while len(bases) < 2 * num:
        for _ in range(most_rejected):
            x = uniform(-data_range, data_range)
            if apart(x, bases + points):
                point = planted(x) if len(bases) < num else None
                if point is None or apart(point, bases):
                    break
        else:
            raise RuntimeError(
                f"{most_rejected:,} inputs in a row overlapped with the {len(bases)} balls that there are: "
                "a smaller epsilon, fewer instances or more entries an input leave more room"
            )
        bases.append(x)
        points += [] if point is None else [point]
    labels = torch.randint(2, (2 * num,), generator=generator)
    inputs = torch.stack(bases)
    return InstanceSet(
        inputs[:num],
        labels[:num],
        1 - labels[:num],
        torch.stack(points),
        inputs[num:],
        labels[num:],
        radius,
        data_range,
    )


def counterexamples(model: nn.Module, instances: InstanceSet) -> Tensor:
    """For which instances ``(num,)`` the network gives the planted point another class, by at least 1e-6."""
    return _margins(model, instances.x_cex, instances.y) > MARGIN


def attack_survivors(
    model: nn.Module,
    instances: InstanceSet,
    schedule: Sequence[tuple[float, int]] = SCHEDULE,
    *,
    restarts: int = 1000,
    generator: torch.Generator | None = None,
    others: Sequence[Attack] = (),
) -> Tensor:
    """Which planted instances are valid: right at the input, wrong at the planted point, and no attack finds any.

    Args:
        model: Gives ``(batch, classes)``.
        instances: As made by :func:`make_instances`.
        schedule: Attacks of :func:`~netwright.verify.pgd.strongest`, one after the other: the step as a multiple of the
            radius, and the number of steps. Those of the benchmark if not given.
        restarts: Random starts of every attack and input.
        generator: Draws the starts; one with seed 0 if not given.
        others: Further attacks ``attack(model, x, y, box)``, for instance AutoAttack, which gives one input for each of
            ``x``; what lies outside of the box does not count.

    Returns:
        Booleans ``(num,)``.

    Raises:
        InputError: If there is no restart, a step is not positive, or the outputs are not ``(batch, classes)``.

    Source:
        arXiv:2412.03154, section 4; the schedule is that of the official repository.

    Example:
        >>> attack_survivors(nn.Linear(10, 2), make_instances((10,), 0.5, num=3), restarts=20).tolist()
        [False, False, False]
    """
    generator = generator or torch.Generator().manual_seed(0)
    device = next((parameter.device for parameter in model.parameters()), instances.x.device)
    instances = instances.to(device)
    valid = counterexamples(model, instances) & (_margins(model, instances.x, instances.y) < 0)
    end = instances.data_range

    def strike(step: float, steps: int) -> Attack:
        def attack(model: nn.Module, x: Tensor, y: Tensor, box: Box) -> Tensor:  # noqa: ARG001 - like others
            size = step * instances.radius
            return strongest(
                model, x, y, instances.radius, size, steps,
                restarts=restarts, lo=-end, hi=end, generator=generator,
            ).x  # fmt: skip

        return attack

    for attack in (*[strike(step, steps) for step, steps in schedule], *others):
        left = instances.keep(valid)
        if not len(left.x):
            break
        found = attack(model, left.x, left.y, left.box)
        if found.shape != left.x.shape:
            checks.fail(f"an attack must give inputs of shape {tuple(left.x.shape)}", f"{tuple(found.shape)}")
        lower, upper = left.box
        inside = ((found >= lower) & (found <= upper)).flatten(1).all(1)
        valid[valid.clone()] = ~inside | (_margins(model, found, left.y) < 0)
    return valid


def _margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with eval_mode(model), torch.no_grad():
        return output_margins(model(x), y)


__all__ = ["SCHEDULE", "Attack", "InstanceSet", "attack_survivors", "counterexamples", "make_instances"]
