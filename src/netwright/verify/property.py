"""What a network is to fulfil: no input of a box whose output fulfils given inequalities."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from netwright import checks


@dataclass(frozen=True, eq=False)
class Case:
    """One way to be a counterexample: an input in a box whose output fulfils linear inequalities.

    Attributes:
        lower: Least inputs ``(inputs,)``, float64.
        upper: Largest inputs ``(inputs,)``.
        matrix: A of ``A y <= bound``, ``(inequalities, outputs)``.
        bound: ``(inequalities,)``.
    """

    lower: Tensor
    upper: Tensor
    matrix: Tensor
    bound: Tensor


@dataclass(frozen=True, eq=False)
class Property:
    """What a network is to fulfil: no input is a counterexample of any case.

    Attributes:
        cases: At least one.
    """

    cases: tuple[Case, ...]

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return len(self.cases[0].lower)

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.cases[0].matrix.shape[1]

    def violated_by(self, x: Tensor, y: Tensor, tolerance: float = 0.0) -> Tensor:
        """Which samples are counterexamples.

        Args:
            x: Inputs ``(samples, inputs)``; pictures are flattened.
            y: Outputs ``(samples, outputs)``.
            tolerance: By how much an output inequality may be missed.

        Returns:
            Booleans ``(samples,)``.
        """
        x, y = x.flatten(1).double(), y.flatten(1).double()
        checks.size("x", x, 1, self.inputs)
        checks.size("y", y, 1, self.outputs)
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for case in self.cases:
            inside = ((x >= case.lower) & (x <= case.upper)).all(1)
            found |= inside & (y @ case.matrix.T <= case.bound + tolerance).all(1)
        return found


def robustness(
    x: Tensor, label: int, radius: float, classes: int, *, lo: float | Tensor = -math.inf, hi: float | Tensor = math.inf
) -> Property:
    """The property that all inputs within ``radius`` of one (in each entry, and within ``[lo, hi]``) have its label.

    Args:
        x: The input, of any shape.
        label: Its class.
        radius: Largest change of an entry.
        classes: Number of classes.
        lo: Least value of an entry, one for all or one for each.
        hi: Largest value.

    Raises:
        InputError: A negative radius, a class that does not exist, or an input outside of ``[lo, hi]``.

    Example:
        >>> local = robustness(torch.tensor([0.25, 1.0]), label=1, radius=0.5, classes=3, lo=0.0, hi=1.0)
        >>> local.cases[0].lower.tolist(), len(local.cases)
        ([0.0, 0.5], 2)
    """
    checks.at_least("radius", radius, 0)
    checks.between("label", label, 0, classes - 1)
    centre = x.flatten().double()
    least, most = (torch.as_tensor(end, dtype=torch.float64).flatten() for end in (lo, hi))
    if not ((least <= centre) & (centre <= most)).all():
        raise checks.InputError("the input must lie within [lo, hi]")
    lower, upper = torch.maximum(centre - radius, least), torch.minimum(centre + radius, most)
    return one_class(lower, upper, label, classes)


def one_class(lower: Tensor, upper: Tensor, label: int, classes: int) -> Property:
    """The property that all inputs between ``lower`` and ``upper`` (of any shape) are of the class ``label``.

    Raises:
        InputError: A class that does not exist, or two shapes.

    Example:
        >>> box = one_class(torch.zeros(1, 2), torch.ones(1, 2), label=0, classes=3)
        >>> box.inputs, [case.matrix.tolist() for case in box.cases]
        (2, [[[1.0, -1.0, 0.0]], [[1.0, 0.0, -1.0]]])
    """
    checks.between("label", label, 0, classes - 1)
    if lower.shape != upper.shape:
        checks.fail(f"both ends must have one shape, lower has {tuple(lower.shape)}", f"upper {tuple(upper.shape)}")
    lower, upper = lower.detach().flatten().double(), upper.detach().flatten().double()
    cases = []
    for other in range(classes):
        if other != label:
            row = torch.zeros(1, classes, dtype=torch.float64)
            row[0, label], row[0, other] = 1.0, -1.0
            cases.append(Case(lower, upper, row, torch.zeros(1, dtype=torch.float64)))
    return Property(tuple(cases))


__all__ = ["Case", "Property", "one_class", "robustness"]
