"""Gradient noise (Neelakantan et al. 2015, arXiv:1511.06807): annealed Gaussian noise on the gradient."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from netwright import checks
from netwright.models.vision.classic import MLP

Where = Literal["gradient", "update"]
Memory = dict[tuple[torch.device, torch.dtype], Tensor]
_COUNTER = "gradient_noise"


def gradient_noise_std(step: int, eta: float = 0.3, gamma: float = 0.55) -> float:
    r"""Standard deviation of the noise at the update ``step`` (the first one has number 0).

    .. math:: \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    Args:
        step: Number t of the update.
        eta: Variance at the first update; the paper chooses among 0.01, 0.3 and 1.
        gamma: How fast the variance falls; 0.55 in the paper.

    Raises:
        InputError: If an argument is negative.

    Source:
        arXiv:1511.06807, equation 1.

    Example:
        >>> round(gradient_noise_std(0), 6), round(gradient_noise_std(1000), 6)
        (0.547723, 0.08193)
    """
    checks.at_least("step", step, 0)
    checks.at_least("eta", eta, 0)
    checks.at_least("gamma", gamma, 0)
    return math.sqrt(eta / (1 + step) ** gamma)


@torch.no_grad()
def add_gradient_noise_(
    parameters: Iterable[Tensor],
    step: int,
    eta: float = 0.3,
    gamma: float = 0.55,
    generator: torch.Generator | None = None,
) -> float:
    r"""Add noise to the gradients of ``parameters`` in place.

    .. math:: g \leftarrow g + n, \qquad n \sim N(0, \sigma_t^2) \text{ in every entry}

    Parameters without a gradient are skipped; of a sparse gradient only the rows that it has get noise.

    Args:
        parameters: What the gradients belong to.
        step: Number of the update, see :func:`gradient_noise_std`.
        eta: See there.
        gamma: See there.
        generator: Where the noise comes from; torch's own generator if not given.

    Returns:
        The standard deviation of the noise.

    Raises:
        InputError: If a number is negative, or a parameter is complex or an integer.

    Example:
        >>> weight = torch.zeros(1000, requires_grad=True)
        >>> weight.grad = torch.zeros(1000)
        >>> std = add_gradient_noise_([weight], step=10)
        >>> round(std, 3), 0.2 < float(weight.grad.std()) < 0.4
        (0.283, True)
    """
    std = gradient_noise_std(step, eta, gamma)
    parameters = list(parameters)
    _check_real(parameters)
    for group in _by_kind(_dense_gradients(parameters)):
        _add_noise_(group, std, generator or _default_generator(group[0].device), {})
    return std


class GradientNoise(Optimizer):
    r"""Any optimiser, with annealed Gaussian noise on the gradient before every update.

    .. math:: g_t \leftarrow g_t + N(0, \sigma_t^2), \qquad \sigma_t^2 = \frac{\eta}{(1 + t)^\gamma}

    The wrapped optimiser rescales the noise as it rescales the gradient: Adam divides both by the same running norm.
    With ``where="update"`` the noise goes around it, straight into the weights, times the learning rate (for SGD
    without momentum that is the same thing).

    It is an optimiser like any other: learning-rate schedulers, gradient scalers (which unscale the gradients before
    :meth:`step`) and Lightning Fabric take it. With several processes all must draw the same noise after the gradients
    are averaged; without a generator of one's own, the seed of the first process is used by all.

    Args:
        optimizer: What makes the update.
        eta: Variance at the first update; the paper chooses among 0.01, 0.3 and 1.
        gamma: How fast the variance falls.
        clip_norm: Largest norm of the gradient, if it is to be clipped.
        clip_first: Clip before the noise is added, as the paper does; the other order takes away most of its effect.
        generator: Where the noise comes from. If not given, a generator of its own for every device, seeded from
            torch's at the first update.
        where: Whether the noise is added to the gradient or to the update.

    Raises:
        InputError: If ``eta`` or ``gamma`` is negative, ``clip_norm`` is not positive, or a parameter is complex or an
            integer.

    Source:
        Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach, Martens 2015, arXiv:1511.06807, section 3. No code was
        published.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> optimizer = GradientNoise(torch.optim.SGD(model.parameters(), lr=0.1), eta=0.3)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> round(optimizer.noise_std, 3)
        0.453
    """

    # Optimizer.__init__ is not called: groups and state are those of the wrapped optimiser, which has checked them
    def __init__(
        self,
        optimizer: Optimizer,
        eta: float = 0.3,
        gamma: float = 0.55,
        clip_norm: float | None = None,
        clip_first: bool = True,
        generator: torch.Generator | None = None,
        where: Where = "gradient",
    ) -> None:
        checks.known("where", where, ("gradient", "update"))
        if clip_norm is not None:
            checks.positive("clip_norm", clip_norm)
        gradient_noise_std(0, eta, gamma)
        self.optimizer = optimizer
        self.eta, self.gamma = eta, gamma
        self.clip_norm, self.clip_first = clip_norm, clip_first
        self.where = where
        self.updates = 0
        self._shared = generator
        self._memory: Memory = {}
        self._generators: dict[str, torch.Generator] = {} if generator is None else {str(generator.device): generator}
        _check_real(self._parameters())

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise at the next update."""
        return gradient_noise_std(self.updates, self.eta, self.gamma)

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The groups of the wrapped optimiser."""
        return self.optimizer.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The state of the wrapped optimiser."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """The defaults of the wrapped optimiser."""
        return self.optimizer.defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the wrapped optimiser."""
        self.optimizer.add_param_group(param_group)
        _check_real(self._parameters())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; with a ``closure``, noise is added each time that it has computed the gradients."""
        loss: float | None
        if closure is None:
            self._prepare_gradients()
            loss = self.optimizer.step()
        else:

            def noisy() -> float:
                with torch.enable_grad():
                    value = closure()
                self._prepare_gradients()
                return value

            loss = self.optimizer.step(noisy)
        if self.where == "update":
            self._add_noise_to_weights()
        self.updates += 1
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The state of the wrapped optimiser, and under ``"gradient_noise"`` the counter and the generators' states."""
        generators = {device: generator.get_state() for device, generator in self._generators.items()}
        return {**self.optimizer.state_dict(), _COUNTER: {"updates": self.updates, "generators": generators}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken: same weights' state, same counter, same noise.

        Raises:
            InputError: If the state has no counter, as that of a plain optimiser.
        """
        if _COUNTER not in state_dict:
            keys = ", ".join(map(str, state_dict))
            checks.fail(f"state of GradientNoise must have {_COUNTER!r} (the counter of updates)", f"the keys {keys}")
        own = state_dict[_COUNTER]
        self.optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != _COUNTER})
        self.updates = own["updates"]
        if self._shared is None:
            self._generators = {}
        for device, state in own["generators"].items():
            self._generators.setdefault(device, torch.Generator(device)).set_state(state)

    def __repr__(self) -> str:
        return f"GradientNoise(eta={self.eta}, gamma={self.gamma}, {self.optimizer!r})"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_memory": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def _generator(self, device: torch.device) -> torch.Generator:
        if self._shared is not None:
            return self._shared
        if str(device) not in self._generators:
            self._generators[str(device)] = torch.Generator(device).manual_seed(_common_seed())
        return self._generators[str(device)]

    @torch.no_grad()
    def _prepare_gradients(self) -> None:
        if self.clip_norm is not None and (self.clip_first or self.where == "update"):
            clip_grad_norm_(self._parameters(), self.clip_norm)
        if self.where == "gradient":
            for group in _by_kind(_dense_gradients(self._parameters())):
                _add_noise_(group, self.noise_std, self._generator(group[0].device), self._memory)
            if self.clip_norm is not None and not self.clip_first:
                clip_grad_norm_(self._parameters(), self.clip_norm)

    @torch.no_grad()
    def _add_noise_to_weights(self) -> None:
        for group in self.param_groups:
            moved = [parameter for parameter in group["params"] if parameter.grad is not None]
            if any(parameter.grad.is_sparse for parameter in moved):
                raise checks.InputError("where='update' needs dense gradients, got a sparse one; take where='gradient'")
            for same in _by_kind(moved):
                scale = -float(group["lr"]) * self.noise_std
                _add_noise_(same, scale, self._generator(same[0].device), self._memory)


class DeepMLP(MLP):
    """The paper's first test: a narrow and very deep network of fully connected layers with ReLU.

    Args:
        in_features: Inputs ``(batch, *)`` are flattened to ``(batch, in_features)``.
        out_features: Outputs ``(batch, out_features)``.
        width: Units of every hidden layer.
        depth: Number of hidden layers.

    Source:
        arXiv:1511.06807, section 4.1: 20 layers of 50 units on MNIST, which are 88,210 parameters.

    Example:
        >>> sum(parameter.numel() for parameter in DeepMLP(784, 10).parameters())
        88210
    """

    def __init__(self, in_features: int, out_features: int, width: int = 50, depth: int = 20) -> None:
        checks.at_least("depth", depth, 1)
        super().__init__(in_features, [width] * depth, out_features)


@torch.no_grad()
def bad_init_(model: nn.Module, std: float = 0.1, generator: torch.Generator | None = None) -> nn.Module:
    """Start linear layers and convolutions badly, in place: weights from N(0, std²), biases 0, whatever the width.

    With ``std=0`` plain gradient descent can learn nothing but the output bias.

    Args:
        model: Any network.
        std: Standard deviation of the weights.
        generator: Where they come from; torch's own generator if not given.

    Returns:
        The model.

    Source:
        arXiv:1511.06807, section 4.1 ("simple" initialisation, std 0.1).

    Example:
        >>> model = bad_init_(DeepMLP(64, 10, depth=15))
        >>> model(torch.randn(8, 64)).std().item() < 1e-3
        True
    """
    checks.at_least("std", std, 0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            module.weight.normal_(0, std, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    return model


def _check_real(parameters: Iterable[Tensor]) -> None:
    for parameter in parameters:
        if not parameter.is_floating_point():
            checks.fail("gradient noise needs parameters of a real floating-point type", f"one of {parameter.dtype}")


def _dense_gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients that there are, as tensors that can be changed in place; of sparse ones the values."""
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad._values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    return gradients


def _by_kind(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Tensors grouped by device and type, so that one call draws the noise of each group."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())


def _add_noise_(tensors: list[Tensor], scale: float, generator: torch.Generator, memory: Memory) -> None:
    # one draw for all tensors, into memory that is kept: getting it anew takes as long as filling it
    sizes = [tensor.numel() for tensor in tensors]
    key = (generator.device, tensors[0].dtype)
    if key not in memory or memory[key].numel() < sum(sizes):
        memory[key] = torch.empty(sum(sizes), device=generator.device, dtype=tensors[0].dtype)
    noise = memory[key][: sum(sizes)].normal_(generator=generator).to(tensors[0])
    views = [part.view(tensor.shape) for part, tensor in zip(torch.split(noise, sizes), tensors, strict=True)]
    torch._foreach_add_(tensors, views, alpha=scale)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cpu":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    generator: torch.Generator = torch.cuda.default_generators[index]
    return generator


def _common_seed() -> int:
    """A seed from torch's generator, the same in all processes of a distributed training."""
    seed = [int(torch.randint(2**62, ()))]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(seed, src=0)
    return seed[0]


__all__ = ["DeepMLP", "GradientNoise", "add_gradient_noise_", "bad_init_", "gradient_noise_std"]
