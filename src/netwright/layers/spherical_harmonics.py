"""Real spherical harmonics of any degree (location encoding of Rußwurm et al. 2023, arXiv:2310.06743).

Public names: :func:`real_spherical_harmonics` of angles, :class:`SphericalHarmonics` of longitude and latitude.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from netwright import checks
from netwright.layers._lonlat import check_lonlat, sines_of_latitude, wrap_longitude

MAX_DEGREES = 200
_SINGLE = 25  # numbers of degrees up to which float32 is exact to 1e-4 at the poles, where errors grow with degree²

_AT_ONCE = 4096  # places at once, so that the blocks of a few degrees stay in the processor's cache


def real_spherical_harmonics(theta: Tensor, phi: Tensor, degree: int) -> Tensor:
    r"""All real spherical harmonics of the degrees l = 0 … ``degree`` − 1, orthonormal on the sphere.

    .. math:: Y_{l,m}(\theta, \varphi) = \sqrt 2\, K_l^{|m|} P_l^{|m|}(\cos\theta)
        \begin{cases} \cos m\varphi & m > 0 \\ \sin |m|\varphi & m < 0 \end{cases}, \qquad
        Y_{l,0} = K_l^0 P_l(\cos\theta), \qquad K_l^m = \sqrt{\frac{2l+1}{4\pi} \frac{(l-m)!}{(l+m)!}}

    with the Condon-Shortley phase in :math:`P_l^m`. They come from the recurrence of the *normalised* functions, for
    all orders of a degree at once, so that no factorial is ever computed and nothing overflows; it runs over Cartesian
    coordinates, so that values and gradients are regular at the poles. Above 25 degrees it runs in float64. Backward
    is the reversed recurrence; second derivatives, ``torch.func`` and compilers get the plain formula.

    Args:
        theta: Angle from the pole in radians, any shape.
        phi: Angle around the axis in radians, of the same shape.
        degree: How many degrees, 1 to 200.

    Returns:
        ``(…, degree²)``, of the type of the angles; (l, m) stands at index l² + l + m. The tensor is laid out with the
        samples last in memory, as a linear layer takes it without a copy.

    Raises:
        InputError: If ``degree`` is out of range, or the angles differ in shape or are no floating-point numbers.

    Source:
        Rußwurm et al., *Geographic Location Encoding with Spherical Harmonics and Sinusoidal Representation Networks*,
        2023, arXiv:2310.06743, section 3; recurrence: Holmes, Featherstone 2002, *Journal of Geodesy* 76, equation 11.

    Example:
        >>> Y = real_spherical_harmonics(torch.tensor([1.2, 2.0]), torch.tensor([0.0, 1.0]), 10)
        >>> Y.shape, Y.square().sum(-1)  # the addition theorem: 100 / 4π everywhere
        (torch.Size([2, 100]), tensor([7.9577, 7.9577]))
    """
    check_degree("degree", degree)
    checks.floating_point("theta", theta)
    checks.floating_point("phi", phi)
    if theta.shape != phi.shape:
        checks.fail(f"phi must have the shape of theta, {tuple(theta.shape)}", tuple(phi.shape))
    narrow = theta.dtype
    if narrow in (torch.float16, torch.bfloat16) or (degree > _SINGLE and narrow == torch.float32):
        theta, phi = (angle.to(torch.float64 if degree > _SINGLE else torch.float32) for angle in (theta, phi))
    sin = theta.sin()
    return _of_unit_vectors(sin * phi.cos(), sin * phi.sin(), theta.cos(), degree).to(narrow)


class SphericalHarmonics(nn.Module):
    r"""Encode places on the globe by all real spherical harmonics below a degree.

    :func:`real_spherical_harmonics` with θ = rad(latitude + 90) and φ = rad(longitude + 180), as released: θ counts
    from the South Pole. Longitudes are periodic (−180 and 180 give the same, to the bit) and do not matter at the
    poles.

    Args:
        legendre_polys: Number of degrees L, 1 to 200. L degrees tell places apart that are about 180° / L away.

    Shape:
        Longitude and latitude in degrees ``(N, 2)`` to ``(N, L²)``.

    Attributes:
        out_features: L².

    Raises:
        InputError: If L is out of range, the input is not ``(N, 2)``, a latitude is beyond ±90 or a longitude infinite.

    Source:
        Rußwurm et al. 2023, arXiv:2310.06743, section 3.

    Example:
        >>> encoding = SphericalHarmonics(legendre_polys=10)
        >>> encoding(torch.tensor([[13.4, 52.5], [-70.7, -33.4]])).shape
        torch.Size([2, 100])
    """

    def __init__(self, legendre_polys: int = 10) -> None:
        super().__init__()
        check_degree("legendre_polys", legendre_polys)
        self.legendre_polys = legendre_polys
        self.out_features = legendre_polys**2

    def forward(self, lonlat: Tensor) -> Tensor:
        check_lonlat(lonlat)
        narrow = lonlat.dtype
        if narrow in (torch.float16, torch.bfloat16):
            lonlat = lonlat.float()
        if self.legendre_polys > _SINGLE:
            lonlat = lonlat.double()
        lon = torch.deg2rad(wrap_longitude(lonlat[:, 0]))
        sin, cos = sines_of_latitude(lonlat[:, 1])
        return _of_unit_vectors(-cos * lon.cos(), -cos * lon.sin(), -sin, self.legendre_polys).to(narrow)

    def extra_repr(self) -> str:
        return f"legendre_polys={self.legendre_polys}"


def check_degree(name: str, degree: int) -> None:
    """Raise InputError for a number of degrees that is not supported."""
    checks.between(name, degree, 1, MAX_DEGREES)
    if degree != int(degree):
        checks.fail(f"{name} must be a whole number", degree)


def _of_unit_vectors(x: Tensor, y: Tensor, z: Tensor, degree: int) -> Tensor:
    shape = z.shape
    x, y, z = (coordinate.reshape(-1) for coordinate in (x, y, z))
    plain = torch.compiler.is_compiling() or z.is_meta or torch._C._are_functorch_transforms_active()
    table = _plain(x, y, z, degree) if plain else _Harmonics.apply(x, y, z, degree)  # type: ignore[no-untyped-call]
    return table.T.reshape(*shape, degree**2)


def _coefficients(degree: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of the recurrence Y_l = a z Y_{l−1} − b Y_{l−2}, ``(degree², 1)`` each; meaningless for |m| = l."""
    index = torch.arange(degree**2, dtype=torch.float64, device=None if like.is_meta else "cpu")
    l = index.sqrt().floor()
    m2 = (index - l * l - l).square()
    rest = (l * l - m2).clamp(min=1)
    a = ((4 * l * l - 1).clamp(min=0) / rest).sqrt()
    b = ((2 * l + 1) * ((l - 1).square() - m2).clamp(min=0) / ((2 * l - 3).clamp(min=1) * rest)).sqrt()
    return a[:, None].to(like), b[:, None].to(like)


def _sectoral_scales(degree: int) -> list[float]:
    """Y_{l,±l} = scale · (Re, Im) (x + iy)^l."""
    scales = [math.sqrt(1 / (4 * math.pi))]
    for l in range(1, degree):
        scales.append(-scales[-1] * math.sqrt((2 * l + 1) / (2 * l) * (2 if l == 1 else 1)))
    return scales


def _plain(x: Tensor, y: Tensor, z: Tensor, degree: int) -> Tensor:
    """The table ``(degree², N)`` from torch's own differentiable functions."""
    a, b = _coefficients(degree, z)
    scales = _sectoral_scales(degree)
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    blocks = [scales[0] * real[None]]
    for l in range(1, degree):
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
        inner = slice(l * l + 1, (l + 1) ** 2 - 1)
        middle = a[inner] * z * blocks[-1]
        if l > 1:
            older = b[inner][1:-1] * blocks[-2]
            middle = middle - nn.functional.pad(older, (0, 0, 1, 1))
        blocks.append(torch.cat([scales[l] * imaginary[None], middle, scales[l] * real[None]]))
    return torch.cat(blocks)


class _Harmonics(torch.autograd.Function):
    """The same without intermediate tensors; backward runs the recurrence from the last degree to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, z: Tensor, degree: int) -> Tensor:
        table = z.new_empty(degree**2, len(z))
        for part in _parts(len(z)):
            _fill(table[:, part], x[part], y[part], z[part], degree)
        ctx.degree = degree
        ctx.save_for_backward(x, y, z, table)
        return table

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        x, y, z, table = ctx.saved_tensors
        degree: int = ctx.degree
        if torch.is_grad_enabled():
            with torch.enable_grad():
                again = _plain(x, y, z, degree)
            wanted = [point for point, needed in zip((x, y, z), ctx.needs_input_grad, strict=False) if needed]
            each = iter(torch.autograd.grad(again, wanted, grad, create_graph=True, allow_unused=True))
            return *(next(each) if needed else None for needed in ctx.needs_input_grad[:3]), None
        found = z.new_empty(3, len(z))
        for part in _parts(len(z)):
            found[:, part] = torch.stack(_adjoint(table[:, part], z[part], grad[:, part], degree))
        return *found, None


def _parts(samples: int) -> Iterator[slice]:
    return (slice(start, start + _AT_ONCE) for start in range(0, samples, _AT_ONCE))


def _fill(table: Tensor, x: Tensor, y: Tensor, z: Tensor, degree: int) -> None:
    a, b = _coefficients(degree, z)
    scales = _sectoral_scales(degree)
    table[0] = scales[0]
    real, imaginary = torch.ones_like(x), torch.zeros_like(x)
    for l in range(1, degree):
        real, imaginary = real * x - imaginary * y, real * y + imaginary * x
        block = table[l * l : (l + 1) ** 2]
        torch.mul(imaginary, scales[l], out=block[0])
        torch.mul(real, scales[l], out=block[-1])
        inner = slice(l * l + 1, (l + 1) ** 2 - 1)
        torch.mul(table[(l - 1) ** 2 : l * l], z, out=block[1:-1])
        block[1:-1].mul_(a[inner])
        if l > 1:
            block[2:-2].addcmul_(table[(l - 2) ** 2 : (l - 1) ** 2], b[inner][1:-1], value=-1)


def _adjoint(table: Tensor, z: Tensor, grad: Tensor, degree: int) -> tuple[Tensor, Tensor, Tensor]:
    a, b = _coefficients(degree, z)
    scales = _sectoral_scales(degree)
    grad_x, grad_y = torch.zeros_like(z), torch.zeros_like(z)
    grad_z = z.new_zeros(2 * degree - 1, len(z))  # by order, summed at the end
    # gradients of the blocks l and l + 1; a linear layer lays them out the other way round, so each is copied once
    now, later = grad[(degree - 1) ** 2 :].contiguous(), None
    for l in range(degree - 1, 0, -1):
        before = table[(l - 1) ** 2 : l * l]
        # the derivatives of (x + iy)^l are parts of l (x + iy)^(l−1), which are the ends of the block before
        factor = l * scales[l] / scales[l - 1]
        grad_x.addcmul_(now[-1], before[-1], value=factor)
        grad_y.addcmul_(now[0], before[-1], value=factor)
        if l > 1:
            grad_x.addcmul_(now[0], before[0], value=factor)
            grad_y.addcmul_(now[-1], before[0], value=-factor)
        inner = slice(l * l + 1, (l + 1) ** 2 - 1)
        scaled = now[1:-1] * a[inner]
        grad_z[degree - l : degree + l - 1].addcmul_(scaled, before)
        earlier = grad[(l - 1) ** 2 : l * l].clone(memory_format=torch.contiguous_format).addcmul_(scaled, z)
        if later is not None:
            earlier.addcmul_(later[2:-2], b[(l + 1) ** 2 + 2 : (l + 2) ** 2 - 2], value=-1)
        now, later = earlier, now
    return grad_x, grad_y, grad_z.sum(0)


__all__ = ["MAX_DEGREES", "SphericalHarmonics", "check_degree", "real_spherical_harmonics"]
