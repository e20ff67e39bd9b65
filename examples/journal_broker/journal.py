"""The journal: what its lines say (step 1), their fold, and the one way in and out (step 2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import Struct

from refold.brokers.shares import Lease, Wanted
from refold.bus.broker import Checkpoint, LogMeta, Presence, Stored
from refold.bus.errors import LogMissing

T = TypeVar("T")


# ---- step 1: what is in the journal ----------------------------------------------------------------------------------
class Made(Struct, tag=True):
    meta: LogMeta


class Put(Struct, tag=True):
    """One item: a line, so that it is there as a whole or not at all. `ids` are None for raw records."""

    partition: int
    keys: list[str | None]
    values: list[bytes]
    ids: list[str | None]
    time: float


class Joined(Struct, tag=True):
    group: str
    member: str
    token: str
    wanted: list[int] | None


class Beat(Struct, tag=True):
    group: str
    token: str


class Left(Struct, tag=True):
    group: str
    token: str


class Claimed(Struct, tag=True):
    group: str
    partition: int
    token: str


class Released(Struct, tag=True):
    group: str
    partition: int


class Saved(Struct, tag=True):
    group: str
    partition: int
    position: int
    anchor: bytes
    changed: list[tuple[bytes, bytes]]
    gone: list[bytes]


class Told(Struct, tag=True):
    presence: Presence
    ttl: float
    time: float


class Withdrawn(Struct, tag=True):
    member: str


class Hinted(Struct, tag=True):
    address: str
    hint: bytes


Line = Made | Put | Joined | Beat | Left | Claimed | Released | Saved | Told | Withdrawn | Hinted
_line = msgspec.json.Decoder(Line)
Write = Callable[[Line], None]


class Peer(Struct):
    """A member of a group; `counter` grows while it lives."""

    member: str
    wanted: Wanted
    counter: int = 0


class State:
    """The fold of the journal."""

    def __init__(self) -> None:
        self.meta: LogMeta | None = None
        self.records: list[list[Stored]] = []
        self.ids: dict[tuple[int, str | None, str], int] = {}
        self.last: dict[tuple[int, str | None], int] = {}
        self.leases: dict[str, dict[int, Lease]] = defaultdict(dict)
        self.peers: dict[str, dict[str, Peer]] = defaultdict(dict)
        self.checkpoints: dict[tuple[str, int], Checkpoint] = {}
        self.told: dict[str, Told] = {}
        self.hints: list[Hinted] = []

    def apply(self, line: Line) -> None:
        match line:
            case Made(meta):
                self.meta = meta
                self.records = [[] for _ in range(meta.partitions)]
            case Put():
                self._put(line)
            case Joined(group, member, token, wanted):
                self.peers[group][token] = Peer(member, None if wanted is None else frozenset(wanted))
            case Beat(group, token):
                self.peers[group][token].counter += 1
            case Left(group, token):
                self.peers[group].pop(token, None)
            case Claimed(group, partition, token):
                known = self.leases[group].get(partition)
                self.leases[group][partition] = Lease(partition, known.epoch + 1 if known else 1, token, False)
            case Released(group, partition):
                self.leases[group][partition] = self.leases[group][partition]._replace(owner="", released=True)
            case Saved():
                known_entries = self.checkpoints.get((line.group, line.partition), Checkpoint(0, b"", {})).entries
                kept = {k: v for k, v in known_entries.items() if k not in set(line.gone)} | dict(line.changed)
                self.checkpoints[line.group, line.partition] = Checkpoint(line.position, line.anchor, kept)
            case Told():
                self.told[line.presence.member] = line
            case Withdrawn(member):
                if member in self.told:
                    self.told[member] = msgspec.structs.replace(self.told[member], ttl=-1.0)
            case Hinted():
                self.hints.append(line)

    def _put(self, line: Put) -> None:
        for key, value, id in zip(line.keys, line.values, line.ids, strict=True):
            position = len(self.records[line.partition]) + 1
            self.records[line.partition].append(Stored(position, key, value, line.time))
            self.last[line.partition, key] = position
            if id is not None:
                self.ids[line.partition, key, id] = position

    @property
    def log(self) -> LogMeta:
        if self.meta is None:
            raise LogMissing("there is no log in this folder yet")
        return self.meta


# ---- step 2: the one way in and out ----------------------------------------------------------------------------------
class Journal:
    """The file and its fold. Used from several threads, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State()
        self._at = 0
        self._lock = threading.Lock()

    def do(self, decide: Callable[[State, Write], T], *, make: bool = False) -> T:
        """Let `decide` look at the state and write lines; all of them are on the disk on return, or none counts."""
        with self._lock, self._held(make) as file:
            try:
                self._catch_up(file)
                lines: list[bytes] = []

                def write(line: Line) -> None:
                    lines.append(msgspec.json.encode(line) + b"\n")
                    self.state.apply(line)

                found = decide(self.state, write)
                if lines:
                    self._append(file, b"".join(lines))
            except BaseException:
                self.state, self._at = State(), 0  # whatever was half done: fold again
                raise
            return found

    @contextlib.contextmanager
    def _held(self, make: bool) -> Iterator[int | None]:
        try:
            file = os.open(self.path, os.O_RDWR | (os.O_CREAT if make else 0), 0o644)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _catch_up(self, file: int | None) -> None:
        if file is None:
            return
        new = os.pread(file, os.fstat(file).st_size - self._at, self._at)
        whole = new[: new.rfind(b"\n") + 1]  # a process may have died within a line
        for line in whole.splitlines():
            self.state.apply(_line.decode(line))
        self._at += len(whole)

    def _append(self, file: int | None, new: bytes) -> None:
        if file is None:
            raise LogMissing("there is no log in this folder yet")
        os.ftruncate(file, self._at)
        done = 0
        while done < len(new):
            done += os.pwrite(file, new[done:], self._at + done)
        os.fsync(file)
        self._at += len(new)

    def is_old(self) -> bool:
        """Somebody else has written since."""
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_size > self._at
        return False
