"""What fails again and again while something cannot be reached: said at once, then less and less often."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST, LONGEST = 1.0, 60.0
"""Seconds until a failure that goes on is said again: twice as long each time, up to the longest."""


class Outage:
    """One thing that may be out of reach."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._again, self._pause = float("-inf"), FIRST

    def is_news(self) -> bool:
        """It failed: return True at first, and when that was last said long enough ago."""
        now = self._now()
        if now < self._again:
            return False
        self._again, self._pause = now + self._pause, min(2 * self._pause, LONGEST)
        return True

    @property
    def goes_on(self) -> bool:
        """It failed, and has not worked since."""
        return self._again > float("-inf")

    def over(self) -> None:
        """It worked."""
        self._again, self._pause = float("-inf"), FIRST
