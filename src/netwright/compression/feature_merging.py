"""Iterative feature merging (Chen, Zhou, Yan 2024, arXiv:2310.06756): merge channels that do the same.

:func:`iterative_feature_merging` makes a trained network smaller without data and without training;
:func:`feature_complexity` counts what is left of every layer, the paper's measure of how many features it has.
"""

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from netwright import checks
from netwright.compression._channel_layers import axes_of
from netwright.compression._merge_search import Search, Step
from netwright.compression.channels import (
    ChannelGraph,
    ChannelGroup,
    ChannelSpec,
    channel_graph,
    merge,
    resize_like,
)

BatchNorm = Literal["std", "fold", "reference"]
Inputs = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True, eq=False)
class MergeResult:
    """A network with merged channels.

    Attributes:
        model: The smaller network: the same modules and names, of smaller sizes.
        widths: Channels left, by layer; layers that are tied have the same.
        groups: By the first layer of each group of tied layers, which of the original channels make each channel now.
        history: All mergings in their order.
        left_alone: By layer, why its channels were not touched.
    """

    model: nn.Module
    widths: dict[str, int]
    groups: dict[str, list[list[int]]]
    history: list[Step]
    left_alone: dict[str, str]


@torch.no_grad()
def iterative_feature_merging(
    model: nn.Module,
    beta: float,
    max_ratio: float = 1.0,
    spec: ChannelSpec | None = None,
    batchnorm: BatchNorm = "std",
    example_input: Inputs = None,
) -> MergeResult:
    r"""Merge the channels of a trained network that are nearest to each other, without data and without training.

    The distance of two channels is that of their incoming and outgoing weights, over all tensors W of their group with
    at least two dimensions (biases and BatchNorm have no say):

    .. math:: D_{ij} = \sum_W \lVert W_i - W_j \rVert^2 = G_{ii} + G_{jj} - 2 G_{ij}, \qquad G = \sum_W A_W A_W^\top

    In every round each group merges its nearest pair if :math:`\min D \le β \max D`, both over the channels as they are
    now. Incoming weights are summed, outgoing ones averaged, weighted with the number of original channels in each.
    It ends when no group merges. Equal channels merge without a change of what the network computes.

    Args:
        model: A trained network of torch's linear and convolutional layers, BatchNorm and positively homogeneous
            activations such as ReLU; it is left as it is. What does not fit is left alone, and the result says why.
        beta: Threshold β: 0 merges equal channels only, 1 all of a group into one. The paper's are 0.001 to 0.3.
        max_ratio: Largest fraction of its channels that a group may lose.
        spec: The groups of channels, for a network that cannot be traced.
        batchnorm: ``"std"`` sums standard deviations, which is exact for equal channels. ``"fold"`` first puts the
            scale of each BatchNorm into the layer before it, so that distances are those of the folded weights; the
            BatchNorm stays as a shift, for inference. ``"reference"`` sums variances, as the authors' code does: off by
            :math:`\sqrt 2` for two equal channels.
        example_input: An input of the network, if usual sizes do not fit it; see
            :func:`~netwright.compression.channels.channel_graph`.

    Returns:
        The smaller network, and what was merged.

    Raises:
        InputError: If ``beta`` is not in [0, 1] or ``max_ratio`` not in (0, 1], no channels can be merged (the message
            says why), a weight is not finite, or for what ``channel_graph`` raises.

    Source:
        arXiv:2310.06756, algorithm 1. The authors' code differs in three ways: it sums variances, ends a group after as
        many rounds as it had channels, and leaves the stem and the first stage of a residual network alone.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> for tensor in (model[0].weight, model[0].bias, model[2].weight.T):
        ...     tensor.data[2] = tensor.data[0]
        >>> result = iterative_feature_merging(model, beta=0.01)
        >>> result.groups, result.widths
        ({'0': [[0, 2], [1]]}, {'0': 2})
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(result.model(x), model(x), atol=1e-6)
        True
    """
    checks.between("beta", beta, 0, 1)
    checks.between("max_ratio", max_ratio, 0, 1, open_low=True)
    checks.known("batchnorm", batchnorm, get_args(BatchNorm))
    graph = channel_graph(model, example_input, spec=spec)
    groups, left_alone = mergeable(graph)
    if batchnorm == "fold":
        model = _fold(model, graph, groups)
    search = Search(model, groups)
    history = search.run(beta, max_ratio)
    members = {name: group.members() for name, group in search.groups.items()}
    widths = {layer: len(members[group.name]) for group in groups for layer in group.layers}
    smaller = merge(model, graph, members, batchnorm="reference" if batchnorm == "reference" else "std")
    return MergeResult(smaller, widths, members, history, left_alone)


def feature_complexity(
    model: nn.Module, beta: float, *, spec: ChannelSpec | None = None, example_input: Inputs = None
) -> dict[str, int]:
    """Feature complexity of every layer: how many channels iterative feature merging leaves of it.

    Args:
        model: A trained network.
        beta: Threshold, see :func:`iterative_feature_merging`.
        spec: See there.
        example_input: See there.

    Returns:
        Channels left, by layer; layers whose channels cannot be merged are missing.

    Source:
        arXiv:2310.06756, section 4.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> feature_complexity(model, beta=0.0), feature_complexity(model, beta=1.0)
        ({'0': 64}, {'0': 1})
    """
    return iterative_feature_merging(model, beta, spec=spec, example_input=example_input).widths


@torch.no_grad()
def pairwise_channel_distance(
    model: nn.Module, layer: str, *, spec: ChannelSpec | None = None, example_input: Inputs = None
) -> Tensor:
    """Squared distances between the channels of a layer, as :func:`iterative_feature_merging` sees them.

    Args:
        model: A network.
        layer: Name of a layer that makes channels.
        spec: See :func:`iterative_feature_merging`.
        example_input: See there.

    Returns:
        Symmetric matrix ``(channels, channels)`` in float64.

    Raises:
        InputError: If there is no such layer, or its channels cannot change.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> pairwise_channel_distance(model, "0").shape
        torch.Size([3, 3])
    """
    group = channel_graph(model, example_input, spec=spec).group(layer)
    return Search(model, [group]).groups[group.name].distances().clamp_(min=0)


def mergeable(graph: ChannelGraph) -> tuple[list[ChannelGroup], dict[str, str]]:
    """The groups whose channels may be merged, and by layer why others may not.

    Raises:
        InputError: If there is none; the message has the reasons.

    Example:
        >>> groups, alone = mergeable(channel_graph(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))))
        >>> [group.name for group in groups], alone
        (['0'], {'2': 'they are outputs of the network'})
    """
    groups = [group for group in graph.groups.values() if not group.curved]
    alone = {group.name: group.fixed for group in graph.fixed.values()}
    alone |= {
        group.name: f"{group.curved}, so that a sum of equal channels would not do what they did"
        for group in graph.groups.values()
        if group.curved
    }
    if not groups:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in alone.items())
        raise checks.InputError(
            f"found no channels to merge ({reasons or 'no linear or convolutional layers'}); "
            "to say which layers make and which read them give spec=ChannelSpec(...)"
        )
    return groups, alone


def save_merged(result: MergeResult, file: str | Path) -> None:
    """Save a merged network as one safetensors file: its state, with widths and groups as JSON in the metadata.

    Args:
        result: From :func:`iterative_feature_merging`.
        file: Where to.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
        >>> result = iterative_feature_merging(model, beta=0.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_merged(result, f"{folder}/merged.safetensors")
        ...     again = load_merged(model, f"{folder}/merged.safetensors")
        >>> x = torch.randn(5, 4)
        >>> torch.equal(again(x), result.model(x))
        True
    """
    # shared tensors are written once for each name, since a file cannot share them
    state = {name: tensor.detach().contiguous().clone() for name, tensor in result.model.state_dict().items()}
    metadata = {"format": "pt", "widths": json.dumps(result.widths), "groups": json.dumps(result.groups)}
    save_file(state, str(file), metadata)


def load_merged(model: nn.Module, file: str | Path) -> nn.Module:
    """Rebuild a merged network from the structure of the original one and a file of :func:`save_merged`.

    Args:
        model: The network before it was merged, or another one of its structure; it is left as it is.
        file: The saved file.

    Returns:
        The merged network, on the device and in the floating-point type of ``model``.

    Raises:
        InputError: If the file does not exist or is no such file, or the model does not have its layers.
    """
    if not Path(file).is_file():
        raise checks.InputError(f"file {str(file)!r} does not exist")
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    except SafetensorError as error:
        raise checks.InputError(f"file {str(file)!r} is not a safetensors file: {error}") from error
    if "widths" not in metadata:
        raise checks.InputError(f"file {str(file)!r} has no widths in its metadata: save_merged did not write it")
    modules = dict(model.named_modules())
    for layer in json.loads(metadata["widths"]):
        checks.known("layer of the model", layer, modules)
    return resize_like(model, state)


def _fold(model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> nn.Module:
    """A copy in which the scale of a BatchNorm is in the weights before it, so that the BatchNorm only shifts."""
    if not graph.inputs:
        raise checks.InputError("batchnorm='fold' needs a network that can be traced, got spec=ChannelSpec(...)")
    model = copy.deepcopy(model)
    layers = {layer for group in groups for layer in group.layers}
    places = Counter(parameter for module in model.modules() for parameter in module._parameters.values())
    for name, before in graph.folds.items():
        norm, layer = model.get_submodule(name), model.get_submodule(before)
        axes, weight, bias = axes_of(layer), layer.get_parameter("weight"), layer._parameters.get("bias")
        assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
        assert axes is not None
        if before not in layers or places[weight] > 1 or norm.bias is None:
            continue
        if norm.running_var is None or norm.running_mean is None:
            continue
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        dim = axes.makes[0][1]
        weight.mul_(scale.view(-1, *[1] * (weight.ndim - 1 - dim)))
        if bias is not None:
            bias.mul_(scale)
        norm.bias.sub_(norm.running_mean * scale)
        norm.weight.fill_(1.0)
        norm.running_mean.zero_()
        norm.running_var.fill_(1.0 - norm.eps)
    return model


__all__ = [
    "BatchNorm",
    "MergeResult",
    "Step",
    "feature_complexity",
    "iterative_feature_merging",
    "load_merged",
    "mergeable",
    "pairwise_channel_distance",
    "save_merged",
]
