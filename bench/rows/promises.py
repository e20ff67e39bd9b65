"""What each promise of an append costs: the hand-written loop, with one promise of refold's after the other added."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import msgspec
import raw as hand
from measure import Figure, Row
from rows.append import EACH, SENDERS, refold as engine
from uuid_utils import uuid7

PARTITIONS = 16


class Found(hand.RawLog):
    """Each workflow's records can be found: a column and an index."""

    def __init__(self, path: str) -> None:
        with contextlib.closing(hand.connect(path)) as db:
            db.execute(
                "CREATE TABLE records(at INTEGER PRIMARY KEY, hash INTEGER NOT NULL, id BLOB NOT NULL, key TEXT,"
                " value BLOB NOT NULL)"
            )
            db.execute("CREATE INDEX by_key ON records(hash, id)")
        super().__init__(path)
        self._numbers = itertools.count(1)

    def place(self, key: str) -> int:
        """Where the next record of a workflow goes."""
        return next(self._numbers)

    def check(self, hashed: list[tuple[int, bytes]]) -> None:
        """Nothing is refused here."""

    def _commit(self, rows: list[tuple[str, bytes]]) -> int:
        hashed = [
            (int(key[:8] + key[9:13], 16) << 22 & (1 << 62) - 1, blake2b(value[:48], digest_size=16).digest())
            for key, value in rows
        ]
        db = self._write_db
        db.execute("BEGIN IMMEDIATE")
        self.check(hashed)
        given = [(self.place(key), h, i, key, v) for (key, v), (h, i) in zip(rows, hashed, strict=True)]
        db.execute(f"INSERT INTO records VALUES {', '.join(['(?, ?, ?, ?, ?)'] * len(given))}", sum(given, ()))
        db.execute("COMMIT")
        self._tidy()
        return len(rows)


class Unique(Found):
    """And a record that is there already is refused."""

    def check(self, hashed: list[tuple[int, bytes]]) -> None:
        """Look all ids up in one statement."""
        sql = (
            f"SELECT r.at FROM (VALUES {', '.join(['(?, ?)'] * len(hashed))}) AS v CROSS JOIN records AS r"
            " INDEXED BY by_key ON r.hash = v.column1 AND r.id = v.column2"
        )
        if self._write_db.execute(sql, sum(hashed, ())).fetchone():
            raise ValueError("a duplicate")


class Partitioned(Unique):
    """And records lie in 16 partitions, each in its own order, as workers share them."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._last = [p << 44 for p in range(PARTITIONS)]

    def place(self, key: str) -> int:
        p = crc32(key.encode()) % PARTITIONS
        self._last[p] += 1
        return self._last[p]


def measured(kind: type[hand.RawLog], folder: Path, *, judged: bool = False) -> dict[str, float]:
    """Records per second with 100 senders. `judged`: each is decoded again before it is sent, as a check of types."""

    async def main() -> float:
        log = kind(str(folder / "log.db"))

        async def sender(times: int) -> None:
            for _ in range(times):
                correlation = str(uuid7())  # as refold's: workflows of one time lie together in the index
                value = hand.encode(hand.new_start(correlation))
                if judged:
                    msgspec.to_builtins(hand.PAYLOAD)
                    hand.decode(value)
                await log.append(correlation, value)

        await asyncio.gather(*(sender(10) for _ in range(SENDERS)))
        started = time.perf_counter()
        await asyncio.gather(*(sender(EACH) for _ in range(SENDERS)))
        rate = SENDERS * EACH / (time.perf_counter() - started)
        log.close()
        return rate

    return {"rate": asyncio.run(main())}


STEPS = {
    "raw": "the loop itself",
    "found": "a workflow's records can be found",
    "unique": "the same record is not taken twice",
    "partitioned": "16 partitions",
    "judged": "what is sent is judged",
}

ROW = Row(
    "append, 100 concurrent senders, beside the loop with",
    [Figure("rate", title, "records/s", base=name) for name, title in STEPS.items()],
    {
        "raw": lambda folder: measured(hand.RawLog, folder),
        "found": lambda folder: measured(Found, folder),
        "unique": lambda folder: measured(Unique, folder),
        "partitioned": lambda folder: measured(Partitioned, folder),
        "judged": lambda folder: measured(Partitioned, folder, judged=True),
        "refold": engine,
    },
)
