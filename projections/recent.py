"""Workflows that completed lately: a message that comes after all finds them without a look into the log."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from .frozen import encoded, revive
from .workflow import Workflow

OBJECTS = 16
"""So many stay objects: what still ends in the turn that completed it asks for them. As objects they are what the
garbage collector has to walk through again and again: 4,096 of them took a fifth of a pipeline's time."""


class Recent:
    """The workflows of one partition that completed last; the older ones of them as bytes."""

    def __init__(self) -> None:
        self._objects: OrderedDict[str, Workflow] = OrderedDict()
        self._bytes: OrderedDict[str, bytes] = OrderedDict()

    def __contains__(self, correlation: str) -> bool:
        return correlation in self._objects or correlation in self._bytes

    def __iter__(self) -> Iterator[str]:
        yield from self._bytes
        yield from self._objects

    def add(self, w: Workflow) -> None:
        """The workflow is complete."""
        self._bytes.pop(w.correlation, None)
        self._objects[w.correlation] = w
        self._objects.move_to_end(w.correlation)

    def trim(self, limit: int) -> None:
        """Forget the oldest ones beyond `limit`, and keep but `OBJECTS` of the others as objects."""
        while len(self._objects) > min(OBJECTS, limit):
            correlation, w = self._objects.popitem(last=False)
            self._bytes[correlation] = encoded(w)
        while self._bytes and len(self._bytes) + len(self._objects) > limit:
            self._bytes.popitem(last=False)

    def get(self, correlation: str) -> Workflow | None:
        """Return the workflow, to be looked at. One that was bytes is an object again, until `trim`."""
        w = self._objects.get(correlation)
        if w is None and correlation in self._bytes:
            w = revive(self._bytes[correlation])
            self.add(w)
        return w

    def pop(self, correlation: str) -> Workflow | None:
        """Return the workflow, which goes on, and forget it here."""
        w = self._objects.pop(correlation, None)
        if w is None and (state := self._bytes.pop(correlation, None)) is not None:
            w = revive(state)
        return w
