"""A power cut: what was written and not synced reaches the disk in part, in any order, or not at all.

`power_loss.c`, preloaded into the processes, keeps a trace of every write, truncation, removal and sync of the log's
files. After the processes were killed, `PowerLoss.cut` makes the files what a disk may hold then: all that was written
before the last sync of a file, and of each sector (512 or 4096 bytes) that was written since, any version; any size
between; and of the names in the folder those of any moment since the folder was synced. -shm is never durable. What
this does not play: sectors torn within 512 bytes, truncations in part (file systems with a journal make them whole, and
SQLite relies on it), and disks that lose what they had synced (but `forget`, the control: syncs of these files count
for nothing).
"""

from __future__ import annotations

import functools
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

HEADER = struct.Struct("<QIIQQQ")
MAGIC = struct.pack("<Q", 0x72656C6F6164FF)
ALL = 2**64


class CannotCut(Exception):
    """Power cuts cannot be played on this machine; the text says what is missing."""


@functools.cache
def library() -> Path:
    """Compile what is preloaded, once in a process. Raises CannotCut."""
    if not sys.platform.startswith("linux"):
        raise CannotCut("power cuts can be played on Linux only")
    if (compiler := shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")) is None:
        raise CannotCut("no C compiler: install one (cc, gcc or clang)")
    out = Path(tempfile.mkdtemp(prefix="refold-power-loss-")) / "power_loss.so"
    source = Path(__file__).with_suffix(".c")
    made = subprocess.run(
        [compiler, "-O1", "-shared", "-fPIC", "-o", str(out), str(source), "-ldl"], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if made.returncode:
        raise CannotCut(f"{source.name} does not compile: {made.stderr}")
    return out


class Event(NamedTuple):
    """One thing that a process asked of the disk. `at` is where it stands in the trace."""

    at: int
    kind: str
    name: str
    offset: int
    data: bytes


def events(trace: bytes) -> Iterator[Event]:
    """Read a trace; what a killed process left of a record is skipped."""
    at = 0
    while (at := trace.find(MAGIC, at)) >= 0 and at + HEADER.size <= len(trace):
        magic, kind, name, offset, length, check = HEADER.unpack_from(trace, at)
        end = at + HEADER.size + name + length
        made = magic ^ (kind << 32 | name) ^ (offset * 31) % ALL ^ (length * 131) % ALL
        if made != check or not (end == len(trace) or trace.startswith(MAGIC, end)):
            at += 1
            continue
        start = at + HEADER.size
        yield Event(at, chr(kind), trace[start : start + name].decode(), offset, trace[start + name : end])
        at = end


class File:
    """What was asked of one file, from its first write until its name was removed."""

    def __init__(self, content: bytes = b"") -> None:
        self.content = content
        self.asked: list[Event] = []
        self.syncs: list[Event] = []

    def settle(self, before: int) -> None:
        """All that was asked before this place of the trace is on the disk."""
        image = bytearray(self.content)
        done = [e for e in self.asked if e.at < before]
        for event in done:
            apply(image, event)
        self.content, self.asked = bytes(image), self.asked[len(done) :]

    def now(self) -> bytes:
        """Return what a reader of the file would see, had there been no cut."""
        image = bytearray(self.content)
        for event in self.asked:
            apply(image, event)
        return bytes(image)

    def torn(self, dice: random.Random, sector: int) -> bytes:
        """Return what the disk may hold: each sector as of any moment since the last sync, and so the size."""
        asked = self.asked
        cuts = [n for n, event in enumerate(asked) if event.kind == "t"]
        if cuts and dice.random() < 0.5:
            asked = asked[: dice.choice(cuts)]  # it has not come to this truncation, hence not to what followed
        base, image, versions = bytearray(self.content), bytearray(self.content), dict[int, list[bytes]]()
        sizes = [len(image)]
        for event in asked:
            if event.kind == "t":
                apply(image, event)
                apply(base, event)
                sizes = [size := event.offset]
                versions = {
                    n: [v[: size - n * sector] for v in found] for n, found in versions.items() if n * sector < size
                }
                continue
            some = range(event.offset // sector, -(-(event.offset + len(event.data)) // sector))
            for n in some:
                versions.setdefault(n, [bytes(image[n * sector : (n + 1) * sector])])
            apply(image, event)
            sizes.append(len(image))
            for n in some:
                versions[n].append(bytes(image[n * sector : (n + 1) * sector]))
        share = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        size = sizes[-1] if dice.random() < 0.5 else dice.choice(sizes)
        out = bytearray(max(sizes))
        out[: len(base)] = base
        for n, found in versions.items():
            chosen = found[-1] if dice.random() < share else dice.choice(found[:-1])
            out[n * sector : (n + 1) * sector] = chosen.ljust(sector, b"\0")
        return bytes(out[:size])


def apply(image: bytearray, event: Event) -> None:
    """Do to the bytes of a file what was asked of it."""
    if event.kind == "t":
        del image[event.offset :]
        image.extend(bytes(event.offset - len(image)))
    else:
        image.extend(bytes(max(0, event.offset - len(image))))
        image[event.offset : event.offset + len(event.data)] = event.data


Names = dict[str, File]


class Disk:
    """What a disk holds for certain, and what it may hold besides."""

    def __init__(self, content: dict[str, bytes], forget: str = "") -> None:
        self.names: Names = {name: File(data) for name, data in content.items()}
        self.moments: list[tuple[int, Names]] = [(0, dict(self.names))]
        self.marks: list[str] = []
        self.unsynced = 0
        self._forget = forget

    def take(self, event: Event) -> None:
        """Go on by one event."""
        if event.name == "marks":
            self.marks += event.data.decode().split("\n")[:-1] if event.kind == "w" else []
        elif event.kind == "d":
            self._folder_synced(event.offset)
        elif event.kind == "u":
            self.names.pop(event.name, None)
            self.moments.append((event.at, dict(self.names)))
        else:
            if event.name not in self.names:
                self.names[event.name] = File()
                self.moments.append((event.at, dict(self.names)))
            file = self.names[event.name]
            if event.kind != "s":
                file.asked.append(event)
            elif not self._forget or not event.name.endswith(self._forget):
                file.settle(event.offset)

    def _folder_synced(self, began: int) -> None:
        older = [n for n, (at, _) in enumerate(self.moments) if at < began]
        del self.moments[: older[-1] if older else 0]

    def cut(self, seed: int) -> dict[str, bytes]:
        """Return what the files of the log may hold after a power cut now."""
        dice = random.Random(seed)
        sector = dice.choice((512, 4096))
        names = self.moments[-1][1] if dice.random() < 0.5 else dice.choice(self.moments)[1]
        self.unsynced = sum(len(f.asked) for f in names.values())
        return {name: file.torn(dice, sector) for name, file in names.items()}


class PowerLoss:
    """Plays power cuts on the log of one run. `environment` is for every process of the run."""

    def __init__(self, folder: Path, *, forget: str = "") -> None:
        self.folder = folder.resolve()
        self.trace = self.folder / "trace"
        self.environment = {
            "LD_PRELOAD": " ".join(filter(None, [str(library()), os.environ.get("LD_PRELOAD", "")])),
            "POWER_LOSS_FOLDER": str(self.folder), "POWER_LOSS_TRACE": str(self.trace),
        }  # fmt: skip
        self._forget = forget
        self._base = self._files()

    def _files(self) -> dict[str, bytes]:
        found = [p for p in self.folder.glob("log.db*") if not p.name.endswith("-shm") and p.is_file()]
        return {p.name: p.read_bytes() for p in found}

    def cut(self, seed: int) -> int:
        """Every process was killed: turn the files into what a disk may hold then.

        Return how many writes were not synced, the ones that the cut could take.
        """
        disk = Disk(self._base, self._forget)
        for event in events(self.trace.read_bytes() if self.trace.exists() else b""):
            disk.take(event)
        self._base = disk.cut(seed)
        put(self.folder, self._base, seed)
        self.trace.unlink(missing_ok=True)
        return disk.unsynced


def put(folder: Path, files: dict[str, bytes], seed: int) -> None:
    """Make a folder hold these files of a log. What was shared memory is gone, stale, or rubbish."""
    dice = random.Random(seed)
    for path in folder.glob("log.db*"):
        if not path.name.endswith("-shm") or dice.random() < 0.3:
            path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    if dice.random() < 0.3:
        (folder / "log.db-shm").write_bytes(dice.randbytes(32768))
