"""Every promise of the port, on every broker; and the suite itself, on brokers that break one promise each."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from pathlib import Path

import pytest

from refold.brokers.conformance import Subject, cases_of, left_out
from refold.brokers.memory import Log, MemoryBroker
from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import Capabilities


def kill_in_memory(broker: MemoryBroker) -> None:
    for group in broker.log.subscriptions.values():
        for sub in [s for s in group if s.broker is broker]:
            sub.die()


@contextlib.contextmanager
def stalled_in_memory(broker: MemoryBroker):
    """Nothing is renewed in memory: a member falls silent, and comes back."""
    away = [s for group in broker.log.subscriptions.values() for s in group if s.broker is broker]
    for sub in away:
        sub.die()
    yield
    for sub in away:
        sub.come_back()


def in_memory(kind: type[MemoryBroker] = MemoryBroker, name: str = "memory", patience: float = 20.0) -> Subject:
    def new_log():
        log = Log()
        return lambda: kind(log)

    return Subject(name, new_log, lease=0.3, patience=patience, kill=kill_in_memory, stall=stalled_in_memory)


class PlainBroker(MemoryBroker):
    """A log that refuses nothing early, as Kafka's is."""

    capabilities = Capabilities()

    def _stale(self, fence):
        return None

    def _append(self, item):
        for record in item.records:
            self.log.ids.pop((item.partition, item.key, record.id), None)
        return super()._append(item._replace(after=None))


@contextlib.contextmanager
def stalled_file(broker: SqliteBroker):
    """The threads that renew do nothing, as those of a stopped process."""
    keepers = [sub.keeper for sub in broker._subscriptions]
    for keeper in keepers:
        keeper._turn = lambda db: None
    yield
    for keeper in keepers:
        del keeper._turn


def in_a_file(folder: Path, **settings) -> Subject:
    def new_log():
        path = folder / f"{uuid.uuid4().hex}.db"
        return lambda: SqliteBroker(path, **settings)

    return Subject("sqlite", new_log, lease=0.3, patience=20.0, kill=lambda b: b.die(), stall=stalled_file)


MEMORY, PLAIN = in_memory(), in_memory(PlainBroker, "plain")
FILE = in_a_file(Path("unused"))


@pytest.mark.parametrize("case", cases_of(MEMORY), ids=str)
def test_memory(case):
    asyncio.run(case.run(MEMORY))


@pytest.mark.parametrize("case", cases_of(PLAIN), ids=str)
def test_memory_without_early_refusals(case):
    asyncio.run(case.run(PLAIN))


@pytest.mark.parametrize("case", cases_of(FILE), ids=str)
def test_sqlite(case, tmp_path):
    asyncio.run(case.run(in_a_file(tmp_path)))


@pytest.mark.parametrize("subject", [MEMORY, PLAIN, FILE], ids=str)
def test_nothing_is_left_out(subject):
    assert left_out(subject) == {}
