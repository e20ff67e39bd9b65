"""Who runs next: a limit of slots, resuming before starting, the most urgent first, and nobody starves."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable
from itertools import count

FAIR_EVERY = 8
"""Every 8th start takes the message that has waited longest, whatever its priority. So a message starts at the
latest after 8 starts for each message that was queued before it: the stated starvation bound."""


class Scheduler:
    """Grants slots. Plain and synchronous: what it is asked, in which order, decides everything."""

    def __init__(self, slots: int, on_quiet: Callable[[], None] = lambda: None) -> None:
        self.slots = slots
        self.used = 0
        self.held = False
        self._on_quiet = on_quiet
        self._resume: deque[tuple[Hashable, Callable[[], None]]] = deque()
        self._urgent: list[tuple[int, int, Hashable]] = []
        self._oldest: deque[Hashable] = deque()
        self._start: dict[Hashable, Callable[[], None]] = {}
        self._number = count()
        self._starts = 0
        self._granting = False

    @property
    def queued(self) -> int:
        """How many wait to be started."""
        return len(self._start)

    def is_queued(self, key: Hashable) -> bool:
        """The key waits to be started."""
        return key in self._start

    def take_free(self) -> bool:
        """Take a slot for what would be started at once: one is free, and nothing waits for it."""
        if self.used >= self.slots or self._start or self._resume or self.held or self._granting:
            return False
        self.used += 1
        return True

    def start(self, key: Hashable, priority: int, go: Callable[[], None]) -> None:
        """Call `go` when a slot is free; a key that is queued already stays where it is."""
        if key not in self._start:
            self._start[key] = go
            heapq.heappush(self._urgent, (-priority, next(self._number), key))
            self._oldest.append(key)
            self.grant()

    def resume(self, key: Hashable, go: Callable[[], None]) -> None:
        """Call `go` when a slot is free, before anything is started."""
        self._resume.append((key, go))
        self.grant()

    def forget(self, key: Hashable) -> None:
        """The key is not to be started any more."""
        self._start.pop(key, None)

    def release(self) -> None:
        """A slot is free."""
        self.used -= 1
        if self.held and not self.used:
            self._on_quiet()
        self.grant()

    def hold(self) -> None:
        """Grant nothing until `unhold`: something must run alone. `on_quiet` is called when the last slot is free."""
        self.held = True

    def unhold(self) -> None:
        """Go on."""
        self.held = False
        self.grant()

    def take(self) -> None:
        """Take a slot for what runs alone."""
        self.used += 1

    def grant(self) -> None:
        """Hand out free slots."""
        if self._granting:  # what runs in `go` may ask for more: the loop below sees it
            return
        self._granting = True
        try:
            while not self.held and self.used < self.slots and (go := self._next()) is not None:
                self.used += 1
                go()
        finally:
            self._granting = False

    def _next(self) -> Callable[[], None] | None:
        if self._resume:
            return self._resume.popleft()[1]
        if not self._start:
            self._urgent.clear()
            self._oldest.clear()
            return None
        self._starts += 1
        if self._starts % FAIR_EVERY == 0:
            while (key := self._oldest.popleft()) not in self._start:
                pass
        else:
            while (key := heapq.heappop(self._urgent)[2]) not in self._start:
                pass
        return self._start.pop(key)
