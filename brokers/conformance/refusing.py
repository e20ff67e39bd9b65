"""What a broker refuses early: where it claims to, it does; where it does not, nothing is refused."""

from __future__ import annotations

import asyncio

from ...bus.broker import Appended, Conflict, Duplicate, Fence, Fenced
from .case import Cases
from .stage import Stage, appended, check, equal, item, keys, of, positions_of, value, values, whole

CASES = Cases()


# ---- compare and append --------------------------------------------------------------------------------------------
@CASES.add("Broker.append", claims="compare_and_append")
async def an_append_behind_what_its_writer_has_not_seen_is_a_conflict_and_names_it(stage: Stage) -> None:
    broker, other = await stage.pair()
    key, neighbour = keys(broker, 0, 2)
    (first,) = await appended(broker, of(broker, key, "a", after=0))
    (last,) = await appended(other, of(broker, key, "b", after=first))
    await appended(other, of(broker, neighbour, "c"))
    for n, after in enumerate((0, first)):
        refused = await broker.append([of(broker, key, f"x{n}", after=after)])
        equal(refused, [Conflict(last)], f"an append after {after}")
    equal(values(await whole(broker, 0)), [value(id) for id in "abc"], "the log after conflicts")
    await appended(broker, of(broker, key, "d", after=last))
    await appended(broker, of(broker, key, "e", after=10**9), of(broker, key, "f"))


@CASES.add("Broker.append", claims="compare_and_append")
async def a_conflict_concerns_its_key_in_its_partition_and_its_item_alone(stage: Stage) -> None:
    broker = await stage.open()
    key, neighbour, third = keys(broker, 0, 3)
    await appended(broker, of(broker, key, "a"), item(1, neighbour, "stray"), item(0, None, "own"))
    call = [of(broker, neighbour, "b", after=0), of(broker, key, "x", after=0), of(broker, third, "c", after=0)]
    first, conflict, last = await broker.append(call)
    check(isinstance(first, Appended) and isinstance(last, Appended), f"items beside a conflict: {first}, {last}")
    check(isinstance(conflict, Conflict), f"an append behind a later record: {conflict}")
    equal(values(await whole(broker, 0))[2:], [value("b"), value("c")], "what was appended beside a conflict")


@CASES.add("Broker.append", "Broker.append_raw", claims="compare_and_append")
async def raw_records_and_those_of_the_same_call_count_for_a_conflict(stage: Stage) -> None:
    broker = await stage.open()
    key, other = keys(broker, 0, 2)
    (raw,) = await broker.append_raw(0, [(key, b"raw")])
    equal(await broker.append([of(broker, key, "a", after=0)]), [Conflict(raw)], "an append behind a raw record")
    first, second = await broker.append([of(broker, other, "b", after=0), of(broker, other, "c", after=0)])
    equal(second, Conflict(positions_of(first)[0]), "the second of two appends after 0 in a call")


@CASES.add("Broker.append", claims="compare_and_append")
async def of_writers_that_saw_the_same_one_wins(stage: Stage) -> None:
    brokers = await stage.pair()
    (key,) = keys(brokers[0], 0, 1)
    last = 0
    for turn in range(5):
        calls = (brokers[n % 2].append([of(brokers[0], key, f"{turn}.{n}", after=last)]) for n in range(6))
        results = [r for (r,) in await asyncio.gather(*calls)]
        won = [p for r in results for p in positions_of(r)]
        equal(len(won), 1, "how many of six won")
        last = won[0]
        lost = [r for r in results if not isinstance(r, Appended)]
        equal(lost, [Conflict(last)] * 5, "what the others are told")


@CASES.add("Broker.append", disclaims="compare_and_append")
async def a_broker_that_does_not_compare_appends_whatever_the_writer_saw(stage: Stage) -> None:
    broker = await stage.open()
    (key,) = keys(broker, 0, 1)
    for n in range(3):
        await appended(broker, of(broker, key, f"r{n}", after=0))
    equal(len(await whole(broker, 0)), 3, "records appended after 0")


# ---- duplicates ----------------------------------------------------------------------------------------------------
@CASES.add("Broker.append", claims="refuse_duplicates")
async def an_id_that_is_there_is_refused_with_its_position(stage: Stage) -> None:
    broker, other = await stage.pair()
    (key,) = keys(broker, 0, 1)
    at = await appended(broker, of(broker, key, "a", "b"), item(0, None, "own"))
    equal(await broker.append([of(broker, key, "a")]), [Duplicate(at[0])], "an append that was tried again")
    equal(await other.append([of(broker, key, "b")]), [Duplicate(at[1])], "the same append by another broker")
    equal(await other.append([item(0, None, "own")]), [Duplicate(at[2])], "a partition's own record, again")
    equal(await broker.append([of(broker, key, "new", "b", "a")]), [Duplicate(at[1])], "an item with known records")
    equal(values(await whole(broker, 0)), [value(id) for id in ("a", "b", "own")], "the log after duplicates")


@CASES.add("Broker.append", claims="refuse_duplicates")
async def a_duplicate_concerns_its_key_in_its_partition_and_its_item_alone(stage: Stage) -> None:
    broker = await stage.open()
    key, neighbour = keys(broker, 0, 2)
    (at,) = await appended(broker, of(broker, key, "a"))
    first, again, last = await broker.append([of(broker, key, "b"), of(broker, key, "a"), of(broker, key, "c")])
    check(isinstance(first, Appended) and isinstance(last, Appended), f"items beside a duplicate: {first}, {last}")
    equal(again, Duplicate(at), "an append that was tried again")
    await appended(broker, of(broker, neighbour, "a"), item(0, None, "a"), item(1, None, "a"))
    await appended(broker, item(1, key, "a"))  # a stray is put where it belongs under its own id
    await broker.append_raw(0, [(key, value("raw"))])
    await appended(broker, of(broker, key, "raw"))


@CASES.add("Broker.append", claims="refuse_duplicates")
async def an_append_that_is_tried_again_at_once_happens_once(stage: Stage) -> None:
    brokers = await stage.pair()
    (key,) = keys(brokers[0], 0, 1)
    calls = (brokers[n % 2].append([of(brokers[0], key, "a", "b")]) for n in range(8))
    results = [r for (r,) in await asyncio.gather(*calls)]
    won = [r for r in results if isinstance(r, Appended)]
    equal(len(won), 1, "how many of eight equal appends happened")
    check(results.count(Duplicate(won[0].positions[0])) == 7, f"what the others are told: {results}")
    first, second = await brokers[0].append([of(brokers[0], key, "c"), of(brokers[0], key, "c")])
    equal(second, Duplicate(positions_of(first)[0]), "the second of two equal items in a call")


@CASES.add("Broker.append", claims="refuse_duplicates")
async def an_append_that_is_tried_again_is_a_duplicate_and_no_conflict(stage: Stage) -> None:
    broker = await stage.open()
    (key,) = keys(broker, 0, 1)
    (at,) = await appended(broker, of(broker, key, "a", after=0))
    await appended(broker, of(broker, key, "b"))
    equal(await broker.append([of(broker, key, "a", after=0)]), [Duplicate(at)], "an append after 0, tried again")


@CASES.add("Broker.append", disclaims="refuse_duplicates")
async def a_broker_that_does_not_know_ids_appends_them_again(stage: Stage) -> None:
    broker = await stage.open()
    (key,) = keys(broker, 0, 1)
    for _ in range(2):
        await appended(broker, of(broker, key, "a"), of(broker, key, "a"), item(0, None, "own"))
    equal(len(await whole(broker, 0)), 6, "records of one id, appended again and again")


# ---- fences --------------------------------------------------------------------------------------------------------
@CASES.add("Broker.append", "Subscription.release", claims="fence_appends")
async def a_stale_fence_lets_nothing_of_the_call_in_and_names_the_epoch(stage: Stage) -> None:
    broker, other = await stage.pair()
    member = await stage.lone(broker)
    old = member.epochs[0]
    call = [item(0, "k", "a"), item(1, "j", "b")]
    await appended(broker, *call, fence=Fence("g", 0, old))
    await member.release(0)
    await stage.until(lambda: 0 in member.epochs, member)
    now = member.epochs[0]
    for fence in (Fence("g", 0, old), Fence("g", 0, now + 1), Fence("g", 0, 0)):
        again = [item(0, "k", "a"), item(1, "j", f"b{fence.epoch}"), item(0, None, "c")]
        equal(await other.append(again, fence), [Fenced(now)] * 3, f"an append under epoch {fence.epoch} in {now}")
    equal(await broker.append([], Fence("g", 0, old)), [], "an append of nothing")
    equal([len(await whole(other, p)) for p in (0, 1)], [1, 1], "records after fenced appends")
    await appended(other, item(1, "j", "d"), fence=Fence("g", 0, now))


@CASES.add("Broker.append", claims="fence_appends")
async def a_partition_without_an_owner_lets_no_fence_pass(stage: Stage) -> None:
    broker = await stage.open()
    equal(await broker.append([item(0, None, "a")], Fence("nobody", 0, 1)), [Fenced(None)], "a group that never was")
    member = await stage.lone(broker)
    epoch = member.epochs[1]
    equal(await broker.append([item(1, None, "a")], Fence("h", 1, epoch)), [Fenced(None)], "another group's epoch")
    await member.leave()
    equal(await broker.append([item(1, None, "a")], Fence("g", 1, epoch)), [Fenced(None)], "an owner that has left")
    equal(await whole(broker, 0) + await whole(broker, 1), [], "the log after fenced appends")


@CASES.add("Broker.append", "Broker.subscribe", claims="fence_appends", hooks=("kill",))
async def an_owner_that_was_taken_for_dead_appends_nothing_more(stage: Stage) -> None:
    broker, other = await stage.pair()
    dead = await stage.join(broker, "dead", lease=stage.subject.lease)
    await stage.until(lambda: len(dead.epochs) == 2, dead)
    heir = await stage.join(other, "heir", lease=stage.subject.lease)
    assert stage.subject.kill is not None
    stage.subject.kill(broker)
    await stage.until(lambda: len(heir.epochs) == 2, heir)
    for partition in (0, 1):
        mine = Fence("g", partition, heir.epochs[partition])
        late = await other.append([item(partition, "k", "late")], Fence("g", partition, dead.epochs[partition]))
        equal(late, [Fenced(mine.epoch)], "an append of the one that was taken for dead")
        await appended(other, item(partition, "k", "a"), fence=mine)
        equal(values(await whole(other, partition)), [value("a")], "the log")


@CASES.add("Broker.append", disclaims="fence_appends")
async def a_broker_that_knows_no_fences_appends_under_any_epoch(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    for n, fence in enumerate((Fence("g", 0, member.epochs[0] + 1), Fence("nobody", 0, 1))):
        await appended(broker, item(0, "k", f"r{n}"), fence=fence)
    equal(len(await whole(broker, 0)), 2, "records appended under epochs that are none")
