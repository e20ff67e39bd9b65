"""What the suite must know of a broker to judge it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ...bus.broker import Broker


@dataclass(frozen=True)
class Subject:
    """A broker to be judged.

    `new_log()` returns how to open a broker on a log of its own, which is not there yet: each call of what it returns
    stands for another process on that log. Brokers come unopened; the suite opens and closes them.

    `lease`: a lease (seconds) to test deaths with, as short as the broker can keep. `patience`: seconds within which
    whatever must happen has happened. Neither is a claim about speed.

    `kill(broker)`: let the members that were subscribed through it vanish without a word, as SIGKILL would.
    `stall(broker)`: within the returned context they renew nothing, as after SIGSTOP, and go on afterwards.

    `opener`, `url(broker)`: `module:function` and the argument with which another process opens this log; secrets may
    be in it. By default `open_broker` and the broker's own `url`.
    """

    name: str
    new_log: Callable[[], Callable[[], Broker]]
    lease: float = 1.0
    patience: float = 30.0
    kill: Callable[[Broker], object] | None = None
    stall: Callable[[Broker], AbstractContextManager[object]] | None = None
    opener: str = "refold.brokers:open_broker"
    url: Callable[[Broker], str] = lambda broker: broker.url

    def __str__(self) -> str:
        return self.name
