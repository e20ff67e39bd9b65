"""How an owner gets the records: at least once, in order, from where it seeks, when they are there."""

from __future__ import annotations

import asyncio

from ...bus.broker import Batch
from .case import Cases
from .stage import Stage, appended, check, equal, item, keys, of, value, values, whole

CASES = Cases()


@CASES.add("Subscription.fetch", "Subscription.seek")
async def a_partition_delivers_nothing_until_seek_says_from_where(stage: Stage) -> None:
    broker, other = await stage.pair()
    await appended(broker, item(0, "k", "a"), item(1, "k", "b"))
    member = await stage.join(other, "a")
    member.sub.seek(0, 0)  # nothing is owned yet as far as the member was told, so this counts for nothing
    await stage.until(lambda: len(member.epochs) == 2, member)
    member.seek(1)
    await member.take(1, 1)
    await appended(broker, item(0, "k", "c"), item(1, "k", "d"))
    await member.take(1, 1)  # by now the records of partition 0 could have come: the member would have judged them
    await member.turn()


@CASES.add("Subscription.fetch", "Subscription.seek")
async def every_record_is_delivered_in_log_order_while_others_append(stage: Stage) -> None:
    broker, other = await stage.pair()
    member = await stage.lone(broker)
    names = [*keys(broker, 0, 2), *keys(broker, 1, 2)]

    async def write(writer: int) -> None:
        for n in range(40):
            records = of(broker, names[(writer + n) % 4], f"{writer}.{n}", f"{writer}+{n}")
            await appended((broker, other)[writer % 2], records)

    writing = [stage.do(write(n)) for n in range(3)]
    for partition in (0, 1):
        member.seek(partition)
    await stage.until(lambda: sum(len(member.waiting(p)) for p in (0, 1)) >= 240, member)
    await asyncio.gather(*writing)
    for partition in (0, 1):
        equal(member.waiting(partition), await whole(other, partition), f"what partition {partition} delivered")


@CASES.add("Subscription.fetch")
async def a_fetch_that_waits_returns_when_something_is_appended_by_anybody(stage: Stage) -> None:
    broker, other = await stage.pair()
    member = await stage.lone(broker)
    member.seek(0)
    equal(await member.turn(max_wait=0), [], "a look at nothing")
    for n, writer in enumerate((broker, other, broker)):
        fetching = stage.do(member.turn(max_wait=10 * stage.subject.patience))
        await asyncio.sleep(0)
        await appended(writer, item(1, "k", f"elsewhere{n}"), item(0, "k", f"r{n}"))
        await fetching
        equal(values(await member.take(0, 1)), [value(f"r{n}")], "what a fetch that waited returned")


@CASES.add("Subscription.fetch")
async def a_fetch_returns_nothing_when_nothing_happens_for_its_time(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    for partition in (0, 1):
        member.seek(partition)
    for max_wait in (0, 0.01, 0.1):
        equal(await member.turn(max_wait=max_wait), [], f"a fetch of {max_wait} s in which nothing happens")


@CASES.add("Subscription.fetch")
async def a_fetch_returns_no_more_records_than_were_asked_for_and_the_rest_comes_next(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, *(item(n % 2, "k", f"r{n}") for n in range(20)))
    member = await stage.lone(broker)
    for partition in (0, 1):
        member.seek(partition)
    while sum(len(member.waiting(p)) for p in (0, 1)) < 20:
        events = await member.turn(max_records=3, max_wait=stage.subject.patience)
        check(events, "a fetch returns nothing while there are records")
    for partition in (0, 1):
        equal(member.waiting(partition), await whole(broker, partition), "what came by threes")


@CASES.add("Subscription.fetch")
async def no_partition_waits_for_ever_behind_a_busy_one(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    await appended(broker, item(1, "k", "quiet"))
    for partition in (0, 1):
        member.seek(partition)
    busy = 0
    while not member.waiting(1):  # the other partition has always more
        if len(member.waiting(0)) + 50 > busy:
            await appended(broker, item(0, "k", *(f"busy{busy + n}" for n in range(100))))
            busy += 100
        await member.turn(max_records=1)
    while not member.waiting(0):
        await member.turn(max_records=1)


@CASES.add("Subscription.seek")
async def seek_goes_back_and_ahead(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    at = await appended(broker, item(0, "k", *(f"r{n}" for n in range(6))))
    for position, first in ((0, 0), (at[2], 2), (0, 0), (at[5], 5), (at[0], 0), (at[4], 4)):
        member.seek(0, position)
        found = await member.take(0, 6 - first)
        equal([r.position for r in found], at[first:], f"what comes after seek({position})")
    member.seek(0, at[5] + 1)
    await appended(broker, item(0, "k", "new"))
    equal(values(await member.take(0, 1)), [value("new")], "what comes after a seek to the end")


@CASES.add("Subscription.pause", "Subscription.resume")
async def a_pause_delivers_nothing_and_resuming_skips_nothing(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    for partition in (0, 1):
        member.seek(partition)
    await appended(broker, item(0, "k", "a"), item(1, "k", "b"))
    await member.take(0, 1)
    await member.take(1, 1)
    member.sub.pause([0])
    for n in range(3):
        await appended(broker, item(0, "k", f"c{n}"), item(1, "k", f"d{n}"))
        await member.take(1, 1)  # by now the records of partition 0 could have come
    await member.turn()
    equal(member.waiting(0), [], "what a paused partition delivered")
    equal(dict(member.sub.owned()), member.epochs, "what the member owns meanwhile")
    member.sub.resume([0, 1])
    equal(values(await member.take(0, 3)), [value(f"c{n}") for n in range(3)], "what came after the pause")
    await appended(broker, item(0, "k", "e"))
    equal(values(await member.take(0, 1)), [value("e")], "what came then")


@CASES.add("Subscription.pause", "Subscription.seek")
async def a_seek_during_a_pause_counts_when_it_ends(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    at = await appended(broker, item(0, "k", "a", "b", "c"))
    member.seek(0)
    member.sub.pause([0, 1])
    member.seek(0, at[1])
    equal(await member.turn(), [], "what a paused partition delivered")
    member.sub.resume([0])
    equal(values(await member.take(0, 2)), [value("b"), value("c")], "what came after the pause")


@CASES.add("Subscription.fetch", "Subscription.pause", "Subscription.seek")
async def a_new_assignment_starts_without_the_seek_and_the_pause_of_the_last(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, item(0, "k", "a"), item(1, "k", "b"))
    member = await stage.lone(broker)
    member.seek(0)
    member.sub.pause([0])
    await member.release(0)
    member.sub.seek(0, 0)
    member.sub.pause([0])
    await appended(broker, item(0, "k", "c"))
    await stage.until(lambda: 0 in member.epochs, member)
    member.seek(1)
    await member.take(1, 1)
    await member.turn()  # the member would have judged a record of partition 0
    member.seek(0)
    equal(values(await member.take(0, 2)), [value("a"), value("c")], "what came after the new seek")


@CASES.add("Subscription.release", "Subscription.fetch")
async def nothing_is_delivered_under_an_epoch_that_has_ended(stage: Stage) -> None:
    broker, other = await stage.pair()
    first = await stage.lone(broker, "a")
    await appended(broker, item(0, "k", *(f"r{n}" for n in range(50))))
    first.seek(0)
    await first.turn(max_records=5)
    old = first.epochs[0]
    await first.release(0)
    second = await stage.join(other, "b")
    await stage.until(lambda: 0 in {**first.epochs, **second.epochs}, first, second)
    owner = first if 0 in first.epochs else second
    owner.seek(0)
    await stage.until(lambda: owner.events and any(isinstance(e, Batch) for e in owner.events[-3:]), first, second)
    check(owner.epochs[0] > old, "the epoch of a partition that was released")
