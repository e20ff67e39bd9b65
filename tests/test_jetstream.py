"""The adapter for NATS, on a real server: every promise of the port, and the traps of JetStream one by one."""

from __future__ import annotations

import asyncio

import pytest
from jetstream_logs import on_nats

from refold.brokers.conformance import cases_of, left_out

UNUSED = on_nats("unused:1")


@pytest.mark.parametrize("case", [pytest.param(case, id=f"nats-{case}") for case in cases_of(UNUSED)])
def test_every_promise_of_the_port_is_kept_on_nats(case, nats_address):
    asyncio.run(case.run(on_nats(nats_address)))


def test_nothing_is_left_out_on_nats():
    assert left_out(UNUSED) == {}
