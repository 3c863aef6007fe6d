"""Random pruning at initialisation (Liu et al. 2022, arXiv:2202.02643): choose densities, draw positions, train."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.compression import densities
from netwright.compression.masks import Mask, prunable, shapes_of
from netwright.data.splits import Batch, Splits
from netwright.training import Budget, History, Loss, fit, task_loss

Allocation = str | Mapping[str, float] | Callable[[densities.Shapes, float], densities.Densities]
_SCORES = ("snip", "grasp")
ALLOCATIONS = (*densities.ALLOCATORS, *_SCORES)


def random_prune(
    model: nn.Module,
    density: float,
    allocation: Allocation = "erk",
    *,
    exact: bool = True,
    generator: torch.Generator | None = None,
    ignore: Iterable[str] = (),
    batch: Batch | None = None,
    rescale: bool = False,
) -> Mask:
    """Prune ``model`` at random, in place, so that it stays sparse while it is trained from scratch.

    Every layer gets its density from ``allocation``; which of its weights live is drawn at random. Biases and
    normalisation are neither pruned nor counted. Zeros at scattered places save no time on a CPU: the products are
    still computed.

    Args:
        model: Any network at its initial weights; see :func:`~netwright.compression.masks.prunable` for what is pruned.
        density: Fraction of the prunable weights that is kept.
        allocation: ``"uniform"``, ``"uniform_plus"``, ``"erdos_renyi"``, ``"erk"`` or ``"erk_plus"`` (see
            :mod:`netwright.compression.densities`); ``"snip"`` or ``"grasp"`` for the densities, but not the positions,
            that these scores give; a function of shapes and density; or the densities themselves by name.
        exact: Keep exactly round(density · weights); else every weight is kept with the probability of its layer, as
            the official code does.
        generator: Where the positions come from; torch's own generator if not given.
        ignore: Parameters or modules that stay dense and are not counted.
        batch: Inputs and targets, for ``"snip"`` and ``"grasp"``.
        rescale: Multiply the living weights of a layer by 1/√density, so that the outputs keep their variance.

    Returns:
        The mask, which is attached to the model.

    Raises:
        InputError: If the density is not in (0, 1] or cannot be met by the allocation, a layer is left without a
            weight, or ``ignore`` has an unknown name.

    Source:
        Liu, Chen, Chen, Shen, Mocanu, Wang, Pechenizkiy 2022, arXiv:2202.02643.

    Example:
        >>> from netwright.models.vision.classic import lenet_300_100
        >>> model = lenet_300_100()
        >>> mask = random_prune(model, 0.1, "erdos_renyi")
        >>> mask.kept, [round(density, 3) for density in mask.layer_densities().values()]
        (26620, [0.08, 0.23, 1.0])
    """
    shapes = shapes_of(model, ignore)
    chosen = _allocate(model, shapes, density, allocation, ignore, batch)
    device = next(iter(prunable(model, ignore).values())).device
    mask = Mask.random(shapes, chosen, exact=exact, generator=generator, device=device)
    if rescale:
        weights = prunable(model, ignore)
        with torch.no_grad():
            for name, kept in mask.layer_densities().items():
                weights[name].div_(kept**0.5)
    mask.attach_(model)
    return mask


def train_sparse(
    model: nn.Module,
    splits: Splits,
    budget: Budget,
    density: float,
    allocation: Allocation = "erk",
    *,
    exact: bool = True,
    generator: torch.Generator | None = None,
    ignore: Iterable[str] = (),
    rescale: bool = False,
    **options: Any,
) -> tuple[Mask, History]:
    """:func:`random_prune`, then :func:`netwright.training.fit` with the usual recipe; the mask stays as drawn.

    The model is left masked; :func:`~netwright.compression.masks.make_permanent` makes it plain. The scores of
    ``"snip"`` and ``"grasp"`` are taken on the first 256 training samples.

    Args:
        model: Any network at its initial weights; it is pruned and trained in place.
        splits: The data.
        budget: How long to train.
        density: See :func:`random_prune`, as for the arguments up to ``rescale``.
        allocation: See there.
        exact: See there.
        generator: See there.
        ignore: See there.
        rescale: See there.
        options: Further arguments of ``fit``: ``settings``, ``seed``, ``rule``, ``fabric``, ….

    Example:
        >>> from netwright.data import load
        >>> from netwright.models.vision.classic import MLP
        >>> mask, history = train_sparse(MLP(64, (64, 64), 10), load("digits"), Budget(epochs=10), density=0.2)
        >>> mask.kept, history.records[-1]["val_accuracy"] > 0.7
        (1766, True)
    """
    mask = random_prune(
        model,
        density,
        allocation,
        exact=exact,
        generator=generator,
        ignore=ignore,
        batch=scoring_batch(splits),
        rescale=rescale,
    )
    return mask, fit(model, splits, budget, **options)


def scoring_batch(splits: Splits, samples: int = 256) -> Batch:
    """The first training samples, which the loaders have shuffled: what SNIP and GraSP look at."""
    return Batch(splits.train.inputs[:samples], splits.train.targets[:samples])


def snip_scores(
    model: nn.Module, batch: Batch, ignore: Iterable[str] = (), loss: Loss = task_loss
) -> dict[str, Tensor]:
    r"""How much the loss changes if a weight is taken away: :math:`|w \, \partial L / \partial w|`.

    Args:
        model: Any network; it is left as it is, running statistics included.
        batch: Inputs and targets.
        ignore: Parameters or modules without scores.
        loss: Of outputs and targets.

    Returns:
        A score for every entry of every prunable parameter, by name.

    Source:
        Lee, Ajanthan, Torr 2019, arXiv:1810.02340.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> snip_scores(model, Batch(torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])))["weight"].shape
        torch.Size([3, 4])
    """
    weights, outputs = _forward_of_a_copy(model, batch, ignore)
    gradients = torch.autograd.grad(loss(outputs, batch.targets), list(weights.values()))
    return {
        name: (weight * gradient).abs().detach()
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
    }


def grasp_scores(
    model: nn.Module, batch: Batch, ignore: Iterable[str] = (), loss: Loss = task_loss, temperature: float = 200.0
) -> dict[str, Tensor]:
    r"""How much a weight serves the flow of gradients: :math:`w \, (H g)`, with Hessian and gradient of the loss.

    The original removes what has the largest :math:`-w (Hg)`; here, as everywhere, the largest scores are kept.

    Args:
        model: Any network; it is left as it is.
        batch: Inputs and targets.
        ignore: Parameters or modules without scores.
        loss: Of outputs and targets.
        temperature: Divides the outputs of a classifier, as in the original, so that the loss is not saturated.

    Returns:
        A score for every entry of every prunable parameter, by name.

    Source:
        Wang, Zhang, Grosse 2020, arXiv:2002.07376, equation 8 and algorithm 2.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> grasp_scores(model, Batch(torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])))["weight"].shape
        torch.Size([3, 4])
    """
    checks.positive("temperature", temperature)
    weights, outputs = _forward_of_a_copy(model, batch, ignore)
    if not batch.targets.is_floating_point():
        outputs = outputs / temperature
    values = list(weights.values())
    gradients = torch.autograd.grad(loss(outputs, batch.targets), values, create_graph=True)
    product = sum((gradient.detach() * gradient).sum() for gradient in gradients)
    hessian_times_gradient = torch.autograd.grad(product, values)  # type: ignore[arg-type]
    return {
        name: (weight * flow).detach()
        for (name, weight), flow in zip(weights.items(), hessian_times_gradient, strict=True)
    }


def _forward_of_a_copy(model: nn.Module, batch: Batch, ignore: Iterable[str]) -> tuple[dict[str, nn.Parameter], Tensor]:
    twin = copy.deepcopy(model).train()
    weights = prunable(twin, ignore)
    for weight in weights.values():
        weight.requires_grad_(True)
    device = next(iter(weights.values())).device
    return weights, twin(batch.inputs.to(device))


def _allocate(
    model: nn.Module,
    shapes: densities.Shapes,
    density: float,
    allocation: Allocation,
    ignore: Iterable[str],
    batch: Batch | None,
) -> Mapping[str, float]:
    if isinstance(allocation, Mapping):
        return allocation
    if not isinstance(allocation, str):
        return allocation(shapes, density)
    checks.known("allocation", allocation, ALLOCATIONS)
    if allocation not in _SCORES:
        return densities.ALLOCATORS[allocation](shapes, density)
    if batch is None:
        raise checks.InputError(f"allocation {allocation!r} needs a batch of inputs and targets, got none")
    score = snip_scores if allocation == "snip" else grasp_scores
    return densities.from_scores(score(model, batch, ignore), density)


__all__ = ["ALLOCATIONS", "grasp_scores", "random_prune", "scoring_batch", "snip_scores", "train_sparse"]
