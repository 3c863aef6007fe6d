"""What data a result was computed from: a hash that changes when the data does."""

import hashlib
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from netwright.data.loading import kind_of
from netwright.data.public import PUBLIC, cut_down_file

# goes up when the same files begin to give other splits or other numbers
VERSION = 1


def fingerprint(source: str | Path) -> str:
    """SHA-256 of what ``source`` holds, as 64 hexadecimal digits.

    Files are identified by their content and not by their names or dates, folders by the relative paths and contents
    of their pictures, public sets by the hashes of their original files, sets bundled with scikit-learn by its version.
    The options of :func:`load` are not part of it.

    Raises:
        InputError: If there is no such data.

    Example:
        >>> fingerprint("digits") == fingerprint("digits") != fingerprint("iris")
        True
    """
    kind = kind_of(source)
    name = str(source)
    lines = [f"netwright data {VERSION}"]
    if kind == "bundled":
        lines += [name, version("scikit-learn")]
    elif kind == "public":
        lines += [name, *(file.hash for file in PUBLIC[name].files)]
    elif kind == "folder":
        from netwright.data.folders import picture_files

        root = Path(source)
        lines += [f"{path.relative_to(root).as_posix()} {_digest(path)}" for path in sorted(picture_files(root))]
    else:
        lines += [_digest(cut_down_file(name) if kind == "cut-down" else Path(source))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of_version(path.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=100_000)  # a study asks once for every cell
def _digest_of_version(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["fingerprint"]
