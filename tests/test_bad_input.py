"""Bad input: a typed error each, no crash loop, others undisturbed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import random
from collections import Counter

import msgspec
import pytest
from garbage import Garbage
from long_talk import cut_small
from random_log import RandomLog

from refold import Agent, AgentError, AgentMessage, Context, MessageBus, RetryPolicy, Worker
from refold.agents import client, worker as worker_module
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import Checkpoint, LogSpec, Stored
from refold.bus.errors import BrokerUnavailable, RefoldError, UndecodableRecord
from refold.bus.facts import RolledBack
from refold.bus.message import Expected, Work
from refold.projections.checkpoint import changes, restore
from refold.projections.costs import costs
from refold.projections.dead_letters import dead_letters
from refold.projections.frozen import freeze, thaw
from refold.projections.history import read_workflow
from refold.projections.overview import overview
from refold.projections.partition import PartitionFold, is_own, listen
from refold.projections.segments import KEY_SIZE
from refold.projections.status import next_due, report
from refold.projections.timeline import attempts, timeline
from refold.projections.verdict import Verdict
from refold.projections.workflow import Workflow

MANY = 8 if os.environ.get("REFOLD_TESTS") == "thorough" else 1


# ---- the fold --------------------------------------------------------------------------------------------------------
class OddLog:
    """A log that is half garbage, written record by record, and folded by an owner that freezes, parks and forgets."""

    def __init__(self, seed: int) -> None:
        self.log = RandomLog(seed, workflows=3)
        self.garbage = Garbage(seed, self.log.names)
        self.fold = PartitionFold(0, self.log.partitions)
        self.records: list[Stored] = []
        self.verdicts: list[tuple[str, Verdict]] = []
        self.odd = 0
        self.taken = 0

    def find(self, name: str) -> Workflow | None:
        return self.fold.find(name) or self.fold.recent.get(name)

    def append(self, key: str | None, raw: bytes) -> Stored:
        self.garbage.sample(raw)
        self.records.append(Stored(len(self.records) + 1, key, raw, 0.0))
        return self.records[-1]

    def write(self) -> Stored:
        if self.taken > 8 and self.garbage.random.random() < 0.65:
            self.odd += 1
            return self.append(*self.garbage.record(self.find))
        if self.taken == len(self.log.records):
            self.log.grow(8)
        sensible = self.log.records[self.taken]
        self.taken += 1
        return self.append(sensible.key, sensible.value)

    def grow(self, n: int) -> None:
        for _ in range(n):
            self.take(self.write())

    def take(self, stored: Stored) -> None:
        fold, chance = self.fold, self.garbage.random.random()
        r = fold.open_envelope(stored)
        if r is None:
            return
        for name in fold.missing(r):
            fold.restore(name, [s for s in self.records if s.key in (None, name)])
        folded = fold.fold(stored, r)
        w = folded.workflow
        if w is None:
            return
        self.verdicts.append((r.id, folded.verdict))
        report(w)
        next_due(w)
        assert thaw(freeze(w, idle=False)).version == w.version
        if not fold.settle(w) and chance < 0.2:
            fold.park(w)
        if chance < 0.05:
            changes(fold, lambda w: False)


def verdicts_from_zero(log: OddLog) -> list[tuple[str, Verdict]]:
    """Another reader: every workflow from its start, nothing frozen or forgotten."""
    folds, listeners, out = dict[str, Workflow](), dict[str, tuple[str, ...]](), list[tuple[str, Verdict]]()
    heard: dict[str, int] = {}
    for stored in log.records:
        try:
            r = codec.envelope(stored.value)
        except UndecodableRecord:
            continue
        if stored.key is None and is_own(r):
            for agent, wanted in list(listen(listeners, heard, r)):
                for w in folds.values():
                    w.view.claim(agent, wanted)
        elif stored.key == r.correlation_id and not log.fold.is_stray(r):
            w = folds.setdefault(r.correlation_id, Workflow(r.correlation_id))
            out.append((r.id, w.admit(r, stored.position, dict(listeners))))
    return out


def test_garbage_records_get_a_verdict_or_are_counted_and_all_readers_agree():
    odd, met, undecodable = 0, Counter[str](), 0
    for seed in range(130 * MANY):
        log = OddLog(seed)
        log.grow(130)
        assert log.verdicts == verdicts_from_zero(log), seed
        odd, undecodable = odd + log.odd, undecodable + log.fold.undecodable
        met.update(str(verdict) for id, verdict in log.verdicts if id.startswith("garbage"))
    assert odd > 10_000 * MANY
    assert undecodable > 300 * MANY
    missed = {str(v) for v in Verdict} - set(met) - {"misplaced"}
    assert not missed, met


# ---- the worker ------------------------------------------------------------------------------------------------------
@contextlib.asynccontextmanager
async def working(broker, agents, **settings):
    """A worker; whatever ends it is raised at the end."""
    worker = Worker(broker, agents, group="w", drain=0.5, **settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()


@pytest.fixture
def broker():
    return MemoryBroker()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.05)


def busy_agents():
    """The agents that the garbage speaks of."""
    made = []
    for name in "abc":
        agent = Agent(name, retry=RetryPolicy(attempts=2, initial=0.001, jitter=0))

        @agent.on_task
        async def task(ctx: Context, x):
            return await ctx.effect("one", lambda: 1)

        @agent.on("note")
        async def note(ctx: Context, x):
            ctx.update({"seen": 1})
            if ctx.agent == "a":
                await ctx.request("b", 1)

        made.append(agent)
    return made


def innocent_agents():
    innocent, helper = Agent("innocent"), Agent("helper")
    helper.on_task(lambda n: n)

    @innocent.on_task
    async def work(ctx: Context, n: int) -> int:
        return await ctx.effect("n", lambda: n) + await ctx.spawn(helper, n) + await ctx.receive("more")

    return [innocent, helper]


async def read_everything(bus, names):
    """What the command line reads: no reader may stumble over what the log holds."""
    broker = bus.broker
    await overview(broker)
    await dead_letters(broker)
    await costs(broker)
    for name in names:
        history = await read_workflow(broker, name)
        timeline(history)
        attempts(history)
        with contextlib.suppress(RefoldError):
            history.state()
        async for event in (await bus.attach(name)).events():
            if event.position >= history.records[-1].position:
                break


@pytest.mark.parametrize("seed", range(10 * MANY))
def test_a_worker_among_garbage_goes_on_and_the_innocent_complete(go, broker, seed, caplog, impatient):
    caplog.set_level(logging.ERROR, "refold")

    async def main():
        await broker.ensure_log(LogSpec(partitions=2))
        log = RandomLog(seed, workflows=3)
        garbage = Garbage(seed, log.names)
        await broker.append_raw(0, [(s.key, s.value) for s in log.grow(15)])
        for stored in log.records:
            garbage.sample(stored.value)
        async with (
            working(broker, [*busy_agents(), *innocent_agents()]) as worker,
            MessageBus.open(broker) as bus,
        ):
            handles = [await bus.start("innocent", n, id=f"in-{seed}-{n}") for n in range(4)]
            for n in range(100):
                place = worker.places.get(0)
                await broker.append_raw(n % 2, [garbage.record(place.fold.find if place else lambda name: None)])
            for handle in handles:
                await handle.send(100, kind="more")
            assert [await h.result(20) for h in handles] == [100 + 2 * n for n in range(4)]
            await read_everything(bus, log.names)

    go(main())
    bad = [r for r in caplog.records if r.exc_info or "cannot be delivered" not in r.getMessage()]
    assert not bad, bad[0].getMessage()


UNREADABLE = {"headers": 5, "schema": 7, "payload": "\ud800"}
"""Fields that the fold does not open, as no reader can decode them."""


def spoilt(message, name):
    """The bytes of a message with a field that cannot be decoded."""
    tree = json.loads(codec.encode(message))
    if name == "payload":
        tree["payload"] = 0
        return json.dumps(tree).replace('"payload": 0', '"payload": 1e400').encode()
    return json.dumps({**tree, name: UNREADABLE[name]}).encode()


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_message_that_cannot_be_decoded_is_answered_with_an_error_and_tried_once(go, broker, name, impatient):
    async def main():
        await broker.ensure_log(LogSpec(partitions=1))
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        await broker.append_raw(0, [("w", spoilt(AgentMessage.request("echo", 1, correlation_id="w"), name))])
        async with working(broker, [agent]), MessageBus.open(broker) as bus:
            with pytest.raises(AgentError, match="not a record of refold"):
                await (await bus.attach("w")).result(10)
            assert await bus.request("echo", 2) == 2
            found = [j.envelope.message_type for j in (await read_workflow(broker, "w")).records]
            assert found == ["task_request", "dead_lettered", "error_report"]
            (letter,) = await dead_letters(broker)
            assert "not a record of refold" in letter.error

    go(main())


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_answer_that_cannot_be_decoded_reaches_the_parent_as_an_error(go, broker, name, until, impatient):
    """Somebody answers a child's request in its agent's place, with bytes that nobody can decode."""

    async def main():
        await broker.ensure_log(LogSpec(partitions=1))
        parent, child = Agent("parent"), Agent("child")

        @parent.on_task
        async def ask(ctx: Context, n: int) -> str:
            try:
                return await ctx.spawn("child", n)
            except AgentError as error:
                return f"caught {error}"

        @child.on_task
        async def wait(ctx: Context, n: int) -> str:
            return await ctx.receive("never")

        async with working(broker, [parent, child]), MessageBus.open(broker) as bus:
            handle = await bus.start("parent", 1, id="w")
            started = []

            async def child_waits():
                rows = [r for r in (await overview(broker)).rows if r.workflow != "w" and r.agents == ("child",)]
                started[:] = rows
                return bool(rows)

            await until(child_waits)
            history = await read_workflow(broker, started[0].workflow)
            asked = codec.decode(history.records[0].value)
            answer = AgentMessage(
                sender_id="person", receiver_id="parent", message_type=kinds.TASK_RESPONSE, payload="yes",
                correlation_id=asked.correlation_id, in_reply_to=asked.id,
            )  # fmt: skip
            await broker.append_raw(0, [(asked.correlation_id, spoilt(answer, name))])
            assert "the answer cannot be decoded" in await handle.result(10)

    go(main())


def test_what_cannot_be_delivered_costs_only_itself(go, broker, caplog, impatient):
    """Records with `to` in an agent's name, whose copy nobody can make: no bytes to decode, no room in the log."""

    async def main():
        await broker.ensure_log(LogSpec(partitions=1, max_record=2000, max_append=4000))
        for name in (*UNREADABLE, "w" * 120):
            asked = AgentMessage(
                sender_id="client", receiver_id="helper", message_type="task_request", correlation_id=name, id="m"
            )
            note = AgentMessage(
                sender_id="helper", receiver_id="x", message_type="note", to="elsewhere", correlation_id=name,
                generation=0, work=Work(message="m", step="1"), payload="",
            )  # fmt: skip
            full = codec.with_changes(note, payload="x" * (2000 - len(codec.encode(note)) - len(',"payload":""')))
            raw = spoilt(note, name) if name in UNREADABLE else codec.encode(full)
            await broker.append_raw(0, [(name, codec.encode(asked)), (name, raw)])
        async with working(broker, innocent_agents()), MessageBus.open(broker) as bus:
            handle = await bus.start("innocent", 1)
            await handle.send(100, kind="more")
            assert await handle.result(10) == 102

    go(main())
    told = [r.getMessage() for r in caplog.records if "cannot be delivered to elsewhere" in r.getMessage()]
    assert len(told) == 4


def test_marks_of_many_deliveries_are_appended_in_what_the_log_takes(go, broker, monkeypatch, caplog, impatient):
    real = worker_module.deliver

    async def hesitant(worker, place, correlations):
        """As after a takeover: all that is owed is owed at once."""
        if list(correlations) == ["w"] and len(place.fold.find("w").duties()) in range(1, 60):
            raise BrokerUnavailable("not yet")
        await real(worker, place, correlations)

    monkeypatch.setattr(worker_module, "deliver", hesitant)
    caplog.set_level(logging.ERROR, "refold")

    async def main():
        await broker.ensure_log(LogSpec(partitions=1, max_record=1500, max_append=2000))
        parent, helper = Agent("parent"), Agent("helper")
        helper.on_task(lambda n: n)

        @parent.on_task
        async def fan(ctx: Context, n: int) -> int:
            return sum(await ctx.gather(*(ctx.spawn("helper", i) for i in range(n))))

        async with working(broker, [parent, helper]), MessageBus.open(broker) as bus:
            assert await bus.request("parent", 60, id="w") == sum(range(60))
            found = Counter(j.envelope.message_type for j in (await read_workflow(broker, "w")).records)
            assert found["delivered"] == 60

    go(main())
    assert not caplog.records


# ---- checkpoints -----------------------------------------------------------------------------------------------------
def damaged(checkpoint: Checkpoint, chance: random.Random) -> Checkpoint:
    """A checkpoint as bad memory, a bad disk or a bad program leaves it."""
    entries, keys = dict(checkpoint.entries), sorted(checkpoint.entries)
    key, other = chance.choice(keys), chance.choice(keys)
    raw = bytearray(entries[key])
    match chance.randrange(9):
        case 0:
            raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            entries[key] = bytes(raw)
        case 1:
            entries[key] = bytes(raw[: chance.randrange(len(raw))])
        case 2:
            entries[key] = chance.randbytes(chance.randrange(300))
        case 3:
            del entries[key]
        case 4:
            entries[chance.randbytes(chance.choice([16, KEY_SIZE]))] = bytes(raw)
        case 5 if entries[key] != entries[other]:
            entries[key], entries[other] = entries[other], entries[key]
        case 6:
            return checkpoint._replace(position=checkpoint.position + chance.choice([-1, 1, 1000]))
        case 7:
            return checkpoint._replace(anchor=checkpoint.anchor[:-1] + chance.choice([b"\xff\xfe", b"x", b"x" * 36]))
        case _:
            entries[key] = msgspec.msgpack.encode([1, {"nonsense": [None, chance.random()]}])
    return checkpoint._replace(entries=entries)


@pytest.mark.parametrize("segmented", [False, True], ids=["whole", "in segments"])
def test_a_damaged_checkpoint_is_never_believed(segmented, monkeypatch):
    if segmented:
        cut_small(monkeypatch)
    refused = segments = 0
    for seed in range(40 * MANY):
        log, chance = OddLog(seed), random.Random(seed)
        log.grow(60)
        changed, _ = changes(log.fold, lambda w: len(w.correlation) % 2 == 0, whole=True)
        good = Checkpoint(log.fold.position, log.fold.last_id.encode(), changed)
        assert restore(PartitionFold(0, log.log.partitions), good)
        segments += sum(len(key) == KEY_SIZE for key in good.entries)
        for _ in range(50):
            fold = PartitionFold(0, log.log.partitions)
            assert not restore(fold, damaged(good, chance))
            assert (fold.position, fold.entries, fold.listeners) == (0, {}, {})
            refused += 1
    assert refused == 2000 * MANY
    assert (segments > 200 * MANY) == segmented


@pytest.mark.parametrize("seed", range(4))
def test_a_worker_and_readers_go_on_without_a_checkpoint_that_is_damaged(go, broker, seed, until, impatient):
    async def main():
        await broker.ensure_log(LogSpec(partitions=1))
        async with MessageBus.open(broker) as bus:
            async with working(broker, innocent_agents()):
                handles = [await bus.start("innocent", n, id=f"in-{n}") for n in range(6)]

                async def all_wait_for_a_message():
                    return all([[w.what for w in (await h.status()).waits] == ["message"] for h in handles])

                await until(all_wait_for_a_message)
            good = broker.log.checkpoints["w", 0]
            assert len(good.entries) > 6
            broker.log.checkpoints["w", 0] = damaged(good, random.Random(seed))
            assert len((await overview(broker)).rows) == 6
            async with working(broker, innocent_agents()):
                for handle in handles:
                    await handle.send(100, kind="more")
                assert [await h.result(10) for h in handles] == [100 + 2 * n for n in range(6)]

    go(main())


def test_an_answer_that_a_rollback_brought_with_it_is_the_result(go, broker, until, impatient):
    async def main():
        await broker.ensure_log(LogSpec(partitions=1))
        async with working(broker, innocent_agents()), MessageBus.open(broker) as bus:
            handle = await bus.start("innocent", 1, id="w")

            async def waits_for_a_message():
                return [w.what for w in (await handle.status()).waits] == ["message"]

            await until(waits_for_a_message)
            answer = AgentMessage(
                sender_id="operator", receiver_id="client", message_type=kinds.TASK_RESPONSE, payload="by hand",
                correlation_id="w", in_reply_to=handle.request_id,
            )  # fmt: skip
            view = handle.follower.workflow.view
            fact = RolledBack(to_version=1, op_id="o", with_inputs=(msgspec.Raw(codec.encode(answer)),))
            rollback = AgentMessage(
                sender_id="operator", receiver_id="*", message_type=kinds.ROLLED_BACK, correlation_id="w", fact=fact,
                expected=Expected(generation=0, inputs=view.inputs),
            )  # fmt: skip
            await bus.send_control(rollback)
            assert await handle.result(10) == "by hand"

    go(main())
