"""Files that are damaged: cut off, overwritten, empty, foreign, or with a write-ahead log of another log beside them.

What refold then promises. Every record that is read is what was appended, at its place (a CRC-32 with key and position
is stored beside it, and positions have no gaps), or reading raises LogCorrupt; so for the entries of a checkpoint and
for what the log says of itself. SQLite drops, without a word, the end of a write-ahead log from the first frame on
that fails its checksum: the newest records may be missing then, none in the middle, and the log is as it was at an
earlier moment. Checkpoints lie in the same file, so workers cannot tell; a projection that is kept elsewhere and has
folded more says so (LogTruncated). A page of the tree that leads astray may hide the records of a partition, or its
end: a group whose checkpoint lies above says so (LogTruncated), and so does `doctor`. Not covered: leases, times and
the hashes by which duplicates are refused (the fold judges duplicates again), and an entry of the index by key that is
gone (`doctor` compares the index with the table). An empty file with no write-ahead log beside it is a new log: nothing
tells it from one that was just made.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import ANY_LOG, LogSpec
from refold.bus.errors import LogCorrupt, LogMissing

ALLOWED = ("whole", "earlier", "refused", "seen by doctor", "anew")
REMEDIES = ("restore", "choose another", "remove both")
Records = dict[tuple[int, int], tuple[str | None, bytes]]
"""(partition, position) -> (key, bytes)."""
Damage = Callable[[Path, random.Random], str]
"""Damages the log at a path, and says how."""


def _somewhere(path: Path, dice: random.Random) -> Path:
    """Choose the file, or its write-ahead log where that holds something."""
    wal = Path(f"{path}-wal")
    return wal if wal.exists() and wal.stat().st_size and dice.random() < 0.5 else path


def cut_off(path: Path, dice: random.Random) -> str:
    """The end of a file is gone."""
    file = _somewhere(path, dice)
    size = dice.randrange(file.stat().st_size)
    data = file.read_bytes()
    file.write_bytes(data[:size])
    return f"{file.name} cut off at {size} of {len(data)}"


def bytes_changed(path: Path, dice: random.Random) -> str:
    """A few bytes are others."""
    file = _somewhere(path, dice)
    data = bytearray(file.read_bytes())
    at = dice.randrange(len(data))
    some = dice.randbytes(dice.choice((1, 1, 8, 100)))
    data[at : at + len(some)] = some
    file.write_bytes(data)
    return f"{len(some)} bytes of {file.name} changed at {at}"


def bit_flipped(path: Path, dice: random.Random) -> str:
    """One bit of the file is another."""
    file = _somewhere(path, dice)
    data = bytearray(file.read_bytes())
    at = dice.randrange(len(data))
    data[at] ^= 1 << dice.randrange(8)
    file.write_bytes(data)
    return f"a bit of {file.name} flipped at {at}"


def page_overwritten(path: Path, dice: random.Random) -> str:
    """A page holds rubbish, nothing, or what is on another page."""
    file = _somewhere(path, dice)
    data = bytearray(file.read_bytes())
    page, other = (dice.randrange(max(1, len(data) // 4096)) * 4096 for _ in range(2))
    pages = {"rubbish": dice.randbytes(4096), "zeros": bytes(4096), "another": data[other : other + 4096]}
    kind, new = dice.choice(list(pages.items()))
    data[page : page + len(new)] = new
    file.write_bytes(data)
    return f"page at {page} of {file.name}: {kind}"


def emptied(path: Path, dice: random.Random) -> str:
    """A file is there, and empty."""
    file = _somewhere(path, dice)
    file.write_bytes(b"")
    return f"{file.name} is empty"


def foreign(path: Path, dice: random.Random) -> str:
    """The file is something else."""
    magic = b"SQLite format 3\0"
    data = dice.choice((b"# Notes\n" * 1000, dice.randbytes(9000), magic + dice.randbytes(9000), b"\0" * 8192))
    path.write_bytes(data)
    return f"{path.name} begins with {data[:20]!r}"


def wal_of_another(path: Path, dice: random.Random) -> str:
    """The write-ahead log beside the file is another log's."""
    data = dice.randbytes(32) + dice.randbytes(dice.randrange(40_000))
    found = sorted(path.parent.glob("*.other-wal"))
    if found:
        data = found[0].read_bytes()
    Path(f"{path}-wal").write_bytes(data)
    return "a foreign write-ahead log" if not found else "the write-ahead log of another log"


DAMAGES: tuple[Damage, ...] = (
    cut_off, bytes_changed, bit_flipped, page_overwritten, emptied, foreign, wal_of_another,
)


class Hidden(Exception):
    """A record is found by key and not by position; and whether `doctor` takes the file for whole."""


async def everything(path: Path, spec: LogSpec = ANY_LOG) -> Records:
    """Read all that a log holds, in every way. Raises what the broker raises."""
    out: Records = {}
    async with SqliteBroker(str(path)) as broker:
        meta = await broker.ensure_log(spec)
        for partition in range(meta.partitions):
            start: int | None = 0
            while start is not None:
                page = await broker.read(partition, start)
                out.update(((partition, s.position), (s.key, s.value)) for s in page.records)
                start = page.next
            for group in await broker.checkpoint_groups(partition):
                await broker.checkpoint(group, partition)
        for key in {key for key, _ in out.values() if key is not None}:
            for s in (await broker.read_workflow(key)).records:
                if (s.key, s.value) not in out.values():
                    raise Hidden(f"{key} by key and by position differ", (await broker.health()).ok)
        await broker.members()
        await broker.health()
        async with broker.subscribe("readers", "another") as sub:
            await sub.fetch(max_wait=0)
    return out


def has_remedy(text: str) -> bool:
    """The text says what to do."""
    return any(word in text for word in REMEDIES)


async def judged(path: Path, before: Records, spec: LogSpec = ANY_LOG) -> str:
    """Say what became of a damaged log: "whole", "earlier" (only the newest records are gone), "refused",
    "seen by doctor", "anew" (an empty file), or what must not be."""
    nothing = path.stat().st_size == 0
    try:
        found = await everything(path, spec)
    except (LogCorrupt, LogMissing) as error:
        return "refused" if has_remedy(str(error)) else f"refused without a remedy: {error}"
    except Hidden as error:
        return "hidden, and doctor does not see it" if error.args[1] else "seen by doctor"
    if not found:
        return "anew" if nothing else "empty"
    wrong = [where for where, record in found.items() if before.get(where) != record]
    if wrong:
        return f"wrong: what is at {wrong[0]} was not appended there"
    return "whole" if found == before else "earlier"


class Backup:
    """The files of a log at rest, and what they held."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "log.db"
        self._files = {p.name: p.read_bytes() for p in folder.glob("log.db*") if not p.name.endswith("-shm")}
        self._before: Records = {}

    async def judged(self) -> str:
        """Say what became of the log, from a copy: the files stay as they are."""
        if not self._before:
            self._before = await everything(self._copy(self._files))
        now = {name: (self.folder / name).read_bytes() for name in self._files if (self.folder / name).exists()}
        return await judged(self._copy(now), self._before)

    def _copy(self, files: dict[str, bytes]) -> Path:
        place = self.folder / f"copy-{time.monotonic_ns()}"
        place.mkdir()
        for name, data in files.items():
            (place / name).write_bytes(data)
        return place / "log.db"

    def restore(self) -> None:
        """Put the files back."""
        for path in [*self.folder.glob("log.db*"), *self.folder.glob("copy-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, data in self._files.items():
            (self.folder / name).write_bytes(data)
