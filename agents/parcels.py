"""Carrying what one workflow owes another, and moving strays to where they belong."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..bus import codec, facts, kinds
from ..bus.broker import Appended, Duplicate, Fenced, Item, Outgoing
from ..bus.errors import PartitionLost, TooLarge, UndecodableRecord
from ..bus.message import AgentMessage
from ..bus.partition import partition_of
from ..bus.rules import check_size
from ..projections.checkpoint import read_history
from ..projections.ledger import Duty
from ..projections.workflow import Workflow
from .delivery import Read, mark, message_for
from .place import Place

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")


async def deliver(worker: Worker, place: Place, correlations: Iterable[str]) -> None:
    """Append what these workflows owe to others, then the marks. Raises PartitionLost, BrokerUnavailable."""
    copies: list[Item] = []
    marks: list[Item] = []
    sent: list[tuple[str, str, int, bool]] = []
    try:
        for correlation in correlations:
            w = place.find(correlation)
            if w is None:
                continue
            own = []
            for duty in w.duties():
                name = (correlation, duty.subject, duty.n, duty.what == "cancel")
                if duty.agent not in worker.agents or name in place.delivering:
                    continue
                place.delivering.add(name)
                sent.append(name)
                now = place.now(worker.clock.now())
                copy = await _copy(worker, place, w, duty, now)
                if copy is None:
                    sent.pop()  # it stays in `delivering`: it is not tried again
                else:
                    copies.append(copy)
                    own.append(mark(duty, w, now))
            marks += _marks(place, w, own, worker.broker.meta.max_append)
        for items in (copies, marks):
            if items:
                results = await worker.broker.append(items, place.fence(worker.group))
                if any(isinstance(r, Fenced) for r in results):
                    worker.fenced += 1
                    raise PartitionLost("the partition has gone to another worker")
                assert all(isinstance(r, Appended | Duplicate) for r in results)
    except BaseException:
        place.delivering.difference_update(sent)
        raise


def _reader(worker: Worker, place: Place) -> Read:
    async def read(ref: tuple[int, int]) -> bytes:
        return await worker.records.read(place.partition, ref)

    return read


async def _copy(worker: Worker, place: Place, w: Workflow, duty: Duty, now: float) -> Item | None:
    """Return what to append to the other workflow; None where that cannot be: somebody's own bytes, not an agent's."""
    meta = worker.broker.meta
    try:
        message = await message_for(duty, w, _reader(worker, place), now)
        raw = codec.encode(message)
        check_size(raw, meta)
    except (UndecodableRecord, TooLarge) as error:
        log.error("record %s of workflow %s cannot be delivered to %s: %s", duty.subject, w.correlation, duty.to, error)
        return None
    target = partition_of(message.correlation_id, meta.partitions)
    return Item(target, message.correlation_id, (Outgoing(message.id, raw),))


def _marks(place: Place, w: Workflow, marks: list[AgentMessage], limit: int) -> list[Item]:
    """Return the marks in as few appends as the log takes."""
    items: list[list[Outgoing]] = []
    size = limit
    for out in (Outgoing(m.id, codec.encode(m)) for m in marks):
        size += len(out.value)
        if size > limit:
            items.append([])
            size = len(out.value)
        items[-1].append(out)
    return [Item(place.partition, w.correlation, tuple(some)) for some in items]


async def forward_strays(worker: Worker, place: Place) -> None:
    """Append the partition's misplaced records where they belong, and mark them (semantics, section 1)."""
    for position in list(place.fold.strays):
        raw = await worker.records.read(place.partition, (position, -1))
        try:
            r = codec.envelope(raw)
        except UndecodableRecord:
            continue
        target = partition_of(r.correlation_id, worker.broker.meta.partitions)
        known = position <= place.owner_position and await _is_there(worker, r.correlation_id, r.id)
        mark = AgentMessage(
            id=worker.source.new_id(), sender_id=worker.member, receiver_id="*", message_type=kinds.FORWARDED,
            correlation_id="", timestamp=worker.clock.now(),
            fact=facts.Forwarded(position=position, correlation_id=r.correlation_id),
        )  # fmt: skip
        moved = Item(target, r.correlation_id, (Outgoing(r.id, raw),))
        marked = Item(place.partition, None, (Outgoing(mark.id, codec.encode(mark)),))
        for item in [marked] if known else [moved, marked]:
            (result,) = await worker.broker.append([item], place.fence(worker.group))
            if isinstance(result, Fenced):
                raise PartitionLost("the partition has gone to another worker")
        place.fold.strays.pop(position, None)
        log.info("record %s was in partition %d, now in %d", r.id, place.partition, target)


async def _is_there(worker: Worker, correlation: str, id: str) -> bool:
    for stored in await read_history(worker.broker, correlation):
        try:
            if stored.key is not None and codec.envelope(stored.value).id == id:
                return True
        except UndecodableRecord:
            continue
    return False
