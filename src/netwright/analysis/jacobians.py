r"""Jacobians of any network: of its outputs or a layer's, by its parameters, its inputs or what another layer puts out.

:func:`jacobian` gives them sample by sample, :func:`jacobian_gram` their Gram matrix without keeping them all,
:func:`jvp` and :func:`vjp` products with them that never form them. With f the function and z what it is
differentiated by, :math:`J_n = \partial f(x_n) / \partial z`. The model is used in eval mode and left as it was.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap
from torch.func import vjp as pull_back

from netwright import checks
from netwright.analysis._objective import at_rest, call, flatten, trainable, unflatten
from netwright.analysis.capture import capture, replaced_outputs


def jacobian(
    model: nn.Module, inputs: Tensor, *, wrt: str = "parameters", of: str = "", chunk: int | None = None
) -> Tensor:
    """The Jacobian of every sample, by ``torch.func.vmap`` of ``jacrev``.

    Args:
        model: Any module that takes one tensor, and treats each sample for itself (in eval mode).
        inputs: ``(samples, *input_shape)``.
        wrt: By what: ``"parameters"`` (the trainable ones in a row, in the order of ``named_parameters()``),
            ``"inputs"``, or the name of a layer, whose output is then taken for free.
        of: Of what: the name of a layer, or ``""`` for the output of the model.
        chunk: Samples at once; all if not given.

    Returns:
        ``(samples, *output_shape, parameters)``, or ``(samples, *output_shape, *shape)`` with the shape of an input or
        of a layer's output.

    Raises:
        InputError: If a layer does not exist or does not run just once, or there are no samples.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> x = torch.randn(5, 4)
        >>> jacobian(model, x).shape, jacobian(model, x, wrt="inputs").shape, jacobian(model, x, wrt="1", of="2").shape
        (torch.Size([5, 2, 23]), torch.Size([5, 2, 4]), torch.Size([5, 2, 3]))
    """
    function = _Function(model, wrt, of)
    return torch.cat(list(function.jacobians(inputs, chunk)))


def jacobian_gram(
    model: nn.Module,
    inputs: Tensor,
    *,
    wrt: str = "parameters",
    of: str = "",
    side: Literal["outputs", "wrt"] = "outputs",
    chunk: int = 32,
) -> Tensor:
    r"""The Gram matrix of Jacobians, from a few samples at a time, in float64.

    - ``side="outputs"``: :math:`K_{na,mb} = \sum_p J_{nap} J_{mbp}`, the empirical neural tangent kernel if ``wrt`` is
      ``"parameters"``;
    - ``side="wrt"``: :math:`M_{pq} = \frac{1}{N} \sum_{na} J_{nap} J_{naq}`.

    Args:
        model: See :func:`jacobian`.
        inputs: ``(samples, *input_shape)``.
        wrt: See :func:`jacobian`.
        of: See :func:`jacobian`.
        side: See above.
        chunk: Samples whose Jacobians are in memory together; twice as many with ``side="outputs"``, which computes
            them again for every pair of chunks.

    Returns:
        ``(samples · outputs, samples · outputs)``, with the outputs of a sample next to each other, or ``(size, size)``
        with the size of what is differentiated by.

    Example:
        >>> model, x = nn.Linear(3, 2, bias=False), torch.eye(3)
        >>> jacobian_gram(model, x).shape
        torch.Size([6, 6])
        >>> weight = model.weight.detach().double()
        >>> torch.allclose(jacobian_gram(model, x, wrt="inputs", side="wrt"), weight.T @ weight)
        True
    """
    checks.known("side", side, ("outputs", "wrt"))
    checks.at_least("chunk", chunk, 1)
    function = _Function(model, wrt, of)

    def rows(part: Tensor) -> Tensor:
        (block,) = function.jacobians(part, None)
        return block.flatten(-function.point_dims).flatten(0, -2).double()

    parts = _samples(inputs, chunk)
    if side == "wrt":
        total: Tensor | None = None
        for part in parts:
            block = rows(part)
            total = block.T @ block if total is None else total.addmm_(block.T, block)
        assert total is not None
        return total / len(inputs)
    blocks: list[list[Tensor]] = [[torch.empty(0)] * len(parts) for _ in parts]
    for i, part in enumerate(parts):
        left = rows(part)
        blocks[i][i] = left @ left.T
        for j in range(i + 1, len(parts)):
            blocks[i][j] = left @ rows(parts[j]).T
            blocks[j][i] = blocks[i][j].T
    return torch.cat([torch.cat(row, dim=1) for row in blocks])


def jvp(
    model: nn.Module,
    inputs: Tensor,
    tangent: Tensor,
    *,
    wrt: str = "parameters",
    of: str = "",
    chunk: int | None = None,
) -> Tensor:
    """Jₙ v for every sample: how the outputs change along a direction.

    Args:
        model: See :func:`jacobian`.
        inputs: ``(samples, *input_shape)``.
        tangent: ``(parameters,)``, or a direction for every sample, ``(samples, *shape)``.
        wrt: See :func:`jacobian`.
        of: See :func:`jacobian`.
        chunk: Samples at once; all if not given.

    Returns:
        ``(samples, *output_shape)``.

    Example:
        >>> model, x, v = nn.Linear(3, 2), torch.randn(5, 3), torch.randn(5, 3)
        >>> torch.allclose(jvp(model, x, v, wrt="inputs"), v @ model.weight.T)
        True
    """
    function = _Function(model, wrt, of)
    results = []
    for start, part in function.parts(inputs, chunk):
        outputs, pull, point = function.pull_back(part)
        piece = tangent if function.by_parameters else tangent[start : start + len(part)]
        _same_shape("tangent", piece, point)
        # u -> Jᵀu is linear, so that pulling back through it is J
        linear: Any = pull_back(pull, torch.zeros_like(outputs))
        (pushed,) = linear[1]((piece.to(point),))
        results.append(pushed)
    return torch.cat(results).detach()


def vjp(
    model: nn.Module,
    inputs: Tensor,
    cotangent: Tensor,
    *,
    wrt: str = "parameters",
    of: str = "",
    chunk: int | None = None,
) -> Tensor:
    """Jₙᵀ u for every sample, summed over the samples if it is by the parameters.

    Args:
        model: See :func:`jacobian`.
        inputs: ``(samples, *input_shape)``.
        cotangent: ``(samples, *output_shape)``.
        wrt: See :func:`jacobian`.
        of: See :func:`jacobian`.
        chunk: Samples at once; all if not given.

    Returns:
        ``(parameters,)``, or ``(samples, *shape)``.

    Example:
        >>> model, x = nn.Linear(3, 2, bias=False), torch.randn(5, 3)
        >>> vjp(model, x, torch.ones(5, 2)).shape, vjp(model, x, torch.ones(5, 2), wrt="inputs").shape
        (torch.Size([6]), torch.Size([5, 3]))
    """
    function = _Function(model, wrt, of)
    results = []
    for start, part in function.parts(inputs, chunk):
        outputs, pull, _ = function.pull_back(part)
        piece = cotangent[start : start + len(part)]
        _same_shape("cotangent", piece, outputs)
        (pulled,) = pull(piece.to(outputs))
        results.append(pulled)
    return (torch.stack(results).sum(0) if function.by_parameters else torch.cat(results)).detach()


class _Function:
    """What is differentiated, as a function of a point z and of samples."""

    def __init__(self, model: nn.Module, wrt: str, of: str) -> None:
        self.model = model
        self.by_parameters, self.by_inputs = wrt == "parameters", wrt == "inputs"
        layers = dict(model.named_modules())
        checks.known("layer", of, layers)
        if not (self.by_parameters or self.by_inputs):
            checks.known("layer", wrt, [*layers, "parameters", "inputs"])
        self.wrt, self.of = wrt, of
        self.parameters = trainable(model) if self.by_parameters else {}
        self.point_dims = 1

    def __call__(self, point: Tensor, samples: Tensor) -> Tensor:
        """The outputs for some samples; ``point`` is a vector of parameters, or what goes in for each sample."""
        calls = {self.wrt: 0}
        kept: list[Tensor] = []

        def put(output: Tensor) -> Tensor:  # noqa: ARG001
            calls[self.wrt] += 1
            return point

        def keep(output: Tensor) -> Tensor:
            kept.append(output)
            return output

        with ExitStack() as stack:
            if not (self.by_parameters or self.by_inputs):
                stack.enter_context(replaced_outputs(self.model, {self.wrt: put}))
            stack.enter_context(replaced_outputs(self.model, {self.of: keep}))
            if self.by_parameters:
                pieces = unflatten(point, list(self.parameters.values()))
                call(self.model, dict(zip(self.parameters, pieces, strict=True)), samples)
            else:
                self.model(point if self.by_inputs else samples)
        runs = {self.of: len(kept)}
        if not (self.by_parameters or self.by_inputs):
            runs |= calls
        for layer, number in runs.items():
            if number != 1:
                checks.fail(f"layer {layer!r} must run once in a forward pass", f"{number} times")
        return kept[0]

    def point(self, samples: Tensor) -> Tensor:
        """Where the Jacobian is taken."""
        if self.by_parameters:
            return flatten(self.parameters.values())
        if self.by_inputs:
            return samples
        with capture(self.model, [self.wrt]) as recorded:
            self.model(samples)
        if self.wrt not in recorded:
            checks.fail(f"layer {self.wrt!r} must run once in a forward pass", "0 times")
        return recorded[self.wrt]

    def parts(self, inputs: Tensor, chunk: int | None) -> Iterator[tuple[int, Tensor]]:
        """Chunks of samples, with the index of their first, each in eval mode."""
        start = 0
        for part in _samples(inputs, chunk):
            with at_rest(self.model), torch.no_grad():
                yield start, part
            start += len(part)

    def pull_back(self, samples: Tensor) -> tuple[Tensor, Callable[[Tensor], tuple[Tensor]], Tensor]:
        """The outputs, the function u to (Jᵀu,), and the point."""
        point = self.point(samples)
        pulled: Any = pull_back(lambda z: self(z, samples), point)
        return pulled[0], pulled[1], point

    def jacobians(self, inputs: Tensor, chunk: int | None) -> Iterator[Tensor]:
        """The Jacobians ``(samples, *output_shape, *shape)``, chunk by chunk."""

        def of_sample(point: Tensor, sample: Tensor) -> Tensor:
            return self(point if self.by_parameters else point.unsqueeze(0), sample.unsqueeze(0)).squeeze(0)

        in_dims = (None, 0) if self.by_parameters else (0, 0)
        for _, part in self.parts(inputs, chunk):
            point = self.point(part)
            self.point_dims = 1 if self.by_parameters else point.ndim - 1
            yield vmap(jacrev(of_sample), in_dims=in_dims)(point, part)


def _samples(inputs: Tensor, chunk: int | None) -> tuple[Tensor, ...]:
    checks.at_least("samples", len(inputs), 1)
    if chunk is not None:
        checks.at_least("chunk", chunk, 1)
    return torch.split(inputs, chunk or len(inputs))


def _same_shape(name: str, given: Tensor, expected: Tensor) -> None:
    if given.shape != expected.shape:
        checks.fail(f"{name} must have shape {tuple(expected.shape)}", f"shape {tuple(given.shape)}")


__all__ = ["jacobian", "jacobian_gram", "jvp", "vjp"]
