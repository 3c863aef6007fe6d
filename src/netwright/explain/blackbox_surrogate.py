"""Surrogate explanations of black boxes on many features (Karim et al. 2022, arXiv:2208.13405).

:class:`SurrogateExplainer` finds the features that a classifier looks at, learns a tree on its answers from these, says
how faithful that is, and reads rules, reasons and counterfactuals off it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from torch import Tensor

from netwright import checks
from netwright.explain._probe_plan import FEWEST_ROWS, PROBES, ProbePlan, usable_probes
from netwright.explain._surrogate_models import (
    SURROGATES,
    Fidelity,
    Learner,
    Surrogate,
    agreement_by_folds,
    divide,
    fidelity_of,
)
from netwright.explain.black_box import Array, BlackBox, Source
from netwright.explain.decision_rules import Change, Condition, Rule, RuleTree, moved_into
from netwright.explain.feature_probes import mean_ranks

_MOST_FEATURES = 50  # that choose_k considers
_SIZES = 12  # points of the curve that it looks at


class NotFitted(checks.InputError, NotFittedError):  # type: ignore[misc]
    """Something was asked of an explainer before ``fit``."""


@dataclass(frozen=True, eq=False)
class LocalExplanation:
    """Why one sample is answered as it is, as far as the tree tells.

    Attributes:
        label: Class that the black box answers.
        probabilities: Of the black box, ``(classes,)``.
        agrees: Whether the tree answers that class too; where it does not, it explains nothing.
        path: The decisions of the tree, from the root on.
        base: Share of the class among all samples.
        contributions: What each feature adds to the tree's probability of the class, ``(features,)``; with ``base``
            they sum to it.
    """

    label: int
    probabilities: Tensor
    agrees: bool
    path: tuple[Condition, ...]
    base: float
    contributions: Tensor


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """A sample near by that the tree gives to another class.

    Attributes:
        sample: In the shape of the one it was made from.
        changes: The features that differ.
        target: The class.
        confirmed: Whether the black box answers it, too.
        probability: What the black box gives to it.
    """

    sample: Tensor
    changes: tuple[Change, ...]
    target: int
    confirmed: bool
    probability: float


class SurrogateExplainer:
    r"""Explain any classifier by a small model of the features that it looks at most.

    1. Every probe orders the features: ``"attention"`` and ``"gradient"`` for networks
       (:func:`~netwright.explain.feature_probes.network_probes`), ``"permutation"`` for any black box
       (:func:`~netwright.explain.feature_probes.permutation_importance`). The mean of the ranks counts. Only the
       first ``10 · top_k`` features go to permutation: those with the largest gradient or, without one, those whose
       shuffling moves the probabilities of 64 samples most.
    2. The surrogate learns the *answers of the black box* from the first ``top_k`` features. A quarter of the samples
       is held out.
    3. Rules, reasons and counterfactuals are read off a tree; for ``"forest"`` and ``"boosting"`` off one that is
       learnt beside them.

    Args:
        predict_fn: See :class:`~netwright.explain.black_box.BlackBox`; give one for a total limit of rows.
        probes: Which to use; all that the black box allows if not given.
        top_k: Features of the surrogate; chosen by :meth:`choose_k` if not given.
        surrogate: What learns: a tree, a forest, histogram boosting, or a classifier with scikit-learn's interface.
        max_depth: Of the trees.
        repeats: Of the permutation.
        probe_rows: Most samples that the probes look at.
        max_rows: Most rows that ``fit`` may ask the black box; the probes then look at fewer samples.
        feature_names: What the rules call the features.
        class_names: What they call the classes.
        seed: Of all that is drawn; torch's and NumPy's global generators stay as they are.

    Attributes:
        importances_: Mean rank of every feature, divided by their number ``(features,)``; 1 for the first in all.
        probe_scores_: The scores of every probe ``(features,)``, NaN where it did not look.
        top_features_: Numbers of the first k features, the most important first.
        surrogate_: The fitted surrogate; its columns are ``top_features_``.
        rows_asked_: How many rows ``fit`` asked the black box.

    Raises:
        InputError: If samples are not finite, ``top_k`` exceeds the features, a probe is unknown or needs what the
            black box has not, only one class is answered, ``max_rows`` does not suffice, or probabilities are none.
        NotFitted: If anything but ``fit`` is called first.

    Source:
        arXiv:2208.13405, section 3.

    Example:
        >>> x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0))
        >>> box = lambda rows: np.stack([rows[:, 7] > 0.5, rows[:, 7] <= 0.5], 1)
        >>> explainer = SurrogateExplainer(box, top_k=2, feature_names=[f"gene {i}" for i in range(30)]).fit(x)
        >>> int(explainer.top_features_[0]), explainer.fidelity().agreement > 0.95
        (7, True)
        >>> print(explainer.rules()[0])
        class 1 if gene 7 ≤ 0.50...  (support 0.67, confidence 1.00)
    """

    importances_: Tensor
    probe_scores_: dict[str, Tensor]
    top_features_: Tensor
    surrogate_: Any
    rows_asked_: int

    def __init__(
        self,
        predict_fn: BlackBox | Source,
        probes: Sequence[str] | None = None,
        top_k: int | None = None,
        surrogate: Surrogate | Any = "tree",
        max_depth: int = 5,
        *,
        repeats: int = 5,
        probe_rows: int = 1000,
        max_rows: int | None = None,
        feature_names: Sequence[str] = (),
        class_names: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        for probe in probes or ():
            checks.known("probe", probe, PROBES)
        if probes is not None and not probes:
            checks.fail("probes must name at least one", list(probes))
        if isinstance(surrogate, str):
            checks.known("surrogate", surrogate, SURROGATES)
        if top_k is not None:
            checks.at_least("top_k", top_k, 1)
        for name, value in {"max_depth": max_depth, "repeats": repeats, "probe_rows": probe_rows}.items():
            checks.at_least(name, value, 1)
        self.box = BlackBox.of(predict_fn)
        self.probes, self.top_k, self.surrogate, self.max_depth = probes, top_k, surrogate, max_depth
        self.repeats, self.probe_rows, self.max_rows = repeats, probe_rows, max_rows
        self.feature_names, self.class_names, self.seed = tuple(feature_names), tuple(class_names), seed
        self._fitted = False

    def fit(self, X: Array | Tensor, y: Array | Tensor | None = None) -> Self:
        """Probe the black box with samples ``(samples, *shape)`` and learn the surrogate.

        Args:
            X: The samples, at least 16; best those that the black box was not trained on: a network that knows its
                samples by heart answers them right whatever is shuffled.
            y: Their true classes ``(samples,)``, as the probes count an answer as right; those of the black box if not
                given. The surrogate never learns from them.
        """
        self._fitted = False
        rows = _as_rows("X", X)
        checks.at_least("number of samples", len(rows), FEWEST_ROWS)
        features = rows.shape[1]
        if self.top_k is not None and self.top_k > features:
            checks.fail(f"top_k must be at most the number of features, {features}", self.top_k)
        if self.feature_names and len(self.feature_names) != features:
            checks.fail(f"feature_names must name all {features} features", f"{len(self.feature_names)} names")
        self._shape = tuple(X.shape[1:])
        if len(self._shape) > 1:
            self.box.sample_shape = self._shape
        truth = None if y is None else _as_classes(y, len(rows))
        rng = np.random.default_rng(self.seed)
        before = self.box.rows
        wanted = self.top_k or min(features, _MOST_FEATURES)
        probes = usable_probes(self.box, features, self.probes)
        plan = ProbePlan(self.box, features, probes, wanted, self.repeats)
        limit = min((limit for limit in (self.max_rows, self.box.rows_left) if limit is not None), default=None)
        probe_rows = plan.samples_within(limit, min(self.probe_rows, len(rows)), known=len(rows))

        self._rows, self._probabilities = rows, self.box(rows)
        self._answers = self._probabilities.argmax(1)
        self._check_answers()
        self._division = divide(self._answers, rng)
        learn = self._division.learn
        chosen = rng.choice(learn, min(probe_rows, len(learn)), replace=False)
        scores = plan.run(rows[chosen], self._probabilities[chosen], None if truth is None else truth[chosen], rng)
        importances = mean_ranks(scores)
        self._order = np.argsort(-importances, kind="stable")
        self.probe_scores_ = {name: torch.from_numpy(score) for name, score in scores.items()}
        self.importances_ = torch.from_numpy(importances)

        k = self.top_k or self._smallest(0.01)
        self.top_features_ = torch.from_numpy(self._order[:k].copy())
        self._learnt = self._learner(self.surrogate).fit(self._columns(rows[learn], k), self._answers[learn])
        self.surrogate_ = self._learnt.model
        tree = self._learnt
        if self.surrogate != "tree":
            tree = self._learner("tree").fit(self._columns(rows[learn], k), self._answers[learn])
        self._tree = RuleTree(tree.model, tree.classes, self._order[:k], self.feature_names, self.class_names)
        self._leaf_rules = self._tree.rules()
        self.rows_asked_ = self.box.rows - before
        self._fitted = True
        return self

    @property
    def answers_(self) -> Tensor:
        """What the black box answered to the samples of ``fit`` ``(samples,)``."""
        self._need_fit()
        return torch.from_numpy(self._answers)

    def predict_proba(self, X: Array | Tensor) -> Tensor:
        """Probabilities of the surrogate ``(samples, classes)``; the black box is not asked."""
        self._need_fit()
        return torch.from_numpy(self._guess(self._as_these(X)))

    def fidelity(self, X: Array | Tensor | None = None) -> Fidelity:
        """How faithful the surrogate is on samples ``(samples, *shape)``, which the black box is asked.

        Without samples: on those that ``fit`` held out, of which the answers are known.
        """
        self._need_fit()
        if X is None:
            held = self._division.held
            checks.at_least("number of samples that fit held out", len(held), 1)
            return fidelity_of(self._guess(self._rows[held]), self._probabilities[held])
        rows = self._as_these(X)
        checks.at_least("number of samples", len(rows), 1)
        return fidelity_of(self._guess(rows), self.box(rows))

    def fidelity_curve(self) -> dict[int, float]:
        """Agreement for growing numbers of features, by cross-validation on the samples that are not held out.

        The black box is not asked anything.
        """
        self._need_fit()
        return self._curve()

    def choose_k(self, tolerance: float = 0.01) -> int:
        """The smallest number of features whose agreement is within ``tolerance`` of the best of the curve."""
        self._need_fit()
        return self._smallest(tolerance)

    def rules(self) -> list[Rule]:
        """The tree as rules of which exactly one holds for every sample; the rule that covers most comes first."""
        self._need_fit()
        return sorted(self._leaf_rules, key=lambda rule: -rule.support)

    def explain(self, x: Array | Tensor) -> LocalExplanation:
        """Why one sample ``(*shape)`` is answered as it is; asks the black box one row."""
        row = self._one(x)
        probabilities = self.box(row[None])[0]
        label = int(probabilities.argmax())
        steps = self._tree.path(row)
        base, contributions = self._tree.contributions(row, label, len(row))
        agrees = bool(self._tree.label[steps[-1][0] if steps else 0] == label)
        path = tuple(condition for _, condition in steps)
        return LocalExplanation(label, torch.from_numpy(probabilities), agrees, path, base, contributions)

    def counterfactual(self, x: Array | Tensor, target: int, max_changes: int = 3) -> Counterfactual | None:
        """The fewest changes of one sample ``(*shape)`` after which it is answered ``target``.

        The tree proposes: for each of its rules for ``target`` the broken conditions are mended, with values of samples
        for which the rule holds. The black box decides, in one call of at most two rows a rule: the proposal that it
        confirms with the fewest changes, and the shortest way among these, else the one to which it gives the highest
        probability of ``target``.

        Args:
            x: The sample.
            target: The class wanted.
            max_changes: How many features may change.

        Returns:
            ``None`` if no rule of the tree for ``target`` is so few changes away, or the only one holds already.

        Raises:
            InputError: If ``x`` is answered ``target`` already, or there is no such class.
        """
        row = self._one(x)
        checks.at_least("max_changes", max_changes, 1)
        checks.between("target", target, 0, self._probabilities.shape[1] - 1)
        if int(self.box(row[None])[0].argmax()) == target:
            raise checks.InputError(f"x must be answered another class than target, got class {target} for it already")
        learnt = self._rows[self._division.learn]
        scale = np.maximum(learnt.std(0, dtype=np.float64), np.finfo(np.float64).tiny)
        ways = [
            way
            for rule in self._leaf_rules
            if rule.label == target
            for way in moved_into(row, rule, learnt[rule.covers(learnt).numpy()], scale)
        ]
        # where the tree puts the sample into the class already, there is nothing to change
        ways = sorted((way for way in ways if 0 < way[0] <= max_changes), key=lambda way: way[:2])
        if not ways:
            return None
        answers = self.box(np.stack([way[2] for way in ways]))
        confirmed = np.flatnonzero(answers.argmax(1) == target)
        best = confirmed[0] if len(confirmed) else answers[:, target].argmax()
        moved = ways[best][2]
        changes = tuple(
            Change(feature, float(row[feature]), float(moved[feature]), self._name(feature))
            for feature in map(int, np.flatnonzero(moved != row))
        )
        sample = torch.from_numpy(moved.reshape(self._shape))
        return Counterfactual(sample, changes, target, len(confirmed) > 0, float(answers[best, target]))

    def _check_answers(self) -> None:
        answered, classes = np.unique(self._answers), self._probabilities.shape[1]
        if len(answered) < 2:
            raise checks.InputError(f"the black box must answer two classes or more, got only class {answered[0]}")
        if self.class_names and len(self.class_names) != classes:
            checks.fail(f"class_names must name all {classes} classes", f"{len(self.class_names)} names")

    def _curve(self) -> dict[int, float]:
        most = min(self._rows.shape[1], max(_MOST_FEATURES, self.top_k or 0))
        sizes = np.unique(np.geomspace(1, most, _SIZES).round().astype(int)).tolist()
        learn, learner = self._division.learn, self._learner(self.surrogate)
        rows, answers = self._rows[learn], self._answers[learn]
        return {k: agreement_by_folds(learner, self._columns(rows, k), answers, self._division.fold) for k in sizes}

    def _smallest(self, tolerance: float) -> int:
        checks.at_least("tolerance", tolerance, 0)
        curve = self._curve()
        return min(k for k, agreement in curve.items() if agreement >= max(curve.values()) - tolerance)

    def _learner(self, kind: Surrogate | Any) -> Learner:
        return Learner(kind, self.max_depth, self.seed)

    def _columns(self, rows: Array, k: int) -> Array:
        """The k most important features of rows."""
        return np.ascontiguousarray(rows[:, self._order[:k]])

    def _guess(self, rows: Array) -> NDArray[np.float64]:
        columns = self._columns(rows, len(self.top_features_))
        return self._learnt.probabilities(columns, self._probabilities.shape[1])

    def _name(self, feature: int) -> str:
        return self.feature_names[feature] if self.feature_names else ""

    def _need_fit(self) -> None:
        if not self._fitted:
            raise NotFitted("the explainer must be fitted first: call fit(X)")

    def _as_these(self, X: Array | Tensor) -> Array:
        rows = _as_rows("X", X)
        if rows.shape[1] != self._rows.shape[1]:
            checks.fail(f"X must have {self._rows.shape[1]} features as in fit", f"shape {tuple(X.shape)}")
        return rows.astype(self._rows.dtype, copy=False)

    def _one(self, x: Array | Tensor) -> Array:
        self._need_fit()
        if tuple(x.shape) != self._shape:
            checks.fail(f"x must be one sample of shape {self._shape}", f"shape {tuple(x.shape)}")
        row: Array = self._as_these(x[None])[0]
        return row


def _as_rows(name: str, samples: Array | Tensor) -> Array:
    array = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else np.asarray(samples)
    if array.ndim < 2:
        checks.fail(f"{name} must have shape (samples, features) or more dimensions", f"shape {array.shape}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        raise checks.InputError(f"{name} must be finite, got NaN or infinity")
    return array.reshape(len(array), -1)


def _as_classes(y: Array | Tensor, samples: int) -> NDArray[np.int64]:
    classes = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    if classes.shape != (samples,) or classes.dtype.kind not in "iub":
        given = f"shape {classes.shape} of type {classes.dtype}"
        checks.fail(f"y must be the classes of the samples, whole numbers of shape ({samples},)", given)
    return classes.astype(np.int64)


__all__ = [
    "PROBES",
    "SURROGATES",
    "Counterfactual",
    "Fidelity",
    "LocalExplanation",
    "NotFitted",
    "SurrogateExplainer",
]
