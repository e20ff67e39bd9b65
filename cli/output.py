"""Output: lines and tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import orjson
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..bus.errors import InvalidMessage

PIPED_WIDTH = 200
"""Columns of a table that no terminal shows; a pipe has no width of its own."""


class NobodyReads(Exception):
    """Standard output is closed (`refold tail | head`): there is nothing more to do."""


class Screen(Console):
    """A console that leaves it to the command line how it ends when nobody reads."""

    def on_broken_pipe(self) -> None:
        """Called by rich, which would end the process with code 1."""
        raise NobodyReads


def _console(stderr: bool) -> Screen:
    piped = not (sys.stderr if stderr else sys.stdout).isatty()
    width = PIPED_WIDTH if piped and "COLUMNS" not in os.environ else None
    return Screen(stderr=stderr, highlight=False, width=width)


console = _console(False)
errors = _console(True)


def say(text: str, to: Console = console) -> None:
    """Print a line as it is: names and ids are never read as markup, and a long line is not broken."""
    to.print(shown(text), markup=False, soft_wrap=True)


_CONTROLS = {c: f"\\x{c:02x}" for c in (*range(32), *range(127, 160)) if chr(c) not in "\n\t"}


def shown(text: str) -> str:
    """Return the text without power over the terminal: what a log holds may be anybody's."""
    return text.translate(_CONTROLS).encode(errors="backslashreplace").decode()


def as_json(value: Any) -> None:
    """Print one JSON document on one line. Raises NobodyReads."""
    print_json(spelt(value))


def print_json(raw: bytes) -> None:
    """Print the bytes of one JSON document on one line. Raises NobodyReads."""
    try:
        sys.stdout.buffer.write(raw + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise NobodyReads from None


def spelt(value: Any) -> bytes:
    """Return a value as JSON, also what orjson does not know: integers beyond 64 bits.

    Raises InvalidMessage where it is nested too deep to be printed.
    """
    try:
        found = plain(value)
        try:
            return orjson.dumps(found)
        except TypeError:
            return json.dumps(found, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")
    except RecursionError as error:
        raise InvalidMessage("nested too deep to be printed", remedy="leave --json out") from error


def plain(value: Any) -> Any:
    """Return a value as JSON types, with every field of a Struct: a program must not guess what is left out."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return msgspec.to_builtins(value)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str = "") -> None:
    """Print a table, or `empty` where there are no rows."""
    rows = list(rows)
    if not rows:
        if empty:
            say(empty)
        return
    grid = Table(title=title or None, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for i, column in enumerate(columns):
        grid.add_column(column, style="dim" if column in ("at", "position") else None, overflow="fold", no_wrap=not i)
    for row in rows:
        grid.add_row(*(_cell(cell) for cell in row))
    console.print(grid)


def _cell(value: Any) -> str:
    return escape("" if value is None else shown(str(value)))


def ago(seconds: float) -> str:
    """Return a duration in the unit that people would use."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def clock(when: float) -> str:
    """Return a local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1000):03d}"


@contextmanager
def progress(what: str, *, quiet: bool) -> Iterator[Any]:
    """Show a bar on standard error while something long goes on; yields `update(done, of)`."""
    from rich.progress import Progress

    if quiet or not sys.stderr.isatty():
        yield lambda done, of: None
        return
    with Progress(console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)
