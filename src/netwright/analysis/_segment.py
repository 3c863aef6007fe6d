"""A network along a line: where the inputs of its activations change sign. Used by ``local_complexity``."""

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.analysis.capture import watch_activations

_FOLD_AT_ZERO = ("relu", "leaky_relu", "prelu")
_SAME_PLACE = 1e-12  # breakpoints of a segment of length 1 that are nearer differ by rounding only
_STRAIGHT = 1e-8  # deviation from a straight line that is more than rounding, as a fraction of the values
_SEGMENT_POINTS = 2048


def rows_of(entering: Tensor, samples: int) -> Tensor | None:
    """One row a sample; nothing for what does not depend on the samples, such as the softplus of a parameter."""
    if isinstance(entering, nn.Parameter) or entering.ndim == 0 or len(entering) % samples:
        return None
    return entering.reshape(samples, -1)


class Segment:
    """A network seen along a line."""

    def __init__(self, model: nn.Module, a: Tensor, b: Tensor) -> None:
        self.model, self.a, self.b = model, a, b

    def zeros(self, index: int, places: Tensor) -> Tensor | None:
        """Where the input of one activation changes sign; ``None`` if not so many activations are run.

        Args:
            index: The activation, counted in the order in which they run.
            places: Where the activations before it have their breakpoints, with 0 and 1 at the ends.
        """
        found = []
        for start in range(0, len(places) - 1, _SEGMENT_POINTS):
            ends = places[start : start + _SEGMENT_POINTS + 1]
            layer, values = self._input_of(index, ends)
            middle = values[len(ends) :]
            left, right = values[: len(ends) - 1], values[1 : len(ends)]
            bend = (middle - (left + right) / 2).abs().max()
            if bend > _STRAIGHT * values.abs().max():
                raise checks.InputError(
                    "the model must be linear between the folds of its activations, which max pooling, softmax, layer "
                    f"normalisation and products are not; what enters {layer} bends elsewhere"
                )
            if layer == "the output":
                continue
            interval, unit = ((left > 0) != (right > 0)).nonzero(as_tuple=True)
            before, after = left[interval, unit], right[interval, unit]
            length = ends[1:] - ends[:-1]
            found.append(ends[interval] + length[interval] * before / (before - after))
        return torch.cat(found) if found else None

    def _input_of(self, index: int, ends: Tensor) -> tuple[str, Tensor]:
        """The input of an activation at the ends and at the middles of intervals, else the output of the network."""
        at = torch.cat([ends, (ends[:-1] + ends[1:]) / 2])
        inputs = torch.lerp(self.a, self.b, at.view(-1, *[1] * self.a.ndim))
        seen: list[tuple[str, Tensor]] = []
        number = 0

        def see(layer: str, function: str, entering: Tensor) -> None:
            nonlocal number
            rows = rows_of(entering, len(inputs))
            if rows is None:
                return
            if function not in _FOLD_AT_ZERO:
                raise checks.InputError(
                    f"regions are counted through {', '.join(_FOLD_AT_ZERO)}, which fold at 0, got {function} in layer "
                    f"{layer!r}"
                )
            if number == index:
                seen.append((f"the activation in layer {layer!r}", rows.clone()))
            number += 1

        with watch_activations(self.model, see):
            output = self.model(inputs)
        return seen[0] if seen else ("the output", output.reshape(len(inputs), -1))


def distinct(places: Tensor) -> Tensor:
    """Sorted, and one of those that differ by rounding; 0 and 1 stay."""
    ordered = places.sort().values
    inner = ordered[(ordered > _SAME_PLACE) & (ordered < 1 - _SAME_PLACE)]
    apart = inner.diff(prepend=inner.new_zeros(1)) > _SAME_PLACE
    return torch.cat([places.new_zeros(1), inner[apart], places.new_ones(1)])


__all__ = ["Segment", "distinct", "rows_of"]
