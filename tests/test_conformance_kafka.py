"""Every promise of the port, on a real Kafka; and on three nodes, where the tests are thorough."""

from __future__ import annotations

import asyncio
import os

import pytest
from kafka_logs import on_kafka

from refold.brokers.conformance import cases_of, left_out

KAFKA = on_kafka("localhost")


@pytest.mark.parametrize("case", cases_of(KAFKA), ids=lambda case: f"kafka-{case}")
def test_every_promise_of_the_port_is_kept_on_kafka(case, kafka_address):
    asyncio.run(case.run(on_kafka(kafka_address)))


def test_nothing_is_left_out_on_kafka():
    assert left_out(KAFKA) == {}


@pytest.mark.skipif(os.environ.get("REFOLD_SERVERS") != "thorough", reason="three nodes: make test-servers")
@pytest.mark.timeout(600)
def test_every_promise_of_the_port_is_kept_on_three_nodes(own_kafka, tmp_path):
    async def main():
        async with own_kafka(tmp_path, nodes=3) as server:
            subject = on_kafka(server.bootstrap, "kafka of three nodes", patience=60.0, settings="?replication=3")
            for case in cases_of(subject):
                await case.run(subject)

    asyncio.run(main())
