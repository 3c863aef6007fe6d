"""Which axes of the tensors of torch's own layers are channels, and how large a layer is once they have changed."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

Role = Literal["producer", "vector", "variance", "consumer", "scale"]
TensorAxis = tuple[str, int, Role]

HINT = "give spec=ChannelSpec(...) to say which layers make and which read the channels"
LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class LayerAxes:
    """The channels of one layer.

    Attributes:
        makes: Tensors with an axis along the channels that the layer makes; the weight comes first.
        reads: The tensor with an axis along the channels that the layer reads, and mixes.
        keeps: Tensors of a layer that treats every channel by itself.
        multiplier: How many outputs such a layer makes of each channel.
    """

    makes: tuple[TensorAxis, ...] = ()
    reads: tuple[TensorAxis, ...] = ()
    keeps: tuple[TensorAxis, ...] = ()
    multiplier: int = 1


def axes_of(layer: nn.Module) -> LayerAxes | None:
    """The channel axes of a layer; ``None`` for one without a rule.

    Only torch's own classes count: a subclass may do anything with its tensors.
    """
    kind = type(layer)
    if layer._parameters.get("weight") is None and kind not in BATCH_NORMS:
        return None  # made anew before every pass from something else, as by spectral_norm
    if kind in LINEAR or (kind in CONVOLUTIONS and layer.groups == 1):
        return LayerAxes((("weight", 0, "producer"), ("bias", 0, "vector")), (("weight", 1, "consumer"),))
    if is_depthwise(layer):
        own: tuple[TensorAxis, ...] = (("weight", 0, "scale"), ("bias", 0, "vector"))
        return LayerAxes(keeps=own, multiplier=_number(layer, "out_channels") // _number(layer, "in_channels"))
    if kind in TRANSPOSED and layer.groups == 1:
        return LayerAxes((("weight", 1, "producer"), ("bias", 0, "vector")), (("weight", 0, "consumer"),))
    if kind in BATCH_NORMS:
        vectors: tuple[TensorAxis, ...] = tuple((name, 0, "vector") for name in ("weight", "bias", "running_mean"))
        return LayerAxes(keeps=(*vectors, ("running_var", 0, "variance")))
    if kind is nn.PReLU:
        return LayerAxes(keeps=(("weight", 0, "scale"),) if _number(layer, "num_parameters") > 1 else ())
    return None


def is_depthwise(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that treats every channel by itself."""
    return type(layer) in CONVOLUTIONS and 1 < _number(layer, "groups") == layer.in_channels


def channel_dim(layer: nn.Module, rank: int) -> int:
    """Which dimension of an input with ``rank`` dimensions holds the channels."""
    if type(layer) in LINEAR:
        return rank - 1
    for family in (CONVOLUTIONS, TRANSPOSED):
        if type(layer) in family:
            return rank - 2 - family.index(type(layer))
    return 1


def why_no_rule(layer: nn.Module) -> str:
    """Why :func:`axes_of` gives nothing."""
    groups = getattr(layer, "groups", 1)
    if type(layer) in (*CONVOLUTIONS, *TRANSPOSED) and groups != 1:
        return f"is a convolution in {groups} groups, which would be broken"
    return f"is a {type(layer).__name__}, which has no channel rule"


def set_sizes(layer: nn.Module, was_depthwise: bool) -> None:
    """Make the numbers of a layer agree with the shapes of its tensors."""
    kind = type(layer)
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    sizes = next((tensor.shape for tensor in tensors if tensor is not None and tensor.ndim), None)
    if sizes is None:
        return
    numbers: dict[str, int] = {}
    if kind in LINEAR:
        numbers = {"out_features": sizes[0], "in_features": sizes[1]}
    elif kind in CONVOLUTIONS and was_depthwise:
        channels = sizes[0] * _number(layer, "in_channels") // _number(layer, "out_channels")
        numbers = {"out_channels": sizes[0], "in_channels": channels, "groups": channels}
    elif kind in CONVOLUTIONS:
        numbers = {"out_channels": sizes[0], "in_channels": sizes[1] * _number(layer, "groups")}
    elif kind in TRANSPOSED:
        numbers = {"in_channels": sizes[0], "out_channels": sizes[1] * _number(layer, "groups")}
    elif kind in BATCH_NORMS:
        numbers = {"num_features": sizes[0]}
    elif kind is nn.PReLU:
        numbers = {"num_parameters": sizes[0]}
    for name, number in numbers.items():
        setattr(layer, name, number)


def _number(layer: nn.Module, name: str) -> int:
    number: int = getattr(layer, name)
    return number


__all__ = [
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "HINT",
    "LINEAR",
    "TRANSPOSED",
    "LayerAxes",
    "Role",
    "axes_of",
    "channel_dim",
    "is_depthwise",
    "set_sizes",
    "why_no_rule",
]
