"""Random rotation, shear, mirroring, scaling and shift of pictures, each picture by its own."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from netwright import checks


def random_affine(
    images: Tensor,
    degrees: float = 25.0,
    shear: float = 15.0,
    flip: float = 0.5,
    *,
    scale: tuple[float, float] = (1.0, 1.0),
    shift: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Rotate, shear and scale every picture about its middle, mirror some of them left to right, and shift them.

    .. math:: y(u) = x(A (u - t)), \qquad
        A = \begin{pmatrix} \cos a & -\sin a \\ \sin a & \cos a \end{pmatrix}
        \begin{pmatrix} \pm 1 & \tan s \\ 0 & 1 \end{pmatrix}
        \begin{pmatrix} 1 / p & 0 \\ 0 & 1 / q \end{pmatrix}

    with places u in pixels from the middle, a and s uniform between minus and plus the largest angles, p and q uniform
    between the scales, and both parts of t uniform between minus and plus the largest shift. Pixels are read by
    bilinear interpolation, and are 0 outside of the picture.

    Args:
        images: ``(batch, channels, height, width)``.
        degrees: Largest angle of rotation, in degrees; the default is that of ST-ProtoPNet for full pictures.
        shear: Largest angle of the shear, in degrees, below 90.
        flip: How likely a picture is mirrored.
        scale: Smallest and largest factor by which a picture grows, drawn for its width and its height each.
        shift: Largest shift, in pixels.
        generator: Of the random numbers; torch's own if not given.

    Raises:
        InputError: If the pictures are not 4-dimensional or no floating-point numbers, or an angle, the
            probability, a scale or the shift is out of range.

    Example:
        >>> x = torch.rand(5, 3, 8, 8)
        >>> random_affine(x).shape, torch.allclose(random_affine(x, 0, 0, flip=1), x.flip(3), atol=1e-5)
        (torch.Size([5, 3, 8, 8]), True)
    """
    checks.dimensions("images", images, "(batch, channels, height, width)")
    checks.floating_point("images", images)
    checks.at_least("degrees", degrees, 0)
    checks.between("shear", shear, 0, 90, open_high=True)
    checks.between("flip", flip, 0, 1)
    checks.positive("the smallest scale", scale[0])
    checks.at_least("the largest scale", scale[1], scale[0])
    checks.at_least("shift", shift, 0)
    batch, _, height, width = images.shape
    where = images.device if generator is None else generator.device
    random = torch.rand(3, batch, generator=generator, device=where, dtype=torch.float64)
    angle = math.radians(degrees) * (2 * random[0] - 1)
    slope = torch.tan(math.radians(shear) * (2 * random[1] - 1))
    mirror = torch.where(random[2] < flip, -1.0, 1.0).to(angle)
    cos, sin = angle.cos(), angle.sin()
    # affine_grid measures from the middle in halves of the width and of the height
    ratio = height / width
    matrix = torch.zeros(batch, 2, 3, dtype=torch.float64, device=where)
    matrix[:, 0, 0] = mirror * cos
    matrix[:, 0, 1] = (slope * cos - sin) * ratio
    matrix[:, 1, 0] = mirror * sin / ratio
    matrix[:, 1, 1] = slope * sin + cos
    if scale != (1, 1):
        low, high = scale
        factor = low + (high - low) * torch.rand(batch, 1, 2, generator=generator, device=where, dtype=torch.float64)
        matrix[:, :, :2] /= factor
    if shift:
        halves = torch.tensor([width / 2, height / 2], dtype=torch.float64, device=where)
        moved = shift * (2 * torch.rand(batch, 2, generator=generator, device=where, dtype=torch.float64) - 1) / halves
        matrix[:, :, 2:] = -matrix[:, :, :2] @ moved[:, :, None]
    grid = functional.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, align_corners=False)


__all__ = ["random_affine"]
