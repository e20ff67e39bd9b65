"""Every promise of the port, on every broker; and the suite itself, on brokers that break one promise each."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from broken_brokers import BROKEN
from msgspec.structs import replace

from refold.brokers.conformance import CASES, NotApplicable, PromiseBroken, Subject, cases_of, left_out
from refold.brokers.memory import Log, MemoryBroker
from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import Broker, Capabilities, Listener, Subscription
from refold.bus.errors import BrokerUnavailable, ConfigError, TooLarge


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
        return super()._append(replace(item, after=None))


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


MEMORY, PLAIN = in_memory(), in_memory(PlainBroker, "memory-plain")
FILE = in_a_file(Path("unused"))
PROMISES = [pytest.param(s, case, id=f"{s}-{case}") for s in (MEMORY, PLAIN, FILE) for case in cases_of(s)]


@pytest.mark.parametrize(("subject", "case"), PROMISES)
def test_every_promise_of_the_port_is_kept(subject, case, tmp_path):
    asyncio.run(case.run(in_a_file(tmp_path) if subject is FILE else subject))


@pytest.mark.parametrize("subject", [MEMORY, PLAIN, FILE], ids=str)
def test_nothing_is_left_out(subject):
    assert left_out(subject) == {}


# ---- the suite itself ------------------------------------------------------------------------------------------------
async def noticed(kind: type[MemoryBroker], sentence: str) -> Exception | None:
    """Return how the case of this sentence notices what is wrong with the broker."""
    subject = in_memory(kind, kind.__name__, patience=2.0)
    (case,) = [case for case in cases_of(subject) if str(case) == sentence]
    try:
        await case.run(subject)
    except Exception as error:
        return error
    return None


def test_every_broken_broker_is_caught_by_the_case_of_its_promise():
    async def judge_all():
        several = asyncio.Semaphore(8)

        async def judge(kind, sentence):
            async with several:
                return await noticed(kind, sentence)

        return await asyncio.gather(*(judge(*broken) for broken in BROKEN))

    raising = {
        "ClosesOnce": BrokerUnavailable, "DropsWhatItHasAcceptedWhenItCloses": BrokerUnavailable,
        "CountsACallAsOneAppend": TooLarge, "RaisesForNobody": KeyError, "StaysWhenItIsCancelled": ConfigError,
    }  # fmt: skip
    found = {kind.__name__: error for (kind, _), error in zip(BROKEN, asyncio.run(judge_all()), strict=True)}
    for name, error in found.items():
        print(f"{name}: {type(error).__name__} {error}")
    caught = [name for name, error in found.items() if type(error) is raising.get(name, PromiseBroken)]
    assert len(found) == len(BROKEN)
    print(f"{len(caught)} of {len(found)} broken brokers are caught")
    assert [name for name in found if name not in caught] == []


def test_nearly_every_case_has_a_broker_that_it_caught():
    """What is left has nothing to break in a broker that lives in this process."""
    left = {str(case) for case in CASES} - {sentence for _, sentence in BROKEN}
    assert left == {
        "a broker that was never opened can be closed", "another process is not on the same log",
        "nothing is there after a restart",
    }  # fmt: skip


def test_every_method_and_every_capability_of_the_port_has_its_cases():
    proved = {method for case in CASES for method in case.proves}
    port = {
        f"{kind.__name__}.{name}" for kind in (Broker, Subscription, Listener) for name in vars(kind)
        if not name.startswith("_")
    }  # fmt: skip
    assert port - proved == set()
    assert proved - port == set()
    for capability in Capabilities.__struct_fields__:
        assert [case for case in CASES if case.claims == capability], capability
        assert [case for case in CASES if case.disclaims == capability], capability


def test_what_cannot_be_judged_is_named_and_refused_and_never_passes():
    def new_log():
        log = Log()
        return lambda: MemoryBroker(log)

    bare = Subject("bare", new_log)
    without = left_out(bare)
    assert len(without) == 3
    assert set(without.values()) == {"Subject(kill=)", "Subject(stall=)"}
    assert {str(case) for case in cases_of(bare)}.isdisjoint(without)
    for case in CASES:
        if case not in cases_of(bare):
            with pytest.raises(NotApplicable):
                asyncio.run(case.run(bare))


def test_the_suite_needs_no_test_runner_and_says_which_promise_was_broken():
    (kind,) = [kind for kind, _ in BROKEN if kind.__name__ == "LosesTheSecondRecordOfAnItem"]
    error = asyncio.run(noticed(kind, "each record has a position of its own and they grow in order"))
    (note,) = error.__notes__
    assert note == (
        "LosesTheSecondRecordOfAnItem breaks a promise of Broker.append: "
        "each record has a position of its own and they grow in order"
    )
    code = "import sys, refold.brokers.conformance; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
