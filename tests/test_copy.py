"""`refold copy`: workflows move to another log byte for byte; path, verdicts, state and status are equal afterwards."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
from hosting import opened, working
from msgspec import Raw
from random_log import RandomLog
from test_differential import digest

from refold import Agent, Context, MessageBus
from refold.agents import copying
from refold.agents.copying import Copied, copy, ensure_target
from refold.brokers import open_broker
from refold.bus import codec, facts, kinds
from refold.bus.broker import Broker, Item, LogSpec, Outgoing, Presence
from refold.bus.errors import BrokerUnavailable, ConfigError, NoSuchWorkflow, TooLarge
from refold.bus.message import AgentMessage, Expected, new_id
from refold.bus.partition import partition_of
from refold.cli import exits
from refold.projections.checkpoint import fold_records
from refold.projections.history import History, read_workflow
from refold.projections.partition import PartitionFold
from refold.projections.status import Status, report

PARTITIONS = 3


async def fill(broker: Broker, seed: int, records: int = 150) -> list[str]:
    """Write random histories, one in each partition; return their workflows."""
    names: list[str] = []
    for partition in range(broker.meta.partitions):
        log = RandomLog(seed * 100 + partition, partition=partition, partitions=broker.meta.partitions)
        log.grow(records)
        await broker.append_raw(partition, [(s.key, s.value) for s in log.records])
        names += [n for n in log.names if log.folds[n].last]
    return names


async def move(source: Broker, target: Broker, ids: Sequence[str] = ()) -> Copied:
    await ensure_target(source, target)
    return await copy(source, target, ids)


async def values(broker: Broker, id: str) -> list[bytes]:
    page = await broker.read_workflow(id, limit=100_000)
    return [s.value for s in page.records if s.key == id]


async def size(broker: Broker) -> int:
    return sum([len((await broker.read(p, limit=100_000)).records) for p in range(broker.meta.partitions)])


async def same(source: Broker, target: Broker, ids: Sequence[str]) -> None:
    assert ids
    for id in ids:
        here, there = await read_workflow(source, id), await read_workflow(target, id)
        assert [j.value for j in there.records] == [j.value for j in here.records]
        assert told(there, here) == told(here, here), id


def told(history: History, source: History) -> dict[str, Any]:
    """What must be equal: all, but for what nobody had claimed at the source. Where partitions become one, an agent
    that was hosted in one of them was hosted there, and may have claimed it."""
    found = digest(history)
    if report(source.workflow).unclaimed:
        del found["report"], found["duties"]
    return found


class Logs:
    """Logs by name, closed at the end: `memory`, or the name of a file."""

    def __init__(self, folder: Any) -> None:
        self.folder, self.stack = folder, AsyncExitStack()

    async def log(self, name: str, partitions: int = 0) -> Broker:
        url = "memory://" if name == "memory" else f"sqlite:///{self.folder}/{name}.db"
        broker = await self.stack.enter_async_context(open_broker(url))
        if partitions:
            await broker.ensure_log(LogSpec(partitions=partitions))
        return broker

    async def __aenter__(self) -> Logs:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stack.aclose()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("a", "b"), [("memory", "sqlite"), ("sqlite", "memory"), ("sqlite", "other")])
def test_a_copy_has_the_same_bytes_path_verdicts_state_and_status(a, b, seed, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log(a, PARTITIONS), await logs.log(b)
            names = await fill(source, seed)
            found = await move(source, target)
            assert target.meta.partitions == PARTITIONS
            assert found.refused == () and found.there == 0
            await same(source, target, names)

    go(main())


@pytest.mark.parametrize("kinds", ["sqlite-nats", "nats-sqlite", "sqlite-kafka", "kafka-nats"])
def test_a_copy_between_real_brokers_has_the_same_bytes_path_verdicts_state_and_status(kinds, tmp_path, request):
    a, b = kinds.split("-")
    urls = {"sqlite": f"sqlite:///{tmp_path}/log.db"}
    for kind in {a, b} - {"sqlite"}:
        urls[kind] = f"{kind}://{request.getfixturevalue(f'{kind}_address')}/copy{new_id().replace('-', '')}"

    async def main():
        async with open_broker(urls[a]) as source, open_broker(urls[b]) as target:
            await source.ensure_log(LogSpec(partitions=2))
            await target.ensure_log(LogSpec(partitions=3))
            names = await fill(source, 7, 80)
            first = await move(source, target)
            await same(source, target, names)
            assert (await move(source, target)).there == first.records
            await same(source, target, names)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_another_number_of_partitions_changes_nothing(partitions, seed, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", PARTITIONS), await logs.log("memory", partitions)
            back = await logs.log("memory", PARTITIONS)
            names = await fill(source, seed)
            await move(source, target)
            await same(source, target, names)
            await move(target, back)
            await same(source, back, names)

    go(main())


@pytest.mark.parametrize("partitions", [1, PARTITIONS, 7])
def test_a_second_run_finds_nothing_to_do_and_a_later_one_what_is_new(partitions, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", PARTITIONS), await logs.log("memory", partitions)
            names = await fill(source, 1)
            first = await move(source, target)
            before = await size(target)
            again = await move(source, target)
            assert await size(target) == before
            assert (again.records, again.there) == (0, first.records)
            more = AgentMessage.request("a", 1, correlation_id=names[0])
            partition = partition_of(names[0], PARTITIONS)
            await source.append([Item(partition, names[0], (Outgoing(more.id, codec.encode(more)),))])
            assert (await move(source, target)).records == 1
            await same(source, target, names)

    go(main())


class Interrupted:
    """A broker whose n-th `append_raw` fails: before it is done, or after it."""

    def __init__(self, broker: Broker, at: int, *, done: bool) -> None:
        self.broker, self.at, self.done = broker, at, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.broker, name)

    async def append_raw(self, partition: int, records: Any) -> tuple[int, ...]:
        self.at -= 1
        if self.at == 0 and not self.done:
            raise BrokerUnavailable("cut off before")
        positions = await self.broker.append_raw(partition, records)
        if self.at == 0:
            raise BrokerUnavailable("cut off after")
        return positions


async def listeners(broker: Broker) -> list[dict[str, Any]]:
    """Who listens in each partition."""
    found = []
    for partition in range(broker.meta.partitions):
        fold = PartitionFold(partition, broker.meta.partitions)
        async for _ in fold_records(broker, fold, (await broker.read(partition, limit=100_000)).records):
            pass
        found.append(fold.listeners)
    return found


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("partitions", [2, PARTITIONS])
def test_an_interrupted_copy_goes_on_where_it_stopped_and_doubles_nothing(
    partitions, named, tmp_path, go, monkeypatch
):
    monkeypatch.setattr(copying, "PAGE", 20)

    async def main():
        async with Logs(tmp_path) as logs:
            source = await logs.log("memory", PARTITIONS)
            names = await fill(source, 4, 60 if named else 150)
            ids, interruptions = names if named else [], 0
            for done in (False, True):
                for at in range(1, 1000):
                    target = await logs.log("memory", partitions)
                    try:
                        await move(source, Interrupted(target, at, done=done), ids)
                        break
                    except BrokerUnavailable:
                        interruptions += 1
                    await move(source, target, ids)
                    await same(source, target, names)
                    assert await listeners(target) == [{}] * partitions
            assert interruptions > 2 * PARTITIONS

    go(main())


OWNER = facts.Owner(group="theirs", epoch=1, agents={"a": ("note",), "z": ("note", "other")}, member="m", pid=7)


async def own(broker: Broker, kind: str, fact: facts.Fact) -> None:
    message = AgentMessage(sender_id="m", receiver_id="*", message_type=kind, correlation_id="", fact=fact)
    for partition in range(broker.meta.partitions):
        await broker.append_raw(partition, [(None, codec.encode(message))])


@pytest.mark.parametrize("partitions", [2, PARTITIONS])
def test_agents_of_the_target_are_obliged_by_nothing_that_is_copied_and_listen_on_afterwards(partitions, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", PARTITIONS), await logs.log("memory", partitions)
            names = await fill(source, 5)
            await own(target, kinds.OWNER, OWNER)
            note = AgentMessage(sender_id="x", receiver_id="*", message_type="note", correlation_id="theirs")
            there = partition_of("theirs", partitions)
            await target.append_raw(there, [("theirs", codec.encode(note))])
            before = digest(await read_workflow(target, "theirs"))
            await move(source, target)
            await same(source, target, names)
            assert digest(await read_workflow(target, "theirs")) == before
            assert await listeners(target) == [OWNER.agents] * partitions

    go(main())


def note(to: str, id: str) -> AgentMessage:
    return AgentMessage(sender_id="x", receiver_id=to, message_type="note", correlation_id="w", id=id, timestamp=1.0)


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_message_to_all_and_a_correction_oblige_whom_they_obliged_in_the_same_order(partitions, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", 1), await logs.log("memory", partitions)
            await own(target, kinds.OWNER, facts.Owner(group="g", epoch=1, agents=dict.fromkeys("abc", ("note",))))
            await own(source, kinds.OWNER, facts.Owner(group="g", epoch=1, agents=dict.fromkeys("cab", ("note",))))
            await source.append_raw(0, [("w", codec.encode(note("*", "m1")))])
            await own(source, kinds.RETIRED, facts.Retired(agent="a"))
            fix = Raw(codec.encode(note("*", "ignored")))
            back = AgentMessage(
                sender_id="x", receiver_id="*", message_type=kinds.ROLLED_BACK, correlation_id="w", id="back",
                expected=Expected(generation=0, inputs=1), timestamp=2.0,
                fact=facts.RolledBack(to_version=0, op_id="op", with_inputs=(fix,)),
            )  # fmt: skip
            for raw, obliged in ((None, ["c", "a", "b"]), (codec.encode(back), ["c", "b"])):
                if raw is not None:
                    await source.append_raw(0, [("w", raw)])
                await move(source, target)
                for log in (source, target):
                    open_ = (await read_workflow(log, "w")).workflow.open_handlings()
                    assert [h.agent for h in open_] == obliged
            assert [list(found) for found in await listeners(target)] == [["a", "b", "c"]] * partitions

    go(main())


def test_only_the_workflows_that_are_named_are_copied(tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", PARTITIONS), await logs.log("sqlite", 2)
            names = await fill(source, 6)
            chosen = names[::2]
            found = await move(source, target, chosen)
            assert found.workflows == len(chosen)
            await same(source, target, chosen)
            assert [n for n in names if await values(target, n)] == chosen
            size_before = await size(target)
            assert (await move(source, target, chosen)).records == 0
            assert await size(target) == size_before
            await move(source, target)
            await same(source, target, names)
            with pytest.raises(NoSuchWorkflow, match="nobody"):
                await move(source, target, ["nobody"])

    go(main())


async def put(broker: Broker, id: str, *payloads: Any) -> None:
    messages = [AgentMessage.request("a", p, correlation_id=id, id=f"m{p}", timestamp=1.0) for p in payloads]
    await broker.append_raw(partition_of(id, broker.meta.partitions), [(id, codec.encode(m)) for m in messages])


@pytest.mark.parametrize("ids", [(), ("good", "other", "on", "longer")])
def test_a_target_that_holds_something_else_keeps_it_and_the_others_are_copied(ids, tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", 2), await logs.log("memory", 3)
            for id in ("good", "other", "on", "longer"):
                await put(source, id, 1, 2)
            await put(target, "other", 1, 3)  # another second record
            await put(target, "on", 1, 2, 3)  # went on there
            await put(target, "longer", 1, 3, 4)  # went on there, from something else
            found = await move(source, target, ids)
            assert sorted(found.refused) == ["longer", "other"]
            assert (found.workflows, found.records, found.there) == (4, 2, 2)
            assert await values(target, "good") == await values(source, "good")
            assert [len(await values(target, id)) for id in ("other", "on", "longer")] == [2, 3, 3]

    go(main())


def test_bytes_that_are_no_records_move_with_their_workflow_and_strays_are_left_and_counted(tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", 2), await logs.log("memory", 3)
            await put(source, "w", 1)
            right, wrong = partition_of("w", 2), 1 - partition_of("w", 2)
            stray = codec.encode(AgentMessage.request("a", 9, correlation_id="w"))
            near = next(f"v{n}" for n in range(99) if partition_of(f"v{n}", 2) == right)
            await source.append_raw(right, [("w", b"\xff{"), ("w", b""), (None, b"junk"), (None, stray), (near, stray)])
            await source.append_raw(wrong, [("w", stray), ("w", b"junk")])
            found = await move(source, target)
            assert (found.workflows, found.records, found.misplaced) == (1, 3, 5)
            assert await values(target, "w") == (await values(source, "w"))
            assert await size(target) == 3

    go(main())


def test_what_cannot_be_copied_is_refused_before_anything_is_written(tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, small = await logs.log("memory", 1), await logs.log("memory")
            await small.ensure_log(LogSpec(partitions=1, max_record=2000, max_append=4000))
            await put(source, "w", 1)
            with pytest.raises(ConfigError, match="the same log"):
                await move(source, source)
            await small.announce(Presence(member="m1", group="team", host="elsewhere", pid=1))
            with pytest.raises(ConfigError, match=r"at the target are workers: m1 \(group team"):
                await move(source, small)
            await small.withdraw("m1")
            await small.announce(Presence(member="c", group=copying.COPIER, host="elsewhere", pid=1))
            with pytest.raises(ConfigError, match="another copy"):
                await move(source, small)
            await small.withdraw("c")
            await put(source, "large", "x" * 3000)
            with pytest.raises(TooLarge, match="'large'"):
                await move(source, small, ["large"])
            assert await size(small) == 0
            assert await small.members() == []

    go(main())


def test_progress_grows_up_to_all_that_is_read(tmp_path, go):
    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", 2), await logs.log("sqlite", 3)
            await fill(source, 8)
            told: list[tuple[int, int]] = []
            await ensure_target(source, target)
            await copy(source, target, on_progress=lambda done, of: told.append((done, of)))
            assert told == sorted(told) and told[-1] == (300, 300)

    go(main())


def test_a_copier_that_died_on_this_host_stops_nobody(tmp_path, go):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()

    async def main():
        async with Logs(tmp_path) as logs:
            source, target = await logs.log("memory", 1), await logs.log("memory", 1)
            await put(source, "w", 1)
            host = copying.socket.gethostname()
            await target.announce(Presence(member="c", group=copying.COPIER, host=host, pid=ended.pid))
            assert (await move(source, target)).records == 1

    go(main())


async def every(broker: Broker, ids: Sequence[str], status: Status) -> bool:
    return all([report((await read_workflow(broker, id)).workflow).status is status for id in ids])


def test_what_was_open_goes_on_in_the_other_log_over_its_recorded_steps(go, until):
    clerk, calls = Agent("clerk"), list[str]()

    @clerk.on_task
    async def work(ctx: Context, word: str) -> str:
        length = await ctx.effect("measure", lambda: calls.append(word) or len(word))
        answer = await ctx.receive("go")
        ctx.update({"length": length})
        return f"{word} {length} {answer}"

    async def main():
        source = await opened(2)
        async with MessageBus.open(source) as bus, working(source, clerk):
            ids = [(await bus.start("clerk", f"word{n}", id=f"w{n}")).correlation_id for n in range(4)]
            await until(lambda: len(calls) == 4)

            await until(partial(every, source, ids, Status.WAITING))
        target = await opened(3)
        await move(source, target)
        await same(source, target, ids)
        async with MessageBus.open(target) as bus, working(target, clerk):
            handles = [await bus.attach(id) for id in ids]
            for handle in handles:
                await handle.send("now", kind="go", to="clerk")
            await until(partial(every, target, ids, Status.COMPLETED))
            assert [await handle.result() for handle in handles] == [f"word{n} 5 now" for n in range(4)]
        assert len(calls) == 4

    go(main())


def refold(folder: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refold.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_command_copies_tells_and_is_refused_by_name(tmp_path, go):
    async def main(id: str, *payloads: int, name: str = "a"):
        async with Logs(tmp_path) as logs:
            log = await logs.log(name)
            await log.ensure_log(LogSpec(partitions=2))
            await put(log, id, *payloads)

    go(main("w", 1, 2))
    first = refold(tmp_path, "copy", "sqlite:///a.db", "sqlite:///b.db", "--json")
    assert json.loads(first.stdout) == {"workflows": 1, "records": 2, "there": 0, "misplaced": 0, "refused": []}
    go(main("w", 3))
    go(main("v", 1))
    again = refold(tmp_path, "copy", "sqlite:///a.db", "sqlite:///b.db", "w")
    assert again.stdout == "copied 1 records of 1 workflows; 2 were there already\n"
    go(main("v", 2, name="b"))
    refused = refold(tmp_path, "copy", "sqlite:///a.db", "sqlite:///b.db")
    assert refused.returncode == exits.REFUSED
    assert "the target holds something else of 1 workflows, and keeps it: v" in refused.stderr
    assert refold(tmp_path, "copy", "sqlite:///none.db", "sqlite:///b.db").returncode == exits.NO_LOG
    assert refold(tmp_path, "copy", "sqlite:///a.db", "sqlite:///b.db", "nobody").returncode == exits.NOT_FOUND
