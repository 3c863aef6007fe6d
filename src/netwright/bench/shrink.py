"""Make a user's trained network smaller, and say what that cost."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from torch import nn

from netwright.compression.feature_merging import iterative_feature_merging, save_merged
from netwright.cost import count_macs, count_params
from netwright.data.splits import Splits
from netwright.training import evaluate


@dataclass(frozen=True)
class Shrunk:
    """A network before and after.

    Attributes:
        before: Parameters, multiply-adds of a sample and test metrics.
        after: The same of the smaller network.
        widths: Channels before and after, by layer.
        left_alone: By layer, why it was not touched.
    """

    before: dict[str, float]
    after: dict[str, float]
    widths: dict[str, tuple[int, int]]
    left_alone: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """The whole result as JSON values."""
        return asdict(self)

    def table(self) -> Table:
        """Before and after, for a terminal."""
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("")
        for heading in ("before", "after", "change"):
            table.add_column(heading, justify="right")
        for name, old in self.before.items():
            new = self.after[name]
            counted = name in ("parameters", "multiply-adds")
            shown = (f"{old:,.0f}", f"{new:,.0f}") if counted else (f"{old:.4g}", f"{new:.4g}")
            table.add_row(name, *shown, f"{new / old - 1:+.1%}" if counted and old else f"{new - old:+.4g}")
        table.add_section()
        for layer, (wide, narrow) in self.widths.items():
            table.add_row(escape(f"channels of {layer}"), f"{wide:,}", f"{narrow:,}", f"{narrow / wide - 1:+.1%}")
        for layer, reason in self.left_alone.items():
            table.add_row(escape(f"{layer}: left alone, {reason}"), "", "", "")
        return table


def shrink(model: nn.Module, splits: Splits, *, beta: float, out: Path) -> Shrunk:
    """Merge the similar units of a network and write what is left.

    Args:
        model: A trained network; it is left as it is.
        splits: Its data; only one sample and the test part are used.
        beta: See :func:`netwright.compression.feature_merging.iterative_feature_merging`.
        out: The safetensors file to write.

    Raises:
        InputError: If β is outside [0, 1], or the network has no units that can be merged.
    """
    one = splits.train.inputs[:1]
    result = iterative_feature_merging(model, beta, example_input=one)
    wide = {layer: _width(model.get_submodule(layer)) for layer in result.widths}
    save_merged(result, out)
    before, after = (
        {
            "parameters": count_params(net),
            "multiply-adds": count_macs(net, one),
            **{f"{name}, test part": value for name, value in evaluate(net, splits.test).items()},
        }
        for net in (model, result.model)
    )
    return Shrunk(
        before, after, {layer: (wide[layer], width) for layer, width in result.widths.items()}, result.left_alone
    )


def _width(layer: nn.Module) -> int:
    return int(getattr(layer, "out_features", 0) or getattr(layer, "out_channels", 0))


__all__ = ["Shrunk", "shrink"]
