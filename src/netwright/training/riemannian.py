"""Gradient descent for networks with parameters on manifolds: orthonormal columns (Stiefel), SPD matrices, and plain.

A layer names its parameters that lie on a manifold in an attribute ``manifolds``, such as ``{"weight": "stiefel"}``;
:func:`manifold_groups` reads them, and :class:`MixedRiemannianSGD` moves each so that it stays there.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netwright import checks

State = dict[str, Any]


def manifold_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for :class:`MixedRiemannianSGD`: one for each manifold, with its name under ``"manifold"``.

    Frozen parameters are left out. Weight decay is set to 0 for all but the Euclidean group, where it means something.

    Args:
        model: Any network.

    Raises:
        InputError: If a layer names a manifold that is not known here.

    Example:
        >>> from netwright.layers.spd_layers import BiMap
        >>> groups = manifold_groups(nn.Sequential(BiMap(4, 3), nn.Linear(9, 2)))
        >>> [(group["manifold"], len(group["params"])) for group in groups]
        [('euclidean', 2), ('stiefel', 1)]
    """
    groups: dict[str, list[Tensor]] = {"euclidean": []}
    seen = set()
    for module in model.modules():
        manifolds: dict[str, str] = getattr(module, "manifolds", {})
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                groups.setdefault(manifolds.get(name, "euclidean"), []).append(parameter)
    for manifold in groups:
        checks.known("manifold", manifold, UPDATES)
    made: list[dict[str, Any]] = [{"params": params, "manifold": name} for name, params in groups.items() if params]
    for group in made:
        if group["manifold"] != "euclidean":
            group["weight_decay"] = 0.0
    return made


class MixedRiemannianSGD(Optimizer):
    r"""Stochastic gradient descent with momentum, on the manifold of each parameter group.

    - ``"euclidean"``: as :class:`torch.optim.SGD`.
    - ``"stiefel"``: W with orthonormal columns; the gradient :math:`G - W G^\top W`, then back by QR.
    - ``"spd"``: the affine-invariant gradient :math:`X \operatorname{sym}(G) X` and its exponential map,
      :math:`X^{1/2} \exp(-\eta X^{1/2} \operatorname{sym}(G) X^{1/2}) X^{1/2}`, which never leaves the manifold;
      the velocity is transported in parallel along with X.

    Steps on manifolds are computed in float64. A schedule of torch's changes the rates of all groups alike.

    Args:
        params: Groups of :func:`manifold_groups`; parameters without a group are Euclidean.
        lr: Learning rate.
        momentum: What is left of the velocity after a step.
        weight_decay: L2 penalty, of Euclidean groups.

    Raises:
        InputError: If a number is out of range, a group has an unknown manifold, or weight decay on a curved one.

    Source:
        Bonnabel 2013, arXiv:1111.5280; the gradients are those of arXiv:1608.04233 and arXiv:1909.02414. The code
        released with arXiv:2504.00660 takes the same gradients, but keeps the Stiefel weights as they were drawn, has
        no momentum on manifolds, and moves SPD matrices by the Bures-Wasserstein exponential map, whose domain is
        bounded.

    Example:
        >>> from netwright.layers.spd_layers import BiMap
        >>> layer = BiMap(4, 3)
        >>> optimizer = MixedRiemannianSGD(manifold_groups(layer), lr=0.1, momentum=0.9)
        >>> layer(torch.eye(4, dtype=torch.float64).view(1, 1, 4, 4))[..., 0, 1].sum().backward()
        >>> optimizer.step()
        >>> torch.allclose(layer.weight.mT @ layer.weight, torch.eye(3, dtype=torch.float64))
        True
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        checks.positive("lr", lr)
        checks.between("momentum", momentum, 0, 1, open_high=True)
        checks.at_least("weight_decay", weight_decay, 0)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "manifold": "euclidean"}
        super().__init__(params, defaults)
        for group in self.param_groups:
            checks.known("manifold", group["manifold"], UPDATES)
            if group["manifold"] != "euclidean" and group["weight_decay"]:
                checks.fail("weight decay pulls off a curved manifold; it must be 0 there", group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            update = UPDATES[group["manifold"]]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update(parameter, parameter.grad, self.state[parameter], group)
        return loss


def _euclidean(parameter: Tensor, grad: Tensor, state: State, group: State) -> None:
    if group["weight_decay"]:
        grad = grad.add(parameter, alpha=group["weight_decay"])
    parameter.add_(_velocity(grad, state, group), alpha=-group["lr"])


def _stiefel(parameter: Tensor, grad: Tensor, state: State, group: State) -> None:
    weight = parameter.double()

    def tangent(direction: Tensor) -> Tensor:
        return direction - weight @ direction.mT @ weight

    velocity = _velocity(tangent(grad.double()), state, group)
    q, r = torch.linalg.qr(weight - group["lr"] * velocity)
    weight = q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)
    parameter.copy_(weight)
    if "velocity" in state:  # onto the tangent space at the new point
        inner = weight.mT @ velocity
        state["velocity"] = velocity - weight @ (inner + inner.mT) / 2


def _spd(parameter: Tensor, grad: Tensor, state: State, group: State) -> None:
    x = parameter.double()
    gradient = x @ _symmetric(grad.double()) @ x
    velocity = _velocity(gradient, state, group)
    values, vectors = torch.linalg.eigh(_symmetric(x))
    root, inverse = ((vectors * v.unsqueeze(-2)) @ vectors.mT for v in (values.sqrt(), values.rsqrt()))
    whitened = _symmetric(inverse @ velocity @ inverse)
    values, vectors = torch.linalg.eigh(-group["lr"] * whitened)
    # half of the way along the geodesic: twice it gives the new point, once it carries the velocity along
    half = root @ (vectors * (values / 2).exp().unsqueeze(-2)) @ vectors.mT
    parameter.copy_(_symmetric(half @ half.mT))
    if "velocity" in state:
        state["velocity"] = _symmetric(half @ whitened @ half.mT)


def _velocity(gradient: Tensor, state: State, group: State) -> Tensor:
    """What momentum makes of the gradient; kept if there is momentum."""
    if not group["momentum"]:
        return gradient
    velocity = gradient.clone() if "velocity" not in state else state["velocity"] * group["momentum"] + gradient
    state["velocity"] = velocity
    return velocity


def _symmetric(x: Tensor) -> Tensor:
    return 0.5 * (x + x.mT)


UPDATES: dict[str, Callable[[Tensor, Tensor, State, State], None]] = {
    "euclidean": _euclidean,
    "stiefel": _stiefel,
    "spd": _spd,
}


__all__ = ["UPDATES", "MixedRiemannianSGD", "manifold_groups"]
