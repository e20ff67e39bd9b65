"""What tests of the adapter for NATS share: a log of their own, members that die or fall silent, and items."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from refold.brokers.conformance import Subject
from refold.brokers.jetstream import JetStreamBroker, from_url
from refold.brokers.servers import Server
from refold.bus.broker import Item, Outgoing

BROKERS = ["memory", "sqlite", *(["nats"] if os.environ.get("REFOLD_TESTS") == "thorough" else [])]
"""What tests of the engine run on."""


@contextlib.contextmanager
def running(entered: AbstractAsyncContextManager[Server]) -> Iterator[Server]:
    """Keep a server that is started and ended by a loop of its own, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        server = asyncio.run_coroutine_threadsafe(entered.__aenter__(), loop).result()
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(entered.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def url_of(request: pytest.FixtureRequest, folder: Path) -> str:
    """A log of its own on the broker that the parameter names."""
    if request.param == "nats":
        return new_url(request.getfixturevalue("nats_address"), partitions=4)
    return f"memory://{folder.name}" if request.param == "memory" else f"sqlite:///{folder}/log.db"


def new_url(address: str, **settings: object) -> str:
    """A namespace that nobody has."""
    query = "&".join(f"{name}={value}" for name, value in settings.items())
    return f"nats://{address}/t{uuid.uuid4().hex[:16]}{'?' if query else ''}{query}"


@contextlib.contextmanager
def stalled_on_nats(broker: JetStreamBroker) -> Iterator[None]:
    """The threads that renew do nothing, as those of a stopped process."""
    keepers = [sub.keeper for sub in broker._subscriptions]

    async def nothing() -> None:
        pass

    for keeper in keepers:
        keeper._turn = nothing
    yield
    for keeper in keepers:
        del keeper._turn


def on_nats(address: str, name: str = "nats", *, lease: float = 1.0, **settings: object) -> Subject:
    """A NATS to be judged; each log has a namespace of its own."""

    def new_log():
        url = new_url(address, **settings)
        return lambda: from_url(url)

    return Subject(name, new_log, lease=lease, patience=20.0, kill=lambda b: b.die(), stall=stalled_on_nats)


def item(partition: int, key: str | None, *ids: str, after: int | None = None) -> Item:
    """Records that hold their ids."""
    return Item(partition, key, tuple(Outgoing(id, id.encode()) for id in ids), after)
