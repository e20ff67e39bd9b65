"""A process that does to a log what can be done. Run in tests/ as: python -m faults.writer FOLDER SEED SYNCHRONOUS

It opens the log several times, appends (alone, and several at once), saves checkpoints, and has the write-ahead log
moved and emptied all the while. The file `marks` gets a line for each thing that was acknowledged. Each record says
its number, counted from 1 in the order of the commits.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

from refold.brokers.sqlite import SqliteBroker, tidy
from refold.bus.broker import Appended, Item, LogSpec, Outgoing
from refold.bus.partition import partition_of

PARTITIONS = 3
TIMES, ROUNDS = 3, 12


def mark(folder: Path, *words: object) -> None:
    """Say that something was acknowledged."""
    fd = os.open(folder / "marks", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    os.close(fd)


def value_of(number: int) -> bytes:
    """Return record `number`: 100 to 9,000 bytes."""
    dice = random.Random(number)
    return f"{number} ".encode() + dice.randbytes(dice.choice((60, 300, 300, 2000, 4500))).hex().encode()


class Writer:
    """Sends records 1, 2, 3, ..."""

    def __init__(self, folder: Path, seed: int, synchronous: str) -> None:
        self.folder, self.synchronous = folder, synchronous
        self.dice = random.Random(seed)
        self.sent = 0

    async def once(self, broker: SqliteBroker) -> None:
        self.sent += 1
        number, key = self.sent, f"key {self.sent % 7}"
        partition = partition_of(key, PARTITIONS)
        out = Outgoing(f"id {number}", value_of(number))
        (result,) = await broker.append([Item(partition, key, (out,))])
        assert isinstance(result, Appended)
        mark(self.folder, "appended", number, partition, *result.positions)

    async def open_and_close(self) -> None:
        async with SqliteBroker(str(self.folder / "log.db"), synchronous=self.synchronous) as broker:
            meta = await broker.ensure_log(LogSpec(partitions=PARTITIONS))
            mark(self.folder, "opened", meta.log_id)
            async with broker.subscribe("group", "member") as sub:
                while not sub.owned():
                    await sub.fetch(max_wait=0.05)
                for n in range(ROUNDS):
                    await asyncio.gather(*(self.once(broker) for _ in range(self.dice.choice((1, 1, 4)))))
                    if n % 4 == 0:
                        await self.checkpoint(sub)

    async def checkpoint(self, sub) -> None:  # type: ignore[no-untyped-def]
        partition, epoch = next(iter(sub.owned().items()))
        number = self.sent
        entries = {b"sent": str(number).encode(), b"padding": self.dice.randbytes(self.dice.choice((10, 9000)))}
        if await sub.save_checkpoint(partition, epoch, number, b"anchor", entries, ()):
            mark(self.folder, "saved", partition, number)


async def main(folder: Path, seed: int, synchronous: str) -> None:
    writer = Writer(folder, seed, synchronous)
    for _ in range(TIMES):
        await writer.open_and_close()


if __name__ == "__main__":
    tidy.PASSIVE, tidy.TRUNCATE, tidy.AGAIN = 30_000, 90_000, 0.0
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
