"""Normalisation-activation layers as graphs of simple functions (Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967).

:class:`LayerGraph` is the genome, :class:`GraphLayer` the module that computes it;
:mod:`netwright.compression.layer_evolution` searches among them.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from netwright import checks

_EPS = 1e-5

INITIAL_NODES = ("x", "0", "v0", "v1")
_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "log": lambda x: x.sign() * (x.abs() + _EPS).log(),
    "abs": torch.abs,
    "square": torch.square,
    "sqrt": lambda x: x.sign() * (x.abs() + _EPS).sqrt(),
}
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "div": torch.div,
    "max": torch.maximum,
}
_MOMENTS = ("mean", "std", "rms")
_AXES = ("batch", "instance", "layer", "group")

AGGREGATIONS = tuple(f"{moment}_{axes}" for moment in _MOMENTS for axes in _AXES)
PRIMITIVES = (*_BINARY, *_UNARY, *AGGREGATIONS)
# for layers that do not care about the batch, as in the S-series
SAMPLE_PRIMITIVES = tuple(op for op in PRIMITIVES if not op.endswith("_batch"))


@dataclass(frozen=True)
class Node:
    """One function of the graph and the numbers of the nodes that it takes."""

    op: str
    inputs: tuple[int, ...]


@dataclass(frozen=True)
class LayerGraph:
    """The genome of a layer: a directed acyclic graph from the input to the output.

    Nodes 0 to 3 are the input x, the constant 0, and vectors v0 and v1 with one trainable number for each channel, 0
    and 1 at first. Every further node is a function (:data:`PRIMITIVES`) of earlier nodes; the last one is the output.
    Not every node needs to have a say in it.

    Functions are ``add``, ``mul``, ``div``, ``max`` of two nodes; ``neg``, ``sigmoid``, ``tanh``, ``exp``, ``abs``,
    ``square``, ``log`` = sign(x)·ln(abs(x) + ε), ``sqrt`` = sign(x)·√(abs(x) + ε) of one; and ``mean``, ``std`` =
    √(variance + ε) and ``rms`` = √(mean of squares + ε) over the ``batch`` (batch, height, width), the ``instance``
    (height, width), the ``layer`` (channels, height, width) or a ``group`` (some channels, height, width); ε = 1e-5.

    Attributes:
        nodes: The intermediate nodes, of which the first has number 4.

    Raises:
        InputError: If there is no node, no such function, or an input that is not an earlier node.

    Source:
        arXiv:2004.02967.

    Example:
        >>> graph = LayerGraph((Node("sigmoid", (0,)), Node("mul", (0, 4))))
        >>> graph.expression()
        'mul(x, sigmoid(x))'
    """

    nodes: tuple[Node, ...]

    def __post_init__(self) -> None:
        if not self.nodes:
            raise checks.InputError("a layer graph needs at least one node, got none")
        for number, node in enumerate(self.nodes, len(INITIAL_NODES)):
            checks.known("function of a layer graph", node.op, PRIMITIVES)
            if len(node.inputs) != _arity(node.op):
                checks.fail(f"{node.op} must have {_arity(node.op)} inputs", len(node.inputs))
            for source in node.inputs:
                if not 0 <= source < number:
                    checks.fail(f"inputs of node {number} must be earlier nodes (0 to {number - 1})", source)

    @cached_property
    def active(self) -> tuple[int, ...]:
        """Numbers of the nodes that have a say in the output, in order."""
        needed = {len(INITIAL_NODES) + len(self.nodes) - 1}
        for number in range(len(INITIAL_NODES) + len(self.nodes) - 1, len(INITIAL_NODES) - 1, -1):
            if number in needed:
                needed.update(self[number].inputs)
        return tuple(sorted(needed))

    def __getitem__(self, number: int) -> Node:
        return self.nodes[number - len(INITIAL_NODES)]

    def expression(self) -> str:
        """The output as a formula; graphs with the same formula are the same layer."""
        texts = list(INITIAL_NODES)
        for number in range(len(INITIAL_NODES), len(INITIAL_NODES) + len(self.nodes)):
            node = self[number]
            arguments = ", ".join(texts[source] for source in node.inputs)
            texts.append(f"{node.op}({arguments})" if number in self.active else "")
        return texts[-1]


def random_graph(rng: random.Random, nodes: int = 10, primitives: Sequence[str] = PRIMITIVES) -> LayerGraph:
    """Draw a graph node by node: the function uniformly, then each of its inputs uniformly from all earlier nodes.

    Args:
        rng: Source of randomness.
        nodes: Number of intermediate nodes; the paper takes 10, which makes 14 in all.
        primitives: Functions to draw from; :data:`SAMPLE_PRIMITIVES` for layers without batch statistics.
    """
    checks.at_least("nodes", nodes, 1)
    return LayerGraph(tuple(_random_node(len(INITIAL_NODES) + index, rng, primitives) for index in range(nodes)))


def mutate(graph: LayerGraph, rng: random.Random, primitives: Sequence[str] = PRIMITIVES) -> LayerGraph:
    """Draw one intermediate node uniformly, and its function and inputs anew."""
    index = rng.randrange(len(graph.nodes))
    node = _random_node(len(INITIAL_NODES) + index, rng, primitives)
    return LayerGraph((*graph.nodes[:index], node, *graph.nodes[index + 1 :]))


def named_graph(name: str) -> LayerGraph:
    """The graph of a layer that is known: ``"BN-ReLU"``, ``"B0"`` or ``"S0"``."""
    checks.known("layer", name, _KNOWN)
    return LayerGraph(tuple(Node(op, inputs) for op, *inputs in _KNOWN[name]))  # type: ignore[arg-type]


class GraphLayer(nn.Module):
    r"""The layer that a graph describes: :math:`y = \gamma \cdot \mathrm{graph}(x) + \beta`.

    Statistics over the batch are kept as running averages for eval mode, with the biased variance.

    Args:
        graph: What to compute.
        num_features: Channels of the input ``(batch, num_features, height, width)``; the output has the same shape.
        groups: Groups of channels; where it does not divide the channels, the largest number below it that does.
        apply_act: Without it the layer is :math:`\gamma x + \beta` alone.
        momentum: Weight of a new batch in the running averages.

    Raises:
        InputError: If the input is not 4-D or has other channels.
    """

    v0: nn.Parameter | None
    v1: nn.Parameter | None

    def __init__(
        self, graph: LayerGraph, num_features: int, groups: int = 32, apply_act: bool = True, momentum: float = 0.1
    ) -> None:
        super().__init__()
        checks.at_least("num_features", num_features, 1)
        checks.at_least("groups", groups, 1)
        self.graph = graph
        self.num_features = num_features
        self.groups = max(d for d in range(1, min(groups, num_features) + 1) if num_features % d == 0)
        self.apply_act = apply_act
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        active = graph.active if apply_act else ()
        for number, start in ((2, torch.zeros), (3, torch.ones)):
            vector = nn.Parameter(start(num_features)) if number in active else None
            self.register_parameter(INITIAL_NODES[number], vector)
        for number in active:
            if number >= len(INITIAL_NODES) and graph[number].op.endswith("_batch"):
                start = torch.zeros if graph[number].op.startswith("mean") else torch.ones
                self.register_buffer(f"running_{number}", start(num_features))

    def forward(self, input: Tensor) -> Tensor:
        checks.dimensions("input", input, "(batch, channels, height, width)")
        checks.size("input", input, 1, self.num_features)
        output = self._run(input).expand_as(input) if self.apply_act else input
        return output * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)

    def _run(self, input: Tensor) -> Tensor:
        values: dict[int, Tensor] = {0: input, 1: input.new_zeros(1, 1, 1, 1)}
        for number, vector in ((2, self.v0), (3, self.v1)):
            if vector is not None:
                values[number] = vector.view(1, -1, 1, 1)
        for number in self.graph.active:
            if number < len(INITIAL_NODES):
                continue
            node = self.graph[number]
            sources = [values[source] for source in node.inputs]
            if node.op in _BINARY:
                values[number] = _BINARY[node.op](*sources)
            elif node.op in _UNARY:
                values[number] = _UNARY[node.op](*sources)
            else:
                values[number] = self._aggregate(number, node.op, *sources)
        return values[self.graph.active[-1]]

    def _aggregate(self, number: int, op: str, value: Tensor) -> Tensor:
        moment, axes = op.split("_")
        if axes == "instance":
            return _moment(moment, value, (2, 3))
        if axes == "layer":
            return _moment(moment, value, (1, 2, 3))
        if axes == "group":
            batch, _, *space = value.shape
            grouped = value.expand(-1, self.num_features, -1, -1).reshape(batch, self.groups, -1, *space)
            spread = _moment(moment, grouped, (2, 3, 4)).expand(-1, -1, self.num_features // self.groups, -1, -1)
            return spread.reshape(batch, self.num_features, 1, 1)
        running: Tensor = getattr(self, f"running_{number}")
        if not self.training:
            return running.view(1, -1, 1, 1)
        current = _moment(moment, value, (0, 2, 3))
        with torch.no_grad():
            running.lerp_(current.detach().flatten().expand_as(running).to(running.dtype), self.momentum)
        return current

    def extra_repr(self) -> str:
        return f"{self.num_features}, apply_act={self.apply_act}, {self.graph.expression()}"


def to_module(graph: LayerGraph, channels: int, groups: int = 32) -> GraphLayer:
    """The layer that ``graph`` describes, for ``channels`` channels.

    Example:
        >>> to_module(named_graph("S0"), 8)(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """
    return GraphLayer(graph, channels, groups)


def _arity(op: str) -> int:
    return 2 if op in _BINARY else 1


def _random_node(number: int, rng: random.Random, primitives: Sequence[str]) -> Node:
    op = rng.choice(primitives)
    return Node(op, tuple(rng.randrange(number) for _ in range(_arity(op))))


def _moment(moment: str, value: Tensor, dim: tuple[int, ...]) -> Tensor:
    if moment == "mean":
        return value.mean(dim, keepdim=True)
    if moment == "std":
        return (value.var(dim, correction=0, keepdim=True) + _EPS).sqrt()
    return (value.square().mean(dim, keepdim=True) + _EPS).sqrt()


_KNOWN: Mapping[str, tuple[tuple[str | int, ...], ...]] = {
    "BN-ReLU": (("mean_batch", 0), ("neg", 4), ("add", 0, 5), ("std_batch", 0), ("div", 6, 7), ("max", 8, 1)),
    "B0": (("mul", 0, 3), ("std_instance", 0), ("add", 4, 5), ("std_batch", 0), ("max", 6, 7), ("div", 0, 8)),
    "S0": (("mul", 0, 3), ("sigmoid", 4), ("mul", 0, 5), ("std_group", 0), ("div", 6, 7)),
}


__all__ = [
    "AGGREGATIONS",
    "INITIAL_NODES",
    "PRIMITIVES",
    "SAMPLE_PRIMITIVES",
    "GraphLayer",
    "LayerGraph",
    "Node",
    "mutate",
    "named_graph",
    "random_graph",
    "to_module",
]
