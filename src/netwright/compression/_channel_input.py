"""Inputs to run a network with, where only its channels matter."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression._channel_layers import CONVOLUTIONS, HINT, LINEAR, TRANSPOSED
from netwright.surgery import eval_mode

_SIDES = (32, 28, 8, 16, 64, 96, 128, 224, 256, 299)


def check_runs(model: nn.Module, shapes: Sequence[tuple[int, ...]]) -> None:
    """Run a network with fewer channels once: its code may rely on numbers of channels that the trace did not see.

    Raises:
        InputError: If it fails on inputs of these shapes.
    """
    reference = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.empty(0))
    inputs = [reference.new_zeros(shape) for shape in shapes]
    try:
        with eval_mode(model), torch.no_grad():
            model(*inputs)
    except Exception as error:
        raise checks.InputError(
            f"the network with fewer channels fails ({type(error).__name__}: {error}), since its code relies on their "
            f"number; {HINT}"
        ) from error


def on_device(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The first samples of some inputs, where the model is."""
    device = next((tensor.device for tensor in model.parameters()), None)
    # channels do not depend on the number of samples
    return tuple(tensor[:2].to(device) if device is not None else tensor[:2] for tensor in inputs)


def guess_input(model: nn.Module) -> tuple[Tensor, ...]:
    """Zeros that the network takes: where several sizes work, the weights fix the same channels for all of them."""
    first = next((m for m in model.modules() if type(m) in (*LINEAR, *CONVOLUTIONS, *TRANSPOSED)), None)
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(2, first.in_features)]
    elif first is not None:
        channels, dims = int(first.in_channels), len(first.kernel_size)  # type: ignore[arg-type]
        shapes = [(2, channels, *[side] * dims) for side in _SIDES[: 10 if dims < 3 else 4]]
    for shape in shapes:
        inputs = first.weight.new_zeros(shape)  # type: ignore[union-attr, operator]
        try:
            with eval_mode(model), torch.no_grad():
                model(inputs)
        except Exception:  # noqa: S112 - any failure says that this is not it
            continue
        return (inputs,)
    raise checks.InputError(f"the shape of the inputs of {type(model).__name__} is not clear: give example_input")


__all__ = ["check_runs", "guess_input", "on_device"]
