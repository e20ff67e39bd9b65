"""Opening a log for a command: to look at it, or to append to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from .output import errors, say
from .settings import broker_url

if TYPE_CHECKING:
    from ..agents.client import MessageBus
    from ..bus.broker import Broker


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[Broker]:
    """Open a log that is there, to look at it. Raises LogMissing."""
    from ..brokers import open_broker

    async with open_broker(broker_url(url)) as broker:
        await broker.ensure_log(create=False)
        yield broker


@asynccontextmanager
async def client(url: str | None, *, create: bool = False) -> AsyncIterator[MessageBus]:
    """Open a client. `create` makes a log where there is none, and says so: it may be the wrong folder."""
    from ..agents.client import MessageBus
    from ..brokers import open_broker
    from ..bus.errors import LogMissing

    url = broker_url(url)
    async with open_broker(url) as broker:
        try:
            await broker.ensure_log(create=False)
        except LogMissing:
            if not create:
                raise
            await broker.ensure_log()
            say(f"there was no log at {url}: made one; a worker that is started on it handles the message", errors)
        async with MessageBus.open(broker) as bus:
            yield bus
