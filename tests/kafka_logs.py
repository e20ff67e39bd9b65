"""Logs on a real Kafka, for tests: a namespace of its own for each, and members that die or fall silent."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator

from refold.brokers.conformance import Subject
from refold.brokers.kafka.address import parse
from refold.brokers.kafka.broker import KafkaBroker


def new_namespace() -> str:
    return f"t-{uuid.uuid4().hex[:12]}"


def new_log(address: str, settings: str = "", **more: float) -> Callable[[], KafkaBroker]:
    url = f"kafka://{address}/{new_namespace()}{settings}"
    return lambda: KafkaBroker(parse(url), **{"patience": 15.0, **more})


@contextlib.contextmanager
def stalled(broker: KafkaBroker) -> Iterator[None]:
    """The threads that keep the members' places do nothing, as those of a stopped process."""
    keepers = [sub.keeper for sub in broker._subscriptions]
    for keeper in keepers:
        keeper.silent = True
    yield
    for keeper in keepers:
        keeper.silent = False


def on_kafka(address: str, name: str = "kafka", patience: float = 60.0, settings: str = "") -> Subject:
    return Subject(
        name, lambda: new_log(address, settings), lease=1.0, patience=patience, kill=lambda b: b.die(), stall=stalled
    )
