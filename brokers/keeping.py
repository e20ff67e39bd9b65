"""What the thread that keeps a member's partitions does alike on every broker without a coordinator: what it holds,
whom it has seen alive, and when its own event loop stands still."""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import ClassVar

from ..bus.broker import Assigned, Event, Lost, Revoked
from ..bus.errors import RefoldError
from ..bus.outage import Outage


class PartitionKeeper:
    """Owns the partitions of one member. `tell` is called, in the thread, with events for the subscription; `on_stall`
    when the event loop has not turned for `stall_limit`.

    `held` (partition -> epoch) is replaced, never changed, so any thread may read it; `renewed` is the start of the
    last renewal, `turned` when the event loop was last seen to turn.
    """

    log: ClassVar[logging.Logger]
    """Of the adapter."""

    def __init__(
        self, member: str, *, lease: float, stall_limit: float, tell: Callable[[Event], None],
        on_stall: Callable[[], None],
    ) -> None:  # fmt: skip
        self.member, self.lease, self.stall_limit = member, lease, stall_limit
        self.held: dict[int, int] = {}
        self.turned = self.renewed = self._began = time.monotonic()
        self.token = os.urandom(8).hex()
        self._tell, self._on_stall = tell, on_stall
        self._watched = threading.get_ident()
        self._lock = threading.Lock()
        self._revoking: set[int] = set()
        self._seen: dict[str, tuple[int, float]] = {}
        self._outage = Outage()

    # ---- what is held ------------------------------------------------------------------------------------------------
    def deadline(self, partition: int) -> float:
        """Return the monotonic time until which the partition is surely held; -inf where it is not."""
        return self.renewed + self.lease if partition in self.held else -math.inf

    def drop(self, partition: int, epoch: int) -> bool:
        """Hold the partition no longer; False where it was not held under this epoch."""
        with self._lock:
            if self.held.get(partition) != epoch:
                return False
            self.held = {p: e for p, e in self.held.items() if p != partition}
            self._revoking.discard(partition)
            return True

    def _take(self, partition: int, epoch: int, *, after_death: bool) -> None:
        with self._lock:
            self.held = {**self.held, partition: epoch}
        self._tell(Assigned(partition, epoch, after_death=after_death))

    def _revoke(self, partition: int, epoch: int) -> None:
        """Ask for the partition, unless it has been dropped meanwhile."""
        with self._lock:
            mine = self.held.get(partition) == epoch
            if mine:
                self._revoking.add(partition)
        if mine:
            self._tell(Revoked(partition, epoch))

    def _forfeit(self, partition: int, epoch: int) -> None:
        """Others have taken it."""
        if self.drop(partition, epoch):
            self._tell(Lost(partition, epoch))

    # ---- time --------------------------------------------------------------------------------------------------------
    def _unchanged(self, token: str, counter: int, now: float) -> float:
        """Return for how many seconds another member's counter has been seen as it is, by this process's own clock."""
        known, since = self._seen.get(token, (-1, now))
        if known != counter:
            since = now
        self._seen[token] = (counter, since)
        return now - since

    def _begin_turn(self) -> float:
        """Return the time at which a turn begins."""
        before, self._began = self._began, time.monotonic()
        now = self._began
        if now - before > self.lease / 2:  # this process was stopped, maybe within its last turn
            self.turned = now  # so its loop did not block, nor are others dead
            self._seen.clear()
        return now

    def _is_stalled(self, now: float) -> bool:
        """The event loop has not turned for too long: say where it stands."""
        if now - self.turned <= self.stall_limit:
            return False
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"
        self.log.critical(
            "the event loop has not turned for %.0f s: %s ends, others take over\n%s",
            now - self.turned, self.member, stack,
        )  # fmt: skip
        return True

    def _failed(self, error: BaseException) -> None:
        """A turn failed. What is out of reach is said now and then, a bug each time."""
        if not isinstance(error, RefoldError | TimeoutError):
            self.log.error("the place of %s in its group could not be kept", self.member, exc_info=error)
        elif self._outage.is_news():
            self.log.warning("the place of %s in its group could not be kept: %s", self.member, reason(error))


def reason(error: BaseException) -> str:
    """Return what an error says; one of time says nothing by itself."""
    return str(error) or "no answer in time"


__all__ = ["PartitionKeeper", "reason"]
