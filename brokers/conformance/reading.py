"""Reading by position, by time, by workflow, in pages."""

from __future__ import annotations

from itertools import pairwise

from ...bus.broker import At, Broker
from ...bus.errors import LogTruncated
from .case import Cases
from .stage import Stage, appended, check, equal, item, keys, of, raising, value, values, whole, workflow

CASES = Cases()


async def _filled(stage: Stage) -> tuple[Broker, Broker, str, list[int]]:
    """Return two brokers, a workflow of partition 0, and where its records and its partition's own are."""
    broker, reader = await stage.pair()
    key, neighbour = keys(broker, 0, 2)
    mine = []
    for n in range(7):
        mine += await appended(broker, of(broker, key, f"w{n}"))
        await appended(broker, of(broker, neighbour, f"n{n}"), item(1, None, f"other{n}"))
        if n % 3 == 0:
            mine += await appended(broker, item(0, None, f"own{n}"))
    mine += await broker.append_raw(0, [(key, b"raw")])
    return broker, reader, key, mine


@CASES.add("Broker.read")
async def pages_of_any_size_cover_a_partition_without_gap_or_repetition(stage: Stage) -> None:
    broker, reader, _, _ = await _filled(stage)
    everything = await whole(broker, 0)
    equal(len(everything), 18, "records in partition 0")
    check(all(a.position < b.position for a, b in pairwise(everything)), "not in log order")
    for limit in (1, 2, 5, 17, 18, 19):
        equal(await whole(reader, 0, limit), everything, f"pages of {limit}")


@CASES.add("Broker.read")
async def a_page_begins_at_its_start_and_ends_before_its_end(stage: Stage) -> None:
    broker, _, _, _ = await _filled(stage)
    everything = await whole(broker, 0)
    positions = [r.position for r in everything]
    first, some, other, last = positions[0], positions[4], positions[9], positions[-1]
    spans = [(0, None), (some, None), (some, other), (some, some), (other, some), (0, first), (last, last + 1)]
    for start, end in [*spans, (last + 1, None), (last + 1000, None), (0, 0), (0, 10**9), (10**15, None), (0, 10**15)]:
        page = await broker.read(0, start, end=end)
        wanted = [r for r in everything if start <= r.position and (end is None or r.position < end)]
        equal((page.records, page.next), (wanted, None), f"the records from {start} to {end}")
    page = await broker.read(0, some, end=other, limit=3)
    check(page.next is not None, "a page that was cut off has no `next`")
    rest = await broker.read(0, page.next or 0, end=other)
    wanted = [r for r in everything if some <= r.position < other]
    equal((page.records + rest.records, rest.next), (wanted, None), "two pages up to an end")


@CASES.add("Broker.read")
async def reading_from_a_time_is_reading_from_its_first_record(stage: Stage) -> None:
    broker, _, _, _ = await _filled(stage)
    everything = await whole(broker, 0)
    for record in everything[::4]:
        first = next(i for i, r in enumerate(everything) if r.time >= record.time)
        page = await broker.read(0, At(record.time), limit=3)
        equal(page.records, everything[first : first + len(page.records)], f"the records from {record.time} on")
        check(page.records, f"no record from {record.time} on")
    end = everything[5].position
    equal((await broker.read(0, At(0), end=end)).records, everything[:5], "the records of any time, up to an end")
    equal((await broker.read(1, At(everything[-1].time + 1000))).records, [], "the records of a time to come")


@CASES.add("Broker.read_workflow")
async def a_workflow_is_read_with_its_partitions_own_records_and_nothing_else(stage: Stage) -> None:
    broker, reader, key, mine = await _filled(stage)
    await broker.append_raw(1, [(key, b"a stray")])
    wanted = [r for r in await whole(broker, 0) if r.position in mine]
    equal(await workflow(reader, key), wanted, "the records of a workflow")
    equal({r.key for r in wanted}, {key, None}, "the keys of a workflow's records")
    (unknown,) = set(keys(broker, 0, 3)) - set(keys(broker, 0, 2))
    equal({r.key for r in await workflow(reader, unknown)}, {None}, "the keys of a workflow that never was")


@CASES.add("Broker.read_workflow")
async def a_workflow_is_read_after_a_position_and_in_pages_of_any_size(stage: Stage) -> None:
    broker, reader, key, mine = await _filled(stage)
    everything = await whole(broker, 0)
    for after in (0, mine[0], mine[3], mine[3] + 1, mine[-1], mine[-1] + 1000):
        wanted = [r for r in everything if r.position in mine and r.position > after]
        for limit in (1, 3, len(mine), 1000):
            equal(await workflow(reader, key, after, limit), wanted, f"the workflow after {after} in pages of {limit}")


@CASES.add("Broker.read_at")
async def records_are_read_by_position_ascending_and_each_once(stage: Stage) -> None:
    broker, _, _, mine = await _filled(stage)
    everything = {r.position: r for r in await whole(broker, 0)}
    for asked in (mine, mine[::-1], mine + mine, mine[4:5], []):
        equal(await broker.read_at(0, asked), [everything[p] for p in sorted(set(asked))], f"the records at {asked}")


@CASES.add("Broker.read_at")
async def a_position_that_holds_no_record_is_a_truncated_log(stage: Stage) -> None:
    broker, _, _, mine = await _filled(stage)
    for nothing in (0, -1, mine[-1] + 1, 10**12, 2**63 - 1):
        with raising(LogTruncated, what=f"read_at of {nothing}"):
            await broker.read_at(0, [mine[0], nothing])


@CASES.add("Broker.positions")
async def begin_and_end_enclose_the_records_and_their_difference_is_none_where_there_are_none(stage: Stage) -> None:
    broker, reader = await stage.pair()
    begin, end = await broker.positions("begin"), await broker.positions("end")
    equal(end, begin, "the ends of a log without records")
    equal(sorted(begin), [0, 1], "the partitions that have a begin")
    at = await appended(broker, item(0, None, "a", "b"))
    begin, end = await reader.positions("begin"), await reader.positions("end")
    check(begin[0] <= at[0] and end[0] > at[1], f"records at {at}, begin {begin[0]}, end {end[0]}")
    equal(end[1], begin[1], "the end of a partition without records")
    equal(values((await reader.read(0, begin[0], end=end[0])).records), [value("a"), value("b")], "all between them")
