"""The five stages, each in a process of its own, on one file; 100 workflows at once from a sixth process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import raw as hand
from measure import BENCH, Figure, Row
from rows.pipeline import AT_ONCE, FoldingPipeline, agents, flood, nothing

WORKFLOWS = 1500
NAMES = [f"stage{i}" for i in range(1, hand.STAGES + 1)]


@contextlib.contextmanager
def started(*commands: Sequence[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run this file in processes of its own; ended, whatever happens."""
    paths = [str(BENCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    running = [subprocess.Popen([sys.executable, *command], env=here) for command in commands]
    try:
        yield running
    finally:
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.wait()


# ---- by hand ---------------------------------------------------------------------------------------------------------
class SharedLog(hand.RawLog):
    """The raw log for several processes: a record's receiver is a column with an index, who is meant is rung up."""

    def __init__(self, path: str, receiver: str) -> None:
        with contextlib.closing(hand.connect(path)) as db:
            db.execute(
                "CREATE TABLE IF NOT EXISTS records(at INTEGER PRIMARY KEY, receiver TEXT, key TEXT,"
                " value BLOB NOT NULL)"
            )
            db.execute("CREATE INDEX IF NOT EXISTS by_receiver ON records(receiver, at)")
        super().__init__(path)
        self._receiver = receiver
        self._folder = os.path.dirname(path)
        self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._bell.setblocking(False)

    def _commit(self, rows: list[tuple[str, bytes]]) -> int:
        db = self._write_db
        receivers = [hand.decode(value).receiver_id for _, value in rows]
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
                break
            except sqlite3.OperationalError:
                time.sleep(0.0005 * (0.5 + random.random()))
        given = [(to, key, value) for to, (key, value) in zip(receivers, rows, strict=True)]
        db.executemany("INSERT INTO records(receiver, key, value) VALUES (?, ?, ?)", given)
        last: int = db.execute("SELECT last_insert_rowid()").fetchone()[0]
        db.execute("COMMIT")
        for to in self.who_hears(set(receivers)):
            with contextlib.suppress(OSError):
                self._bell.sendto(b"c", f"{self._folder}/{to}.sock")
        if self._receiver == "client":
            self._tidy()
        return last

    def who_hears(self, receivers: set[str]) -> set[str]:
        """Those are woken by a commit."""
        return receivers

    def _read(self, after: int) -> list[tuple[int, bytes]]:
        sql = "SELECT at, value FROM records WHERE receiver = ? AND at > ? ORDER BY at LIMIT ?"
        return self._read_db.execute(sql, (self._receiver, after, hand.READ_LIMIT)).fetchall()


class WholeLog(SharedLog):
    """The same, read whole: who judges a record must know what came before it in its workflow, whomever it was for."""

    def who_hears(self, receivers: set[str]) -> set[str]:
        """All but the client, which only waits for answers."""
        return {*NAMES, *receivers} - {self._receiver}

    def _read(self, after: int) -> list[tuple[int, bytes]]:
        sql = "SELECT at, value FROM records WHERE at > ? ORDER BY at LIMIT ?"
        return self._read_db.execute(sql, (after, hand.READ_LIMIT)).fetchall()


@contextlib.asynccontextmanager
async def member(folder: str, receiver: str, *, judges: bool = False) -> AsyncIterator[hand.Pipeline]:
    """One process of the hand-written pipeline. With `judges` each of the five folds every record."""
    judges = judges and receiver != "client"
    log = (WholeLog if judges else SharedLog)(f"{folder}/raw.db", receiver)
    loop = (FoldingPipeline if judges else hand.Pipeline)(log, {} if receiver == "client" else {receiver: nothing})
    ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ear.bind(f"{folder}/{receiver}.sock")
    ear.setblocking(False)

    def heard() -> None:
        with contextlib.suppress(BlockingIOError):
            while ear.recv(16):
                pass
        loop.news.set()

    asyncio.get_running_loop().add_reader(ear.fileno(), heard)
    task = asyncio.create_task(loop.run())
    try:
        yield loop
    finally:
        task.cancel()


def wait_for(paths: list[str]) -> None:
    """Return when all of these are there."""
    while not all(os.path.exists(path) for path in paths):
        time.sleep(0.01)


def raw(folder: Path) -> dict[str, float]:
    """Five processes, the table shared; each reads what is meant for it."""
    return by_hand(folder, "raw")


def folding(folder: Path) -> dict[str, float]:
    """Each of the five asks refold's admission what is true, and so reads and folds every record."""
    return by_hand(folder, "folding")


def by_hand(folder: Path, kind: str) -> dict[str, float]:
    """Measure a hand-written pipeline of that kind."""

    async def main() -> float:
        async with member(str(folder), "client") as loop:
            with started(*([__file__, kind, str(folder), name] for name in NAMES)):
                await asyncio.to_thread(wait_for, [f"{folder}/{name}.sock" for name in NAMES])
                request = lambda: loop.request(str(uuid.uuid4()))
                await flood(request, 300, AT_ONCE)
                return await flood(request, WORKFLOWS, AT_ONCE)

    return {"rate": asyncio.run(main())}


# ---- refold ----------------------------------------------------------------------------------------------------------
def refold(folder: Path) -> dict[str, float]:
    """Five workers with a group each, a client that waits for each answer."""
    from refold import MessageBus

    url = f"sqlite:///{folder}/refold.db"

    async def main() -> float:
        async with MessageBus.open(url) as bus:
            with started(*([__file__, "refold", url, name] for name in NAMES)):
                request: Callable[[], object] = lambda: bus.request("stage1", hand.PAYLOAD, timeout=60)
                await flood(request, 300, AT_ONCE)
                return await flood(request, WORKFLOWS, AT_ONCE)

    return {"rate": asyncio.run(main())}


def worker(kind: str, where: str, name: str) -> None:
    """Be one of the five."""
    if kind == "refold":
        from refold.agents.runtime import serve

        asyncio.run(serve([a for a in agents() if a.name == name], where, group=name))
        return

    async def main() -> None:
        async with member(where, name, judges=kind == "folding"):
            await asyncio.Event().wait()

    asyncio.run(main())


ROW = Row(
    "5-stage pipeline, each stage a process, 100 workflows at once",
    [
        Figure("rate", "", "workflows/s", "ratio >= 0.5"),
        Figure("rate", "beside the five by hand with admission", "workflows/s", base="folding"),
    ],
    {"raw": raw, "folding": folding, "refold": refold},
)

if __name__ == "__main__":
    worker(*sys.argv[1:])
