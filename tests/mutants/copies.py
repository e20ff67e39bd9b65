"""A copy of the repository under the name of its package, with one mistake put into it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "refold-demo", "bench")


class Edit(NamedTuple):
    """A place in a file of the product, and what is written there instead."""

    file: str
    old: str
    new: str

    def apply(self, text: str) -> str:
        """Return the text with the mistake. Raises LookupError where the place is not there, or there twice."""
        found = text.count(self.old)
        if found != 1:
            raise LookupError(f"{self.file}: found {found} times, not once: {self.old!r}")
        return text.replace(self.old, self.new)


class Mutant(NamedTuple):
    """A mistake, and the tests of which at least one must fail because of it."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]


def mutated(mutant: Mutant) -> dict[str, tuple[str, str]]:
    """Return, by file, its text as it is and with the mistake. Raises LookupError, SyntaxError."""
    out: dict[str, tuple[str, str]] = {}
    for edit in mutant.edits:
        before, after = out.get(edit.file) or ((ROOT / edit.file).read_text(),) * 2
        out[edit.file] = before, edit.apply(after)
    for file, (_, after) in out.items():
        compile(after, file, "exec")
    return out


class Copy:
    """A copy of the whole tree in `folder/refold`; tests that run there import it, and nothing else, as `refold`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "refold"
        shutil.copytree(ROOT, self.package, ignore=LEFT_OUT)

    @contextmanager
    def mistaken(self, mutant: Mutant) -> Iterator[None]:
        """Within it the copy has the mistake."""
        texts = mutated(mutant)
        try:
            for file, (_, after) in texts.items():
                self._write(file, after)
            yield
        finally:
            for file, (before, _) in texts.items():
                self._write(file, before)

    def _write(self, file: str, text: str) -> None:
        path = self.package / file
        path.write_text(text)
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()  # its times have a resolution of seconds
