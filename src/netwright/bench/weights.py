"""Weights from files into a user's network; nothing in a file is ever run."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from netwright import checks
from netwright.compression.feature_merging import load_merged


def load_weights(model: nn.Module, file: str | Path) -> nn.Module:
    """Load a safetensors file or a state dict saved with ``torch.save`` into a network.

    Args:
        model: The network; it is changed, but for a file of ``netwright shrink``, which makes a smaller one.
        file: The file. Of a checkpoint that is a dictionary with ``"state_dict"`` or ``"model"``, that entry; a prefix
            ``module.`` of all names, as distributed training leaves it, is taken off.

    Returns:
        The network with these weights.

    Raises:
        InputError: If the file does not exist, holds something else than tensors by name, or these do not fit.
    """
    path = Path(file)
    if not path.is_file():
        raise checks.InputError(f"weights file {str(file)!r} does not exist")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as opened:
                merged = "widths" in (opened.metadata() or {})
                state: Mapping[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise checks.InputError(f"weights file {str(file)!r} is not a safetensors file: {error}") from error
        if merged:
            return load_merged(model, path)
    else:
        state = _state_dict(path)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    state = _with_tied_names(model, state)
    _check_fits(model, state, file)
    model.load_state_dict(state)
    return model


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file makes of the reader is anybody's guess
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checks.InputError(
            f"weights file {str(path)!r} holds more than tensors, or is damaged ({reason}); "
            "save it with safetensors.torch.save_model, or torch.save(model.state_dict(), …)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        checks.fail(f"weights file {str(path)!r} must hold tensors by name", f"a {type(loaded).__name__}")
    return loaded


def _with_tied_names(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """A file may keep a shared tensor once, under one of its names; give it the others too."""
    own = model.state_dict()
    given = {own[name].data_ptr(): tensor for name, tensor in state.items() if name in own and own[name].numel()}
    tied = {name: given[t.data_ptr()] for name, t in own.items() if name not in state and t.data_ptr() in given}
    return {**state, **tied}


def _check_fits(model: nn.Module, state: Mapping[str, Tensor], file: str | Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shared = own.keys() & state.keys()
    wrong = [name for name in sorted(shared) if own[name].shape != state[name].shape]
    problems = []
    if missing:
        problems.append(f"has no {_some(missing)}")
    if extra:
        problems.append(f"has {_some(extra)}, which the model has not")
    if wrong:
        name = wrong[0]
        problems.append(f"has {name!r} of shape {tuple(state[name].shape)}, the model {tuple(own[name].shape)}")
    if problems:
        raise checks.InputError(f"weights file {str(file)!r} does not fit the model: it {'; it '.join(problems)}")


def _some(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


__all__ = ["load_weights"]
