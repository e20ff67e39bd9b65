"""The port: a broker is a partitioned, append-only log with owners. The engine above knows nothing else of it.

A *position* is an int that grows within a partition and is not dense: a reader never expects +1. Every record has a
*key*: the correlation id of its workflow, or None for a partition's own record. Bytes are kept verbatim.

Errors: every method may raise `BrokerUnavailable` (try again), and raises `LogMissing` before `ensure_log` where there
is no log; a call that raises has lost nothing that a repeated one would not find. A call that is wrong (a value that
is no bytes) raises what it may, and harms no other. Cancelling a call never corrupts the log; a cancelled `append` may
or may not have happened, which its caller resolves by the records' ids (admission ignores duplicates).

One broker belongs to one event loop of one process: it is not carried over a fork or into another thread.
Each promise made here is a case of `refold.brokers.conformance`, which judges anybody's broker.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct, field

DEFAULT_MAX_RECORD = 512 * 1024
DEFAULT_MAX_APPEND = 900 * 1024
MAX_HINT = 1024
"""Bytes of a hint."""
RULES = 1
"""Number of the admission rules that this release writes (semantics of the fold). It reads all up to this one."""


# ---- values --------------------------------------------------------------------------------------------------------
class Stored(Struct, frozen=True, gc=False):
    """A record as the log holds it. `time` is when the log took it (unix seconds), for reading by time only."""

    position: int
    key: str | None
    value: bytes
    time: float


class Outgoing(Struct, frozen=True, gc=False):
    """A record to append: its id (for brokers that refuse duplicates early) and its bytes."""

    id: str
    value: bytes


class Item(Struct, frozen=True, gc=False):
    """Records that enter one partition under one key, in order, all or none; no reader ever sees a part of them.

    `after`: the position of the last record of this key that the writer saw (0: none). A broker that claims
    `compare_and_append` answers `Conflict` when the key has a later one in this partition; others ignore it. None asks
    for nothing. Not promised: that the records' positions follow on each other without a gap.
    """

    partition: int
    key: str | None
    records: tuple[Outgoing, ...]
    after: int | None = None


class Fence(NamedTuple):
    """Whose right an append claims: refused as `Fenced` when the group's epoch of the partition is another one."""

    group: str
    partition: int
    epoch: int


class Appended(Struct, frozen=True, gc=False):
    """The records are durable (in the broker's durability class) at these positions."""

    positions: tuple[int, ...]


class Conflict(NamedTuple):
    """Nothing was appended: the key's last record is at `last`, later than the writer saw."""

    last: int


class Duplicate(NamedTuple):
    """Nothing was appended: the id of one of the records (`position`: of the first such) is in the partition already,
    under the same key. An append that is tried again is a duplicate, whatever its `after`. Only where
    `refuse_duplicates` is claimed; how far back it looks is the broker's own, and records without id (`append_raw`) and
    equal ids within one item are never refused."""

    position: int


class Fenced(NamedTuple):
    """Nothing was appended: the group's epoch of the partition is `epoch` (None: no owner)."""

    epoch: int | None


Result = Appended | Conflict | Duplicate | Fenced


class Page(NamedTuple):
    """Records in order, and where the next page starts (None: nothing more below the end that was asked for)."""

    records: list[Stored]
    next: int | None


class At(NamedTuple):
    """A place in a partition given by time: the first record whose `Stored.time` is `time` (unix seconds) or later."""

    time: float


class Checkpoint(NamedTuple):
    """What a group keeps of a partition: everything up to `position` is folded into `entries`; bytes are opaque."""

    position: int
    anchor: bytes
    entries: dict[bytes, bytes]


class LogSpec(Struct, frozen=True, kw_only=True):
    """What a caller needs of a log; None accepts what is there (and the adapter's default where it creates).

    Raises ValueError for a number below 1.
    """

    partitions: int | None = None
    max_record: int | None = None
    max_append: int | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} is {number}: at least 1")


ANY_LOG = LogSpec()


class LogMeta(Struct, frozen=True, kw_only=True):
    """What the log says of itself. `log_id` is random, made with the log: a recreated log has another one.

    `stride`: about by how much the positions of two records that follow on each other differ. A distance between
    positions, divided by it, is about a number of records: for progress and lag, never for a decision.
    """

    log_id: str
    partitions: int
    max_record: int = DEFAULT_MAX_RECORD
    max_append: int = DEFAULT_MAX_APPEND
    rules: int = RULES
    created: float = 0.0
    stride: int = 1


class Capabilities(Struct, frozen=True, kw_only=True):
    """What this broker can refuse or do by itself. What is claimed is proved by the conformance suite; what is not
    claimed is proved not to happen.

    `compare_and_append`: `Item.after` is heeded. `refuse_duplicates`: an id that is there already is refused.
    `fence_appends`: a stale `Fence` is refused. `shared_between_processes`: another process that opens the same URL
    works on the same log. `survives_restart`: so does a later one, when this process has ended.
    """

    compare_and_append: bool = False
    refuse_duplicates: bool = False
    fence_appends: bool = False
    shared_between_processes: bool = False
    survives_restart: bool = False


class Health(Struct, frozen=True, kw_only=True):
    """`durability` is D0..D4 (D0 memory, D1 process kill, D2 power loss of the node, D3 loss of a minority of nodes,
    D4 power loss of all nodes), `why` the setting it follows from; `checks` are (name, ok, detail, remedy)."""

    ok: bool
    durability: str
    why: str
    version: str = ""
    checks: list[tuple[str, bool, str, str]] = field(default_factory=list)


class Presence(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A process that hosts agents, now. Told by `announce`, kept outside the log; times are unix seconds."""

    member: str
    group: str
    app: str = ""
    pid: int = 0
    host: str = ""
    started: float = 0.0
    agents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    capabilities: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    partitions: tuple[int, ...] = ()
    running: int = 0
    queued: int = 0
    waiting: int = 0
    draining: bool = False


class Member(NamedTuple):
    """A presence as it was told, how long ago that was (seconds, >= 0), and whether it still holds."""

    presence: Presence
    age: float
    alive: bool


# ---- events of a subscription --------------------------------------------------------------------------------------
class Assigned(NamedTuple):
    """The member owns the partition from now on, under `epoch` (grows with every change of owner in the group).

    `resumed`: it came back in the directly following generation under the epoch it had; fold and runs may be kept.
    `after_death`: the previous epoch ended without a release (never so for the group's first one).
    The partition delivers nothing until `seek` says from where; a `seek` or `pause` from before does not count.
    """

    partition: int
    epoch: int
    resumed: bool = False
    after_death: bool = False


class Revoked(NamedTuple):
    """The partition goes to another member: start nothing more in it, call `release`. No answer is waited for: records
    may come until then, and a member that does not call it keeps the partition until it is `Lost` or leaves."""

    partition: int
    epoch: int


class Lost(NamedTuple):
    """The partition has been taken away: another member may own it already; nothing can be appended under `epoch`."""

    partition: int
    epoch: int


class Batch(NamedTuple):
    """Records of one partition (at least one), in log order, that follow on what was delivered before under this epoch,
    or on the last `seek`. None between them is left out."""

    partition: int
    epoch: int
    records: list[Stored]


Event = Assigned | Revoked | Lost | Batch


@runtime_checkable
class Subscription(Protocol):
    """One member's place in a group: which partitions it owns, and their records. Made by `Broker.subscribe`."""

    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        """Return what happened, in order, as soon as anything has; [] after `max_wait` seconds (0: look only).

        Assignments come in the same stream as records, so a record is never seen under an epoch that has ended
        before it. Records of a partition are delivered at least once, in order, from where `seek` pointed, at most
        `max_records` (over all partitions) in a call. Events that were not returned because the call raised come with
        the next one. One caller at a time. Not promised: anything about a call that is cancelled (the engine never
        does), or which partition comes first.
        """
        ...

    def seek(self, partition: int, position: int) -> None:
        """Deliver the partition's records from `position` on (0: from the start), back or ahead, paused or not.

        Takes effect with the next fetch. Without effect on a partition that the member does not own.
        """
        ...

    def pause(self, partitions: Collection[int]) -> None:
        """Deliver no records of these until `resume` (from the next fetch on); ownership is kept."""
        ...

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`; nothing is skipped."""
        ...

    async def release(self, partition: int, epoch: int) -> None:
        """Give the partition up: another member may have it at once, and nothing more of this epoch is delivered here.

        No error, and no effect, if the epoch has ended already. Where it raises, the partition is given up all the
        same, as soon as the log can be reached. A partition that nobody else wants may come back in a new epoch.
        """
        ...

    async def save_checkpoint(
        self,
        partition: int,
        epoch: int,
        position: int,
        anchor: bytes,
        changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:
        """Replace `changed` and remove `gone` entries, then the position and the anchor: all or none.

        Entries in neither stay; one in both stays as it is in `changed`. No reader sees a part of it. False, and
        nothing is changed, when the group's epoch of the partition is no longer `epoch`. Durable like an append.
        Cancelled: it may have happened or not. Not judged: whether the position exists, or is later than the last.
        """
        ...

    def deadline(self, partition: int) -> float:
        """Monotonic time until which this member is sure to own the partition, if it hears from nobody.

        -inf where it does not own it; inf where nobody takes a partition from a living owner.
        """
        ...

    def turned(self) -> None:
        """The handlers' loop has turned: renewal stops when this was not called for `stall_limit` seconds.

        What an adapter does then (ending the process is a death like any other) is its own.
        """
        ...

    def owned(self) -> Mapping[int, int]:
        """Partition -> epoch, of what this member owns now. May be ahead of what `fetch` has returned."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Receives hints. `address` is what others, in any process that shares the log, pass to `Broker.notify`."""

    address: str

    async def get(self) -> bytes:
        """Wait for the next hint. Hints may be lost, doubled or late: the log is the result."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A log. Used as `async with broker:`; leaving closes it (idempotent, and what was appended stays appended)."""

    @property
    def url(self) -> str:
        """Where the log is, without secrets; `open_broker` of it is a broker of the same kind."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can refuse or do by itself; known before anything is opened, and never changing."""
        ...

    @property
    def meta(self) -> LogMeta:
        """What the log says of itself; known after `ensure_log`. Raises LogMissing where there is no log."""
        ...

    async def __aenter__(self) -> Broker: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def aclose(self) -> None:
        """Finish the appends that were accepted, then let everything go. A second call does nothing.

        Members that are still subscribed leave their groups, as if their `async with` had ended. Not promised: what a
        closed broker answers, other than that an append is either refused (BrokerUnavailable) or in the log.
        """
        ...

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        """Verify the log, or make it if there is none and `create` allows. Never changes a log that exists.

        Several that make one at once make one. May be called again. Raises LogMissing (and makes nothing),
        LogMismatch (names each difference: what it is, what was asked for), LogCorrupt, RulesTooNew.
        """
        ...

    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        """Append each item, all of its records or none; return a result per item, in order.

        Durable, and there for every reader, when it returns. Concurrent calls share a commit; a lone call does not
        wait for others. Items of one call enter in the order given where they share a partition. A refusal is a
        value, not an error, and concerns its item alone: concurrent appends without `after` all succeed. With a
        `fence` that is stale, nothing at all is appended and every result is `Fenced` (only where `fence_appends`
        is claimed; else it is ignored). Not promised: that a call's items become visible together.

        Raises BrokerUnavailable, LogLocked, LogFull: nothing of the call was written, or (connection lost) it is
        unknown whether it was; TooLarge (a record over `max_record`, an item over `max_append` bytes), Overloaded
        (too many wait), ValueError (no such partition): nothing was. An item without records appends none.
        """
        ...

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        """Append (key, bytes) verbatim, in order, all or none, and return their positions: for copy and import.

        Refuses nothing but what cannot be stored (TooLarge, ValueError): the same bytes twice are there twice.
        Otherwise like `append`.
        """
        ...

    def subscribe(
        self,
        group: str,
        member: str,
        *,
        partitions: Collection[int] | None = None,
        lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AbstractAsyncContextManager[Subscription]:
        """Join `group` as `member`. Members share the partitions, each owned by one member at a time.

        A partition moves when its owner leaves, dies (seen unchanged for `lease` seconds), or has more than its
        share. Leaving releases what is owned, also when it is left by an error. `partitions` limits what this member
        claims: nobody owns what nobody claims. Groups know nothing of each other. All members of a group have the
        same `lease`. Cancelled while it joins, it leaves nothing behind. Not promised: who gets which partition, how
        even the shares are while members come and go, or what two living members of one name do to each other (an
        adapter that notices refuses the second with ConfigError).
        """
        ...

    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        """Return up to `limit` (at least 1) records with start <= position < end, in log order.

        Sees all that was acknowledged before the call. A page may hold fewer than `limit` and yet have a `next`.
        """
        ...

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        """Return records of the workflow, and its partition's own records, with position > after, in log order.

        Those of its own partition (`partition_of`): a stray elsewhere is not found. Sees all that was acknowledged
        before the call, and leaves out nothing below its newest record: who goes on behind that has seen all before it.
        `next` of the page is what to pass as `after` for the next one; a page may be empty and yet have a `next`.
        """
        ...

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        """Return the records at these positions, ascending, each once; one without a record raises LogTruncated."""
        ...

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        """Return the group's checkpoint of the partition, as last saved, or None. Anybody may read (and keep) it."""
        ...

    async def checkpoint_groups(self, partition: int) -> list[str]:
        """Return the groups that have a checkpoint of the partition, newest position first."""
        ...

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        """Return a position for each partition. begin: the first that can be read; end: above the last record (begin
        where there is none); committed: that of the group's checkpoint, + 1 (0 where it has none). A difference of
        these, divided by `meta.stride`, is about a lag. Sees all that was acknowledged before the call."""
        ...

    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        """Tell who is alive; holds for `ttl` seconds. Replaces what the member told before. Not in the log."""
        ...

    async def withdraw(self, member: str) -> None:
        """The member is gone, by its own word. No error for one that nobody knows."""
        ...

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        """Return who is alive, of one group or of all; with `gone` also who was (as long as the broker remembers)."""
        ...

    async def notify(self, address: str, hint: bytes) -> None:
        """Send a hint: any bytes, up to `MAX_HINT`; more raise ValueError. Not in the log.

        Never raises for a listener that is gone, or an address that never was. May be lost.
        """
        ...

    def listen(self) -> AbstractAsyncContextManager[Listener]:
        """Open an address, another one each time, at which hints arrive until the `async with` ends."""
        ...

    async def health(self) -> Health:
        """Look at the log and its settings; never changes anything, and says what is wrong rather than raising."""
        ...
