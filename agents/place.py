"""An owned partition: its fold, its runs, what is due. Keyed by (partition, epoch); dropped when the epoch ends."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Container, Iterator
from itertools import count, islice

from ..bus.broker import Fence
from ..projections.frozen import Frozen, peek
from ..projections.partition import PartitionFold
from ..projections.status import next_due
from ..projections.view import Handling
from ..projections.workflow import Workflow
from .run import Run

RunKey = tuple[str, str, str]
"""(correlation id, agent, message id)."""
AGAIN = 1.0
"""Seconds after which something that is due and was acted on is looked at again, in case that was in vain."""
STALE = 100
"""So many due times more than stand, and as many as do stand, are kept before those that passed away are dropped."""
MAX_SKEW = 60.0
"""A timestamp further ahead of this worker's clock (seconds) does not move its time (semantics, section 6)."""


class Place:
    """What a worker holds of one partition under one epoch."""

    def __init__(self, partition: int, epoch: int, fold: PartitionFold, owner_id: str) -> None:
        self.partition = partition
        self.epoch = epoch
        self.fold = fold
        self.owner_id = owner_id
        self.owner_position = -1
        self.active = False
        self.after_death = False
        self.ended = False
        self.runs: dict[str, dict[RunKey, Run]] = {}
        self.idle: dict[str, set[RunKey]] = {}
        self.resting: set[RunKey] = set()
        self._diverged: dict[str, set[tuple[RunKey, int]]] = {}
        self._failures: dict[str, dict[RunKey, int]] = {}
        self.delivering: set[tuple[str, str, int, bool]] = set()
        self.newest = 0.0
        self.saved_position = fold.position
        self.checkpoint_failed = False
        self.saving = asyncio.Lock()
        self._doubted: set[str] = set()
        self.backlog: deque[str] = deque()
        self._numbers = count(1)
        self._due: list[tuple[float, str]] = []
        self._dues: dict[str, float] = {}
        self._acted: dict[str, float] = {}

    def fence(self, group: str) -> Fence:
        """Return the right that appends of this place claim."""
        return Fence(group, self.partition, self.epoch)

    def writer(self) -> str:
        """Return the name of a new run: the owner record's id and a number."""
        return f"{self.owner_id}#{next(self._numbers)}"

    def now(self, wall: float) -> float:
        """Return wall time, never below the newest timestamp that was folded here (within MAX_SKEW)."""
        return max(wall, self.newest) if self.newest - wall <= MAX_SKEW else wall

    def saw(self, timestamp: float, wall: float) -> None:
        """A record with this timestamp was folded."""
        if self.newest < timestamp <= wall + MAX_SKEW:
            self.newest = timestamp

    def distrust_idle(self) -> None:
        """The checkpoint is another group's: what only waited there may have to run here."""
        self._doubted = set(self.fold.entries)

    def _is_idle(self, correlation: str, head: Frozen) -> bool:
        return head.idle and correlation not in self._doubted

    # ---- workflows -------------------------------------------------------------------------------------------------
    def touch(self, correlation: str) -> None:
        """Thaw a workflow that is kept as bytes; its handlings wait until something happens to them."""
        entry = self.fold.entries.get(correlation) if self.fold.entries else None
        if entry is None:
            return
        idle = self._is_idle(correlation, peek(entry))
        self._doubted.discard(correlation)
        w = self.fold.find(correlation)
        if idle and w is not None:
            known = self.idle.setdefault(correlation, set())
            known.update((correlation, h.agent, h.message) for h in w.open_handlings())

    def find(self, correlation: str) -> Workflow | None:
        """Return the workflow if it is not complete; one that is thawed for it is as idle as it was."""
        w = self.fold.live.get(correlation)
        if w is None and self.fold.entries:
            self.touch(correlation)
            w = self.fold.live.get(correlation)
        return w

    def put_off(self, correlation: str) -> bool:
        """The workflow is kept as bytes, and need not run now: not at all (idle), or when there is time (backlog)."""
        entry = self.fold.entries.get(correlation)
        head = peek(entry) if entry is not None else None
        if head is not None and self._is_idle(correlation, head):
            return True
        if head is not None and head.waits:
            self.backlog.append(correlation)
            return True
        return False

    def cool(self, hosted: Container[str], keep: int) -> None:
        """While a long log is folded: keep those that were touched last as objects, the others as bytes."""
        live = self.fold.live
        if len(live) > 2 * keep:
            for w in list(islice(live.values(), len(live) - keep)):
                self.schedule(w, hosted)
                self.fold.park(w, idle=False)

    def wakes(self, key: RunKey) -> None:
        """Something happened to a handling that only waited."""
        idle = self.idle.get(key[0])
        if idle is not None:
            idle.discard(key)
            if not idle:
                del self.idle[key[0]]

    def is_idle(self, key: RunKey) -> bool:
        """The handling waits, and nothing has happened to it."""
        idle = self.idle.get(key[0])
        return idle is not None and key in idle

    def may_freeze(self, w: Workflow, hosted: set[str]) -> bool:
        """Nothing of the workflow has to run here until a record or a due time comes."""
        for h in w.open_handlings():
            if h.agent in hosted and not self.is_idle((w.correlation, h.agent, h.message)):
                run = self.run_of(w.correlation, h)
                if run is None or run.has_slot or run.calls or run.wants_slot:
                    return False
        return not w.duties()

    # ---- runs ------------------------------------------------------------------------------------------------------
    def backoff(self, key: RunKey) -> float:
        """The log could not be reached for this handling: return the seconds until it may be tried again."""
        failures = self._failures.setdefault(key[0], {})
        failures[key] = n = failures.get(key, 0) + 1
        return float(min(0.1 * 2.0 ** min(n, 10), 30.0))

    def diverges(self, key: RunKey, round: int) -> None:
        """The handling is parked in this round: it asks for something else than was recorded."""
        self._diverged.setdefault(key[0], set()).add((key, round))

    def has_diverged(self, key: RunKey, round: int) -> bool:
        """The handling is parked in this round."""
        return bool(self._diverged) and (key, round) in self._diverged.get(key[0], ())

    def run_of(self, correlation: str, h: Handling) -> Run | None:
        """Return the live run of a handling."""
        runs = self.runs.get(correlation)
        return runs.get((correlation, h.agent, h.message)) if runs is not None else None

    def add(self, key: RunKey, run: Run) -> None:
        """A run begins."""
        self.runs.setdefault(key[0], {})[key] = run

    def remove(self, key: RunKey, run: Run) -> bool:
        """A run is over; False where that was known."""
        runs = self.runs.get(key[0])
        if runs is None or runs.get(key) is not run:
            return False
        del runs[key]
        if not runs:
            del self.runs[key[0]]
        return True

    def all_runs(self) -> Iterator[tuple[RunKey, Run]]:
        """Every live run."""
        for runs in list(self.runs.values()):
            yield from list(runs.items())

    # ---- due times -------------------------------------------------------------------------------------------------
    def forget(self, correlation: str) -> None:
        """The workflow is complete: nothing of it waits or is due."""
        self.idle.pop(correlation, None)
        self._dues.pop(correlation, None)
        self._acted.pop(correlation, None)
        self._failures.pop(correlation, None)
        self._diverged.pop(correlation, None)

    def settle(self, w: Workflow) -> bool:
        """Keep only a stub of a workflow that is complete; True if it is."""
        settled = self.fold.settle(w)
        if settled:
            self.forget(w.correlation)
        return settled

    def schedule(self, w: Workflow, hosted: Container[str]) -> float | None:
        """Note when the workflow is due next for one of these agents; return it."""
        due = next_due(w, hosted) if w.view.dues else None
        if due is None:
            if self._dues:
                self._dues.pop(w.correlation, None)
            if self._acted:
                self._acted.pop(w.correlation, None)
        else:
            acted = self._acted.get(w.correlation)
            if acted is not None and due <= acted:
                due = acted + AGAIN  # its retry runs, or its record is on the way
            self.note_due(w.correlation, due)
        return due

    def note_due(self, correlation: str, due: float) -> None:
        """The workflow is due at that time."""
        if self._dues.get(correlation) != due:
            self._dues[correlation] = due
            heapq.heappush(self._due, (due, correlation))
            if len(self._due) > 2 * len(self._dues) + STALE:  # most of them have become due otherwise, or never will
                self._due = [(due, correlation) for correlation, due in self._dues.items()]
                heapq.heapify(self._due)

    def next_due(self) -> float | None:
        """Return the earliest due time."""
        while self._due and self._dues.get(self._due[0][1]) != self._due[0][0]:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def take_due(self, now: float) -> Iterator[str]:
        """Yield the workflows that are due now, one at a time: what is not taken stays due."""
        while (due := self.next_due()) is not None and due <= now:
            _, correlation = heapq.heappop(self._due)
            del self._dues[correlation]
            self._acted[correlation] = now
            yield correlation
