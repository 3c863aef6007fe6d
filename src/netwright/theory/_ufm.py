"""Weights and features of an unconstrained-features model, and their descent."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from netwright.theory.collapse import DeepLinearUFM


@dataclass(frozen=True, eq=False)
class UFMState:
    """Weights and features of a :class:`DeepLinearUFM`.

    Attributes:
        weights: One ``(out_features, in_features)`` a layer, in the order in which they are applied.
        features: ``(samples, width)``, sorted by class.
        bias: Bias of the last layer ``(K,)``, or ``None``.
        curve: Steps and regularised loss on the way here, ``(points, 2)``; empty if it was not trained.
    """

    weights: tuple[Tensor, ...]
    features: Tensor
    bias: Tensor | None
    curve: Tensor


class Descent:
    """Gradient descent whose parameters, gradients and velocities lie in one block of memory each."""

    def __init__(self, model: "DeepLinearUFM", start: UFMState) -> None:
        self.model = model
        tensors = [*start.weights, start.features] + ([] if start.bias is None else [start.bias])
        decays = [*model.weight_decays, model.feature_decay] + ([] if start.bias is None else [0.0])
        self.parameters = torch.cat([tensor.detach().flatten() for tensor in tensors])
        self.gradients = torch.zeros_like(self.parameters)
        self.velocities = torch.zeros_like(self.parameters)
        self.decays = torch.cat([torch.full_like(t.flatten(), d) for t, d in zip(tensors, decays, strict=True)])
        shapes = [tensor.shape for tensor in tensors]
        self.state = self._views(self.parameters, shapes)
        self.slots = self._views(self.gradients, shapes)
        self.one_hot = model.one_hot()

    def _views(self, flat: Tensor, shapes: list[torch.Size]) -> UFMState:
        pieces = [p.view(s) for p, s in zip(torch.split(flat, [s.numel() for s in shapes]), shapes, strict=True)]
        depth = len(self.model.dims)
        bias = pieces[depth + 1] if len(pieces) > depth + 1 else None
        return UFMState(tuple(pieces[:depth]), pieces[depth], bias, torch.empty(0, 2))

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        activations = [self.state.features]
        for weight in self.state.weights:
            activations.append(activations[-1] @ weight.T)
        outputs = activations.pop()
        if self.state.bias is not None:
            outputs = outputs + self.state.bias
        if self.model.loss == "ce":
            outputs = outputs.softmax(1)
        back = (outputs - self.one_hot) / self.model.samples
        if self.slots.bias is not None:
            torch.sum(back, 0, out=self.slots.bias)
        for weight, slot, inputs in zip(
            reversed(self.state.weights), reversed(self.slots.weights), reversed(activations), strict=True
        ):
            torch.mm(back.T, inputs, out=slot)
            back = back @ weight
        self.slots.features.copy_(back)
        self.gradients.addcmul_(self.decays, self.parameters)
        self.velocities.mul_(momentum).add_(self.gradients)
        self.parameters.add_(self.velocities, alpha=-lr)


__all__ = ["Descent", "UFMState"]
