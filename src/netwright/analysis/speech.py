"""How much of a voice is left, and how much of everything else is gone: SDR, SI-SDR, ERLE, in decibels.

All take signals ``(..., samples)`` and give ``(...)``; they are differentiable.
"""

from torch import Tensor

from netwright import checks


def sdr(estimate: Tensor, target: Tensor) -> Tensor:
    r"""Signal-to-distortion ratio: :math:`10 \log_{10} \|s\|^2 / \|s - \hat s\|^2`.

    The plain one. BSS Eval's, which forgives any filter of 512 taps, is another.

    Args:
        estimate: :math:`\hat s`, ``(..., samples)``.
        target: s, of the same shape.

    Returns:
        Decibels ``(...)``; infinite where the estimate is the target.

    Raises:
        InputError: If the shapes differ, or a target is silent.

    Example:
        >>> s = torch.randn(2, 1000)
        >>> sdr(0.9 * s, s).round()
        tensor([20., 20.])
    """
    _check(estimate, target, "target")
    _check_heard(target)
    return _decibels(_energy(target), _energy(target - estimate))


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    r"""Scale-invariant signal-to-distortion ratio.

    .. math:: 10 \log_{10} \frac{\|\alpha s\|^2}{\|\alpha s - \hat s\|^2}, \qquad
        \alpha = \frac{\langle \hat s, s \rangle}{\|s\|^2}

    Args:
        estimate: :math:`\hat s`, ``(..., samples)``.
        target: s, of the same shape.

    Returns:
        Decibels ``(...)``; infinite where the estimate is a multiple of the target.

    Raises:
        InputError: If the shapes differ, or a target is silent.

    Source:
        Le Roux, Wisdom, Erdogan, Hershey 2018, arXiv:1811.02508, equation 1; no mean is taken off.

    Example:
        >>> s, n = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> bool((si_sdr(3 * (s + 0.1 * n), s) - si_sdr(s + 0.1 * n, s)).abs() < 1e-3)
        True
    """
    _check(estimate, target, "target")
    _check_heard(target)
    scale = (estimate * target).sum(-1, keepdim=True) / _energy(target)[..., None]
    return _decibels(_energy(scale * target), _energy(scale * target - estimate))


def erle(mic: Tensor, enhanced: Tensor, window: int | None = None) -> Tensor:
    r"""Echo return loss enhancement: :math:`10 \log_{10} \|y\|^2 / \|\hat s\|^2`.

    It means something where nobody speaks at the near end, so that all that is heard is echo (and noise).

    Args:
        mic: What the microphone heard, y, ``(..., samples)``.
        enhanced: What is left of it, :math:`\hat s`, of the same shape.
        window: Samples of a piece; with it, the ratio of each piece, as a curve over time.

    Returns:
        Decibels ``(...)``, or ``(..., samples // window)``. Infinite where nothing is left, and nan where there was
        nothing.

    Raises:
        InputError: If the shapes differ, or the window is longer than the signal.

    Source:
        ITU-T G.168.

    Example:
        >>> y = torch.randn(2, 1000)
        >>> erle(y, 0.1 * y).round(), erle(y, 0.1 * y, window=400).shape
        (tensor([20., 20.]), torch.Size([2, 2]))
    """
    _check(enhanced, mic, "mic")
    if window is not None:
        checks.between("window", window, 1, mic.shape[-1])
        mic, enhanced = mic.unfold(-1, window, window), enhanced.unfold(-1, window, window)
    return _decibels(_energy(mic), _energy(enhanced))


def _energy(signal: Tensor) -> Tensor:
    return signal.square().sum(-1)


def _decibels(signal: Tensor, rest: Tensor) -> Tensor:
    # as a difference, since a quotient of float32 overflows where the rest is next to nothing
    return 10 * (signal.log10() - rest.log10())


def _check(estimate: Tensor, reference: Tensor, name: str) -> None:
    checks.floating_point("estimate", estimate)
    checks.floating_point(name, reference)
    if estimate.shape != reference.shape:
        checks.fail(f"estimate must have the shape of {name} {tuple(reference.shape)}", f"{tuple(estimate.shape)}")


def _check_heard(target: Tensor) -> None:
    if bool((_energy(target) == 0).any()):
        checks.fail("every target must have a signal to compare with (for echo alone, see erle)", "a silent one")


__all__ = ["erle", "sdr", "si_sdr"]
