"""A checkpoint's layout: what a group keeps of a partition, in pieces of which only those that changed are written."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Iterable

import msgspec
from msgspec import Struct

from ..bus.broker import RULES, Broker, Checkpoint, Stored
from ..bus.codec import envelope
from ..bus.errors import LogTruncated, UndecodableRecord
from ..bus.facts import Owner
from ..bus.ids import record_key
from .partition import Folded, PartitionFold, Shared
from .segments import KEY_SIZE, NONE, join, split, split_entry
from .stubs import Stub
from .workflow import Workflow

CHECKPOINT_FORMAT = 6
HEAD = b"head"
STUBS = b"stubs"
"""A number of four bytes follows. Keys of workflows have 16 bytes, those of their segments 32."""
SETTLED = 16
"""So many workflows are touched before those that are complete become stubs: as objects they are what the garbage
collector walks through; with a thousand records at once that was a fifth of a rebuild."""
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
    segments = {k: kept.pop(k) for k in list(kept) if len(k) == KEY_SIZE}
    stubs = [s for k in list(kept) if _holds_stubs(k) for s in _stubs.decode(kept.pop(k))]
    entries = [join(part, segments) for part in kept.values()]
    whole = [entry for entry in entries if entry is not None]
    used = sum(len(keys) for _, keys in whole)
    if (len(whole), len(stubs), used) != (head.open, head.stubs, len(segments)):
        return False
    fold.load(head.shared, stubs, whole, checkpoint.position, checkpoint.anchor.decode())
    return True


def _holds_stubs(key: bytes) -> bool:
    return key.startswith(STUBS) and len(key) == len(STUBS) + 4


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
    parts: dict[bytes, bytes] = {}
    for correlation in names:
        if correlation in fold.entries or correlation in fold.live:
            parts |= _parts(fold, correlation, idle, whole=whole)
    for correlation in fold.gone:
        if (key := record_key(correlation)) not in parts:
            fold.stale |= {key, *fold.segments.pop(correlation, ())}
    parts[HEAD] = msgspec.msgpack.encode(_head_of(fold))
    for n, stubs in fold.stubs.take_changed(everything=whole).items():
        key = STUBS + n.to_bytes(4, "big")
        if stubs:
            parts[key] = msgspec.msgpack.encode(stubs)
        else:
            fold.stale.add(key)
    gone = sorted(fold.stale - parts.keys())
    fold.changed, fold.gone, fold.stale, fold.written = set(), set(), set(), fold.position
    return {key: _sealed(key, part) for key, part in parts.items()}, gone


def _parts(
    fold: PartitionFold, correlation: str, idle: Callable[[Workflow], bool], *, whole: bool
) -> dict[bytes, bytes]:
    """Return what of an entry is not stored as it is now; what it leaves behind becomes stale."""
    before, entry = fold.segments.pop(correlation, NONE), fold.entries.get(correlation)
    stored = NONE if whole else before
    if entry is not None:
        found = split_entry(entry, stored)
    else:
        w = fold.live[correlation]
        found = split(w, stored, idle=idle(w))
    fold.stale |= before - found.keys
    if found.keys:
        fold.segments[correlation] = found.keys
    return {record_key(correlation): found.head, **found.new}


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
        async for _ in fold_records(broker, fold, page.records):
            pass
        on_progress(len(page.records))
        start = page.next
    return fold


async def _fits(broker: Broker, partition: int, checkpoint: Checkpoint) -> bool:
    try:
        await verify_anchor(broker, partition, checkpoint)
    except LogTruncated:
        return False
    return True


async def fold_records(broker: Broker, fold: PartitionFold, records: Iterable[Stored]) -> AsyncIterator[Folded]:
    """Fold records in order, with their workflows' earlier ones where those are needed; yield each as it is folded.

    Bytes that are no record are left out. What is complete when the last one is folded is a stub then.
    """
    touched: dict[str, None] = {}
    for stored in records:
        if len(touched) >= SETTLED:
            settle(fold, touched)
            touched.clear()
        r = fold.open_envelope(stored)
        if r is None:
            continue
        for correlation in fold.missing(r):
            fold.restore(correlation, await read_history(broker, correlation))
        folded = fold.fold(stored, r)
        if folded.workflow is not None:
            touched[r.correlation_id] = None
        elif isinstance(r.fact, Owner):
            touched |= dict.fromkeys(fold.claimed)
        yield folded
    settle(fold, touched)


def settle(fold: PartitionFold, touched: Iterable[str]) -> None:
    """Keep only stubs of those workflows that are complete."""
    for correlation in touched:
        w = fold.live.get(correlation)
        if w is not None:
            fold.settle(w)
