"""Projections over random logs: whenever they look, and whoever else looks, states equal a rebuild from zero (I6)."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3

import pytest
from random_log import NO_RECORD, RandomLog

from refold.brokers.memory import MemoryBroker
from refold.bus import kinds
from refold.bus.broker import LogSpec
from refold.bus.errors import ConfigError, InvalidMessage, LogCorrupt, LogMissing, LogTruncated, TryAgain
from refold.projections import runner
from refold.projections.runner import Lane, catch_up, rebuild
from refold.projections.store import ProjectionStore


class Path:
    """What the path of each workflow says, payloads included."""

    name, version, scope = "path", 1, "workflow"

    def start(self):
        return []

    def key(self, record):
        return record.envelope.correlation_id

    def apply(self, state, record):
        return [*state, [record.envelope.id, record.envelope.message_type, record.payload]]


class Audit:
    """Every record of each sender, with its verdict; senders are met in several partitions."""

    name, version, scope = "audit", 1, "ledger"

    def start(self):
        return {}

    def key(self, record):
        return record.envelope.sender_id

    def apply(self, state, record):
        tally = f"{record.envelope.message_type} {record.verdict}"
        return {**state, tally: state.get(tally, 0) + 1}


class SmallPages(MemoryBroker):
    """Reads a few records at a time, so that much can happen in between."""

    async def read(self, partition, start=0, *, end=None, limit=3):
        return await super().read(partition, start, end=end, limit=3)


class Logs:
    """Two partitions of random records in a broker; `grow` appends more."""

    def __init__(self, seed):
        self.parts = [RandomLog(seed, partition=p, partitions=2) for p in (0, 1)]
        self.broker = SmallPages()

    def paths(self):
        """What `Path` must say, from the folds that the logs keep of themselves."""
        said = {}
        for part in self.parts:
            raws = [json.loads(s.value) if s.value != NO_RECORD else {} for s in part.records]
            for name, w in part.folds.items():
                entries = [(e, raws[(e.ref[0] - 2) // 3]) for e in w.view.path]
                if w.verdicts:
                    said[name] = [
                        [e.id, e.envelope.message_type, payload_of(raw, e.ref[1])] for e, raw in entries
                    ]  # fmt: skip
        return said

    async def grow(self, n):
        for p, part in enumerate(self.parts):
            await self.broker.append_raw(p, [(s.key, s.value) for s in part.grow(n)])


def payload_of(raw, index):
    return (raw if index < 0 else raw["fact"]["with_inputs"][index]).get("payload")


async def everything(store, projection):
    return await store.items(projection.name, limit=10_000)


async def built(broker, projection, path):
    async with ProjectionStore.open(path, "log") as store:
        await rebuild(broker, store, projection)
        return await everything(store, projection)


async def logs(seed):
    it = Logs(seed)
    await it.broker.ensure_log(LogSpec(partitions=2))
    return it


@pytest.mark.parametrize("seed", range(8))
def test_states_equal_a_rebuild_whenever_they_are_looked_at(go, seed, tmp_path, monkeypatch):
    chance = random.Random(seed)
    monkeypatch.setattr(runner, "FLUSH", chance.choice([1, 20, 20_000]))

    async def main():
        it = await logs(seed)
        for projection in (Path(), Audit()):
            async with ProjectionStore.open(tmp_path / f"{projection.name}.db", "log") as store:
                lane = Lane(it.broker, store, projection)
                for i in range(5):
                    await it.grow(chance.choice([1, 30]))
                    if chance.random() < 0.5:
                        lane = Lane(it.broker, store, projection)  # as after a restart
                    await lane.advance()
                    assert await everything(store, projection) == await built(
                        it.broker, projection, tmp_path / f"{projection.name}{i}.db"
                    )
                    if projection.scope == "workflow":
                        said = {k: v for k, v in (await everything(store, projection)) if v}
                        assert said == {k: v for k, v in it.paths().items() if v}
                    ends = await it.broker.positions("end")
                    assert await store.positions(projection.name) == {p: end - 1 for p, end in ends.items()}

    go(main())


@pytest.mark.parametrize("seed", range(6))
def test_two_runners_of_one_projection_never_count_a_record_twice(go, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FLUSH", 1)

    async def main():
        it = await logs(seed)
        async with (
            ProjectionStore.open(tmp_path / "p.db", "log") as one,
            ProjectionStore.open(tmp_path / "p.db", "log") as other,
        ):
            lanes = [Lane(it.broker, store, Audit()) for store in (one, other)]
            for lane in lanes:
                await lane.advance()
            for _ in range(4):
                await it.grow(25)
                async with asyncio.TaskGroup() as tasks:
                    for lane in lanes:
                        tasks.create_task(lane.advance())
            assert await everything(one, Audit()) == await built(it.broker, Audit(), tmp_path / "q.db")

    go(main())


@pytest.mark.parametrize("turns", range(1, 60, 4))
def test_a_runner_that_is_cancelled_goes_on_where_it_was(go, turns, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FLUSH", 5)

    async def main():
        it = await logs(3)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            lane = Lane(it.broker, store, Audit())
            await it.grow(5)
            await lane.advance()
            await it.grow(40)
            task = asyncio.ensure_future(lane.advance())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            await lane.advance()
            assert await everything(store, Audit()) == await built(it.broker, Audit(), tmp_path / "q.db")

    go(main())


def test_a_rebuild_runs_beside_the_live_states_and_takes_over_at_once(go, tmp_path):
    class Better(Path):
        version = 2

        def apply(self, state, record):
            seen.append(self.version)
            return [*state, record.position]

    seen = []

    async def main():
        it = await logs(1)
        await it.grow(50)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            lane = Lane(it.broker, store, Path())
            await lane.advance()
            before = await everything(store, Path())
            looks = []

            def looked(done, of):
                looks.append((done, of))

            task = asyncio.ensure_future(rebuild(it.broker, store, Better(), looked))
            while not task.done():
                found = await everything(store, Path())
                assert found == before or task.done() or (await store.live_slot("path")).version == 2
                await asyncio.sleep(0)
            records, states = await task
            assert looks[-1] == (records, 100)
            assert states == len(await everything(store, Path()))
            assert (await store.live_slot("path")).version == 2
            await it.grow(1)
            with pytest.raises(ConfigError, match="version 2"):
                await lane.advance()
            count = len(seen)
            await catch_up(it.broker, store, Better())
            assert len(seen) - count < 10

    go(main())


def test_a_rebuild_never_takes_readers_back_in_time(go, tmp_path):
    async def main():
        it = await logs(2)
        await it.grow(20)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(it.broker, store, Path())
            live, behind = await store.live_slot("path"), await store.new_slot("path", 1)
            position = (await store.positions("path"))[0]
            behind = await store.save(behind, 0, position, b"", {"k": b"1"}, {}, [])
            assert not await store.go_live(behind), "partition 1 is behind"
            assert await store.live_slot("path") == live
            behind = await store.save(behind, 1, (await store.positions("path"))[1], b"", {}, {}, [])
            assert await store.go_live(behind)
            assert await everything(store, Path()) == [("k", 1)]
            assert await store.save(live, 0, position + 9, b"", {}, {}, []) is None, "it is gone"

    go(main())


def test_a_rebuild_gives_way_to_one_that_began_later(go, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FLUSH", 5)

    async def main():
        it = await logs(2)
        await it.grow(60)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            begun = asyncio.Event()
            first = asyncio.ensure_future(rebuild(it.broker, store, Path(), lambda done, of: begun.set()))
            await begun.wait()
            await rebuild(it.broker, store, Path())
            with pytest.raises(TryAgain, match="another rebuild"):
                await first
            assert await everything(store, Path()) == await built(it.broker, Path(), tmp_path / "q.db")

    go(main())


def test_bytes_that_are_no_record_stop_no_projection(go, tmp_path):
    async def main():
        it = await logs(4)
        await it.grow(10)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(it.broker, store, Audit())
            await it.broker.append_raw(0, [("x", b"\xff"), (None, b"{}")])
            await catch_up(it.broker, store, Audit())
            await it.grow(10)
            await catch_up(it.broker, store, Audit())
            assert await everything(store, Audit()) == await built(it.broker, Audit(), tmp_path / "q.db")

    go(main())


def test_a_log_that_lost_what_was_folded_is_noticed(go, tmp_path):
    async def main():
        it, other = await logs(5), await logs(6)
        await it.grow(10)
        await other.grow(5)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(it.broker, store, Path())
            with pytest.raises(LogTruncated):
                await catch_up(other.broker, store, Path())

    go(main())


def test_a_state_that_json_would_change_is_refused_at_once(go, tmp_path):
    class Tuples(Path):
        def apply(self, state, record):
            return (*state, record.position)

    async def main():
        it = await logs(1)
        await it.grow(10)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            with pytest.raises(InvalidMessage, match=r"\$\.path\['w1-.*JSON gives back"):
                await catch_up(it.broker, store, Tuples())
            assert await store.projections() == []

    go(main())


def test_items_are_read_in_pages_and_by_prefix(go, tmp_path):
    class ByKind(Audit):
        def key(self, record):
            return f"{record.partition}/{record.envelope.message_type}"

    async def main():
        it = await logs(1)
        await it.grow(40)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(it.broker, store, ByKind())
            whole = await store.items("audit")
            assert [k for k, _ in whole] == sorted(k for k, _ in whole)
            assert await store.items("audit", prefix="1/") == [i for i in whole if i[0].startswith("1/")] != []
            first = await store.items("audit", limit=3)
            assert first + await store.items("audit", after=first[-1][0]) == whole
            assert await store.get("audit", whole[0][0]) == whole[0][1]
            assert await store.get("audit", "nothing") is None
            assert await store.get("nothing", "nothing") is None

    go(main())


def test_a_file_that_is_no_store_is_left_alone(go, tmp_path):
    async def opened(path, **settings):
        async with ProjectionStore.open(path, **settings):
            pass

    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as db:
        db.execute("CREATE TABLE mine(x)")
    db.close()
    before = foreign.read_bytes()
    text = tmp_path / "text.db"
    text.write_text("hello " * 1000)
    for path in (foreign, text):
        for settings in ({"log_id": "log"}, {"create": False}):
            with pytest.raises(LogCorrupt):
                go(opened(path, **settings))
    assert foreign.read_bytes() == before
    with pytest.raises(LogMissing):
        go(opened(tmp_path / "none.db", create=False))
    assert not (tmp_path / "none.db").exists()
    go(opened(tmp_path / "new.db", log_id="log"))
    with sqlite3.connect(tmp_path / "new.db") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(ConfigError, match="newer release"):
        go(opened(tmp_path / "new.db", log_id="log"))


def test_a_ledger_sees_records_of_the_partition_itself(go, tmp_path):
    async def main():
        it = await logs(1)
        await it.grow(80)
        owners = sum(b"owner" in s.value for part in it.parts for s in part.records if s.key is None)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(it.broker, store, Audit())
            told = (await store.get("audit", "client")).items()
        assert owners == sum(n for k, n in told if k.split()[0] in (kinds.OWNER, kinds.OWNER_RELEASED))
        assert owners > 0

    go(main())


def test_a_scope_that_does_not_exist_is_refused(go, tmp_path):
    class Misspelt(Audit):
        scope = "leger"

    async def main():
        it = await logs(1)
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            with pytest.raises(ConfigError, match="'leger': it must be workflow or ledger"):
                await catch_up(it.broker, store, Misspelt())

    go(main())
