"""What a log and its views say in the end: in words that do not depend on process ids, times and random ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refold.brokers import open_broker
from refold.bus import codec, kinds
from refold.bus.broker import Broker
from refold.bus.errors import LogMissing
from refold.projections.history import History, read_workflow
from refold.projections.overview import overview
from refold.projections.store import ProjectionStore
from refold.projections.verdict import Verdict

from .place import url_of

Ending = dict[str, Any]
UNEVEN = frozenset({kinds.ATTEMPT_STARTED})
"""A crash adds these to the path: they say that there was one."""
REFUSED = (Verdict.INVALID, Verdict.CONFLICT, Verdict.MISPLACED)


async def ending_of(folder: Path) -> Ending:
    """Read the log of a folder, and its views where there are some. Raises LogMissing."""
    async with open_broker(url_of(folder)) as broker:
        await broker.ensure_log(create=False)
        ids, names = await _ids(broker)
        histories = [await read_workflow(broker, name) for name in names]
        end: Ending = {
            "workflows": sorted((_path(h) for h in histories), key=repr),
            "ids": ids,
            "outcomes": [r.fact.effect for h in histories for j in h.records
                         if (r := j.envelope).message_type in kinds.OUTCOMES],
            "refused": [f"{j.envelope.message_type} is {j.verdict}" for h in histories for j in h.records
                        if j.verdict in REFUSED],
            "open": [row.workflow for row in (await overview(broker)).rows],
            "views": await _views(folder, broker.meta.log_id),
        }  # fmt: skip
        return end


async def _ids(broker: Broker) -> tuple[list[str], list[str]]:
    ids, names = [], dict[str, None]()
    for partition in range(broker.meta.partitions):
        start: int | None = 0
        while start is not None:
            page = await broker.read(partition, start)
            for stored in page.records:
                ids.append(f"{partition} {codec.envelope(stored.value).id}")
                if stored.key is not None:
                    names[stored.key] = None
            start = page.next
    return ids, list(names)


def _path(history: History) -> list[list[Any]]:
    """The path: who wrote what for whom, at which step, with which payload."""
    out = []
    for entry in history.path():
        r = entry.envelope
        assert r is not None
        fact = r.fact
        passing = r.message_type == kinds.EFFECT_FAILED and not fact.final
        if r.message_type not in UNEVEN and not passing:
            step, done = (r.work.step, r.work.done) if r.work is not None else ("", False)
            out.append([r.message_type, r.sender_id, r.receiver_id, step, done, codec.payload(history.raw(entry))])
    return out


async def _views(folder: Path, log_id: str) -> Any:
    try:
        async with ProjectionStore.open(folder / "views.db", log_id, create=False) as store:
            return {slot.projection: [[k, v] for k, v in await store.items(slot.projection)]
                    for slot in await store.projections()}  # fmt: skip
    except LogMissing:
        return None
