"""What a group keeps of a partition: replaced as a whole or not at all, by its owner alone, read by anybody."""

from __future__ import annotations

import asyncio

from ...bus.broker import Checkpoint
from .case import Cases
from .member import Member
from .stage import Stage, appended, check, equal, item

CASES = Cases()
SAVES = "Subscription.save_checkpoint"


async def _save(
    member: Member, position: int, changed: dict[bytes, bytes] | None = None, gone: tuple[bytes, ...] = (),
    *, partition: int = 0, anchor: bytes = b"anchor",
) -> None:  # fmt: skip
    epoch = member.epochs[partition]
    saved = await member.sub.save_checkpoint(partition, epoch, position, anchor, changed or {}, gone)
    check(saved is True, f"the owner's checkpoint is answered by {saved}")


@CASES.add("Broker.checkpoint", "Broker.checkpoint_groups", "Broker.positions")
async def without_a_checkpoint_there_is_none(stage: Stage) -> None:
    broker = await stage.open()
    await stage.lone(broker)
    equal(await broker.checkpoint("g", 0), None, "the checkpoint of a group that has none")
    equal(await broker.checkpoint_groups(0), [], "the groups that have a checkpoint")
    equal(await broker.positions("committed", "g"), {0: 0, 1: 0}, "what is committed")


@CASES.add(SAVES, "Broker.checkpoint", "Broker.positions")
async def a_checkpoint_is_there_for_every_reader_when_it_is_saved(stage: Stage) -> None:
    broker, reader = await stage.pair()
    member = await stage.lone(broker)
    odd = {b"": b"", bytes(range(256)): b"\xff\x00", b"k" * 300: b"v" * 70_000}
    await _save(member, 7, odd, anchor=bytes(range(255, -1, -1)))
    equal(await reader.checkpoint("g", 0), Checkpoint(7, bytes(range(255, -1, -1)), odd), "the checkpoint")
    equal(await reader.positions("committed", "g"), {0: 8, 1: 0}, "what is committed")
    many = {b"%d" % n: b"value of %d" % n for n in range(3000)}
    await _save(member, 8, many, tuple(odd))
    equal(await reader.checkpoint("g", 0), Checkpoint(8, b"anchor", many), "a checkpoint of many entries")


@CASES.add(SAVES)
async def changed_entries_are_replaced_gone_ones_removed_and_others_stay(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    await _save(member, 1, {b"a": b"1", b"b": b"1", b"c": b"1"})
    await _save(member, 2, {b"b": b"2", b"d": b"2"}, (b"a", b"unknown"), anchor=b"2")
    wanted = {b"b": b"2", b"c": b"1", b"d": b"2"}
    equal(await broker.checkpoint("g", 0), Checkpoint(2, b"2", wanted), "the checkpoint")
    await _save(member, 3, {b"b": b"3"}, (b"b", b"c"), anchor=b"3")
    equal(await broker.checkpoint("g", 0), Checkpoint(3, b"3", {b"b": b"3", b"d": b"2"}), "one changed and gone")
    await _save(member, 9, anchor=b"")
    equal(await broker.checkpoint("g", 0), Checkpoint(9, b"", {b"b": b"3", b"d": b"2"}), "one of a position alone")
    await _save(member, 10, {}, (b"b", b"d"))
    equal(await broker.checkpoint("g", 0), Checkpoint(10, b"anchor", {}), "one without entries")


@CASES.add(SAVES, "Subscription.release")
async def a_checkpoint_under_an_epoch_that_has_ended_changes_nothing(stage: Stage) -> None:
    broker, other = await stage.pair()
    member = await stage.lone(broker)
    old = member.epochs[0]
    await _save(member, 1, {b"a": b"1", b"b": b"1"})
    before = await broker.checkpoint("g", 0)
    await member.release(0)
    equal(await member.sub.save_checkpoint(0, old, 2, b"late", {b"a": b"2"}, [b"b"]), False, "one after a release")
    await stage.until(lambda: 0 in member.epochs, member)
    for epoch in (old, member.epochs[0] + 1):
        late = await member.sub.save_checkpoint(0, epoch, 2, b"late", {b"a": b"2"}, [b"b"])
        equal(late, False, "one of another epoch")
    equal(await other.checkpoint("g", 0), before, "the checkpoint")
    await _save(member, 2, {b"a": b"3"})
    await member.leave()
    heir = await stage.lone(other, "heir")
    equal(await heir.sub.save_checkpoint(0, old, 5, b"", {b"z": b""}, []), False, "one of an earlier owner's epoch")
    await _save(heir, 3, {}, (b"b",))
    equal(await broker.checkpoint("g", 0), Checkpoint(3, b"anchor", {b"a": b"3"}), "the heir's checkpoint")


@CASES.add(SAVES, "Broker.checkpoint")
async def no_reader_ever_sees_a_part_of_a_checkpoint(stage: Stage) -> None:
    broker, reader = await stage.pair()
    member = await stage.lone(broker)

    async def save() -> None:
        for n in range(1, 31):
            text = b"%d" % n
            changed = {b"k%d" % i: text for i in range(n % 2, 20, 2)} | {b"all": text, b"only" + text: text}
            await _save(member, n, changed, (b"only%d" % (n - 1),), anchor=text)

    saving = stage.do(save())
    position = 0
    while position < 30:
        known = await reader.checkpoint("g", 0)
        if known is not None:
            text = b"%d" % known.position
            here = (known.anchor, known.entries[b"all"], [k for k in known.entries if k.startswith(b"only")])
            equal(here, (text, text, [b"only" + text]), f"parts of the checkpoint at {known.position}")
            newest = {known.entries.get(b"k%d" % i) for i in range(known.position % 2, 20, 2)}
            equal(newest, {text}, f"entries of the checkpoint at {known.position}")
            check(known.position >= position, f"a checkpoint went from {position} back to {known.position}")
            position = known.position
        check(not saving.done() or saving.exception() is None, "a checkpoint was not saved")
        await asyncio.sleep(0)
    await saving  # a reader may see it before its writer is told


@CASES.add(SAVES, "Broker.checkpoint", "Broker.checkpoint_groups")
async def groups_and_partitions_have_checkpoints_of_their_own(stage: Stage) -> None:
    broker, reader = await stage.pair()
    members = {group: await stage.join(broker, "m", group) for group in ("g", "h", "i")}
    await stage.until(lambda: all(len(m.epochs) == 2 for m in members.values()), *members.values())
    for group, position, partition in (("g", 5, 0), ("h", 9, 0), ("i", 7, 0), ("g", 2, 1)):
        await _save(members[group], position, {b"k": group.encode()}, partition=partition)
    equal(await reader.checkpoint_groups(0), ["h", "i", "g"], "the groups, newest position first")
    equal(await reader.checkpoint_groups(1), ["g"], "the groups of another partition")
    equal(await reader.checkpoint("i", 0), Checkpoint(7, b"anchor", {b"k": b"i"}), "a group's checkpoint")
    equal(await reader.positions("committed", "g"), {0: 6, 1: 3}, "what a group has committed")
    equal(await reader.positions("committed", "unknown"), {0: 0, 1: 0}, "what an unknown group has committed")
    await _save(members["g"], 10)
    equal(await reader.checkpoint_groups(0), ["g", "h", "i"], "the groups, newest position first")


@CASES.add("Broker.checkpoint")
async def a_checkpoint_that_was_read_is_the_readers_own(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    changed = {b"a": b"1"}
    await _save(member, 1, changed)
    changed[b"b"] = b"2"
    known = await broker.checkpoint("g", 0)
    check(known is not None, "no checkpoint")
    if known is not None:
        known.entries.clear()
    equal(await broker.checkpoint("g", 0), Checkpoint(1, b"anchor", {b"a": b"1"}), "the checkpoint")
    await _save(member, 2, {b"c": b""})
    equal(known and known.position, 1, "a checkpoint that was read before")


@CASES.add(SAVES, "Broker.append")
async def a_checkpoint_is_no_record(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    member.seek(0)
    before = await broker.positions("end")
    await _save(member, 1, {b"a": b"1"})
    equal(await broker.positions("end"), before, "the ends of the log after a checkpoint")
    (at,) = await appended(broker, item(0, None, "a"))
    equal([r.position for r in await member.take(0, 1)], [at], "what is delivered")
