"""The client: asking, waiting, attaching, and what it says where no answer comes. On both brokers where it matters."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hosting import QUICK, hosted, kinds_of, opened, working
from jetstream_logs import BROKERS, url_of

from refold import Agent, AgentError, AgentMessage, Context, MessageBus, RetryPolicy
from refold.agents import client
from refold.agents.control import cancel, redrive
from refold.agents.hints import ADDRESS, Hint, decode, encode
from refold.brokers import open_broker
from refold.brokers.memory import Log, MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import LogSpec, Page
from refold.bus.errors import (
    AgentUnavailable,
    BrokerUnavailable,
    NoSuchAgent,
    NoSuchWorkflow,
    RequestTimeout,
    WorkflowExists,
)
from refold.projections.status import Status
from refold.projections.verdict import Verdict


@pytest.fixture(params=BROKERS)
def url(request, tmp_path):
    return url_of(request, tmp_path)


@contextlib.asynccontextmanager
async def at(url):
    """A log that is open under this URL; each call is another connection to the same log."""
    async with open_broker(url) as broker:
        await broker.ensure_log(LogSpec(partitions=2))
        yield broker


def echo_agent() -> Agent:
    agent = Agent("echo")
    agent.on_task(lambda n: n)
    return agent


def waiting_agent() -> Agent:
    agent = Agent("waiter")

    @agent.on_task
    async def wait(ctx: Context, n: int) -> Any:
        return [n, await ctx.receive("go")]

    return agent


# ---- no answer -------------------------------------------------------------------------------------------------------
def test_a_request_to_an_agent_that_never_was_says_so_and_is_answered_when_it_starts(go, url):
    async def main():
        async with at(url) as broker, MessageBus.open(broker) as bus:
            async with working(broker, echo_agent(), Agent("researcher"), Agent("writer")):
                with pytest.raises(NoSuchAgent) as info:
                    await bus.request("resercher", 1, timeout=0.05, id="w")
            said = str(info.value)
            assert "did you mean 'researcher'?" in said
            assert "stays in the log" in said
            assert "bus.attach('w')" in said
            assert "refold cancel w" in said
            assert info.value.correlation_id == "w"
            late = Agent("resercher")
            late.on_task(lambda n: n + 1)
            async with working(broker, late, group="late"):
                assert await (await bus.attach("w")).result(10) == 2
                assert (await (await bus.attach("w")).status()).status is Status.COMPLETED

    go(main())


def test_a_request_on_a_log_that_nobody_works_on_says_that_no_worker_was_seen(go):
    async def main():
        async with MessageBus.open(await opened()) as bus:
            with pytest.raises(NoSuchAgent, match="no worker has been seen on this log at all"):
                await bus.request("echo", 1, timeout=0.01)

    go(main())


def test_a_request_to_an_agent_that_is_gone_says_when_it_was_seen_and_is_answered_when_it_is_back(go, url):
    async def main():
        async with at(url) as broker, MessageBus.open(broker) as bus:
            async with working(broker, echo_agent()):
                assert await bus.request("echo", 0) == 0
            with pytest.raises(AgentUnavailable) as info:
                await bus.request("echo", 1, timeout=0.05, id="w")
            said = str(info.value)
            assert "no worker hosts agent 'echo' now (last seen" in said
            assert "stays in the log" in said
            assert "bus.attach('w')" in said
            assert "refold cancel w" in said
            async with working(broker, echo_agent()):
                assert await (await bus.attach("w")).result(10) == 1

    go(main())


def test_a_request_that_is_under_way_says_how_far_it_is(go):
    async def main():
        agent, gate, reached = Agent("slow", retry=QUICK), asyncio.Event(), asyncio.Event()

        async def hang() -> None:
            reached.set()
            await gate.wait()

        @agent.on_task
        async def handle(ctx: Context, n: int) -> int:
            await ctx.effect("first", lambda: n)
            if ctx.attempt == 1:
                raise RuntimeError
            await ctx.effect("gate", hang)
            return n

        async with hosted(agent) as (bus, _):
            handle_ = await bus.start("slow", 1, id="w")
            await reached.wait()
            with pytest.raises(RequestTimeout, match=r"'slow' is running, attempt 2, 1 steps recorded"):
                await handle_.result(0.02)
            gate.set()
            assert await handle_.result(5) == 1

    go(main())


def test_an_answer_may_come_after_the_client_gave_up_and_the_wait_of_a_client_sets_no_deadline(go):
    async def main():
        async with hosted(waiting_agent()) as (bus, _):
            with pytest.raises(RequestTimeout):
                await bus.request("waiter", 1, timeout=0.01, id="w")
            handle = await bus.attach("w")
            await handle.send("now", kind="go")
            assert await handle.result(5) == [1, "now"]

    go(main())


# ---- start, attach ---------------------------------------------------------------------------------------------------
def test_the_same_start_again_is_the_running_workflow_and_another_is_refused(go, url):
    async def main():
        async with at(url) as broker, MessageBus.open(broker) as bus, working(broker, waiting_agent(), echo_agent()):
            handles = await asyncio.gather(*(bus.start("waiter", 1, id="w") for _ in range(12)))
            assert len({h.request_id for h in handles}) == 1
            async with at(url) as other, MessageBus.open(other) as elsewhere:
                again = await elsewhere.start("waiter", 1, id="w")
                assert again.request_id == handles[0].request_id
                for target, payload in (("waiter", 2), ("echo", 1), ("waiter", None), ("waiter", {"n": 1})):
                    with pytest.raises(WorkflowExists, match="was started with task_request to 'waiter'"):
                        await elsewhere.start(target, payload, id="w")
                await again.send("done", kind="go")
                assert await asyncio.gather(*(h.result(10) for h in handles)) == [[1, "done"]] * 12
            assert (await kinds_of(broker, "w")).count("task_response") == 1
            assert await (await bus.start("waiter", 1, id="w")).result(5) == [1, "done"]  # also when it has ended

    go(main())


def test_a_workflow_that_is_not_there_cannot_be_attached_to(go):
    async def main():
        async with MessageBus.open(await opened()) as bus:
            with pytest.raises(NoSuchWorkflow, match="the log holds no workflow 'w'"):
                await bus.attach("w")

    go(main())


def test_a_handle_is_used_by_many_tasks_at_once(go):
    async def main():
        async with hosted(waiting_agent()) as (bus, _):
            handle = await bus.start("waiter", 1, id="w")

            async def seen() -> list[str]:
                return [e.message.message_type async for e in handle.events()]

            async with asyncio.TaskGroup() as tasks:
                results = [tasks.create_task(handle.result(10)) for _ in range(20)]
                events = [tasks.create_task(seen()) for _ in range(5)]
                states = [tasks.create_task(handle.status()) for _ in range(20)]
                await asyncio.sleep(0)
                await handle.send("x", kind="go")
            assert all(r.result() == [1, "x"] for r in results)
            assert all(e.result() == events[0].result() for e in events)
            assert events[0].result()[-1] == "task_response"
            assert all(s.result().status in set(Status) for s in states)
            await handle.follower.catch_up()
            whole = await bus.attach("w")
            assert handle.follower.workflow.version == whole.follower.workflow.version
            assert handle.follower.workflow.counts == whole.follower.workflow.counts

    go(main())


def test_the_handle_of_a_start_knows_who_listens_as_one_that_was_attached_does(go, until):
    async def main():
        agent, listener, gate = Agent("a"), Agent("listener"), asyncio.Event()

        @agent.on_task
        async def tell(ctx: Context, n: int) -> int:
            ctx.send("listener", n, kind="news")
            ctx.send("*", n, kind="news")
            return n

        @listener.on("news")
        async def hear(ctx: Context, n: int) -> None:
            await ctx.effect("gate", gate.wait)

        async with hosted(agent, listener) as (bus, worker):
            await until(lambda: worker.places)
            handle = await bus.start("a", 1)
            assert await handle.result(5) == 1
            attached = await bus.attach(handle.correlation_id)
            assert (await handle.status()).status is (await attached.status()).status is Status.RUNNING
            gate.set()

            async def completed():
                return (await handle.status()).status is Status.COMPLETED

            await until(completed)

    go(main())


# ---- the log is not always there -------------------------------------------------------------------------------------
class Moody(MemoryBroker):
    """A log that is out of reach now and then, and loses every hint."""

    down = 0

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        if self.down:
            self.down -= 1
            raise BrokerUnavailable("the log is out of reach")
        return await super().read_workflow(correlation_id, after=after, limit=limit)

    async def notify(self, address: str, hint: bytes) -> None:
        raise BrokerUnavailable("no hint arrives")


def test_an_answer_arrives_without_hints_and_over_a_time_in_which_the_log_is_out_of_reach(go, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)

    async def main():
        broker = Moody(log := Log())
        await broker.ensure_log(LogSpec(partitions=1))
        async with MessageBus.open(broker) as bus, working(Moody(log), echo_agent(), waiting_agent()):
            assert await bus.request("echo", 1, timeout=5) == 1
            handle = await bus.start("waiter", 1)
            broker.down = 3
            await handle.send("x", kind="go")
            assert await handle.result(5) == [1, "x"]
            assert broker.down == 0

    go(main())


def test_a_client_whose_time_is_up_while_the_log_is_out_of_reach_is_told_that(go, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)

    async def main():
        broker = Moody()
        await broker.ensure_log(LogSpec(partitions=1))
        async with MessageBus.open(broker) as bus:
            handle = await bus.start("echo", 1)
            broker.down = 10**6
            with pytest.raises(BrokerUnavailable, match="out of reach"):
                await handle.result(0.05)

    go(main())


# ---- following, talking, ending --------------------------------------------------------------------------------------
def test_events_go_on_from_a_position_and_end_with_the_workflow(go):
    async def main():
        async with hosted(waiting_agent()) as (bus, _):
            handle = await bus.start("waiter", 1, id="w")
            first: list[Any] = []
            async for event in handle.events():
                first.append(event)
                if event.message.message_type == "timer_set":
                    break
            await handle.send("x", kind="go")
            rest = [e async for e in (await bus.attach("w")).events(after=first[-1].position)]
            kinds = [e.message.message_type for e in [*first, *rest]]
            assert kinds == ["task_request", "timer_set", "go", "task_response"]
            positions = [e.position for e in [*first, *rest]]
            assert positions == sorted(set(positions))
            assert [e async for e in handle.events(after=positions[-1])] == []

    go(main())


def test_a_conversation_has_several_turns_and_each_request_its_own_answer(go):
    async def main():
        agent = Agent("counter")

        @agent.on_task
        async def add(ctx: Context, n: int) -> int:
            total = ctx.state.get("total", 0) + n
            ctx.update({"total": total})
            return total

        async with hosted(agent) as (bus, _):
            handle = await bus.start(add, 1)
            assert await handle.result(5) == 1
            assert [await handle.request(n) for n in (2, 3)] == [3, 6]
            both = await asyncio.gather(handle.request(10), handle.request(10))
            assert both == [16, 16]  # both were asked when the total was 6: state is that of the message's own place
            assert await handle.result(5) == 1  # the result is the answer to the first

    go(main())


def test_cancel_answers_whoever_waits_and_a_message_after_it_starts_anew(go, until):
    async def main():
        async with hosted(waiting_agent()) as (bus, _):
            handle = await bus.start("waiter", 1)
            async with asyncio.TaskGroup() as tasks:
                result = tasks.create_task(_error(handle.result(10)))
                await asyncio.sleep(0)
                await handle.cancel("no longer needed")
            assert "no longer needed" in str(result.result())
            assert (await handle.status()).status is Status.CANCELLED

            async def waits():
                return (await handle.status()).status is Status.WAITING

            async with asyncio.TaskGroup() as tasks:
                again = tasks.create_task(handle.request(2, timeout=10))
                await until(waits)
                await handle.send("y", kind="go")
            assert again.result() == [2, "y"]

    go(main())


async def _error(work: Any) -> BaseException:
    with pytest.raises(AgentError) as info:
        await work
    return info.value


def test_a_childs_answers_are_had_from_any_process(go, url):
    async def main():
        parent, ids = Agent("parent"), []

        @parent.on_task
        async def fan(ctx: Context, n: int) -> Any:
            return await ctx.gather(*(ctx.spawn("child", i) for i in range(n)))

        child = Agent("child")

        @child.on_task
        async def square(ctx: Context, n: int) -> int:
            ids.append(ctx.correlation_id)
            return n * n

        async with at(url) as broker, MessageBus.open(broker) as bus, working(broker, parent, child):
            assert await bus.request(fan, 4) == [0, 1, 4, 9]
            async with at(url) as other, MessageBus.open(other) as elsewhere:
                found = [await (await elsewhere.attach(i)).result(5) for i in ids]
            assert sorted(found) == [0, 1, 4, 9]

    go(main())




def test_who_asks_reads_the_answer_and_nothing_else_of_the_log(go):
    async def main():
        async with hosted(echo_agent()) as (bus, _):
            looks = looking(bus)
            assert await bus.request("echo", "x") == "x"
            assert looks == ["at"]
            handle = await bus.start("echo", "y")
            await bus.broker.notify(bus._hints.headers()[ADDRESS], b"garbage")
            await bus.broker.notify(bus._hints.headers()[ADDRESS], encode(Hint("another")))  # nobody waits for it
            async with bus.told("another") as told:
                await told.wait()
            assert await handle.result() == "y"  # its hint came before anybody waited for it, or comes
            assert looks == ["at", "workflow"]
            assert await handle.request("z") == "z"
            assert looks == ["at", "workflow", "at"]

    go(main())


def test_what_is_no_hint_is_none():
    assert decode(encode(Hint("w", "r", 7))) == Hint("w", "r", 7)
    no_position = (b'["w","r","7"]', b'["w","r",-1]', b'["w","r",%d]' % 2**63)
    for raw in (b"", b"w", b"\xff", b"{}", b"[]", b'["w",1,2]', *no_position):
        assert decode(raw) is None


@pytest.mark.parametrize("character", ["x", '"'])
def test_a_hint_of_the_longest_ids_can_be_sent(go, character):
    async def main():
        async with hosted(echo_agent()) as (bus, _):
            ask = AgentMessage.request(
                "echo", "x", id=f"{character * 127}1", correlation_id=character * 128, headers=bus._hints.headers()
            )
            async with bus.told(ask.correlation_id) as told:
                await bus.send_message(ask)
                await told.wait()
            assert await (await bus.attach(ask.correlation_id)).result(5) == "x"
            assert await bus.request("echo", "y") == "y"

    go(main())


def looking(bus):
    """What the client's broker is asked to read, from now on: "workflow" or "at"."""
    looks = []

    def counted(name, read):
        async def reading(*args, **more):
            looks.append(name)
            return await read(*args, **more)

        return reading

    bus.broker.read_workflow = counted("workflow", bus.broker.read_workflow)
    bus.broker.read_at = counted("at", bus.broker.read_at)
    return looks


@pytest.mark.parametrize("lie", ["another record", "no such record", "another workflow's answer"])
def test_a_hint_that_names_another_record_is_not_believed(go, lie):
    """The value is an answer that the log holds to this request, or the workflow is folded."""
    async def main():
        async with hosted(echo_agent()) as (bus, _):
            other = await bus.start("echo", "other", id="w")
            assert await other.result() == "other"
            handle = await bus.start("echo", "mine", id="v")  # in the same partition as w, whose log has four records
            assert handle.follower.partition == other.follower.partition
            position = {"another record": 1, "no such record": 1_000_000, "another workflow's answer": 3}[lie]
            looks = looking(bus)
            bus._hints.take(Hint("v", handle.request_id, position))
            assert await handle._wait(None, asked_now=True) == "mine"
            assert looks[0] == "at"
            assert "workflow" in looks

    go(main())


def test_an_answer_that_was_taken_back_by_a_redrive_is_not_believed_because_its_hint_comes_late(go, until):
    agent, broken = Agent("a"), [True]

    @agent.on_task(retry=RetryPolicy(attempts=1))
    async def work(what: str) -> str:
        if broken[0]:
            raise OSError("broken")
        return what

    async def main():
        async with hosted(agent) as (bus, worker):
            handle = await bus.start(work, "x")
            await until(lambda: worker.handled == 1)
            stored = (await bus.broker.read_workflow(handle.correlation_id)).records
            (old,) = [s.position for s in stored if codec.envelope(s.value).message_type == kinds.ERROR_REPORT]
            late = Hint(handle.correlation_id, handle.request_id, old)
            bus._hints.take(late)
            broken[0] = False
            await redrive(bus, handle.correlation_id, "a", handle.request_id)
            async with asyncio.TaskGroup() as tasks:
                waiting = tasks.create_task(handle.result(10))
                await asyncio.sleep(0)
                bus._hints.take(late)
            assert waiting.result() == "x"

    go(main())


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_worker_tells_of_an_answer_when_it_counts_and_only_then(go, until, cancelled):
    """What it tells is what its fold says: an answer that came behind a cancel is none."""
    async def main():
        async with hosted(echo_agent()) as (bus, worker):
            append = worker.broker.append

            async def late(items, fence=None):
                record = codec.decode(items[0].records[-1].value)
                if cancelled and record.message_type == kinds.TASK_RESPONSE:
                    worker.broker.append = append
                    await cancel(bus, record.correlation_id, actor="me", reason="too late")
                return await append(items, fence)

            worker.broker.append = late
            handle = await bus.start("echo", "x")
            async with bus.told(handle.correlation_id) as told:
                await until(lambda: worker.handled == 1)
                await until(lambda: not any(place.runs for place in worker.places.values()))
                async with bus.told("last") as last:  # hints arrive in their order
                    await bus.broker.notify(bus._hints.headers()[ADDRESS], encode(Hint("last")))
                    await last.wait()
                events = [j async for j in handle.events()]
                (answer,) = [j for j in events if j.message.message_type == kinds.TASK_RESPONSE]
                assert (answer.verdict is Verdict.ADMITTED) is not cancelled
                assert told.answers == ({} if cancelled else {handle.request_id: answer.position})

    go(main())


def test_what_is_sent_to_a_workflow_goes_to_the_agent_that_was_asked_before_anybody_has_looked(go):
    async def main():
        async with hosted(waiting_agent()) as (bus, _):
            handle = await bus.start("waiter", 1)
            await handle.send("now", kind="go")
            assert await handle.result(10) == [1, "now"]
            (sent,) = [j.message async for j in handle.events() if j.message.message_type == "go"]
            assert sent.receiver_id == "waiter"

    go(main())
