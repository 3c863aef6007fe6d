"""Losses of speech enhancement: SDR with and without scale, compressed spectra, their sum over a network's stages."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from netwright import checks

_EPS = 1e-8


def sdr_loss(estimate: Tensor, target: Tensor, *, limit: float | None = 30.0) -> Tensor:
    r"""Negative signal-to-distortion ratio, mean over the signals that have a target.

    .. math:: -10 \log_{10} \frac{\|s\|^2}{\|s - \hat s\|^2 + \tau \|s\|^2}, \qquad \tau = 10^{-\text{limit}/10}

    Signals with a silent target, where the ratio has no meaning, have no part in it.

    Args:
        estimate: :math:`\hat s`, ``(..., samples)``.
        target: s, of the same shape.
        limit: Decibels above which nothing is gained, so that easy signals do not rule the gradient; none if ``None``.

    Returns:
        A scalar, in decibels; 0 if all targets are silent.

    Raises:
        InputError: If the shapes differ.

    Source:
        Wisdom et al. 2020, arXiv:2006.12701, equation 2.

    Example:
        >>> s = torch.randn(2, 1000)
        >>> sdr_loss(s, s).round(), sdr_loss(0.5 * s, s).round()
        (tensor(-30.), tensor(-6.))
    """
    _check(estimate, target)
    return _negative_decibels(estimate, target, target, limit)


def si_sdr_loss(estimate: Tensor, target: Tensor, *, limit: float | None = 30.0) -> Tensor:
    r"""As :func:`sdr_loss`, with the target scaled to fit the estimate: :math:`\alpha s` in the place of s.

    .. math:: \alpha = \frac{\langle \hat s, s \rangle}{\|s\|^2}

    It leaves the level of the estimate open. A network with bounded masks that learns from it alone drives them to
    their bounds, and is too loud.

    Args:
        estimate: As of :func:`sdr_loss`.
        target: As of :func:`sdr_loss`.
        limit: As of :func:`sdr_loss`.

    Returns:
        A scalar, in decibels; 0 if all targets are silent.

    Raises:
        InputError: If the shapes differ.

    Source:
        Le Roux et al. 2018, arXiv:1811.02508, equation 1.

    Example:
        >>> s = torch.randn(2, 1000)
        >>> si_sdr_loss(s, s).round(), si_sdr_loss(0.5 * s, s).round()
        (tensor(-30.), tensor(-30.))
    """
    _check(estimate, target)
    energy = target.square().sum(-1, keepdim=True).clamp_min(_EPS)
    scaled = (estimate * target).sum(-1, keepdim=True) / energy * target
    return _negative_decibels(estimate, target, scaled, limit)


def _negative_decibels(estimate: Tensor, target: Tensor, scaled: Tensor, limit: float | None) -> Tensor:
    signal, rest = scaled.square().sum(-1), (scaled - estimate).square().sum(-1)
    if limit is not None:
        rest = rest + 10 ** (-limit / 10) * signal
    decibels = 10 * ((rest + _EPS).log10() - (signal + _EPS).log10())
    heard = target.square().sum(-1) > 0
    return torch.where(heard, decibels, 0.0).sum() / heard.sum().clamp_min(1)


def compressed_spectrum_loss(
    estimate: Tensor, target: Tensor, *, power: float = 0.3, complex_weight: float = 0.3
) -> Tensor:
    r"""Squared error of compressed spectra, of their magnitudes and of themselves.

    .. math:: (1 - \lambda) \operatorname{mean} \big(|\hat S|^c - |S|^c\big)^2
        + \lambda \operatorname{mean} \big| |\hat S|^c e^{i \angle \hat S} - |S|^c e^{i \angle S} \big|^2

    The power c < 1 lets quiet bins count; the complex part holds the phase. Silent targets are fine.

    Args:
        estimate: Ŝ in real pairs ``(batch, 2, bins, frames)``, as :class:`netwright.models.signals.aec.STFTPair` gives.
        target: S, of the same shape.
        power: c, in (0, 1].
        complex_weight: λ, in [0, 1].

    Returns:
        A scalar.

    Raises:
        InputError: If the shapes differ or have no planes, or c or λ is out of range.

    Source:
        Ephrat et al. 2018, arXiv:1804.03619, section 4 (c = 0.3); both parts together, Braun and Tashev 2020,
        arXiv:2009.12286, equation 5.

    Example:
        >>> S = torch.randn(3, 2, 65, 20)
        >>> compressed_spectrum_loss(S, S)
        tensor(0.)
    """
    _check(estimate, target)
    if estimate.ndim < 2 or estimate.shape[1] != 2:
        checks.fail("estimate must have shape (batch, 2, bins, frames)", f"shape {tuple(estimate.shape)}")
    checks.between("power", power, 0, 1, open_low=True)
    checks.between("complex_weight", complex_weight, 0, 1)
    sizes = [(spectrum.square().sum(1, keepdim=True) + _EPS).sqrt() for spectrum in (estimate, target)]
    by_size = (sizes[0] ** power - sizes[1] ** power).square().mean()
    compressed = [s * size ** (power - 1) for s, size in zip((estimate, target), sizes, strict=True)]
    by_both = (compressed[0] - compressed[1]).square().sum(1).mean()
    return (1 - complex_weight) * by_size + complex_weight * by_both


def staged_loss(
    stages: Iterable[tuple[Tensor, Tensor]],
    stft: Callable[[Tensor], Tensor],
    *,
    reference: Tensor | None = None,
    sdr_weight: float = 0.02,
) -> Tensor:
    r"""Sum over stages of :func:`compressed_spectrum_loss` and a share of :func:`sdr_loss`.

    A network with two masks has two stages: free of echo, and free of noise, too; each has its own target.

    Args:
        stages: Pairs of an estimate and its target, signals ``(batch, samples)``.
        stft: Spectra in real pairs of signals, such as :class:`netwright.models.signals.aec.STFTPair`.
        reference: Signals that all are divided by the level (root mean square) of, so that loud and quiet recordings
            count alike: those of the microphone. No division if not given.
        sdr_weight: Weight of a decibel.

    Returns:
        A scalar.

    Raises:
        InputError: If there is no stage, or the shapes of one differ.

    Source:
        The sum over both heads is that of arXiv:2110.00745 as this library builds it; the parts' weights are ours.
    """
    level = 1.0 if reference is None else (reference.square().mean(-1, keepdim=True) + _EPS).sqrt()
    losses = [
        compressed_spectrum_loss(stft(estimate / level), stft(target / level)) + sdr_weight * sdr_loss(estimate, target)
        for estimate, target in stages
    ]
    checks.at_least("number of stages", len(losses), 1)
    return torch.stack(losses).sum()


def _check(estimate: Tensor, target: Tensor) -> None:
    if estimate.shape != target.shape:
        checks.fail(f"estimate must have the shape of target {tuple(target.shape)}", f"{tuple(estimate.shape)}")


__all__ = ["compressed_spectrum_loss", "sdr_loss", "si_sdr_loss", "staged_loss"]
