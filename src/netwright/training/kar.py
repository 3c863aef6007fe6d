"""Kar2 and Kar3 (Zhang 2024, arXiv:2401.17948): two or three sign steps at once, of the gradient and of its means."""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from netwright import checks


class _Kar(Optimizer):
    """Steps along the sign of the gradient and of one running mean of it for every β."""

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float, betas: tuple[float, ...]
    ) -> None:
        checks.at_least("lr", lr, 0)
        for beta in betas:
            checks.between("beta", beta, 0, 1, open_high=True)
        super().__init__(params, {"lr": lr, "betas": betas})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update; ``closure`` computes the loss and the gradients anew, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group["lr"], group["betas"])
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, lr: float, betas: tuple[float, ...]) -> None:
        if gradient.is_sparse or gradient.is_complex():
            checks.fail("the optimiser needs real dense gradients", "a sparse or complex one")
        state = self.state[parameter]
        if not state:
            state.update({f"mean_{i}": torch.zeros_like(parameter) for i in range(len(betas))})
        signs = torch.sign(gradient)
        for i, beta in enumerate(betas):
            mean = state[f"mean_{i}"]
            signs += torch.sign(mean)
            mean.lerp_(gradient, 1 - beta)
        parameter.add_(signs, alpha=-lr)


class Kar2(_Kar):
    r"""Two sign steps an update.

    .. math:: \theta \leftarrow \theta - \eta\,\bigl(\operatorname{sign} g + \operatorname{sign} m\bigr), \qquad
        m \leftarrow \beta m + (1 - \beta)\, g

    The mean m is updated *after* the step, from 0 on, so that the first step follows the gradient alone. Every
    parameter moves by at most 2 ``lr``.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate η, in the units of the parameters.
        beta: β of the running mean.

    Raises:
        InputError: If ``lr`` is negative, ``beta`` is not in [0, 1), or a gradient is sparse or complex.

    Source:
        arXiv:2401.17948, released code. There the default of β makes the constructor fail.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = Kar2([p], lr=0.1)
        >>> for _ in range(2):
        ...     p.grad = torch.tensor([3.0, -0.01])
        ...     optimizer.step()
        >>> p.data
        tensor([ 0.7000, -0.7000])
    """

    def __init__(
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-4, beta: float = 0.95
    ) -> None:
        super().__init__(params, lr, (beta,))


class Kar3(_Kar):
    r"""Three sign steps an update, with two running means of the gradient.

    .. math:: \theta \leftarrow \theta - \eta\,\bigl(\operatorname{sign} g + \operatorname{sign} m_1
        + \operatorname{sign} m_2\bigr), \qquad m_i \leftarrow \beta_i m_i + (1 - \beta_i)\, g

    The means are updated *after* the step, from 0 on. Every parameter moves by at most 3 ``lr``. For CIFAR-10 the
    paper's network was trained with ``lr=1.2e-3``, ``betas=(0.75, 0.99)``, batches of 64, 8 of 100 epochs of warm-up, a
    cosine.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate η, in the units of the parameters.
        betas: β of the two running means.

    Raises:
        InputError: If ``lr`` is negative, a β is not in [0, 1), or a gradient is sparse or complex.

    Source:
        arXiv:2401.17948, released code.

    Example:
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = Kar3([p], lr=0.1)
        >>> for _ in range(2):
        ...     p.grad = torch.tensor([3.0, -0.01])
        ...     optimizer.step()
        >>> p.data
        tensor([ 0.6000, -0.6000])
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.5, 0.95),
    ) -> None:
        super().__init__(params, lr, betas)


__all__ = ["Kar2", "Kar3"]
