"""The queue of appends to Kafka, over a link that knows no leader for a while. No server."""

from __future__ import annotations

import asyncio

import pytest

from refold.brokers.kafka import wire
from refold.brokers.kafka.link import Again
from refold.brokers.kafka.outbox import Outbox
from refold.bus.errors import BrokerUnavailable


class Leaderless:
    """A link to a cluster in which nobody leads, until `leads` is set; appends are taken then, one batch after the
    other."""

    def __init__(self, patience: float) -> None:
        self.patience, self.leads, self.ids, self.taken = patience, False, dict[str, str](), 0

    def leader(self, topic: str, partition: int) -> int:
        if not self.leads:
            raise Again(f"nobody leads partition {partition} of {topic}")
        return 1

    async def look(self) -> None:
        pass

    async def still_there(self, topic: str) -> None:
        pass

    async def still_the_same(self, topic: str) -> None:
        pass


@pytest.fixture
def sent(monkeypatch):
    """Appends are acknowledged without any request."""
    async def send(self, node, lane, batches):
        for place, batch in batches.items():
            self.link.taken += 1
            await self._answered(place, batch, wire.OK, self.link.taken)

    async def producer(self):
        return (1, 0)

    monkeypatch.setattr(Outbox, "_send", send)
    monkeypatch.setattr(Outbox, "_new_producer", producer)


def test_a_queue_whose_last_append_was_given_up_can_be_closed(go):
    async def main():
        outbox = Outbox(Leaderless(patience=0.05))
        with pytest.raises(BrokerUnavailable, match="nobody leads"):
            await outbox.append("t", 0, [(b"k", b"v")])
        async with asyncio.timeout(5):
            await outbox.aclose()

    go(main())


def test_what_waits_behind_an_append_that_was_given_up_is_sent_without_another_one(go, sent):
    async def main():
        link = Leaderless(patience=0.2)
        outbox = Outbox(link)
        outbox.limits["t"] = 300  # of one append
        first, second = (outbox.put("t", 0, [(b"k", bytes(200))]) for _ in range(2))
        with pytest.raises(BrokerUnavailable, match="nobody leads"):
            await first
        link.leads = True
        async with asyncio.timeout(5):
            assert await second == 1
            await outbox.aclose()

    go(main())
