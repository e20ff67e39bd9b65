"""The whole of one workflow, read once: its records with their verdicts, its state at any point."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from ..bus import codec, facts, ids, kinds
from ..bus.broker import Broker
from ..bus.errors import InvalidMessage, NoSuchWorkflow
from ..bus.message import Envelope
from .follow import Follower, Judged
from .patch import merge_patch
from .view import Entry
from .workflow import Workflow

At = int | float | str | None


class History:
    """A workflow as it was when it was read; later appends never change it.

    `records` are all of it in log order, refused ones too; `owners` the partition's `owner` records by id.
    """

    def __init__(self, workflow: Workflow, records: tuple[Judged, ...], owners: Mapping[str, Envelope]) -> None:
        self.workflow = workflow
        self.records = records
        self.owners = dict(owners)
        self._by_position = {j.position: j for j in records}

    @property
    def correlation(self) -> str:
        """The workflow's id."""
        return self.workflow.correlation

    def raw(self, entry: Entry) -> bytes:
        """Return the bytes of a record on the path."""
        position, index = entry.ref
        j = self._by_position[position]
        if index < 0:
            return j.value
        assert isinstance(j.envelope.fact, facts.RolledBack)
        fix = codec.decode(bytes(j.envelope.fact.with_inputs[index]))
        changed = codec.with_changes(fix, id=ids.correction_id(j.envelope.id, index), generation=None)
        return codec.encode(changed)

    def path(self, at: At = None) -> list[Entry]:
        """Return the path up to a point: a version (12), generation and version ("g0:12"), a record's id, a time
        (unix seconds as a float, or ISO 8601), None = now. Raises InvalidMessage where there is no such point."""
        generation, version = self._place(at)
        return self.workflow.path_at(generation, version)

    def state(self, at: At = None) -> dict[str, Any]:
        """Return the workflow's state at a point (see `path`): the fold of its `ctx.update`s."""
        state: dict[str, Any] = {}
        for entry in self.path(at):
            if entry.envelope is not None and entry.envelope.message_type == kinds.STATE_CHANGED:
                state = merge_patch(state, codec.payload(self.raw(entry)))
        return state

    def diff(self, before: At, after: At = None) -> dict[str, tuple[Any, Any]]:
        """Return the top-level keys of the state that differ between two points, with both values (None: absent)."""
        a, b = self.state(before), self.state(after)
        return {k: (a.get(k), b.get(k)) for k in sorted({*a, *b}) if a.get(k) != b.get(k)}

    def _place(self, at: At) -> tuple[int, int]:
        w = self.workflow
        if at is None:
            return w.generation, w.version
        if isinstance(at, int):
            return w.generation, self._checked(w.generation, at)
        if isinstance(at, float):
            return w.generation, self._until(at)
        text = at.strip()
        if text.startswith("g") and ":" in text:
            generation, _, version = text[1:].partition(":")
            if generation.isdigit() and version.isdigit() and int(generation) <= w.generation:
                return int(generation), self._checked(int(generation), int(version))
        if text.isdigit():
            return w.generation, self._checked(w.generation, int(text))
        if text in w.view.at:
            return w.generation, w.view.at[text]
        try:
            return w.generation, self._until(datetime.fromisoformat(text).timestamp())
        except ValueError:
            raise InvalidMessage(
                f"{at!r} is no point of workflow {w.correlation!r}", path="at",
                remedy=f"use a version up to {w.version}, g{w.generation}:{w.version}, a record's id, or an ISO time",
            ) from None  # fmt: skip

    def _checked(self, generation: int, version: int) -> int:
        longest = len(self.workflow.path_at(generation, 10**9))
        if not 0 <= version <= longest:
            raise InvalidMessage(
                f"version {version} does not exist in generation {generation}", path="at",
                remedy=f"it has versions 0 to {longest}",
            )  # fmt: skip
        return version

    def _until(self, time: float) -> int:
        path = self.workflow.view.path
        return sum(1 for e in path if self._by_position[e.ref[0]].time <= time)


async def read_workflow(broker: Broker, correlation: str) -> History:
    """Read a workflow through the port. Raises NoSuchWorkflow."""
    follower = Follower(broker, correlation)
    records = tuple([j async for j in follower.read()])
    if not records:
        raise NoSuchWorkflow(f"the log holds no workflow {correlation!r}; `refold ps` lists those that are open")
    return History(follower.workflow, records, follower.owners)
