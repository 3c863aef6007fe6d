"""Where the files of public data sets lie: NETWRIGHT_DATA, the user's cache, or their official address."""

import hashlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from netwright import checks


@dataclass(frozen=True)
class RemoteFile:
    """A file of a public data set.

    Attributes:
        name: What it is called.
        url: Its official address.
        hash: Algorithm and digest of the original, such as ``md5:…``; ``git:…`` is the number of a git blob.
    """

    name: str
    url: str
    hash: str


def data_folder() -> Path | None:
    """The folder that the environment variable NETWRIGHT_DATA names, if it does."""
    given = os.environ.get("NETWRIGHT_DATA")
    if not given:
        return None
    folder = Path(given).expanduser()
    if not folder.is_dir():
        raise checks.InputError(f"NETWRIGHT_DATA must name a folder, got {given!r}, which is none; correct or unset it")
    return folder


def cache_folder() -> Path:
    """The folder for downloaded data, below the user's cache."""
    return user_cache_path("netwright") / "data"


def locate(set_name: str, files: Sequence[RemoteFile], folders: Sequence[str]) -> dict[str, Path]:
    """Paths, by name, of files whose content has been checked: the user's own copies, or downloaded now.

    Args:
        set_name: Name of the data set; its folder in the cache is called so.
        files: Which files.
        folders: Where below NETWRIGHT_DATA they may lie.

    Raises:
        InputError: If they cannot be had, with all ways to get them, or a copy is damaged.
    """
    shared, cache = data_folder(), cache_folder() / set_name
    places = [] if shared is None else [shared / folder for folder in folders]
    paths: dict[str, Path] = {}
    for file in files:
        for folder in (*places, cache):
            if (folder / file.name).is_file():
                _check_hash(folder / file.name, file)
                paths[file.name] = folder / file.name
                break
    missing = [file for file in files if file.name not in paths]
    for file in missing:
        try:
            _download(file, cache)
        except OSError as error:
            names, reason = ", ".join(file.name for file in missing), _reason(error, file)
            raise checks.InputError(
                f"data set {set_name!r} needs {names}, not found here, and the download failed ({reason}). Do one of "
                f"these: set NETWRIGHT_DATA to a folder with {folders[0]}/{file.name}{_others(missing)}; put the same "
                f"into {cache}; connect to the network for {file.url}"
            ) from error
        paths[file.name] = cache / file.name
    return paths


def _reason(error: OSError, file: RemoteFile) -> str:
    answered = getattr(error, "response", None) is not None
    if hasattr(error, "request") and not answered:
        return f"no connection to {urlsplit(file.url).hostname}"
    return " ".join(str(error).split())


def _others(files: Sequence[RemoteFile]) -> str:
    return f" and the {len(files) - 1} others" if len(files) > 1 else ""


def _download(file: RemoteFile, folder: Path) -> None:
    import pooch  # with it comes an HTTP client, which local data does not need

    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file.name}.{os.getpid()}.part"  # two processes may want the same file
    try:
        with _Bar(f"{folder.name}/{file.name}") as bar:
            progress = bar if sys.stderr.isatty() else False
            pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16)(file.url, part, None)
        _check_hash(part, file, where=file.url)
        part.replace(folder / file.name)
    finally:
        part.unlink(missing_ok=True)


def _check_hash(path: Path, file: RemoteFile, where: str | None = None) -> None:
    algorithm, expected = file.hash.split(":")
    content = hashlib.new("sha1" if algorithm == "git" else algorithm, usedforsecurity=False)
    if algorithm == "git":
        content.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            content.update(chunk)
    if content.hexdigest() != expected:
        advice = "try again later" if where else "delete it, and the original will be downloaded"
        raise checks.InputError(
            f"{where or path} is not the original file: its {algorithm} must be {expected}, got {content.hexdigest()}; "
            f"it is damaged or has been changed; {advice}"
        )


class _Bar:
    """A progress bar as pooch wants it: it sets ``total``, calls ``update`` with bytes, and ``close`` at the end."""

    total = 0

    def __init__(self, title: str) -> None:
        self.progress = Progress(
            TextColumn(title), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self.task = self.progress.add_task(title, total=None, start=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, size: int) -> None:
        self.progress.start()
        self.progress.update(self.task, advance=size, total=self.total or None)

    def reset(self) -> None:
        self.progress.update(self.task, completed=0)

    def close(self) -> None:
        self.progress.stop()


__all__ = ["RemoteFile", "cache_folder", "data_folder", "locate"]
