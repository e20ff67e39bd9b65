"""Hints: a worker tells a client where its answer is. The log is the result; a hint that is lost costs time only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, NamedTuple

import msgspec

from ..bus.broker import Broker, Listener

ADDRESS = "refold-address"
"""Header of a request: where a hint about its answer is welcome."""
EARLY = 1000
"""Hints about so many workflows are kept that came before anybody waited for them."""


class Hint(NamedTuple):
    """Something happened in a workflow; `request`: it was answered, by the record at that position."""

    correlation: str
    request: str = ""
    position: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


_encoder, _decoder = msgspec.json.Encoder(), msgspec.json.Decoder(Hint)


def encode(hint: Hint) -> bytes:
    """Return a hint as it is sent."""
    return _encoder.encode(hint)


def decode(raw: bytes) -> Hint | None:
    """Return a hint; None where the bytes are none."""
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


class Told(asyncio.Event):
    """Set when a hint about the workflow comes; and where the answers are that were heard of, by request."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[str, int] = {}

    def hear(self, hint: Hint) -> None:
        """Take a hint."""
        if hint.request:
            self.answers[hint.request] = hint.position
        self.set()

    async def within(self, seconds: float) -> None:
        """Wait until a hint comes, or the time is over; it is set then too."""
        timer = asyncio.get_running_loop().call_later(seconds, self.set)
        try:
            await self.wait()
        finally:
            timer.cancel()


class Hints:
    """One address per client; hints wake who waits for that workflow, or will."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[str, set[Told]] = {}
        self._early: dict[str, Told] = {}
        self._listener: Listener | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> None:
        self._listener = await self._stack.enter_async_context(self._broker.listen())
        tasks = await self._stack.enter_async_context(asyncio.TaskGroup())
        task = tasks.create_task(self._hear(self._listener))
        self._stack.callback(task.cancel)

    async def __aexit__(self, *exc: Any) -> None:
        await self._stack.aclose()

    async def _hear(self, listener: Listener) -> None:
        while True:
            hint = decode(await listener.get())
            if hint is not None:
                self.take(hint)

    def take(self, hint: Hint) -> None:
        """Wake whoever waits for that workflow here; the next one who does, where nobody waits yet."""
        waiting = self._waiting.get(hint.correlation)
        for told in waiting or ():
            told.hear(hint)
        if waiting is None:
            self._early.setdefault(hint.correlation, Told()).hear(hint)
            if len(self._early) > EARLY:
                del self._early[next(iter(self._early))]

    def headers(self) -> dict[str, str]:
        """Return the headers of a request whose answer somebody waits for here."""
        return {ADDRESS: self._listener.address} if self._listener is not None else {}

    @asynccontextmanager
    async def about(self, correlation: str) -> AsyncIterator[Told]:
        """Open an event that is set when a hint about the workflow comes."""
        told = self._early.pop(correlation, None) or Told()
        self._waiting.setdefault(correlation, set()).add(told)
        try:
            yield told
        finally:
            self._waiting[correlation].discard(told)
            if not self._waiting[correlation]:
                del self._waiting[correlation]
