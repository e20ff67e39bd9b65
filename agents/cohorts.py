"""After a death, messages start in small cohorts: a poison message takes no innocent with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .place import Place, RunKey

    Trial = tuple[Place, RunKey]
    """A handling that was runnable at a death, in the place where it runs."""

FIRST = 8
LONE_DEATHS = 3
"""A message that was running alone at this many deaths is dead-lettered (semantics, section 4)."""


class Cohorts:
    """Decides which of the messages that were runnable at a death may start now: one cohort at a time in a worker,
    the suspects last, each with nothing beside it. Pure bookkeeping."""

    def __init__(self) -> None:
        self.waiting: dict[Trial, bool] = {}
        self.running: dict[Trial, bool] = {}
        self.size = FIRST

    @property
    def active(self) -> bool:
        """Messages of before a death are still held back, or on trial."""
        return bool(self.waiting or self.running)

    @property
    def needs_quiet(self) -> bool:
        """Nothing else may start now: a suspect runs alone, or waits until it can."""
        return any(self.running.values()) or (not self.running and bool(self.waiting))

    def death(self) -> None:
        """There was a death: begin with a small cohort again."""
        self.size = FIRST

    def hold(self, trial: Trial, *, suspect: bool) -> None:
        """The message was runnable at the death. Suspects (started before, nothing recorded since) go alone."""
        if trial not in self.running:
            self.waiting[trial] = suspect

    def passed(self, trial: Trial) -> bool:
        """The message has recorded something since its start, has ended, or only waits: no death of its making.

        False where it was not on trial.
        """
        if self.waiting.pop(trial, None) is not None:
            return True
        if self.running.pop(trial, None) is None:
            return False
        if not self.running:
            self.size *= 2
        return True

    def drop(self, place: Place) -> None:
        """The place is another worker's: its messages are on trial there."""
        for trials in (self.waiting, self.running):
            for trial in [t for t in trials if t[0] is place]:
                del trials[trial]

    def next(self, others_running: bool) -> list[Trial]:
        """Return the messages to start now; those that go alone are one."""
        if self.running:
            return []
        innocent = [t for t, suspect in self.waiting.items() if not suspect][: self.size]
        if innocent:
            return self._start(innocent, alone=False)
        suspects = [] if others_running else list(self.waiting)[:1]
        return self._start(suspects, alone=True)

    def _start(self, trials: list[Trial], *, alone: bool) -> list[Trial]:
        for trial in trials:
            del self.waiting[trial]
            self.running[trial] = alone
        return trials
