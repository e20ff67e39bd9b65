"""What the screen shows of a running review: a fold over the demo's whole log, brought up to date by `look`.

Who owns which partition, which modules wait, are worked on or are done and by which process, and the news.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from msgspec import Struct, field

from ..bus import codec, kinds
from ..bus.broker import Broker, Stored
from ..bus.errors import UndecodableRecord
from ..bus.facts import Owner, OwnerReleased
from ..bus.kinds import PARTITION
from ..bus.message import Envelope
from .messages import Analyze
from .provider import counted

ANALYZERS = "analyzers"
PROGRESS = "progress"


class Piece(Struct):
    """A module's workflow: where it is, who works on it ("": nobody yet), and is it done."""

    path: str
    partition: int
    again: bool
    member: str = ""
    done: bool = False


class News(Struct, frozen=True):
    """Something that happened, as the log tells it. `kind`: found, section, back, takeover, again."""

    kind: str
    text: str


class Desk(Struct):
    """What lies before an agent in the review's own workflow: what it was asked for, in order, and how much is done."""

    asked: list[str] = field(default_factory=list)
    done: int = 0

    @property
    def open(self) -> list[str]:
        """What is not done."""
        return self.asked[self.done :]


class Watch:
    """The fold. `review` is the id of the workflow that all others are children of."""

    def __init__(self, broker: Broker, review: str) -> None:
        self.owners: dict[tuple[str, int], Owner] = {}
        self.pieces: dict[str, Piece] = {}
        self.desks: defaultdict[str, Desk] = defaultdict(Desk)
        self.modules = self.sections = self.validated = self.spawned = self.returned = 0
        self.broker, self._review = broker, review
        self._claims: dict[str, Owner] = {}
        self._next: dict[int, int] = {}
        self._news: list[News] = []
        self._taken: Counter[tuple[str, str]] = Counter()

    async def look(self) -> list[News]:
        """Fold what is new in the log; return the news."""
        for partition, end in (await self.broker.positions("end")).items():
            start: int | None = self._next.get(partition, 0)
            while start is not None and start < end:
                page = await self.broker.read(partition, start, end=end)
                for stored in page.records:
                    self._fold(partition, stored)
                start = page.next
            self._next[partition] = end
        for (member, before), n in self._taken.items():
            self._tell("takeover", f"{member} takes {counted(n, 'partition')} over from {before}")
        news = sorted(self._news, key=lambda said: said.kind != "takeover")
        self._news, self._taken = [], Counter()
        return news

    @property
    def analysed(self) -> int:
        """How many modules are analysed."""
        return sum(piece.done and not piece.again for piece in self.pieces.values())

    def queued(self, member: str) -> int:
        """How many modules wait in the partitions of an analyzer."""
        mine = {partition for (group, partition), o in self.owners.items() if (group, o.member) == (ANALYZERS, member)}
        return sum(not p.done and not p.member and p.partition in mine for p in self.pieces.values())

    def at_work(self, member: str) -> list[str]:
        """Which modules an analyzer has begun and not finished."""
        return [_name(p.path) for p in self.pieces.values() if p.member == member and not p.done]

    def finished(self, member: str) -> int:
        """How many modules an analyzer has answered for."""
        return sum(p.done and p.member == member for p in self.pieces.values())

    def _tell(self, kind: str, text: str) -> None:
        self._news.append(News(kind, text))

    def _fold(self, partition: int, stored: Stored) -> None:
        try:
            r = codec.envelope(stored.value)
        except UndecodableRecord:
            return
        if r.message_type in PARTITION:
            self._ownership(partition, r)
        elif r.correlation_id == self._review:
            self._parent(r, stored.value)
        else:
            self._child(partition, r, stored.value)

    def _ownership(self, partition: int, r: Envelope) -> None:
        fact = r.fact
        if isinstance(fact, Owner):
            before = self.owners.get((fact.group, partition))
            if before is not None and before.member != fact.member:
                self._taken[fact.member, before.member] += 1
            self.owners[fact.group, partition] = self._claims[r.id] = fact
        elif isinstance(fact, OwnerReleased) and (before := self.owners.get((fact.group, partition))):
            if before.member == fact.member:
                del self.owners[fact.group, partition]

    def _parent(self, r: Envelope, value: bytes) -> None:
        if r.message_type == kinds.TASK_REQUEST:
            if r.to:
                self.spawned += 1
            else:
                self.desks[r.receiver_id].asked.append(label(codec.payload(value)))
        elif r.message_type == kinds.TASK_RESPONSE:
            if r.origin is not None:
                self.returned += 1
            else:
                self.desks[r.sender_id].done += 1
        elif r.message_type == PROGRESS:
            self._progress(codec.payload(value))

    def _progress(self, said: dict[str, Any]) -> None:
        if "modules" in said:
            self.modules, self.sections = said["modules"], said["sections"]
            self._tell("found", f"the researcher has found {counted(self.modules, 'module')}")
        elif said["wrong"]:
            self._tell("back", f"the validator sends section {said['section']} back: {'; '.join(said['wrong'])}")
        else:
            self.validated += 1
            self._tell("section", f"section {said['section']} of {self.sections} is written and validated")

    def _child(self, partition: int, r: Envelope, value: bytes) -> None:
        piece = self.pieces.get(r.correlation_id)
        if piece is None:
            task = codec.payload_as(value, Analyze)
            self.pieces[r.correlation_id] = Piece(task.module.path, partition, bool(task.objections))
            return
        claim = self._claims.get(r.work.writer.partition("#")[0]) if r.work else None
        if claim is None or r.work is None or claim.group != ANALYZERS:
            return
        if piece.member not in {"", claim.member} and not piece.done:
            self._tell("again", f"{claim.member} goes on with {_name(piece.path)}, begun by {piece.member}")
        piece.member = claim.member
        piece.done = piece.done or r.work.done


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def label(task: Any) -> str:
    """Say in two words what a request is for."""
    match task:
        case {"section": {"file": str() as file}} | {"file": str() as file}:
            return f"checks {_name(file)}"
        case {"analyses": _, "number": int() as number}:
            return f"writes section {number + 1}"
        case {"sections": _, "title": _}:
            return "writes report.md"
        case {"after": _} | {"root": _, "limit": _}:
            return "lists the modules"
    return "at work"
