"""Tests of ``netwright.compression.channels``."""

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from netwright.checks import InputError
from netwright.compression.channels import (
    ChannelGraph,
    ChannelSpec,
    Slot,
    channel_graph,
    mask_nodes,
    merge,
    resize_like,
    select,
)
from netwright.compression.masks import Mask
from netwright.cost import count_params
from netwright.models.baselines import cnn
from netwright.models.vision.classic import MLP, conv_n, lenet_5, lenet_300_100, vgg_bn
from netwright.models.vision.resnet import resnet_4stage, resnet_cifar


class Separable(nn.Module):
    """Depthwise layers (one of them with two outputs a channel), slopes for each channel, dense concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.slopes = nn.PReLU(6)
        self.depthwise = nn.Conv2d(6, 12, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(12)
        self.side = nn.Conv2d(3, 5, 1)
        self.mixed = nn.BatchNorm2d(17)
        self.head = nn.Linear(17 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu_(self.norm(self.depthwise(self.slopes(self.stem(x)))))
        y = self.mixed(torch.cat([y, self.side(x)], dim=1))
        return self.head(functional.adaptive_avg_pool2d(functional.leaky_relu(y), 2).reshape(x.size(0), -1))


class Transposed(nn.Module):
    """Transposed convolutions, a shared layer, channels last, products and differences."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 6, 2, stride=2)
        self.shared = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.last = nn.Linear(6, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).relu()
        y = y - 0.5 * functional.relu(self.norm(self.shared(self.shared(y))))
        y = torch.relu(self.last(y.permute(0, 2, 3, 1).contiguous()))
        return self.head(y.mean((1, 2)).unsqueeze(1).squeeze(1))


class Tied(nn.Module):
    """One weight in two layers, and a residual layer that both makes and reads the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 8)
        self.loop = nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.again.weight = self.loop.weight
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.inner(x))
        x = torch.relu(x + self.loop(x))
        x += self.again(x)
        return self.head(x.relu())


PICTURE = (2, 3, 16, 16)
DIGITS = SimpleNamespace(input_shape=(1, 8, 8), outputs=10)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: MLP(12, (9, 7), 4, norm=nn.BatchNorm1d), (2, 12)),
    "lenet": (lambda: lenet_5(), (2, 1, 28, 28)),
    "conv-2": (lambda: conv_n(2, image_size=8), (2, 3, 8, 8)),
    "vgg": (lambda: vgg_bn(11, widths=(4, 5, 6, 7, 8)), (2, 3, 32, 32)),
    "resnet A": (lambda: resnet_cifar(8, 4, shortcut="A"), PICTURE),
    "resnet pool": (lambda: resnet_cifar(8, 4, shortcut="pool"), PICTURE),  # type: ignore[arg-type]
    "resnet B": (lambda: resnet_cifar(14, 4, shortcut="B"), PICTURE),
    "single": (lambda: resnet_cifar(8, 4, shortcut="B", kind="single"), PICTURE),
    "bottleneck": (lambda: resnet_4stage(50, (3, 4, 5, 6)), PICTURE),
    "cnn": (lambda: cnn(DIGITS), (2, 1, 8, 8)),
    "separable": (Separable, PICTURE),
    "transposed": (Transposed, (2, 3, 4, 4)),
    "tied": (Tied, (2, 4)),
}


def network(name: str) -> tuple[nn.Module, Tensor, ChannelGraph]:
    """A network in float64 with all numbers drawn at random, BatchNorm's statistics included."""
    make, shape = NETWORKS[name]
    model = make().double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    x = torch.randn(shape, dtype=torch.float64)
    return model, x, channel_graph(model, x)


def make_equal(model: nn.Module, graph: ChannelGraph, groups: dict[str, list[list[int]]]) -> None:
    """Give all channels of each list the numbers of its first one."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, lists in groups.items():
            for slot in graph.groups[name].slots:
                tensor = tensors[slot.tensor]
                for members in lists:
                    first = tensor.index_select(slot.dim, slot.positions(torch.tensor(members[:1])))
                    for member in members[1:]:
                        tensor.index_copy_(slot.dim, slot.positions(torch.tensor([member])), first)


@pytest.mark.parametrize("name", NETWORKS)
def test_selected_network_computes_what_the_masked_one_does(name: str) -> None:
    model, x, graph = network(name)
    kept = {key: torch.randperm(g.channels)[: 1 + g.channels // 2] for key, g in graph.groups.items()}
    smaller = select(model, graph, kept)
    masked = copy.deepcopy(model)
    mask_nodes(model, graph, kept).apply_(masked)
    torch.testing.assert_close(smaller(x), masked(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(masked(x), model(x))
    assert count_params(smaller) < count_params(model)
    assert [n for n, _ in smaller.named_modules()] == [n for n, _ in model.named_modules()]
    assert smaller.state_dict().keys() == model.state_dict().keys()
    assert all(type(new) is type(old) for new, old in zip(smaller.modules(), model.modules(), strict=True))
    # the numbers that layers are made with agree with their tensors
    again = channel_graph(smaller, x)
    assert {key: group.channels for key, group in again.groups.items()} == {key: len(v) for key, v in kept.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_equal_channels_merge_without_a_change_of_the_function(name: str) -> None:
    model, x, graph = network(name)
    lists = {
        key: [[0, 2, 3], [1], *([c] for c in range(4, group.channels))]
        for key, group in graph.groups.items()
        if group.channels > 3
    }
    make_equal(model, graph, lists)
    merged = merge(model, graph, lists)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-9, atol=1e-9)
    assert count_params(merged) < count_params(model)


def test_reference_rule_is_off_by_the_root_of_two_behind_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, eps=0.0), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    graph = channel_graph(model)
    make_equal(model, graph, {"0": [[0, 1]]})
    x = torch.randn(5, 3, dtype=torch.float64)
    model.eval()
    merged = merge(model, graph, {"0": [[0, 1]]}, batchnorm="reference")
    torch.testing.assert_close(merged(x), model(x) * 2**0.5)
    torch.testing.assert_close(merge(model, graph, {"0": [[0, 1]]})(x), model(x))


@settings(max_examples=10)
@given(data=st.data())
def test_merging_is_a_sum_of_rows_and_a_mean_of_columns(data: st.DataObject) -> None:
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    labels = {
        layer: data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)) for layer, n in (("0", 6), ("2", 5))
    }
    lists = {
        layer: [[c for c, own in enumerate(given) if own == label] for label in dict.fromkeys(given)]
        for layer, given in labels.items()
    }
    merged = merge(model, channel_graph(model), lists)
    sums = {}
    for layer, members in lists.items():
        sums[layer] = torch.zeros(len(members), model.get_submodule(layer).out_features, dtype=torch.float64)
        for new, channels in enumerate(members):
            sums[layer][new, channels] = 1
    means = {layer: matrix / matrix.sum(1, keepdim=True) for layer, matrix in sums.items()}
    torch.testing.assert_close(merged[0].weight, sums["0"] @ model[0].weight)
    torch.testing.assert_close(merged[0].bias, sums["0"] @ model[0].bias)
    torch.testing.assert_close(merged[2].weight, sums["2"] @ model[2].weight @ means["0"].T)
    torch.testing.assert_close(merged[4].weight, model[4].weight @ means["2"].T)
    torch.testing.assert_close(merged[4].bias, model[4].bias)


def test_groups_of_the_named_networks() -> None:
    def widths(model: nn.Module, *shape: int) -> list[int]:
        return [group.channels for group in channel_graph(model, torch.zeros(shape)).groups.values()]

    assert widths(lenet_300_100(), 1, 784) == [300, 100]
    assert widths(cnn(DIGITS), 1, 1, 8, 8) == [32, 64, 64]
    with torch.device("meta"):
        vgg, resnet = vgg_bn(16), resnet_cifar(20, shortcut="B")
    graph = channel_graph(vgg)
    assert [g.channels for g in graph.groups.values()] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert count_params(select(vgg, graph, {"0": range(32)})) == 14_728_266 - 32 * (28 + 2 + 64 * 9)
    graph = channel_graph(resnet)
    streams = [group for group in graph.groups.values() if len(group.layers) > 1]
    assert [(group.channels, len(group.layers)) for group in streams] == [(16, 4), (32, 4), (64, 4)]
    assert len(graph.groups) == 3 + 9


def test_padded_shortcuts_leave_the_stream_alone_and_say_why() -> None:
    graph = channel_graph(resnet_cifar(20, shortcut="A"))
    assert all(group.layers == (name,) and name.endswith("branch.0") for name, group in graph.groups.items())
    assert len(graph.groups) == 9
    assert list(graph.fixed) == ["stem.0", "stages.1.0.branch.2", "stages.2.0.branch.2", "classifier"]
    with pytest.raises(InputError, match=r"channels of 'stages.0.1.branch.2' cannot change: operation 'add' in 'stag"):
        select(resnet_cifar(20), graph, {"stages.0.1.branch.2": [0]})
    assert "classifier: they are outputs of the network" in graph.why_fixed()


def test_slots_behind_flattening_and_concatenation() -> None:
    graph = channel_graph(Separable(), torch.zeros(PICTURE))
    assert Slot("head.weight", 1, "consumer", 0, 8) in graph.group("stem").slots
    assert Slot("head.weight", 1, "consumer", 48, 4) in graph.group("side").slots
    assert Slot("mixed.running_var", 0, "variance", 12, 1) in graph.group("side").slots
    assert Slot("depthwise.weight", 0, "scale", 0, 2) in graph.group("stem").slots
    assert channel_graph(Tied()).group("again").layers == ("inner", "loop", "again")


def run(body: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> ChannelGraph:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 2)
            for name, layer in layers.items():
                setattr(self, name, layer)

        def forward(self, x: Tensor) -> Tensor:
            return body(self, x)

    return channel_graph(Network(), torch.zeros(2, 3, 8, 8))


BEYOND_RULES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], dict[str, nn.Module], str]] = {
    "written size": (
        lambda m, x: m.head(nn.functional.max_pool2d(m.conv(x), 8).view(-1, 8)),
        {},
        "operation 'view' has a number of channels written into it",
    ),
    "softmax": (lambda m, x: m.head(m.conv(x).softmax(1).mean((2, 3))), {}, "operation 'softmax' has no channel rule"),
    "layer": (
        lambda m, x: m.head(m.other(m.conv(x)).mean((2, 3))),
        {"other": nn.GroupNorm(2, 8)},
        "layer 'other' is a GroupNorm, which has no channel rule",
    ),
    "grouped": (
        lambda m, x: m.head(m.other(m.conv(x)).mean((2, 3))),
        {"other": nn.Conv2d(8, 8, 1, groups=2)},
        "layer 'other' is a convolution in 2 groups, which would be broken",
    ),
    "weight elsewhere": (
        lambda m, x: m.head(m.conv(x).mean((2, 3))) + m.conv.weight.sum(),
        {},
        "the forward pass reads 'conv.weight' outside of its layer",
    ),
    "part": (lambda m, x: m.head(m.conv(x)[:, :8].mean((2, 3))), {}, "'getitem' takes some of the channels"),
    "over channels": (lambda m, x: m.conv(x).mean(1).flatten(1), {}, "operation 'mean' runs over the channels"),
    "two values": (lambda m, x: m.head(m.conv(x).chunk(2, 2)[0].mean((2, 3))), {}, "gives more than one tensor"),
    "other axis": (lambda m, x: m.other(m.conv(x)).flatten(1), {"other": nn.Linear(8, 2)}, "along another axis"),
    "divided": (
        lambda m, x: m.head(m.conv(x).view(-1, 2, 4, 64).mean(3).flatten(1)),
        {},
        "operation 'view' divides channels or mixes them",
    ),
    "from elsewhere": (
        lambda m, x: m.head((m.conv(x) + torch.ones(8, 1, 1)).mean((2, 3))),
        {},
        "operation 'add' takes numbers for single channels from elsewhere",
    ),
    "both axes": (
        lambda m, x: m.head((m.conv(x) + m.conv(x).transpose(1, 2)).mean((2, 3))),
        {},
        "operation 'add' meets channels along different axes",
    ),
    "reflected": (
        lambda m, x: m.other(functional.pad(m.conv(x).transpose(1, 3), (1, 1, 0, 0), "reflect").mean((1, 2))),
        {"other": nn.Linear(10, 2)},
        "operation 'pad' repeats channels",
    ),
}


@pytest.mark.parametrize("name", BEYOND_RULES)
def test_what_has_no_rule_fixes_the_channels_and_says_why(name: str) -> None:
    body, layers, reason = BEYOND_RULES[name]
    graph = run(body, **layers)
    assert "conv" not in graph.groups
    assert reason in graph.fixed["conv"].fixed


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda m, x: m.head(functional.gelu(m.conv(x)).mean((2, 3))), "gelu is not positively homogeneous"),
        (lambda m, x: m.head(nn.Sigmoid()(m.conv(x)).mean((2, 3))), "sigmoid is not positively homogeneous"),
        (lambda m, x: m.head((m.conv(x) + 1.0).mean((2, 3))), "a constant is added to them"),
        (lambda m, x: m.head((m.conv(x) * m.conv(x)).mean((2, 3))), "a product of channels is not"),
        (lambda m, x: m.head(m.norm(m.conv(x)).mean((2, 3))), "layer 'norm' has no γ"),
        (lambda m, x: m.head((2.0 * m.conv(x) / 3.0).abs().amax((2, 3))), ""),
        (lambda m, x: m.head(nn.Dropout(0.5)(nn.Upsample(scale_factor=2)(m.conv(x))).amax(-1).amax(-1)), ""),
    ],
)
def test_what_is_not_positively_homogeneous_is_noted(body: Callable[..., Tensor], reason: str) -> None:
    graph = run(body, norm=nn.BatchNorm2d(8, affine=False))
    assert (reason in graph.groups["conv"].curved) if reason else not graph.groups["conv"].curved


def test_the_users_model_is_left_as_it_was() -> None:
    model = resnet_cifar(8, 4, shortcut="B").train()
    model.stages[1].eval()
    model.stem[0].weight.requires_grad_(False)
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    graph = channel_graph(model, torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    smaller = select(model, graph, {"stem.0": [0, 2]})
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes == [m.training for m in smaller.modules()]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert [p.grad is None for p in model.parameters()].count(False) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not smaller.stem[0].weight.requires_grad
    assert smaller.stem[0].weight.shape[0] == smaller.stem[1][0].num_features == smaller.stem[0].out_channels == 2
    smaller(torch.randn(2, 3, 16, 16)).sum().backward()
    assert model.stages[0][0].branch[0].weight.grad is None


def test_shared_weights_stay_shared() -> None:
    model = Tied()
    smaller = select(model, channel_graph(model), {"loop": [0, 3, 5]})
    assert smaller.again.weight is smaller.loop.weight
    assert smaller.loop.weight.shape == (3, 3)
    torch.testing.assert_close(smaller.loop.weight, model.loop.weight[[0, 3, 5]][:, [0, 3, 5]])


def test_masks_keep_channels_silent_in_training() -> None:
    model = MLP(6, (8, 8), 3)
    graph = channel_graph(model)
    kept = {"1": torch.arange(8) % 2 == 0, "3": [1, 2]}
    mask = mask_nodes(model, graph, kept)
    assert isinstance(mask, Mask)
    mask.attach_(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
    plain = MLP(6, (8, 8), 3)
    plain.load_state_dict(model.state_dict())
    x = torch.randn(4, 6)
    torch.testing.assert_close(select(plain, graph, kept)(x), model(x))
    assert mask.kept == 4 * 7 + 4 * 2 + 2 + 2 * 3  # the biases of the head are no channel's


def test_a_state_of_another_size_is_taken_over() -> None:
    model, x, graph = network("separable")
    smaller = select(model, graph, {"stem": [4, 1], "side": [0, 3]})
    again = resize_like(model, smaller.state_dict())
    assert torch.equal(again(x), smaller(x))
    assert again.depthwise.groups == again.depthwise.in_channels == 2
    with pytest.raises(InputError, match=r"the model has no 'stem.wight', so that this is not the structure"):
        resize_like(model, {**model.state_dict(), "stem.wight": torch.zeros(1)})
    with pytest.raises(InputError, match=r"the state has no 'head.bias'"):
        resize_like(model, {name: t for name, t in model.state_dict().items() if name != "head.bias"})
    with pytest.raises(InputError, match=r"'weight' must have shape \(5, 4\), got \(5, 3\)"):
        resize_like(nn.Embedding(5, 4), {"weight": torch.zeros(5, 3)})


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Linear(24, 5)
        self.depthwise, self.head = nn.Conv2d(6, 6, 1, groups=6), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        y = self.depthwise(torch.relu(self.norm(self.conv(x))))
        return self.head(torch.relu(self.fc(y.flatten(1))))


def test_a_spec_takes_the_place_of_tracing() -> None:
    model = Untraceable().double().eval()
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    with pytest.raises(InputError, match=r"Untraceable cannot be traced by torch.fx .*give spec=ChannelSpec"):
        channel_graph(model, x)
    graph = channel_graph(
        model, spec=ChannelSpec({"conv": (["conv", "norm", "depthwise"], ["fc"]), "hidden": (["fc"], ["head"])})
    )
    assert graph.group("fc").name == "hidden"
    kept = {"conv": [0, 1, 4], "hidden": [2, 3]}
    smaller, masked = select(model, graph, kept), copy.deepcopy(model)
    mask_nodes(model, graph, kept).apply_(masked)
    torch.testing.assert_close(smaller(x), masked(x))
    lists = {"conv": [[0, 5], [1], [2], [3], [4]]}
    make_equal(model, graph, lists)
    torch.testing.assert_close(merge(model, graph, lists)(x), model(x))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "a spec needs at least one group"),
        ({"a": (["convv"], ["fc"])}, r"unknown layer in spec 'convv'; did you mean 'conv'\?"),
        ({"a": (["norm"], ["fc"])}, "group 'a' in spec names no linear or convolutional layer that makes channels"),
        (
            {"a": (["fc"], ["conv"])},
            r"channels of 'conv' in group 'a' must be divisible by channels of 'fc' = 5, got 1",
        ),
        ({"a": (["fc"], ["fc"])}, r"must be divisible by channels of 'fc' = 5, got 24"),
        ({"a": (["conv"], ["fc"]), "b": (["conv"], [])}, "layer 'conv' has the same channels in groups 'a' and 'b'"),
        ({"a": (["conv", "group"], ["fc"])}, "layer 'group' in spec is a GroupNorm, which has no channel rule"),
        ({"a": (["conv", "grouped"], ["fc"])}, "layer 'grouped' in spec is a convolution in 3 groups"),
    ],
)
def test_specs_that_do_not_fit_are_refused(groups: dict[str, tuple[list[str], list[str]]], message: str) -> None:
    model = Untraceable()
    model.group, model.grouped = nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 1, groups=3)
    with pytest.raises(InputError, match=message):
        channel_graph(model, spec=ChannelSpec(groups))


def test_channels_that_do_not_fit_are_refused() -> None:
    model = MLP(6, (8, 4), 3)
    graph = channel_graph(model)
    for kept, message in (
        ({"1": []}, "layer '1' would keep none of its 8 channels"),
        ({"1": torch.zeros(8, dtype=torch.bool)}, "layer '1' would keep none of its 8 channels"),
        ({"1": [0, 8]}, r"channels of '1' must be in \[0, 7\]"),
        ({"1": [0, 0]}, "channels of '1' must be different whole numbers"),
        ({"1": [0.5]}, "channels of '1' must be different whole numbers"),
        ({"1": torch.ones(5, dtype=torch.bool)}, "mask of the channels of '1' must have size 8"),
        ({"9": [0]}, "unknown layer with channels '9'"),
        ({"5": [0]}, "channels of '5' cannot change: they are outputs of the network"),
    ):
        with pytest.raises(InputError, match=message):
            select(model, graph, kept)
        with pytest.raises(InputError, match=message):
            mask_nodes(model, graph, kept)
    for lists in ([[0, 1], [2]], [[0, 1], [1, 2, 3]], [[0, 1, 2, 3], []]):
        with pytest.raises(InputError, match="groups of '3' must name each of its 4 channels once"):
            merge(model, graph, {"3": lists})
    with pytest.raises(InputError, match="unknown batchnorm rule 'sdt'; did you mean 'std'"):
        merge(model, graph, {}, batchnorm="sdt")  # type: ignore[arg-type]


def test_code_that_relies_on_the_number_of_channels_is_found_out() -> None:
    class Checking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.reshape(x.shape[0], y.shape[1] // 6 * 6))

    model = Checking()
    graph = channel_graph(model)
    with pytest.raises(
        InputError, match=r"the network with fewer channels fails \(RuntimeError: .*relies on their numb"
    ):
        select(model, graph, {"a": [0, 1]})


def test_inputs_are_found_or_asked_for() -> None:
    assert channel_graph(conv_n(4)).inputs == ((2, 3, 32, 32),)
    assert channel_graph(lenet_5()).inputs == ((2, 1, 28, 28),)
    with pytest.raises(InputError, match="the shape of the inputs of Sequential is not clear: give example_input"):
        channel_graph(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(InputError, match=r"Sequential fails on an input of shape \(2, 5\): RuntimeError"):
        channel_graph(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.zeros(7, 5))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor, scale: float | None = None) -> Tensor:
            z = self.a(x) + self.b(y)
            return self.head(z if scale is None else z * scale)

    graph = channel_graph(Two(), (torch.zeros(5, 4), torch.zeros(5, 3)))
    assert graph.group("b").layers == ("a", "b")
    assert select(Two(), graph, {"a": [0]}).b.out_features == 1
