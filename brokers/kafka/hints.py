"""Hints: a topic that is soon forgotten, with one reader in each process that listens. Without the topic, or when it
cannot be reached, hints are lost: the log is the result."""

from __future__ import annotations

import asyncio
import contextlib
import os

from ...bus.errors import BrokerUnavailable, LogCorrupt, Overloaded, RefoldError
from .link import LISTEN, Link
from .outbox import Outbox

WAIT = 0.5


class KafkaListener:
    """A queue of hints."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.hints: asyncio.Queue[bytes] = asyncio.Queue()

    async def get(self) -> bytes:
        return await self.hints.get()


class Hints:
    """Sends and receives; `topic` is None where there is none."""

    def __init__(self, link: Link, outbox: Outbox, topic: str | None) -> None:
        self.link, self.outbox, self.topic = link, outbox, topic
        self._listeners: dict[str, KafkaListener] = {}
        self._reading: asyncio.Task[None] | None = None
        self._next = 0

    def send(self, address: str, hint: bytes) -> None:
        """Send a hint, and wait for nothing."""
        here = self._listeners.get(address)
        if here is not None:
            here.hints.put_nowait(hint)
        elif self.topic is not None:
            with contextlib.suppress(UnicodeEncodeError, Overloaded, BrokerUnavailable):
                self.outbox.put(self.topic, 0, [(address.encode(), hint)])

    async def open(self) -> KafkaListener:
        """Return a listener that hears what is sent from now on."""
        listener = KafkaListener(os.urandom(12).hex())
        if self._reading is None and self.topic is not None:
            (self._next,) = (await self.link.offsets(self.topic, [0])).values()
            self._reading = asyncio.create_task(self._read(self.topic))
        self._listeners[listener.address] = listener
        return listener

    async def shut(self, listener: KafkaListener) -> None:
        """Hear nothing more at this address."""
        self._listeners.pop(listener.address, None)
        if not self._listeners:
            await self.aclose()

    async def aclose(self) -> None:
        """End the reader."""
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(self, topic: str) -> None:
        while True:
            try:
                node = self.link.leader(topic, 0)
                part = (await self.link.fetch(node, {(topic, 0): self._next}, wait=WAIT, lane=LISTEN))[topic, 0]
            except (BrokerUnavailable, LogCorrupt):
                await self.link.rest()
                continue
            if part.error:
                await self.link.rest()
                with contextlib.suppress(RefoldError):
                    (self._next,) = (await self.link.offsets(topic, [0])).values()
                continue
            self._next = part.next
            for raw in part.records:
                listener = self._listeners.get((raw.key or b"").decode(errors="replace"))
                if listener is not None:
                    listener.hints.put_nowait(raw.value or b"")
