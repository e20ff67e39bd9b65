"""Projections, history and overview over logs that real workers wrote."""

from __future__ import annotations

import asyncio

import pytest

from refold import Agent, AgentError, AgentMessage, Context, Refuse, run
from refold.brokers import open_broker
from refold.bus import codec, facts, kinds
from refold.bus.errors import InvalidMessage, LogMismatch, NoSuchWorkflow
from refold.bus.message import Expected
from refold.projections.dead_letters import dead_letters
from refold.projections.history import read_workflow
from refold.projections.overview import overview
from refold.projections.patch import merge_patch
from refold.projections.runner import catch_up, rebuild
from refold.projections.status import Status
from refold.projections.store import ProjectionStore
from refold.projections.timeline import attempts, timeline


class Names:
    """Which kinds a workflow's path holds."""

    name, version, scope = "names", 1, "workflow"

    def start(self):
        return []

    def key(self, record):
        return record.envelope.correlation_id

    def apply(self, state, record):
        return [*state, record.envelope.message_type]


class Bill:
    """How many effects each agent recorded, whatever became of them."""

    name, version, scope = "bill", 1, "ledger"

    def start(self):
        return 0

    def key(self, record):
        return record.envelope.sender_id if record.envelope.message_type in kinds.OUTCOMES else None

    def apply(self, state, record):
        return state + 1


counter = Agent("counter")


@counter.on_task
async def count(ctx: Context, n: int) -> int:
    ctx.update({"n": n, "seen": {str(n): True}})
    await ctx.effect("call", lambda: 1)
    if n < 0:
        raise Refuse("negative")
    return n


async def _log(url, workflows):
    async with run(counter, broker=url) as bus:
        for i, n in enumerate(workflows):
            handle = await bus.start(count, n, id=f"w{i}")
            if n < 0:
                with pytest.raises(AgentError, match="negative"):
                    await handle.result(5)
            else:
                assert await handle.result(5) == n


def test_an_incremental_projection_equals_a_rebuild_at_every_step(go, tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"

    async def main():
        for round in range(4):
            await _log(url, [1, 2, -1] if round == 0 else [1, 2, -1, *range(3, 3 + round)])
            async with open_broker(url) as log:
                meta = await log.ensure_log()
                for projection in (Names(), Bill()):
                    async with ProjectionStore.open(tmp_path / "inc.db", meta.log_id) as store:
                        await catch_up(log, store, projection)
                        a, positions = await store.items(projection.name), await store.positions(projection.name)
                    async with ProjectionStore.open(tmp_path / f"new{round}.db", meta.log_id) as store:
                        await rebuild(log, store, projection)
                        b = await store.items(projection.name)
                    assert a == b
                    ends = await log.positions("end")
                    assert all(positions.get(p, 0) == end - 1 for p, end in ends.items())
        assert dict(a)["counter"] == 6
        return a

    go(main())


def test_a_rollback_folds_the_workflows_state_anew_and_leaves_ledgers_alone(go, tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"

    async def main():
        await _log(url, [7])
        async with open_broker(url) as log:
            meta = await log.ensure_log()
            async with ProjectionStore.open(tmp_path / "p.db", meta.log_id) as store:
                await catch_up(log, store, Names())
                await catch_up(log, store, Bill())
                before = await store.get("names", "w0")
                assert before == ["task_request", "state_changed", "effect_completed", "task_response"]
                from refold.bus.sender import Sender

                back = AgentMessage(
                    sender_id="op", receiver_id="*", message_type="rolled_back", correlation_id="w0",
                    expected=Expected(generation=0, inputs=1), fact=facts.RolledBack(to_version=2, op_id="op-1"),
                )  # fmt: skip
                await Sender(log).send_control(back)
                await catch_up(log, store, Names())
                await catch_up(log, store, Bill())
                assert await store.get("names", "w0") == before[:2]
                assert await store.get("bill", "counter") == 1
                await rebuild(log, store, Names())
                assert await store.get("names", "w0") == before[:2]
            history = await read_workflow(log, "w0")
            assert history.workflow.generation == 1
            assert [e.envelope.message_type for e in history.path("g0:4")] == before

    go(main())


def test_another_version_of_a_projection_is_built_anew_and_another_log_is_refused(go, tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"

    class Second(Names):
        version = 2

        def apply(self, state, record):
            return len(state) + 1 if isinstance(state, list) else state + 1

    async def main():
        await _log(url, [1])
        async with open_broker(url) as log:
            meta = await log.ensure_log()
            async with ProjectionStore.open(tmp_path / "p.db", meta.log_id) as store:
                await catch_up(log, store, Names())
                await catch_up(log, store, Second())
                assert await store.get("names", "w0") == 4
            with pytest.raises(LogMismatch):
                async with ProjectionStore.open(tmp_path / "p.db", "another"):
                    pass

    go(main())


def test_history_tells_the_state_at_any_point_and_never_changes(go, tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"

    async def main():
        async with run(counter, broker=url) as bus:
            handle = await bus.start(count, 1, id="w")
            await handle.result(5)
            early = await read_workflow(bus.broker, "w")
            await handle.request(2)
            history = await read_workflow(bus.broker, "w")
            assert history.state() == {"n": 2, "seen": {"1": True, "2": True}}
            assert history.state(4) == early.state() == {"n": 1, "seen": {"1": True}}
            assert history.state("g0:1") == {}
            assert history.state(early.records[1].envelope.id) == early.state()
            assert history.state(early.records[-1].time) == early.state()
            assert history.diff(4) == {"n": (1, 2), "seen": ({"1": True}, {"1": True, "2": True})}
            for wrong in (99, "g7:1", "yesterday", "g0:99"):
                with pytest.raises(InvalidMessage, match="at: "):
                    history.state(wrong)
            with pytest.raises(NoSuchWorkflow):
                await read_workflow(bus.broker, "nobody")
            moments = timeline(history)
            assert [m.kind for m in moments][:2] == ["task_request", "state_changed"]
            assert moments[1].pid > 0
            assert moments[0].pid == 0
            assert [(a.number, a.outcome) for a in attempts(history)] == [(1, "task_response"), (1, "task_response")]

    go(main())


def test_the_overview_shows_what_is_open_and_why(go, until):
    agent = Agent("waiter")

    @agent.on_task
    async def wait(ctx: Context, n: int) -> str:
        return await ctx.receive("go")

    async def main():
        async with run(agent, counter) as bus:
            await bus.request(count, 1)
            handle = await bus.start(wait, 1, id="waiting")
            await bus.start("nobody", 1, id="lost")

            async def both():
                rows = {r.workflow: r for r in (await overview(bus.broker)).rows}
                return rows.get("waiting") is not None and rows["waiting"].status is Status.WAITING and rows

            await until(both)
            rows = await both()
            assert rows["waiting"].waits[0].target == "go"
            assert rows["lost"].blocked == ("no worker hosts 'nobody' now",)
            await handle.send("on", kind="go")
            assert await handle.result(5) == "on"
            assert "waiting" not in {r.workflow for r in (await overview(bus.broker)).rows}

    go(main())


def test_dead_letters_are_found_by_a_scan(go, tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"

    async def main():
        await _log(url, [1, -1, -2])
        async with open_broker(url) as log:
            await log.ensure_log()
            found = await dead_letters(log)
            assert [(d.workflow, d.agent, d.error) for d in found] == [
                ("w1", "counter", "Refuse: negative"), ("w2", "counter", "Refuse: negative")
            ]  # fmt: skip

    go(main())


@pytest.mark.parametrize(
    ("state", "patch", "expected"),
    [  # RFC 7396, appendix A
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_state_changes_by_merge_patch(state, patch, expected):
    before = codec.canonical(state)
    assert merge_patch(state, patch) == expected
    assert codec.canonical(state) == before


def test_a_projection_that_follows_the_log_sees_what_is_new(go, until, tmp_path):
    from refold.projections.runner import follow

    async def main():
        async with run(counter) as bus, ProjectionStore.open(tmp_path / "p.db", bus.broker.meta.log_id) as store:
            task = asyncio.ensure_future(follow(bus.broker, store, [Bill()]))
            for n in range(3):
                await bus.request(count, n)

            async def seen():
                return await store.get("bill", "counter") == 3

            await until(seen)
            task.cancel()
            await asyncio.wait([task])

    go(main())
