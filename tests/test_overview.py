"""What people are shown: open workflows and why they hang, attempts and the processes that made them."""

from __future__ import annotations

import pytest

from refold.brokers.memory import MemoryBroker
from refold.bus import codec, facts, kinds
from refold.bus.broker import Checkpoint, LogSpec, Presence
from refold.bus.message import AgentMessage, Origin, Work
from refold.projections.checkpoint import HEAD, changes, read_partition
from refold.projections.costs import Costs, costs
from refold.projections.dead_letters import dead_letters
from refold.projections.history import read_workflow
from refold.projections.overview import overview
from refold.projections.runner import catch_up
from refold.projections.status import Status
from refold.projections.store import ProjectionStore
from refold.projections.timeline import attempts, timeline

W = "w"


class Log:
    """One partition of records made by hand; `owner` is the id of the newest `owner` record."""

    def __init__(self):
        self.broker = MemoryBroker()
        self.owner, self.epoch = "", 0

    async def put(self, kind, sender="a", key=W, **fields):
        m = AgentMessage(
            sender_id=sender, receiver_id=fields.pop("to", "*"), message_type=kind, correlation_id=key or "", **fields
        )
        await self.broker.append_raw(0, [(key, codec.encode(m))])
        return m

    async def own(self, pid, *agents):
        self.epoch += 1
        fact = facts.Owner(group="g", epoch=self.epoch, agents=dict.fromkeys(agents, ("note",)), member="m", pid=pid)
        self.owner = (await self.put(kinds.OWNER, "m", None, fact=fact)).id

    async def release(self):
        await self.put(kinds.OWNER_RELEASED, "m", None, fact=facts.OwnerReleased(group="g", epoch=self.epoch))

    async def work(self, kind, message, run, step="", done=False, **fields):
        work = Work(message=message.id, step=step, writer=f"{self.owner}#{run}", done=done)
        return await self.put(kind, work=work, generation=0, **fields)


@pytest.fixture
def log(go):
    it = Log()
    go(it.broker.ensure_log(LogSpec(partitions=1)))
    return it


@pytest.mark.parametrize(("alive", "fate"), [(False, "died"), (True, "released")])
def test_attempts_name_the_process_that_left_no_outcome_and_the_one_that_did(go, log, alive, fate):
    async def main():
        ask = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        await log.own(101, "a")
        await log.work(
            kinds.EFFECT_COMPLETED, ask, 1, "1", payload=5, fact=facts.EffectCompleted(effect="e", name="call")
        )
        if alive:
            await log.release()
        await log.own(202, "a")
        await log.work(kinds.ATTEMPT_STARTED, ask, 1, fact=facts.AttemptStarted())
        await log.work(kinds.TIMER_SET, ask, 1, "2", fact=facts.TimerSet(due=1.0))
        await log.work(kinds.TIMER_FIRED, ask, 0, "2")
        await log.work(kinds.TASK_RESPONSE, ask, 2, done=True, to="client", in_reply_to=ask.id, payload="done")
        history = await read_workflow(log.broker, W)
        assert [(a.number, a.pid, a.outcome, a.fate, a.steps) for a in attempts(history)] == [
            (1, 101, "", fate, ("1",)), (2, 202, "", "resumed", ("2",)), (3, 202, "task_response", "", ()),
        ]  # fmt: skip
        moments = timeline(history)
        assert {m.verdict for m in moments} == {"admitted"}
        assert [(m.kind, m.pid, m.step, m.about) for m in moments[:2]] == [
            ("task_request", 0, "", ""), ("effect_completed", 101, "1", "call"),
        ]  # fmt: skip
        assert moments[-1].payload == "done"
        assert moments[0].after == 0 <= moments[-1].after

    go(main())


def test_a_run_that_may_still_go_on_has_no_fate(go, log):
    async def main():
        await log.own(101, "a")
        ask = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        await log.work(kinds.TIMER_SET, ask, 1, "1", fact=facts.TimerSet(due=None, kind="go"))
        (only,) = attempts(await read_workflow(log.broker, W))
        assert (only.outcome, only.fate) == ("", "")

    go(main())


def test_work_that_no_worker_of_its_partition_hosts_says_so(go, log):
    async def main():
        await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)

        async def told():
            (row,) = (await overview(log.broker)).rows
            return row.status, row.blocked

        def worker(member, agents, *partitions):
            return Presence(member=member, group="g", agents=dict.fromkeys(agents, ("task_request",)),
                            partitions=partitions)  # fmt: skip

        assert await told() == (Status.BLOCKED, ("no worker hosts 'a' now",))
        await log.broker.announce(worker("old", "b", 0))
        assert await told() == (Status.BLOCKED, ("no worker hosts 'a' now",))
        await log.broker.announce(worker("new", "ab", 1))
        assert await told() == (Status.BLOCKED, ("no worker here: that of partition 0 lacks 'a'",))
        await log.broker.announce(worker("old", "b"))
        assert await told() == (Status.RUNNING, ()), "the partition is on its way"
        await log.broker.announce(worker("new", "ab", 0))
        assert await told() == (Status.RUNNING, ())

    go(main())


def test_a_row_tells_since_when_and_a_completed_workflow_is_only_counted(go, log):
    async def main():
        await log.own(1, "a")
        ask = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        await log.work(kinds.STATE_CHANGED, ask, 1, "1", payload={"x": 1}, fact=facts.StateChanged())
        (row,) = (await overview(log.broker)).rows
        history = await read_workflow(log.broker, W)
        assert (row.since, row.changed) == (history.records[0].time, history.records[-1].time)
        assert (row.workflow, row.version, row.agents) == (W, 2, ("a",))
        await log.work(kinds.TASK_RESPONSE, ask, 1, done=True, to="client", in_reply_to=ask.id)
        await log.broker.append_raw(0, [(None, b"nonsense")])
        found = await overview(log.broker)
        assert (found.rows, found.completed, found.undecodable, found.strays) == ((), 1, 1, 0)

    go(main())


def test_a_message_for_an_agent_that_nobody_ever_hosted_is_shown_until_somebody_does(go, log, monkeypatch):
    from refold.projections import partition as partition_module

    monkeypatch.setattr(partition_module, "RECENT", 0)  # as if many workflows had completed since

    async def main():
        await log.own(1, "a")
        await log.put("note", "client", to="late", ttl=60.0, priority=9)
        (row,) = (await overview(log.broker)).rows
        assert (row.status, row.unclaimed) == (
            Status.COMPLETED, ("note for 'late', which no worker has ever hosted",)
        )  # fmt: skip
        await log.own(2, "late")
        (row,) = (await overview(log.broker)).rows
        assert (row.agents, row.unclaimed) == (("late",), ())
        (h,) = (await read_partition(log.broker, 0)).live[W].open_handlings()
        assert (h.agent, h.priority) == ("late", 9)
        assert h.expires is not None

    go(main())


def test_progress_for_a_client_waits_for_no_agent(go, log):
    async def main():
        await log.own(1, "a")
        ask = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        await log.work(kinds.STATUS_UPDATE, ask, 1, "1", to="client")
        await log.work(kinds.STATUS_UPDATE, ask, 1, "2", to="nobody")
        (row,) = (await overview(log.broker)).rows
        assert row.unclaimed == ("status_update for 'nobody', which no worker has ever hosted",)

    go(main())


def test_a_checkpoint_that_does_not_fit_the_log_is_not_believed(go, log):
    async def main():
        await log.own(1, "a")
        await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        fold = await read_partition(log.broker, 0)
        (w,) = fold.live.values()
        w.view.open.clear()
        w.view.agenda.clear()
        assert fold.settle(w)  # a checkpoint that says something else than the log, so that it shows who is believed
        for last_id, rows in ((fold.last_id, 0), ("another", 1)):
            fold.last_id = last_id
            changed, _ = changes(fold, lambda w: False, whole=True)
            assert HEAD in changed
            log.broker.log.checkpoints["g", 0] = Checkpoint(fold.position, last_id.encode(), changed)
            assert len((await overview(log.broker)).rows) == rows

    go(main())


def test_dead_letters_are_what_nobody_else_deals_with(go, log):
    async def main():
        await log.own(1, "a", "b")
        note = await log.put("note", "client", to="b")
        await log.work(kinds.DEAD_LETTERED, note, 1, sender="b", done=True, payload="boom", fact=facts.DeadLettered())
        outside = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)
        inside = await log.work(kinds.TASK_REQUEST, outside, 2, "1", to="b", asked=True, fact=facts.Call())
        ends = {"done": True, "fact": facts.Call(), "to": "*"}
        await log.work(kinds.ERROR_REPORT, inside, 3, sender="b", in_reply_to=inside.id, payload="inner", **ends)
        await log.work(kinds.ERROR_REPORT, outside, 2, in_reply_to=outside.id, payload="outer", **ends)
        child = await log.put(
            kinds.TASK_REQUEST, "x", key="child", to="a", asked=True, origin=Origin(workflow="parent", id="s")
        )
        work = Work(message=child.id, writer=f"{log.owner}#9", done=True)
        await log.put(kinds.ERROR_REPORT, key="child", work=work, generation=0, in_reply_to=child.id, payload="c")
        await log.broker.append_raw(0, [("gone", b'"dead_lettered"')])
        told = []
        found = await dead_letters(log.broker, lambda done, of: told.append((done, of)))
        assert [(d.agent, d.message, d.kind, d.error, d.holds) for d in found] == [
            ("b", note.id, "note", "boom", True), ("a", outside.id, "task_request", "outer", False),
        ]  # fmt: skip
        assert told == [(10, 10)]
        redriven = facts.Redriven(agent="a", message=outside.id)
        await log.put(kinds.REDRIVEN, "person", fact=redriven)
        await log.put(kinds.DISCARDED, "person", fact=facts.Discarded(agent="b", message=note.id))
        assert await dead_letters(log.broker) == []

    go(main())


def test_a_bill_counts_every_call_once_whatever_became_of_the_path(go, log, tmp_path):
    async def main():
        await log.own(1, "a")
        ask = await log.put(kinds.TASK_REQUEST, "client", to="a", asked=True)

        def paid(effect, euros, **fields):
            return facts.EffectCompleted(effect=effect, name="call", cost={"eur": euros}, **fields)

        first = await log.work(kinds.EFFECT_COMPLETED, ask, 1, "1", fact=paid("e1", 0.25))
        await log.broker.append_raw(0, [(W, codec.encode(first))])
        await log.work(kinds.EFFECT_COMPLETED, ask, 2, "1", fact=paid("e1", 0.25))
        await log.work(kinds.EFFECT_FAILED, ask, 1, "2", fact=facts.EffectFailed(effect="e2", name="call"))
        await log.work(kinds.EFFECT_COMPLETED, ask, 1, "2", fact=paid("e2", 1.0))
        await log.work(kinds.EFFECT_COMPLETED, ask, 1, "3", fact=facts.EffectCompleted(effect="n", name="now"))
        bill = {W: {"recorded": 3, "failed": 1, "beside": 1, "cost": {"eur": 1.5}}}
        assert await costs(log.broker) == bill
        async with ProjectionStore.open(tmp_path / "p.db", "log") as store:
            await catch_up(log.broker, store, Costs())
            assert dict(await store.items("costs")) == bill

    go(main())
