"""How far a group is, as Kafka's own tools see it."""

from __future__ import annotations

import asyncio
import logging

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from kafka_logs import new_namespace

from refold import Agent, Context, MessageBus
from refold.agents.worker import Worker
from refold.brokers.kafka import plan
from refold.brokers.kafka.address import parse


async def worked(url: str) -> dict[int, int]:
    """Let a worker answer, and end; return the positions of its checkpoints."""
    agent = Agent("echo")

    @agent.on_task
    async def handle(ctx: Context, task: str) -> str:
        return task

    async with MessageBus.open(url) as bus:
        worker = Worker(bus.broker, [agent], group="g")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            for n in range(3):
                assert await bus.request("echo", f"{n}", timeout=20) == f"{n}"
            worker.stop()
        return {p: position for p, position in (await bus.broker.positions("committed", "g")).items() if position}


async def offsets(address: str, group: str) -> dict[int, int]:
    client = AIOKafkaAdminClient(bootstrap_servers=address)
    await client.start()
    try:
        found = await client.list_consumer_group_offsets(group)
    finally:
        await client.close()
    return {place.partition: entry.offset for place, entry in found.items()}


def test_the_positions_of_checkpoints_are_a_consumer_groups_offsets_where_that_is_asked_for(
    go, kafka_address, monkeypatch
):
    monkeypatch.setattr("refold.brokers.kafka.offsets.PATIENCE", 15.0)
    async def main():
        asked, silent = new_namespace(), new_namespace()
        positions = await worked(f"kafka://{kafka_address}/{asked}?offsets=true&partitions=2")
        assert positions
        assert await offsets(kafka_address, f"{asked}.g") == {p: at - 1 for p, at in positions.items()}
        await worked(f"kafka://{kafka_address}/{silent}?partitions=2")
        assert await offsets(kafka_address, f"{silent}.g") == {}

    go(main())


def test_where_the_offsets_cannot_be_committed_it_is_said_and_work_goes_on(go, kafka_address, caplog):
    caplog.set_level(logging.WARNING, "refold.kafka")

    async def main():
        namespace = new_namespace()
        url = f"kafka://{kafka_address}/{namespace}?offsets=true&partitions=1"
        async with MessageBus.open(url):
            pass
        settings = {"bootstrap_servers": kafka_address, "group_id": f"{namespace}.g"}
        async with AIOKafkaConsumer(namespace, **settings) as squatter:
            await squatter.getmany(timeout_ms=1)
            assert await worked(url)
        assert "Kafka's tools do not see how far g is" in caplog.text

    go(main())


def test_the_plan_names_the_right_that_it_needs():
    assert not [right for right in plan.rights(parse("kafka://h/n")) if right.kind == "group"]
    (right,) = [right for right in plan.rights(parse("kafka://h/n?offsets=true")) if right.kind == "group"]
    assert right == plan.Right("group", "n.", ("Read",), prefixed=True)
