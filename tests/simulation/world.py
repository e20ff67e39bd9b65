"""What is outside of the simulated processes: the log, the network, leases, the ledger of effects, the trace."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from refold.agents.execution import doing
from refold.agents.worker import Worker
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import Checkpoint, Item
from refold.bus.clock import Clock, Source
from refold.bus.errors import UndecodableRecord
from refold.bus.message import Envelope
from refold.bus.partition import partition_of

from .loop import WORLD, Process, VirtualLoop, current

if TYPE_CHECKING:
    from .port import SimSubscription

EPOCH = 1_800_000_000.0
LEASE = 4.0

RATES = {
    "append refused": 0.02, "append unknown": 0.02, "append late": 0.02, "append twice": 0.03, "call refused": 0.01,
    "call slow": 0.03, "rolled back meanwhile": 0.01, "crash before a call": 0.002, "crash after a call": 0.002,
    "batch again": 0.03, "batch in pieces": 0.1, "page in pieces": 0.2, "hint lost": 0.3, "hint twice": 0.2,
    "checkpoint not saved": 0.1, "checkpoint lost": 0.25, "checkpoint old": 0.25, "copy elsewhere": 0.01,
}  # fmt: skip
"""What may happen to a call of the port, and how likely; each seed takes about two thirds of them."""


class SimClock(Clock):
    """A process's clocks: its wall clock may be seconds off, its monotonic clock starts somewhere."""

    def __init__(self, loop: VirtualLoop, skew: float, start: float) -> None:
        self.loop, self.skew, self.start = loop, skew, start

    def now(self) -> float:
        return EPOCH + self.loop.time() + self.skew

    def monotonic(self) -> float:
        return self.start + self.loop.time()


class SimSource(Source):
    """Ids that look like UUIDv7, and jitter, from a seed."""

    def __init__(self, seed: int, clock: SimClock) -> None:
        super().__init__(seed)
        self.clock = clock

    def new_id(self) -> str:
        ms, bits = int(self.clock.now() * 1000), self._random.getrandbits(74)
        a, b = bits >> 62, bits & ((1 << 62) - 1)
        text = f"{(ms << 80) | (7 << 76) | (a << 64) | (2 << 62) | b:032x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class World:
    """One seed's world. Everything random in it comes from `random`, in an order that only the seed decides."""

    def __init__(self, loop: VirtualLoop, seed: int, *, refuses: bool, partitions: int) -> None:
        self.loop = loop
        self.random = random.Random(f"world {seed}")
        self.refuses = refuses
        self.partitions = partitions
        self.clock = SimClock(loop, 0.0, 0.0)
        self.broker = MemoryBroker(clock=self.clock, source=SimSource(seed, self.clock))
        self.rates = {k: r * self.random.choice((0.5, 1, 2)) for k, r in RATES.items() if self.random.random() < 0.7}
        self.healed = False
        self.met: Counter[str] = Counter()
        self.trace: list[str] = []
        self.wrong: list[str] = []
        self.processes: list[Process] = []
        self.workers: dict[Process, Worker] = {}
        self.subscriptions: list[SimSubscription] = []
        self.cut: dict[Process, float] = {}
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, list[str]] = defaultdict(list)
        self.recorded: dict[str, tuple[int, Envelope]] = {}
        self.positions: dict[str, int] = {}
        self.cut_at: dict[str, int] = {}
        self.saved: dict[tuple[str, int], list[Checkpoint]] = defaultdict(list)
        self.mended = False
        self.roll_back: Callable[[str | None], Awaitable[None]] | None = None
        self._children: dict[str, dict[str, None]] = defaultdict(dict)
        self._indexed: dict[int, int] = defaultdict(int)

    # ---- what is written down
    def note(self, *words: Any) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.loop.time():.6f} {current.get().name} " + " ".join(map(str, words)))

    def digest(self) -> str:
        """Return a digest of the whole trace."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def violation(self, text: str) -> None:
        """Something that must never happen has happened."""
        self.note("VIOLATION", text)
        self.wrong.append(f"at {self.loop.time():.3f} s, {current.get().name}: {text}")

    # ---- faults
    def happens(self, kind: str) -> bool:
        """Draw whether this fault happens to the current call."""
        rate = 0.0 if self.healed else self.rates.get(kind, 0.0)
        if kind.startswith("crash") and current.get() not in self.workers:
            return False  # clients and operators live on: they have the answers to tell
        if rate and self.random.random() < rate:
            self.meet(kind)
            return True
        return False

    def meet(self, kind: str) -> None:
        """A fault happened."""
        self.met[kind] += 1
        self.note("!", kind)

    def later(self, seconds: float, do: Callable[[], Any]) -> None:
        """Do something in nobody's name, whatever becomes of the process that caused it."""
        context = copy_context()
        context.run(current.set, WORLD)
        self.loop.call_later(seconds, do, context=context)

    def kill(self, process: Process) -> None:
        """Let a process die: not one more line of it runs. Its leases run out later."""
        if not process.dead:
            process.dead = True
            self.note("!", process.name, "dies")

    async def die_here(self) -> None:
        """The calling process dies now."""
        self.kill(current.get())
        await asyncio.get_running_loop().create_future()

    # ---- the log
    def land(self, items: list[Item]) -> None:
        """A copy of an append reaches the log, in nobody's name."""
        for item in items:
            for record in item.records:
                self.store(item.partition, item.key, record.value)

    def store(self, partition: int, key: str | None, value: bytes) -> int:
        """Append bytes, without any refusal."""
        position = self.broker._store(partition, key, value)
        self.broker._ring()
        return position

    def index(self) -> None:
        """Note where each effect's completion is in the log, and which workflows have opened others."""
        for p, records in enumerate(self.broker.log.partitions):
            for stored in records[self._indexed[p] :]:
                try:
                    r = codec.envelope(stored.value)
                except UndecodableRecord:
                    continue
                if r.message_type == kinds.EFFECT_COMPLETED and partition_of(r.correlation_id, self.partitions) == p:
                    self.recorded[r.fact.effect] = (p, r)
                    self.positions.setdefault(r.fact.effect, stored.position)
                if r.message_type in kinds.CONTROL:
                    self.cut_at[r.correlation_id] = stored.position
                if r.is_request and r.to is not None:
                    self._children[r.correlation_id][r.to] = None
            self._indexed[p] = len(records)

    def children(self, id: str) -> list[str]:
        """Return the workflows that this one has opened, those that they have, and so on."""
        self.index()
        out, todo = [], [id]
        while todo:
            found = list(self._children.get(todo.pop(), ()))
            out += found
            todo += found
        return out

    # ---- leases
    async def keep_leases(self) -> None:
        """Renew what living members hold; let others take what nobody renews."""
        while True:
            await asyncio.sleep(LEASE / 4)
            for sub in list(self.subscriptions):
                sub.renew_or_lose()

    # ---- effects
    async def pay(self, token: str, key: str, fails: int = 0) -> str:
        """A call of the outside world. Raises in the first `fails` calls of this token."""
        process = current.get()
        if process.dead:
            raise asyncio.CancelledError
        self._check_not_recorded(process, key)
        self._check_owned(process)
        self.calls[key] += 1
        if key not in self.keys[token]:
            self.keys[token].append(key)
        n = sum(self.calls[k] for k in self.keys[token])
        self.note("pays", token, key[:8], n)
        await asyncio.sleep(self.random.choice((0.0, 0.0, 0.01, 0.2, 1.0, 3.0)))
        if self.happens("crash before a call"):
            await self.die_here()
        if n <= fails:
            raise RuntimeError(f"call {n} of {token} fails")
        return f"paid {token}"

    def _check_owned(self, process: Process) -> None:
        """No call begins when its process cannot be sure any more that the partition is its own."""
        what = doing.get()
        if what is None:
            return
        partition = partition_of(what.workflow, self.partitions)
        mine = [s for s in self.subscriptions if s.process is process]
        if not any(s.renewed + LEASE > self.loop.time() and partition in s.owned() for s in mine):
            self.violation(f"an effect of {what.workflow} begins, though partition {partition} may be another's")

    def _check_not_recorded(self, process: Process, key: str) -> None:
        """A recorded call is never repeated by who has folded the record, nor by who became the owner after it (where
        no rollback, redrive or cancel has come since)."""
        self.index()
        partition, r = self.recorded.get(key, (-1, None))
        worker = self.workers.get(process)
        place = worker.places.get(partition) if worker is not None else None
        w = place.fold.live.get(r.correlation_id) if r is not None and place is not None else None
        h = w.view.handling(r.sender_id, r.work.message) if w is not None else None
        st = h.steps.get(r.work.step) if h is not None else None
        above = self.cut_at.get(r.correlation_id, 0) if r is not None else 0
        admitted = w is not None and w.verdicts.get(r.id) == "admitted"
        below = admitted and above < self.positions.get(key, 0) < place.owner_position
        if below or (st is not None and st.settled and st.effect == key):
            self.violation(f"effect {key} of {r.correlation_id} is called, though its record {r.id} is folded")
