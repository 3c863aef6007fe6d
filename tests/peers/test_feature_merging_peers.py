"""Selected channels against torch_pruning's: the same networks, and the same channels by magnitude."""

import copy

import pytest
import torch
from torch import nn

from netwright.compression.channels import channel_graph, select
from netwright.models.vision.classic import lenet_5, vgg_bn
from netwright.models.vision.resnet import resnet_cifar

tp = pytest.importorskip("torch_pruning", reason="a peer that is optional")
pytestmark = pytest.mark.filterwarnings("ignore")

NETWORKS = {
    "lenet": (lambda: lenet_5(), (2, 1, 28, 28)),
    "vgg": (lambda: vgg_bn(11, widths=(4, 6, 8, 8, 8)), (2, 3, 32, 32)),
    "resnet": (lambda: resnet_cifar(8, 8, shortcut="B"), (2, 3, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_each_group_is_coupled_as_torch_pruning_couples_it(name: str) -> None:
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    graph = channel_graph(model, x)
    for layer, group in graph.groups.items():
        theirs = copy.deepcopy(model)
        dependencies = tp.DependencyGraph().build_dependency(theirs, example_inputs=x)
        own = theirs.get_submodule(layer)
        prune = tp.prune_linear_out_channels if isinstance(own, nn.Linear) else tp.prune_conv_out_channels
        dependencies.get_pruning_group(own, prune, idxs=[0, 2]).prune()
        mine = select(model, graph, {layer: [c for c in range(group.channels) if c not in (0, 2)]})
        assert [p.shape for p in mine.parameters()] == [p.shape for p in theirs.parameters()]
        torch.testing.assert_close(mine(x), theirs(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_magnitude_pruning_to_equal_widths(name: str) -> None:
    """The same L1 norms, over all that makes and reads a channel, choose the same channels."""
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.randn(shape)
    graph = channel_graph(model, x)
    theirs = copy.deepcopy(model)
    last = list(theirs.modules())[-1]
    importance = tp.importance.GroupMagnitudeImportance(p=1, normalizer=None, group_reduction="sum", bias=False)
    pruner = tp.pruner.BasePruner(theirs, x, importance, pruning_ratio=0.5, ignored_layers=[last], round_to=None)
    pruner.step()
    tensors = dict(model.named_parameters())
    kept = {}
    for key, group in graph.groups.items():
        norm = torch.zeros(group.channels)
        for slot in group.slots:
            weight = tensors.get(slot.tensor)
            if weight is not None and (weight.ndim > 1 or (slot.tensor.endswith("weight") and slot.role == "vector")):
                norm += slot.matrix(weight.detach(), group.channels).abs().sum(1)
        kept[key] = norm.argsort()[group.channels - len(norm) // 2 :].sort().values
    mine = select(model, graph, kept)
    assert [p.shape for p in mine.parameters()] == [p.shape for p in theirs.parameters()]
    torch.testing.assert_close(mine(x), theirs(x))
