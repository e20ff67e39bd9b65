"""The researcher's work: which Python files are below a folder, and can they be parsed."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import tokenize
from collections.abc import Iterator
from pathlib import Path

from .messages import MAX_BYTES, Module, Survey, Surveyed

SKIPPED = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv", "refold-demo"})


def modules_of(root: str | Path) -> list[str]:
    """Return the paths of the modules below a folder, relative and sorted.

    Not taken: what a link points to, hidden folders and those of tools (`SKIPPED`), files without content, and names
    that cannot be printed in a report.
    """
    return sorted(Path(path).relative_to(root).as_posix() for path in _walk(os.fspath(root)))


def _walk(folder: str) -> Iterator[str]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if not entry.name.isprintable() or "`" in entry.name:
            continue
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in SKIPPED and not entry.name.startswith("."):
                yield from _walk(entry.path)
        elif entry.name.endswith(".py") and entry.is_file(follow_symlinks=False):
            if entry.stat(follow_symlinks=False).st_size:
                yield entry.path


def survey(wanted: Survey) -> Surveyed:
    """List one page of the modules, each parsed once."""
    left = [path for path in modules_of(wanted.root) if path > wanted.after]
    page = left[: wanted.limit]
    return Surveyed([look(wanted.root, path) for path in page], len(left) > len(page))


def look(root: str, path: str) -> Module:
    """Read one file and try to parse it."""
    file = Path(root, path)
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            return Module(path, size, "", f"{size} bytes are too many to review (more than {MAX_BYTES})")
        source = file.read_bytes()
    except OSError as error:
        return Module(path, 0, "", f"cannot be read: {error.strerror}")
    return Module(path, len(source), digest_of(source), _error(source))


def digest_of(source: bytes) -> str:
    """Return the name of a file's content."""
    return hashlib.sha256(source).hexdigest()[:16]


def _error(source: bytes) -> str:
    """Say why a file is no Python: the parser alone takes comments that are no text."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
        source.decode(encoding)
        ast.parse(source)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    except (ValueError, LookupError) as error:
        return str(error)
    except (RecursionError, MemoryError):
        return "nested too deeply for this Python"
    return ""
