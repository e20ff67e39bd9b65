"""The control topic: one partition, hence one order of words, from which every reader folds the same: what the log is,
who is in which group, who owns what, who is alive. A snapshot is that fold, kept: it is true whoever writes it."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator

import msgspec
from msgspec import Struct, field

from ...bus.broker import LogMeta, Presence
from ...bus.errors import LogCorrupt, RulesTooNew
from ..shares import Lease, Wanted, is_mine
from . import wire
from .link import Link
from .outbox import Outbox
from .wire import Raw

SNAPSHOT_EVERY = 500
"""Words after which somebody keeps the fold."""
REMEMBERED = 7 * 86400.0
"""Seconds after which a presence that is gone is forgotten."""


# ---- words -----------------------------------------------------------------------------------------------------------
class Made(Struct, frozen=True, tag="made"):
    """The log was made. The first one counts. `topic` is the id that Kafka gave to the log's topic ("": unknown)."""

    meta: LogMeta
    topic: str = ""


class Beat(Struct, frozen=True, tag="beat", omit_defaults=True):
    """A member is there: `counter` grows. The first of a token takes the place of one of the same name."""

    group: str
    member: str
    token: str
    counter: int
    wanted: list[int] | None = None


class Left(Struct, frozen=True, tag="left", omit_defaults=True):
    """A member has left and gives up all that it owns; with `counter`: others buried it, unless it has beaten since."""

    group: str
    token: str
    counter: int | None = None


class Claim(Struct, frozen=True, tag="claim"):
    """A member takes partitions: (partition, new epoch, whom it takes it from, that one's counter as it was seen)."""

    group: str
    token: str
    partitions: list[tuple[int, int, str, int]]


class Release(Struct, frozen=True, tag="release"):
    """A member gives a partition up."""

    group: str
    token: str
    partition: int
    epoch: int


class Told(Struct, frozen=True, tag="told"):
    """What a member says of itself; holds for `ttl` seconds."""

    presence: Presence
    ttl: float


class Withdrawn(Struct, frozen=True, tag="withdrawn"):
    """A member is gone by its own word."""

    member: str


class Peer(Struct):
    """A member of a group; `wanted` as in Beat."""

    member: str
    counter: int
    wanted: list[int] | None = None

    def takes(self) -> Wanted:
        return None if self.wanted is None else frozenset(self.wanted)


class Group(Struct):
    """Who is in it (by token), who owns what (by partition: epoch, owner's token, released)."""

    peers: dict[str, Peer] = field(default_factory=dict)
    leases: dict[int, Lease] = field(default_factory=dict)


class State(Struct):
    """The fold of all words."""

    made: Made | None = None
    groups: dict[str, Group] = field(default_factory=dict)
    presences: dict[str, tuple[Presence, float, float]] = field(default_factory=dict)


class Snapshot(Struct, frozen=True, tag="snapshot"):
    """The fold of all words below `offset`."""

    offset: int
    state: State


Word = Made | Beat | Left | Claim | Release | Told | Withdrawn | Snapshot
_decoder = msgspec.json.Decoder(Word)


def encode(word: Word) -> bytes:
    """Return the bytes of a word; large ones are packed."""
    data = msgspec.json.encode(word)
    return data if len(data) < 4096 else b"z" + zlib.compress(data, 1)


def decode(data: bytes | None) -> Word | None:
    """Return a word; None for what is none (somebody else wrote to the topic)."""
    try:
        word: Word = _decoder.decode(zlib.decompress(data[1:]) if data and data[:1] == b"z" else data or b"")
    except (msgspec.DecodeError, zlib.error):
        return None
    return word


# ---- the fold --------------------------------------------------------------------------------------------------------
def fold(state: State, word: Word, time: float) -> None:
    """Let a word change the state. Pure but for that: the same words give the same state."""
    if isinstance(word, Made):
        state.made = state.made or word
    elif isinstance(word, Told):
        state.presences = {m: p for m, p in state.presences.items() if p[1] > time - REMEMBERED}
        state.presences[word.presence.member] = (word.presence, time, word.ttl)
    elif isinstance(word, Withdrawn):
        if (known := state.presences.get(word.member)) is not None:
            state.presences[word.member] = (known[0], known[1], -1.0)
    elif not isinstance(word, Snapshot):
        _fold_group(state.groups.setdefault(word.group, Group()), word)


def _fold_group(group: Group, word: Beat | Left | Claim | Release) -> None:
    if isinstance(word, Beat):
        known = group.peers.get(word.token)
        if known is None and word.counter == 1:
            for token in [t for t, p in group.peers.items() if p.member == word.member]:
                del group.peers[token]
        if known is None or known.counter < word.counter:
            group.peers[word.token] = Peer(word.member, word.counter, word.wanted)
    elif isinstance(word, Left):
        _fold_left(group, word)
    elif isinstance(word, Claim):
        if word.token in group.peers:
            for partition, epoch, owner, counter in word.partitions:
                _fold_claim(group, word.token, Lease(partition, epoch, owner, False), counter)
    elif is_mine(known_lease := group.leases.get(word.partition), word.token, word.epoch) and known_lease:
        group.leases[word.partition] = known_lease._replace(owner="", released=True)


def _fold_left(group: Group, word: Left) -> None:
    peer = group.peers.get(word.token)
    if word.counter is not None and (peer is None or peer.counter != word.counter):
        return
    group.peers.pop(word.token, None)
    if word.counter is None:
        for partition, lease in group.leases.items():
            if lease.owner == word.token:
                group.leases[partition] = lease._replace(owner="", released=True)


def _fold_claim(group: Group, token: str, wish: Lease, counter: int) -> None:
    """A claim counts if the partition is as the member saw it, and its owner has not shown itself since."""
    lease = group.leases.get(wish.partition)
    if (lease.epoch if lease else 0) != wish.epoch - 1 or (lease.owner if lease else "") != wish.owner:
        return
    owner = group.peers.get(wish.owner)
    if owner is None or owner.counter == counter:
        group.leases[wish.partition] = wish._replace(owner=token)


class _Trimmed(Exception):
    """What would have been read next is older than what the topic keeps: there is a snapshot."""


# ---- the topic -------------------------------------------------------------------------------------------------------
class Control:
    """The state as far as it was read. `read` brings it up to all that was acknowledged before."""

    def __init__(self, link: Link, outbox: Outbox, topic: str) -> None:
        self.link, self.outbox, self.topic = link, outbox, topic
        self.state = State()
        self.next = 0
        self._began = False
        self._snapshot = 0
        self._patience = SNAPSHOT_EVERY + random.randrange(SNAPSHOT_EVERY)
        self._lock = asyncio.Lock()

    async def read(self, upto: int | None = None) -> State:
        """Fold up to an offset, or to the end. Raises LogCorrupt where the words of the past are gone."""
        if upto is not None and self._began and self.next >= upto:
            return self.state
        async with self._lock:
            if upto is None:
                (upto,) = (await self.link.offsets(self.topic, [0])).values()
            while True:
                try:
                    if not self._began:
                        await self._begin(upto)
                    async for raw in self._words(self.next, upto):
                        self.take(raw)
                except _Trimmed:
                    self._began = False
                    continue
                self.next = max(self.next, upto)
                return self.state

    async def write(self, word: Word) -> State:
        """Append a word, and fold up to it. Sometimes keeps the fold, too."""
        offset = await self.outbox.append(self.topic, 0, [(None, encode(word))])
        state = await self.read(offset + 1)
        if self.next - self._snapshot > self._patience:
            self._snapshot = self.next
            self.outbox.put(self.topic, 0, [(None, encode(Snapshot(self.next, state)))])
        return state

    def take(self, raw: Raw) -> bool:
        """Fold the record that follows; False where it was folded already."""
        if raw.offset < self.next:
            return False
        self.next = raw.offset + 1
        word = decode(raw.value)
        if isinstance(word, Snapshot):
            self._snapshot = max(self._snapshot, word.offset)
        elif word is not None:
            fold(self.state, word, raw.time / 1000)
        return True

    async def _begin(self, end: int) -> None:
        """Find the newest snapshot, looking further and further back."""
        (begin,) = (await self.link.offsets(self.topic, [0], wire.EARLIEST)).values()
        window = 2 * SNAPSHOT_EVERY
        while True:
            start = max(begin, end - window)
            found = [w async for raw in self._words(start, end) if isinstance(w := decode(raw.value), Snapshot)]
            good = [snapshot for snapshot in found if snapshot.offset >= begin]
            if good:
                self.state, self.next, self._snapshot = good[-1].state, good[-1].offset, good[-1].offset
                break
            if start == begin:
                if begin > 0:
                    raise LogCorrupt(f"topic {self.topic} has lost its past: its retention was changed")
                self.state, self.next, self._snapshot = State(), 0, 0
                break
            window *= 4
        self._began = True

    async def _words(self, start: int, end: int) -> AsyncIterator[Raw]:
        while start < end:
            part = await self.link.fetch_one(self.topic, 0, start)
            if part.error:
                (begin,) = (await self.link.offsets(self.topic, [0], wire.EARLIEST)).values()
                if begin > start:
                    raise _Trimmed
                raise LogCorrupt(f"topic {self.topic} no longer holds offset {start}: it was truncated or made again")
            for raw in part.records:
                if raw.offset < end:
                    yield raw
            start = part.next


def meta_of(state: State, rules: int) -> LogMeta | None:
    """Return what the log says of itself. Raises RulesTooNew."""
    if state.made is None:
        return None
    meta = state.made.meta
    if meta.rules > rules:
        raise RulesTooNew(f"the log follows rules {meta.rules}, this release knows up to {rules}: upgrade refold")
    return meta


