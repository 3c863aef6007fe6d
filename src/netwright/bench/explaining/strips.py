"""One picture beside its maps: what is drawn for people to look at."""

import io
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from plotly.colors import sample_colorscale, unlabel_rgb

_TILE = 192  # pixels that the longer side of a tile has at least
_LABEL = 16
_GAP = 6


def strip(picture: NDArray[np.uint8], maps: Mapping[str, NDArray[Any]]) -> bytes:
    """A picture, and for each map the map over the picture and the map alone, side by side, as a PNG file.

    Args:
        picture: ``(channels, height, width)`` with 1 or 3 channels.
        maps: ``(height, width)`` by name, larger where there is more to see.
    """
    height, width = picture.shape[1:]
    scale = max(1, -(-_TILE // max(height, width)))
    size = (width * scale, height * scale)
    shown = Image.fromarray(np.moveaxis(np.broadcast_to(picture, (3, height, width)), 0, 2).copy())
    shown = shown.resize(size, Image.Resampling.NEAREST)
    tiles = [("picture", shown)]
    for name, values in maps.items():
        heat = _heat(values, size)
        gray = shown.convert("L").convert("RGB")
        tiles += [(name, Image.blend(gray, heat, 0.55)), ("", heat)]
    whole = Image.new("RGB", (len(tiles) * (size[0] + _GAP) - _GAP, size[1] + _LABEL), "white")
    draw = ImageDraw.Draw(whole)
    for number, (name, tile) in enumerate(tiles):
        left = number * (size[0] + _GAP)
        draw.text((left, 2), name, fill="black")
        whole.paste(tile, (left, _LABEL))
    file = io.BytesIO()
    whole.save(file, "PNG")
    return file.getvalue()


def _heat(values: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    low, high = float(values.min()), float(values.max())
    unit = (values - low) / (high - low) if high > low else np.zeros_like(values)
    scaled = Image.fromarray(unit.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return Image.fromarray(_colours()[(np.asarray(scaled).clip(0, 1) * 255).astype(np.uint8)])


@cache
def _colours() -> NDArray[np.uint8]:
    """256 colours from dark to bright, in steps that look alike also to colour-blind readers."""
    return np.array([unlabel_rgb(c) for c in sample_colorscale("Inferno", np.linspace(0, 1, 256))]).astype(np.uint8)


__all__ = ["strip"]
