"""Products with the Hessian against a gradient and against PyHessian's; many vectors together against one by one."""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import side_by_side
from netwright.analysis.curvature import HessianOperator
from netwright.models.vision.classic import MLP, lenet_5
from netwright.models.vision.resnet import resnet_cifar


def of_pyhessian(model: nn.Module, data: tuple[Tensor, Tensor], vector: Tensor) -> Callable[[], object] | None:
    """Its product, whose graph is kept between products, too."""
    try:
        from pyhessian import hessian
        from pyhessian.utils import hessian_vector_product
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = hessian(copy.deepcopy(model), functional.cross_entropy, data=data, cuda=False)
    pieces = torch.split(vector, [p.numel() for p in theirs.params])
    shaped = [piece.view(p.shape) for piece, p in zip(pieces, theirs.params, strict=True)]
    return lambda: hessian_vector_product(theirs.gradsH, theirs.params, shaped)


def products(title: str, model: nn.Module, data: tuple[Tensor, Tensor], batch: int, rounds: int) -> None:
    model.eval()
    kept = HessianOperator(model, functional.cross_entropy, data, batch=batch)
    dropped = HessianOperator(model, functional.cross_entropy, data, batch=batch, keep_graph=False)
    vector = torch.randn(kept.size)
    parameters = list(model.parameters())

    def gradient() -> None:
        torch.autograd.grad(functional.cross_entropy(model(data[0]), data[1]), parameters)

    candidates: dict[str, Callable[[], object]] = {
        "forward and backward pass": gradient,
        "product, graph kept": lambda: kept.multiply(vector),
        "product, graph made anew": lambda: dropped.multiply(vector),
    }
    theirs = of_pyhessian(model, data, vector)
    if theirs is not None:
        candidates["PyHessian's product"] = theirs
    side_by_side(
        f"product with the Hessian: {title}",
        candidates,
        baseline="forward and backward pass",
        rounds=rounds,
        targets={"product, graph kept": 3.0},
    )


def main() -> None:
    torch.manual_seed(0)
    products("LeNet-5, 256 pictures", lenet_5(), (torch.randn(256, 1, 28, 28), torch.arange(256) % 10), 64, 10)
    products("ResNet-20, 64 pictures", resnet_cifar(20), (torch.randn(64, 3, 32, 32), torch.arange(64) % 10), 32, 5)
    mlp, data = MLP(64, (64, 32), 10), (torch.randn(256, 64), torch.arange(256) % 10)
    one, many = (HessianOperator(mlp, functional.cross_entropy, data, at_once=number) for number in (1, 16))
    side_by_side(
        "trace from 32 vectors: MLP 64-64-32-10, 256 samples",
        {"one by one": lambda: one.trace(32, 1e-9), "16 together": lambda: many.trace(32, 1e-9)},
        baseline="one by one",
        rounds=20,
    )


if __name__ == "__main__":
    main()
