"""The adapter for NATS, on a real server: every promise of the port, and the traps of JetStream one by one."""

from __future__ import annotations

import asyncio
import os

import pytest
from jetstream_logs import on_nats, running

from refold.brokers.conformance import cases_of, left_out
from refold.bus.broker import LogSpec

THOROUGH = os.environ.get("REFOLD_SERVERS") == "thorough"
UNUSED = on_nats("unused:1")


@pytest.mark.parametrize("case", [pytest.param(case, id=f"nats-{case}") for case in cases_of(UNUSED)])
def test_every_promise_of_the_port_is_kept_on_nats(case, nats_address):
    asyncio.run(case.run(on_nats(nats_address)))


def test_nothing_is_left_out_on_nats():
    assert left_out(UNUSED) == {}


if THOROUGH:  # a minute

    @pytest.fixture(scope="module")
    def cluster(own_nats, tmp_path_factory):
        """Three nodes, for the tests of this module."""
        with running(own_nats(tmp_path_factory.mktemp("cluster"), nodes=3)) as server:
            yield server

    @pytest.mark.slow
    @pytest.mark.parametrize("case", [pytest.param(case, id=f"nats-three-nodes-{case}") for case in cases_of(UNUSED)])
    def test_every_promise_of_the_port_is_kept_on_three_nodes(case, cluster):
        asyncio.run(case.run(on_nats(cluster.bootstrap, "nats-three-nodes", replicas=3)))

    def test_many_that_make_a_log_at_once_on_three_nodes_make_one(cluster):
        async def main():
            for _ in range(10):
                open_one = on_nats(cluster.bootstrap, replicas=3).new_log()
                brokers = [open_one() for _ in range(5)]
                metas = await asyncio.gather(*(broker.ensure_log(LogSpec(partitions=2)) for broker in brokers))
                assert len({meta.log_id for meta in metas}) == 1
                await asyncio.gather(*(broker.aclose() for broker in brokers))

        asyncio.run(main())
