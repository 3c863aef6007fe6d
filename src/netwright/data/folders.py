"""Folders of pictures: a sub-folder for each class, with or without train/ and test/ above."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from netwright import checks
from netwright.data.raw import Raw
from netwright.data.splits import Task

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
GRAY = frozenset(("1", "L", "LA", "I", "I;16", "I;16B", "I;16L"))
ORIENTATION = 0x0112  # the EXIF entry in which a camera notes how it was held


def read_folder(root: Path, image_size: int | tuple[int, int] | None = None) -> Raw:
    """Read the pictures below ``root``; the names of the sub-folders are the classes.

    All become gray if all of them are, else RGB without transparency. Turned as the camera says. Hidden files, and
    files that are no pictures by their names, are passed over.

    Args:
        root: The folder. If it has a sub-folder ``train`` and one of ``val``, ``valid``, ``validation``, ``test``, the
            classes are looked for in these.
        image_size: Height and width that every picture is brought to; one number for squares.

    Raises:
        InputError: If there are no classes or pictures, a picture is broken (it is named), or the sizes differ and
            ``image_size`` is not given.
    """
    size = _check_size(image_size)
    parts = _parts(root)
    classes = sorted({folder.name for folders in parts.values() for folder in folders})
    if len(classes) < 2:
        only = f"only {classes[0]!r}" if classes else "none"
        checks.fail(f"{root} must have a sub-folder of pictures for each of at least two classes", only)
    paths: list[Path] = []
    labels: list[int] = []
    places: dict[str, NDArray[np.int64]] = {}
    for part, folders in parts.items():
        start = len(paths)
        for folder in folders:
            found = _pictures(folder)
            if not found:
                checks.fail(f"{folder} must have pictures ({', '.join(sorted(SUFFIXES))})", "none")
            paths += found
            labels += [classes.index(folder.name)] * len(found)
        places[part] = np.arange(start, len(paths))
    _check_parts(parts)
    targets = np.array(labels, dtype=np.int64)
    images = read_pictures(paths, size, str(root))
    val, test = places.get("val"), places.get("test")
    return Raw(images, targets, Task.IMAGE_CLASSIFICATION, tuple(classes), val=val, test=test)


def picture_files(root: Path) -> list[Path]:
    """All files that :func:`read_folder` reads."""
    return [path for folders in _parts(root).values() for folder in folders for path in _pictures(folder)]


def _parts(root: Path) -> dict[str, list[Path]]:
    """Folders of classes in each part; all of them in ``train`` if the data is not divided."""
    folders = _folders(root)
    names = {folder.name.lower() for folder in folders}
    if "train" in names and len(names) > 1 and names <= set(PARTS):
        return {
            part: [inner for folder in folders if PARTS[folder.name.lower()] == part for inner in _folders(folder)]
            for part in ("train", "val", "test")
            if part in {PARTS[name] for name in names}
        }
    return {"train": folders}


def _check_parts(parts: dict[str, list[Path]]) -> None:
    known = {folder.name for folder in parts["train"]}
    for part, folders in parts.items():
        extra = sorted({folder.name for folder in folders} - known)
        if extra:
            checks.fail(f"every class in {part}/ must be in train/, too", f"{extra[0]!r} without training pictures")


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_pictures(
    paths: Sequence[Path], size: tuple[int, int] | None = None, where: str = "one call"
) -> NDArray[np.uint8]:
    """Pictures as ``(samples, channels, height, width)``, gray if all of them are.

    Args:
        paths: The files.
        size: Height and width that every picture is brought to.
        where: Where they are, for errors.

    Raises:
        InputError: If one is broken (it is named), sizes differ and ``size`` is not given, or memory does not suffice.
    """
    looks = [look for path in paths for look in _look(path)]
    sizes = Counter(look[1] for look in looks)
    if size is None and len(sizes) > 1:
        shown = ", ".join(f"{height}×{width} ({count})" for (height, width), count in sizes.most_common(3))
        more = f" and {len(sizes) - 3} more sizes" if len(sizes) > 3 else ""
        checks.fail(
            f"the pictures in {where} must have one size (height × width); give image_size=64, for instance, to bring "
            "them to 64×64",
            f"{shown}{more}",
        )
    height, width = size or next(iter(sizes))
    gray = all(look[0] in GRAY for look in looks)
    shape = (len(paths), 1 if gray else 3, height, width)
    needed, free = 5 * math.prod(shape), psutil.virtual_memory().available  # as bytes and as float32
    if needed > free:
        checks.fail(
            f"{len(paths)} pictures of {height}×{width} need {needed / 1e9:.1f} GB; give a smaller image_size",
            f"{free / 1e9:.1f} GB free",
        )
    images = np.empty(shape, dtype=np.uint8)
    for i, path in enumerate(paths):
        images[i] = _pixels(path, gray, (height, width))
    return images


def _look(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Mode and size (height, width) of a picture, without reading its pixels."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ORIENTATION, 1) >= 5
            yield image.mode, (image.width, image.height) if turned else (image.height, image.width)
    except Exception as error:
        _broken(path, error)


def _pixels(path: Path, gray: bool, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture as ``(channels, height, width)``."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits; Pillow would cut off what is above 255
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
            if image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")
            image = image.convert("L" if gray else "RGB")
            if (image.height, image.width) != size:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
    except Exception as error:
        _broken(path, error)
    return pixels[None] if gray else np.moveaxis(pixels, 2, 0)


def _broken(path: Path, error: Exception) -> NoReturn:
    """Pillow's readers raise errors of many kinds, from OSError to struct.error, at a broken file."""
    reason = "its format is not known" if isinstance(error, UnidentifiedImageError) else str(error)
    raise checks.InputError(f"{path} cannot be read as a picture ({reason}); replace or remove it") from error


def _check_size(image_size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if image_size is None:
        return None
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        checks.fail("image_size must be a positive number, or height and width", image_size)
    return size[0], size[1]


__all__ = ["picture_files", "read_folder", "read_pictures"]
