"""The whole of one workflow, read once: its records with their verdicts, its state at any point."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from ..bus import codec, facts, ids, kinds
from ..bus.broker import Broker
from ..bus.errors import InvalidMessage, LogTruncated, NoSuchWorkflow
from ..bus.message import Envelope
from .follow import Follower, Judged
from .patch import merge_patch
from .view import Entry
from .workflow import Workflow

At = int | float | str | None


class Point(NamedTuple):
    """A place on a path: the first `version` records of the path of that generation."""

    generation: int
    version: int


class History:
    """A workflow as it was when it was read; later appends never change it.

    `records` are all of it in log order, refused ones too; `points` say which generation and version each of them
    left behind; `owners` are the partition's own records (who owned it, who gave it up) by id, in log order.
    """

    def __init__(
        self, workflow: Workflow, records: tuple[Judged, ...], points: tuple[Point, ...], owners: Mapping[str, Envelope]
    ) -> None:
        self.workflow = workflow
        self.records = records
        self.points = points
        self.owners = dict(owners)
        self._by_position = {j.position: j for j in records}

    @property
    def correlation(self) -> str:
        """The workflow's id."""
        return self.workflow.correlation

    def raw(self, entry: Entry) -> bytes:
        """Return the bytes of a record on the path."""
        position, index = entry.ref
        return raw_of(self._by_position[position].value, index)

    def path(self, at: At = None) -> list[Entry]:
        """Return the path up to a point: a version (12), generation and version ("g0:12"), a record's id, a time
        (unix seconds as a float, or ISO 8601), None = now. Raises InvalidMessage where there is no such point.

        A version is one of the current generation. A record that the current path does not hold, and a time, stand
        for what was the path then.
        """
        generation, version = self._place(at)
        return self.workflow.path_at(generation, version)

    def state(self, at: At = None) -> dict[str, Any]:
        """Return the workflow's state at a point (see `path`): the fold of its `ctx.update`s."""
        state: dict[str, Any] = {}
        for entry in self.path(at):
            r = entry.envelope
            if r is not None and r.message_type == kinds.STATE_CHANGED and r.work is not None and r.work.step:
                state = merge_patch(state, codec.payload(self.raw(entry)))
        return state

    def diff(self, before: At, after: At = None) -> dict[str, tuple[Any, Any]]:
        """Return the top-level keys of the state that differ between two points, with both values (None: absent)."""
        a, b = self.state(before), self.state(after)
        return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}

    def _place(self, at: At) -> Point:
        w = self.workflow
        if at is None:
            return Point(w.generation, w.version)
        if isinstance(at, int):
            return self._checked(w.generation, at)
        if isinstance(at, float):
            return self._until(at)
        text = at.strip()
        known = self._record(text)
        if known is not None:
            return known
        generation, colon, version = text[1:].partition(":")
        if text.startswith("g") and colon and _is_count(generation) and _is_count(version):
            return self._checked(int(generation), int(version))
        if _is_count(text):
            return self._checked(w.generation, int(text))
        try:
            return self._until(datetime.fromisoformat(text).timestamp())
        except (ValueError, OverflowError, OSError):  # the last two: years that the clock of this system has not
            raise self._no_point(at) from None

    def _record(self, id: str) -> Point | None:
        """Return the point right after a record."""
        if id in self.workflow.view.at:
            return Point(self.workflow.generation, self.workflow.view.at[id])
        first = (point for j, point in zip(self.records, self.points, strict=True) if j.envelope.id == id)
        return next(first, None)

    def _checked(self, generation: int, version: int) -> Point:
        if not 0 <= generation <= self.workflow.generation:
            raise self._no_point(f"g{generation}:{version}")
        longest = len(self.workflow.path_at(generation, sys.maxsize))
        if not 0 <= version <= longest:
            raise InvalidMessage(
                f"version {version} does not exist in generation {generation}", path="at",
                remedy=f"it has versions 0 to {longest}",
            )  # fmt: skip
        return Point(generation, version)

    def _until(self, time: float) -> Point:
        before = [point for j, point in zip(self.records, self.points, strict=True) if j.time <= time]
        return before[-1] if before else Point(0, 0)

    def _no_point(self, at: object) -> InvalidMessage:
        w = self.workflow
        return InvalidMessage(
            f"{at!r} is no point of workflow {w.correlation!r}", path="at",
            remedy=f"use a version up to {w.version}, g{w.generation}:{w.version}, a record's id, or an ISO time",
        )  # fmt: skip


def _is_count(text: str) -> bool:
    return text.isdecimal() and len(text) < 19


def raw_of(raw: bytes, index: int) -> bytes:
    """Return the record itself (index -1), or a correction that a `rolled_back` brought with it, as it counts.

    Raises LogTruncated where the record is none that could have brought one.
    """
    if index < 0:
        return raw
    rolled_back = codec.envelope(raw)
    if not isinstance(rolled_back.fact, facts.RolledBack):
        raise LogTruncated(f"a correction is looked for in a record of kind {rolled_back.message_type}")
    fix = codec.decode(bytes(rolled_back.fact.with_inputs[index]))
    return codec.encode(codec.with_changes(fix, id=ids.correction_id(rolled_back.id, index), generation=None))


async def read_workflow(broker: Broker, correlation: str) -> History:
    """Read a workflow through the port. Raises NoSuchWorkflow."""
    follower = Follower(broker, correlation)
    w, read = follower.workflow, list[tuple[Judged, Point]]()
    async for j in follower.read():
        read.append((j, Point(w.generation, w.version)))
    if not read:
        raise NoSuchWorkflow(f"the log holds no workflow {correlation!r}; `refold ps` lists those that are open")
    records, points = zip(*read, strict=True)
    return History(w, records, points, follower.owners)
