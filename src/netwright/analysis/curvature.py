"""Curvature of the loss (Gabdullin 2024, arXiv:2412.10146): products with the Hessian, spectrum, criteria r_e, K_Hn.

:class:`HessianOperator` and :class:`GaussNewtonOperator` multiply vectors with the matrix of second derivatives of any
model's loss without ever forming it, and give its top eigenpairs, trace and spectral density. What they use, works on
any symmetric matrix that is only known by its products: :func:`lanczos`, :func:`power_iteration`,
:func:`hutchinson_trace`. :func:`criteria` sums a spectrum up in the paper's two numbers, :func:`smooth` makes a curve.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.analysis._krylov import (
    Eigenpairs,
    Observer,
    Reorth,
    Trace,
    Tridiagonal,
    basis_bytes,
    hutchinson_trace,
    lanczos,
    lanczos_eigenpairs,
    power_iteration,
    rademacher,
)
from netwright.analysis._objective import AffineBatchNorm, Loss, Objective, Pairs, flatten, trainable, unflatten
from netwright.analysis._spectrum import Criteria, Spectrum, criteria, smooth

# multiplies a list of vectors, each shaped like the parameters, with the matrix of one batch
_Product = Callable[[Sequence[Tensor], bool], Sequence[Tensor]]


class HessianOperator:
    r"""The Hessian :math:`H = \nabla^2_\theta \frac{1}{N} \sum_i \ell(f_\theta(x_i), y_i)` of a model's loss.

    θ are the trainable parameters in a row, in the order of ``model.named_parameters()``. A product costs about two
    backward passes: the gradient is differentiated once more. The model is used in eval mode and left as it was, to the
    bit; θ is a copy of the parameters at the time of construction.

    Args:
        model: Any module that takes one tensor.
        loss_fn: ``loss_fn(outputs, targets)`` as a scalar, a mean over the samples.
        data: ``(inputs, targets)``, or an iterable of such batches that can be gone through many times; batches are
            weighted by their size.
        batch: Samples at once, for a pair of tensors; if not given, 64 for networks with convolutions (so that they
            stay in the cache of a CPU), else all.
        keep_graph: Keep the graph of the gradient between products, which saves half of their time and needs as much
            memory as about three training steps on all data; if not given, for a pair of tensors only.
        at_once: Vectors that are multiplied together; if not given, one for networks with convolutions (more would take
            as long), else 16.
        training: Training mode: statistics of each batch (batch normalisation then makes samples depend on each other)
            and dropout, the same for every product.

    Raises:
        InputError: If there is nothing to train, the loss is no scalar, or, at the first product, an operation cannot
            be differentiated twice.

    Example:
        >>> x, y = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
        >>> hessian = HessianOperator(nn.Linear(2, 1, bias=False), nn.MSELoss(), (x, y))
        >>> hessian.multiply(torch.tensor([1.0, 0.0]))  # H = 2 x xᵀ
        tensor([2., 4.])
        >>> round(float(hessian.top_eigs().values[0]), 3)
        10.0
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Loss,
        data: Pairs,
        *,
        batch: int | None = None,
        keep_graph: bool | None = None,
        at_once: int | None = None,
        training: bool = False,
    ) -> None:
        has_filters = any(weight.ndim > 2 for weight in trainable(model).values())
        if at_once is None:
            at_once = 1 if has_filters else 16
        if batch is None and has_filters and not training:  # in training mode the statistics of all samples count
            batch = 64
        checks.at_least("at_once", at_once, 1)
        self._at_once = at_once
        self._objective = Objective(model, loss_fn, data, batch=batch, training=training, stacked=at_once > 1)
        self.names = tuple(self._objective.parameters)
        self._leaves = [parameter.requires_grad_() for parameter in self._objective.parameters.values()]
        self._keep_graph = not self._objective.streams if keep_graph is None else keep_graph
        self._kept: list[tuple[_Product, int]] = []

    @property
    def size(self) -> int:
        """Number of rows and columns: of trainable parameters."""
        return self._objective.size

    @property
    def model(self) -> nn.Module:
        """The model whose loss it is."""
        return self._objective.model

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A vector ``(size,)`` as tensors by the names of the parameters."""
        checks.size("vector", vector, -1, self.size)
        return dict(zip(self.names, unflatten(vector, self._leaves), strict=True))

    def loss(self) -> float:
        """The loss at the parameters, over all data."""
        with self._objective.at_rest():
            return self._objective.mean_loss(self._objective.parameters)

    def gradient(self) -> Tensor:
        """The gradient of the loss, ``(size,)``."""
        total, count = torch.zeros(self.size, dtype=self._dtype, device=self._objective.device), 0
        with self._objective.at_rest(), torch.enable_grad(), _explain():
            for inputs, targets in self._objective.batches():
                loss = self._objective.loss(self._named_leaves(), inputs, targets)
                gradients = torch.autograd.grad(loss, self._leaves, allow_unused=True, materialize_grads=True)
                total += len(inputs) * flatten(gradients)
                count += len(inputs)
        return total / self._objective.counted(count)

    def multiply(self, vectors: Tensor) -> Tensor:
        """H v for a vector ``(size,)``, or for each row of ``(number, size)``."""
        checks.dimensions("vectors", vectors, "(size)", "(number, size)")
        checks.size("vectors", vectors, -1, self.size)
        rows = vectors.detach().to(self._objective.device, self._dtype).reshape(-1, self.size)
        total, count = torch.zeros_like(rows), 0
        for product, samples in self._products():
            for start in range(0, len(rows), self._at_once):
                chunk = rows[start : start + self._at_once]
                batched = len(chunk) > 1
                with _explain():
                    results = product(unflatten(chunk if batched else chunk[0], self._leaves), batched)
                joined = [result.reshape(len(chunk), -1) for result in results]
                total[start : start + self._at_once] += samples * torch.cat(joined, dim=1)
            count += samples
        total /= self._objective.counted(count)
        return total.reshape(vectors.shape)

    def top_eigs(
        self,
        k: int = 1,
        iters: int = 100,
        tol: float = 1e-3,
        *,
        method: Literal["lanczos", "power"] = "lanczos",
        reorth: Reorth = "full",
        generator: torch.Generator | None = None,
        observer: Observer | None = None,
    ) -> Eigenpairs:
        """The ``k`` eigenpairs of largest magnitude.

        Args:
            k: How many.
            iters: Largest number of products: in all for Lanczos, for each pair for power iteration.
            tol: Lanczos stops when the residuals are below ``tol``·|λ|, power iteration when λ changes by less.
            method: Lanczos needs fewer products; power iteration with deflation (the paper's) keeps ``k`` vectors only.
            reorth: Of Lanczos, see :func:`lanczos`.
            generator: Draws the first vectors; one with seed 0 if not given.
            observer: Called with the fraction that is done.

        Example:
            >>> x, y = torch.eye(3), torch.zeros(3, 1)
            >>> HessianOperator(nn.Linear(3, 1), nn.MSELoss(), (x, y)).top_eigs(2).values.shape
            torch.Size([2])
        """
        checks.known("method", method, ("lanczos", "power"))
        first = torch.zeros(self.size, dtype=self._dtype, device=self._objective.device)
        if method == "power":
            return power_iteration(self.multiply, first, k, iters, tol, generator=generator, observer=observer)
        return lanczos_eigenpairs(
            self.multiply, first, k, iters, tol, reorth=reorth, generator=generator, observer=observer
        )

    def trace(
        self,
        iters: int = 100,
        tol: float = 1e-3,
        *,
        generator: torch.Generator | None = None,
        observer: Observer | None = None,
    ) -> Trace:
        """The trace, by Hutchinson's estimate with vectors of ±1; see :func:`hutchinson_trace`."""
        like = torch.empty(self.size, dtype=self._dtype, device=self._objective.device)
        return hutchinson_trace(
            self.multiply, like, iters, tol, at_once=self._at_once, generator=generator, observer=observer
        )

    def spectral_density(
        self,
        iters: int = 100,
        runs: int = 1,
        *,
        reorth: Reorth = "full",
        generator: torch.Generator | None = None,
        observer: Observer | None = None,
    ) -> Spectrum:
        r"""The distribution of the eigenvalues, by stochastic Lanczos quadrature.

        Each run makes a tridiagonal matrix T from a random vector of ±1; its eigenvalues are the nodes, the squared
        first components of its eigenvectors the weights. The extreme nodes are good estimates of the extreme
        eigenvalues, and ``size`` times the mean of Σ wλ over runs is Hutchinson's estimate of the trace, so that one
        call tells all three.

        Args:
            iters: Lanczos steps m, of one product each; at most ``size`` are made.
            runs: Number of random vectors.
            reorth: See :func:`lanczos`; "full" keeps m vectors of ``size``.
            generator: Draws the vectors; one with seed 0 if not given.
            observer: Called with the fraction that is done.

        Source:
            arXiv:2412.10146; Ghorbani, Krishnan, Xiao 2019, arXiv:1901.10159.
        """
        checks.at_least("iters", iters, 1)
        checks.at_least("runs", runs, 1)
        generator = generator or torch.Generator().manual_seed(0)
        like = torch.empty(self.size, dtype=self._dtype, device=self._objective.device)
        steps = min(iters, self.size)
        nodes, weights = [], []
        for run in range(runs):

            def report(fraction: float, run: int = run) -> None:
                if observer is not None:
                    observer((run + fraction) / runs)

            start = rademacher(1, like, generator)[0]
            result = lanczos(self.multiply, start, steps, reorth=reorth, generator=generator, observer=report)
            eigenvalues, first = result.quadrature()
            nodes.append(eigenvalues)
            weights.append(first)
        return Spectrum(torch.stack(nodes), torch.stack(weights))

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self._leaves[0].dtype
        for leaf in self._leaves:
            dtype = torch.promote_types(dtype, leaf.dtype)
        return dtype

    def _named_leaves(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self._leaves, strict=True))

    def _products(self) -> Iterable[tuple[_Product, int]]:
        """The product of each batch and its number of samples; their graphs are dropped in turn, or all kept."""
        if not self._keep_graph:
            return self._stream()
        if not self._kept:
            self._kept = list(self._stream())
        return self._kept

    def _stream(self) -> Iterator[tuple[_Product, int]]:
        for inputs, targets in self._objective.batches():
            with self._objective.at_rest(), torch.enable_grad(), AffineBatchNorm(), _explain():
                product = self._prepare(inputs, targets)
            yield product, len(inputs)

    def _prepare(self, inputs: Tensor, targets: Tensor) -> _Product:
        """The product with the Hessian of one batch; inside of ``at_rest``."""
        loss = self._objective.loss(self._named_leaves(), inputs, targets)
        # functions that are marked as once differentiable leave a trace only where what they propagate needs a gradient
        seed = torch.ones_like(loss, requires_grad=True)
        gradients = torch.autograd.grad(
            loss, self._leaves, seed, create_graph=True, allow_unused=True, materialize_grads=True
        )

        _check_twice_differentiable(gradients)

        def product(vectors: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
            return _transposed(gradients, self._leaves, vectors, batched)

        return product


class GaussNewtonOperator(HessianOperator):
    r"""The generalised Gauss-Newton matrix :math:`G = \frac{1}{N} \sum_i J_i^\top (\nabla^2_f \ell_i) J_i` of a loss.

    J is the Jacobian of the model's outputs by its parameters. G leaves out the curvature of the model, and is positive
    semi-definite where the loss is convex in the outputs. For cross-entropy of a softmax, and for half the squared
    error, it is the Fisher information of the model's own predictions. Takes what :class:`HessianOperator` takes; the
    outputs must be one tensor.

    Source:
        Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent"; Martens 2014,
        arXiv:1412.1193.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        >>> data = torch.randn(20, 4), torch.randint(3, (20,))
        >>> fisher = GaussNewtonOperator(model, nn.CrossEntropyLoss(), data)
        >>> v = torch.randn(fisher.size)
        >>> bool(v @ fisher.multiply(v) >= 0)
        True
    """

    def _prepare(self, inputs: Tensor, targets: Tensor) -> _Product:
        outputs = self._objective.outputs(self._named_leaves(), inputs)
        if not isinstance(outputs, Tensor):
            checks.fail("the outputs of the model must be one tensor", type(outputs))
        ends = outputs.detach().requires_grad_()
        loss = self._objective.scalar(self._objective.loss_fn(ends, targets))
        (slope,) = torch.autograd.grad(loss, ends, torch.ones_like(loss, requires_grad=True), create_graph=True)
        # the map u -> Jᵀu is linear, so that its own derivative by u is J
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, self._leaves, dummy, create_graph=True, allow_unused=True, materialize_grads=True
        )
        _check_twice_differentiable([*pulled, slope])

        def product(vectors: Sequence[Tensor], batched: bool) -> Sequence[Tensor]:
            pushed = _transposed(pulled, [dummy], vectors, batched)
            curved = _transposed([slope], [ends], pushed, batched)
            return _transposed([outputs], self._leaves, curved, batched)

        return product


def _transposed(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], batched: bool
) -> Sequence[Tensor]:
    """Jᵀv for the Jacobian J of ``outputs`` by ``inputs``, along the graph that connects them, which is kept."""
    connected = [(output, vector) for output, vector in zip(outputs, vectors, strict=True) if output.requires_grad]
    number = (len(vectors[0]),) if batched else ()
    results: Sequence[Tensor | None] = [None] * len(inputs)
    if connected:
        results = torch.autograd.grad(
            [output for output, _ in connected],
            inputs,
            [vector for _, vector in connected],
            retain_graph=True,
            is_grads_batched=batched,
            allow_unused=True,
        )
    # what an output does not depend on has derivative 0
    return [
        tensor.new_zeros(number + tensor.shape) if result is None else result
        for result, tensor in zip(results, inputs, strict=True)
    ]


def _check_twice_differentiable(gradients: Sequence[Tensor]) -> None:
    """Look for functions marked as once differentiable, which autograd would take for constants."""
    nodes = [gradient.grad_fn for gradient in gradients if gradient.grad_fn is not None]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        if node.name().endswith("autograd::Error"):
            raise checks.InputError(
                "the model and the loss must be twice differentiable, got a function marked as once_differentiable"
            )
        new = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= new
        nodes.extend(new)


@contextmanager
def _explain() -> Iterator[None]:
    """Say what it means when autograd fails."""
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "does not require grad" in message:
            raise checks.InputError(
                "the loss must depend on the trainable parameters, got one that autograd does not connect to them"
            ) from error
        if "is not implemented" in message:
            raise checks.InputError(
                f"the model and the loss must be twice differentiable, got an operation that is not: {message}"
            ) from error
        raise


__all__ = [
    "Criteria",
    "Eigenpairs",
    "GaussNewtonOperator",
    "HessianOperator",
    "Observer",
    "Spectrum",
    "Trace",
    "Tridiagonal",
    "basis_bytes",
    "criteria",
    "hutchinson_trace",
    "lanczos",
    "lanczos_eigenpairs",
    "power_iteration",
    "smooth",
]
