"""A rerun is its first run: the same values of the same types, the same ids, no call that is recorded made again."""

from __future__ import annotations

import asyncio
import datetime as dt
import decimal
import enum
import json
import random
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest
from hosting import QUICK, hosted, records, working
from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec.structs import replace
from programs import Do, Performer, World, programs

from refold import Agent, Context, MessageBus, Refuse, Worker
from refold.agents import client
from refold.brokers.memory import Log, MemoryBroker
from refold.bus import codec
from refold.bus.broker import Fence, Item, LogSpec, Result
from refold.bus.errors import BrokerUnavailable
from refold.projections.history import read_workflow
from refold.projections.verdict import Verdict

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
PATIENT = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


# ---- values ----------------------------------------------------------------------------------------------------------
class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Point(NamedTuple):
    x: int
    y: float


class Topic(msgspec.Struct):
    name: str
    tags: set[str] = set()
    when: dt.datetime | None = None


@dataclass
class Draft:
    text: str
    pages: tuple[int, ...] = ()
    topic: Topic | None = None
    scores: dict[int, decimal.Decimal] = field(default_factory=dict)


class Note(TypedDict):
    body: bytes
    at: Point


class Job(pydantic.BaseModel):
    n: int
    due: dt.date
    parts: tuple[str, ...] = ()


text = st.text(st.characters(codec="utf-8"), max_size=8)
ints = st.integers(-(2**63), 2**63 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))]))
moments = moments.map(lambda moment: moment.replace(fold=0))  # ISO 8601 does not know it
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-1000, max_value=1000)
topics = st.builds(Topic, text, st.sets(text, max_size=3), st.none() | moments)
drafts = st.builds(
    Draft, text, st.lists(ints, max_size=3).map(tuple), st.none() | topics, st.dictionaries(ints, decimals, max_size=3)
)
points = st.builds(Point, ints, floats)
jobs = st.builds(Job, n=ints, due=st.dates(), parts=st.lists(text, max_size=2).map(tuple))
plain = st.recursive(
    st.none() | st.booleans() | ints | floats | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=5,
)  # fmt: skip

TYPED: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, ints), (float, floats), (str, text), (bool, st.booleans()), (None, st.none()), (bytes, st.binary(max_size=9)),
    (uuid.UUID, st.uuids()), (decimal.Decimal, decimals), (dt.datetime, moments), (dt.date, st.dates()),
    (dt.timedelta, st.timedeltas(dt.timedelta(days=-9), dt.timedelta(days=9))), (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)), (tuple[int, str], st.tuples(ints, text)), (Point, points), (Topic, topics),
    (Draft, drafts), (Job, jobs), (Note, st.fixed_dictionaries({"body": st.binary(max_size=9), "at": points})),
    (set[int], st.sets(ints, max_size=4)), (frozenset[str], st.frozensets(text, max_size=4)),
    (dict[int, Topic], st.dictionaries(ints, topics, max_size=3)),
    (dict[uuid.UUID, Level], st.dictionaries(st.uuids(), st.sampled_from(Level), max_size=3)),
    (list[tuple[Colour, ...]], st.lists(st.lists(st.sampled_from(Colour), max_size=2).map(tuple), max_size=3)),
    (int | None, st.none() | ints), (Draft | None, st.none() | drafts), (list[Job], st.lists(jobs, max_size=2)),
    (Any, plain),
]  # fmt: skip
typed_values = st.sampled_from(TYPED).flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


def shape(value: Any) -> Any:
    """A value with the type of each of its parts."""
    kind = type(value).__qualname__
    if isinstance(value, dict):
        return kind, sorted(((repr(shape(k)), shape(v)) for k, v in value.items()), key=repr)
    if isinstance(value, set | frozenset):
        return kind, sorted(map(repr, map(shape, value)))
    if isinstance(value, list | tuple):
        return kind, [shape(v) for v in value]
    if isinstance(value, msgspec.Struct | pydantic.BaseModel) or is_dataclass(value):
        names = getattr(value, "__struct_fields__", None) or list(getattr(value, "__dict__", {}))
        return kind, [(name, shape(getattr(value, name))) for name in names]
    return kind, repr(value.astimezone(dt.UTC)) if isinstance(value, dt.datetime) else repr(value)


@PATIENT
@given(st.lists(typed_values, min_size=1, max_size=4))
def test_a_value_is_the_same_with_the_same_type_in_the_first_run_and_in_every_later_one(drawn):
    agent, echo, runs = Agent("a", retry=QUICK), Agent("echo"), []

    @echo.on_task
    async def back(ctx: Context, n: int) -> Any:
        return drawn[n][1]

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        got: list[Any] = [await ctx.now()]
        for n, (kind, value) in enumerate(drawn):
            got.append(await ctx.effect("value", lambda value=value: value, returns=kind))
            got.append(await ctx.request("echo", n, returns=kind))
            got.append(await ctx.receive("value", returns=kind))
        runs.append(got)
        if ctx.attempt == 1:
            raise RuntimeError("once more")

    async def main() -> None:
        async with asyncio.timeout(20), hosted(agent, echo) as (bus, _):
            started = await bus.start(handle, None)
            for _kind, value in drawn:
                await started.send(value, kind="value")
            await started.result(10)

    asyncio.run(main())
    first, again = runs
    assert shape(first) == shape(again)
    assert type(first[0]) is float
    for n, (_, value) in enumerate(drawn):
        for got in first[1 + 3 * n : 4 + 3 * n]:
            assert shape(got) == shape(value)


@PATIENT
@given(st.lists(typed_values, min_size=1, max_size=5))
def test_a_value_without_a_type_is_what_json_says_in_the_first_run_too(drawn):
    agent, runs = Agent("a", retry=QUICK), []

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        runs.append(await ctx.gather(*(ctx.effect("value", lambda v=value: v) for _, value in drawn)))
        if ctx.attempt == 1:
            raise RuntimeError("once more")

    async def main() -> None:
        async with asyncio.timeout(20), hosted(agent) as (bus, _):
            await bus.request(handle, None)

    asyncio.run(main())
    first, again = runs
    assert shape(first) == shape(again)
    assert shape(first) == shape([json.loads(msgspec.json.encode(codec.to_json(value))) for _, value in drawn])


def test_a_value_is_not_the_object_that_the_function_returned(go):
    agent, kept, got = Agent("a"), [[1, 2]], []

    @agent.on_task
    async def handle(ctx: Context, _: None) -> list[int]:
        got.append(await ctx.effect("list", lambda: kept[0]))
        got[0].append(3)
        return kept[0]

    async def main():
        async with hosted(agent) as (bus, _):
            assert await bus.request(handle, None) == [1, 2]

    go(main())


# ---- random programs, crashes anywhere -------------------------------------------------------------------------------
class Mortal(MemoryBroker):
    """The log as one process sees it: it dies at its n-th append, before or after the records are written."""

    def __init__(self, log: Log, world: World, appends: int, *, after: bool) -> None:
        super().__init__(log)
        self.world = world
        self.left = appends
        self.after = after
        self.died = asyncio.Event()

    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        if self.died.is_set():
            raise BrokerUnavailable("this process is dead")
        self.left -= 1
        if self.left == 0:
            self.died.set()
            if self.after:
                await self._write(items, fence)
            await asyncio.sleep(60)  # until the process is gone
        return await self._write(items, fence)

    async def _write(self, items: Sequence[Item], fence: Fence | None) -> list[Result]:
        results = await super().append(items, fence)
        for item in items:
            for record in item.records:
                fact = codec.decode(record.value).fact
                known = self.world.recorded if getattr(fact, "final", True) else self.world.flaked
                known.add(getattr(fact, "effect", ""))
        return results


def echo_agent() -> Agent:
    echo = Agent("echo", concurrency=8)

    @echo.on_task
    async def back(ctx: Context, asked: dict) -> Any:
        if asked["fail"]:
            raise Refuse(asked["place"])
        return [asked["place"], await ctx.effect("draw", random.random)]

    echo.on("note")(lambda payload: None)
    return echo


class Ending(NamedTuple):
    """How a program's workflow ended: its answer, and what was admitted; `ids` are those of its steps' records."""

    answer: Any
    kinds: list[str]
    ids: set[tuple[str, str, str]]


async def ended(program: tuple[Do, ...], world: World, deaths: list[tuple[int, bool]], max_live: int) -> Ending:
    """Run a program to its end, in processes that die after so many appends."""
    agent, log = Agent("a", retry=QUICK), Log()

    @agent.on_task
    async def handle(ctx: Context, _: None) -> Any:
        return await Performer(ctx, world).carry_out(program, "p")

    observer = MemoryBroker(log)
    await observer.ensure_log(LogSpec(partitions=2))
    message = (await one_start(observer)).request_id
    for n, (appends, after) in enumerate([*deaths, (10**9, False)]):
        broker = Mortal(log, world, appends, after=after)
        worker = Worker(broker, [agent, echo_agent()], group="g", member=f"m{n}", max_live=max_live, drain=0.0)
        async with asyncio.TaskGroup() as tasks, MessageBus.open(observer) as bus:
            process = tasks.create_task(worker.run())
            death = tasks.create_task(broker.died.wait())
            answer = tasks.create_task((await bus.attach("w")).result(15))
            await asyncio.wait([death, answer], return_when=asyncio.FIRST_COMPLETED)
            for task in (death, answer):
                task.cancel()
            if broker.died.is_set():
                observer.kill(worker.member)
            process.cancel()
        if not broker.died.is_set():
            break
    state = await read_workflow(observer, "w")
    admitted = [j.envelope for j in state.records if j.verdict is Verdict.ADMITTED]
    said = await records(observer, "w")
    assert {r.work.message for r in said if r.work is not None and r.sender_id == "a"} == {message}
    return Ending(
        answer.result(),
        [r.message_type for r in admitted],
        {(r.message_type, r.work.step, r.id) for r in admitted if r.work and r.work.step},
    )


async def one_start(broker: MemoryBroker) -> Any:
    async with MessageBus.open(broker, source=Fixed()) as bus:
        return await bus.start("a", None, id="w")


class Fixed:
    """Ids that are the same in every log."""

    def __init__(self) -> None:
        self.number = 0

    def new_id(self) -> str:
        self.number += 1
        return f"id-{self.number}"

    def jitter(self) -> float:
        return 0.0


@pytest.fixture(autouse=True, scope="module")
def _look_often():
    """The answer is waited for by a client that was not there when it was asked for: no hint reaches it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "LOOK_AGAIN", 0.005)
        yield


deaths_ = st.lists(st.tuples(st.integers(1, 14), st.booleans()), max_size=4)


def _run(program: tuple[Do, ...], deaths: list[tuple[int, bool]], seed: int, max_live: int) -> tuple[Ending, World]:
    world = World(random.Random(seed))

    async def bounded() -> Ending:
        async with asyncio.timeout(20):
            return await ended(program, world, deaths, max_live)

    end = asyncio.run(bounded())
    assert world.broken == []
    assert "attempt_failed" not in end.kinds  # no divergence, nothing that only a crash brings about
    return end, world


def _without_draws(value: Any) -> Any:
    """An answer without what is another one in each log: tokens of calls, times, what echo drew."""
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int | float):
            return value[0]
        return [_without_draws(v) for v in value]
    return "now" if isinstance(value, float) and value > 1e6 else value


@PATIENT
@given(programs(st.just(True)), deaths_, st.integers(0, 2**32), st.sampled_from([0, 1000]))
def test_a_program_ends_the_same_wherever_its_processes_die(program, deaths, seed, max_live):
    disturbed, _ = _run(program, deaths, seed, max_live)
    quiet, _ = _run(program, [], seed + 1, 1000)
    assert _without_draws(disturbed.answer) == _without_draws(quiet.answer)
    assert disturbed.ids == quiet.ids


@PATIENT
@given(programs(st.booleans(), "turn"), deaths_, st.integers(0, 2**32), st.sampled_from([0, 1000]))
def test_a_program_whose_branches_are_stopped_by_a_failure_never_diverges(program, deaths, seed, max_live):
    _run(program, deaths, seed, max_live)


def test_a_branch_that_waits_for_something_else_keeps_its_turn(go):
    agent, seen = Agent("a", retry=QUICK), []

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        order: list[int] = []

        async def branch(n: int, pause: float) -> None:
            await ctx.effect("step", int)
            await asyncio.sleep(pause)
            order.append(n)
            await ctx.now()

        slow = ctx.attempt - 1  # what is not refold's takes as long as it likes
        await ctx.gather(branch(1, 0.04 * slow), branch(2, 0.02 * slow), branch(3, 0.0))
        seen.append(order)
        if ctx.attempt < 3:
            raise RuntimeError("once more")

    async def main():
        async with hosted(agent) as (bus, _):
            await bus.request(handle, None)

    go(main())
    assert len(seen) == 3
    assert seen[1] == seen[2] == seen[0]


def test_of_two_outcomes_of_one_call_the_first_in_the_log_is_its_value_also_for_who_made_the_second(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, _: None) -> str:
        return await ctx.effect("call", lambda: "mine")

    class Contested(MemoryBroker):
        async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
            for item in items:
                for out in item.records:
                    r = codec.decode(out.value)
                    if r.message_type == "effect_completed":  # another owner's run of the same handling was faster
                        theirs = codec.encode(codec.with_changes(r, payload="theirs"))
                        await super().append([replace(item, records=(replace(out, value=theirs),))])
            return await super().append(items, fence)

    async def main():
        broker = Contested()
        await broker.ensure_log(LogSpec(partitions=1))
        async with MessageBus.open(broker) as bus, working(broker, agent):
            assert await bus.request(handle, None) == "theirs"

    go(main())


def test_a_rerun_takes_outcomes_in_the_order_of_the_log_not_of_its_branches(go):
    agent, seen = Agent("a", retry=QUICK), []

    @agent.on_task
    async def handle(ctx: Context, _: None) -> None:
        order: list[int] = []
        second = asyncio.Event()

        async def branch(n: int) -> None:
            await ctx.effect("step", second.wait if n == 1 else asyncio.sleep, *([] if n == 1 else [0]))
            order.append(n)
            second.set()

        await ctx.gather(branch(1), branch(2))
        seen.append(order)
        if ctx.attempt < 3:
            raise RuntimeError("once more")

    async def main():
        async with hosted(agent) as (bus, _):
            await bus.request(handle, None)

    go(main())
    assert seen == [[2, 1]] * 3
