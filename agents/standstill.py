"""How long the event loop has stood still: that time is nobody's running time."""

from __future__ import annotations

BEAT = 0.25
"""Seconds between two beats of the worker's heart."""


class Standstill:
    """Fed by beats that ought to come every `BEAT` seconds. A loop that is held by a handler beats late, and so does a
    process that was stopped."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._total = 0.0

    def beat(self, now: float) -> None:
        """The loop turns."""
        self._total = self.until(now)
        self._last = now

    def until(self, now: float) -> float:
        """Return for how many seconds the loop has stood still so far. Never falls."""
        late = now - self._last - BEAT if self._last is not None else 0.0
        return self._total + (late if late > BEAT else 0.0)
