"""Evolution of normalisation-activation layers (Liu, Brock, Simonyan, Le 2020, arXiv:2004.02967) from simple functions.

A layer is a small graph of element-wise functions and statistics (:mod:`netwright.compression.layer_graph`). Random
graphs and mutants of good ones are trained in several small networks; most are thrown out early because they do not
learn or because their gradient can be driven to infinity. This is the search that found EvoNorm
(:mod:`netwright.layers.evonorm`).
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from netwright import checks
from netwright.compression.layer_graph import (
    PRIMITIVES,
    GraphLayer,
    LayerGraph,
    mutate,
    named_graph,
    random_graph,
    to_module,
)
from netwright.compression.search import Criterion, Evolution, evolve
from netwright.data.splits import Splits
from netwright.models.vision.resnet import NormActFactory
from netwright.training import Budget, Diverged, Settings, fit, task_loss


@dataclass(frozen=True)
class ProxyTask:
    """One network in which layers are tried, on one data set, for a fixed number of updates.

    Attributes:
        build: ``build(norm_act)`` makes the network; see :mod:`netwright.models.vision.resnet` for the factory.
        splits: The data; layers are judged by the accuracy on ``val``.
        steps: Updates of one evaluation.
        settings: Optimiser, learning rate, batch size.
        seed: Of the first weights and the order of the data.
        groups: Groups of channels in the layers.
    """

    build: Callable[[NormActFactory], nn.Module]
    splits: Splits
    steps: int = 400
    settings: Settings = field(default_factory=lambda: Settings(optimizer="sgd", lr=0.1, schedule="cosine"))
    seed: int = 0
    groups: int = 8

    def model(self, graph: LayerGraph) -> nn.Module:
        """The network with the layer, at its first weights; the global generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.build(lambda channels, act: GraphLayer(graph, channels, self.groups, act))

    def accuracy(self, graph: LayerGraph, steps: int | None = None) -> float:
        """Validation accuracy after training; not a number if the loss is not finite."""
        model = self.model(graph)
        steps = steps or self.steps
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            try:
                budget = Budget(steps=steps)
                history = fit(model, self.splits, budget, settings=self.settings, seed=self.seed, evaluate_every=steps)
            except Diverged:
                return math.nan
        record = history.records[-1]
        return record["val_accuracy"] if math.isfinite(record["val_nll"]) else math.nan


@dataclass(frozen=True)
class Screening:
    """Whether a layer is thrown out, and what it cost to see that, in training updates."""

    rejected: bool
    updates: float


class Reject(Protocol):
    """An early test of a layer in one network."""

    def __call__(self, graph: LayerGraph, task: ProxyTask) -> Screening:
        """Test ``graph``."""
        ...


@dataclass(frozen=True)
class QualityReject:
    """Throw out a layer with which the network learns nothing in its first updates.

    Attributes:
        threshold: Validation accuracy that has to be reached; twice chance for ten classes.
        steps: Updates.

    Source:
        arXiv:2004.02967.
    """

    threshold: float = 0.2
    steps: int = 100

    def __call__(self, graph: LayerGraph, task: ProxyTask) -> Screening:
        """Test ``graph``; a layer that does not depend on its input is thrown out unseen."""
        if 0 not in graph.active:
            return Screening(True, 0.0)
        accuracy = task.accuracy(graph, self.steps)
        return Screening(not accuracy >= self.threshold, float(self.steps))


@dataclass(frozen=True)
class StabilityReject:
    r"""Throw out a layer whose gradient can be made huge by small moves of the filters.

    Gradient ascent of the filters θ on :math:`\lVert \partial \ell / \partial \theta \rVert_2` for one batch; the
    layer is rejected as soon as this norm exceeds the threshold or is no number.

    Attributes:
        threshold: Largest norm.
        steps: Steps of gradient ascent.
        lr: Their length, as a multiple of the gradient of the norm. The paper does not give it.
        batch_size: Pictures in the batch.

    Source:
        arXiv:2004.02967.
    """

    threshold: float = 1e8
    steps: int = 100
    lr: float = 0.1
    batch_size: int = 32

    def __call__(self, graph: LayerGraph, task: ProxyTask) -> Screening:
        """Test ``graph``; one step counts as three updates of a batch of this size, for it differentiates twice."""
        model = task.model(graph).train()
        filters = [p for p in model.parameters() if p.ndim == 4]
        inputs = task.splits.train.inputs[: self.batch_size]
        targets = task.splits.train.targets[: self.batch_size]
        update = 3 * len(inputs) / task.settings.batch_size
        for step in range(1, self.steps + 1):
            gradients = torch.autograd.grad(task_loss(model(inputs), targets), filters, create_graph=True)
            # the small constant keeps the slope of the root finite where the gradient vanishes
            norm = (sum((g.square().sum() for g in gradients), torch.zeros(())) + 1e-30).sqrt()
            if not norm.item() <= self.threshold:
                return Screening(True, step * update)
            ascent = torch.autograd.grad(norm, filters, materialize_grads=True)
            with torch.no_grad():
                for weight, direction in zip(filters, ascent, strict=True):
                    weight.add_(direction, alpha=self.lr)
            if not all(bool(weight.isfinite().all()) for weight in filters):
                return Screening(True, step * update)
        return Screening(False, self.steps * update)


@dataclass(frozen=True)
class LayerSearch(Evolution[LayerGraph]):
    """What :class:`EvolveLayers` found.

    Attributes:
        rejected: How many layers each test threw out; ``"not a number"`` counts those lost in their evaluation.
        updates: What the search spent, in training updates.
    """

    rejected: Mapping[str, int] = field(default_factory=dict)
    updates: float = 0.0


@dataclass(frozen=True)
class EvolveLayers:
    """Tournament evolution of layer graphs, judged in several networks at once.

    Attributes:
        evaluators: Networks; the accuracy in each is one criterion.
        population: Newest layers that can have offspring.
        tournament_frac: Part of the population in a tournament.
        reject: Tests, in this order, in the first network; a layer that fails one is not evaluated.
        nodes: Intermediate nodes of a graph.
        primitives: Functions to draw from.
        criterion: How a tournament is decided; see :func:`netwright.compression.search.tournament_winner`.

    Source:
        arXiv:2004.02967. That a tournament takes 5 % of the population is from memory of the paper.
    """

    evaluators: Sequence[ProxyTask]
    population: int
    tournament_frac: float = 0.05
    reject: Sequence[Reject] = (QualityReject(), StabilityReject())
    nodes: int = 10
    primitives: Sequence[str] = PRIMITIVES
    criterion: Criterion = "pareto"

    def __post_init__(self) -> None:
        checks.at_least("number of evaluators", len(self.evaluators), 1)

    def run(self, rng: random.Random, *, tries: int | None = None, updates: float | None = None) -> LayerSearch:
        """Search until so many layers were tried or so many training updates were spent.

        A layer that was met before is not trained again, and costs nothing.

        Raises:
            InputError: If neither limit is given.
        """
        if tries is None and updates is None:
            raise checks.InputError("a search needs a limit: tries or updates, got neither")
        spent = 0.0
        rejected: Counter[str] = Counter()
        known: dict[str, tuple[float, ...] | None] = {}

        def evaluate(graph: LayerGraph) -> tuple[float, ...] | None:
            nonlocal spent
            expression = graph.expression()
            if expression in known:
                return known[expression]
            known[expression] = None
            for test in self.reject:
                verdict = test(graph, self.evaluators[0])
                spent += verdict.updates
                if verdict.rejected:
                    rejected[type(test).__name__] += 1
                    return None
            scores = []
            for task in self.evaluators:
                spent += task.steps
                scores.append(task.accuracy(graph))
                if not math.isfinite(scores[-1]):
                    rejected["not a number"] += 1
                    return None
            known[expression] = tuple(scores)
            return known[expression]

        # tries are bounded also where all the search meets is known, and so costs nothing
        most = tries if tries is not None else 100_000
        found = evolve(
            lambda rng: random_graph(rng, self.nodes, self.primitives),
            lambda graph, rng: mutate(graph, rng, self.primitives),
            evaluate,
            population=self.population,
            tournament_frac=self.tournament_frac,
            criterion=self.criterion,
            proceed=lambda tried: tried < most and (updates is None or spent < updates),
            rng=rng,
        )
        return LayerSearch(found.history, found.tried, dict(rejected), spent)


__all__ = [
    "EvolveLayers",
    "GraphLayer",
    "LayerGraph",
    "LayerSearch",
    "ProxyTask",
    "QualityReject",
    "Reject",
    "Screening",
    "StabilityReject",
    "mutate",
    "named_graph",
    "random_graph",
    "to_module",
]
