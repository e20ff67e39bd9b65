"""What an append is: all or nothing, in order, there for everybody when it returns."""

from __future__ import annotations

import asyncio
import string

from ...bus.broker import Appended, At, Broker, Item, LogSpec, Outgoing, Stored
from ...bus.errors import TooLarge
from .case import Cases
from .stage import Stage, appended, check, equal, item, keys, of, positions_of, raising, value, values, whole, workflow

CASES = Cases()
ODD = [b"", bytes(range(256)), b"\xff\xfe\x00", "\u2028 \U0001f600".encode(), b"{not json", b"x" * 5000]
SMALL = LogSpec(partitions=2, max_record=1000, max_append=1500)


def said(records: list[Stored]) -> list[tuple[int, str | None, bytes]]:
    """What two brokers tell alike of records: all but the time."""
    return [(r.position, r.key, r.value) for r in records]


@CASES.add("Broker.append", "Broker.read", "Broker.read_workflow", "Broker.read_at", "Broker.positions")
async def an_append_is_there_for_every_reader_when_it_returns(stage: Stage) -> None:
    writer, reader = await stage.pair()
    (key,) = keys(writer, 1, 1)
    for n in range(10):
        ends = await reader.positions("end")
        (at,) = await appended(writer, of(writer, key, f"r{n}"))
        equal(said(await whole(reader, 1))[-1:], [(at, key, value(f"r{n}"))], "the last that `read` returns")
        equal([r.position for r in await workflow(reader, key)][-1:], [at], "the last that `read_workflow` returns")
        equal([r.value for r in await reader.read_at(1, [at])], [value(f"r{n}")], "what `read_at` returns")
        now = await reader.positions("end")
        check(now[1] > at >= ends[1] and now[0] == ends[0], f"the ends {ends} became {now} by a record at {at}")


@CASES.add("Broker.append", "Broker.append_raw")
async def bytes_and_keys_are_kept_verbatim(stage: Stage) -> None:
    writer, reader = await stage.pair()
    names = [None, "k", string.printable[:94], "K", "k" * 128]
    expected = []
    for n, key in enumerate(names):
        records = tuple(Outgoing(f"{n}-{i}", odd) for i, odd in enumerate(ODD))
        (result,) = await writer.append([Item(0, key, records)])
        expected += [(p, key, v) for p, v in zip(positions_of(result), ODD, strict=True)]
        raw = await writer.append_raw(0, [(key, odd) for odd in ODD])
        expected += [(p, key, v) for p, v in zip(raw, ODD, strict=True)]
    equal(said(await whole(reader, 0)), expected, "what the log holds")
    equal(said(await reader.read_at(0, [e[0] for e in expected])), expected, "what `read_at` returns")


@CASES.add("Broker.append")
async def each_record_has_a_position_of_its_own_and_they_grow_in_order(stage: Stage) -> None:
    broker = await stage.open()
    one, other = keys(broker, 0, 2)
    call = [item(0, one, "a", "b"), item(1, None, "c"), item(0, other, "d"), item(0, one, "e", "f")]
    results = await broker.append(call)
    equal([len(positions_of(r)) for r in results], [2, 1, 1, 2], "how many positions each item has")
    equal(values(await whole(broker, 0)), [value(id) for id in "abdef"], "the order of a call's records")
    mine = [p for i in (0, 2, 3) for p in positions_of(results[i])]
    equal([r.position for r in await whole(broker, 0)], mine, "where the records are, and where it was said")
    check(mine[0] >= 1 and mine == sorted(set(mine)), f"positions that do not grow: {mine}")
    equal(await broker.append([]), [], "the results of a call without items")


@CASES.add("Broker.append")
async def concurrent_appends_all_succeed_each_at_its_own_place(stage: Stage) -> None:
    brokers = await stage.pair()
    names = [*keys(brokers[0], 0, 3), None]

    async def append(n: int) -> tuple[int, ...]:
        (result,) = await brokers[n % 2].append([item(0, names[n % 4], f"a{n}", f"b{n}")])
        check(isinstance(result, Appended), f"a concurrent append that nothing speaks against: {result}")
        return positions_of(result)

    told = await asyncio.gather(*(append(n) for n in range(60)))
    found = {r.position: (r.key, r.value) for r in await whole(brokers[0], 0)}
    expected = {p: (names[n % 4], value(f"{'ab'[i]}{n}")) for n, at in enumerate(told) for i, p in enumerate(at)}
    equal(found, expected, "the records of 60 concurrent appends")
    check(all(a < b for a, b in told), "the records of an item are not in order")


@CASES.add("Broker.append", "Broker.read")
async def no_reader_ever_sees_a_part_of_an_item(stage: Stage) -> None:
    writer, reader = await stage.pair()

    async def write() -> None:
        for n in range(30):
            await appended(writer, item(0, f"k{n % 3}", *(f"{n}.{i}" for i in range(5))))

    writing = stage.do(write())
    whole_ones = 0
    while whole_ones < 30:
        ended = writing.done()
        seen = [v.split(b".")[0] for v in values(await whole(reader, 0))]
        counts = {v: seen.count(v) for v in seen}
        check(set(counts.values()) <= {5}, f"a reader saw parts of items: {counts}")
        whole_ones = len(counts)
        check(not ended or whole_ones == 30, f"{whole_ones} of 30 items are there after their appends")
        await asyncio.sleep(0)


@CASES.add("Broker.append", "Broker.append_raw")
async def what_is_too_large_is_refused_and_nothing_of_its_call_is_there(stage: Stage) -> None:
    broker = await stage.open(SMALL)

    def sized(id: str, *sizes: int) -> Item:
        return Item(0, "k", tuple(Outgoing(f"{id}{i}", b"x" * size) for i, size in enumerate(sizes)))

    for sizes in ((1001,), (1, 1001), (800, 701), (500, 500, 501)):
        with raising(TooLarge, what=f"an item of {sizes} bytes"):
            await broker.append([item(1, None, "innocent"), sized("no", *sizes)])
        with raising(TooLarge, what=f"append_raw of {sizes} bytes"):
            await broker.append_raw(0, [("k", b"x" * size) for size in sizes])
    equal(await whole(broker, 0) + await whole(broker, 1), [], "the log after appends that were too large")
    await appended(broker, sized("a", 1000), sized("b", 800, 700), sized("c", 1000, 500))
    await broker.append_raw(0, [("k", b"x" * 1000), ("k", b"x" * 500)])
    equal(len(await whole(broker, 0)), 7, "records of just the size that the log takes")


@CASES.add("Broker.append", "Broker.append_raw")
async def a_partition_that_is_not_there_is_refused_and_nothing_of_its_call_is_there(stage: Stage) -> None:
    broker = await stage.open()
    for partition in (-1, 2, 1000):
        with raising(ValueError, what=f"append to partition {partition} of 2"):
            await broker.append([item(0, None, "innocent"), item(partition, None, "a")])
        with raising(ValueError, what=f"append_raw to partition {partition} of 2"):
            await broker.append_raw(partition, [(None, b"a")])
    equal(await whole(broker, 0) + await whole(broker, 1), [], "the log after appends to partitions that are not there")


@CASES.add("Broker.append")
async def a_call_that_is_wrong_harms_no_other(stage: Stage) -> None:
    broker = await stage.open(SMALL)
    wrong = [
        broker.append([Item(0, "k", (Outgoing("large", b"x" * 1001),))]),
        broker.append_raw(0, [("\ud800", b"a key that is no text")]),
        broker.append_raw(0, [("k", "no bytes")]),  # type: ignore[list-item]
    ]
    good = [broker.append([item(0, f"k{n}", f"r{n}")]) for n in range(10)]
    calls = [*good[:5], *wrong, *good[5:]]
    done = await asyncio.gather(*calls, return_exceptions=True)
    right = [*done[:5], *done[-5:]]
    check(all(isinstance(r, list) for r in right), f"appends beside a call that was wrong: {right}")
    found = set(values(await whole(broker, 0)))
    check({value(f"r{n}") for n in range(10)} <= found, f"the log holds only {found}")
    check(isinstance(done[5], TooLarge), f"an append that was too large: {done[5]!r}")


@CASES.add("Broker.append")
async def a_cancelled_append_happened_or_not_and_others_are_whole(stage: Stage) -> None:
    broker, reader = await stage.pair()
    tasks = [asyncio.ensure_future(broker.append([item(0, "k", f"a{n}", f"b{n}")])) for n in range(30)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    await appended(broker, item(0, "k", "after"))
    found = values(await whole(reader, 0))
    for n, result in enumerate(done):
        both = [found.count(value(f"{letter}{n}")) for letter in "ab"]
        check(both in ([1, 1], [0, 0]), f"an append of two records left {both}")
        check(isinstance(result, asyncio.CancelledError) or both == [1, 1], f"{result} and its records are not there")
    check(found[-1] == value("after"), "an append after cancelled ones is not the last")


@CASES.add("Broker.append_raw")
async def raw_records_are_appended_in_order_and_never_refused(stage: Stage) -> None:
    broker, reader = await stage.pair()
    (key,) = keys(broker, 0, 1)
    (known,) = await appended(broker, of(broker, key, "a"))
    raw = [(key, value("a")), (None, value("a")), (key, value("a")), ("elsewhere", b"\xff")]
    positions = await broker.append_raw(0, raw) + await broker.append_raw(0, raw)
    check(list(positions) == sorted({*positions, known} - {known}), f"positions of raw records: {positions}")
    equal(len(positions), 8, "how many positions eight raw records have")
    found = said(await whole(reader, 0))[1:]
    equal(found, [(p, *r) for p, r in zip(positions, raw * 2, strict=True)], "raw records in the log")
    equal(await broker.append_raw(1, []), (), "the positions of no records")


@CASES.add("Broker.append", "Broker.append_raw")
async def a_record_has_the_time_at_which_the_log_took_it_and_is_found_by_it(stage: Stage) -> None:
    broker, reader = await stage.pair()
    positions: list[int] = []
    times: list[float] = []
    while len(set(times)) < 4:
        positions += await appended(broker, item(0, None, f"r{len(positions)}"))
        times = [r.time for r in await whole(broker, 0)]
        await asyncio.sleep(0.001)
    for time in sorted(set(times)):
        first = next(p for p, t in zip(positions, times, strict=True) if t >= time)
        await _starts(reader, At(time), first)
    await _starts(reader, At(times[0] - 1000), positions[0])
    await _starts(reader, At(max(times) + 1000), None)


async def _starts(broker: Broker, at: At, first: int | None) -> None:
    records = (await broker.read(0, at)).records
    equal(records[0].position if records else None, first, f"the first record from {at} on")
