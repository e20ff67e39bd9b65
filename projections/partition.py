"""The fold of one partition: who listens, who owns, and the workflows that are not complete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct, field

from ..bus import facts, kinds
from ..bus.broker import Stored
from ..bus.codec import envelope
from ..bus.errors import UndecodableRecord
from ..bus.ids import record_key
from ..bus.message import Envelope
from ..bus.partition import partition_of
from .frozen import Kept, freeze, peek, thaw
from .recent import SHORT, SMALL, Recent
from .stubs import Stub, Stubs
from .verdict import LEDGER, MISPLACED, Verdict
from .view import Listeners
from .workflow import NeedsHistory, Workflow

RECENT = 256
NOTHING: Sequence[str] = ()
Heard = dict[str, int]
"""What was said of who listens: the newest epoch of each group; of each `retired` its id, behind that word."""


class Ownership(Struct, gc=False, array_like=True):
    """The newest `owner` of a group below a position."""

    epoch: int
    position: int
    member: str = ""
    pid: int = 0
    released: bool = False
    after_death: bool = False


class Folded(Struct, frozen=True, gc=False):
    """A record that was folded. `workflow` is None for a partition's own record and for a stray."""

    position: int
    envelope: Envelope
    verdict: Verdict
    workflow: Workflow | None
    value: bytes


class Shared(Struct, array_like=True):
    """What a checkpoint keeps of the partition besides its workflows."""

    listeners: Listeners
    groups: dict[str, Ownership]
    next_stub: int = 0
    strays: list[int] = field(default_factory=list)
    unclaimed: dict[str, list[str]] = field(default_factory=dict)
    undecodable: int = 0
    forgot: bool = False
    heard: dict[str, int] = field(default_factory=dict)


class PartitionFold:
    """Folds every record of one partition, in order. The same log gives the same fold in every process.

    For the next checkpoint it keeps what `changed` and is `gone` since the last one, by correlation id; the keys of the
    `segments` that are stored of large workflows; keys that are `stale`: stored, perhaps, and to be removed; and up to
    which position checkpoints were `written`: what began after it is in none, and need not be removed from one.
    """

    def __init__(self, partition: int, partitions: int) -> None:
        self.partition = partition
        self.partitions = partitions
        self.listeners: Listeners = {}
        self.heard: Heard = {}
        self.groups: dict[str, Ownership] = {}
        self.live: dict[str, Workflow] = {}
        self.entries: dict[str, bytes] = {}
        self.stubs = Stubs()
        self.recent = Recent(self._fold_again)
        self.strays: dict[int, None] = {}
        self.unclaimed: dict[str, dict[str, None]] = {}
        self.undecodable = 0
        self.position = 0
        self.last_id = ""
        self.claimed: list[str] = []
        self.changed: set[str] = set()
        self.gone: set[str] = set()
        self.written = 0
        self.segments: dict[str, frozenset[bytes]] = {}
        self.stale: set[bytes] = set()
        self._records: dict[str, list[Stored]] = {}
        """Of each workflow that began here and is short: all that it was folded from."""

    # ---- folding ---------------------------------------------------------------------------------------------------
    def open_envelope(self, stored: Stored) -> Envelope | None:
        """Decode a record; bytes that are no record are counted and skipped."""
        try:
            return envelope(stored.value)
        except UndecodableRecord:
            self.undecodable += 1
            self.position, self.last_id = stored.position, ""  # it cannot be an anchor
            return None

    def missing(self, r: Envelope) -> Sequence[str]:
        """Return the workflows whose earlier records must be read by key (`restore`) before `r` can be folded."""
        if r.correlation_id in self.live and r.message_type not in (kinds.ROLLED_BACK, kinds.OWNER):
            return NOTHING
        if isinstance(r.fact, facts.Owner):
            new = [agent for agent in r.fact.agents if agent not in self.listeners]
            waiting = dict.fromkeys(c for agent in new for c in self.unclaimed.get(agent, ()))
            return [c for c in waiting if c not in self.live and c not in self.entries and c not in self.recent]
        return [r.correlation_id] if self._needs_history(r) else NOTHING

    def _needs_history(self, r: Envelope) -> bool:
        correlation = r.correlation_id
        if is_own(r) or self.is_stray(r):
            return False
        w = self.find(correlation) or self.recent.get(correlation)
        if w is not None:
            return not w.whole and r.message_type == kinds.ROLLED_BACK
        if record_key(correlation) in self.stubs:
            return True
        return self.stubs.forgot and self._continues(r)

    @staticmethod
    def _continues(r: Envelope) -> bool:
        if r.expected is not None and r.expected.version == 0:
            return True
        control = r.message_type in kinds.CONTROL or r.message_type in kinds.LEDGER
        written = r.work is not None or r.generation is not None or r.expected is not None
        return control or written or r.in_reply_to is not None or r.causation_id is not None

    def is_stray(self, r: Envelope) -> bool:
        """The record does not belong to this partition."""
        if is_own(r):
            return False
        return partition_of(r.correlation_id, self.partitions) != self.partition

    def fold(self, stored: Stored, r: Envelope) -> Folded:
        """Fold one record. `missing` must have been asked, and answered by `restore`."""
        position = stored.position
        self.position, self.last_id = position, r.id
        if not r.correlation_id:  # of the partition: no other record has none
            if stored.key is None:
                self._own(r, position)
            return Folded(position, r, LEDGER, None, stored.value)
        correlation = r.correlation_id
        w = self.live.get(correlation)
        if w is None or stored.key != correlation:
            if self.is_stray(r) or stored.key != correlation:
                self.strays[position] = None
                return Folded(position, r, MISPLACED, None, stored.value)
            w = self.workflow(correlation)
        verdict = w.admit(r, position, self.listeners)
        self.changed.add(correlation)
        records = self._records.get(correlation)
        if records is not None:
            if len(records) < SHORT and len(stored.value) <= SMALL:
                records.append(stored)
            else:
                del self._records[correlation]
        if w.view.unclaimed:
            for receiver in w.view.unclaimed:
                self.unclaimed.setdefault(receiver, {})[w.correlation] = None
        return Folded(position, r, verdict, w, stored.value)

    def workflow(self, correlation: str) -> Workflow:
        """Return the workflow, thawed if it was frozen, new if nobody knows it."""
        w = self.find(correlation)
        if w is None:
            w = self.recent.pop(correlation)
            if w is None:
                w = Workflow(correlation)
                self._records[correlation] = []
            self.live[correlation] = w
            self.stubs.discard(record_key(correlation))
        return w

    def find(self, correlation: str) -> Workflow | None:
        """Return the workflow if it is not complete, thawed if it was frozen."""
        w = self.live.get(correlation)
        if w is None and correlation in self.entries:
            w = self.live[correlation] = thaw(self.entries.pop(correlation))
        return w

    def restore(self, correlation: str, records: list[Stored]) -> None:
        """Fold the earlier records of a workflow again (those below the current position, read by key)."""
        w, listeners, heard = Workflow(correlation), dict[str, tuple[str, ...]](), Heard()
        for stored in records:
            if stored.position > self.position:
                break
            try:
                r = envelope(stored.value)
            except UndecodableRecord:
                continue
            if is_own(r) and stored.key is None:
                for agent, wanted in list(listen(listeners, heard, r)):
                    w.view.claim(agent, wanted)
            elif r.correlation_id == stored.key == correlation:
                w.admit(r, stored.position, dict(listeners))
        self.entries.pop(correlation, None)
        self.live.pop(correlation, None)
        self._records.pop(correlation, None)
        if w.last:
            self.recent.add(w)

    def _fold_again(self, correlation: str, records: Sequence[Stored]) -> Workflow:
        """Return the workflow of all its records; nobody else listens now than when they were folded."""
        w = Workflow(correlation)
        for stored in records:
            w.admit(envelope(stored.value), stored.position, self.listeners)
        return w

    def settle(self, w: Workflow) -> bool:
        """Keep only a stub of a workflow that is complete; True if it is. Call it after a batch was folded."""
        correlation = w.correlation
        if w.view.open or correlation not in self.live or not w.is_complete():
            return False
        del self.live[correlation]
        self.recent.add(w, self._records.pop(correlation, None))
        self.recent.trim(RECENT)
        self.stubs.add(record_key(correlation), w.first, w.last)
        if w.first <= self.written:
            self.gone.add(correlation)
        self.changed.discard(correlation)
        return True

    def park(self, w: Workflow, *, idle: bool = True) -> None:
        """Keep a workflow as bytes; `idle`: nothing of it has to run until a record or a due time comes."""
        if self.live.pop(w.correlation, None) is not None:
            self._records.pop(w.correlation, None)
            self.entries[w.correlation] = freeze(w, idle=idle)
            if idle:
                self.changed.add(w.correlation)  # a checkpoint may say otherwise

    # ---- the partition's own records -------------------------------------------------------------------------------
    def _own(self, r: Envelope, position: int) -> None:
        fact = r.fact
        self.claimed = []
        if isinstance(fact, facts.Forwarded):
            self.strays.pop(fact.position, None)
        if isinstance(fact, facts.Owner):
            known = self.groups.get(fact.group)
            if known is None or fact.epoch > known.epoch:
                died = known is not None and not known.released
                self.groups[fact.group] = Ownership(fact.epoch, position, fact.member, fact.pid, False, died)
        if isinstance(fact, facts.Owner | facts.Retired):  # others may listen from here on
            self._records.clear()
            self.recent.listeners_change()
        if isinstance(fact, facts.OwnerReleased):
            known = self.groups.get(fact.group)
            if known is not None and known.epoch == fact.epoch:
                known.released = True
        for agent, wanted in listen(self.listeners, self.heard, r):
            for correlation in self.unclaimed.pop(agent, {}):
                w = self.find(correlation)
                if w is None and (w := self.recent.pop(correlation)) is not None:
                    self.live[correlation] = w
                    self.stubs.discard(record_key(correlation))
                if w is not None:
                    w.view.claim(agent, wanted)
                    self.changed.add(correlation)
                    self.claimed.append(correlation)

    # ---- checkpoint ------------------------------------------------------------------------------------------------
    def shared(self) -> Shared:
        """Return what a checkpoint keeps besides the workflows."""
        unclaimed = {agent: list(ws) for agent, ws in self.unclaimed.items()}
        return Shared(
            self.listeners, self.groups, self.stubs.number, list(self.strays), unclaimed, self.undecodable,
            self.stubs.forgot, self.heard,
        )  # fmt: skip

    def load(
        self, shared: Shared, stubs: Iterable[Stub], entries: Iterable[Kept], position: int, last_id: str
    ) -> None:
        """Take over what a checkpoint kept."""
        self.listeners, self.groups, self.heard = shared.listeners, shared.groups, shared.heard
        self.stubs.load(stubs, shared.next_stub, shared.forgot)
        self.strays = dict.fromkeys(shared.strays)
        self.unclaimed = {agent: dict.fromkeys(ws) for agent, ws in shared.unclaimed.items()}
        self.undecodable = shared.undecodable
        self.position, self.last_id = position, last_id
        self.written = position
        for entry, segments in entries:
            correlation = peek(entry).correlation
            self.entries[correlation] = entry
            if segments:
                self.segments[correlation] = segments


def is_own(r: Envelope) -> bool:
    """The record belongs to a partition and to no workflow. It counts where it has no key, so that everybody who reads
    one workflow of the partition meets it too; a workflow's record counts under its workflow's key."""
    return r.message_type in kinds.PARTITION and not r.correlation_id


def listen(listeners: Listeners, heard: Heard, r: Envelope) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Let a partition's own record change who listens; yield the agents that are new. What comes again changes nothing,
    nor does an `owner` that comes late: one that is not newer than its group's newest."""
    fact = r.fact
    if isinstance(fact, facts.Retired):
        if f"retired {r.id}" not in heard:
            heard[f"retired {r.id}"] = 0
            listeners.pop(fact.agent, None)
    elif isinstance(fact, facts.Owner) and fact.epoch > heard.get(fact.group, -1):
        heard[fact.group] = fact.epoch
        for agent, wanted in fact.agents.items():
            new = agent not in listeners
            listeners[agent] = wanted
            if new:
                yield agent, wanted


__all__ = ["Folded", "NeedsHistory", "Ownership", "PartitionFold", "Shared"]
