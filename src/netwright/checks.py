"""Argument checks, and the one style of their messages: what is wrong, what was expected, what was given."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:  # the catalogue checks names without waiting for torch
    from torch import Tensor


class InputError(ValueError):
    """The caller gave something that cannot work; the message says what was given, what was expected and what to do."""


class Interrupted(RuntimeError):
    """The user stopped long work; the message says what is kept and how to go on."""


def fail(expected: str, given: object) -> NoReturn:
    """Raise :class:`InputError` with the message ``{expected}, got {given}``."""
    raise InputError(f"{expected}, got {given}")


def at_least(name: str, value: float, low: float) -> None:
    """Check ``value >= low``."""
    if not value >= low:
        fail(f"{name} must be at least {low}", value)


def positive(name: str, value: float) -> None:
    """Check ``0 < value < inf``."""
    if not (value > 0 and math.isfinite(value)):
        fail(f"{name} must be positive", value)


def between(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check that ``value`` lies in the interval from ``low`` to ``high``, either end open or closed."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        fail(f"{name} must be in {interval}", value)


def divisible(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Check that ``divisor`` divides ``value``."""
    if divisor <= 0 or value % divisor:
        fail(f"{name} must be divisible by {divisor_name} = {divisor}", value)


def floating_point(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds floating-point numbers."""
    if not tensor.is_floating_point():
        fail(f"{name} must be of a floating-point type", tensor.dtype)


def complex_valued(name: str, tensor: Tensor) -> None:
    """Check that a tensor holds complex numbers."""
    if not tensor.is_complex():
        fail(f"{name} must be complex (torch.complex(x, torch.zeros_like(x)) makes a real x so)", tensor.dtype)


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the closest known name, else all of them."""
    names = sorted(filter(None, known))  # the name of a whole model among its layers is empty
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are: {', '.join(names)}" if names else "none is known here"


def known(kind: str, given: str, names: Iterable[str]) -> None:
    """Check that ``given`` is one of ``names``; the message offers a close match."""
    names = list(names)
    if given not in names:
        raise InputError(f"unknown {kind} {given!r}; {did_you_mean(given, names)}")


def dimensions(name: str, tensor: Tensor, *layouts: str) -> None:
    """Check the number of dimensions of a tensor against layouts such as ``"(batch, channels, height, width)"``."""
    if tensor.ndim not in {len([name for name in layout.strip("()").split(",") if name.strip()]) for layout in layouts}:
        fail(f"{name} must have shape {' or '.join(layouts)}", f"shape {tuple(tensor.shape)}")


def size(name: str, tensor: Tensor, dim: int, expected: int) -> None:
    """Check the size of one dimension of a tensor."""
    if tensor.shape[dim] != expected:
        fail(f"dimension {dim} of {name} must have size {expected}", f"shape {tuple(tensor.shape)}")


__all__ = [
    "InputError",
    "Interrupted",
    "at_least",
    "between",
    "complex_valued",
    "did_you_mean",
    "dimensions",
    "divisible",
    "fail",
    "floating_point",
    "known",
    "positive",
    "size",
]
