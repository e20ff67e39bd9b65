"""What is open on a log now, and what has failed: read from checkpoints and tails, through the port."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from ..bus import kinds
from ..bus.broker import Broker
from .checkpoint import read_partition
from .partition import PartitionFold
from .status import Status, Wait, report
from .workflow import Workflow


class Row(Struct, frozen=True):
    """One workflow that is not complete."""

    workflow: str
    partition: int
    status: Status
    version: int
    agents: tuple[str, ...]
    waits: tuple[Wait, ...]
    blocked: tuple[str, ...]
    unclaimed: tuple[str, ...]


class DeadLetter(Struct, frozen=True):
    """A handling that gave up and whose failure nobody has dealt with. It holds its place where `holds`."""

    workflow: str
    partition: int
    agent: str
    message: str
    kind: str
    error: str
    round: int
    holds: bool


class Overview(Struct, frozen=True):
    """All partitions: open workflows, dead letters that hold their place, how many completed are remembered."""

    rows: tuple[Row, ...]
    dead: tuple[DeadLetter, ...]
    completed: int
    undecodable: int
    strays: int


async def overview(
    broker: Broker, *, dead_only: bool = False, on_progress: Callable[[int, int], None] = lambda done, all: None
) -> Overview:
    """Read the state of the whole log. `on_progress(partitions read, partitions)`."""
    hosted = {agent for m in await broker.members() for agent in m.presence.agents}
    rows: list[Row] = []
    dead: list[DeadLetter] = []
    completed = undecodable = strays = 0
    n = broker.meta.partitions
    for partition in range(n):
        fold = await read_partition(broker, partition)
        completed += len(fold.stubs)
        undecodable += fold.undecodable
        strays += len(fold.strays)
        for w in open_workflows(fold):
            if not dead_only:
                rows.append(_row(w, partition, hosted))
            dead += dead_letters(w, partition)
        on_progress(partition + 1, n)
    return Overview(tuple(rows), tuple(dead), completed, undecodable, strays)


def open_workflows(fold: PartitionFold) -> list[Workflow]:
    """Return the workflows that are not complete, or wait for an agent that nobody has ever hosted."""
    found = [w for c in [*fold.live, *fold.entries] if (w := fold.find(c)) is not None]
    unclaimed = {c for by_agent in fold.unclaimed.values() for c in by_agent}
    return found + [w for c, w in fold.recent.items() if c in unclaimed]


def _row(w: Workflow, partition: int, hosted: set[str]) -> Row:
    r = report(w, hosted)
    agents = tuple(dict.fromkeys(h.agent for h in w.open_handlings()))
    return Row(
        w.correlation, partition, r.status, r.version, agents, tuple(r.waits), tuple(r.blocked), tuple(r.unclaimed)
    )


def dead_letters(w: Workflow, partition: int) -> list[DeadLetter]:
    """Return the dead letters of a workflow: those that hold their place, and requests that failed for good."""
    out = []
    for h in w.view.all_handlings():
        holds = h.key in w.view.holding
        failed = h.closed and h.end in (kinds.DEAD_LETTERED, kinds.ERROR_REPORT) and not h.discarded
        q = w.view.requests.get(h.message)
        if holds or (failed and q is not None and q.asker is None):
            out.append(DeadLetter(w.correlation, partition, h.agent, h.message, h.kind, h.end, h.round, holds))
    return out
