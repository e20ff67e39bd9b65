"""Reading one workflow back: any reader of a prefix sees the same (I2), and a point of the past never changes (I10)."""

from __future__ import annotations

import random

import pytest
from random_log import RandomLog, whole, written

from refold.bus import codec
from refold.bus.errors import InvalidMessage, NoSuchWorkflow
from refold.projections.follow import Follower
from refold.projections.history import read_workflow


@pytest.mark.parametrize("seed", range(25))
def test_a_workflow_read_by_key_equals_its_fold_from_zero(go, seed):
    async def main():
        log = RandomLog(seed)
        log.grow(120)
        broker = await written(log)
        expected = whole(log, broker.log.partitions[log.partition])
        for name, w in expected.items():
            if w.last:
                history = await read_workflow(broker, name)
                assert history.workflow == w
                assert len(history.records) == sum(w.counts.values())
                assert {j.envelope.id: j.verdict for j in reversed(history.records)}.items() <= w.verdicts.items()

    go(main())


@pytest.mark.parametrize("seed", range(8))
def test_a_follower_that_reads_on_equals_one_that_reads_all(go, seed):
    async def main():
        log = RandomLog(seed, workflows=2)
        log.grow(40)
        broker = await written(log)
        followers = [Follower(broker, name) for name in log.names]
        for _ in range(3):
            for follower in followers:
                await follower.catch_up()
            await broker.append_raw(log.partition, [(s.key, s.value) for s in log.grow(20)])
        for follower in followers:
            await follower.catch_up()
            assert follower.workflow == whole(log, broker.log.partitions[log.partition])[follower.correlation]

    go(main())


@pytest.mark.parametrize("seed", range(25))
def test_a_point_of_the_past_never_changes(go, seed):
    chance = random.Random(seed)

    async def main():
        log = RandomLog(seed, workflows=1)
        name = log.names[0]
        seen: dict[str, tuple[list[str], dict[str, object]]] = {}
        log.grow(10)
        broker = await written(log)
        for _ in range(5):
            await broker.append_raw(log.partition, [(s.key, s.value) for s in log.grow(25)])
            history = await read_workflow(broker, name)
            w = history.workflow
            for at, before in seen.items():
                assert ([e.id for e in history.path(at)], history.state(at)) == before
            for generation in range(w.generation + 1):
                for version in range(len(w.path_at(generation, 10**6)) + 1):
                    at = f"g{generation}:{version}"
                    seen[at] = ([e.id for e in history.path(at)], history.state(at))
            time = chance.choice(history.records).time
            then = [p for j, p in zip(history.records, history.points, strict=True) if j.time <= time][-1]
            assert history.path(time) == history.path(f"g{then.generation}:{then.version}")

    go(main())


@pytest.mark.parametrize("seed", [8, 11, 12])
def test_every_way_to_name_a_point(go, seed):
    async def main():
        log = RandomLog(seed, workflows=1)
        log.grow(120)
        broker = await written(log)
        history = await read_workflow(broker, log.names[0])
        w = history.workflow
        assert w.generation > 0, "the seed makes no rollback: take another one"
        assert history.path() == history.path(w.version) == history.path(f"g{w.generation}:{w.version}") == w.view.path
        assert history.path(f" {w.version} ") == w.view.path
        entry = w.view.path[-1]
        assert history.path(entry.id) == w.view.path
        lost = next(e for e in w.closed[0] if e.id not in w.view.at)
        assert history.path(lost.id)[-1] == lost
        for version, entry in enumerate(w.view.path, 1):
            assert history.path(entry.id) == w.view.path[:version]
            assert codec.envelope(history.raw(entry)) == entry.envelope
        assert history.path(0.0) == []
        assert history.path("2001-01-01T00:00:00+00:00") == []
        assert history.path("2999-01-01") == w.view.path
        longest = len(w.closed[0])
        for wrong in (-1, w.version + 1, f"g0:{longest + 1}", f"g{w.generation + 1}:0", "g0:x", "soon", ""):
            with pytest.raises(InvalidMessage, match=r"at: .*(use a version up to|it has versions 0 to)"):
                history.path(wrong)
        with pytest.raises(NoSuchWorkflow, match="refold ps"):
            await read_workflow(broker, "nobody")

    go(main())
