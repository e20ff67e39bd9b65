"""The traps of Kafka, on a real one: lost answers, foreign records, gaps, late writers, topics that lose records."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.structs import TopicPartition
from kafka_logs import new_log

from refold import Agent, Context, MessageBus
from refold.agents.worker import Worker
from refold.brokers.kafka import topics, wire
from refold.brokers.kafka.broker import KafkaBroker
from refold.brokers.kafka.checkpoints import Fenced, Save
from refold.brokers.kafka.link import Again
from refold.bus.broker import Appended, Assigned, Batch, Item, LogSpec, Lost, Outgoing, Presence
from refold.bus.errors import BrokerUnavailable, LogMismatch, LogMissing, LogTruncated, TooLarge
from refold.bus.partition import partition_of

TWO = LogSpec(partitions=2)


def item(key: str | None, *ids: str, partition: int = 0) -> Item:
    return Item(partition, key, tuple(Outgoing(id, id.encode()) for id in ids))


async def opened(stack: contextlib.AsyncExitStack, connect, spec: LogSpec = TWO) -> KafkaBroker:
    broker = await stack.enter_async_context(connect())
    await broker.ensure_log(spec)
    return broker


async def values(broker: KafkaBroker, partition: int = 0) -> list[bytes]:
    return [r.value for r in (await broker.read(partition)).records]


async def owned(sub, count: int = 2) -> dict[int, int]:
    """Fetch until the member owns so many partitions."""
    out: dict[int, int] = {}
    while len(out) < count:
        sub.turned()
        out |= {e.partition: e.epoch for e in await sub.fetch(max_wait=0.1) if isinstance(e, Assigned)}
    return out


@contextlib.asynccontextmanager
async def producer(address: str, **settings):
    async with AIOKafkaProducer(bootstrap_servers=address, **settings) as made:
        yield made


@contextlib.asynccontextmanager
async def admin(address: str):
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


class Wire:
    """Stands before a link's `ask`: answers to requests of a kind are lost, or are others."""

    def __init__(self, broker: KafkaBroker, kind: str) -> None:
        self.broker, self.kind, self.asked = broker, kind, 0
        self.lose = 0
        self.code: list[int] = []
        self._ask = broker.link.ask
        broker.link.ask = self  # type: ignore[method-assign]

    async def __call__(self, node, request, lane=0):
        if type(request).__name__ != self.kind:
            return await self._ask(node, request, lane)
        self.asked += 1
        if self.code:
            (topic, ((partition, _),)), = request._topics
            code = self.code.pop(0)
            if code == wire.DUPLICATE:
                await self._ask(node, request, lane)
            part = (partition, code, -1, -1, -1)
            return type("Answer", (), {"topics": [(topic, [part])]})
        answer = await self._ask(node, request, lane)
        if self.lose:
            self.lose -= 1
            raise Again("the answer was lost")
        return answer


# ---- appending -------------------------------------------------------------------------------------------------------
def test_an_append_whose_answer_was_lost_is_there_once(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            lossy = Wire(broker, "ProduceRequest")
            for n in range(5):
                lossy.lose = n % 3
                (result,) = await broker.append([item("k", f"a{n}", f"b{n}")])
                assert result == Appended((2 * n + 1, 2 * n + 2))
            assert lossy.asked == 5 + 0 + 1 + 2 + 0 + 1
            assert await values(broker) == [f"{x}{n}".encode() for n in range(5) for x in "ab"]

    go(main())


def test_an_append_of_which_the_broker_kept_no_offset_is_found_by_its_records(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            connect = new_log(kafka_address)
            broker, other = await opened(stack, connect), await opened(stack, connect)
            await broker.append([item("k", "same", "same")])
            await other.append([item("j", "x", "y", "z")])
            strange = Wire(broker, "ProduceRequest")
            strange.code = [wire.DUPLICATE]
            (result,) = await broker.append([item("k", "same", "same")])
            assert result == Appended((6, 7))
            assert len(await values(broker)) == 7

    go(main())


def test_a_producer_that_the_broker_has_forgotten_is_replaced(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            await broker.append([item("k", "a")])
            first = broker.outbox._producer
            for n, code in enumerate((wire.OUT_OF_ORDER, wire.UNKNOWN_PRODUCER, wire.BAD_EPOCH)):
                strange = Wire(broker, "ProduceRequest")
                strange.code = [code]
                assert (await broker.append([item("k", f"b{n}")]))[0] == Appended((n + 2,))
            assert broker.outbox._producer != first
            assert await values(broker) == [b"a", b"b0", b"b1", b"b2"]

    go(main())


def test_where_a_sequence_is_lost_after_a_lost_answer_the_append_is_unknown_and_the_next_succeeds(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            strange = Wire(broker, "ProduceRequest")
            strange.code = [7, wire.OUT_OF_ORDER]  # timed out, then refused
            with pytest.raises(BrokerUnavailable, match="not known whether it was appended: OutOfOrderSequenceNumber"):
                await broker.append([item("k", "a")])
            assert (await broker.append([item("k", "b")]))[0] == Appended((1,))

    go(main())


def test_what_waits_too_long_is_given_up_and_said_to_be_unknown_only_where_it_is(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address, patience=0.3))
            for code, text in ((19, "NotEnoughReplicas"), (20, "not known whether it was appended: NotEnoughReplicas")):
                strange = Wire(broker, "ProduceRequest")
                strange.code = [code] * 1000
                with pytest.raises(BrokerUnavailable, match=f"^it is {text}" if "known" in text else f"^{text}"):
                    await broker.append([item("k", "a")])
                broker.link.ask = strange._ask
            await broker.append([item("k", "b")])
            assert await values(broker) == [b"b"]

    go(main())


def test_a_broker_whose_disk_has_failed_is_named_with_what_to_look_at(go, kafka_address):
    """Its node may be gone by the time that the append is given up."""
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address, patience=0.3))
            strange = Wire(broker, "ProduceRequest")
            strange.code = [wire.STORAGE] + [7] * 1000
            with pytest.raises(BrokerUnavailable, match=r"not known .*TimedOut.* \(t-\w+ 0: .* is the disk full\?"):
                await broker.append([item("k", "a")])
            strange.code = []
            await broker.append([item("k", "b")])
            strange.code = [7] * 1000
            with pytest.raises(BrokerUnavailable, match=r"TimedOutError$"):
                await broker.append([item("k", "c")])

    go(main())


def test_concurrent_appends_share_batches_and_an_item_is_never_cut(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            counted = Wire(broker, "ProduceRequest")
            await asyncio.gather(*(broker.append([item("k", *(f"{n}.{i}" for i in range(5)))]) for n in range(200)))
            assert counted.asked < 20
            found = [v.split(b".")[0] for v in await values(broker)]
            assert [found[i] == found[i + 4] for i in range(0, 1000, 5)] == [True] * 200

    go(main())


def test_many_small_records_are_too_large_with_their_envelopes_and_harm_nobody(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            with pytest.raises(TooLarge, match="with its envelope"):
                await broker.append_raw(0, [("k" * 20, b"12345678")] * 100_000)
            large = [b"x" * (broker.meta.max_append // 2)] * 2
            await broker.append_raw(0, [("k", value) for value in large])
            assert await values(broker) == large

    go(main())


# ---- what others write -----------------------------------------------------------------------------------------------
def test_tombstones_and_keys_that_are_no_text_stop_nobody(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with producer(kafka_address) as foreign:
                for key, value in ((b"k", None), (b"\xff\xfe", b"v"), (None, b"w"), (b"", b"x")):
                    await foreign.send_and_wait(broker.names.log, value, key=key, partition=0, headers=[("h", b"1")])
            await broker.append([item("k", "a")])
            found = [(r.key, r.value) for r in (await broker.read(0)).records]
            assert found == [("k", b""), ("\\xff\\xfe", b"v"), (None, b"w"), ("", b"x"), ("k", b"a")]
            assert [r.value for r in (await broker.read_workflow("k")).records if r.key] in ([b"", b"a"], [])
            async with broker.subscribe("g", "m") as sub:
                await owned(sub)
                sub.seek(0, 0)
                events = await sub.fetch(max_wait=5)
                assert [r.value for e in events if isinstance(e, Batch) for r in e.records] == [f[1] for f in found]

    go(main())


def test_positions_have_gaps_where_a_foreign_transaction_has_left_its_marks(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with producer(kafka_address, transactional_id=broker.names.log + ".foreign") as foreign:
                for n in range(3):
                    async with foreign.transaction():
                        await foreign.send_and_wait(broker.names.log, b"f%d" % n, partition=0)
                    await broker.append([item("k", f"a{n}")])
            wanted = [b"f0", b"a0", b"f1", b"a1", b"f2", b"a2"]
            first, start = [], 0
            while start is not None:
                page = await broker.read(0, start, limit=2)
                first += page.records
                start = page.next  # type: ignore[assignment]
            assert [r.value for r in first] == wanted
            positions = [r.position for r in first]
            assert positions[-1] > len(wanted)
            assert await broker.read_at(0, positions) == first
            gap = next(p for p in range(1, positions[-1]) if p not in positions)
            with pytest.raises(LogTruncated, match=f"holds no record at {gap}"):
                await broker.read_at(0, [gap])
            async with broker.subscribe("g", "m") as sub:
                await owned(sub)
                sub.seek(0, gap)
                got = []
                while len(got) < len([p for p in positions if p > gap]):
                    got += [r for e in await sub.fetch(max_wait=1) if isinstance(e, Batch) for r in e.records]
                assert [r.position for r in got] == [p for p in positions if p > gap]

    go(main())


@pytest.mark.timeout(60)
def test_starts_that_a_foreign_partitioner_has_put_elsewhere_are_handled_once_each(go, kafka_address):
    """librdkafka's default is CRC32 of the key."""
    handled: list[str] = []
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, task: str) -> str:
        handled.append(task)
        return task

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            connect = new_log(kafka_address)
            broker = await opened(stack, connect, LogSpec(partitions=4))
            aside = await stack.enter_async_context(MessageBus.open("memory://"))
            async with producer(kafka_address) as foreign:
                for n in range(100):
                    handle = await aside.start("a", f"task {n}", id=f"w{n}")
                    (page,) = [p for p in [await aside.broker.read_workflow(handle.correlation_id)] if p.records]
                    key = f"w{n}".encode()
                    await foreign.send(broker.names.log, page.records[0].value, key=key, partition=zlib.crc32(key) % 4)
                await foreign.flush()
            worker = Worker(broker, [agent], group="g")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(worker.run())
                while len(handled) < 100:
                    await asyncio.sleep(0.02)
                worker.stop()
            assert sorted(handled) == sorted(f"task {n}" for n in range(100))

    go(main())


def test_who_looks_only_for_what_is_new_reads_nothing_older_and_who_asks_for_it_later_gets_it(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address), LogSpec(partitions=1))
            await broker.append([item(key, f"{key}{n}") for n in range(20) for key in ("a", "b")])
            reader = await opened(stack, lambda: KafkaBroker(broker.address), LogSpec())
            fetched = list[int]()
            fetch = reader.link.fetch

            async def seen(node, wanted, **how):
                fetched.extend(offset for (topic, _), offset in wanted.items() if topic == reader.names.log)
                return await fetch(node, wanted, **how)

            reader.link.fetch = seen
            for after in (30, 35, 40):
                found = [r.position for r in (await reader.read_workflow("a", after=after)).records]
                assert found == list(range(31, 41, 2))[(after - 30 + 1) // 2 :]
            assert min(fetched) >= 30
            both = await asyncio.gather(*(reader.read_workflow("b", after=after) for after in (10, 36, 0)))
            assert [[r.position for r in page.records] for page in both] == [
                list(range(first, 41, 2)) for first in (12, 38, 2)
            ]
            await broker.append([item("a", "last")])
            assert [r.position for r in (await reader.read_workflow("a", after=37)).records] == [39, 41]

    go(main())


# ---- owning ----------------------------------------------------------------------------------------------------------
def test_a_fetch_that_is_cancelled_loses_no_record(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "m") as sub:
                await owned(sub)
                sub.seek(0, 0)
                got: list[bytes] = []
                for n in range(30):
                    fetching = asyncio.ensure_future(sub.fetch(max_wait=5))
                    await asyncio.sleep(0.001 * (n % 5))
                    appending = asyncio.ensure_future(broker.append([item("k", f"r{n}")]))
                    await asyncio.sleep(0.001 * (n % 3))
                    fetching.cancel()
                    for events in await asyncio.gather(fetching, return_exceptions=True):
                        if isinstance(events, list):
                            got += [r.value for e in events if isinstance(e, Batch) for r in e.records]
                    await appending
                while len(got) < 30:
                    got += [r.value for e in await sub.fetch() if isinstance(e, Batch) for r in e.records]
                assert got == [b"r%d" % n for n in range(30)]

    go(main())


def test_a_late_writer_of_a_checkpoint_is_fenced_and_its_entries_are_never_seen(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            connect = new_log(kafka_address)
            broker, other = await opened(stack, connect), await opened(stack, connect)
            async with broker.subscribe("g", "zombie", lease=1.0, partitions=[0]) as late:
                epochs = await owned(late, 1)
                assert await late.save_checkpoint(0, epochs[0], 1, b"1", {b"k": b"old"}, [])
                pen = late.keeper.pens[0]
                late.keeper.silent = True
                async with other.subscribe("g", "heir", lease=1.0, partitions=[0]) as heir:
                    now = await owned(heir, 1)
                    save = Save("g", epochs[0], 2, b"2", {b"k": b"late", b"l": b"late"}, [])
                    with pytest.raises(Fenced, match=r"Fenced|Epoch"):
                        await pen.write(broker.link, save, pen.producer)
                    assert (await other.checkpoint("g", 0)).entries == {b"k": b"old"}
                    assert await heir.save_checkpoint(0, now[0], 3, b"3", {b"k": b"new"}, [])
                    assert await broker.checkpoint("g", 0) == (3, b"3", {b"k": b"new"})

    go(main())


def test_an_owner_that_a_late_writer_has_fenced_writes_on(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "m", lease=60) as sub:
                epochs = await owned(sub)
                pen = sub.keeper.pens[0]
                thief = type(pen)(pen.topic, pen.group, pen.partition, pen.name)
                await thief.take(broker.link)
                assert await sub.save_checkpoint(0, epochs[0], 1, b"1", {b"k": b"v"}, [])
                assert (await broker.checkpoint("g", 0)).position == 1

    go(main())


def cut_at_the_end(real):
    """The transaction is begun and written to, and its end is never asked for."""

    async def patiently(work):
        if work.__name__ == "end":
            raise BrokerUnavailable("cut")
        return await real(work)

    return patiently


def test_a_checkpoint_that_was_cut_off_half_way_is_not_seen_and_the_next_one_is_whole(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "m", lease=60) as sub:
                epochs = await owned(sub)
                assert await sub.save_checkpoint(0, epochs[0], 1, b"1", {b"a": b"1"}, [])

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(broker.link, "patiently", cut_at_the_end(broker.link.patiently))
                    with pytest.raises(BrokerUnavailable, match="cut"):
                        await sub.save_checkpoint(0, epochs[0], 2, b"2", {b"a": b"2", b"b": b"2"}, [])
                assert await sub.save_checkpoint(0, epochs[0], 3, b"3", {b"c": b"3"}, [])
                assert await broker.checkpoint("g", 0) == (3, b"3", {b"a": b"1", b"c": b"3"})

    go(main())


def test_large_entries_are_cut_and_put_together_and_removed_as_a_whole(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "m", lease=60) as sub:
                epoch = (await owned(sub))[0]
                large = {b"a": bytes(3_000_000), b"b": b"x" * 800_001}
                assert await sub.save_checkpoint(0, epoch, 1, b"", large, [])
                assert (await broker.checkpoint("g", 0)).entries == large
                assert await sub.save_checkpoint(0, epoch, 2, b"", {b"b": b"small"}, [b"a"])
                assert (await broker.checkpoint("g", 0)).entries == {b"b": b"small"}

    go(main())


# ---- topics that lose records ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("topic", "name", "value", "told"),
    [
        ("", "cleanup.policy", "compact", "cleanup.policy of topic .* is compact .*--add-config cleanup.policy=delete"),
        ("", "retention.ms", "3600000", "retention.ms of topic .* is 3600000"),
        ("", "retention.bytes", "1000000", "retention.bytes of topic .* is 1000000"),
        ("", "unclean.leader.election.enable", "true", "unclean.leader.election.enable of topic .* is true"),
        ("", "max.message.bytes", "500000", "max.message.bytes of topic .* is 500000"),
        (".checkpoints", "cleanup.policy", "delete", "cleanup.policy of topic .*checkpoints is delete"),
        (".control", "retention.ms", "1000", "retention.ms of topic .*control is 1000"),
    ],
)  # fmt: skip
def test_a_topic_that_would_lose_records_is_refused_with_the_command_that_helps(
    go, kafka_address, topic, name, value, told
):
    async def main():
        connect = new_log(kafka_address)
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, connect)
            async with admin(kafka_address) as client:
                change = ConfigResource(ConfigResourceType.TOPIC, broker.names.log + topic, {name: value})
                await client.alter_configs([change])
            while (await broker.health()).ok:
                await asyncio.sleep(0.01)
            with pytest.raises(LogMismatch, match=told):
                await (await stack.enter_async_context(connect())).ensure_log()

    go(main())


def test_a_log_that_got_more_partitions_is_refused(go, kafka_address):
    async def main():
        connect = new_log(kafka_address)
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, connect)
            async with admin(kafka_address) as client:
                for name in (broker.names.log, broker.names.checkpoints):
                    await client.create_partitions({name: NewPartitions(3)})
                    while len((await broker.link.topics([name]))[name].partitions) < 3:
                        await asyncio.sleep(0.01)
            with pytest.raises(LogMismatch, match=r"has 3 partitions, the log was made with 2"):
                await (await stack.enter_async_context(connect())).ensure_log()

    go(main())


async def nothing() -> None:
    pass


async def recreated(
    broker: KafkaBroker, address: str, meanwhile: Callable[[], Awaitable[None]] = nothing
) -> None:
    """Delete the topic of the records, and make another of the same name."""
    async with admin(address) as client:
        await client.delete_topics([broker.names.log])
        await meanwhile()
        while True:
            settings = {"retention.ms": "-1", "message.timestamp.type": "LogAppendTime", "max.message.bytes": "1152000"}
            answer = await client.create_topics([NewTopic(broker.names.log, 2, 1, topic_configs=settings)])
            if answer.topic_errors[0][1] == 0:
                break
            await asyncio.sleep(0.05)
    await topics.led(broker.link, [broker.names.log])


def test_a_log_that_was_deleted_and_made_again_is_refused(go, kafka_address):
    async def main():
        connect = new_log(kafka_address)
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, connect)
            home = partition_of("k", 2)
            await broker.append([item("k", "a", partition=home)])
            assert len((await broker.read_workflow("k")).records) == 1
            await recreated(broker, kafka_address)
            with pytest.raises(LogTruncated, match="holds no record at 1"):
                await broker.read_at(home, [1])
            with pytest.raises(LogTruncated, match="ends before position 2"):
                await broker.read_workflow("k")
            with pytest.raises(LogMismatch, match="was deleted and made again"):
                await (await stack.enter_async_context(connect())).ensure_log()

    go(main())


def test_an_append_that_waits_for_its_topic_is_not_written_to_another_of_that_name(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            await broker.append([item("k", "a")])
            pending: list[asyncio.Future[Any]] = []

            async def append() -> None:
                """One that waits; a topic that is being deleted may still take some."""
                channel = broker.outbox._channels[broker.names.log, home]
                while not pending:
                    waiting = asyncio.ensure_future(broker.append([item("k", "b")]))
                    while not (channel.doubtful or waiting.done()):
                        await asyncio.sleep(0.01)
                    if waiting.done():
                        waiting.result()
                    else:
                        pending.append(waiting)

            home = partition_of("k", broker.meta.partitions)
            await recreated(broker, kafka_address, append)
            with pytest.raises(LogMismatch, match="was deleted and made again"):
                await pending[0]
            assert (await broker.link.offsets(broker.names.log, [home])) == {home: 0}

    go(main())


def test_a_topic_of_the_same_name_takes_nothing_of_who_has_not_noticed(go, kafka_address):
    """It is appended to by its id."""

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            await broker.append([item("k", "a")])
            await recreated(broker, kafka_address)
            with pytest.raises(LogMismatch, match="was deleted and made again"):
                await broker.append([item("k", "b")])
            assert not any((await broker.link.offsets(broker.names.log, [0, 1])).values())

    go(main())


def test_the_checkpoint_of_a_log_that_was_deleted_is_not_saved_beside_another(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "old", lease=5.0) as sub:
                epochs = await owned(sub)
                await recreated(broker, kafka_address)
                with pytest.raises(LogMismatch, match="was deleted and made again"):
                    await sub.save_checkpoint(0, epochs[0], 1, b"1", {b"k": b"old"}, [])
            assert await broker.checkpoint("g", 0) is None

    go(main())


def test_a_checkpoint_is_saved_though_nobody_says_at_once_whether_the_log_is_the_same(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            async with broker.subscribe("g", "m", lease=5.0) as sub:
                epochs = await owned(sub)
                asked = Wire(broker, "TopicsRequest")
                asked.lose = 2
                assert await sub.save_checkpoint(0, epochs[0], 1, b"1", {b"k": b"v"}, [])
                assert asked.asked > 2

    go(main())


def test_a_node_that_takes_no_ids_is_asked_by_name():
    request = wire.produce_request({("t", 0): b"batch"}, 100, ids={"t": "00" * 16})
    assert [request.prepare({0: (3, highest)}).API_VERSION for highest in (8, 12, 13, 14)] == [7, 7, 13, 13]
    assert wire.produce_request({("t", 0): b"batch"}, 100).prepare({0: (3, 13)}).API_VERSION == 7


def test_a_worker_whose_log_was_deleted_stops_loudly(go, kafka_address, monkeypatch):
    """All of its topics are gone, so that no beat succeeds either."""
    for name in ("keeper.LOOK_AT_TOPIC", "keeper.LOOK_AGAIN", "outbox.GONE"):
        monkeypatch.setattr(f"refold.brokers.kafka.{name}", 0.3)

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            worker = Worker(broker, [Agent("a")], group="g", lease=2.0)
            running = asyncio.ensure_future(worker.run())
            await worker.caught_up.wait()
            async with admin(kafka_address) as client:
                await client.delete_topics([name for name in broker.names if name in await client.list_topics()])
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            while isinstance(ended, BaseExceptionGroup):
                ended = ended.exceptions[0]
            assert isinstance(ended, LogMismatch | LogMissing), ended

    go(main())


def test_a_worker_whose_log_was_deleted_and_made_again_stops_loudly(go, kafka_address, monkeypatch):
    monkeypatch.setattr("refold.brokers.kafka.keeper.LOOK_AT_TOPIC", 0.3)

    async def main():
        connect = new_log(kafka_address)
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, connect)
            worker = Worker(broker, [Agent("a")], group="g", lease=2.0)
            running = asyncio.ensure_future(worker.run())
            await worker.caught_up.wait()
            await recreated(broker, kafka_address)
            (ended,) = await asyncio.gather(running, return_exceptions=True)
            while isinstance(ended, BaseExceptionGroup):
                ended = ended.exceptions[0]
            assert isinstance(ended, LogMismatch | LogTruncated), ended

    go(main())


async def fetch_for_ever(sub) -> None:
    while True:
        await sub.fetch()


def test_records_below_which_the_log_was_cut_are_truncated_and_the_rest_is_read(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            broker = await opened(stack, new_log(kafka_address))
            for n in range(6):
                await broker.append([item("k", f"r{n}")])
            async with admin(kafka_address) as client:
                await client.delete_records({TopicPartition(broker.names.log, 0): RecordsToDelete(3)})
            assert (await broker.positions("begin"))[0] == 4
            assert await values(broker) == [b"r3", b"r4", b"r5"]
            with pytest.raises(LogTruncated, match="holds no record at 2"):
                await broker.read_at(0, [2, 5])
            async with broker.subscribe("g", "m") as sub:
                await owned(sub)
                sub.seek(0, 0)
                got: list[bytes] = []
                while len(got) < 3:
                    got += [r.value for e in await sub.fetch() if isinstance(e, Batch) for r in e.records]
                assert got == [b"r3", b"r4", b"r5"]
                sub.seek(0, 100)
                with pytest.raises(LogTruncated, match="ends before position 100"):
                    await fetch_for_ever(sub)

    go(main())


def test_the_control_topic_is_cut_behind_its_snapshots_and_who_comes_late_starts_from_the_newest(go, kafka_address):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            connect = new_log(kafka_address)
            broker, asleep = await opened(stack, connect), await opened(stack, connect)
            broker.control._patience = 5
            await broker.announce(Presence(member="first", group="g"), ttl=60)
            async with broker.subscribe("g", "m") as sub:
                epochs = await owned(sub)
                for n in range(20):
                    await broker.announce(Presence(member="a", group="g", running=n), ttl=60)
                snapshot = broker.control._snapshot
                assert snapshot > 10
                async with admin(kafka_address) as client:
                    place = TopicPartition(broker.names.control, 0)
                    await client.delete_records({place: RecordsToDelete(snapshot)})
                for reader in (broker, asleep, await opened(stack, connect)):
                    found = {m.presence.member: m.presence.running for m in await reader.members()}
                    assert found == {"first": 0, "a": 19}
                    assert reader.meta == broker.meta
                    assert await reader.owns("g", sub.keeper.token, 1, epochs[1])

    go(main())


def test_a_topic_of_somebody_else_is_never_taken_for_a_log(go, kafka_address):
    async def main():
        connect = new_log(kafka_address)
        async with contextlib.AsyncExitStack() as stack:
            broker = await stack.enter_async_context(connect())
            async with admin(kafka_address) as client, producer(kafka_address) as foreign:
                await client.create_topics([NewTopic(broker.names.log, 2, 1)])
                await foreign.send_and_wait(broker.names.log, b"not ours", partition=0)
                with pytest.raises(LogMismatch, match=r"is there without .*checkpoints"):
                    await broker.ensure_log(TWO)
                assert broker.names.control not in await client.list_topics()

    go(main())


def test_a_lost_member_hears_of_it_though_its_own_beat_comes_late(go, kafka_address):
    """The beat that arrives behind another's claim brings the loss with it."""

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            connect = new_log(kafka_address)
            broker, other = await opened(stack, connect), await opened(stack, connect)
            async with broker.subscribe("g", "late", lease=1.0) as late:
                epochs = await owned(late)
                late.keeper.silent = True
                async with other.subscribe("g", "heir", lease=1.0) as heir:
                    await owned(heir)
                    deadline = late.deadline(0)
                    assert deadline < asyncio.get_running_loop().time()
                    late.keeper.silent = False
                    lost: list[Lost] = []
                    while len(lost) < 2:
                        lost += [e for e in await late.fetch(max_wait=0.1) if isinstance(e, Lost)]
                    assert {e.partition: e.epoch for e in lost} == epochs

    go(main())


def test_health_says_what_is_wrong_rather_than_raising(go, kafka_address):
    async def main():
        for connect, why in (
            (new_log(kafka_address), "there is no log"),
            (new_log("127.0.0.1:1", patience=0.5), "the cluster cannot be asked"),
        ):
            async with connect() as broker:
                health = await broker.health()
                assert (health.ok, health.why, len(health.checks)) == (False, why, 1)
                assert health.checks[0][3]

    go(main())
