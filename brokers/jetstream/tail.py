"""Following one stream from a position on: an ordered pull without acknowledgements, made again when anything is odd.

The client's own ordered consumer is not used: it resets itself in the middle of the client's read loop, and an open bug
of it loses messages then. Here a gap, a silence or an unknown status ends the consumer, and another one goes on from
the last message that was taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec
from nats.aio.msg import Msg

from ...bus.broker import Stored
from ...bus.errors import BrokerUnavailable, RefoldError
from .appending import Appender
from .connection import Link, Refused, status
from .frames import unpacked
from .names import Names, key_of, sequence_of

PULL = 500
PULL_BYTES = 8 * 1024 * 1024
HIGH = 2000
"""Messages asked for at once; so many records are kept until they are fetched, then no more are asked for."""
HEARTBEAT = 2.0
SILENCE = 5.0
"""Seconds between the server's signs of life, and without one until the consumer is made again."""
EXPIRES = 30.0
AGAIN = 0.2
DELIVERED = "$JS.ACK."


class Tail:
    """The records of a partition from a position on, in order, none left out. `run` fills `buffer`."""

    def __init__(self, link: Link, names: Names, appender: Appender, partition: int, start: int) -> None:
        self.partition = partition
        self.next = max(start, 1)
        self.buffer: deque[Stored] = deque()
        self.problem: Exception | None = None
        self._link, self._appender = link, appender
        self._sequence = max(1, sequence_of(self.next))
        self._stream = names.stream(partition)
        self._name = ""
        self._inbox: Any = None
        self._asked = self._taken = 0
        self._broken = False
        self._heard = asyncio.Event()

    def take(self, limit: int) -> list[Stored]:
        """Return up to so many records, which are thereby delivered."""
        out = [self.buffer.popleft() for _ in range(min(limit, len(self.buffer)))]
        if out:
            self.next = out[-1].position + 1
            if self._asked <= PULL // 2:  # there may be room to ask for more
                self._heard.set()
        return out

    async def run(self, news: Callable[[], None]) -> None:
        """Follow the stream until cancelled. What cannot be mended is left in `problem`."""
        self._link.watchers.add(self._heard)
        try:
            while True:
                try:
                    await self._follow(news)
                except BrokerUnavailable as error:
                    if type(error) is not BrokerUnavailable:
                        raise
                await asyncio.sleep(AGAIN)
        except RefoldError as error:
            self.problem = error
            news()
        finally:
            self._link.watchers.discard(self._heard)

    async def _follow(self, news: Callable[[], None]) -> None:
        """Make a consumer and read until it is of no use any more."""
        await self._link.connected(SILENCE)
        await self._appender.still_there(self.partition)
        reconnects = self._link.reconnects
        try:
            await self._make(news)
            while not self._broken and reconnects == self._link.reconnects:
                await self._pull()
                taken = self._taken
                self._heard.clear()
                try:
                    async with asyncio.timeout(SILENCE):
                        await self._heard.wait()
                except TimeoutError:
                    if self._asked and self._taken == taken:
                        return
        finally:
            await self._end()

    async def _make(self, news: Callable[[], None]) -> None:
        self._name, self._asked, self._taken, self._broken = f"refold-{os.urandom(8).hex()}", 0, 0, False
        inbox = self._link.client.new_inbox()

        def heard(msg: Msg) -> None:
            try:
                fresh = self._hear(msg)
            except Exception:  # told by the client; the next consumer begins with this message
                self._broken = True
                self._heard.set()
                raise
            if fresh:
                news()

        self._inbox = await self._link.listen(inbox, heard)
        config = {
            "name": self._name, "ack_policy": "none", "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._sequence, "mem_storage": True, "num_replicas": 1, "replay_policy": "instant",
            "inactive_threshold": 60_000_000_000,
        }  # fmt: skip
        body = {"stream_name": self._stream, "config": config, "action": "create"}
        try:
            await self._link.api(f"CONSUMER.CREATE.{self._stream}.{self._name}", body)
        except Refused as error:
            raise BrokerUnavailable(f"{self._stream}: {error}") from error

    async def _end(self) -> None:
        inbox, self._inbox = self._inbox, None
        if inbox is not None:
            with contextlib.suppress(Exception):
                await inbox.unsubscribe()
            with contextlib.suppress(BrokerUnavailable):
                await self._link.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}")

    async def _pull(self) -> None:
        """Ask for more, where not enough is on its way and there is room for it."""
        if self._asked > PULL // 2 or len(self.buffer) >= HIGH:
            return
        count = PULL - self._asked
        body = {
            "batch": count, "max_bytes": PULL_BYTES, "expires": int(EXPIRES * 1e9),
            "idle_heartbeat": int(HEARTBEAT * 1e9),
        }  # fmt: skip
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}"
        self._asked += count
        await self._link.publish(subject, msgspec.json.encode(body), None, self._inbox.subject)

    # ---- what the server says ----------------------------------------------------------------------------------------
    def _hear(self, msg: Msg) -> bool:
        """Take a message; True where there are new records."""
        said = None if msg.reply.startswith(DELIVERED) else status(msg)  # a record may have any header, also that one
        fresh = False
        if said is None:
            fresh = self._record(msg)
            if self._asked > PULL // 2 and not self._broken:
                return fresh
        elif said == "100":
            self._broken = self._broken or int((msg.headers or {}).get("Nats-Last-Consumer", 0)) != self._taken
        elif said in ("408", "409") and "Nats-Pending-Messages" in (msg.headers or {}):
            self._asked -= int((msg.headers or {})["Nats-Pending-Messages"])
        else:
            self._broken = True
        self._heard.set()
        return fresh

    def _record(self, msg: Msg) -> bool:
        """Take the records of a message, if it follows on the last one."""
        parts = msg.reply.split(".")
        sequence, delivered, at = map(int, parts[5:8] if len(parts) == 9 else parts[7:10])  # with a domain, an account
        self._asked -= 1
        if self._broken or delivered != self._taken + 1:
            self._broken = True
            return False
        self._taken = delivered
        if sequence < self._sequence:
            return False
        key = key_of(msg.subject.split(".", 3)[3])
        records = unpacked(sequence, key, msg.data, msg.headers, at / 1e9)
        self._sequence = sequence + 1
        self._appender.seen(self.partition, sequence)
        self.buffer.extend(record for record in records if record.position >= self.next)
        return True
