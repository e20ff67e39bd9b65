"""What is open on a log now: read from checkpoints and tails, through the port."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from msgspec import Struct

from ..bus.broker import Broker, Presence
from .checkpoint import read_history, read_partition
from .partition import PartitionFold
from .status import Report, Status, Wait, report
from .workflow import Workflow

MANY = 500


class Row(Struct, frozen=True):
    """One workflow that is not complete. `since` and `changed` are when the log took its first and its last record."""

    workflow: str
    partition: int
    status: Status
    version: int
    agents: tuple[str, ...]
    waits: tuple[Wait, ...]
    blocked: tuple[str, ...]
    unclaimed: tuple[str, ...]
    since: float
    changed: float


class Overview(Struct, frozen=True):
    """All partitions: open workflows, and how many completed ones are remembered."""

    rows: tuple[Row, ...]
    completed: int
    undecodable: int
    strays: int


async def overview(broker: Broker, on_progress: Callable[[int, int], None] = lambda done, of: None) -> Overview:
    """Read the state of the whole log. `on_progress(partitions read, partitions)`."""
    presences = [m.presence for m in await broker.members()]
    rows: list[Row] = []
    completed = undecodable = strays = 0
    n = broker.meta.partitions
    for partition in range(n):
        fold = await read_partition(broker, partition)
        completed += len(fold.stubs)
        undecodable += fold.undecodable
        strays += len(fold.strays)
        rows += await _rows(broker, fold, presences)
        on_progress(partition + 1, n)
    return Overview(tuple(rows), completed, undecodable, strays)


async def _rows(broker: Broker, fold: PartitionFold, presences: list[Presence]) -> list[Row]:
    workflows = await open_workflows(broker, fold)
    hosted, elsewhere = hosting(presences, fold.partition)
    times = await _times(broker, fold.partition, workflows)
    rows = []
    for w in workflows:
        r = report(w, hosted)
        agents = tuple(dict.fromkeys(h.agent for h in w.open_handlings()))
        blocked = _blocked(r, fold.partition, [a for a in agents if a in elsewhere])
        rows.append(
            Row(
                w.correlation, fold.partition, r.status, r.version, agents, tuple(r.waits), blocked,
                tuple(r.unclaimed), times[w.first], times[w.last],
            )
        )  # fmt: skip
    return rows


async def open_workflows(broker: Broker, fold: PartitionFold) -> list[Workflow]:
    """Return the workflows that are not complete, and those with a message for an agent that nobody ever hosted."""
    unclaimed = dict.fromkeys(c for by_agent in fold.unclaimed.values() for c in by_agent)
    for correlation in unclaimed.keys() - {*fold.live, *fold.entries, *fold.recent}:
        fold.restore(correlation, await read_history(broker, correlation))
    found = [w for c in [*fold.live, *fold.entries] if (w := fold.find(c)) is not None]
    completed = [w for c in unclaimed if (w := fold.recent.get(c)) is not None]
    return found + [w for w in completed if w.view.all_unclaimed()]


def hosting(presences: Iterable[Presence], partition: int) -> tuple[set[str], set[str]]:
    """Return the agents that somebody hosts in this partition now, and those that are hosted only elsewhere.

    A partition that nobody of the agent's group claims at this moment is on its way to one of them.
    """
    groups: dict[str, list[Presence]] = {}
    for p in presences:
        groups.setdefault(p.group, []).append(p)
    here: set[str] = set()
    for members in groups.values():
        owners = [p for p in members if partition in p.partitions]
        here |= {agent for p in owners or members for agent in p.agents}
    return here, {agent for members in groups.values() for p in members for agent in p.agents} - here


def _blocked(r: Report, partition: int, elsewhere: list[str]) -> tuple[str, ...]:
    here = f"no worker here: that of partition {partition} lacks"
    told = {f"no worker hosts {a!r} now": f"{here} {a!r}" for a in elsewhere}
    return tuple(told.get(reason, reason) for reason in r.blocked)


async def _times(broker: Broker, partition: int, workflows: list[Workflow]) -> dict[int, float]:
    positions = sorted({position for w in workflows for position in (w.first, w.last)})
    times: dict[int, float] = {}
    for i in range(0, len(positions), MANY):
        times |= {s.position: s.time for s in await broker.read_at(partition, positions[i : i + MANY])}
    return times
