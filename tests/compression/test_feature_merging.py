"""Tests of ``netwright.compression.feature_merging``."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from netwright.checks import InputError
from netwright.compression.channels import ChannelGraph, ChannelSpec, channel_graph, select
from netwright.compression.feature_merging import (
    feature_complexity,
    iterative_feature_merging,
    load_merged,
    pairwise_channel_distance,
    save_merged,
)
from netwright.cost import count_params
from netwright.models.baselines import cnn
from netwright.models.vision.classic import MLP, lenet_5, vgg_bn
from netwright.models.vision.resnet import resnet_cifar

NETWORKS = {
    "mlp": (lambda: MLP(12, (9, 7), 4), (2, 12)),
    "lenet": (lambda: lenet_5(), (2, 1, 28, 28)),
    "vgg": (lambda: vgg_bn(11, widths=(4, 5, 6, 7, 8)), (2, 3, 32, 32)),
    "resnet A": (lambda: resnet_cifar(8, 4, shortcut="A"), (2, 3, 16, 16)),
    "resnet B": (lambda: resnet_cifar(8, 4, shortcut="B"), (2, 3, 16, 16)),
    "single": (lambda: resnet_cifar(8, 4, shortcut="B", kind="single"), (2, 3, 16, 16)),
    "cnn": (lambda: cnn(SimpleNamespace(input_shape=(1, 8, 8), outputs=10)), (2, 1, 8, 8)),
}


def network(name: str) -> tuple[nn.Module, Tensor, ChannelGraph]:
    """A network in float64 with all numbers drawn at random, BatchNorm's statistics included."""
    make, shape = NETWORKS[name]
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(shape, dtype=torch.float64)
    return model, x, channel_graph(model, x)


def copy_channel(model: nn.Module, graph: ChannelGraph, pairs: dict[str, list[tuple[int, int]]]) -> None:
    """Make the second channel of each pair equal to the first."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, own in pairs.items():
        for slot in graph.groups[name].slots:
            for source, target in own:
                index = [slot.positions(torch.tensor([channel])) for channel in (source, target)]
                tensor = tensors[slot.tensor].data
                tensor.index_copy_(slot.dim, index[1], tensor.index_select(slot.dim, index[0]))


@pytest.mark.parametrize("batchnorm", ["std", "fold"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equal_channels_are_found_and_merge_without_a_change_of_the_function(name: str, batchnorm: str) -> None:
    model, x, graph = network(name)
    pairs = {key: [(0, 2), (1, 3)] for key, group in graph.groups.items() if group.channels > 3}
    copy_channel(model, graph, pairs)
    result = iterative_feature_merging(model, 0.0, batchnorm=batchnorm, example_input=x)  # type: ignore[arg-type]
    for key, group in graph.groups.items():
        rest = [[channel] for channel in range(4, group.channels)]
        assert result.groups[key] == ([[0, 2], [1, 3], *rest] if key in pairs else [[c] for c in range(group.channels)])
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-9, atol=1e-9)
    assert count_params(result.model) < count_params(model)
    assert result.model.state_dict().keys() == model.state_dict().keys()


def test_the_reference_rule_changes_what_equal_channels_do_behind_batch_norm() -> None:
    model, x, graph = network("cnn")
    copy_channel(model, graph, {"4": [(c, c + 1) for c in range(0, 64, 2)]})
    results = {rule: iterative_feature_merging(model, 0.0, 1.0, None, rule, x) for rule in ("std", "reference")}
    variances = {rule: result.model[5].running_var for rule, result in results.items()}
    old = model[5].running_var
    torch.testing.assert_close(variances["reference"], 2 * old[::2])
    torch.testing.assert_close(variances["std"] + 1e-5, 4 * (old[::2] + 1e-5))
    assert not torch.allclose(results["reference"].model(x), model(x), atol=1e-3)


def naive(
    tensors: dict[str, Tensor], graph: ChannelGraph, beta: float, max_ratio: float
) -> tuple[dict[str, list[list[int]]], dict[str, Tensor]]:
    """The published loop, word by word: all products anew before every merging, channels cut out of all tensors."""
    groups = {name: [[c] for c in range(group.channels)] for name, group in graph.groups.items()}
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    merged = True
    while merged:
        merged = False
        for name, group in graph.groups.items():
            members = groups[name]
            n = len(members)
            rows = [slot.matrix(tensors[slot.tensor], n) for slot in group.slots if tensors[slot.tensor].ndim > 1]
            distance = torch.cdist(*2 * (torch.cat(rows, 1),), compute_mode="donot_use_mm_for_euclid_dist").square()
            if group.channels - n + 1 > max_ratio * group.channels or n < 2:
                continue
            smallest = (distance + torch.diag(torch.full((n,), torch.inf))).flatten().min(0)
            if smallest.values > beta * distance.max():
                continue
            i, j = sorted(divmod(int(smallest.indices), n))
            c_i, c_j = len(members[i]), len(members[j])
            for slot in group.slots:
                tensor = tensors[slot.tensor]
                one, two = (slot.positions(torch.tensor([c])) for c in (i, j))
                first, second = tensor.index_select(slot.dim, one), tensor.index_select(slot.dim, two)
                mean = slot.role in ("consumer", "scale")
                new = (first * c_i + second * c_j) / (c_i + c_j) if mean else first + second
                kept = [p for p in range(tensor.shape[slot.dim]) if p not in two.tolist()]
                tensors[slot.tensor] = tensor.index_copy(slot.dim, one, new).index_select(slot.dim, torch.tensor(kept))
            members[i] = sorted(members[i] + members.pop(j))
            merged = True
    return groups, tensors


@pytest.mark.parametrize("max_ratio", [1.0, 0.3])
@pytest.mark.parametrize("name", NETWORKS)
def test_search_finds_what_the_published_loop_finds(name: str, max_ratio: float) -> None:
    model, x, graph = network(name)
    # the published loop takes long with many channels
    model = select(model, graph, {key: range(min(group.channels, 9)) for key, group in graph.groups.items()})
    graph = channel_graph(model, x)
    groups, tensors = naive(dict(model.state_dict()), graph, 0.8, max_ratio)
    result = iterative_feature_merging(model, 0.8, max_ratio, None, "reference", x)
    assert result.groups == groups
    assert len(result.history) > 3
    for key, tensor in result.model.state_dict().items():
        torch.testing.assert_close(tensor, tensors[key], rtol=1e-12, atol=1e-12)


@settings(max_examples=12)
@given(beta=st.floats(0, 1), max_ratio=st.floats(0.05, 1), seed=st.integers(0, 99))
def test_what_is_left_keeps_to_threshold_and_ratio(beta: float, max_ratio: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = MLP(5, (6, 8), 3).double()
    result = iterative_feature_merging(model, beta, max_ratio)
    for name, width in (("1", 6), ("3", 8)):
        left = result.widths[name]
        assert max(1, width - int(max_ratio * width + 1e-9)) <= left <= width
        assert sorted(c for members in result.groups[name] for c in members) == list(range(width))
        assert len(result.groups[name]) == left == result.model.get_submodule(name).out_features
        if left > max(1, width - int(max_ratio * width + 1e-9)):
            distance = pairwise_channel_distance(result.model, name)
            pairs = distance[~torch.eye(left, dtype=torch.bool)]
            assert pairs.min() > beta * distance.max() * (1 - 1e-9)
    assert all(step.distance <= beta * step.largest for step in result.history)
    assert len(result.history) == 14 - sum(result.widths.values())


def test_threshold_rules_how_much_is_merged() -> None:
    model = vgg_bn(11, widths=(8, 8, 8, 8, 8))
    kept = [sum(feature_complexity(model, beta).values()) for beta in (0.0, 0.5, 0.7, 0.9, 1.0)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 64
    assert kept[-1] == 8
    assert len(set(kept)) > 3


def test_distances_are_those_of_incoming_and_outgoing_weights() -> None:
    model, x, _ = network("lenet")
    distance = pairwise_channel_distance(model, "3", example_input=x)
    incoming, outgoing = model[3].weight.flatten(1), model[7].weight.view(120, 16, 25).transpose(0, 1).flatten(1)
    expected = torch.cdist(incoming, incoming).square() + torch.cdist(outgoing, outgoing).square()
    torch.testing.assert_close(distance, expected, atol=1e-9, rtol=1e-9)
    assert distance.dtype == torch.float64
    assert torch.equal(distance, distance.T)
    assert pairwise_channel_distance(model.float(), "3", example_input=x.float()).dtype == torch.float64
    spec = ChannelSpec({"3": (["3"], ["7"])})
    torch.testing.assert_close(pairwise_channel_distance(model, "3", spec=spec).float(), distance.float())


def test_folding_leaves_a_shift_behind() -> None:
    model, x, _ = network("resnet B")
    result = iterative_feature_merging(model, 0.0, batchnorm="fold", example_input=x)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-9, atol=1e-9)
    norm, conv, old = result.model.stem[1][0], result.model.stem[0], model.stem[1][0]
    torch.testing.assert_close((norm.running_var + norm.eps).sqrt() / norm.weight, torch.ones(4, dtype=torch.float64))
    scale = old.weight / (old.running_var + old.eps).sqrt()
    torch.testing.assert_close(conv.weight, model.stem[0].weight * scale[:, None, None, None])


def test_saved_network_comes_back_from_the_structure_of_the_original(tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    for name in ("resnet A", "resnet B", "lenet"):
        model, x, _ = network(name)
        result = iterative_feature_merging(model, 0.7, example_input=x)
        assert count_params(result.model) < count_params(model)
        save_merged(result, file)
        untrained = NETWORKS[name][0]().double()
        again = load_merged(untrained, file).eval()
        assert torch.equal(again(x), result.model(x))
        assert [type(m) for m in again.modules()] == [type(m) for m in model.modules()]
        with safe_open(str(file), "pt") as opened:
            assert json.loads(opened.metadata()["widths"]) == result.widths
            assert json.loads(opened.metadata()["groups"]) == result.groups


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "merged.safetensors"
    with pytest.raises(InputError, match=r"file '.*merged.safetensors' does not exist"):
        load_merged(MLP(4, (3,), 2), file)
    file.write_bytes(b"no such thing")
    with pytest.raises(InputError, match="is not a safetensors file"):
        load_merged(MLP(4, (3,), 2), file)
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(InputError, match="has no widths in its metadata: save_merged did not write it"):
        load_merged(MLP(4, (3,), 2), file)
    save_merged(iterative_feature_merging(MLP(4, (8,), 2), 0.9), file)
    with pytest.raises(InputError, match="unknown layer of the model '1'"):
        load_merged(nn.Sequential(nn.Linear(4, 2)), file)
    with pytest.raises(InputError, match=r"the model has no '3.bias'|the state has no"):
        load_merged(MLP(4, (8, 8), 2), file)


def test_types_autocast_and_training() -> None:
    model = resnet_cifar(8, 8, shortcut="B").half()
    result = iterative_feature_merging(model, 0.8)
    assert {p.dtype for p in result.model.parameters()} == {torch.float16}
    smaller = result.model.float()
    assert count_params(smaller) < count_params(model)
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        smaller(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in smaller.parameters())


def test_the_users_model_is_left_as_it_was() -> None:
    model, x, _ = network("vgg")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    for batchnorm in ("std", "fold", "reference"):
        result = iterative_feature_merging(model, 0.6, batchnorm=batchnorm, example_input=x)  # type: ignore[arg-type]
        assert all(module.training for module in result.model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        assert [count_params(vgg_bn(depth)) for depth in (16, 19)] == [14_728_266, 20_040_522]


def test_what_is_left_alone_is_said() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(3, 5), nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.d(torch.relu(self.c(torch.tanh(self.b(self.a(x).relu().softmax(-1))))))

    result = iterative_feature_merging(Mixed(), 0.99)
    assert list(result.widths) == ["c"]
    assert result.left_alone == {
        "a": "operation 'softmax' has no channel rule",
        "b": "tanh is not positively homogeneous, so that a sum of equal channels would not do what they did",
        "d": "they are outputs of the network",
    }


def test_bad_input_is_refused() -> None:
    model = MLP(4, (3,), 2)
    for beta in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match=r"beta must be in \[0, 1\]"):
            iterative_feature_merging(model, beta)
    for ratio in (0.0, 1.5):
        with pytest.raises(InputError, match=r"max_ratio must be in \(0, 1\]"):
            iterative_feature_merging(model, 0.1, ratio)
    with pytest.raises(InputError, match="unknown batchnorm 'folded'; did you mean 'fold'"):
        iterative_feature_merging(model, 0.1, batchnorm="folded")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"found no channels to merge \(0: they are outputs"):
        iterative_feature_merging(nn.Sequential(nn.Linear(4, 2)), 0.1)
    normed = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    message = r"0: layer '1' is a LayerNorm, which has no channel rule; .*give spec=ChannelSpec"
    with pytest.raises(InputError, match=message):
        iterative_feature_merging(normed, 0.1)
    grouped = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1, groups=2), nn.Flatten())
    with pytest.raises(InputError, match="0: layer '2' is a convolution in 2 groups, which would be broken"):
        iterative_feature_merging(grouped, 0.1)
    with pytest.raises(InputError, match="unknown layer with channels '7'"):
        pairwise_channel_distance(model, "7")
    with pytest.raises(InputError, match="batchnorm='fold' needs a network that can be traced"):
        iterative_feature_merging(model, 0.1, spec=ChannelSpec({"1": (["1"], ["3"])}), batchnorm="fold")
    with pytest.raises(InputError, match=r"weights must have values, '1.weight' is on the meta device"):
        iterative_feature_merging(MLP(4, (3,), 2).to("meta"), 0.1)
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"weights must be finite, '1.weight' has"):
        iterative_feature_merging(model, 0.1)
