"""Put the layers of the Poincaré ball (van Spengler et al. 2023, arXiv:2303.14027) into any network."""

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import nn

from netwright import checks
from netwright.layers.hyperbolic import PoincareBall
from netwright.layers.hyperbolic_layers import Init, PoincareConv2d, PoincareLinear
from netwright.layers.hyperbolic_norm import PoincareBatchNorm, PoincareBatchNorm2d
from netwright.surgery import swap, swapped, torch_blocks

Where = Literal["all", "head"]


def to_poincare(
    model: nn.Module, where: Where = "all", c: float = 0.1, *, init: Init = "identity", learnable: bool = False
) -> nn.Module:
    """A copy of ``model`` with layers of one Poincaré ball, which has to be trained anew.

    The layers take and give tangent vectors at the origin, so that everything else of the model stays as it is:
    activations and poolings act on tangent vectors, as in the paper, and its residual connections remain sums. (Möbius
    additions, which the paper takes for these, are in
    :class:`~netwright.models.vision.poincare_resnet.PoincareResNet`.) Convolutions with groups or other padding than
    zeros, and the layers of torch's own attention blocks, stay as well.

    Args:
        model: Any module.
        where: ``"all"``: every linear layer, 2-D convolution, and batch normalisation of vectors or pictures;
            ``"head"``: the last linear layer, the "hyperbolic classifier" on a Euclidean network.
        c: Minus the curvature.
        init: See :class:`~netwright.layers.hyperbolic_layers.PoincareLinear`.
        learnable: Whether c is learned; all layers share it.

    Raises:
        InputError: If no layer can be replaced, ``c`` is not positive, or ``where`` or ``init`` is unknown.

    Source:
        arXiv:2303.14027, section 4: networks in the ball, and Euclidean ones with a hyperbolic classifier.

    Example:
        >>> to_poincare(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), "head")
        Sequential(
          (0): Linear(in_features=4, out_features=8, bias=True)
          (1): ReLU()
          (2): PoincareLinear(
            8, 3, bias=True, init='identity'
            (ball): PoincareBall(c=0.1, learnable=False)
          )
        )
    """
    checks.known("where", where, get_args(Where))
    checks.known("init", init, get_args(Init))
    ball = PoincareBall(c, learnable)
    inside = torch_blocks(model)
    possible = [name for name, layer in model.named_modules() if _fits(layer) and not name.startswith(inside)]
    if where == "head":
        possible = [name for name in possible if isinstance(model.get_submodule(name), nn.Linear)][-1:]
    if not possible:
        kinds = "linear layer" if where == "head" else "linear layer, 2-D convolution or batch normalisation"
        raise checks.InputError(f"found no {kinds} that the Poincaré ball can replace, got a {type(model).__name__}")
    makers: dict[type[nn.Module], Callable[..., nn.Module]] = {
        nn.Linear: partial(PoincareLinear.like, ball=ball, init=init),
        nn.Conv2d: partial(PoincareConv2d.like, ball=ball, init=init),
        nn.BatchNorm1d: partial(PoincareBatchNorm.like, ball=ball),
        nn.BatchNorm2d: partial(PoincareBatchNorm2d.like, ball=ball),
    }
    new = swap(model, makers, lambda name, _: name in possible)
    assert swapped(new)
    return new


def _fits(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return layer.in_features > 0 and layer.out_features > 0  # a lazy layer has size 0 until its first input
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and layer.in_channels > 0
    return isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.num_features > 0


__all__ = ["Where", "to_poincare"]
