"""Relative representations (Moschella et al. 2022, arXiv:2209.15430): a latent as its similarities to those of anchors.

:class:`RelativeProjection` computes them; :class:`RelativeNetwork` trains an encoder and a decoder with them between,
the anchors encoded anew in every step; :func:`to_relative` makes one of any network that ends in a linear layer.
"""

from typing import Any, Self, cast, get_args

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._cache import Cache
from netwright.layers._relative import (
    Aggregation,
    Normalisation,
    Similarity,
    check_anchors,
    class_means,
    compare,
    normalisation,
    prepare,
    relative_projection,
)
from netwright.surgery import eval_mode, swap


class RelativeProjection(nn.Module):
    """Layer that gives :func:`relative_projection`, then averages, rounds and normalises it as asked.

    Args:
        anchors: Latents of the anchors ``(anchors, features)``, kept as a buffer; or only how many there are, if they
            are given with every call.
        similarity: See :func:`relative_projection`.
        normalise_output: What follows: ``"l2"`` (unit length), ``"layernorm"``, ``"batchnorm"``, or
            ``"instancenorm"`` (each similarity over the batch, in eval mode too).
        quantise: Width of the bins to whose centres (multiples of the width) similarities are rounded; the gradient
            passes straight through.
        aggregate: ``"class_mean"`` averages the similarities to the anchors of one class.
        labels: Classes ``(anchors,)`` of the anchors, for ``aggregate``; every class must occur.
        affine: Whether the normalisation learns a scale and a shift.
        device: As in torch.
        dtype: As in torch.

    Raises:
        InputError: If there is no anchor, a choice is not known, or labels are missing or do not fit.

    Source:
        arXiv:2209.15430, sections 3 and 4; normalisation, rounding and averages as in the authors' code.

    Example:
        >>> layer = RelativeProjection(torch.randn(300, 64), normalise_output="layernorm")
        >>> layer(torch.randn(5, 64)).shape, sum(p.numel() for p in layer.parameters())
        (torch.Size([5, 300]), 600)
        >>> RelativeProjection(300)(torch.randn(5, 64), torch.randn(300, 64)).shape
        torch.Size([5, 300])
    """

    anchors: Tensor | None
    class_means: Tensor

    def __init__(
        self,
        anchors: Tensor | int,
        similarity: Similarity = "cosine",
        *,
        normalise_output: Normalisation | None = None,
        quantise: float | None = None,
        aggregate: Aggregation | None = None,
        labels: Tensor | None = None,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        checks.known("similarity", similarity, get_args(Similarity))
        if quantise is not None:
            checks.positive("quantise", quantise)
        if isinstance(anchors, Tensor):
            check_anchors(anchors)
            self.n_anchors = len(anchors)
            kept = anchors.detach().clone().to(device=device, dtype=dtype)
        else:
            checks.at_least("number of anchors", anchors, 1)
            self.n_anchors, kept = anchors, None
        self.similarity: Similarity = similarity
        self.quantise = quantise
        self.aggregate = aggregate
        self.normalise_output = normalise_output
        self.register_buffer("anchors", kept)
        means = class_means(aggregate, labels, self.n_anchors)
        self.register_buffer("class_means", means if means is None else means.to(device=device, dtype=dtype))
        self.out_features = self.n_anchors if means is None else means.shape[1]
        self.norm = normalisation(normalise_output, self.out_features, affine, device, dtype)
        self._cache: Cache[Tensor] = Cache()

    def prepare(self, anchors: Tensor | None = None, *, check: bool = True) -> Tensor:
        """What is needed of the anchors, computed once for many inputs: unit vectors, a pseudo-inverse, or themselves.

        Args:
            anchors: Their latents; those of the constructor if not given.
            check: Whether to look for values that are not finite, and zeros.
        """
        if anchors is None:
            if self.anchors is None:
                raise checks.InputError("the projection was made without anchors; give them with every call")
            own = self.anchors
            return self._cache.get(lambda: prepare(own, self.similarity, check), own)
        check_anchors(anchors)
        if len(anchors) != self.n_anchors:
            checks.fail(f"there must be {self.n_anchors} anchors", len(anchors))
        return prepare(anchors, self.similarity, check)

    def similarities(self, input: Tensor, prepared: Tensor, *, check: bool = True) -> Tensor:
        """Averaged and rounded similarities of ``input`` to what :meth:`prepare` gave, before the normalisation."""
        similarities = compare(input, prepared, self.similarity, check)
        if self.aggregate is not None:
            similarities = similarities @ self.class_means
        if self.quantise is not None:
            rounded = (similarities / self.quantise).round() * self.quantise
            similarities = similarities + (rounded - similarities).detach()
        return similarities

    def forward(self, input: Tensor, anchors: Tensor | None = None) -> Tensor:
        similarities = self.similarities(input, self.prepare(anchors))
        return similarities if self.normalise_output is None else self.norm(similarities)

    def train(self, mode: bool = True) -> Self:
        self._cache.clear()
        return super().train(mode)

    def extra_repr(self) -> str:
        quantise = "" if self.quantise is None else f", quantise={self.quantise}"
        return f"{self.n_anchors}, {self.out_features}, similarity={self.similarity!r}{quantise}"


class RelativeNetwork(nn.Module):
    r"""Encoder, relative projection and decoder: :math:`d(r(e(x), e(a)))`, trained end to end.

    Each step in training mode encodes the anchors with the encoder as it is now, without a gradient through them, and
    does not look for zeros and values that are not finite. In eval mode the latents of the anchors are kept until a
    weight changes. Two networks that were trained with the same anchors can
    exchange their encoders: :func:`netwright.analysis.stitching.stitch`.

    Args:
        encoder: Maps inputs to latents, which are flattened to ``(batch, features)``.
        projection: :class:`RelativeProjection` that was made with the number of anchors.
        decoder: Gets ``(batch, projection.out_features)``.
        anchors: Inputs of the anchors ``(anchors, *input_shape)``; a buffer.
        refresh_every: Encode the anchors in every so many training steps, and use the latest latents between.
        together: Encode inputs and anchors as one batch, so that batch normalisation treats both alike. Without, the
            anchors have a pass of their own that keeps nothing for backward: the same numbers where no layer mixes
            samples, for less time and memory.

    Raises:
        InputError: If the number of anchors is not that of the projection.

    Source:
        arXiv:2209.15430, section 4.2, and the authors' code (where the anchors have a pass of their own).

    Example:
        >>> encoder, anchors = nn.Linear(20, 8), torch.randn(30, 20)
        >>> net = RelativeNetwork(encoder, RelativeProjection(30), nn.Linear(30, 2), anchors)
        >>> net(torch.randn(5, 20)).shape
        torch.Size([5, 2])
    """

    anchors: Tensor
    _latest: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        projection: RelativeProjection,
        decoder: nn.Module,
        anchors: Tensor,
        *,
        refresh_every: int = 1,
        together: bool = True,
    ) -> None:
        super().__init__()
        if len(anchors) != projection.n_anchors:
            checks.fail(f"the projection needs {projection.n_anchors} anchors", len(anchors))
        checks.at_least("refresh_every", refresh_every, 1)
        self.encoder = encoder
        self.projection = projection
        self.decoder = decoder
        self.refresh_every = refresh_every
        self.together = together
        self.register_buffer("anchors", anchors.detach().clone())
        self.register_buffer("_latest", None, persistent=False)
        self._age = 0
        self._cache: Cache[Tensor] = Cache()

    def latents(self, input: Tensor) -> Tensor:
        """What the encoder makes of inputs: ``(batch, features)``."""
        latents: Tensor = self.encoder(input)
        return latents.flatten(1)

    def encode(self, input: Tensor) -> Tensor:
        """The relative representation ``(batch, projection.out_features)``, before its normalisation."""
        if not self.training:
            return self.projection.similarities(self.latents(input), self._prepared_anchors())
        latents, anchors = self._training_latents(input)
        # a loss that is not a number is for the training loop to report
        prepared = self.projection.prepare(anchors, check=False)
        return self.projection.similarities(latents, prepared, check=False)

    def decode(self, relative: Tensor) -> Tensor:
        """Normalise a relative representation and decode it."""
        output: Tensor = self.decoder(self.projection.norm(relative))
        return output

    def forward(self, input: Tensor) -> Tensor:
        return self.decode(self.encode(input))

    def train(self, mode: bool = True) -> Self:
        self._cache.clear()
        self._latest, self._age = None, 0
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"anchors={len(self.anchors)}, refresh_every={self.refresh_every}, together={self.together}"

    def _training_latents(self, input: Tensor) -> tuple[Tensor, Tensor]:
        if self._latest is not None and self._age < self.refresh_every:
            self._age += 1
            return self.latents(input), self._latest
        if self.together:
            both = self.latents(torch.cat([input, self.anchors]))
            latents, anchors = both[: len(input)], both[len(input) :].detach()
        else:
            latents = self.latents(input)
            with torch.no_grad():
                anchors = self.latents(self.anchors)
        if self.refresh_every > 1:
            self._latest, self._age = anchors, 1
        return latents, anchors

    @torch.no_grad()
    def _prepared_anchors(self) -> Tensor:
        def build() -> Tensor:
            return self.projection.prepare(self.latents(self.anchors))

        # dropout that is left on gives other latents every time
        if torch.compiler.is_compiling() or any(module.training for module in self.encoder.modules()):
            return build()
        kind = self.anchors.device.type
        key = (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) if kind != "meta" else None
        sources = (self.anchors, *self.encoder.parameters(), *self.encoder.buffers())
        return self._cache.get(build, *sources, key=key)


def to_relative(
    model: nn.Module,
    anchors: Tensor,
    similarity: Similarity = "cosine",
    *,
    normalise_output: Normalisation | None = "layernorm",
    refresh_every: int = 1,
) -> RelativeNetwork:
    """A copy of ``model`` whose last linear layer sees its input relative to the anchors.

    That layer is a new one, with as many inputs as there are anchors; all before it becomes the encoder.

    Args:
        model: A network whose output is that of an ``nn.Linear``.
        anchors: Inputs of the anchors ``(anchors, *input_shape)``.
        similarity: See :func:`relative_projection`.
        normalise_output: See :class:`RelativeProjection`.
        refresh_every: See :class:`RelativeNetwork`.

    Raises:
        InputError: If there is no anchor, or the model does not end in a linear layer with an input of shape
            ``(batch, features)``.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 10))
        >>> to_relative(model, torch.randn(50, 4)).decoder
        Linear(in_features=50, out_features=10, bias=True)
    """
    checks.at_least("number of anchors", len(anchors), 1)
    reference = next((p for p in model.parameters() if p.is_floating_point()), None)
    anchors = anchors if reference is None else anchors.to(reference.device)
    name = _final_linear(model, anchors[:2])
    linear = cast("nn.Linear", model.get_submodule(name))
    encoder = swap(model, {nn.Linear: lambda _: nn.Identity()}, where=lambda other, _: other == name)
    place: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
    projection = RelativeProjection(len(anchors), similarity, normalise_output=normalise_output, **place)
    decoder = nn.Linear(projection.out_features, linear.out_features, linear.bias is not None, **place)
    mixes = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in encoder.modules())
    network = RelativeNetwork(encoder, projection, decoder, anchors, refresh_every=refresh_every, together=mixes)
    for new in (projection, decoder):
        new.train(model.training)
    network.training = model.training  # the modes of the encoder's layers are its own
    return network


def _final_linear(model: nn.Module, example: Tensor) -> str:
    """The name of the linear layer whose output is that of the model."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:  # noqa: ARG001
                calls.append((name, inputs[0], output))

            handles.append(module.register_forward_hook(record))
    try:
        with eval_mode(model), torch.no_grad():
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    if not calls:
        raise checks.InputError("the model must end in an nn.Linear, found none")
    name, features, last = calls[-1]
    if last is not output:
        raise checks.InputError(f"the model must end in an nn.Linear; the last one, {name!r}, is followed by more")
    checks.dimensions(f"the input of the last linear layer, {name!r},", features, "(batch, features)")
    return name


__all__ = [
    "Aggregation",
    "Normalisation",
    "RelativeNetwork",
    "RelativeProjection",
    "Similarity",
    "relative_projection",
    "to_relative",
]
