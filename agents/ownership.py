"""Taking a partition over, keeping a checkpoint of it, and giving it up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..bus import codec, facts, kinds
from ..bus.broker import Appended, Assigned, Fence, Item, Outgoing, Subscription
from ..bus.errors import PartitionLost
from ..bus.message import AgentMessage
from ..projections.checkpoint import changes, restore, verify_anchor
from ..projections.frozen import peek
from ..projections.partition import PartitionFold
from .place import Place

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")

async def take_over(worker: Worker, sub: Subscription, event: Assigned) -> Place:
    """Load the checkpoint, append the `owner` record, and read on from the checkpoint. Raises LogTruncated."""
    partition = event.partition
    fold, own = await _load(worker, partition)
    if worker.is_unwanted(event):
        raise PartitionLost(f"partition {partition} is given up before it was taken over")
    owner = _owner_record(worker, event)
    fence = Fence(worker.group, partition, event.epoch)
    item = Item(partition, None, (Outgoing(owner.id, codec.encode(owner)),))
    (result,) = await worker.broker.append([item], fence)
    if not isinstance(result, Appended):
        raise PartitionLost(f"partition {partition} went to another worker while it was taken over")
    place = Place(partition, event.epoch, fold, owner.id)
    place.owner_position = result.positions[-1]
    place.after_death = event.after_death
    if not own:
        place.distrust_idle()
        place.checkpoint_failed = True  # the group's own checkpoint does not hold what was loaded
    for correlation, entry in fold.entries.items():
        due = peek(entry).due
        if due is not None:
            place.note_due(correlation, due)
    sub.seek(partition, fold.position + 1)
    return place


def _owner_record(worker: Worker, event: Assigned) -> AgentMessage:
    return AgentMessage(
        id=worker.source.new_id(), sender_id=worker.member, receiver_id="*", message_type=kinds.OWNER,
        correlation_id="", timestamp=worker.clock.now(),
        fact=facts.Owner(
            group=worker.group, epoch=event.epoch, member=worker.member, pid=worker.pid, host=worker.host,
            agents={name: agent.kinds for name, agent in worker.agents.items()},
        ),
    )  # fmt: skip


async def _load(worker: Worker, partition: int) -> tuple[PartitionFold, bool]:
    """Return the fold of the group's checkpoint (True), of another group's (False), or an empty one."""
    broker = worker.broker
    fold, leftover = PartitionFold(partition, broker.meta.partitions), set[bytes]()
    for group in [worker.group, *await broker.checkpoint_groups(partition)]:
        checkpoint = await broker.checkpoint(group, partition)
        if checkpoint is None:
            continue
        await verify_anchor(broker, partition, checkpoint)
        if restore(fold, checkpoint):
            fold.stale |= leftover
            return fold, group == worker.group
        if group == worker.group:
            leftover.update(checkpoint.entries)  # or the group's next checkpoint would not be believed either
    fold.stale |= leftover
    return fold, False


async def save_checkpoint(worker: Worker, sub: Subscription, place: Place) -> bool:
    """Save what has changed since the last checkpoint. False when the partition is lost."""
    async with place.saving:  # each one says what changed since the one before
        return await _save(worker, sub, place)


async def _save(worker: Worker, sub: Subscription, place: Place) -> bool:
    fold = place.fold
    news = fold.position > place.saved_position or fold.changed or fold.gone or fold.stale
    if not news or not fold.last_id:
        return True
    whole, place.checkpoint_failed = place.checkpoint_failed, False
    hosted, before = set(worker.agents), fold.changed
    changed, gone = changes(fold, lambda w: place.may_freeze(w, hosted), whole=whole)
    position, anchor = fold.position, fold.last_id.encode()
    try:
        saved = await sub.save_checkpoint(place.partition, place.epoch, position, anchor, changed, gone)
    except BaseException:
        place.checkpoint_failed = True  # whether it was written is not known: all of it, next time
        fold.changed |= before
        fold.stale.update(gone)
        raise
    if saved:
        place.saved_position = position
    return saved


async def say_released(worker: Worker, place: Place) -> None:
    """Append `owner_released`: who comes next knows that this was no death."""
    released = AgentMessage(
        id=worker.source.new_id(), sender_id=worker.member, receiver_id="*", message_type=kinds.OWNER_RELEASED,
        correlation_id="", timestamp=worker.clock.now(),
        fact=facts.OwnerReleased(group=worker.group, epoch=place.epoch, member=worker.member),
    )  # fmt: skip
    item = Item(place.partition, None, (Outgoing(released.id, codec.encode(released)),))
    await worker.broker.append([item])
