"""Headers for other tools: what a message is, read with the brokers' own clients."""

from __future__ import annotations

import asyncio

import nats
from aiokafka import AIOKafkaConsumer
from kafka_logs import new_namespace

from refold import Agent, AgentMessage, Context, MessageBus
from refold.agents.worker import Worker
from refold.brokers.cloudevents import attributes
from refold.brokers.jetstream.frames import SIZES
from refold.brokers.jetstream.names import Names
from refold.brokers.kafka.address import parse
from refold.brokers.kafka.broker import KafkaBroker
from refold.brokers.kafka.topics import names_of
from refold.bus.broker import Item, Outgoing
from refold.bus.codec import encode
from refold.bus.kinds import ENGINE

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def of(value: bytes) -> dict[str, str]:
    return attributes(value, "ce_", "content-type")


def test_a_message_says_what_it_is_and_nothing_else_does():
    ask = AgentMessage.request("writer", "x" * 9, correlation_id="w", timestamp=1.5, headers={"traceparent": TRACE})
    assert of(encode(ask)) == {
        "ce_specversion": "1.0", "ce_id": ask.id, "ce_type": "task_request", "ce_source": "client",
        "ce_subject": "writer", "ce_time": "1970-01-01T00:00:01.500000Z", "ce_correlationid": "w",
        "content-type": "application/json", "traceparent": TRACE,
    }  # fmt: skip
    answer = of(encode(ask.reply("done")))
    assert (answer["ce_causationid"], answer["ce_type"]) == (ask.id, "task_response")
    assert "traceparent" not in answer
    assert "traceparent" not in of(encode(AgentMessage.request("w", 1, headers={"traceparent": "a\r\nb"})))
    assert "ce_time" not in of(encode(AgentMessage.request("w", 1, timestamp=1e15)))
    for nothing in (b"", b"{}", b"[1]", b'"text"', b"\xff", *(b'{"message_type":"%s"}' % k.encode() for k in ENGINE)):
        assert of(nothing) == {}


async def worked(url: str) -> tuple[str, list[bytes]]:
    """Let an agent answer a request on a log of one partition; return the log's id, and all records."""
    agent = Agent("echo")

    @agent.on_task
    async def handle(ctx: Context, task: str) -> str:
        return await ctx.effect("shout", task.upper)

    async with MessageBus.open(url) as bus:
        worker = Worker(bus.broker, [agent], group="g")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            assert await bus.request("echo", "hello", timeout=20) == "HELLO"
            worker.stop()
    async with MessageBus.open(url) as bus:  # what the worker wrote last is there
        return bus.broker.meta.log_id, [record.value for record in (await bus.broker.read(0)).records]


def kinds(headers: list[dict[str, str]], prefix: str) -> set[str]:
    return {said[f"{prefix}type"] for said in headers if f"{prefix}type" in said}


def test_other_consumers_of_kafka_see_what_is_in_a_message(go, kafka_address):
    async def main():
        url = f"kafka://{kafka_address}/{new_namespace()}?cloudevents=true&partitions=1"
        _, records = await worked(url)
        names = names_of(parse(url).namespace)
        async with AIOKafkaConsumer(names.log, bootstrap_servers=kafka_address, auto_offset_reset="earliest") as other:
            seen = [await other.getone() for _ in records]
        headers = [{name: text.decode() for name, text in record.headers} for record in seen]
        assert headers == [of(value) for value in records]
        assert kinds(headers, "ce_") == {"task_request", "task_response"}

    go(main())


def test_an_append_that_is_too_large_with_headers_goes_without(go, kafka_address):
    async def main():
        broker = KafkaBroker(parse(f"kafka://{kafka_address}/{new_namespace()}?cloudevents=true&partitions=1"))
        async with broker:
            meta = await broker.ensure_log()
            many = [encode(AgentMessage.request("a", None, correlation_id="k")) for _ in range(4000)]
            assert sum(map(len, many)) < meta.max_append
            await broker.append([Item(0, "k", tuple(Outgoing(f"{n}", value) for n, value in enumerate(many)))])
            read = await broker.read(0, limit=5000)
            assert [record.value for record in read.records] == many

    go(main())


def test_other_consumers_of_nats_see_what_is_in_a_message(go, nats_address):
    async def main():
        namespace = new_namespace()
        log_id, records = await worked(f"nats://{nats_address}/{namespace}?cloudevents=true&partitions=1")
        other = await nats.connect(nats_address)
        stream = Names(namespace, log_id).stream(0)
        last = (await other.jetstream().stream_info(stream)).state.last_seq
        seen = [await other.jetstream().get_msg(stream, seq) for seq in range(1, last + 1)]
        await other.close()
        alone = [message for message in seen if SIZES not in (message.headers or {})]
        own = [{n: v for n, v in (m.headers or {}).items() if not n.startswith("Nats-")} for m in alone]
        assert own == [attributes(message.data, "ce-", "ce-datacontenttype") for message in alone]
        assert kinds(own, "ce-") == {"task_request", "task_response"}
        assert {message.data for message in alone} <= set(records)

    go(main())
