"""A digest of the code that decides a result, so that a stored result is not taken for that of changed code."""

import ast
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import torch


def code_digest(*modules: str) -> str:
    """SHA-256 over these modules, all modules of the package that they import, and the version of torch.

    Example:
        >>> code_digest("netwright.checks") == code_digest("netwright.checks")
        True
    """
    files: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in files and (path := _file_of(name)) is not None:
            files[name] = path
            waiting += _imports(path)
    digest = sha256(torch.__version__.encode())
    for name in sorted(files):
        digest.update(files[name].read_bytes())
    return digest.hexdigest()


@cache
def _file_of(module: str) -> Path | None:
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # `from netwright.checks import InputError` names no module in its last part
        return None
    return Path(spec.origin) if spec is not None and spec.origin is not None else None


@cache
def _imports(path: Path) -> tuple[str, ...]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(name for name in names if name.split(".")[0] == "netwright")


__all__ = ["code_digest"]
