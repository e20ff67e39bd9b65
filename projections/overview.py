"""What is open on a log now: read from checkpoints and tails, through the port."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

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


class Overview(Struct, frozen=True):
    """All partitions: open workflows, and how many completed ones are remembered."""

    rows: tuple[Row, ...]
    completed: int
    undecodable: int
    strays: int


async def overview(
    broker: Broker, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> Overview:
    """Read the state of the whole log. `on_progress(partitions read, partitions)`."""
    hosted = {agent for m in await broker.members() for agent in m.presence.agents}
    rows: list[Row] = []
    completed = undecodable = strays = 0
    n = broker.meta.partitions
    for partition in range(n):
        fold = await read_partition(broker, partition)
        completed += len(fold.stubs)
        undecodable += fold.undecodable
        strays += len(fold.strays)
        rows += [_row(w, partition, hosted) for w in open_workflows(fold)]
        on_progress(partition + 1, n)
    return Overview(tuple(rows), completed, undecodable, strays)


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
