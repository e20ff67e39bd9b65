"""A long workflow's checkpoint: what is written of it is what changed, and what is read of it is the whole."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import msgspec
import pytest
from histories import WORKFLOW, Claimed, Story, random_tape
from hypothesis import given, strategies as st
from long_talk import TALK, LongTalk, cut_small
from test_worker import working

from refold import Agent, Context, MessageBus
from refold.agents.ownership import save_checkpoint
from refold.brokers import open_broker
from refold.bus import codec
from refold.bus.broker import Checkpoint, LogSpec
from refold.bus.errors import BrokerUnavailable
from refold.bus.ids import record_key
from refold.projections.checkpoint import changes, restore
from refold.projections.frozen import encoded, freeze, peek, thaw
from refold.projections.overview import overview
from refold.projections.partition import PartitionFold
from refold.projections.segments import KEY_SIZE, cut, join, split, split_entry
from refold.projections.workflow import Workflow

leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
values = st.recursive(
    leaves, lambda v: st.lists(v) | st.dictionaries(st.text() | st.integers(-9, 9), v, min_size=1), max_leaves=100
)


def segments_of(entries: dict[bytes, bytes]) -> set[bytes]:
    return {key for key in entries if len(key) == KEY_SIZE}


class Store:
    """What a log keeps of a checkpoint, and what the last one wrote."""

    def __init__(self) -> None:
        self.entries: dict[bytes, bytes] = {}
        self.written: dict[bytes, bytes] = {}

    def save(self, fold: PartitionFold, **how: Any) -> None:
        self.written, gone = changes(fold, lambda w: False, **how)
        self.entries = {k: v for k, v in self.entries.items() if k not in gone} | self.written

    def load(self, fold: PartitionFold) -> PartitionFold:
        """Return the fold that somebody else makes of it."""
        again = PartitionFold(fold.partition, fold.partitions)
        assert restore(again, Checkpoint(fold.position, fold.last_id.encode(), dict(self.entries)))
        return again

    @property
    def size(self) -> int:
        return sum(len(key) + len(value) for key, value in self.written.items())


# ---- what is read ----------------------------------------------------------------------------------------------------
@given(values)
def test_any_value_is_found_again_in_its_pieces(value):
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch)
        pieces = cut(msgspec.msgpack.encode(value))
    assert msgspec.msgpack.decode(b"".join(pieces)) == value
    assert len(pieces) % 2 == 1


def test_a_large_collection_of_any_size_is_found_again_in_its_pieces():
    for n in (15, 16, 3000, 70_000):
        for value in ({f"k{i}": "x" * (i % 40) for i in range(n)}, list(range(n)), [["a"] * n, {"b": [{"c": n}] * n}]):
            assert msgspec.msgpack.decode(b"".join(cut(msgspec.msgpack.encode(value)))) == value


@pytest.mark.parametrize("seed", range(20_000, 20_008))
def test_a_state_in_segments_is_the_state(seed, monkeypatch):
    cut_small(monkeypatch)
    w, store, most = Workflow(WORKFLOW), dict[bytes, bytes](), 0
    keys: frozenset[bytes] = frozenset()
    for event in Story().play(random_tape(seed, 150)):
        if isinstance(event, Claimed):
            w.view.claim(event.agent, event.kinds)
            continue
        w.admit(codec.envelope(event.raw), event.position, event.listeners)
        found = split(w, keys, idle=False) if event.position % 2 else split_entry(freeze(w, idle=False), keys)
        store, keys = {k: v for k, v in {**store, **found.new}.items() if k in found.keys}, found.keys
        kept = join(found.head, store)
        assert kept is not None
        assert kept[1] == keys == store.keys()
        assert encoded(thaw(kept[0])) == encoded(w)
        assert [getattr(peek(kept[0]), name) for name in ("correlation", "due", "idle", "waits", "format")] == [
            getattr(peek(freeze(w, idle=False)), name) for name in ("correlation", "due", "idle", "waits", "format")
        ]
        most = max(most, len(keys))
    assert most > 5


def test_a_segment_that_is_missing_or_left_over_is_noticed(monkeypatch):
    cut_small(monkeypatch)
    talk, store = LongTalk(), Store()
    talk.grow(30)
    store.save(talk.fold)
    before = dict(store.entries)
    talk.grow(1)
    store.save(talk.fold)
    keys, old = segments_of(store.entries), segments_of(before) - store.entries.keys()
    assert len(keys) > 5
    assert old
    less = [{k: v for k, v in store.entries.items() if k != key} for key in keys]
    more = [store.entries | {key: before[key]} for key in old]
    for entries in less + more:
        fold = PartitionFold(0, 1)
        assert not restore(fold, Checkpoint(talk.fold.position, talk.fold.last_id.encode(), entries))
        assert (fold.position, fold.entries, fold.segments) == (0, {}, {})
    found = split(talk.workflow, idle=False)
    for key in found.keys:
        assert join(found.head, {k: v for k, v in found.new.items() if k != key}) is None


# ---- what is written -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("one", [False, True], ids=["many questions", "one question"])
def test_a_checkpoint_of_a_long_workflow_writes_what_changed(one):
    talk, store = LongTalk(one=one), Store()
    talk.grow(9_998)
    store.save(talk.fold)
    whole = store.size
    assert len(segments_of(store.entries)) > 100
    for more in (1, 2, 3, 20):
        talk.grow(more)
        store.save(talk.fold)
        assert len(segments_of(store.written)) <= 8
        assert store.size < min(whole // 20, 64 * 1024)
    again = store.load(talk.fold)
    assert encoded(thaw(again.entries[TALK])) == encoded(talk.workflow)
    again.changed.add(TALK)
    store.save(again)
    assert not segments_of(store.written)  # whoever takes it over knows what is there


def test_what_joins_or_leaves_a_collection_changes_the_segments_around_it():
    known = {f"{random.Random(i).getrandbits(128):032x}": i for i in range(20_000)}
    before = set(cut(msgspec.msgpack.encode(known))[1::2])
    for gone in ("first", "middle"):
        name = list(known)[0 if gone == "first" else 10_000]
        rest = {k: v for k, v in known.items() if k != name}
        assert len(set(cut(msgspec.msgpack.encode(rest))[1::2]) - before) <= 4
    assert len(before) > 30


def test_a_small_workflow_is_written_in_one_piece():
    talk, store = LongTalk(), Store()
    talk.grow(100)
    store.save(talk.fold)
    assert not segments_of(store.written)
    assert store.load(talk.fold).entries[TALK] == freeze(talk.workflow, idle=False)


@pytest.mark.parametrize("frozen", [False, True], ids=["live", "as bytes"])
def test_completion_and_rollback_leave_no_segments(frozen, monkeypatch):
    cut_small(monkeypatch)
    talk, store = LongTalk(), Store()

    def save():
        if frozen and TALK in talk.fold.live:
            talk.fold.park(talk.workflow)
        store.save(talk.fold)

    talk.grow(50)
    save()
    assert len(segments_of(store.entries)) > 10
    talk.roll_back(1)
    save()
    left = len(segments_of(store.entries))
    assert encoded(thaw(store.load(talk.fold).entries[TALK])) == encoded(talk.workflow)
    talk.grow(50)
    save()
    assert len(segments_of(store.entries)) > left
    talk.end()
    save()
    assert record_key(TALK) not in store.entries
    assert not segments_of(store.entries)
    assert TALK not in store.load(talk.fold).entries


# ---- workers ---------------------------------------------------------------------------------------------------------
def collector(starts: list[int]) -> Agent:
    agent = Agent("collector")

    @agent.on_task
    async def collect(ctx: Context, n: int) -> int:
        starts.append(n)
        total = 0
        for _ in range(n):
            total += await ctx.effect("one", lambda: 1)
        return total + await ctx.receive("more")

    return agent


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db"


def test_a_worker_takes_a_long_workflow_over_from_its_segments(go, until, url, monkeypatch):
    cut_small(monkeypatch)

    async def main():
        starts: list[int] = []
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus:
                async with working(broker, collector(starts)) as worker:
                    handle = await bus.start("collector", 40, id="long")
                    await until(lambda: waits(handle))
                    before = encoded(worker.places[0].fold.find("long"))
                saved = segments_of((await broker.checkpoint("g", 0)).entries)
                assert len(saved) > 10
                (row,) = (await overview(broker)).rows
                assert (row.workflow, row.version) == ("long", 42)
                async with working(broker, collector(starts)) as worker:
                    await until(lambda: worker.places and worker.places[0].active)
                    fold = worker.places[0].fold
                    assert fold.segments["long"] == saved
                    assert encoded(thaw(fold.entries["long"])) == before
                    assert starts == [40]
                    await handle.send(2, kind="more")
                    assert await handle.result(10) == 42
                    await until(lambda: not fold.live)
                    assert await save_checkpoint(worker, worker.sub, worker.places[0])
                    assert not segments_of((await broker.checkpoint("g", 0)).entries)

    go(main())


def test_after_a_save_that_may_have_failed_all_of_it_is_written_again(go, until, monkeypatch):
    cut_small(monkeypatch)

    async def main():
        async with open_broker("memory://") as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, collector([])) as worker:
                handle = await bus.start("collector", 30, id="long")
                await until(lambda: waits(handle))
                place, save = worker.places[0], worker.sub.save_checkpoint
                assert await save_checkpoint(worker, worker.sub, place)
                tried: list[dict[bytes, bytes]] = []

                async def saves_and_fails(*said):
                    tried.append(said[-2])
                    await save(*said)
                    raise BrokerUnavailable("was it written?")

                async def fails(*said):
                    tried.append(said[-2])
                    raise BrokerUnavailable("not now")

                for broken in (saves_and_fails, fails):
                    await handle.send(1, kind="unwanted")
                    position = place.fold.position
                    await until(lambda before=position: place.fold.position > before)
                    worker.sub.save_checkpoint = broken
                    with contextlib.suppress(BrokerUnavailable):
                        await save_checkpoint(worker, worker.sub, place)
                worker.sub.save_checkpoint = save
                assert await save_checkpoint(worker, worker.sub, place)
                saved = await broker.checkpoint("g", 0)
                assert segments_of(saved.entries) == place.fold.segments["long"]
                assert len(segments_of(tried[0])) < len(segments_of(tried[1]))
                again = PartitionFold(0, 1)
                assert restore(again, saved)
                assert encoded(thaw(again.entries["long"])) == encoded(place.fold.find("long"))

    go(main())


def test_a_checkpoint_that_is_not_believed_leaves_nothing_in_the_next_one(go, until, monkeypatch):
    cut_small(monkeypatch)

    async def main():
        async with open_broker("memory://") as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus:
                async with working(broker, collector([])):
                    handle = await bus.start("collector", 30, id="long")
                    await until(lambda: waits(handle))
                saved = broker.log.checkpoints["g", 0]
                for size in (7, 16, KEY_SIZE):
                    saved.entries[bytes(size)] = b"nobody wrote this"
                assert not restore(PartitionFold(0, 1), saved)
                async with working(broker, collector([])) as worker:
                    await until(lambda: worker.places and worker.places[0].active)
                assert restore(PartitionFold(0, 1), broker.log.checkpoints["g", 0])

    go(main())


async def waits(handle) -> bool:
    return [w.what for w in (await handle.status()).waits] == ["message"]
