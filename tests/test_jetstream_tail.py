"""What a tail on NATS does about a stream that says little."""

from __future__ import annotations

import asyncio

from jetstream_logs import item, new_url

from refold.brokers.jetstream import from_url, tail
from refold.bus.broker import LogSpec


def test_a_consumer_that_brings_a_record_now_and_then_is_kept_though_nobody_takes_them(nats_address, monkeypatch):
    """The server beats only when nothing happens; a partition that is paused is not taken from."""
    monkeypatch.setattr(tail, "SILENCE", 1.0)

    async def main() -> None:
        async with from_url(new_url(nats_address)) as broker, asyncio.TaskGroup() as tasks:
            await broker.ensure_log(LogSpec(partitions=1))
            news = asyncio.Event()
            followed = tail.Tail(broker.link, broker.names, broker.appender, 0, 1)
            task = tasks.create_task(followed.run(news.set))
            names = set[str]()
            for n in range(6):
                news.clear()
                await broker.append([item(0, "k", f"{n}")])
                await news.wait()
                names.add(followed._name)
                await asyncio.sleep(0.3)
            assert len(followed.buffer) == 6
            assert len(names) == 1
            task.cancel()

    asyncio.run(main())


def test_a_consumer_that_says_nothing_is_made_again_and_goes_on(nats_address, monkeypatch):
    monkeypatch.setattr(tail, "SILENCE", 0.1)

    async def main() -> None:
        async with from_url(new_url(nats_address)) as broker, asyncio.TaskGroup() as tasks:
            await broker.ensure_log(LogSpec(partitions=1))
            news, names = asyncio.Event(), set[str]()
            followed = tail.Tail(broker.link, broker.names, broker.appender, 0, 1)
            task = tasks.create_task(followed.run(news.set))
            async with asyncio.timeout(10):
                while len(names - {""}) < 2:
                    names.add(followed._name)
                    await asyncio.sleep(0.01)
                await broker.append([item(0, "k", "after")])
                while not followed.buffer:
                    await asyncio.sleep(0.01)
            assert [r.value for r in followed.take(5)] == [b"after"]
            task.cancel()

    asyncio.run(main())


def test_a_record_that_could_not_be_taken_is_taken_again_and_none_is_left_out(nats_address, monkeypatch):
    """What goes wrong while a message is heard is told by the client, which goes on: the tail must not."""
    unpacked, failed = tail.unpacked, list[int]()

    def fails_once(sequence, *args):
        if sequence == 2 and not failed:
            failed.append(sequence)
            raise MemoryError
        return unpacked(sequence, *args)

    async def main() -> None:
        async with from_url(new_url(nats_address)) as broker, asyncio.TaskGroup() as tasks:
            await broker.ensure_log(LogSpec(partitions=1))
            monkeypatch.setattr(tail, "unpacked", fails_once)
            news = asyncio.Event()
            followed = tail.Tail(broker.link, broker.names, broker.appender, 0, 1)
            task = tasks.create_task(followed.run(news.set))
            for n in range(4):
                await broker.append([item(0, "k", f"{n}")])
            async with asyncio.timeout(20):
                while len(followed.buffer) < 4:
                    news.clear()
                    await news.wait()
            assert failed == [2]
            positions = [record.position for record in followed.buffer]
            assert positions == sorted(set(positions))
            assert len(positions) == 4
            task.cancel()

    asyncio.run(main())
