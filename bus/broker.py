"""The port: a broker is a partitioned, append-only log with owners. The engine above knows nothing else of it.

A *position* is an int that grows within a partition and is not dense: a reader never expects +1. Every record has a
*key*: the correlation id of its workflow, or None for a partition's own record. Bytes are kept verbatim.

Errors: every method may raise `BrokerUnavailable` (try again). Cancelling a call never corrupts the log; a cancelled
`append` may or may not have happened, which its caller resolves by the records' ids (admission ignores duplicates).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from msgspec import Struct, field

DEFAULT_MAX_RECORD = 512 * 1024
DEFAULT_MAX_APPEND = 900 * 1024
RULES = 1
"""Number of the admission rules that this release writes (semantics of the fold). It reads all up to this one."""


# ---- values --------------------------------------------------------------------------------------------------------
class Stored(NamedTuple):
    """A record as the log holds it. `time` is when the log took it (unix seconds), for reading by time only."""

    position: int
    key: str | None
    value: bytes
    time: float


class Outgoing(NamedTuple):
    """A record to append: its id (for brokers that refuse duplicates early) and its bytes."""

    id: str
    value: bytes


class Item(NamedTuple):
    """Records that enter one partition under one key, in order, all or none.

    `after`: the position of the last record of this key that the writer saw (0: none). A broker that claims
    `compare_and_append` answers `Conflict` when the key has a later one; others ignore it. None asks for nothing.
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


class Appended(NamedTuple):
    """The records are durable (in the broker's durability class) at these positions."""

    positions: tuple[int, ...]


class Conflict(NamedTuple):
    """Nothing was appended: the key's last record is at `last`, later than the writer saw."""

    last: int


class Duplicate(NamedTuple):
    """Nothing was appended: the first record's id is in the log already, at `position`."""

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
    """A place in a partition given by time: the first record taken at or after `time` (unix seconds)."""

    time: float


class Checkpoint(NamedTuple):
    """What a group keeps of a partition: everything up to `position` is folded into `entries`; bytes are opaque."""

    position: int
    anchor: bytes
    entries: dict[bytes, bytes]


class LogSpec(Struct, frozen=True, kw_only=True):
    """What a caller needs of a log; None accepts what is there (and the adapter's default where it creates)."""

    partitions: int | None = None
    max_record: int | None = None
    max_append: int | None = None


ANY_LOG = LogSpec()


class LogMeta(Struct, frozen=True, kw_only=True):
    """What the log says of itself. `log_id` is random, made with the log: a recreated log has another one."""

    log_id: str
    partitions: int
    max_record: int = DEFAULT_MAX_RECORD
    max_append: int = DEFAULT_MAX_APPEND
    rules: int = RULES
    created: float = 0.0


class Capabilities(Struct, frozen=True, kw_only=True):
    """What this broker can refuse or do by itself. What is claimed is proved by the conformance suite; what is not
    claimed is proved not to happen."""

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
    """A presence, how long ago it was last told (seconds), and whether it still holds."""

    presence: Presence
    age: float
    alive: bool


# ---- events of a subscription --------------------------------------------------------------------------------------
class Assigned(NamedTuple):
    """The member owns the partition from now on, under `epoch` (grows with every change of owner in the group).

    `resumed`: it came back in the directly following generation under the epoch it had; fold and runs may be kept.
    `after_death`: the previous epoch ended without a release.
    The partition delivers nothing until `seek` says from where.
    """

    partition: int
    epoch: int
    resumed: bool = False
    after_death: bool = False


class Revoked(NamedTuple):
    """The partition goes to another member: start nothing more in it, call `release`. No answer is waited for."""

    partition: int
    epoch: int


class Lost(NamedTuple):
    """The partition has been taken away: another member may own it already; nothing can be appended under `epoch`."""

    partition: int
    epoch: int


class Batch(NamedTuple):
    """Records of one partition, in log order, that follow on what was delivered before under this epoch."""

    partition: int
    epoch: int
    records: list[Stored]


Event = Assigned | Revoked | Lost | Batch


@runtime_checkable
class Subscription(Protocol):
    """One member's place in a group: which partitions it owns, and their records. Made by `Broker.subscribe`."""

    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        """Return what happened, in order; [] after `max_wait` seconds without anything.

        Assignments come in the same stream as records, so a record is never seen under an epoch that has ended
        before it. Records of a partition are delivered at least once, in order, from where `seek` pointed. One
        caller at a time; the engine never cancels it.
        """
        ...

    def seek(self, partition: int, position: int) -> None:
        """Deliver the partition's records from `position` on (0: from the start). Takes effect with the next fetch."""
        ...

    def pause(self, partitions: Collection[int]) -> None:
        """Deliver no records of these until `resume`; ownership is kept."""
        ...

    def resume(self, partitions: Collection[int]) -> None:
        """Undo `pause`; nothing is skipped."""
        ...

    async def release(self, partition: int, epoch: int) -> None:
        """Give the partition up: another member may have it at once. No error if it is gone already."""
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
        """Replace `changed` and remove `gone` entries, then the position: all or none. False when fenced."""
        ...

    def deadline(self, partition: int) -> float:
        """Monotonic time until which this member is sure to own the partition, if it hears from nobody (-inf: not)."""
        ...

    def turned(self) -> None:
        """The handlers' loop has turned: renewal stops when this was not called for `stall_limit` seconds."""
        ...

    def owned(self) -> Mapping[int, int]:
        """Partition -> epoch, of what this member owns now."""
        ...


@runtime_checkable
class Listener(Protocol):
    """Receives hints. `address` is what others pass to `Broker.notify`."""

    address: str

    async def get(self) -> bytes:
        """Wait for the next hint. Hints may be lost, doubled or late: the log is the result."""
        ...


@runtime_checkable
class Broker(Protocol):
    """A log. Used as `async with broker:`; leaving closes it (idempotent, and what was appended stays appended)."""

    @property
    def url(self) -> str:
        """Where the log is, without secrets."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What this broker can refuse or do by itself."""
        ...

    @property
    def meta(self) -> LogMeta:
        """What the log says of itself; known after `ensure_log`."""
        ...

    async def __aenter__(self) -> Broker: ...

    async def __aexit__(self, *exc: object) -> None: ...

    async def aclose(self) -> None:
        """Finish the appends that were accepted, then let everything go. A second call does nothing."""
        ...

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        """Verify the log, or make it if there is none and `create` allows. Never changes a log that exists.

        Raises LogMissing, LogMismatch (names each difference), LogCorrupt, RulesTooNew.
        """
        ...

    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        """Append each item, all of its records or none; return a result per item, in order.

        Durable when it returns. Concurrent calls share a commit; a lone call does not wait for others. Items of one
        call enter in the order given where they share a partition. A refusal is a value, not an error. With a
        `fence` that is stale, nothing at all is appended and every result is `Fenced` (only where `fence_appends`
        is claimed). Raises BrokerUnavailable, LogLocked, LogFull: nothing of the call was written, or (connection
        lost) it is unknown whether it was; TooLarge: nothing was.
        """
        ...

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        """Append (key, bytes) verbatim, without any refusal but size: for copy and import."""
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
        share. Leaving releases what is owned. `partitions` limits what this member claims.
        """
        ...

    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        """Return up to `limit` records with start <= position < end. Sees all that was acknowledged before the call."""
        ...

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        """Return records of the workflow, and its partition's own records, with position > after, in log order.

        `next` of the page is what to pass as `after` for the next one.
        """
        ...

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        """Return the records at these positions, ascending; a position without a record raises LogTruncated."""
        ...

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        """Return the group's checkpoint of the partition, or None. Anybody may read it."""
        ...

    async def checkpoint_groups(self, partition: int) -> list[str]:
        """Return the groups that have a checkpoint of the partition, newest position first."""
        ...

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        """Return a position per partition. begin: the first that can be read; end: above the last record;
        committed: that of the group's checkpoint, + 1 (0 where it has none). A difference of these is a lag."""
        ...

    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        """Tell who is alive; holds for `ttl` seconds. Replaces what the member told before."""
        ...

    async def withdraw(self, member: str) -> None:
        """The member is gone, by its own word."""
        ...

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        """Return who is alive; with `gone` also who was (as long as the broker remembers)."""
        ...

    async def notify(self, address: str, hint: bytes) -> None:
        """Send a hint (at most 1 KiB). Never raises for a listener that is gone."""
        ...

    def listen(self) -> AbstractAsyncContextManager[Listener]:
        """Open an address at which hints arrive."""
        ...

    async def health(self) -> Health:
        """Look at the log and its settings; never changes anything."""
        ...
