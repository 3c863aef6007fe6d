"""Neural collapse (Papyan, Han, Donoho 2020, arXiv:2008.08186): how far classes have shrunk to points of a frame.

The metrics follow Dang, Tran, Osher, Tran-The, Ho, Nguyen 2023 (arXiv:2301.00437), who extend them to several linear
layers and to classes of unequal size. All take plain tensors: features ``(samples, width)``, classes ``(samples,)``,
and the classifier's weight ``(classes, width)``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from netwright import checks
from netwright.analysis.class_moments import (
    ClassMoments,
    ClassStatistics,
    between_whitener,
    chunks,
    class_means,
    class_statistics,
    trace_ratio,
)

Frame = Literal["etf", "of", "gof"]

_ROWS_AT_ONCE = 2048


def nc1(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    r"""NC1, within-class variability: 0 when all samples of a class have one and the same feature.

    .. math:: \mathrm{NC1} = \frac1K \operatorname{tr}(\Sigma_W \Sigma_B^{+})

    with the covariances of :class:`ClassStatistics`. The rank of :math:`\Sigma_B` is at most K−1, so the pseudo-inverse
    is taken of the K class means and no width×width matrix is formed: O(samples·width·classes).

    Args:
        features: ``(samples, width)``.
        labels: Classes ``(samples,)``.
        num_classes: As in :func:`class_statistics`.

    Returns:
        A float64 scalar, differentiable in the features; infinite when all class means coincide.

    Raises:
        InputError: As :func:`class_statistics`.

    Source:
        Papyan, Han, Donoho 2020, arXiv:2008.08186; normalised as in arXiv:2301.00437.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> nc1(features, torch.tensor([0, 0, 1, 1])).item()
        0.0
    """
    means, global_mean = class_means(features, labels, num_classes)
    whitener = between_whitener(means, global_mean)
    if whitener.numel() == 0:
        return means.new_full((), torch.inf)
    centres = (means - global_mean) @ whitener.T
    total = means.new_zeros(())
    for rows, classes in chunks(features, labels):
        residual = (rows - global_mean) @ whitener.T - centres.index_select(0, classes)
        total = total + residual.square().sum()
    return total / len(features)


def nc1_trace_ratio(features: Tensor, labels: Tensor, num_classes: int | None = None) -> Tensor:
    r"""Within-class over between-class variability, :math:`\operatorname{tr} \Sigma_W / \operatorname{tr} \Sigma_B`.

    The form of NC1 whose fall along the layers can be proven. Arguments, result and errors as in :func:`nc1`, in
    O(samples·width).

    Source:
        Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658.

    Example:
        >>> nc1_trace_ratio(torch.tensor([[0.0], [2.0], [5.0], [5.0]]), torch.tensor([0, 0, 1, 1])).item()
        0.125
    """
    means, global_mean = class_means(features, labels, num_classes)
    within = means.new_zeros(())
    for rows, classes in chunks(features, labels):
        within = within + (rows - means.index_select(0, classes)).square().sum()
    return trace_ratio(within / len(features), means, global_mean)


def nc2(weight: Tensor, target: Frame = "etf", s: Tensor | None = None) -> Tensor:
    r"""NC2, distance of the rows of a matrix from a regular frame.

    .. math:: \mathrm{NC2} = \left\lVert \frac{W W^\top}{\lVert W W^\top \rVert_F} - T \right\rVert_F

    with T the Gram matrix, of Frobenius norm 1, of

    - ``"etf"``, a simplex equiangular tight frame: :math:`(I - 11^\top/K)/\sqrt{K-1}` (cross-entropy, or a bias);
    - ``"of"``, an orthogonal frame: :math:`I/\sqrt{K}` (squared error without bias);
    - ``"gof"``, a general orthogonal frame, whose rows have the lengths ``s``: :math:`\operatorname{diag}(s^2)`,
      normalised (squared error without bias, classes of unequal size).

    Args:
        weight: ``(classes, width)``: the classifier's weight, a product of linear layers, or the class means (less
            their global mean, for ``"etf"``).
        target: Which frame.
        s: Lengths ``(classes,)`` of the rows that are expected, up to a common factor; for ``"gof"`` alone.

    Returns:
        A float64 scalar between 0 and √2.

    Raises:
        InputError: If there is one class only, the width is 0, the weight is 0, or ``s`` is missing or does not fit.

    Source:
        arXiv:2301.00437, the metrics of its experiments.

    Example:
        >>> nc2(torch.eye(3), target="of").item() < 1e-15
        True
    """
    weight = _check_rows("weight", weight)
    gram = weight @ weight.T
    return _distance(_normalised("weight", gram), _frame(gram, target, s, power=2))


def nc3(
    weight: Tensor, means: Tensor, target: Frame = "etf", s: Tensor | None = None, global_mean: Tensor | None = None
) -> Tensor:
    r"""NC3, alignment of the classifier with the class means: distance of their product from a regular frame.

    .. math:: \mathrm{NC3} = \left\lVert \frac{W \bar H}{\lVert W \bar H \rVert_F} - T \right\rVert_F

    Args:
        weight: ``(classes, width)``.
        means: Class means :math:`\bar H^\top`, ``(classes, width)``.
        target: As in :func:`nc2`; for ``"etf"`` the global mean is subtracted from the means.
        s: Diagonal ``(classes,)`` of :math:`W \bar H` that is expected, up to a factor; for ``"gof"`` alone.
        global_mean: Mean over all samples ``(width,)``; that of the class means if not given.

    Returns:
        A float64 scalar between 0 and 2.

    Raises:
        InputError: As :func:`nc2`, and if the shapes of weight and means differ.

    Example:
        >>> nc3(torch.eye(4), 2 * torch.eye(4), target="of").item()
        0.0
    """
    weight, means = _check_rows("weight", weight), _check_rows("means", means)
    _check_same_shape(weight, means)
    product = weight @ (_centred(means, global_mean) if target == "etf" else means).T
    return _distance(_normalised("product of weight and means", product), _frame(product, target, s, power=1))


def self_duality(weight: Tensor, means: Tensor, global_mean: Tensor | None = None, *, centre: bool = True) -> Tensor:
    r"""The first form of NC3, 0 when the classifier's rows are the class means up to a factor.

    .. math:: \left\lVert \frac{W}{\lVert W\rVert_F} - \frac{\bar H^\top}{\lVert\bar H\rVert_F} \right\rVert_F

    Args:
        weight: ``(classes, width)``.
        means: Class means ``(classes, width)``.
        global_mean: As in :func:`nc3`.
        centre: Whether the global mean is subtracted from the means.

    Returns:
        A float64 scalar between 0 and 2.

    Example:
        >>> self_duality(torch.eye(3) - 1 / 3, torch.eye(3)).item() < 1e-7
        True
    """
    weight, means = _check_rows("weight", weight), _check_rows("means", means)
    _check_same_shape(weight, means)
    means = _centred(means, global_mean) if centre else means
    return _distance(_normalised("weight", weight), _normalised("means", means))


def nc4(features: Tensor, means: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""NC4: the fraction of samples that the nearest class mean and the network itself put into different classes.

    .. math:: \frac1N \#\{ i : \arg\max_k (w_k^\top h_i + b_k) \neq \arg\min_k \lVert h_i - \mu_k \rVert \}

    Args:
        features: ``(samples, width)``; they may be other samples than those that the means are of.
        means: Class means ``(classes, width)``.
        weight: The classifier's weight ``(classes, width)``.
        bias: Its bias ``(classes,)``, if it has one.

    Returns:
        A float64 scalar between 0 and 1.

    Example:
        >>> nc4(torch.eye(3), means=torch.eye(3), weight=torch.eye(3)[[0, 2, 1]]).item()
        0.666...
    """
    checks.dimensions("features", features, "(samples, width)")
    weight, means = _check_rows("weight", weight), _check_rows("means", means)
    _check_same_shape(weight, means)
    checks.size("features", features, 1, weight.shape[1])
    checks.at_least("number of samples", len(features), 1)
    # distances from an origin among the means, so that none is the small difference of large numbers
    origin = means.mean(0)
    means = means - origin
    disagreements = torch.zeros((), dtype=torch.int64, device=features.device)
    with torch.no_grad():
        for rows in torch.split(features, _ROWS_AT_ONCE):
            values = rows.to(weight)
            logits = values @ weight.T if bias is None else values @ weight.T + bias.to(weight)
            nearest = (2 * (values - origin) @ means.T - means.square().sum(1)).argmax(1)
            disagreements += (logits.argmax(1) != nearest).sum()
    return disagreements.double() / len(features)


@dataclass(frozen=True)
class CollapseMetrics:
    """How far one layer has collapsed; all are 0 at full collapse.

    Attributes:
        nc1: Variability within classes, see :func:`nc1`.
        nc1_trace_ratio: The same as a ratio of traces, see :func:`nc1_trace_ratio`.
        nc2: Distance of the classifier's weight from the frame, see :func:`nc2`.
        nc2_means: Distance of the class means from the frame.
        nc3: Distance of weight times class means from the frame, see :func:`nc3`.
        self_duality: Difference between weight and class means, see :func:`self_duality`.
        nc4: Disagreement with the nearest class mean, see :func:`nc4`.
    """

    nc1: float
    nc1_trace_ratio: float
    nc2: float
    nc2_means: float
    nc3: float
    self_duality: float
    nc4: float


@torch.no_grad()
def collapse_metrics(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    target: Literal["etf", "of"] = "etf",
) -> CollapseMetrics:
    """All measures of collapse of the features that a linear classifier sees.

    Args:
        features: Input of the classifier, ``(samples, width)``.
        labels: Classes ``(samples,)``; each of the classifier's must occur.
        weight: The classifier's weight ``(classes, width)``.
        bias: Its bias ``(classes,)``, if it has one.
        target: The frame to compare with: ``"etf"`` for cross-entropy or a classifier with a bias, ``"of"`` for squared
            error without one.

    Raises:
        InputError: As :func:`class_statistics` and :func:`nc3`.

    Example:
        >>> labels = torch.arange(12) % 3
        >>> metrics = collapse_metrics(torch.eye(3)[labels], labels, torch.eye(3) - 1 / 3)
        >>> metrics.nc1, round(metrics.nc2, 6), round(metrics.nc3, 6), metrics.nc4
        (0.0, 0.0, 0.0, 0.0)
    """
    checks.known("frame without lengths", target, ("etf", "of"))
    checks.dimensions("weight", weight, "(classes, width)")
    statistics = class_statistics(features, labels, num_classes=len(weight))
    means, centre = statistics.means, target == "etf"
    return CollapseMetrics(
        nc1=statistics.nc1().item(),
        nc1_trace_ratio=statistics.nc1_trace_ratio().item(),
        nc2=nc2(weight, target).item(),
        nc2_means=nc2(means - statistics.global_mean if centre else means, target).item(),
        nc3=nc3(weight, means, target, global_mean=statistics.global_mean).item(),
        self_duality=self_duality(weight, means, statistics.global_mean, centre=centre).item(),
        nc4=nc4(features, means, weight, bias).item(),
    )


def products(weights: Sequence[Tensor]) -> list[Tensor]:
    """The products of consecutive linear layers that end with the last: all, all but the first, …, the last alone.

    Args:
        weights: ``(out_features, in_features)`` of each layer, in the order in which they are applied.

    Returns:
        As many matrices ``(classes, in_features of the layer)``: element m maps the input of layer m to the output.

    Example:
        >>> [tuple(product.shape) for product in products([torch.ones(4, 5), torch.ones(3, 4)])]
        [(3, 5), (3, 4)]
    """
    checks.at_least("number of weights", len(weights), 1)
    found = [weights[-1]]
    for weight in reversed(weights[:-1]):
        checks.dimensions("weight", weight, "(out_features, in_features)")
        checks.size("weight", weight, 0, found[-1].shape[1])
        found.append(found[-1] @ weight)
    return found[::-1]


@torch.no_grad()
def metrics_by_depth(
    features: Tensor,
    labels: Tensor,
    weights: Sequence[Tensor],
    bias: Tensor | None = None,
    *,
    target: Literal["etf", "of"] = "etf",
) -> list[CollapseMetrics]:
    """Collapse at every depth of a tail of linear layers: a layer's input against the product from it to the last.

    Args:
        features: Input of the first of the layers, ``(samples, width)``.
        labels: Classes ``(samples,)``.
        weights: Weights of the layers, in the order in which they are applied; none but the last has a bias.
        bias: Bias of the last, if it has one.
        target: As in :func:`collapse_metrics`.

    Returns:
        One entry a layer, from the first to the last.
    """
    found = []
    for weight, product in zip(weights, products(weights), strict=True):
        found.append(collapse_metrics(features, labels, product, bias, target=target))
        features = features @ weight.T
    return found


def _check_rows(name: str, matrix: Tensor) -> Tensor:
    """Check a matrix with a row a class, and give it in float64."""
    checks.dimensions(name, matrix, "(classes, width)")
    checks.at_least(f"number of classes in {name}", matrix.shape[0], 2)
    checks.at_least(f"width of {name}", matrix.shape[1], 1)
    return matrix.double()


def _check_same_shape(weight: Tensor, means: Tensor) -> None:
    if weight.shape != means.shape:
        checks.fail(f"means must have the shape {tuple(weight.shape)} of the weight", tuple(means.shape))


def _centred(means: Tensor, global_mean: Tensor | None) -> Tensor:
    return means - (means.mean(0) if global_mean is None else global_mean.to(means))


def _distance(one: Tensor, other: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(one - other)
    return distance


def _normalised(name: str, matrix: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(matrix)
    if not norm.detach() > 0:
        checks.fail(f"{name} must have an entry other than 0 and none that is no number", f"norm {norm.item()}")
    return matrix / norm


def _frame(like: Tensor, target: Frame, s: Tensor | None, power: int) -> Tensor:
    """The Gram matrix of a frame, of norm 1."""
    checks.known("frame", target, get_args(Frame))
    classes = len(like)
    eye = torch.eye(classes, dtype=like.dtype, device=like.device)
    if target == "etf":
        return (eye - 1 / classes) / math.sqrt(classes - 1)
    if target == "of":
        return eye / math.sqrt(classes)
    if s is None:
        raise checks.InputError("the frame 'gof' needs the lengths s of its vectors, one a class, got none")
    checks.dimensions("s", s, "(classes)")
    checks.size("s", s, 0, classes)
    return _normalised("s", torch.diag(s.to(like) ** power))


__all__ = [
    "ClassMoments",
    "ClassStatistics",
    "CollapseMetrics",
    "Frame",
    "class_statistics",
    "collapse_metrics",
    "metrics_by_depth",
    "nc1",
    "nc1_trace_ratio",
    "nc2",
    "nc3",
    "nc4",
    "products",
    "self_duality",
]
