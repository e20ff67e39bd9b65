"""After a death, messages start in small cohorts: a poison message takes no innocent with it."""

from __future__ import annotations

from ..projections.view import Handling

RunKey = tuple[str, str, str]
"""(correlation id, agent, message id)."""

FIRST = 8
LONE_DEATHS = 3
"""A message that was running alone at this many deaths is dead-lettered (semantics, section 4)."""


class Cohorts:
    """Decides which of the messages that were runnable at a death may start now. Pure bookkeeping."""

    def __init__(self) -> None:
        self.waiting: dict[RunKey, bool] = {}
        self.running: dict[RunKey, None] = {}
        self.size = FIRST

    @property
    def active(self) -> bool:
        """Messages of before the death are still held back, or on trial."""
        return bool(self.waiting or self.running)

    def hold(self, key: RunKey, h: Handling) -> None:
        """The message was runnable at the death. Suspects (started before, nothing recorded since) go alone."""
        self.waiting[key] = bool(h.starts)

    def knows(self, key: RunKey) -> bool:
        """The message is held back or on trial."""
        return key in self.waiting or key in self.running

    def passed(self, key: RunKey) -> None:
        """The message has recorded something since its start, has ended, or only waits: no death of its making."""
        self.waiting.pop(key, None)
        if self.running.pop(key, 0) is None and not self.running:
            self.size *= 2

    def next(self, others_running: bool) -> tuple[list[RunKey], bool]:
        """Return the messages to start now, and whether they go alone."""
        if self.running:
            return [], False
        innocent = [k for k, suspect in self.waiting.items() if not suspect][: self.size]
        if innocent:
            return self._start(innocent), False
        suspects = list(self.waiting)[:1]
        if suspects and not others_running:
            return self._start(suspects), True
        return [], False

    def _start(self, keys: list[RunKey]) -> list[RunKey]:
        for key in keys:
            del self.waiting[key]
            self.running[key] = None
        return keys
