"""Everything that gave up and that nobody has dealt with: found by a scan of the log for dead letters and errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from msgspec import Struct

from ..bus import codec, kinds
from ..bus.broker import Broker
from ..bus.errors import NoSuchWorkflow
from .history import History, read_workflow
from .view import Handling

MARKS = (f'"{kinds.DEAD_LETTERED}"'.encode(), f'"{kinds.ERROR_REPORT}"'.encode())


class DeadLetter(Struct, frozen=True):
    """A handling that gave up. `holds`: it blocks what comes after it for this agent in this workflow."""

    workflow: str
    agent: str
    message: str
    kind: str
    error: str
    time: float
    round: int
    holds: bool


async def dead_letters(
    broker: Broker, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> list[DeadLetter]:
    """Return what gave up, oldest first. Reads the whole log: `on_progress(records read, records)`."""
    begin, end = await broker.positions("begin"), await broker.positions("end")
    total = sum(end[p] - begin[p] for p in end) // broker.meta.stride
    done, workflows = 0, dict[str, None]()
    for partition in end:
        start: int | None = begin[partition]
        while start is not None:
            page = await broker.read(partition, start)
            done += len(page.records)
            for stored in page.records:
                if stored.key is not None and any(mark in stored.value for mark in MARKS):
                    workflows[stored.key] = None
            on_progress(done, total)
            start = page.next
    found: list[DeadLetter] = []
    for workflow in workflows:
        with contextlib.suppress(NoSuchWorkflow):  # its only record is a stray
            found += of(await read_workflow(broker, workflow))
    return sorted(found, key=lambda d: d.time)


def of(history: History) -> list[DeadLetter]:
    """Return the dead letters of one workflow: those that hold their place, and outside requests that failed.

    A request that a handling asked, here or in a parent workflow, is that handling's to deal with.
    """
    v, out = history.workflow.view, []
    for h in v.all_handlings():
        q = v.requests.get(h.message)
        failed = bool(h.closed) and h.end in (kinds.DEAD_LETTERED, kinds.ERROR_REPORT)
        if h.key in v.holding or (failed and q is not None and q.asker is None and q.origin is None):
            error, time = _reason(history, h)
            out.append(
                DeadLetter(history.correlation, h.agent, h.message, h.kind, error, time, h.round, h.key in v.holding)
            )
    return out


def _reason(history: History, h: Handling) -> tuple[str, float]:
    for j in reversed(history.records):
        r = j.envelope
        ends = r.message_type in (kinds.DEAD_LETTERED, kinds.ERROR_REPORT)
        if ends and r.sender_id == h.agent and r.work is not None and r.work.message == h.message:
            return str(codec.shown(j.value)), j.time
    return "", 0.0
