"""How often a handler or an effect is tried, and how long refold waits in between."""

from __future__ import annotations

from msgspec import Struct

from ..bus.errors import ConfigError


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """`attempts` in all (1 = no retry); the n-th wait is `initial * factor**(n-1)` seconds, at most `maximum`, less
    up to the share `jitter` of it (chosen at random, so that those who failed together do not return together)."""

    attempts: int = 5
    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 60.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.initial < 0 or self.factor < 1 or not 0 <= self.jitter <= 1:
            raise ConfigError(
                f"{self}: needs attempts >= 1, initial >= 0, factor >= 1 and jitter between 0 and 1"
            )

    def delay(self, failures: int, random: float) -> float:
        """Return the seconds to wait after this many failures (>= 1); `random` in [0, 1)."""
        wait = min(self.initial * self.factor ** min(failures - 1, 60), self.maximum)
        return wait * (1 - self.jitter * random)


HANDLER_RETRY = RetryPolicy()
EFFECT_RETRY = RetryPolicy(attempts=3)
