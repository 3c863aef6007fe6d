"""Pictures as a scanner measures them, by their Fourier coefficients (k-space), some of them missing or noisy."""

from dataclasses import dataclass

import torch
from torch import Tensor

from netwright import checks


@dataclass(frozen=True, eq=False)
class Phantoms:
    """Complex pictures of two discs, and where these are.

    Attributes:
        images: Complex ``(samples, 1, size, size)``, made from noisy Fourier coefficients.
        masks: 1 inside of the discs, else 0, ``(samples, size, size)``.
    """

    images: Tensor
    masks: Tensor


def undersampled(images: Tensor, keep: float, generator: torch.Generator) -> Tensor:
    """What is left of pictures of whose Fourier coefficients only some lines are known, up to their phase.

    Each picture is turned by a random phase, all but ``keep`` of the lines of its spectrum are set to zero (the lowest
    frequencies, a quarter of those kept, are always known; the others are drawn for each picture) and transformed back.

    Args:
        images: Real or complex ``(samples, channels, height, width)``.
        keep: Fraction of the lines that is kept, 0 < keep ≤ 1.
        generator: Source of randomness.

    Returns:
        Complex pictures of the same shape.

    Example:
        >>> images = torch.randn(5, 1, 20, 20)
        >>> found = torch.fft.fft2(undersampled(images, 0.4, torch.Generator().manual_seed(0)))
        >>> (found.abs().sum(-1) > 1e-3).sum(-1).flatten()
        tensor([8, 8, 8, 8, 8])
    """
    checks.dimensions("images", images, "(samples, channels, height, width)")
    checks.between("keep", keep, 0, 1, open_low=True)
    samples, _, height, _ = images.shape
    kept = max(1, round(keep * height))
    frequency = torch.fft.fftfreq(height).abs()
    order = torch.rand(samples, height, generator=generator)
    order[:, frequency.argsort(stable=True)[: max(1, kept // 4)]] = -1
    chosen = torch.zeros(samples, height).scatter_(1, order.argsort(1)[:, :kept], 1.0)
    phase = 2 * torch.pi * torch.rand(samples, 1, 1, 1, generator=generator)
    spectrum = torch.fft.fft2(torch.polar(torch.ones_like(phase), phase) * images)
    found: Tensor = torch.fft.ifft2(spectrum * chosen[:, None, :, None])
    return found


def two_discs(samples: int, size: int, noise: float, generator: torch.Generator) -> Phantoms:
    """Two discs of random place and size that are twice as bright as what surrounds them, from noisy measurements.

    The phase of a picture is a random plane wave of low frequency, as of an imperfect magnetic field. Complex normal
    noise is added to the Fourier coefficients.

    Args:
        samples: Number of pictures.
        size: Their height and width.
        noise: Standard deviation of the noise of a pixel; the discs have modulus 1, the rest 1/2.
        generator: Source of randomness.

    Example:
        >>> phantoms = two_discs(3, 16, 0.1, torch.Generator().manual_seed(0))
        >>> phantoms.images.shape, phantoms.masks.shape
        (torch.Size([3, 1, 16, 16]), torch.Size([3, 16, 16]))
    """
    checks.at_least("samples", samples, 1)
    checks.at_least("size", size, 8)
    checks.at_least("noise", noise, 0)
    axis = (torch.arange(size) + 0.5) / size
    centres = 0.2 + 0.6 * torch.rand(samples, 2, 2, 1, 1, generator=generator)
    radii = 0.08 + 0.1 * torch.rand(samples, 2, 1, 1, generator=generator)
    distance = (axis[:, None] - centres[:, :, 0]).square() + (axis[None] - centres[:, :, 1]).square()
    masks = (distance < radii.square()).any(1).float()
    waves = 2 * torch.pi * (torch.rand(samples, 3, 1, 1, generator=generator) - 0.5)
    phase = 2 * waves[:, 0] + waves[:, 1] * axis[:, None] + waves[:, 2] * axis[None]
    spectrum = torch.fft.fft2(torch.polar(0.5 + 0.5 * masks, phase), norm="ortho")
    spectrum = spectrum + noise * torch.randn(spectrum.shape, dtype=spectrum.dtype, generator=generator)
    return Phantoms(torch.fft.ifft2(spectrum, norm="ortho").unsqueeze(1), masks)


__all__ = ["Phantoms", "two_discs", "undersampled"]
