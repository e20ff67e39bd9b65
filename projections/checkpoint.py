"""A checkpoint's layout: what a group keeps of a partition, in pieces of which only those that changed are written."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import msgspec
from msgspec import Struct

from ..bus.broker import RULES, Broker, Checkpoint, Stored
from ..bus.codec import envelope
from ..bus.errors import LogTruncated, UndecodableRecord
from ..bus.facts import Owner
from ..bus.ids import record_key
from .frozen import freeze
from .partition import Folded, PartitionFold, Shared
from .stubs import Stub
from .workflow import Workflow

CHECKPOINT_FORMAT = 4
HEAD = b"head"
STUBS = b"stubs"
_stubs = msgspec.msgpack.Decoder(list[Stub])


class Head(Struct, array_like=True):
    """What a checkpoint keeps besides the workflows. Another format or rules number: it is not used.

    The rest says what belongs to it: where it stands, how many workflows are `open` in it and how many `stubs` it has.
    """

    format: int
    rules: int
    shared: Shared
    position: int
    anchor: bytes
    open: int
    stubs: int


def restore(fold: PartitionFold, checkpoint: Checkpoint) -> bool:
    """Load a checkpoint into an empty fold; False, and nothing is changed, where it is of another format or other
    rules, or is not what was written."""
    head = _head(checkpoint)
    parts = {k: _opened(k, v) for k, v in checkpoint.entries.items() if k != HEAD} if head is not None else {}
    kept = {k: part for k, part in parts.items() if part is not None}
    if head is None or len(kept) < len(parts):
        return False
    entries = [part for k, part in kept.items() if not k.startswith(STUBS)]
    stubs = [s for k, part in kept.items() if k.startswith(STUBS) for s in _stubs.decode(part)]
    if (len(entries), len(stubs)) != (head.open, head.stubs):
        return False
    fold.load(head.shared, stubs, entries, checkpoint.position, checkpoint.anchor.decode())
    return True


def _head(checkpoint: Checkpoint) -> Head | None:
    raw = _opened(HEAD, checkpoint.entries.get(HEAD, b""))
    try:
        head = msgspec.msgpack.decode(raw or b"", type=Head)
    except msgspec.MsgspecError:
        return None
    known = (head.format, head.rules) == (CHECKPOINT_FORMAT, RULES)
    return head if known and (head.position, head.anchor) == (checkpoint.position, checkpoint.anchor) else None


def _sealed(key: bytes, part: bytes) -> bytes:
    """Return a part with its checksum, which tells a part that was damaged, or stands in another's place."""
    return zlib.crc32(part, zlib.crc32(key)).to_bytes(4, "big") + part


def _opened(key: bytes, sealed: bytes) -> bytes | None:
    part = sealed[4:]
    return part if _sealed(key, part) == sealed else None


def changes(
    fold: PartitionFold, idle: Callable[[Workflow], bool], *, whole: bool = False
) -> tuple[dict[bytes, bytes], list[bytes]]:
    """Return what changed since the last call: entries to write, and keys to remove. `whole` writes everything.

    `idle` says whether a workflow's runs only wait.
    """
    names = sorted(fold.changed | set(fold.live) | set(fold.entries) if whole else fold.changed)
    changed: dict[bytes, bytes] = {}
    for correlation in names:
        entry = fold.entries.get(correlation)
        if entry is None and correlation in fold.live:
            w = fold.live[correlation]
            entry = freeze(w, idle=idle(w))
        if entry is not None:
            key = record_key(correlation)
            changed[key] = _sealed(key, entry)
    gone = [key for c in sorted(fold.gone) if (key := record_key(c)) not in changed]
    fold.changed, fold.gone = set(), set()
    changed[HEAD] = _sealed(HEAD, msgspec.msgpack.encode(_head_of(fold)))
    for n, stubs in fold.stubs.take_changed(everything=whole).items():
        key = STUBS + n.to_bytes(4, "big")
        if stubs:
            changed[key] = _sealed(key, msgspec.msgpack.encode(stubs))
        else:
            gone.append(key)
    return changed, gone


def _head_of(fold: PartitionFold) -> Head:
    open_ = len({*fold.live, *fold.entries})
    return Head(CHECKPOINT_FORMAT, RULES, fold.shared(), fold.position, fold.last_id.encode(), open_, len(fold.stubs))


async def verify_anchor(broker: Broker, partition: int, checkpoint: Checkpoint) -> None:
    """The log must still hold the record that was folded last, or `restore` refuses it anyway. Raises LogTruncated."""
    if checkpoint.position <= 0 or not checkpoint.anchor or _head(checkpoint) is None:
        return
    try:
        (stored,) = await broker.read_at(partition, [checkpoint.position])
        found = envelope(stored.value).id
    except (LogTruncated, UndecodableRecord):
        found = "nothing"
    if found != checkpoint.anchor.decode():
        raise LogTruncated(
            f"partition {partition} holds {found} at {checkpoint.position}, where {checkpoint.anchor.decode()} had "
            "been folded: the log was truncated, restored or recreated. Compare it with its backup; to go on with "
            "the log as it is, use another --group"
        )


async def read_history(broker: Broker, correlation: str) -> list[Stored]:
    """Return all records of a workflow, and its partition's own."""
    records: list[Stored] = []
    after: int | None = 0
    while after is not None:
        page = await broker.read_workflow(correlation, after=after)
        records += page.records
        after = page.next
    return records


async def read_partition(
    broker: Broker, partition: int, on_progress: Callable[[int], None] = lambda folded: None
) -> PartitionFold:
    """Return the fold of a partition as the log has it now: the newest checkpoint that fits it, and the tail."""
    fold = PartitionFold(partition, broker.meta.partitions)
    for group in await broker.checkpoint_groups(partition):
        checkpoint = await broker.checkpoint(group, partition)
        if checkpoint is not None and await _fits(broker, partition, checkpoint) and restore(fold, checkpoint):
            break
    start: int | None = fold.position + 1
    while start is not None:
        page = await broker.read(partition, start)
        for stored in page.records:
            await fold_stored(broker, fold, stored)
        on_progress(len(page.records))
        start = page.next
    return fold


async def _fits(broker: Broker, partition: int, checkpoint: Checkpoint) -> bool:
    try:
        await verify_anchor(broker, partition, checkpoint)
    except LogTruncated:
        return False
    return True


async def fold_stored(broker: Broker, fold: PartitionFold, stored: Stored) -> Folded | None:
    """Fold one record, with the workflow's earlier ones where they are needed; None for bytes that are no record."""
    r = fold.open_envelope(stored)
    if r is None:
        return None
    for correlation in fold.missing(r):
        fold.restore(correlation, await read_history(broker, correlation))
    folded = fold.fold(stored, r)
    touched = fold.claimed if isinstance(r.fact, Owner) else [r.correlation_id]
    for correlation in touched:
        if correlation in fold.live:
            fold.settle(fold.live[correlation])
    return folded
