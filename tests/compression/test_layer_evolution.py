"""Tests of ``netwright.compression.layer_evolution`` and ``layer_graph``."""

import copy
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from netwright.compression.layer_evolution import (
    EvolveLayers,
    GraphLayer,
    LayerGraph,
    ProxyTask,
    QualityReject,
    Screening,
    StabilityReject,
    mutate,
    named_graph,
    random_graph,
    to_module,
)
from netwright.compression.layer_graph import AGGREGATIONS, PRIMITIVES, SAMPLE_PRIMITIVES, Node
from netwright.data import load
from netwright.layers.evonorm import EvoNormB0, EvoNormS0
from netwright.models.vision.mbconv import mobilenet_small
from netwright.models.vision.resnet import NormActFactory
from netwright.models.vision.resnet_v2 import resnet_v2_cifar
from netwright.training import Settings


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("name", "kind"), [("S0", EvoNormS0), ("B0", EvoNormB0)])
def test_the_graphs_of_evonorm_are_the_layers(name: str, kind: type[nn.Module], training: bool) -> None:
    graph = to_module(named_graph(name), 8, groups=2).train(training)
    layer = (kind(8, groups=2) if name == "S0" else kind(8)).train(training)
    with torch.no_grad():
        graph.v1.uniform_(0.5, 1.5)
        graph.weight.uniform_(0.5, 1.5)
        layer.v.copy_(graph.v1)
        layer.weight.copy_(graph.weight)
    x = torch.randn(4, 8, 5, 5)
    # at first the graph's running deviation is 1, that of the layer √(1 + ε)
    torch.testing.assert_close(graph(x), layer(x), rtol=1e-5, atol=1e-4)


def test_the_graph_of_batch_normalisation_is_the_layer() -> None:
    x = 3 * torch.randn(4, 8, 5, 5) + 1
    norm = nn.BatchNorm2d(8)
    graph = to_module(named_graph("BN-ReLU"), 8)
    torch.testing.assert_close(graph(x), torch.relu(norm(x)))
    for _ in range(100):
        graph(x)
    expected = torch.relu((x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True))
    torch.testing.assert_close(graph.eval()(x), expected, rtol=1e-3, atol=1e-3)


ELEMENTWISE = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "max": torch.maximum,
    "neg": lambda a: -a,
    "sigmoid": lambda a: 1 / (1 + torch.exp(-a)),
    "tanh": lambda a: (torch.exp(2 * a) - 1) / (torch.exp(2 * a) + 1),
    "exp": lambda a: math.e**a,
    "log": lambda a: a.sign() * a.abs().log(),
    "abs": lambda a: torch.where(a < 0, -a, a),
    "square": lambda a: a * a,
    "sqrt": lambda a: a.sign() * a.abs() ** 0.5,
}


@pytest.mark.parametrize("op", ELEMENTWISE)
def test_elementwise_functions(op: str) -> None:
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64)
    arity = 2 if op in ("add", "mul", "div", "max") else 1
    graph = LayerGraph((Node("square", (0,)), Node(op, (0, 4)[:arity])))
    layer = to_module(graph, 4).double()
    torch.testing.assert_close(layer(x), ELEMENTWISE[op](*(x, x * x)[:arity]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", AGGREGATIONS)
def test_statistics(op: str) -> None:
    x = torch.randn(3, 4, 5, 5, dtype=torch.float64) + 1
    layer = to_module(LayerGraph((Node(op, (0,)),)), 4, groups=2).double()
    moment, axes = op.split("_")
    samples = {"batch": lambda b, c: x[:, c], "instance": lambda b, c: x[b, c], "layer": lambda b, c: x[b]}
    samples["group"] = lambda b, c: x[b, c // 2 * 2 : c // 2 * 2 + 2]
    statistic = {
        "mean": torch.mean,
        "std": lambda s: (s.var(correction=0) + 1e-5).sqrt(),
        "rms": lambda s: (s.square().mean() + 1e-5).sqrt(),
    }[moment]
    out = layer(x)
    for b in range(3):
        for c in range(4):
            torch.testing.assert_close(out[b, c], statistic(samples[axes](b, c)).expand(5, 5))


def test_statistics_of_what_varies_less_than_the_input() -> None:
    """A statistic of v1, of a constant, or of another statistic is that of the tensor it stands for."""
    for inner in ((3,), (1,)):
        for op in AGGREGATIONS:
            layer = to_module(LayerGraph((Node(op, inner),)), 4, groups=2)
            with torch.no_grad():
                if layer.v1 is not None:
                    layer.v1.copy_(torch.arange(4.0))
            x = torch.randn(2, 4, 3, 3)
            vector = torch.arange(4.0) if inner == (3,) else torch.zeros(4)
            full = to_module(LayerGraph((Node(op, (0,)),)), 4, groups=2)
            torch.testing.assert_close(layer(x), full(vector.view(1, 4, 1, 1).expand_as(x)))


def test_a_layer_without_activation_is_affine_and_has_no_further_parameters() -> None:
    layer = GraphLayer(named_graph("S0"), 4, apply_act=False)
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(layer(x), x)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]


@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 12))
def test_random_graphs_and_their_mutants_are_layers(seed: int, nodes: int) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, nodes)
    child = mutate(graph, rng)
    assert len(graph.nodes) == len(child.nodes) == nodes
    assert sum(a != b for a, b in zip(graph.nodes, child.nodes, strict=True)) <= 1
    for one in (graph, child):
        layer = to_module(one, 8)
        x = torch.randn(2, 8, 4, 4)
        assert layer(x).shape == x.shape
        assert layer.eval()(x).shape == x.shape
        again = to_module(one, 8)
        again.load_state_dict(layer.state_dict())
        torch.testing.assert_close(again.eval()(x), layer(x), equal_nan=True)


def test_without_batch_statistics_a_sample_is_on_its_own() -> None:
    rng = random.Random(0)
    for _ in range(20):
        layer = to_module(random_graph(rng, primitives=SAMPLE_PRIMITIVES), 8)
        x = torch.randn(3, 8, 4, 4)
        torch.testing.assert_close(layer(x), torch.cat([layer(one) for one in x.split(1)]), equal_nan=True)


def test_every_function_is_drawn_and_mutation_reaches_every_node() -> None:
    rng = random.Random(0)
    graphs = [random_graph(rng) for _ in range(300)]
    assert {node.op for graph in graphs for node in graph.nodes} == set(PRIMITIVES)
    graph = graphs[0]
    changed = {
        index
        for _ in range(200)
        for index, (a, b) in enumerate(zip(graph.nodes, mutate(graph, rng).nodes, strict=True))
        if a != b
    }
    assert changed == set(range(10))


def test_nodes_without_a_say_cost_nothing() -> None:
    graph = LayerGraph((Node("mul", (0, 3)), Node("std_batch", (0,)), Node("sigmoid", (0,))))
    assert graph.active == (0, 6)
    layer = to_module(graph, 4)
    assert (layer.v1, list(layer.buffers())) == (None, [])
    assert graph.expression() == "sigmoid(x)"


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ((), "needs at least one node"),
        ((Node("relu6", (0,)),), "unknown function of a layer graph 'relu6'"),
        ((Node("add", (0,)),), "add must have 2 inputs, got 1"),
        ((Node("exp", (4,)),), r"inputs of node 4 must be earlier nodes \(0 to 3\), got 4"),
    ],
)
def test_graphs_that_are_none_are_refused(nodes: tuple[Node, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LayerGraph(nodes)


def test_bad_inputs_are_refused() -> None:
    layer = to_module(named_graph("S0"), 4)
    with pytest.raises(ValueError, match=r"shape \(batch, channels, height, width\)"):
        layer(torch.randn(2, 4, 3))
    with pytest.raises(ValueError, match="dimension 1 of input must have size 4"):
        layer(torch.randn(2, 5, 3, 3))
    with pytest.raises(ValueError, match="unknown layer 'S9'"):
        named_graph("S9")
    with pytest.raises(ValueError, match="number of evaluators must be at least 1"):
        EvolveLayers((), 4)


def tiny_task(build: object = None, steps: int = 12) -> ProxyTask:
    splits = load("digits")

    def small(norm_act: NormActFactory) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), norm_act(8, True), nn.Flatten(), nn.Linear(128, 10)
        )

    return ProxyTask(build or small, splits, steps, Settings(optimizer="sgd", lr=0.1, batch_size=64))


GOOD, CONSTANT = named_graph("S0"), LayerGraph((Node("sigmoid", (3,)),))
# x²·x² … : the gradient grows like a high power of the filters
EXPLOSIVE = LayerGraph((Node("square", (0,)), Node("square", (4,)), Node("square", (5,)), Node("exp", (6,))))


def test_quality_rejection() -> None:
    task, test = tiny_task(), QualityReject(steps=12)
    assert test(GOOD, task) == Screening(False, 12.0)
    assert test(CONSTANT, task) == Screening(True, 0.0)
    blind = LayerGraph((Node("mean_layer", (0,)), Node("mul", (4, 1))))  # depends on x in form only
    assert test(blind, task).rejected


def test_stability_rejection() -> None:
    task, test = tiny_task(), StabilityReject(steps=5)
    assert test(GOOD, task) == Screening(False, 5 * 3 * 32 / 64)
    verdict = test(EXPLOSIVE, task)
    assert verdict.rejected
    assert verdict.updates < 5 * 3 * 32 / 64
    assert StabilityReject(threshold=1e-6, steps=5)(GOOD, task).rejected


def test_stability_ascends() -> None:
    """The threshold that rejects lies above the norm at the start: the ascent has raised it."""
    task = tiny_task()
    start = next(t for t in (2.0**k for k in range(-10, 30)) if not StabilityReject(t, steps=1)(GOOD, task).rejected)
    later = next(
        t for t in (2.0**k for k in range(-10, 30)) if not StabilityReject(t, steps=8, lr=1.0)(GOOD, task).rejected
    )
    assert later > start


def test_a_task_starts_from_the_same_weights_and_leaves_the_generator_alone() -> None:
    task = tiny_task()
    state = torch.get_rng_state()
    first = task.model(GOOD)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), task.model(GOOD).parameters(), strict=True):
        assert torch.equal(a, b)
    assert task.accuracy(GOOD) == task.accuracy(GOOD)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_search_finds_layers_that_learn_and_counts_what_it_spends() -> None:
    task = tiny_task()
    search = EvolveLayers(
        (task,), population=3, tournament_frac=1.0, reject=(QualityReject(0.3, 6), StabilityReject(steps=2))
    )
    found = search.run(random.Random(3), tries=25)
    assert found.tried == 25
    assert found.best.scores[0] > 0.3
    assert set(found.rejected) <= {"QualityReject", "StabilityReject", "not a number"}
    assert found.rejected["QualityReject"] > 5
    assert sum(found.rejected.values()) + len(found.history) <= 25
    again = search.run(random.Random(3), tries=25)
    assert again == found
    limited = search.run(random.Random(3), updates=30.0)
    assert 30 <= limited.updates < 30 + 6 + 3 + 12
    with pytest.raises(ValueError, match="needs a limit: tries or updates"):
        search.run(random.Random(0))


def test_without_rejection_layers_are_lost_in_their_evaluation_only() -> None:
    search = EvolveLayers((tiny_task(steps=3),), population=20, reject=())
    found = search.run(random.Random(0), tries=15)
    assert set(found.rejected) <= {"not a number"}
    assert found.updates >= 3 * len(found.history) / 2


@pytest.mark.parametrize(
    "build",
    [
        lambda norm_act: resnet_v2_cifar(8, 4, in_channels=1, norm_act=norm_act),
        lambda norm_act: mobilenet_small(in_channels=1, norm_act=norm_act),
        lambda norm_act: mobilenet_small(in_channels=1, se_ratio=0.25, norm_act=norm_act),
    ],
)
def test_the_test_beds_take_a_layer_everywhere(build: object) -> None:
    model = tiny_task(build).model(GOOD)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.ReLU) for module in model.modules())
    x = torch.randn(2, 1, 8, 8, requires_grad=True)
    out: Tensor = model(x)
    out.sum().backward()
    assert out.shape == (2, 10)
    assert copy.deepcopy(model)(x).shape == (2, 10)
