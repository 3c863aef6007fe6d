"""Equiangular basis vectors as a fixed classifier (Shen, Sun, Wei 2023, arXiv:2303.11637).

:func:`generate_ebv` finds unit vectors whose angles are all nearly right ones, one for each class, in a space that may
have far fewer dimensions; :class:`EBVHead` classifies by the nearest of them; :func:`replace_classifier` puts it into a
network. :func:`simplex_etf` gives the vectors of equal and largest possible angles instead.
"""

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from netwright import checks
from netwright.surgery import swap

# cosines that are held in memory at once
_COSINES = 2**22
# how far above the threshold the largest cosine may stay
_TOLERANCE = 1e-4


class Basis(NamedTuple):
    """What :func:`generate_ebv` found.

    Attributes:
        vectors: Unit rows ``(num_classes, dim)``.
        largest: Largest |cosine| between two of them.
        mean: Mean |cosine|.
        steps: Updates that were done.
        converged: Whether ``largest`` is at most 10⁻⁴ above the threshold.
    """

    vectors: Tensor
    largest: float
    mean: float
    steps: int
    converged: bool


def welch_bound(num_classes: int, dim: int) -> float:
    """The largest |cosine| that K unit vectors in d dimensions cannot all stay below: √((K − d) / (d (K − 1))).

    Args:
        num_classes: K.
        dim: d.

    Returns:
        The bound; 0 for K ≤ d, where vectors can be orthogonal.

    Raises:
        InputError: If ``num_classes`` or ``dim`` is below 2.

    Source:
        Welch 1974, Lower bounds on the maximum cross correlation of signals.

    Example:
        >>> round(welch_bound(1000, 100), 5)
        0.09492
    """
    checks.at_least("num_classes", num_classes, 2)
    checks.at_least("dim", dim, 2)
    return math.sqrt(max(0, num_classes - dim) / (dim * (num_classes - 1)))


def generate_ebv(
    num_classes: int,
    dim: int,
    threshold: float | None = None,
    max_steps: int = 100_000,
    lr: float = 1e-3,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
    *,
    fixed: Tensor | None = None,
) -> Basis:
    r"""K unit vectors in R^d with :math:`|\cos| \le \alpha` for every pair, found by gradient descent.

    From normalised Gaussian rows E, repeat: normalise the rows, and go one step down the gradient of
    :math:`\sum_{i \ne j} \max(0, |e_i \cdot e_j| - \alpha)`, which is 2 M E with M = sign(E Eᵀ) where |E Eᵀ| > α off
    the diagonal, and else 0. M is computed block by block, each pair once, so that memory does not grow with K².

    Args:
        num_classes: K, the number of vectors.
        dim: d.
        threshold: α; if not given 1.5 times the Welch bound, at least 0.002.
        max_steps: Give up after so many updates; the result says so.
        lr: Step of the descent.
        chunk: Rows of E Eᵀ at once; as many as fit into 16 MiB of float32 if not given.
        generator: Draws the start; torch's own if not given.
        fixed: Vectors ``(n, dim)`` that stay as they are and that the new ones keep away from, too; they do not count
            in ``num_classes`` and are not returned.

    Raises:
        InputError: If α is below the Welch bound of all vectors, which says that there is no such basis, or
            ``num_classes`` or ``dim`` is below 2 (below 1 with ``fixed``).

    Source:
        arXiv:2303.11637, section 3.2 and algorithm 1.

    Example:
        >>> basis = generate_ebv(20, 8, generator=torch.Generator().manual_seed(0))
        >>> basis.converged, basis.largest <= 1.5 * welch_bound(20, 8) + 1e-4
        (True, True)
    """
    known = torch.empty(0, dim) if fixed is None else functional.normalize(fixed.detach().float())
    checks.at_least("num_classes", num_classes, 2 if fixed is None else 1)
    checks.at_least("max_steps", max_steps, 0)
    checks.positive("lr", lr)
    bound = welch_bound(num_classes + len(known), dim)
    alpha = max(0.002, 1.5 * bound) if threshold is None else threshold
    if alpha < bound:
        checks.fail(
            f"threshold must be at least {bound:.4f}, the Welch bound of {num_classes + len(known)} vectors in {dim} "
            "dimensions",
            alpha,
        )
    rows = max(1, _COSINES // (num_classes + len(known))) if chunk is None else chunk
    checks.at_least("chunk", rows, 1)
    start = torch.randn(num_classes, dim, generator=generator, device=None if generator is None else generator.device)
    vectors = functional.normalize(start).to(known.device)
    gradient = torch.empty_like(vectors)
    largest, steps = math.inf, 0
    while True:
        largest = descent_direction(vectors, alpha, rows, gradient, known)
        if largest <= alpha + _TOLERANCE or steps == max_steps:
            break
        vectors = functional.normalize(vectors.sub_(gradient, alpha=lr))
        steps += 1
    everything = torch.cat([known, vectors])
    total = sum(float(block.abs().sum()) for _, block in _cosines(everything, rows))
    pairs = len(everything) * (len(everything) - 1) / 2
    return Basis(vectors, largest, total / pairs, steps, largest <= alpha + _TOLERANCE)


def descent_direction(vectors: Tensor, alpha: float, rows: int, gradient: Tensor, fixed: Tensor | None = None) -> float:
    """Write the gradient 2 M E of :func:`generate_ebv` into ``gradient``; return the largest |cosine|.

    Args:
        vectors: E, unit rows ``(num_classes, dim)``.
        alpha: The threshold.
        rows: Rows of E Eᵀ at once.
        gradient: Memory of the shape of ``vectors``.
        fixed: Further unit rows, which have no gradient.
    """
    gradient.zero_()
    largest = 0.0
    for start, cosines in _cosines(vectors, rows):
        signs, extreme = _signs_above(cosines, alpha)
        largest = max(largest, extreme)
        stop = start + len(signs)
        gradient[start:stop].addmm_(signs, vectors[start:], alpha=2)
        gradient[start:].addmm_(signs.T, vectors[start:stop], alpha=2)
    if fixed is not None and len(fixed):
        for start in range(0, len(vectors), rows):
            signs, extreme = _signs_above(vectors[start : start + rows] @ fixed.T, alpha)
            largest = max(largest, extreme)
            gradient[start : start + rows].addmm_(signs, fixed, alpha=2)
    return largest


def _cosines(vectors: Tensor, rows: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows of E Eᵀ above the diagonal (each pair once, else 0), with the row that they start at."""
    for start in range(0, len(vectors), rows):
        yield start, (vectors[start : start + rows] @ vectors[start:].T).triu_(1)


def _signs_above(cosines: Tensor, alpha: float) -> tuple[Tensor, float]:
    """The signs of the cosines where they are above ``alpha``, else 0; and the largest |cosine|."""
    low, high = torch.aminmax(cosines)
    return functional.hardshrink(cosines, alpha).sign_(), max(-low.item(), high.item())


def simplex_etf(num_classes: int, dim: int, generator: torch.Generator | None = None) -> Tensor:
    """The simplex: K unit vectors with cosine −1/(K − 1) between any two, the smallest that all can have.

    Args:
        num_classes: K.
        dim: d ≥ K − 1.
        generator: Turns the simplex at random; torch's own if not given.

    Returns:
        Rows ``(num_classes, dim)``.

    Raises:
        InputError: If ``dim`` is below K − 1.

    Example:
        >>> simplex = simplex_etf(4, 6)
        >>> torch.allclose(simplex @ simplex.T, torch.eye(4) * 4 / 3 - 1 / 3, atol=1e-6)
        True
    """
    checks.at_least("num_classes", num_classes, 2)
    checks.at_least("dim of a simplex", dim, num_classes - 1)
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    # its rows span K - 1 dimensions: their coordinates there
    values, directions = torch.linalg.eigh(centred)
    corners = directions[:, 1:] * values[1:].sqrt() * math.sqrt(num_classes / (num_classes - 1))
    turn, _ = torch.linalg.qr(torch.randn(dim, num_classes - 1, generator=generator, dtype=torch.float64))
    simplex: Tensor = corners @ turn.T
    return simplex.float()


class EBVHead(nn.Module):
    """Classifier with fixed vectors: logits = cos(f(x), e_k) / τ for class k, where f is linear and learned.

    The vectors e_k are a buffer, saved with the model and never trained. Train with cross-entropy; the prediction is
    the class of the largest cosine, that is of the smallest spherical distance.

    Args:
        in_features: Width of the input ``(…, in_features)``; if ``None`` the input itself, ``(…, dim)``, is compared.
        basis: Unit rows ``(num_classes, dim)``, from :func:`generate_ebv` or :func:`simplex_etf`.
        temperature: τ.
        bias: Whether f has a bias.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If the rows of the basis are no unit vectors, or τ is not positive.

    Warns:
        UserWarning: If a feature vector is 0, which has no direction; all its logits are 0.

    Source:
        arXiv:2303.11637, section 3.3. Adding classes without moving the others is not in the paper.

    Example:
        >>> head = EBVHead(64, generate_ebv(10, 8).vectors)
        >>> head(torch.randn(5, 64)).shape, head.predict(torch.randn(5, 64)).shape
        (torch.Size([5, 10]), torch.Size([5]))
    """

    basis: Tensor

    def __init__(
        self,
        in_features: int | None,
        basis: Tensor,
        temperature: float = 0.07,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.dimensions("basis", basis, "(num_classes, dim)")
        checks.at_least("rows of the basis", len(basis), 2)
        checks.positive("temperature", temperature)
        if not basis.is_meta and (basis.norm(dim=1) - 1).abs().max() > 1e-3:
            checks.fail("the basis must have rows of length 1", f"lengths up to {basis.norm(dim=1).max():.3g}")
        self.temperature = temperature
        self.projection: nn.Module = nn.Identity()
        if in_features is not None:
            self.projection = nn.Linear(in_features, basis.shape[1], bias, device=device, dtype=dtype)
        self.register_buffer("basis", basis.detach().clone().to(device=device, dtype=dtype))

    @classmethod
    def like(cls, linear: nn.Linear, basis: Tensor, temperature: float = 0.07) -> Self:
        """A new head in place of a linear classifier.

        Raises:
            InputError: If the basis has another number of classes.
        """
        checks.size("basis", basis, 0, linear.out_features)
        weight = linear.weight
        bias = linear.bias is not None
        return cls(linear.in_features, basis, temperature, bias, device=weight.device, dtype=weight.dtype)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.basis)

    def directions(self, input: Tensor) -> Tensor:
        """Unit vectors ``(…, dim)`` of the inputs, to be compared with the basis."""
        features = self.projection(input)
        checks.size("features", features, -1, self.basis.shape[1])
        if not torch.compiler.is_compiling() and not features.is_meta and bool((features == 0).all(dim=-1).any()):
            warnings.warn("a feature vector is 0 and has no direction; all its logits are 0", stacklevel=3)
        return functional.normalize(features, dim=-1)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(self.directions(input), self.basis) / self.temperature

    def loss(self, input: Tensor, target: Tensor, label_smoothing: float = 0.1) -> Tensor:
        """Mean cross-entropy.

        Args:
            input: ``(batch, in_features)``.
            target: Classes ``(batch,)``, or their probabilities ``(batch, num_classes)`` as mixup and cutmix give them.
            label_smoothing: Share of the probability that is spread over all classes.

        Raises:
            InputError: If a class is not in 0 … num_classes − 1.
        """
        if not target.is_floating_point() and not target.is_meta and target.numel():
            low, high = (value.item() for value in torch.aminmax(target))
            if low < 0 or high >= self.num_classes:
                checks.fail(f"classes must be in 0 … {self.num_classes - 1}", f"{low} … {high}")
        return functional.cross_entropy(self(input), target, label_smoothing=label_smoothing)

    @torch.no_grad()
    def predict(self, input: Tensor, chunk: int = 8192) -> Tensor:
        """The class of the nearest vector, ``(…)``; at most ``chunk`` classes are compared at once."""
        directions = self.directions(input)
        best = directions.new_full(directions.shape[:-1], -math.inf)
        found = torch.zeros_like(best, dtype=torch.long)
        for start in range(0, self.num_classes, chunk):
            cosine, index = functional.linear(directions, self.basis[start : start + chunk]).max(dim=-1)
            found = torch.where(cosine > best, index + start, found)
            best = torch.maximum(best, cosine)
        return found

    def add_classes(self, number: int, *, generator: torch.Generator | None = None, **options: Any) -> Basis:
        """Find vectors for further classes and append them; those of the old classes stay as they are.

        Args:
            number: How many classes.
            generator: See :func:`generate_ebv`.
            options: Further arguments of :func:`generate_ebv`, such as ``threshold``.

        Returns:
            The new vectors, and how near they come to the old ones and to each other.
        """
        new = generate_ebv(number, self.basis.shape[1], generator=generator, fixed=self.basis, **options)
        self.basis = torch.cat([self.basis, new.vectors.to(self.basis)])
        return new

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *arguments: Any) -> None:
        saved = state_dict.get(f"{prefix}basis")
        if saved is not None and saved.ndim == 2 and saved.shape[1] == self.basis.shape[1]:
            self.basis = self.basis.new_empty(saved.shape)  # classes may have been added before it was saved
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def replace_classifier(model: nn.Module, basis: Tensor, temperature: float = 0.07) -> nn.Module:
    """A copy of ``model`` whose last linear layer is an :class:`EBVHead`.

    Args:
        model: Any network that ends in an ``nn.Linear`` with one output for each class.
        basis: See :class:`EBVHead`.
        temperature: See :class:`EBVHead`.

    Raises:
        InputError: If the model has no linear layer, or the last one has another number of outputs than the basis rows.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> replace_classifier(model, generate_ebv(10, 6).vectors)[2].projection
        Linear(in_features=16, out_features=6, bias=True)
    """
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise checks.InputError("the model must end in an nn.Linear for its classes, found none")
    last = model.get_submodule(linear[-1])
    if last.out_features != len(basis):
        checks.fail(f"the last linear layer {linear[-1]!r} must have an output for each of {len(basis)} classes", last)
    return swap(
        model,
        {nn.Linear: lambda layer: EBVHead.like(layer, basis, temperature)},
        where=lambda name, _: name == linear[-1],
    )


__all__ = [
    "Basis",
    "EBVHead",
    "descent_direction",
    "generate_ebv",
    "replace_classifier",
    "simplex_etf",
    "welch_bound",
]
