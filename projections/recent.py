"""Workflows that completed lately: a message that comes after all finds them without a look into the log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from ..bus.broker import Stored
from .frozen import encoded, revive
from .workflow import Workflow

OBJECTS = 16
"""So many stay objects: what still ends in the turn that completed it asks for them. As objects they are what the
garbage collector has to walk through again and again: 4,096 of them took a fifth of a pipeline's time."""
SHORT, SMALL = 8, 1024
"""A workflow of so few records, none of more bytes, is kept as these: to encode its state takes as long as to fold two
records, and nearly nobody asks for it."""

Records: TypeAlias = Sequence[Stored]


class Recent:
    """The workflows of one partition that completed last: a few as objects, the older ones as their records, which
    `fold_again` folds if somebody asks, or as their state."""

    def __init__(self, fold_again: Callable[[str, Records], Workflow]) -> None:
        self._fold_again = fold_again
        self._objects: OrderedDict[str, tuple[Workflow, Records | None]] = OrderedDict()
        self._packed: OrderedDict[str, Records | bytes] = OrderedDict()

    def __contains__(self, correlation: str) -> bool:
        return correlation in self._objects or correlation in self._packed

    def __iter__(self) -> Iterator[str]:
        yield from self._packed
        yield from self._objects

    def add(self, w: Workflow, records: Records | None = None) -> None:
        """The workflow is complete. `records`: all that it was folded from, where they are few."""
        if w.view.unclaimed:
            records = None  # an agent that is named for the first time changes it: no record of its own says so
        self._packed.pop(w.correlation, None)
        self._objects[w.correlation] = (w, records)
        self._objects.move_to_end(w.correlation)

    def trim(self, limit: int) -> None:
        """Forget the oldest ones beyond `limit`, and keep but `OBJECTS` of the others as objects."""
        while len(self._objects) > min(OBJECTS, limit):
            correlation, (w, records) = self._objects.popitem(last=False)
            self._packed[correlation] = encoded(w) if records is None else tuple(records)  # no work for the collector
        while self._packed and len(self._packed) + len(self._objects) > limit:
            self._packed.popitem(last=False)

    def listeners_change(self) -> None:
        """Others listen from now on, so the same records would give other states: keep the states."""
        self._objects = OrderedDict((c, (w, None)) for c, (w, _) in self._objects.items())
        for correlation, kept in self._packed.items():
            if not isinstance(kept, bytes):
                self._packed[correlation] = encoded(self._fold_again(correlation, kept))

    def get(self, correlation: str) -> Workflow | None:
        """Return the workflow, to be looked at. One that was packed is an object again, until `trim`."""
        if correlation in self._objects:
            return self._objects[correlation][0]
        kept = self._packed.get(correlation)
        if kept is None:
            return None
        w = self._unpacked(correlation, kept)
        self.add(w, None if isinstance(kept, bytes) else kept)
        return w

    def pop(self, correlation: str) -> Workflow | None:
        """Return the workflow, which goes on, and forget it here."""
        known = self._objects.pop(correlation, None)
        if known is not None:
            return known[0]
        kept = self._packed.pop(correlation, None)
        return None if kept is None else self._unpacked(correlation, kept)

    def _unpacked(self, correlation: str, kept: Records | bytes) -> Workflow:
        return revive(kept) if isinstance(kept, bytes) else self._fold_again(correlation, kept)
