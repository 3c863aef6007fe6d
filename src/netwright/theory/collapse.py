"""Deep linear networks on free features: the geometry to which classes collapse, in closed form and by descent.

Dang, Tran, Osher, Tran-The, Ho, Nguyen 2023 (arXiv:2301.00437). The unconstrained-features model treats the features
that a linear tail of M layers sees as free variables. Its global minimum has a closed form, here for squared error (any
class sizes, any decays, with or without a bias) and for cross-entropy (equal class sizes).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.theory._ufm import Descent, UFMState
from netwright.theory.collapse_gain import collapse_gain, collapse_root, cross_entropy_gain, vanishing_size
from netwright.training import Diverged

Loss = Literal["mse", "ce"]
Geometry = Literal["of", "etf", "gof", "centred"]

_CURVE_POINTS = 60


@dataclass(frozen=True, eq=False)
class CollapseSolution:
    r"""The global minimum of a :class:`DeepLinearUFM`; tensors are float64.

    The product of all layers and the class features, weighted by :math:`\sqrt{n_k}`, has a singular value
    decomposition whose D directions (a class each without bias, K−1 of them else) decouple.

    Attributes:
        p: Gain of each direction ``(D,)``: without bias the k-th diagonal entry of W_M…W_1 H̄ (0 ≤ p < 1); for
            cross-entropy the difference between the logits of the right class and of any other.
        s_weights: Singular values of every layer's weight, ``(M, D)``.
        s_features: Length of the class feature of each direction, ``(D,)``.
        geometry: Frame on which the class features lie: orthogonal (``"of"``), simplex equiangular tight (``"etf"``),
            orthogonal with unequal lengths (``"gof"``), or neither (``"centred"``: bias and unequal sizes).
        loss: Value of the regularised loss.
        unique: Whether the Gram matrices are the same at every global minimum; not so where the narrowest layer has
            room for a part of the classes of one size only.
        logits: Output for each class, bias included, ``(K, K)``; a column a class.
        bias: Bias of the last layer ``(K,)``, 0 where it has none.
        sizes: What stands for the class size in each direction, ``(D,)``.
        left: Directions in the space of outputs, ``(K, D)``.
        right: Directions in the space of classes, ``(K, D)``.
    """

    p: Tensor
    s_weights: Tensor
    s_features: Tensor
    geometry: Geometry
    loss: float
    unique: bool
    logits: Tensor
    bias: Tensor
    sizes: Tensor
    left: Tensor
    right: Tensor


class DeepLinearUFM:
    r"""The deep linear unconstrained-features model.

    .. math::
        \min_{W_1..W_M, H, b} \; \frac1N \sum_i \ell(W_M \cdots W_1 h_i + b, \, y_i)
            + \sum_m \frac{\lambda_m}{2} \lVert W_m \rVert_F^2 + \frac{\lambda_H}{2} \lVert H \rVert_F^2

    with :math:`\ell` half the squared distance from the one-hot class, or cross-entropy. A bias is not decayed.

    Args:
        n_per_class: Samples of each class.
        dims: Input width of each of the M layers, the width of the features first; the last layer has K outputs.
        weight_decays: Decay of each layer; one number for all alike.
        feature_decay: Decay of the features.
        loss: ``"mse"`` or ``"ce"``.
        bias: Whether the last layer has a bias.

    Raises:
        InputError: If there is one class only, an empty class, a width below 1, a negative decay, or decays that are
            not as many as layers.

    Source:
        arXiv:2301.00437, sections 3 and 4. Beyond it: a decay of its own for each layer, squared error with a bias on
        classes of unequal size, and the comparison with the loss of a vanished class.

    Example:
        >>> model = DeepLinearUFM([200, 100, 50, 50], dims=[64, 64], weight_decays=5e-4, feature_decay=5e-4)
        >>> solution = model.global_minimum()
        >>> solution.geometry, solution.p
        ('gof', tensor([0.9941, 0.9907, 0.9852, 0.9852], dtype=torch.float64))
    """

    def __init__(
        self,
        n_per_class: Sequence[int],
        dims: Sequence[int],
        weight_decays: float | Sequence[float],
        feature_decay: float,
        loss: Loss = "mse",
        bias: bool = False,
    ) -> None:
        checks.at_least("number of classes", len(n_per_class), 2)
        for size in n_per_class:
            checks.at_least("samples of a class", size, 1)
        checks.at_least("number of layers", len(dims), 1)
        for width in dims:
            checks.at_least("width of a layer", width, 1)
        decays = [weight_decays] * len(dims) if isinstance(weight_decays, int | float) else list(weight_decays)
        if len(decays) != len(dims):
            checks.fail(f"weight_decays must be one number or as many as layers ({len(dims)})", len(decays))
        for decay in decays:
            checks.between("weight decay", decay, 0, math.inf, open_high=True)
        checks.between("feature decay", feature_decay, 0, math.inf, open_high=True)
        checks.known("loss", loss, get_args(Loss))
        self.n_per_class = tuple(n_per_class)
        self.dims = tuple(dims)
        self.weight_decays = tuple(decays)
        self.feature_decay = feature_decay
        self.loss: Loss = loss
        self.bias = bias
        self.labels = torch.repeat_interleave(torch.tensor(self.n_per_class))

    @property
    def samples(self) -> int:
        """Samples in all classes."""
        return sum(self.n_per_class)

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return len(self.n_per_class)

    def global_minimum(self) -> CollapseSolution:
        """The closed form of the global minimum.

        Raises:
            InputError: If a decay is 0 (no minimum is attained, or its scale is free), or for cross-entropy if class
                sizes differ or a layer is narrower than K−1.
        """
        for decay in (*self.weight_decays, self.feature_decay):
            checks.positive("decay of a closed-form minimum", decay)
        balanced = len(set(self.n_per_class)) == 1
        if self.loss == "ce":
            if not balanced:
                checks.fail("the closed form of cross-entropy needs classes of equal size", list(self.n_per_class))
            checks.at_least("narrowest layer, for the closed form of cross-entropy,", min(self.dims), self.classes - 1)
        sizes, left, right = self._directions()
        room = min(self.dims)
        if self.loss == "ce":
            margin = cross_entropy_gain(self.n_per_class[0], self.classes, self.weight_decays, self.feature_decay)
            p = margin.repeat(len(sizes))
        else:
            p = collapse_gain(sizes, self.samples, self.weight_decays, self.feature_decay)
        unique = True
        if room < len(sizes):
            order = sizes.argsort(descending=True, stable=True)
            last, first_out = order[room - 1], order[room]
            tie = math.isclose(float(sizes[last]), float(sizes[first_out]), rel_tol=1e-9)
            unique = not (tie and p[last] > 0)
            p[order[room:]] = 0
        # every layer's decayed square, and the features', is the same at the optimum
        product = math.prod(self.weight_decays) * self.feature_decay
        share = (p**2 * product * sizes) ** (1 / (len(self.dims) + 1))
        decays = torch.tensor(self.weight_decays, dtype=torch.float64)
        n = torch.tensor(self.n_per_class, dtype=torch.float64)
        bias = n / self.samples if self.bias and self.loss == "mse" else torch.zeros_like(n)
        penalty = (len(self.dims) + 1) / 2 * share.sum()
        if self.loss == "ce":
            fit = torch.log1p((self.classes - 1) * torch.exp(-p[0]))
        else:
            fit = (sizes * (1 - p) ** 2).sum() / (2 * self.samples)
        logits = (left * (p * sizes.sqrt())) @ right.T / n.sqrt() + bias[:, None]
        if self.bias:
            geometry: Geometry = "etf" if balanced else "centred"
        elif self.loss == "ce":
            geometry = "etf"
        else:
            geometry = "of" if balanced else "gof"
        return CollapseSolution(
            p=p,
            s_weights=(share / decays[:, None]).sqrt(),
            s_features=(share / (self.feature_decay * sizes)).sqrt(),
            geometry=geometry,
            loss=float(fit + penalty),
            unique=unique,
            logits=logits,
            bias=bias,
            sizes=sizes,
            left=left,
            right=right,
        )

    def predicted_gram(self, layer: int) -> Tensor:
        r"""Gram matrix ``(K, K)`` at the global minimum, at one depth.

        Args:
            layer: 0 for the class features, :math:`\bar H^\top \bar H`; m from 1 to M for the product of layers m to M,
                :math:`(W_M \cdots W_m)(W_M \cdots W_m)^\top`.
        """
        checks.between("layer", layer, 0, len(self.dims))
        solution = self.global_minimum()
        if layer == 0:
            features = solution.right * (solution.s_features * solution.sizes.sqrt())
            features = features / torch.tensor(self.n_per_class, dtype=torch.float64).sqrt()[:, None]
            return features @ features.T
        rows = solution.left * solution.s_weights[layer - 1 :].prod(0)
        return rows @ rows.T

    def gram(self, state: UFMState, layer: int) -> Tensor:
        """The Gram matrix of :meth:`predicted_gram`, of given weights and features."""
        checks.between("layer", layer, 0, len(self.dims))
        if layer == 0:
            means = self.class_features(state)
            return means @ means.T
        product = state.weights[-1]
        for weight in reversed(state.weights[layer - 1 : -1]):
            product = product @ weight
        return product @ product.T

    def class_features(self, state: UFMState) -> Tensor:
        """Mean feature of each class, ``(K, width)``."""
        sums = state.features.new_zeros(self.classes, self.dims[0]).index_add_(0, self.labels, state.features)
        return sums / torch.tensor(self.n_per_class, dtype=sums.dtype)[:, None]

    def minimiser(self, generator: torch.Generator | None = None) -> UFMState:
        """Weights and features at the global minimum; the directions that it leaves free are drawn at random."""
        solution = self.global_minimum()
        kept = solution.p > 0
        rank = int(kept.sum())
        frames = [
            torch.linalg.qr(torch.randn(width, rank, dtype=torch.float64, generator=generator))[0]
            for width in self.dims
        ]
        weights = [
            (after * lengths) @ before.T
            for before, after, lengths in zip(
                frames, [*frames[1:], solution.left[:, kept]], solution.s_weights[:, kept], strict=True
            )
        ]
        n = torch.tensor(self.n_per_class, dtype=torch.float64)
        means = (solution.right * (solution.s_features * solution.sizes.sqrt()) / n.sqrt()[:, None])[:, kept]
        bias = solution.bias.clone() if self.bias else None
        return UFMState(tuple(weights), (means @ frames[0].T)[self.labels], bias, torch.empty(0, 2))

    def initial(self, std: float = 0.1, seed: int = 0) -> UFMState:
        """Weights and features drawn from a normal distribution of mean 0, and a bias of 0."""
        generator = torch.Generator().manual_seed(seed)
        shapes = [*zip((*self.dims[1:], self.classes), self.dims, strict=True), (self.samples, self.dims[0])]
        *weights, features = [std * torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes]
        bias = torch.zeros(self.classes, dtype=torch.float64) if self.bias else None
        return UFMState(tuple(weights), features, bias, torch.empty(0, 2))

    def objective(self, state: UFMState) -> Tensor:
        """The regularised loss of given weights and features, a scalar that autograd can differentiate."""
        outputs = state.features
        for weight in state.weights:
            outputs = outputs @ weight.T
        if state.bias is not None:
            outputs = outputs + state.bias
        if self.loss == "ce":
            fit = functional.cross_entropy(outputs, self.labels)
        else:
            fit = (outputs - self.one_hot()).square().sum() / (2 * self.samples)
        decayed = [decay / 2 * w.square().sum() for decay, w in zip(self.weight_decays, state.weights, strict=True)]
        return fit + sum(decayed) + self.feature_decay / 2 * state.features.square().sum()

    def fit(
        self,
        lr: float = 0.1,
        momentum: float = 0.9,
        steps: int = 30_000,
        init_std: float = 0.1,
        seed: int = 0,
        start: UFMState | None = None,
    ) -> UFMState:
        """Minimise by gradient descent with momentum on all samples, as in the paper's direct optimisation.

        Args:
            lr: Learning rate.
            momentum: As of :class:`torch.optim.SGD`.
            steps: Updates.
            init_std: Standard deviation of the first weights and features.
            seed: Decides these and nothing else.
            start: Weights and features to start from instead.

        Raises:
            Diverged: If the loss becomes infinite or not a number.
        """
        checks.positive("lr", lr)
        checks.between("momentum", momentum, 0, 1, open_high=True)
        checks.at_least("steps", steps, 1)
        checks.positive("init_std", init_std)
        descent = Descent(self, start or self.initial(init_std, seed))
        points = sorted({round(steps ** (i / (_CURVE_POINTS - 1))) for i in range(_CURVE_POINTS)})
        curve: list[tuple[float, float]] = []
        for step in range(1, steps + 1):
            descent.step(lr, momentum)
            if step == points[len(curve)]:
                value = float(self.objective(descent.state))
                if not math.isfinite(value):
                    raise Diverged(f"the loss became {value} by step {step}; a smaller lr may help")
                curve.append((float(step), value))
        state = descent.state
        return UFMState(state.weights, state.features, state.bias, torch.tensor(curve, dtype=torch.float64))

    def one_hot(self) -> Tensor:
        """The targets ``(samples, K)``."""
        return functional.one_hot(self.labels, self.classes).double()

    def _directions(self) -> tuple[Tensor, Tensor, Tensor]:
        """Squared singular values, left and right singular vectors of the weighted targets."""
        n = torch.tensor(self.n_per_class, dtype=torch.float64)
        eye = torch.eye(self.classes, dtype=torch.float64)
        if self.loss == "mse" and not self.bias:
            return n, eye, eye
        # a bias takes the mean target away, and so does the symmetry of cross-entropy
        root = (n / self.samples).sqrt()
        targets = n.sqrt()[:, None] * (eye - torch.outer(root, root))
        left, values, right = torch.linalg.svd(targets)
        kept = self.classes - 1
        return values[:kept].square(), left[:, :kept], right[:kept].T


__all__ = [
    "CollapseSolution",
    "DeepLinearUFM",
    "Geometry",
    "Loss",
    "UFMState",
    "collapse_gain",
    "collapse_root",
    "cross_entropy_gain",
    "vanishing_size",
]
