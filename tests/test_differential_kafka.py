"""The same operations in memory and on a real Kafka, which refuses nothing: an equal path and an equal state (I14)."""

from __future__ import annotations

import asyncio

import pytest
from kafka_logs import new_log
from test_differential import PARTITIONS, THOROUGH, Side, digest, operations

from refold.brokers import open_broker
from refold.bus.broker import LogSpec
from refold.bus.partition import partition_of
from refold.projections.checkpoint import read_partition
from refold.projections.history import read_workflow
from refold.projections.status import report

SEEDS = 10 if THOROUGH else 2


@pytest.mark.parametrize("seed", range(SEEDS))
def test_equal_operations_give_an_equal_path_and_state_on_kafka(seed, kafka_address):
    async def main():
        async with open_broker("memory://") as memory, new_log(kafka_address)() as kafka:
            sides = [Side(memory), Side(kafka)]
            for side in sides:
                await side.broker.ensure_log(LogSpec(partitions=PARTITIONS))
            calls = operations(seed)
            for i, items in enumerate(calls):
                for side in sides:
                    await side.append(items)
                if i == len(calls) // 2:
                    for partition in range(PARTITIONS):
                        for side in sides:
                            await side.checkpoint(partition)
            names = {item.key for items in calls for item in items if item.key and item.key.startswith("w")}
            await compare(*sides, sorted(n for n in names if not n.endswith("x")))

    asyncio.run(main())



async def compare(memory: Side, kafka: Side, names: list[str]) -> None:
    for partition in range(PARTITIONS):
        found = [(s.position, s.key, s.value) for s in await kafka.read_all(partition)]
        assert found == kafka.acknowledged[partition]
        fold = await read_partition(kafka.broker, partition)
        for name in [n for n in names if partition_of(n, PARTITIONS) == partition]:
            told, here = [digest(await read_workflow(side.broker, name)) for side in (memory, kafka)]
            del told["judged"], here["judged"]  # Kafka's log holds the duplicates that memory has refused
            assert here == told, name
            kept = fold.find(name) or fold.recent.get(name)
            w = (await read_workflow(kafka.broker, name)).workflow
            assert kept is not None or w.is_complete()
            assert kept is None or (kept.version, report(kept)) == (w.version, report(w))
