"""A broker whose disk is full can store two batches at the same offsets, and acknowledge both: no record is lost."""

from __future__ import annotations

import asyncio
import os

import pytest
from faults.logs import CannotPlay, Disk, left_out
from hosting import working
from kafka_logs import new_log, new_namespace

from refold import Agent, AgentMessage, MessageBus
from refold.brokers import open_broker
from refold.brokers.kafka import wire
from refold.brokers.kafka.broker import KafkaBroker
from refold.brokers.kafka.subscription import KafkaSubscription
from refold.brokers.servers import kafka_server
from refold.bus import codec
from refold.bus.broker import Assigned, Batch, Item, LogSpec, Outgoing, Stored

THOROUGH = os.environ.get("REFOLD_SERVERS") == "thorough"


def batch(offset: int, *values: str) -> bytes:
    """A batch as a broker has it that gave it this offset."""
    data = wire.batch_bytes([(b"k", value.encode()) for value in values], (1, 0), 0)
    return offset.to_bytes(8, "big") + data[8:]


def unpacked(start: int, *batches: bytes) -> wire.Part:
    class Answer:
        API_VERSION = 4
        topics = (("log", [(0, 0, 100, 100, [], b"".join(batches))]),)

    return wire.parts_of(Answer, {("log", 0): start}, 0)["log", 0]


@pytest.mark.parametrize(
    ("batches", "there", "others"),
    [
        ([(5, "a"), (6, "b", "c")], "abc", ""),
        ([(5, "a"), (5, "a"), (6, "b")], "ab", ""),
        ([(5, "a"), (5, "b"), (5, "b"), (6, "c")], "ac", "b"),
        ([(5, "a", "b"), (5, "c"), (6, "a", "b"), (8, "d")], "abbd", "ca"),
        ([(5, "a"), (5, "b", "c"), (7, "a")], "aca", "b"),
    ],
)  # fmt: skip
def test_of_several_records_at_one_offset_the_first_is_there_and_the_others_are_known(batches, there, others):
    part = unpacked(5, *(batch(offset, *values) for offset, *values in batches))
    kept, again = wire.apart(part.records)
    assert part.twice == (len({r.offset for r in part.records}) < len(part.records))
    assert [r.offset for r in kept] == sorted({r.offset for r in part.records})
    assert ("".join((r.value or b"").decode() for r in kept), "".join((r.value or b"").decode() for r in again)) == (
        there, others,
    )  # fmt: skip


def test_what_stands_behind_is_not_taken_for_what_comes_twice():
    """A fetch begins with the whole batch that holds its offset."""
    part = unpacked(6, batch(5, "a", "b"), batch(7, "c"))
    assert (part.twice, [r.offset for r in part.records]) == (False, [6, 7])


@pytest.fixture
def doubled(monkeypatch):
    """What the broker answers has `extra` records behind some offset of the log, once they are set."""
    extra: dict[int, list[wire.Raw]] = {}
    plain = wire.parts_of

    def parts_of(answer, wanted, isolation):
        out = plain(answer, wanted, isolation)
        for place, part in out.items():
            if place[0].count(".") or not extra:
                continue
            records = [r for found in part.records for r in (found, *extra.get(found.offset, ()))]
            out[place] = part._replace(records=records, twice=len(records) > len(part.records))
        return out

    monkeypatch.setattr(wire, "parts_of", parts_of)
    return extra


def test_the_owner_appends_again_what_nobody_would_find_and_every_reader_sees_one_record_an_offset(
    go, until, kafka_address, doubled
):
    agent, handled = Agent("echo"), list[str]()

    @agent.on_task
    def handle(task: str) -> str:
        handled.append(task)
        return task

    async def main():
        async with new_log(kafka_address, "?partitions=1")() as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            seen, lost = (AgentMessage.request("echo", text, correlation_id=text) for text in ("seen", "lost"))
            async with MessageBus.open(broker) as bus:
                at = (await bus.send_message(seen)).position
                doubled[at - 1] = [wire.Raw(at - 1, 0, b"lost", codec.encode(lost))] * 3
                async with working(broker, agent):
                    await until(lambda: sorted(handled) == ["lost", "seen"], 20)
            found = (await broker.read(0)).records
            positions = [r.position for r in found]
            assert positions == sorted(set(positions))
            assert [r.key for r in found].count("lost") >= 2, "the message, and what was handled of it"
            assert {r.key for r in (await broker.read_workflow("lost")).records} >= {"lost"}
            assert (await broker.read_at(0, [at]))[0].key == "seen"

    go(main())


async def delivered(broker: KafkaBroker) -> list[Stored]:
    """What a member of a new group gets of the only partition, up to the record that says `last`."""
    out: list[Stored] = []
    async with broker.subscribe("g", "m") as sub:
        assert isinstance(sub, KafkaSubscription)
        while not any(r.value == b"last" for r in out):
            sub.turned()
            for event in await sub.fetch(max_wait=0.2):
                if isinstance(event, Assigned):
                    sub.seek(event.partition, 1)
                elif isinstance(event, Batch):
                    out += event.records
    return out


@pytest.mark.skipif(not THOROUGH, reason="a Kafka with a disk of its own, for half a minute: make test-servers")
@pytest.mark.timeout(180)
def test_a_broker_whose_disk_is_full_where_an_index_begins_loses_no_acknowledged_record(until, tmp_path):
    """The log's page has room left, the index behind it has none yet: the batch is stored, and its end is not moved."""
    disk = Disk(tmp_path)

    async def main():
        async with kafka_server(tmp_path / "kafka", nodes=1) as server:
            url = f"kafka://{server.bootstrap}/{new_namespace()}?partitions=1&replication=1"
            one, two = open_broker(url), open_broker(url)
            async with one, two:
                for broker in (one, two):
                    await broker.ensure_log()

                async def put(broker, text: str):
                    (result,) = await broker.append([Item(0, "k", (Outgoing(text, text.encode()),))])
                    return result

                (log,) = tmp_path.glob(f"kafka/**/{url.split('/')[3].partition('?')[0]}-0/*.log")
                n = 0
                while log.stat().st_size <= 4096:
                    await put(one, f"{n} " + 150 * "x")
                    n += 1
                disk.fill()
                full = asyncio.create_task(put(one, "first"))
                await until(lambda: b"first" in log.read_bytes(), 10)
                behind = asyncio.create_task(put(two, "second"))
                await until(lambda: b"second" in log.read_bytes(), 10)
                disk.free()
                await server.nodes[0].restart()
                await full
                await behind
                await put(two, "last")
                assert isinstance(two, KafkaBroker)
                got = await delivered(two)
                page = (await one.read(0)).records
        positions = [r.position for r in page]
        assert positions == sorted(set(positions))
        assert {b"first", b"second", b"last"} <= {r.value for r in page}
        assert [r.position for r in got] == sorted({r.position for r in got})

    async def bounded():
        async with asyncio.timeout(150):
            await main()

    try:
        with disk.mounted(96):
            asyncio.run(bounded())
    except CannotPlay as error:
        left_out(error)
