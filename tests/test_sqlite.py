"""The SQLite log: real processes at one file, files that are no log, disks that are full, owners that stall or stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from stopping import stop

from refold.brokers import pids, shares
from refold.brokers.memory import MemoryBroker
from refold.brokers.shares import Lease
from refold.brokers.sqlite import SqliteBroker, from_url, leases, tidy
from refold.brokers.sqlite.connection import connect
from refold.brokers.sqlite.keeper import Keeper
from refold.brokers.sqlite.subscription import SqliteSubscription
from refold.bus.broker import (
    Appended,
    Assigned,
    At,
    Batch,
    Checkpoint,
    Conflict,
    Duplicate,
    Fence,
    Fenced,
    Item,
    LogSpec,
    Lost,
    Outgoing,
    Presence,
    Revoked,
)  # fmt: skip
from refold.bus.clock import Clock
from refold.bus.errors import (
    BrokerUnavailable,
    ConfigError,
    LogCorrupt,
    LogFull,
    LogLocked,
    LogMismatch,
    LogMissing,
    RulesTooNew,
    TooLarge,
)  # fmt: skip
from refold.bus.partition import partition_of

TWO = LogSpec(partitions=2)
PROCESS = Path(__file__).parent / "log_process.py"


class Process:
    """A `log_process.py`; what it said is in `said`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, object]] = []

    async def hear(self, *keys: str) -> dict[str, object]:
        """Wait until it says something with these keys."""
        assert self.process.stdout is not None
        while True:
            line = await self.process.stdout.readline()
            assert line, f"it ended: {await self.process.wait()}"
            self.said.append(json.loads(line))
            if all(key in self.said[-1] for key in keys):
                return self.said[-1]

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def rest(self) -> list[dict[str, object]]:
        """Let it end; return all that it said."""
        assert self.process.stdout is not None and self.process.stdin is not None
        self.process.stdin.close()
        self.said += [json.loads(line) for line in (await self.process.stdout.read()).splitlines()]
        assert await self.process.wait() == 0
        return self.said


@contextlib.asynccontextmanager
async def process(*args: object):
    started = await asyncio.create_subprocess_exec(
        sys.executable, str(PROCESS), *map(str, args), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield Process(started)
    finally:
        if started.returncode is None:
            started.send_signal(signal.SIGCONT)
            started.kill()
        await started.wait()


@contextlib.asynccontextmanager
async def opened(path: Path, spec: LogSpec = TWO, **settings):
    async with SqliteBroker(path, **settings) as broker:
        await broker.ensure_log(spec)
        yield broker


@pytest.mark.parametrize("wrong", ["value = x'7b2266'", "told = 'text'", "ttl = 'text'"])
def test_what_a_member_told_of_itself_and_was_damaged_since_is_refused_with_a_remedy(go, tmp_path, wrong):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            await broker.announce(Presence(member="m", group="g"))
            with contextlib.closing(connect(str(tmp_path / "log.db"))) as db:
                db.execute(f"UPDATE presences SET {wrong}")
            with pytest.raises(LogCorrupt, match="restore it from its backup"):
                await broker.members()

    go(main())


@pytest.mark.parametrize("wrong", ["epoch = 'text'", "partition = 'text'"])
def test_who_owns_what_and_was_damaged_since_is_refused_with_a_remedy(go, tmp_path, wrong):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            with contextlib.closing(connect(str(tmp_path / "log.db"))) as db:
                db.execute("INSERT INTO leases VALUES ('g', 1, 1, 'me', 0)")
                db.execute(f"UPDATE leases SET {wrong}")
            with pytest.raises(LogCorrupt, match="restore it from its backup"):
                await broker.append([item(0, "w", "a")], Fence("g", 0, 1))

    go(main())


def item(partition: int, key: str | None, *ids: str, after: int | None = None) -> Item:
    return Item(partition, key, tuple(Outgoing(id, f"value of {id}".encode()) for id in ids), after)


async def gather_events(sub, until, wanted):
    """Fetch until `wanted(events)` holds."""
    events = []

    async def enough():
        sub.turned()
        events.extend(await sub.fetch(1000, 0.02))
        return wanted(events)

    await until(enough)
    return events


def owns(count):
    return lambda events: len({e.partition for e in events if isinstance(e, Assigned)}) >= count


# ---- several processes at one file ---------------------------------------------------------------------------------
def test_processes_that_append_at_once_get_dense_positions_and_lose_nothing(go, tmp_path):
    async def main():
        async with contextlib.AsyncExitStack() as stack:
            writers = [
                await stack.enter_async_context(process("append", tmp_path / "log.db", f"p{n}", 150)) for n in range(3)
            ]
            for writer in writers:
                await writer.hear("ready")
            for writer in writers:
                writer.tell("go")
            said = [line for writer in writers for line in await writer.rest() if "id" in line]
        assert len(said) == 450
        async with opened(tmp_path / "log.db", LogSpec()) as broker:
            assert broker.meta.partitions == 2
            for partition in range(2):
                records = (await broker.read(partition)).records
                assert [r.position for r in records] == list(range(1, len(records) + 1))
                told = {s["position"]: s["id"] for s in said if s["partition"] == partition}
                assert told == {r.position: r.value.decode() for r in records}

    go(main())


def test_a_killed_owner_of_this_host_is_replaced_at_once(go, until, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as broker, process("own", path, "first", 60, 600) as first:
            for _ in range(2):
                await first.hear("event")
            first.signal(signal.SIGKILL)
            async with broker.subscribe("g", "second", lease=60) as sub:
                killed = time.monotonic()
                events = await gather_events(sub, until, owns(2))
                assert time.monotonic() - killed < 5
                assert [(e.epoch, e.after_death) for e in events] == [(2, True), (2, True)]

    go(main())


def test_a_member_that_is_killed_comes_back_under_its_name_and_gets_its_partitions(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db"):
            async with process("own", tmp_path / "log.db", "same", 60, 600) as first:
                for _ in range(2):
                    await first.hear("event")
                first.signal(signal.SIGKILL)
                await first.process.wait()
            async with process("own", tmp_path / "log.db", "same", 60, 600) as again:
                said = [await again.hear("event") for _ in range(2)]
                assert all(s["event"] == "Assigned" and s["after_death"] and s["epoch"] == 2 for s in said)
                await again.rest()

    go(main())


def test_an_owner_that_was_stopped_beyond_its_lease_cannot_append_hears_of_the_loss_and_lives_on(go, until, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as broker, process("own", path, "first", 0.4, 1.2) as first:
            for _ in range(2):
                await first.hear("event")
            await stop(first.process.pid, path, until)
            stopped = time.monotonic()
            async with broker.subscribe("g", "second", lease=0.4) as sub:
                events = await gather_events(sub, until, owns(2))
                assert {e.epoch for e in events if isinstance(e, Assigned)} == {2}
                assert all(e.after_death for e in events if isinstance(e, Assigned))
                assert time.monotonic() - stopped > 0.4
                await until(lambda: time.monotonic() - stopped > 1.5)  # beyond the stall limit of `first`
                first.tell("append 0 1")
                first.signal(signal.SIGCONT)
                assert (await first.hear("result"))["result"] == "Fenced"
                while not {"Lost"} <= {s.get("event") for s in first.said}:
                    await first.hear("event")
                (mine,) = await broker.append([item(0, "w", "a")], Fence("g", 0, sub.owned().get(0, 2)))
                assert isinstance(mine, Appended | Fenced)
                assert not (await broker.read_workflow("zombie")).records

    go(main())


def test_members_share_and_a_leaver_hands_over_in_well_under_a_second(go, until, tmp_path):
    async def main():
        spec = LogSpec(partitions=8)
        async with opened(tmp_path / "log.db", spec) as broker, broker.subscribe("g", "a", lease=8) as sub:
            await gather_events(sub, until, owns(8))
            async with process("own", tmp_path / "log.db", "b", 8, 60) as other:
                begun = time.monotonic()

                async def handed():
                    for event in await sub.fetch(100, 0.02):
                        if isinstance(event, Revoked):
                            await sub.release(event.partition, event.epoch)
                    return len(sub.owned()) == 4

                await until(handed)
                for _ in range(4):
                    await other.hear("event")
                assert time.monotonic() - begun < 2.5  # most of it starts the process
                left = time.monotonic()
                await other.rest()
                again = await gather_events(sub, until, owns(4))
                assert time.monotonic() - left < 1.0
                assert [(e.epoch, e.after_death) for e in again if isinstance(e, Assigned)] == [(3, False)] * 4

    go(main())


def test_a_commit_of_another_process_is_delivered_at_once(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, process("own", tmp_path / "log.db", "first", 8, 60) as other:
            for _ in range(2):
                await other.hear("event")
            waits = []
            for n in range(20):
                begun = time.monotonic()
                await broker.append([item(0, "w", f"r{n}")])
                assert (await other.hear("records"))["records"] == [f"value of r{n}"]
                waits.append(time.monotonic() - begun)
            assert sorted(waits)[10] < 0.05

    go(main())


@pytest.mark.parametrize("order", ["before", "between"])
def test_what_others_appended_is_not_skipped_although_nobody_rang(go, tmp_path, monkeypatch, until, order):
    """Records of one's own need not be read from the file, unless something of others' lies before or between them."""

    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as mine, opened(path) as other, mine.subscribe("g", "m") as sub:
            await gather_events(sub, until, lambda _: len(sub.owned()) == 2)
            sub.seek(0, 1)
            assert await sub.fetch(max_wait=0) == []
            monkeypatch.setattr(sub, "hear", lambda word: None)
            writers = [other, mine] if order == "before" else [mine, other, mine]
            wanted = [f"r{n}" for n in range(len(writers))]
            for id, writer in zip(wanted, writers, strict=True):
                await writer.append([item(0, "w", id)])
            last = len(wanted)
            events = await gather_events(sub, until, lambda found: found and found[-1].records[-1].position == last)
            values = [s.value for event in events for s in event.records]
            assert values == [f"value of {id}".encode() for id in wanted]

    go(main())


def test_two_that_make_the_same_log_at_once_make_one(go, tmp_path):
    async def main():
        brokers = [SqliteBroker(tmp_path / "log.db") for _ in range(6)]
        async with contextlib.AsyncExitStack() as stack:
            for broker in brokers:
                await stack.enter_async_context(broker)
            metas = await asyncio.gather(*(broker.ensure_log(LogSpec(partitions=3)) for broker in brokers))
            assert len({meta.log_id for meta in metas}) == 1

    go(main())


def test_a_name_that_is_in_use_is_refused_and_the_process_named(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m"):
            with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
                async with broker.subscribe("g", "m"):
                    pass
            async with broker.subscribe("h", "m"):
                pass

    go(main())


# ---- files -------------------------------------------------------------------------------------------------------
def test_reading_never_makes_a_file(go, tmp_path):
    async def main():
        broker = SqliteBroker(tmp_path / "log.db")
        with pytest.raises(LogMissing, match=str(tmp_path / "log.db")):
            await broker.ensure_log(create=False)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(ConfigError, match="folder"):
            await SqliteBroker(tmp_path / "no" / "log.db").ensure_log()
        with pytest.raises(ConfigError, match="folder"):
            await SqliteBroker(tmp_path).ensure_log()

    go(main())


def test_what_is_no_log_is_refused_and_left_as_it_is(go, tmp_path):
    async def main():
        text = tmp_path / "text"
        text.write_text("no database, but long enough to be taken for one" * 100)
        with sqlite3.connect(tmp_path / "foreign") as db:
            db.execute("CREATE TABLE t(x)")
        for name in ("text", "foreign"):
            before = (tmp_path / name).read_bytes()
            for create in (True, False):
                with pytest.raises(LogCorrupt, match=name):
                    await SqliteBroker(tmp_path / name).ensure_log(create=create)
            assert (tmp_path / name).read_bytes() == before

    go(main())


DAMAGES = [
    "DROP TABLE records", "DROP TABLE meta", "DROP INDEX by_key", "DELETE FROM meta WHERE name = 'log_id'",
    "UPDATE meta SET value = 'x' WHERE name = 'format'",
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_log_that_lacks_something_is_corrupt(go, tmp_path, damage):
    async def main():
        async with opened(tmp_path / "log.db"):
            pass
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
            db.execute(damage)
        with pytest.raises(LogCorrupt):
            await SqliteBroker(tmp_path / "log.db").ensure_log()

    go(main())


def test_a_file_that_was_cut_off_or_overwritten_is_corrupt(go, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as broker:
            for n in range(50):
                await broker.append([item(n % 2, f"w{n}", f"r{n}")])
        whole = path.read_bytes()

        async def read_all():
            async with opened(path, LogSpec()) as broker:
                for partition in range(2):
                    await broker.read(partition)
                    await broker.read_workflow(f"w{partition}")

        await read_all()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(LogCorrupt):
            await read_all()
        path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
        with pytest.raises(LogCorrupt):
            await read_all()

    go(main())


def test_a_log_of_other_rules_or_settings_says_what_differs(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db"):
            with pytest.raises(LogMismatch, match="partitions is 2, asked for 5; max_record is 524288, asked for 7"):
                await SqliteBroker(tmp_path / "log.db").ensure_log(LogSpec(partitions=5, max_record=7))
        with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as db:
            db.execute("UPDATE meta SET value = 99 WHERE name = 'rules'")
        with pytest.raises(RulesTooNew, match="rules 99"):
            await SqliteBroker(tmp_path / "log.db").ensure_log()

    go(main())


def test_a_file_that_was_removed_or_replaced_takes_nothing_more(go, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as broker:
            await broker.append([item(0, "w", "a")])
            path.rename(tmp_path / "moved.db")
            with pytest.raises(LogMissing):
                await broker.append([item(0, "w", "b")])
            with pytest.raises(LogMissing):
                await broker.read(0)
            path.write_bytes((tmp_path / "moved.db").read_bytes())
            with pytest.raises(LogMissing, match="replaced"):
                await broker.append([item(0, "w", "b")])
            with pytest.raises(LogMissing, match="replaced"):
                await broker.ensure_log()  # what is open would go on with the file that is gone

    go(main())


def test_network_file_systems_are_refused(go, tmp_path, monkeypatch):
    class Mount:
        def __init__(self, mountpoint, fstype):
            self.mountpoint, self.fstype = mountpoint, fstype

    mounts = [Mount("/", "ext4"), Mount(str(tmp_path), "nfs4")]
    monkeypatch.setattr("psutil.disk_partitions", lambda **more: mounts)

    async def main():
        with pytest.raises(ConfigError, match="nfs4"):
            await SqliteBroker(tmp_path / "log.db").ensure_log()
        assert not (tmp_path / "log.db").exists()

    go(main())


@pytest.mark.parametrize(
    "url", ["sqlite://log.db", "sqlite:///", "sqlite:///log.db?synchronous=off", "sqlite:///l?x=1"]
)
def test_a_url_that_cannot_work_is_refused(url):
    with pytest.raises(ConfigError):
        from_url(url)


def test_a_url_names_the_same_file_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_url("sqlite:///log.db").path == str(tmp_path / "log.db")
    odd = SqliteBroker(tmp_path / "a b%?#.db", synchronous="NORMAL")
    again = from_url(odd.url)
    assert (again.path, again.synchronous) == (odd.path, "NORMAL")
    (tmp_path / "link.db").symlink_to(tmp_path / "log.db")
    assert SqliteBroker("link.db").path == str(tmp_path / "log.db")


def test_a_log_is_opened_whatever_its_file_is_called(go, tmp_path):
    async def main():
        async with opened(tmp_path / "a b%?#&.db") as broker:
            await broker.append([item(0, "w", "a")])
        assert (tmp_path / "a b%?#&.db").stat().st_size > 4096

    go(main())


# ---- appending -----------------------------------------------------------------------------------------------------
def test_a_full_disk_refuses_the_append_and_the_log_goes_on_when_there_is_space(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            await broker.append([item(0, "w", "a")])
            await broker.writer.do(lambda db: db.execute("PRAGMA max_page_count = 1").fetchone())
            big = Item(0, "w", tuple(Outgoing(f"big{n}", b"x" * 100_000) for n in range(8)))
            results = await asyncio.gather(
                broker.append([item(1, "v", "b")]), broker.append([big]), return_exceptions=True
            )
            assert [type(r) for r in results] == [LogFull, LogFull]
            assert await broker.positions("end") == {0: 2, 1: 1}
            await broker.writer.do(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
            assert await broker.append([big]) == [Appended(tuple(range(2, 10)))]

    go(main())


def test_a_locked_log_is_refused_after_the_patience_and_its_holder_named(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db", patience=0.1) as broker, process("lock", tmp_path / "log.db") as holder:
            pid = (await holder.hear("locked"))["locked"]
            with pytest.raises(LogLocked) as caught:
                await broker.append([item(0, "w", "a")])
            assert caught.value.pid == (pid if sys.platform == "linux" else None)
            assert (await broker.read(0)).records == []
            await holder.rest()
            assert await broker.append([item(0, "w", "a")]) == [Appended((1,))]

    go(main())


def test_a_lock_that_is_given_back_in_time_delays_the_append_only(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, process("lock", tmp_path / "log.db") as holder:
            await holder.hear("locked")
            waiting = asyncio.create_task(broker.append([item(0, "w", "a")]))
            await broker.read(0)
            assert not waiting.done()
            await holder.rest()
            assert await waiting == [Appended((1,))]

    go(main())


def test_concurrent_appends_share_commits_and_a_lone_one_waits_for_none(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            commits = []
            committed = broker.writer._committed
            broker.writer._committed = lambda words: (commits.append(1), committed(words))
            results = await asyncio.gather(*(broker.append([item(n % 2, f"w{n}", f"r{n}")]) for n in range(100)))
            assert sorted(r[0].positions[0] for r in results) == sorted([*range(1, 51)] * 2)
            assert len(commits) <= 2
            await broker.append([item(0, "w", "lone")])
            assert len(commits) <= 3

    go(main())


def test_a_cancelled_append_leaves_the_others_and_its_place_whole(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            tasks = [asyncio.create_task(broker.append([item(0, "w", f"r{n}", f"s{n}")])) for n in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError) for r in results[::2])
            values = [r.value.decode() for r in (await broker.read(0)).records]
            assert all(isinstance(r[0], Appended) for r in results[1::2])
            for n in range(1, 20, 2):
                at = values.index(f"value of r{n}")
                assert values[at + 1] == f"value of s{n}"
                assert results[n][0].positions == (at + 1, at + 2)
            assert len(values) % 2 == 0

    go(main())


def test_closing_finishes_what_was_accepted_and_ends_all_threads(go, tmp_path):
    async def main():
        threads = set(threading.enumerate())
        broker = SqliteBroker(tmp_path / "log.db")
        await broker.ensure_log(LogSpec(partitions=2))
        tasks = [asyncio.create_task(broker.append([item(0, "w", f"r{n}")])) for n in range(50)]
        await asyncio.sleep(0)
        async with broker.listen():
            await broker.read(0)
            async with broker.subscribe("g", "m"):
                pass
        await broker.aclose()
        await broker.aclose()
        assert [(await t)[0].positions for t in tasks] == [(n + 1,) for n in range(50)]
        ours = [t.name for t in set(threading.enumerate()) - threads if not t.name.startswith("asyncio")]
        for t in set(threading.enumerate()) - threads:
            if t.name in ours:
                t.join(5)
        assert not [t for t in threading.enumerate() if t.name in ours]
        with pytest.raises(BrokerUnavailable):
            await broker.append([item(0, "w", "late")])
        with pytest.raises(BrokerUnavailable):
            await broker.read(0)
        assert not (tmp_path / "log.db-wal").exists()  # the last one out has emptied it

    go(main())


def test_the_write_ahead_log_is_emptied_before_it_fills_the_disk(go, until, tmp_path, monkeypatch):
    monkeypatch.setattr(tidy, "PASSIVE", 200_000)
    monkeypatch.setattr(tidy, "TRUNCATE", 1_000_000)
    monkeypatch.setattr(tidy, "AGAIN", 0.0)

    async def main():
        async with opened(tmp_path / "log.db") as broker:
            sizes = [0]
            for n in range(2000):
                await broker.append([Item(n % 2, f"w{n}", (Outgoing(f"r{n}", bytes(50_000)),))])
                sizes.append((tmp_path / "log.db-wal").stat().st_size)
                if sizes[-1] < sizes[-2]:
                    break
            else:
                pytest.fail(f"100 MB were appended, the write-ahead log has {sizes[-1]}")
            assert sizes[-2] + 100_000 > 1_000_000, "it was emptied before the last append could make that due"
            assert (tmp_path / "log.db").stat().st_size > (len(sizes) - 2) * 50_000, "what was emptied is nowhere"
            assert sum((await broker.positions("end")).values()) == len(sizes) + 1
            assert [r.value for r in (await broker.read(0, limit=5)).records] == [bytes(50_000)] * 5

    go(main())


def test_too_large_a_record_and_a_partition_that_is_not_there_are_refused(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db", LogSpec(partitions=2, max_record=10, max_append=15)) as broker:
            for values in ([b"x" * 11], [b"x" * 8, b"x" * 8]):
                records = tuple(Outgoing(f"{i}", v) for i, v in enumerate(values))
                with pytest.raises(TooLarge):
                    await broker.append([Item(0, "w", records)])
                with pytest.raises(TooLarge):
                    await broker.append_raw(0, [("w", v) for v in values])
            for partition in (-1, 2):
                with pytest.raises(ValueError, match="the log has 2"):
                    await broker.append([item(partition, "w", "a")])
            assert await broker.positions("end") == {0: 1, 1: 1}

    go(main())


# ---- agreement with the broker in memory, which is the specification -------------------------------------------------
KEYS = st.sampled_from([None, "a", "b", "0193a1b2-0000-7000-8000-00000000000a", "0193a1b2-0000-7000-8000-00000000000b"])
IDS = st.integers(0, 12).map(str)
APPEND = st.tuples(st.just("append"), KEYS, st.lists(IDS, max_size=3, unique=True), st.none() | st.integers(0, 6))
RAW = st.tuples(st.just("raw"), KEYS, st.lists(IDS, max_size=3), st.integers(0, 1))
CLOCK = st.tuples(st.just("clock"), st.integers(0, 3), st.none(), st.none())


class Hand(Clock):
    def __init__(self):
        self.time = 1000.0

    def now(self):
        return self.time


@given(steps=st.lists(APPEND | RAW | CLOCK, max_size=25), limit=st.integers(1, 5))
def test_the_file_answers_as_memory_does(tmp_path_factory, steps, limit):
    async def main():
        hand = Hand()
        path = tmp_path_factory.mktemp("agree") / "log.db"
        async with MemoryBroker(clock=hand) as memory, SqliteBroker(path, synchronous="NORMAL", clock=hand) as file:
            for broker in (memory, file):
                await broker.ensure_log(LogSpec(partitions=2))
            for what, key, ids, more in steps:
                if what == "clock":
                    hand.time += key
                    continue
                partition = more if what == "raw" else partition_of(key, 2) if key is not None else 0
                if what == "append":
                    call = [item(partition, key, *ids, after=more)]
                    assert await file.append(call) == await memory.append(call)
                else:
                    call = [(key, id.encode()) for id in ids]
                    assert await file.append_raw(partition, call) == await memory.append_raw(partition, call)
            for broker in (file, memory):
                assert await broker.positions("begin") == {0: 1, 1: 1}
            ends = await memory.positions("end")
            assert await file.positions("end") == ends
            for partition in range(2):
                for start in (0, 1, 3, At(0), At(1001), At(1003), At(9999)):
                    for end in (None, 0, 3):
                        args = {"end": end, "limit": limit}
                        assert await file.read(partition, start, **args) == await memory.read(partition, start, **args)
                some = list(range(ends[partition] - 1, 0, -2))
                assert await file.read_at(partition, some) == await memory.read_at(partition, some)
            for key in ("a", "b", "0193a1b2-0000-7000-8000-00000000000a"):
                for after in (0, 2):
                    args = {"after": after, "limit": limit}
                    assert await file.read_workflow(key, **args) == await memory.read_workflow(key, **args)

    asyncio.run(main())


def test_workflows_whose_hashes_meet_stay_apart(go, tmp_path, monkeypatch):
    monkeypatch.setattr("refold.brokers.sqlite.appending.key_hash", lambda partition, key: partition)
    monkeypatch.setattr("refold.brokers.sqlite.reading.key_hash", lambda partition, key: partition)

    async def main():
        async with opened(tmp_path / "log.db", LogSpec(partitions=1)) as broker:
            for n in range(6):
                await broker.append([item(0, f"w{n % 2}", f"r{n // 2}")])
            assert await broker.append([item(0, "w0", "x", after=5)]) == [Appended((7,))]
            assert await broker.append([item(0, "w1", "y", after=5)]) == [Conflict(6)]
            assert await broker.append([item(0, "w1", "r0")]) == [Duplicate(2)]
            found, after = [], 0
            while after is not None:
                page = await broker.read_workflow("w1", after=after, limit=2)
                found += [r.position for r in page.records]
                after = page.next
            assert found == [2, 4, 6]

    go(main())


def test_reading_by_time_finds_its_place_although_the_clock_was_set_back(go, tmp_path):
    async def main():
        hand = Hand()
        async with opened(tmp_path / "log.db", clock=hand) as broker:
            for n, hand.time in enumerate((1000.0, 2000.0, 500.0, 2500.0)):
                await broker.append([item(0, "w", f"r{n}")])
            for time_, first in ((0, 1), (1500, 2), (2000.5, 4), (3000, None)):
                records = (await broker.read(0, At(time_))).records
                assert (records[0].position if records else None) == first

    go(main())


def test_a_page_ends_at_a_size_too_and_goes_on_where_it_ended(go, tmp_path, monkeypatch):
    monkeypatch.setattr("refold.brokers.sqlite.reading.PAGE_BYTES", 1000)

    async def main():
        async with opened(tmp_path / "log.db", LogSpec(partitions=1)) as broker:
            await broker.append([Item(0, "w", tuple(Outgoing(f"{n}", bytes(400)) for n in range(20)))])
            page = await broker.read(0)
            assert (len(page.records), page.next) == (3, 4)
            page = await broker.read_workflow("w", after=3)
            assert (len(page.records), page.next) == (3, 6)
            async with broker.subscribe("g", "m") as sub:
                await sub.fetch()
                sub.seek(0, 0)
                positions = []
                while len(positions) < 20:
                    for event in await sub.fetch():
                        positions += [r.position for r in event.records]
                assert positions == list(range(1, 21))

    go(main())


# ---- owning ----------------------------------------------------------------------------------------------------------
def test_a_loop_that_does_not_turn_is_ended_with_its_stack_in_the_log(go, tmp_path, caplog):
    stalled = threading.Event()

    async def main():
        caplog.set_level(logging.CRITICAL, "refold.sqlite")
        async with (
            opened(tmp_path / "log.db", on_stall=stalled.set) as broker,
            broker.subscribe("g", "m", lease=0.1, stall_limit=0.3) as sub,
        ):
            sub.turned()
            assert stalled.wait(10), "this blocks the loop"
            assert "stalled.wait(10)" in caplog.text

    go(main())


@pytest.mark.parametrize("moment", ["between two turns", "within a turn"])
def test_a_process_that_was_stopped_did_not_stall_and_takes_nobody_for_dead(tmp_path, monkeypatch, moment):
    """The times at which the keeper looks at the clock are given: it is stopped for 100 s, whichever line it is at."""
    path, stalls, now = tmp_path / "log.db", [], [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    asyncio.run(make(path))
    keepers = [keeper_of(path, name, lambda: stalls.append(1)) for name in ("a", "b")]
    for keeper in keepers:
        monkeypatch.setattr(keeper, "_thread", threading.Thread())
        keeper.join()
    with contextlib.closing(connect(str(path))) as db:
        for _ in range(8):
            now[0] += 1.0
            for keeper in keepers:
                keeper.turned = now[0]
                keeper._turn(db)
                for p in list(keeper._revoking):
                    epoch = keeper.held[p]
                    keeper.drop(p, epoch)
                    leases.release(db, "g", keeper.token, p, epoch)
        first, second = keepers
        first._look(db)  # it knows the last counter of the other
        held = dict(first.held), dict(second.held)
        assert list(map(len, held)) == [1, 1]
        read = leases.read

        def stopped(*args):
            rows = read(*args)
            now[0] += 100.0
            return rows

        with monkeypatch.context() as patch:
            if moment == "within a turn":
                patch.setattr(leases, "read", stopped)
                first._look(db)  # all processes of a suspended host
            else:
                now[0] += 100.0
        now[0] += 0.5
        first._turn(db)  # before its loop has turned, and before the other has renewed
        assert stalls == []
        assert (first.held, second.held) == held


async def make(path):
    async with opened(path):
        pass


def keeper_of(path, name, on_stall):
    return Keeper(
        str(path), "g", name, 2, None, lease=8.0, stall_limit=30.0, patience=1.0, tell=lambda event: None,
        on_stall=on_stall, ring=lambda: None,
    )  # fmt: skip


def test_an_epoch_ends_for_its_owner_when_another_takes_it(go, until, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as first, opened(path) as second, contextlib.AsyncExitStack() as stack:
            zombie = await stack.enter_async_context(first.subscribe("g", "a", lease=0.4))
            await gather_events(zombie, until, owns(2))
            before = zombie.deadline(0)
            await until(lambda: zombie.deadline(0) > before)  # it is renewed
            assert time.monotonic() < zombie.deadline(0) <= time.monotonic() + 0.4
            first.die()
            async with second.subscribe("g", "b", lease=0.4) as sub:
                assert sub.owned() == {}
                events = await gather_events(sub, until, owns(2))
                assert time.monotonic() > zombie.deadline(0)
                assert {(e.epoch, e.after_death) for e in events} == {(2, True)}
                assert await first.append([item(0, "w", "a")], Fence("g", 0, 1)) == [Fenced(2)]
                assert await second.append([item(0, "w", "a")], Fence("g", 0, 2)) == [Appended((1,))]
                assert not await zombie.save_checkpoint(0, 1, 1, b"", {b"k": b"old"}, [])
                assert await sub.save_checkpoint(0, 2, 1, b"x", {b"k": b"v", b"gone": b""}, [])
                assert await sub.save_checkpoint(0, 2, 1, b"x", {}, [b"gone"])
                found = await second.checkpoint("g", 0)
                assert (found.position, found.anchor, found.entries) == (1, b"x", {b"k": b"v"})
                assert await second.positions("committed", "g") == {0: 2, 1: 0}
            assert await second.append([item(0, "w", "b")], Fence("g", 0, 2)) == [Fenced(None)]

    go(main())


def test_an_owner_whose_rows_were_taken_is_told_before_its_deadline_moves(go, until, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m", lease=1.0) as sub:
            await gather_events(sub, until, owns(2))
            with contextlib.closing(sqlite3.connect(tmp_path / "log.db", timeout=5, isolation_level=None)) as db:
                db.execute("UPDATE leases SET epoch = epoch + 1, owner = 'thief' WHERE partition = 1")
                db.execute("INSERT INTO members VALUES ('g', 'thief', 'thief', 1, 1, 0.0, 'elsewhere', NULL)")
            events = await gather_events(sub, until, lambda events: any(isinstance(e, Lost) for e in events))
            assert [e for e in events if isinstance(e, Lost)] == [Lost(1, 1)]
            assert sub.deadline(1) == -math.inf and sub.deadline(0) > time.monotonic()
            again = await gather_events(sub, until, owns(1))  # the thief never renews: its lease ends
            assert [e for e in again if isinstance(e, Assigned)] == [Assigned(1, 3, after_death=True)]

    go(main())


def test_a_paused_partition_keeps_its_place_and_a_seek_meanwhile_wins(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m") as sub:
            await broker.append([item(0, "w", "a", "b"), item(1, "v", "c")])
            assert await sub.fetch() == [Assigned(0, 1), Assigned(1, 1)]
            sub.seek(0, 0)
            sub.seek(1, 0)
            sub.pause([0])
            (batch,) = await sub.fetch()
            assert (batch.partition, batch.epoch, [r.position for r in batch.records]) == (1, 1, [1])
            assert await sub.fetch(max_wait=0.01) == []
            sub.resume([0])
            fetching = asyncio.create_task(sub.fetch())
            await asyncio.sleep(0)
            sub.seek(0, 2)  # while the records from 1 on are being read
            (batch,) = await fetching
            assert [r.position for r in batch.records] == [2]

    go(main())


def test_an_idle_owner_hardly_wakes(go, tmp_path, monkeypatch):
    async def main():
        looks, turns = [], []
        records, turn = SqliteSubscription._records, Keeper._turn
        monkeypatch.setattr(SqliteSubscription, "_records", lambda *a: looks.append(1) or records(*a))
        monkeypatch.setattr(Keeper, "_turn", lambda *a: turns.append(1) or turn(*a))
        async with opened(tmp_path / "log.db", LogSpec(partitions=16)) as broker, broker.subscribe("g", "m") as sub:
            for event in await sub.fetch():
                sub.seek(event.partition, 0)
            looks.clear()
            turns.clear()
            spent, begun = time.process_time(), time.monotonic()
            assert await sub.fetch(max_wait=2.0) == []
            assert 2.0 <= time.monotonic() - begun < 4
            assert len(looks) <= 6 and len(turns) <= 6
            assert time.process_time() - spent < 0.1

    go(main())


@st.composite
def groups(draw):
    partitions = draw(st.integers(1, 12))
    wanted = st.none() | st.frozensets(st.integers(0, partitions - 1), min_size=1)
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, unique=True))
    owners = draw(st.lists(st.sampled_from(["", "dead", *names]), min_size=partitions, max_size=partitions))
    return partitions, {name: draw(wanted) for name in names}, owners


@given(groups())
def test_members_that_follow_their_plans_come_to_own_all_that_is_wanted_in_even_shares(group):
    partitions, live, owners = group
    rows = {p: Lease(p, 1, owner, not owner) for p, owner in enumerate(owners)}
    rows = {p: r for p, r in rows.items() if r.owner not in live or live[r.owner] is None or p in live[r.owner]}
    moves = defaultdict(int)
    for _ in range(4 * partitions + 4):
        before = dict(rows)
        for me in sorted(live):
            held = {p: r.epoch for p, r in rows.items() if r.owner == me}
            todo = shares.plan(me, partitions, live[me], rows, held, set(), live)
            assert todo.lost == []
            for p in todo.revoke:
                rows[p] = Lease(p, rows[p].epoch, "", True)
            for p in todo.claim:
                rows[p] = Lease(p, rows[p].epoch + 1 if p in rows else 1, me, False)
                moves[p] += 1
        if rows == before:
            break
    else:
        pytest.fail(f"no rest: {rows}")
    wanted = {p for p in range(partitions) if any(w is None or p in w for w in live.values())}
    assert {p for p, r in rows.items() if r.owner in live} == wanted
    assert all(live[r.owner] is None or p in live[r.owner] for p, r in rows.items() if r.owner in live)
    if all(w is None for w in live.values()):
        counts = [sum(r.owner == name for r in rows.values()) for name in live]
        assert max(counts) - min(counts) <= 1


def test_a_member_that_is_cancelled_while_it_joins_has_not_joined(go, tmp_path, monkeypatch):
    entering, go_on = threading.Event(), threading.Event()
    enter = Keeper._enter

    def slowly(self, *more, **how):
        entering.set()
        go_on.wait(10)
        enter(self, *more, **how)

    async def main():
        async with opened(tmp_path / "log.db") as broker:

            async def join():
                async with broker.subscribe("g", "m"):
                    pytest.fail("it was cancelled")

            monkeypatch.setattr(Keeper, "_enter", slowly)
            joining = asyncio.create_task(join())
            await asyncio.to_thread(entering.wait, 10)
            joining.cancel()
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(asyncio.CancelledError):
                await joining
            with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as db:
                assert db.execute("SELECT * FROM members").fetchall() == []
                assert db.execute("SELECT * FROM leases WHERE released = 0").fetchall() == []

    go(main())


def test_a_release_that_could_not_be_written_is_made_up_for(go, until, tmp_path, monkeypatch):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m") as sub:
            await gather_events(sub, until, owns(2))

            async def refuse(*a, **k):
                raise LogLocked("somebody has it")

            with monkeypatch.context() as patch:
                patch.setattr(broker.writer, "do", refuse)
                with pytest.raises(LogLocked):
                    await sub.release(0, 1)
            events = await gather_events(sub, until, owns(1))
            assert events == [Assigned(0, 2)]

    go(main())


def test_one_whose_name_was_taken_while_it_was_stopped_hears_that_it_has_lost(go, until, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with (
            opened(path) as first, opened(path) as second, opened(path) as third,
            first.subscribe("g", "m", lease=0.3) as sub,
        ):  # fmt: skip
            await gather_events(sub, until, owns(2))
            sub.keeper._turn = lambda db: None  # as if stopped
            async with second.subscribe("g", "other", lease=0.3) as heir:
                await gather_events(heir, until, owns(2))
                await until(lambda: "m" not in members_in(path))
                async with third.subscribe("g", "m", lease=0.3) as namesake:
                    del sub.keeper._turn
                    assert set(await gather_events(sub, until, loses(2))) >= {Lost(0, 1), Lost(1, 1)}
                    assert sub.owned() == {} and sub.deadline(0) == -math.inf
                    assert members_in(path)["m"] == namesake.keeper.token

    go(main())


def loses(count):
    return lambda events: len([e for e in events if isinstance(e, Lost)]) >= count


def members_in(path):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return dict(db.execute("SELECT member, token FROM members"))


def test_of_two_of_one_name_that_cannot_see_each_other_the_later_stays(go, until, tmp_path):
    async def main():
        path = tmp_path / "log.db"
        async with opened(path) as broker, opened(path) as other, broker.subscribe("g", "m", lease=0.4) as sub:
            await gather_events(sub, until, owns(2))
            with contextlib.closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as db:
                db.execute("UPDATE members SET place = 'another container'")
            sub.keeper._me = sub.keeper._me._replace(place="another container")
            async with other.subscribe("g", "m", lease=0.4) as later:
                await gather_events(sub, until, loses(2))
                await gather_events(later, until, owns(2))
                token, deadline = members_in(path)["m"], later.deadline(0)
                await until(lambda: later.deadline(0) > deadline + 0.2)
                assert members_in(path)["m"] == token == later.keeper.token
                assert len(later.owned()) == 2 and sub.owned() == {}

    go(main())


def test_events_are_not_lost_by_a_fetch_that_cannot_read(go, until, tmp_path, monkeypatch):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m") as sub:
            await gather_events(sub, until, owns(2))
            sub.seek(1, 0)
            await sub.release(0, 1)
            await until(lambda: sub._events)

            async def fail(query):
                raise BrokerUnavailable("the disk is away")

            with monkeypatch.context() as patch:
                patch.setattr(broker.readers, "run", fail)
                with pytest.raises(BrokerUnavailable):
                    await sub.fetch(max_wait=0)
            assert await sub.fetch() == [Assigned(0, 2)]

    go(main())


def test_a_checkpoint_that_cannot_be_stored_fails_alone(go, until, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m") as sub:
            await gather_events(sub, until, owns(2))
            done = await asyncio.gather(
                broker.append([item(0, "w", "a")]), sub.save_checkpoint(0, 1, 2**70, b"", {}, []),
                sub.save_checkpoint(0, 1, 1, b"", {b"k": object()}, []), broker.append([item(0, "w", "b")]),
                sub.save_checkpoint(0, 1, 1, b"", {b"k": b"v"}, []), return_exceptions=True,
            )  # fmt: skip
            assert [type(d) for d in done] == [list, OverflowError, TypeError, list, bool]
            assert (done[0], done[3], done[4]) == ([Appended((1,))], [Appended((2,))], True)
            assert (await broker.checkpoint("g", 0)).entries == {b"k": b"v"}

    go(main())


def test_the_position_of_a_checkpoint_moves_with_its_entries_or_not_at_all(go, until, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker, broker.subscribe("g", "m") as sub:
            await gather_events(sub, until, owns(2))
            assert await sub.save_checkpoint(0, 1, 1, b"one", {b"k": b"v", b"l": b"w"}, [])
            with pytest.raises(TypeError):
                await sub.save_checkpoint(0, 1, 2, b"two", {b"k": b"changed"}, [b"l", object()])
            assert await broker.checkpoint("g", 0) == Checkpoint(1, b"one", {b"k": b"v", b"l": b"w"})
            assert await sub.save_checkpoint(0, 1, 2, b"two", {b"k": b"changed"}, [b"l"])
            assert await broker.checkpoint("g", 0) == Checkpoint(2, b"two", {b"k": b"changed"})

    go(main())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the start of a process is a time of day there")
def test_setting_the_clock_of_the_host_makes_nobody_dead(monkeypatch):
    mine = pids.started(os.getpid())
    monkeypatch.setattr("psutil.boot_time", lambda: 0.0)
    monkeypatch.setattr("psutil.Process.create_time", lambda self: 12345.0)
    assert pids.is_running(os.getpid(), mine)
    assert not pids.is_running(os.getpid(), mine - 1)


def test_a_process_that_has_ended_does_not_run_whether_or_not_its_parent_knows(until):
    process = os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "100")
    since = pids.started(process)
    assert pids.is_running(process, since)
    os.kill(process, signal.SIGKILL)
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)  # it is a zombie now
    assert pids.started(process) is None and not pids.is_running(process, since)
    os.waitpid(process, 0)
    assert pids.started(process) is None and not pids.is_running(process, since)


FORKED = """
import asyncio, os, sys
from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import Item, Outgoing
from refold.bus.errors import ConfigError

broker = SqliteBroker(sys.argv[1])

async def opened():
    await broker.ensure_log()
    await broker.append([Item(0, None, (Outgoing("a", b"a"),))])

async def used():
    for call in (broker.append([Item(0, None, (Outgoing("b", b"b"),))]), broker.read(0)):
        try:
            await call
        except ConfigError as error:
            print(error)
    await broker.aclose()

asyncio.run(opened())
child = os.fork()
if not child:
    asyncio.run(used())
    sys.stdout.flush()
    os._exit(0)
os.waitpid(child, 0)
asyncio.run(broker.aclose())
"""


def test_a_broker_that_was_carried_over_a_fork_says_so_and_hangs_nobody(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(tmp_path / "log.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert len(done.stdout.splitlines()) == 2
    assert all("was opened before this process was forked" in line for line in done.stdout.splitlines())


# ---- presence, hints, health ---------------------------------------------------------------------------------------
def test_a_process_that_has_ended_is_not_alive_although_it_told_so(go, tmp_path):
    async def main():
        async with process("lock", tmp_path / "other.db") as ended:
            pid = (await ended.hear("locked"))["locked"]
            await ended.rest()
        host = os.uname().nodename
        async with opened(tmp_path / "log.db") as broker:
            for name, number in (("ended", pid), ("here", os.getpid())):
                await broker.announce(Presence(member=name, group="g", pid=number, host=host))
            assert [m.presence.member for m in await broker.members("g")] == ["here"]
            known = await broker.members(gone=True)
            assert {m.presence.member: m.alive for m in known} == {"ended": False, "here": True}
            assert await broker.members("other") == []
            await broker.withdraw("here")
            assert await broker.members("g") == []

    go(main())


def test_hints_reach_their_listener_in_this_process_and_in_others_and_nobody_else(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as one, opened(tmp_path / "log.db") as other:
            async with one.listen() as a, other.listen() as b:
                for sender in (one, other):
                    await sender.notify(a.address, b"for a")
                    await sender.notify(b.address, b"for b")
                assert [await a.get(), await a.get()] == [b"for a"] * 2
                assert [await b.get(), await b.get()] == [b"for b"] * 2
                for n in range(300):
                    await other.notify(a.address, b"%d" % n)
                assert [int(await a.get()) for _ in range(300)] == list(range(300))
            for address in (a.address, "h-1-ff", "../../etc/passwd", "", "x" * 200):
                await one.notify(address, b"gone")

    go(main())


def test_without_a_folder_for_sockets_the_log_works_and_looks_by_itself(go, tmp_path, monkeypatch, caplog):
    def refuse(log_id):
        raise PermissionError("no place")

    monkeypatch.setattr("refold.brokers.sqlite.doorbell.folder_of", refuse)

    async def main():
        path, spec = tmp_path / "log.db", LogSpec(partitions=1)
        async with opened(path, spec) as one, opened(path, spec) as two:
            assert "TMPDIR" in caplog.text
            async with one.subscribe("g", "m") as sub, one.listen() as listener:
                await one.notify(listener.address, b"own")
                assert await listener.get() == b"own"
                assert await sub.fetch() == [Assigned(0, 1)]
                sub.seek(0, 0)
                await two.append([item(0, "w", "a")])
                (batch,) = await sub.fetch(max_wait=10)
                assert isinstance(batch, Batch)

    go(main())


def test_health_names_the_durability_and_what_is_wrong(go, tmp_path):
    async def main():
        async with opened(tmp_path / "log.db") as broker:
            health = await broker.health()
            assert (health.ok, health.durability, health.why) == (True, "D2", "synchronous=FULL")
            checks = {name: ok for name, ok, _, _ in health.checks}
            assert checks.pop("sqlite") is (sqlite3.sqlite_version_info >= (3, 51, 3))
            assert set(checks) == {"file system", "space", "write-ahead log", "journal", "integrity"}
            assert checks["journal"] and checks["integrity"] and checks["file system"]
        async with opened(tmp_path / "log.db", synchronous="NORMAL") as broker:
            assert (await broker.health()).durability == "D1"
        path = tmp_path / "log.db"
        path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40000)
        assert not (await SqliteBroker(path).health()).ok

    go(main())
