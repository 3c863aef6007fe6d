"""The models that ``netwright compare`` knows by name, and models from a file of the user's own."""

import importlib.util
import inspect
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from netwright import checks
from netwright.data.splits import Splits
from netwright.models.vision.classic import MLP
from netwright.models.vision.resnet import resnet_cifar
from netwright.models.vision.vit import VisionTransformer
from netwright.surgery import eval_mode


def linear(splits: Splits) -> nn.Module:
    """A linear model."""
    return MLP(math.prod(splits.input_shape), (), splits.outputs)


def mlp(splits: Splits) -> nn.Module:
    """Two hidden layers of 128 ReLU units."""
    return MLP(math.prod(splits.input_shape), (128, 128), splits.outputs)


def cnn(splits: Splits) -> nn.Module:
    """Three 3×3 convolutions (32, 64, 64 channels) with batch norm and ReLU, two poolings, a linear head."""
    channels, height, width = _picture(splits, "cnn", at_least=4)
    model = nn.Sequential()
    for index, out_channels in enumerate((32, 64, 64)):
        model.append(nn.Conv2d(channels, out_channels, 3, padding=1, bias=False))
        model.append(nn.BatchNorm2d(out_channels))
        model.append(nn.ReLU(inplace=True))
        channels = out_channels
        if index < 2:
            model.append(nn.MaxPool2d(2))
    model.extend([nn.Flatten(), nn.Linear(channels * (height // 4) * (width // 4), splits.outputs)])
    return model


def resnet_tiny(splits: Splits) -> nn.Module:
    """The 8-layer residual network for small pictures, 16 channels wide."""
    channels, _, _ = _picture(splits, "resnet-tiny", at_least=4)
    return resnet_cifar(8, 16, shortcut="B", in_channels=channels, num_classes=splits.outputs)


def vit_tiny(splits: Splits) -> nn.Module:
    """A vision transformer with 4 blocks, 64 wide, 4 heads, on about 8×8 patches."""
    channels, height, width = _picture(splits, "vit-tiny", at_least=4)
    if height != width:
        checks.fail("model 'vit-tiny' needs square pictures", f"{height}×{width}")
    patch = next((size for size in range(max(1, height // 8), height + 1) if height % size == 0), height)
    return VisionTransformer(height, patch, channels, splits.outputs, dim=64, depth=4, num_heads=4, mlp_ratio=2.0)


NAMED: dict[str, Callable[[Splits], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "resnet-tiny": resnet_tiny,
    "vit-tiny": vit_tiny,
}


def build_model(source: str, splits: Splits) -> nn.Module:
    """Build a model by name (``"mlp"``) or file and function (``"model.py:build"``), and check that it fits the data.

    A function of the user's may take any of ``splits``, ``input_shape`` (of one sample, without the batch) and
    ``outputs`` (numbers to give for a sample) by these names, or nothing.

    Raises:
        InputError: If the name is unknown, the file or the function does not exist, it raises, it does not return a
            module, or the module does not map ``(batch, *input_shape)`` to ``(batch, outputs)``.
    """
    if ":" in source:
        offered = {"splits": splits, "input_shape": splits.input_shape, "outputs": splits.outputs}
        model = build_from_file(source, offered)
    else:
        if source.endswith(".py"):
            raise checks.InputError(f"a model from a file needs the name of its function: {source}:build")
        checks.known("model", source, NAMED)
        model = NAMED[source](splits)
    check_outputs(model, splits, f"model {source!r}")
    return model


def check_outputs(model: nn.Module, splits: Splits, what: str) -> None:
    """Raise InputError if the model does not map ``(batch, *input_shape)`` to ``(batch, outputs)``."""
    inputs = splits.train.inputs[:2]
    expected = (len(inputs), splits.outputs)
    try:
        with eval_mode(model), torch.no_grad():
            outputs = model(inputs)
    except Exception as error:
        raise checks.InputError(
            f"{what} fails on an input of shape {tuple(inputs.shape)}: {type(error).__name__}: {error}"
        ) from error
    shape = tuple(getattr(outputs, "shape", ()))
    if shape != expected:
        found = f"shape {shape}" if shape else f"a {type(outputs).__name__}"
        checks.fail(f"{what} must map inputs {tuple(inputs.shape)} to outputs of shape {expected}", found)


def build_from_file(source: str, offered: Mapping[str, object]) -> nn.Module:
    """Call a function of the user's, such as ``"model.py:build"``, with those of the arguments that it has.

    Raises:
        InputError: If the file or the function does not exist, it asks for more, raises, or returns no module.
    """
    file, _, name = source.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise checks.InputError(f"model file {file!r} does not exist")
    spec = importlib.util.spec_from_file_location(f"_netwright_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise checks.InputError(f"model file {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    if str(path.parent.resolve()) not in sys.path:  # as `python model.py` does, for files that stand beside it
        sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise checks.InputError(f"model file {file!r} raises {type(error).__name__}: {error}") from error
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    if not callable(getattr(module, name, None)):
        raise checks.InputError(f"model file {file!r} has no function {name!r}; {checks.did_you_mean(name, functions)}")
    build = getattr(module, name)
    parameters = inspect.signature(build).parameters.values()
    asked = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    for parameter in asked:
        if parameter not in offered:
            raise checks.InputError(f"{source} asks for {parameter!r}; it can be given {', '.join(offered)}")
    given = {p.name: offered[p.name] for p in parameters if p.name in offered}
    try:
        model = build(**given)
    except Exception as error:
        raise checks.InputError(f"{source} raises {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        checks.fail(f"{source} must return a torch.nn.Module", f"a {type(model).__name__}")
    return model


def _picture(splits: Splits, model: str, at_least: int) -> tuple[int, int, int]:
    if len(splits.input_shape) != 3:
        checks.fail(
            f"model {model!r} needs pictures (channels, height, width)", f"inputs of shape {splits.input_shape}"
        )
    channels, height, width = splits.input_shape
    if min(height, width) < at_least:
        checks.fail(f"model {model!r} needs pictures of at least {at_least}×{at_least}", f"{height}×{width}")
    return channels, height, width


__all__ = ["NAMED", "build_from_file", "build_model", "check_outputs"]
