"""ReLinear (Fan, Li, Wang, Lai, Wang 2021, arXiv:2110.06081): training in which quadratic terms grow slowly from zero.

Quadratic layers start as conventional ones. :func:`relinear_param_groups` lets their quadratic terms learn more slowly,
:class:`ReLinearShrink` pulls them back after every step; :class:`CollapseMonitor` tells when activations explode.
"""

import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from netwright import checks
from netwright.layers.quadratic import quadratic_layers
from netwright.models.vision.resnet import Block
from netwright.surgery import swap, swapped


class QuadraticCollapse(UserWarning):
    """Activations of a quadratic layer became infinite or not a number."""


def relinear_param_groups(
    model: nn.Module,
    lr: float,
    gamma_g: float = 1e-5,
    gamma_b: float = 1e-5,
    *,
    weight_decay: float | None = None,
    gate_bias_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimiser, in which the quadratic terms have learning rates of their own.

    With both rates 0 the quadratic network stays the conventional one that it starts as, bit for bit.

    Args:
        model: A network with quadratic layers.
        lr: Learning rate of w_r, b_r and of everything that is not quadratic.
        gamma_g: Learning rate of the gate, w_g and b_g.
        gamma_b: Learning rate of the square, w_b and c.
        weight_decay: Of all groups but the gate's biases; what the optimiser is given, if not given here.
        gate_bias_decay: Weight decay of b_g. The authors decay all alike, which pulls b_g from 1, where it lets the
            linear path through, towards 0.

    Returns:
        Groups named ``"rest"``, ``"gate"``, ``"gate bias"`` and ``"square"``, those without parameters left out.

    Raises:
        InputError: If a rate is negative, or the model has no quadratic layer.

    Source:
        arXiv:2110.06081, section IV; the authors use γ_g = γ_b = 10⁻⁵ with SGD at 0.1.

    Example:
        >>> from netwright.layers.quadratic import quadraticize
        >>> model = quadraticize(nn.Linear(8, 4))
        >>> optimizer = torch.optim.SGD(relinear_param_groups(model, lr=0.1), lr=0.1, momentum=0.9)
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('rest', 0.1), ('gate', 1e-05), ('gate bias', 1e-05), ('square', 1e-05)]
    """
    checks.at_least("lr", lr, 0)
    checks.at_least("gamma_g", gamma_g, 0)
    checks.at_least("gamma_b", gamma_b, 0)
    checks.at_least("gate_bias_decay", gate_bias_decay, 0)
    group_of: dict[Tensor, str] = {}
    for layer in _quadratic_layers(model):
        for name, parameter in layer.named_parameters(recurse=False):
            if name in _GROUP_OF:
                group_of[parameter] = _GROUP_OF[name]
    rates = {"rest": lr, "gate": gamma_g, "gate bias": gamma_g, "square": gamma_b}
    groups: dict[str, dict[str, Any]] = {name: {"name": name, "params": [], "lr": rate} for name, rate in rates.items()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[group_of.get(parameter, "rest")]["params"].append(parameter)
    if weight_decay is not None:
        checks.at_least("weight_decay", weight_decay, 0)
        for group in groups.values():
            group["weight_decay"] = weight_decay
    groups["gate bias"]["weight_decay"] = gate_bias_decay
    return [group for group in groups.values() if group["params"]]


_GROUP_OF = {
    "weight_g": "gate",
    "bias_g": "gate bias",
    "weight_b": "square",
    "bias_b": "square",
}


class ReLinearShrink:
    r"""Pulls the quadratic terms back to where they started; call it after every step of the optimiser.

    .. math::
        w \leftarrow w_0 + \alpha (w - w_0) \qquad \text{or} \qquad
        w \leftarrow w_0 + \operatorname{sign}(w - w_0) \max(|w - w_0| - \beta, 0)

    for w_g, w_b and c with :math:`w_0 = 0` and for b_g with :math:`w_0 = 1`. α acts as an L2 penalty does, β as L1.

    Args:
        model: A network with quadratic layers.
        alpha: Factor, from 0 to 1.
        beta: Threshold of soft thresholding.

    Raises:
        InputError: If not exactly one of the two is given, it is out of range, or the model has no quadratic layer.

    Source:
        arXiv:2110.06081, section IV.

    Example:
        >>> from netwright.layers.quadratic import quadraticize
        >>> model = quadraticize(nn.Linear(8, 4))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> handle = optimizer.register_step_post_hook(ReLinearShrink(model, alpha=0.99))
    """

    def __init__(self, model: nn.Module, *, alpha: float | None = None, beta: float | None = None) -> None:
        if (alpha is None) == (beta is None):
            checks.fail("exactly one of alpha and beta must be given", f"alpha={alpha}, beta={beta}")
        if alpha is not None:
            checks.between("alpha", alpha, 0, 1)
        if beta is not None:
            checks.at_least("beta", beta, 0)
        self.alpha = alpha
        self.beta = beta
        terms = [
            (name, parameter)
            for layer in _quadratic_layers(model)
            for name, parameter in layer.named_parameters(recurse=False)
            if name in _GROUP_OF
        ]
        self.gate_biases = [parameter for name, parameter in terms if name == "bias_g"]
        self.others = [parameter for name, parameter in terms if name != "bias_g"]

    @torch.no_grad()
    def __call__(self, *_: object) -> None:
        """Shrink once; arguments, as an optimiser's hook gives them, are ignored."""
        for parameter in self.gate_biases:
            self._shrink(parameter.sub_(1))
            parameter.add_(1)
        for parameter in self.others:
            self._shrink(parameter)

    def _shrink(self, parameter: Tensor) -> None:
        if self.alpha is not None:
            parameter.mul_(self.alpha)
        elif self.beta is not None:
            parameter.copy_(nn.functional.softshrink(parameter, self.beta))


class ReZeroWrap(nn.Module):
    """A residual branch times one learned gain that starts at 0 (ReZero, Bachlechner et al. 2020, arXiv:2003.04887).

    The authors combine it with ReLinear in deep QResNets; :func:`rezero` puts it into these.

    Example:
        >>> ReZeroWrap(nn.Linear(4, 4))(torch.randn(2, 4)).abs().sum().item()
        0.0
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        reference = next(branch.parameters(), torch.empty(0))
        self.branch = branch
        self.gain = nn.Parameter(torch.zeros((), device=reference.device, dtype=reference.dtype))

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.gain * self.branch(input)
        return output


def rezero(model: nn.Module) -> nn.Module:
    """A copy of a residual network in which the branch of every block goes through :class:`ReZeroWrap`.

    Raises:
        InputError: If the model has no :class:`netwright.models.vision.resnet.Block`.
    """

    def wrapped(block: Block) -> Block:
        block.register_module("branch", ReZeroWrap(block.branch))
        return block

    new = swap(model, {Block: wrapped})
    if not swapped(new):
        raise checks.InputError(f"found no residual block, got a {type(model).__name__}")
    return new


class CollapseMonitor:
    """Watches the outputs of all quadratic layers during training, within a ``with`` block.

    Attributes:
        peaks: Largest absolute output so far, by the name of the layer.

    Warns:
        QuadraticCollapse: Once a layer, when an output is infinite or not a number; the message names the layer.

    Example:
        >>> from netwright.layers.quadratic import quadraticize
        >>> model = quadraticize(nn.Sequential(nn.Linear(8, 4)))
        >>> with CollapseMonitor(model) as monitor:
        ...     outputs = model(torch.ones(2, 8))
        >>> monitor.peaks["0"] == outputs.abs().max()
        tensor(True)
    """

    def __init__(self, model: nn.Module) -> None:
        _quadratic_layers(model)
        self.model = model
        self.peaks: dict[str, Tensor] = {}
        self.collapsed: set[str] = set()
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for name, layer in quadratic_layers(self.model).items():
            self._handles.append(layer.register_forward_hook(self._watch(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _watch(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
            if not layer.training:
                return
            peak = output.detach().abs().amax()
            self.peaks[name] = torch.maximum(self.peaks.get(name, peak), peak)
            if name not in self.collapsed and not torch.isfinite(peak):
                self.collapsed.add(name)
                message = (
                    f"the activations of quadratic layer {name!r} became {peak.item()}; try smaller gamma_g and gamma_b"
                )
                warnings.warn(message, QuadraticCollapse, stacklevel=2)

        return hook


def _quadratic_layers(model: nn.Module) -> list[nn.Module]:
    layers = list(quadratic_layers(model).values())
    if not layers:
        raise checks.InputError(f"found no quadratic layer, got a {type(model).__name__}; see quadraticize")
    return layers


__all__ = [
    "CollapseMonitor",
    "QuadraticCollapse",
    "ReLinearShrink",
    "ReZeroWrap",
    "relinear_param_groups",
    "rezero",
]
