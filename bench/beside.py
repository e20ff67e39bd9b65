"""The servers of NATS and Kafka that a row needs: started once, used by all its sides, each under names of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

WHERE = "BENCH_SERVER"
SYNC = os.environ.get("BENCH_NATS_SYNC", "2m")
"""`sync_interval` of the NATS server. "2m" is what it does if it is not told; with "always" its disk is measured."""


@contextlib.contextmanager
def server(kind: str, place: Path) -> Iterator[None]:
    """Run a server ("nats", "kafka"; "": none) whose address the processes started meanwhile find by `bootstrap`.

    Raises ServerMissing, with what to install.
    """
    if not kind:
        yield
        return
    up, down = threading.Event(), threading.Event()
    problem: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(_serve(kind, place, up, down))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            problem.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        up.wait()
        if problem:
            raise problem[0]
        yield
    finally:
        down.set()
        thread.join()
        os.environ.pop(WHERE, None)


async def _serve(kind: str, place: Path, up: threading.Event, down: threading.Event) -> None:
    from refold.brokers.servers import kafka_server, nats_server

    with tempfile.TemporaryDirectory(prefix=f".bench-{kind}-", dir=place, ignore_cleanup_errors=True) as folder:
        async with kafka_server(folder) if kind == "kafka" else nats_server(folder, sync=SYNC) as running:
            os.environ[WHERE] = running.bootstrap
            up.set()
            await asyncio.to_thread(down.wait)


def bootstrap() -> str:
    """Return host:port of the row's server."""
    return os.environ[WHERE]


def space(folder: Path) -> str:
    """Return the name that only one side of one turn has."""
    return folder.name.strip(".").replace("_", "-")


def url(kind: str, space: str) -> str:
    """Return the URL of a log on the row's server."""
    return f"{kind}://{bootstrap()}/{space}"
