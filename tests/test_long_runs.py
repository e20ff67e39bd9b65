"""Long runs: memory that does not grow, workflows of very many records, work that waits for long. The sizes that the
guarantees name are those of REFOLD_TESTS=thorough; the default ones are smaller."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import types
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hosting import QUICK, working

from refold import Agent, AgentMessage, Context, MessageBus, Worker
from refold.agents import place as place_module, worker as worker_module
from refold.agents.records import Records
from refold.brokers.memory import MemoryBroker
from refold.brokers.sqlite import SqliteBroker
from refold.bus import codec
from refold.bus.broker import Broker, Duplicate, Item, LogSpec, Outgoing, Stored
from refold.bus.partition import partition_of
from refold.projections import partition as partition_module, stubs as stubs_module
from refold.projections.history import read_workflow

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
TESTS = Path(__file__).parent
Until = Callable[..., Coroutine[Any, Any, None]]
PATIENCE = 240.0 if THOROUGH else 60.0


def size(small: int, full: int) -> int:
    """Return how long this run is."""
    return full if THOROUGH else small


# ---- memory ----------------------------------------------------------------------------------------------------------
teller = Agent("teller", retry=QUICK)
helper = Agent("helper", retry=QUICK)
sleeper = Agent("sleeper", retry=QUICK)
SLEEPERS = 8
"""Workflows that are due before the deadlines of the others, which never come."""
raised: set[int] = set()


@helper.on_task
async def help_out(ctx: Context, n: int) -> int:
    return n + 1


@teller.on("note")
async def note(ctx: Context, n: int) -> None:
    ctx.update({"noted": n})


@teller.on_task
async def tell(ctx: Context, n: int) -> int:
    """Use each kind of step that the worker keeps something for: deadlines that never come, a retry, a child."""
    if n % 3 == 0 and n not in raised:
        raised.add(n)
        raise RuntimeError("once")
    ctx.send(helper, n, kind="remark")  # nobody listens to it
    here = await ctx.request(helper, n, timeout=86_400.0)
    there = await ctx.spawn(helper, n, timeout=86_400.0)
    await ctx.effect("look", abs, n)
    await ctx.sleep(0.001)
    return here + there


@sleeper.on_task
async def rest(ctx: Context, n: int) -> None:
    await ctx.sleep(3600)


SKIPPED = (
    type, types.ModuleType, types.FunctionType, types.CodeType, types.FrameType, asyncio.AbstractEventLoop,
    weakref.ref,  # a connection of sqlite3 has up to 200 of cursors that are gone
)  # fmt: skip


def objects_of(worker: Worker) -> Counter[str]:
    """Count what a worker keeps, by type: everything that can be reached from it."""
    gc.collect()
    seen: dict[int, object] = {id(worker): worker}
    todo: list[object] = [worker]
    while todo:
        for found in gc.get_referents(todo.pop()):
            if id(found) not in seen and not isinstance(found, SKIPPED):
                seen[id(found)] = found
                todo.append(found)
    return Counter(type(o).__name__ for o in seen.values())


@pytest.fixture
def _little_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bounded by a large number is bounded by a small one: it is full long before half of the run."""
    for module, name, value in (
        (stubs_module, "STUBS", 20), (stubs_module, "CHUNK", 8), (partition_module, "RECENT", 4),
        (worker_module, "LIVE_WORKFLOWS", 20), (place_module, "STALE", 4), (worker_module, "CHECKPOINT_SECONDS", 0.05),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


async def opened(path: Path, partitions: int = 4) -> SqliteBroker:
    broker = SqliteBroker(str(path / "log.db"))
    await broker.ensure_log(LogSpec(partitions=partitions))
    return broker


async def run_some(broker: Broker, agent: str, numbers: range, until: Until) -> list[str]:
    """Start workflows and see them end; return their names."""
    names = [f"{agent}-{n}" for n in numbers]
    async with MessageBus.open(broker) as bus, asyncio.timeout(PATIENCE):
        for start in range(0, len(names), 50):
            some = zip(numbers[start : start + 50], names[start : start + 50], strict=True)
            handles = await asyncio.gather(*(bus.start(agent, n, id=name) for n, name in some))
            await asyncio.gather(*(h.result() for h in handles))
    return names


@pytest.mark.usefixtures("_little_is_kept")
def test_what_a_worker_keeps_does_not_grow_with_the_workflows_it_has_completed(tmp_path: Path, until: Until) -> None:
    half = size(150, 1500)

    async def at_rest(worker: Worker) -> Counter[str]:
        def quiet() -> bool:
            folds = [p.fold for p in worker.places.values()]
            return sum(len(f.live) + len(f.entries) for f in folds) == SLEEPERS and not any(f.gone for f in folds)

        await until(quiet)
        return objects_of(worker)

    async def least(broker: Broker, worker: Worker, numbers: range) -> Counter[str]:
        """Look three times: what is bounded may be more or less full, what has grown has grown each time."""
        seen = []
        for n in numbers[::10][:3]:
            await run_some(broker, "teller", range(n, n + 10), until)
            seen.append(await at_rest(worker))
        return min(seen, key=Counter.total)

    async def grow() -> tuple[Counter[str], Counter[str]]:
        async with await opened(tmp_path) as broker, working(broker, teller, helper, sleeper) as worker:
            worker.records._limit = 2000
            async with MessageBus.open(broker) as bus:
                for n in range(SLEEPERS):
                    await bus.start(sleeper, n)
            await run_some(broker, "teller", range(half), until)
            before = await least(broker, worker, range(half, half + 30))
            await run_some(broker, "teller", range(half + 30, 2 * half), until)
            return before, await least(broker, worker, range(2 * half, 2 * half + 30))

    before, after = asyncio.run(grow())
    grown = {name: (before[name], n) for name, n in after.items() if n > 1.05 * before[name] + 60}
    assert sum(after.values()) < 1.05 * sum(before.values()), grown
    assert grown == {}


@pytest.mark.skipif(not THOROUGH, reason="200,000 workflows: REFOLD_TESTS=thorough")
@pytest.mark.timeout(600)
def test_resident_memory_grows_by_less_than_five_percent_over_the_second_half_of_200_000_workflows(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "long_run", "200000", f"sqlite:///{tmp_path}/log.db"]
    out = subprocess.run(command, cwd=TESTS, check=True, capture_output=True, text=True)
    sizes = json.loads(out.stdout)
    assert len(sizes) == 10
    assert sizes[-1] < 1.05 * sizes[4], [f"{n / 2**20:.0f} MiB" for n in sizes]


# ---- late duplicates -------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("_little_is_kept")
@pytest.mark.parametrize("ago", [2, 60, 150])
def test_a_late_duplicate_of_any_record_of_a_completed_workflow_changes_nothing(
    tmp_path: Path, until: Until, ago: int
) -> None:
    """It may have been folded lately, have left a stub, or have been forgotten altogether."""

    async def repeat() -> None:
        async with await opened(tmp_path, 1) as broker, working(broker, teller, helper) as worker:
            names = await run_some(broker, "teller", range(160), until)
            victim = names[-ago]
            await until(lambda: not worker.places[0].fold.live)
            before, handled = await read_workflow(broker, victim), worker.handled
            for record in before.records:
                (end,) = await broker.append_raw(0, [(victim, record.value)])
            await until(lambda: worker.places[0].fold.position >= end and not worker.places[0].fold.live)
            after = await read_workflow(broker, victim)
            assert after.workflow.view.path == before.workflow.view.path
            assert after.workflow.is_complete()
            assert (await broker.positions("end"))[0] == end + 1, "something was written because of them"
            assert worker.handled == handled
            sent = codec.decode(before.records[0].value)
            again = Item(0, victim, (Outgoing(sent.id, before.records[0].value),))
            assert isinstance((await broker.append([again]))[0], Duplicate)

    asyncio.run(repeat())


# ---- workflows of many records ---------------------------------------------------------------------------------------
@pytest.mark.timeout(300)
def test_a_conversation_goes_on_over_very_many_records(tmp_path: Path, until: Until) -> None:
    """10,000 records in one workflow, with a new worker in the middle of them."""
    turns = size(300, 5000)
    parrot = Agent("parrot")

    @parrot.on_task
    async def repeat(ctx: Context, n: int) -> int:
        return n

    async def talk() -> None:
        async with await opened(tmp_path) as broker, MessageBus.open(broker) as bus:
            async with working(broker, parrot):
                handle = await bus.start(parrot, 0, id="talk")
                assert await handle.result(30) == 0
                for n in range(1, turns // 2):
                    assert await handle.request(n) == n
            async with working(broker, parrot):
                attached = await bus.attach("talk")
                for n in range(turns // 2, turns):
                    assert await attached.request(n, to=parrot) == n
            history = await read_workflow(broker, "talk")
            assert history.workflow.version == len(history.records) == 2 * turns
            assert history.workflow.is_complete()

    asyncio.run(talk())


@pytest.mark.timeout(300)
def test_a_handler_makes_very_many_requests_one_after_the_other_over_a_restart(tmp_path: Path, until: Until) -> None:
    """1,000 sequential requests; the worker is replaced half-way, and no answer is asked for twice."""
    requests = size(100, 1000)
    asked: Counter[int] = Counter()
    boss, aide = Agent("boss"), Agent("aide")

    @aide.on_task
    async def square(ctx: Context, n: int) -> int:
        asked[n] += 1
        return n * n

    @boss.on_task
    async def all_of_them(ctx: Context, n: int) -> int:
        return sum([await ctx.request(aide, i) for i in range(n)])

    async def ask() -> None:
        async with await opened(tmp_path) as broker, MessageBus.open(broker) as bus:
            async with working(broker, boss, aide, drain=0.0):
                handle = await bus.start(boss, requests, id="all")
                await until(lambda: len(asked) > requests // 2, within=PATIENCE)
            assert len(asked) < requests
            async with working(broker, boss, aide):
                assert await handle.result(PATIENCE) == sum(n * n for n in range(requests))
            history = await read_workflow(broker, "all")
            answers = [r for r in history.records if r.envelope.message_type == "task_response"]
            assert len(answers) == requests + 1
            assert sum(asked.values()) <= requests + 1, "one may have been under way when the first worker ended"

    asyncio.run(ask())


# ---- work that waits -------------------------------------------------------------------------------------------------
def waiting(number: int) -> AgentMessage:
    """Return a request or a notification for an agent that does not run yet."""
    name = f"w{number // 2}"
    if number % 2:
        return AgentMessage(
            sender_id="client", receiver_id="late", message_type="note", payload=number, correlation_id=name
        )
    return AgentMessage.request("late", number, sender="client", correlation_id=name)


def batches(numbers: range, partitions: int) -> Iterator[list[Item]]:
    for start in range(0, len(numbers), 500):
        messages = [waiting(n) for n in numbers[start : start + 500]]
        yield [
            Item(partition_of(m.correlation_id, partitions), m.correlation_id, (Outgoing(m.id, codec.encode(m)),))
            for m in messages
        ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("known", [False, True], ids=["an agent nobody knew", "an agent that had run before"])
def test_what_waits_for_an_agent_that_starts_at_last_is_handled_once_and_in_order(
    tmp_path: Path, until: Until, known: bool
) -> None:
    """10,000 records for it, while another group folds and saves what it cannot do."""
    records = size(1000, 10_000)
    late, other = Agent("late"), Agent("other")
    got: list[int] = []

    @late.on_task
    async def take(ctx: Context, n: int) -> int:
        got.append(n)
        return n

    @late.on("note")
    async def take_note(ctx: Context, n: int) -> None:
        got.append(n)

    @other.on_task
    async def nothing(ctx: Context, n: int) -> int:
        return n

    async def wait() -> None:
        async with await opened(tmp_path) as broker, MessageBus.open(broker) as bus:
            if known:
                async with working(broker, late, group="late"):
                    assert await bus.request(late, -1) == -1
                got.clear()
            async with working(broker, other, group="other"):
                for items in batches(range(records), broker.meta.partitions):
                    await broker.append(items)
                assert await bus.request(other, 1) == 1
            assert got == []
            async with working(broker, late, group="late") as worker:
                await until(lambda: len(got) >= records, within=PATIENCE)
                await until(lambda: all(not p.fold.live for p in worker.places.values()))
            assert sorted(got) == list(range(records))
            place = {n: at for at, n in enumerate(got)}
            assert all(place[n] < place[n + 1] for n in range(0, records, 2)), "a note before the request it follows"

    asyncio.run(wait())


def test_records_that_are_folded_again_are_kept_once() -> None:
    """A partition that comes back is folded again; the room that its records take is counted once."""
    records = Records(MemoryBroker(), limit=1000)
    for _ in range(50):
        for position in range(1, 9):
            records.put(0, Stored(position, "w", b"x" * 100, 0.0))
    assert [records.at_hand(0, (position, -1)) for position in range(1, 9)] == [b"x" * 100] * 8
    for position in range(9, 30):
        records.put(1, Stored(position, "w", b"y" * 100, 0.0))
    assert sum(records.at_hand(p, (n, -1)) is not None for p in (0, 1) for n in range(40)) == 10
