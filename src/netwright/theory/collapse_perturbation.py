"""Features near given ones (Tirer, Huang, Niles-Weed 2023, arXiv:2210.16658): how a layer brings classes to collapse.

The model asks for features that serve a linear classifier and stay near given ones, such as those of an intermediate
layer; its minimum, the flow towards it, and how both respond to a change of the given features.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.nn import functional

from netwright import checks
from netwright.analysis.class_moments import check_labels
from netwright.analysis.collapse import nc1_trace_ratio


@dataclass(frozen=True, eq=False)
class NearbySolution:
    """A stationary point of a :class:`NearbyFeatureModel`.

    Attributes:
        features: ``(samples, width)``.
        classifier: ``(classes, width)``.
        loss: Value of the regularised loss.
        residual: Largest entry of its gradient in features and classifier.
        sweeps: How often the two were solved for each other.
        converged: Whether the residual got below the tolerance.
    """

    features: Tensor
    classifier: Tensor
    loss: float
    residual: float
    sweeps: int
    converged: bool


class Response(NamedTuple):
    """First-order change of features ``(samples, width)`` and classifier ``(classes, width)``."""

    features: Tensor
    classifier: Tensor


class Shrinkage(NamedTuple):
    """Factors ``(width,)`` on deviations from the class mean, and those directions ``(width, width)``, as rows."""

    factors: Tensor
    directions: Tensor


class NearbyFeatureModel:
    r"""Features and classifier that minimise a regularised squared error, with the features held near given ones.

    .. math::
        \min_{W, H} \; \frac{1}{2N} \sum_i \omega_{y_i} \left( \lVert W h_i - e_{y_i} \rVert^2
            + \lambda_h \lVert h_i \rVert^2 + \beta \lVert h_i - h^0_i \rVert^2 \right)
            + \frac{\lambda_w}{2K} \lVert W \rVert_F^2

    with N = Kn samples of K classes. All samples weigh ω = 1 in the paper, where classes are of equal size; class
    weights, needed for unequal sizes, are ours. Features are rows here, columns in the paper. As β grows, the features
    go to the given ones; β = 0 is the unconstrained model of :class:`netwright.theory.collapse.DeepLinearUFM` with one
    layer, weight decay λ_w/K and feature decay λ_h/N.

    Args:
        H0: Given features, ``(samples, width)``.
        y: Classes ``(samples,)``, each of 0 to K−1 at least once.
        lam_w: Decay of the classifier.
        lam_h: Decay of the features.
        beta: Strength of the pull to the given features.
        weights: Weight ω of each class ``(K,)``: :math:`N/(K n_k)` makes all classes count alike.

    Raises:
        InputError: If a decay or ``beta`` is negative, classes differ in size and no ``weights`` are given, or features
            and classes do not fit.

    Source:
        arXiv:2210.16658, section 3.

    Example:
        >>> from netwright.analysis.collapse import nc1_trace_ratio
        >>> y = torch.arange(60) % 3
        >>> H0 = torch.eye(3)[y] + 0.2 * torch.randn(60, 3)
        >>> solution = NearbyFeatureModel(H0, y, lam_w=0.01, lam_h=0.01, beta=1.0).fit()
        >>> bool(nc1_trace_ratio(solution.features, y) < nc1_trace_ratio(H0, y)), solution.residual < 1e-10
        (True, True)
    """

    def __init__(
        self, H0: Tensor, y: Tensor, lam_w: float, lam_h: float, beta: float, weights: Tensor | None = None
    ) -> None:
        self.classes = check_labels(H0, y, None)
        counts = y.bincount(minlength=self.classes)
        if not bool((counts > 0).all()):
            checks.fail("every class must have a sample", f"class sizes {counts.tolist()}")
        if not bool(H0.isfinite().all()):
            raise checks.InputError("given features must be finite, got an infinite value or one that is no number")
        for name, value in (("lam_w", lam_w), ("lam_h", lam_h), ("beta", beta)):
            checks.between(name, value, 0, torch.inf, open_high=True)
        if weights is None:
            if len(set(counts.tolist())) > 1:
                checks.fail("classes must be of equal size or be given weights", f"sizes {counts.tolist()}")
            weights = torch.ones(self.classes)
        checks.dimensions("weights", weights, "(classes)")
        checks.size("weights", weights, 0, self.classes)
        checks.positive("smallest class weight", float(weights.min()))
        self.H0 = H0.detach().double()
        self.y = y.long()
        self.lam_w, self.lam_h, self.beta = lam_w, lam_h, beta
        self.counts = counts
        self.weights = weights.to(self.H0)
        self.targets = functional.one_hot(self.y, self.classes).to(self.H0)

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return len(self.H0)

    def loss(self, H: Tensor, W: Tensor) -> Tensor:
        """The regularised loss of features and classifier, a scalar that autograd can differentiate."""
        each = (H @ W.T - self.targets).square().sum(1) + self.lam_h * H.square().sum(1)
        each = each + self.beta * (H - self.H0).square().sum(1)
        return (self._omega @ each) / (2 * self.samples) + self.lam_w / (2 * self.classes) * W.square().sum()

    def optimal_classifier(self, H: Tensor) -> Tensor:
        r"""The best classifier of fixed features.

        .. math:: W(H) = Y^\top \Omega H \, (H^\top \Omega H + N \lambda_w/K)^{-1}

        Raises:
            InputError: If ``lam_w`` is 0 and the features do not span their space, which leaves W free.
        """
        H = self._checked(H)
        weighted = self._omega[:, None] * H
        return self._classifier(H.T @ weighted, self.targets.T @ weighted)

    def optimal_features(self, W: Tensor) -> Tensor:
        r"""The best features for a fixed classifier.

        .. math:: H(W) = (Y W + \beta H_0) \, (W^\top W + \lambda_h + \beta)^{-1}

        Raises:
            InputError: If ``lam_h`` and ``beta`` are both 0, which leaves the features free.
        """
        checks.dimensions("W", W, "(classes, width)")
        checks.size("W", W, 0, self.classes)
        checks.size("W", W, 1, self.H0.shape[1])
        W = W.to(self.H0)
        return (self.targets @ W + self.beta * self.H0) @ self._resolvent(W)

    def fit(self, steps: int = 10_000, tol: float = 1e-11) -> NearbySolution:
        """Solve for classifier and features in turns, from the given features on, until the gradient is below ``tol``.

        Only second moments of the given features enter, so that a sweep costs O(width³) for any number of samples; the
        turns are accelerated by Anderson mixing. The loss is not convex: what is found is the stationary point to which
        the given features lead.

        Args:
            steps: Most sweeps.
            tol: Largest entry of the gradient to stop at.

        Raises:
            InputError: If ``lam_h`` and ``beta`` are both 0, or ``lam_w`` is 0 and the features do not span their
                space.
        """
        checks.at_least("steps", steps, 1)
        checks.positive("tol", tol)
        # all that happens, happens in the span of the given features
        basis = None
        given = self.H0
        if given.shape[1] > given.shape[0]:
            self._check_spanned(spanned=self.lam_w > 0)
            basis = torch.linalg.qr(given.T)[0]
            given = given @ basis
        weighted = self._omega[:, None] * given
        gram, cross, sizes = given.T @ weighted, self.targets.T @ weighted, (self.weights * self.counts)[:, None]

        def sweep(W: Tensor) -> tuple[Tensor, float]:
            """The classifier of the features of a classifier, and the gradient that the latter leaves."""
            resolvent = self._resolvent(W)
            pulled = sizes * W + self.beta * cross
            outer = W.T @ pulled + self.beta * (cross.T @ W + self.beta * gram)
            second, first = resolvent @ outer @ resolvent, pulled @ resolvent
            gradient = (W @ second - first) / self.samples + self.lam_w / self.classes * W
            return self._classifier(second, first), float(gradient.abs().max())

        W = self._classifier(gram, cross)
        mixing = _Anderson()
        following, residual = sweep(W)
        sweeps = 1
        while residual >= tol and sweeps < steps:
            W = mixing.step(W, following, residual)
            following, residual = sweep(W)
            sweeps += 1
        W = W if basis is None else W @ basis.T
        H = self.optimal_features(W)
        return NearbySolution(H, W, float(self.loss(H, W)), self.residual(H, W), sweeps, residual < tol)

    def residual(self, H: Tensor, W: Tensor) -> float:
        """Largest entry of the gradient of :meth:`loss` in features and classifier."""
        error = H @ W.T - self.targets
        pull = self._omega[:, None] * (error @ W + self.lam_h * H + self.beta * (H - self.H0)) / self.samples
        push = error.T @ (self._omega[:, None] * H) / self.samples + self.lam_w / self.classes * W
        return max(float(pull.abs().max()), float(push.abs().max()))

    @cached_property
    def minimum(self) -> NearbySolution:
        """What :meth:`fit` finds, found once."""
        return self.fit()

    def gradient_flow(
        self, H: Tensor | None = None, step: float = 1e-3, n: int = 1000, *, pull: bool = False
    ) -> tuple[Tensor, Tensor]:
        r"""Follow the gradient flow of the features on the central path, where the classifier is always the best one.

        .. math:: \dot h_i = -W(H)^\top (W(H) h_i - e_{y_i}) - \lambda_h h_i \; [ - \beta (h_i - h^0_i) ]

        in Euler steps; time is in units of N times that of the loss. The paper proves that the ratio
        :func:`netwright.analysis.collapse.nc1_trace_ratio` falls along the flow without the pull to the given features,
        of which the model itself is one implicit step of length 1/β.

        Args:
            H: Features to start from, ``(samples, width)``; the given ones if not given.
            step: Length of an Euler step.
            n: Number of steps.
            pull: Whether the pull to the given features (the term in β) is part of the flow.

        Returns:
            The NC1 ratio at the start and after every step, ``(n + 1,)``, and the last features.
        """
        checks.positive("step", step)
        checks.at_least("n", n, 1)
        H = self._checked(self.H0 if H is None else H).clone()
        ratios = [nc1_trace_ratio(H, self.y)]
        for _ in range(n):
            W = self.optimal_classifier(H)
            velocity = (self.targets - H @ W.T) @ W - self.lam_h * H
            if pull:
                velocity -= self.beta * (H - self.H0)
            H += step * velocity
            ratios.append(nc1_trace_ratio(H, self.y))
        return torch.stack(ratios), H

    def first_order(self, delta_H0: Tensor, *, within_class: bool = False) -> Response:
        r"""How the minimum moves, to first order, when the given features move.

        By implicit differentiation of the two stationarity conditions: the features are eliminated, and a linear system
        in the change of the classifier is solved by conjugate gradients.

        Args:
            delta_H0: Change of the given features, ``(samples, width)``.
            within_class: The given features are exactly collapsed and the change sums to 0 in every class. Then W
                stays, and :math:`\delta H = \beta \, \delta H_0 (W^\top W + \lambda_h + \beta)^{-1}` (derived here).

        Raises:
            InputError: If ``beta`` is 0 (the minimum is free to rotate), the change has not the shape of the given
                features, or with ``within_class`` its class sums are not 0 or the given features are not collapsed.
        """
        checks.positive("beta of a first-order response", self.beta)
        change = self._checked(delta_H0, "delta_H0")
        H, W = self.minimum.features, self.minimum.classifier
        S = self._resolvent(W)
        if within_class:
            self._check_within_class(change)
            return Response(self.beta * change @ S, torch.zeros_like(W))
        error = H @ W.T - self.targets
        weighted = self._omega[:, None] * H
        second, first, residual = H.T @ weighted, error.T @ weighted, error.T @ (self._omega[:, None] * error)
        decay = self.samples / self.classes * self.lam_w

        def matrix(flat: np.ndarray) -> Tensor:
            return torch.from_numpy(flat).to(W).view_as(W)

        def vector(values: Tensor) -> np.ndarray:
            return values.flatten().cpu().numpy()

        def curvature(flat: np.ndarray) -> np.ndarray:
            """The second derivative of the loss in W, the features following."""
            dW = matrix(flat)
            through = W @ S @ (dW.T @ first + W.T @ dW @ second) + (residual @ dW + first @ dW.T @ W) @ S
            return vector(dW @ second + decay * dW - through)

        inverse = torch.linalg.inv(second + decay * _eye_like(second))
        shape = (W.numel(), W.numel())
        right = -self.beta * (W @ S @ (change.T @ weighted) + error.T @ (self._omega[:, None] * change) @ S)
        solved, failed = cg(
            LinearOperator(shape, curvature, dtype=np.float64),
            vector(right),
            rtol=1e-13,
            maxiter=20 * W.numel() + 1000,
            M=LinearOperator(shape, lambda v: vector(matrix(v) @ inverse), dtype=float),
        )
        if failed:
            raise RuntimeError("the linear response did not converge: the stationary point is no strict minimum")
        dW = matrix(solved)
        return Response((self.beta * change - error @ dW - H @ dW.T @ W) @ S, dW)

    def shrinkage(self) -> Shrinkage:
        r"""By what factor the model shrinks small deviations from the class mean, direction by direction.

        :math:`\beta/(\sigma_j^2 + \lambda_h + \beta)` along the j-th right singular vector of the classifier, whose
        singular value is :math:`\sigma_j`, and :math:`\beta/(\lambda_h + \beta)` orthogonal to its rows. Exact to first
        order when the given features are collapsed (see :meth:`first_order`); derived here.
        """
        _, values, directions = torch.linalg.svd(self.minimum.classifier, full_matrices=True)
        squares = functional.pad(values.square(), (0, len(directions) - len(values)))
        return Shrinkage(self.beta / (squares + self.lam_h + self.beta), directions)

    @property
    def _omega(self) -> Tensor:
        """The weight of each sample."""
        return self.weights[self.y]

    def _checked(self, H: Tensor, name: str = "H") -> Tensor:
        if H.shape != self.H0.shape:
            checks.fail(f"{name} must have the shape {tuple(self.H0.shape)} of the given features", tuple(H.shape))
        return H.detach().to(self.H0)

    def _check_within_class(self, change: Tensor) -> None:
        def sums(values: Tensor) -> Tensor:
            return values.new_zeros(self.classes, values.shape[1]).index_add_(0, self.y, values)

        largest = float(sums(change).abs().max())
        if largest > 1e-9 * max(1e-300, float(change.abs().sum())):
            checks.fail("a change within classes must sum to 0 in every class", f"a sum of {largest:.3g}")
        deviation = self.H0 - (sums(self.H0) / self.counts[:, None])[self.y]
        if float(deviation.abs().max()) > 1e-9 * float(self.H0.abs().max()):
            checks.fail(
                "the response within classes needs given features that are equal in every class",
                f"deviations of up to {float(deviation.abs().max()):.3g}",
            )

    def _classifier(self, second: Tensor, first: Tensor) -> Tensor:
        """The best classifier for second moments HᵀΩH and YᵀΩH."""
        self._check_spanned(
            spanned=self.lam_w > 0 or int(torch.linalg.matrix_rank(second, hermitian=True)) == len(second)
        )
        shifted = second + self.samples / self.classes * self.lam_w * _eye_like(second)
        transposed: Tensor = torch.cholesky_solve(first.T, torch.linalg.cholesky(shifted))
        return transposed.T

    def _check_spanned(self, *, spanned: bool) -> None:
        if not spanned:
            raise checks.InputError("lam_w must be positive where the features do not span their space, got 0")

    def _resolvent(self, W: Tensor) -> Tensor:
        """The inverse of WᵀW + λ_h + β, by way of a matrix as small as the number of classes."""
        shift = self.lam_h + self.beta
        checks.positive("lam_h + beta", shift)
        outer = W @ W.T
        correction: Tensor = W.T @ torch.linalg.solve(outer + shift * _eye_like(outer), W)
        return (_eye_like(correction) - correction) / shift


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


class _Anderson:
    """Anderson mixing of a fixed-point iteration; forgets its past where it does not help."""

    def __init__(self, memory: int = 8) -> None:
        self.memory = memory
        self.points: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.best = torch.inf

    def step(self, point: Tensor, following: Tensor, residual: float) -> Tensor:
        """The next point, after ``point`` led to ``following`` and left a ``residual``."""
        if residual > 2 * self.best:
            self.points, self.steps, self.best = [], [], residual
        self.best = min(self.best, residual)
        self.points = [*self.points, following.flatten()][-self.memory :]
        self.steps = [*self.steps, (following - point).flatten()][-self.memory :]
        if len(self.steps) == 1:
            return following
        steps = torch.stack(self.steps, 1)
        mix: Tensor = torch.linalg.lstsq(steps.diff(dim=1), steps[:, -1:], driver="gelsd").solution
        return (self.points[-1] - (torch.stack(self.points, 1).diff(dim=1) @ mix).flatten()).view_as(point)


__all__ = ["NearbyFeatureModel", "NearbySolution", "Response", "Shrinkage"]
