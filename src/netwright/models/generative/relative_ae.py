"""Autoencoder of relative representations (Moschella et al. 2022, arXiv:2209.15430), and its twin with raw latents."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from netwright import checks
from netwright.layers.relative import Normalisation, RelativeNetwork, RelativeProjection, Similarity

HIDDEN = (32, 64, 128, 256)


class RelativeAE(RelativeNetwork):
    """Autoencoder whose decoder sees the similarities of a picture to the anchors, and nothing else.

    Strided 3×3 convolutions with batch normalisation and GELU, none after the last; a relative projection; a linear
    layer and transposed convolutions that mirror the encoder; a sigmoid, so that pictures are in [0, 1].

    Args:
        anchors: Pictures ``(anchors, channels, height, width)``; the paper takes 500, an equal share of every class.
        hidden: Channels of the encoder, each half as high and wide as the one before.
        latent: Width of the latent; the flattened maps of the last convolution if not given, as in the authors' code.
        similarity: See :func:`netwright.layers.relative.relative_projection`.
        normalise_output: See :class:`netwright.layers.relative.RelativeProjection`.
        quantise: See there.
        act: Makes the activation.
        refresh_every: See :class:`netwright.layers.relative.RelativeNetwork`.
        together: See there.

    Raises:
        InputError: If the anchors are no pictures, or there is none.

    Source:
        arXiv:2209.15430, section 5.2, with the sizes of the authors' code.

    Example:
        >>> model = RelativeAE(torch.rand(50, 1, 28, 28))
        >>> model(torch.rand(2, 1, 28, 28)).shape, model.encode(torch.rand(2, 1, 28, 28)).shape
        (torch.Size([2, 1, 28, 28]), torch.Size([2, 50]))
    """

    def __init__(
        self,
        anchors: Tensor,
        hidden: Sequence[int] = HIDDEN,
        latent: int | None = None,
        *,
        similarity: Similarity = "cosine",
        normalise_output: Normalisation | None = "layernorm",
        quantise: float | None = None,
        act: Callable[[], nn.Module] = nn.GELU,
        refresh_every: int = 1,
        together: bool = True,
    ) -> None:
        checks.dimensions("anchors", anchors, "(anchors, channels, height, width)")
        projection = RelativeProjection(len(anchors), similarity, normalise_output=normalise_output, quantise=quantise)
        shape = tuple(anchors.shape[1:])
        super().__init__(
            conv_encoder(shape, hidden, latent, act=act),
            projection,
            conv_decoder(projection.out_features, shape, hidden, act=act),
            anchors,
            refresh_every=refresh_every,
            together=together,
        )


class ConvAutoencoder(nn.Module):
    """:class:`RelativeAE` without the projection: the decoder sees the latent itself.

    Args:
        shape: ``(channels, height, width)`` of the pictures.
        hidden: Channels of the encoder.
        latent: Width of the latent.
        act: Makes the activation.

    Example:
        >>> ConvAutoencoder((1, 28, 28))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: Sequence[int] = HIDDEN,
        latent: int = 500,
        *,
        act: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        self.encoder = conv_encoder(shape, hidden, latent, act=act)
        self.decoder = conv_decoder(latent, shape, hidden, act=act)

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.decoder(self.encoder(input))
        return output


def conv_encoder(
    shape: Sequence[int], hidden: Sequence[int] = HIDDEN, latent: int | None = None, *, act: Callable[[], nn.Module]
) -> nn.Sequential:
    """Pictures of ``shape`` to latents ``(batch, features)``; see :class:`RelativeAE`."""
    channels, *sides = shape
    checks.at_least("number of hidden widths", len(hidden), 1)
    encoder = nn.Sequential()
    for width in hidden:
        encoder.extend([nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), act()])
        channels = width
    encoder[-1] = nn.Flatten()  # in the place of the last activation
    if latent is not None:
        checks.at_least("latent", latent, 1)
        maps = math.prod(_halvings(side, len(hidden))[-1] for side in sides)
        encoder.append(nn.Linear(channels * maps, latent))
    return encoder


def conv_decoder(
    in_features: int, shape: Sequence[int], hidden: Sequence[int] = HIDDEN, *, act: Callable[[], nn.Module]
) -> nn.Sequential:
    """Latents ``(batch, in_features)`` to pictures of ``shape`` in [0, 1]; see :class:`RelativeAE`."""
    channels, *sides = shape
    heights, widths = (_halvings(side, len(hidden)) for side in sides)
    maps = (hidden[-1], heights[-1], widths[-1])
    decoder = nn.Sequential(nn.Linear(in_features, math.prod(maps)), act(), nn.Unflatten(1, maps))
    outs = [*reversed(hidden[:-1]), hidden[0]]
    for width, out, *target in zip(reversed(hidden), outs, heights[-2::-1], widths[-2::-1], strict=True):
        kernel = (3 + (target[0] + 1) % 2, 3 + (target[1] + 1) % 2)  # odd sides were rounded up when halved
        decoder.extend([nn.ConvTranspose2d(width, out, kernel, stride=2, padding=1), nn.BatchNorm2d(out), act()])
    return decoder.extend([nn.Conv2d(outs[-1], channels, 3, padding=1), nn.Sigmoid()])


def _halvings(side: int, times: int) -> list[int]:
    """How long a side is before and after each convolution of stride 2."""
    sides = [side]
    for _ in range(times):
        sides.append((sides[-1] + 1) // 2)
    return sides


__all__ = ["HIDDEN", "ConvAutoencoder", "RelativeAE", "conv_decoder", "conv_encoder"]
