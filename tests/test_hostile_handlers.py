"""Handlers that do what nobody should: each ends with an outcome that says what was wrong, and the worker goes on."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from typing import Any

import pytest
from hosting import QUICK, hosted, kinds_of, opened, records, working

from refold import Agent, AgentError, Context, EffectFailed, MessageBus, Refuse, RetryPolicy
from refold.agents.control import retry
from refold.bus.errors import TooLarge
from refold.projections.status import Status

TWICE = RetryPolicy(attempts=2, initial=0.01, jitter=0)


async def outcome(handler: Any, *others: Agent, **settings: Any) -> tuple[Any, list[str]]:
    """What a handler's asker gets (a value, or the error's text), and the kinds of the workflow's records."""
    agent, echo = Agent("a", retry=TWICE), Agent("echo")
    agent.on_task(handler)
    echo.on_task(lambda n: n)
    async with hosted(agent, echo, *others, **settings) as (bus, worker):
        handle = await bus.start(agent, 1)
        try:
            got: Any = await handle.result(10)
        except AgentError as error:
            got = str(error).removeprefix("'a' answered with an error: ")
        assert await bus.request("echo", 2) == 2
        assert not worker.crew.abandoned
        assert not worker.threads.abandoned
        return got, await kinds_of(bus.broker, handle.correlation_id)


# ---- what an effect's function may raise -----------------------------------------------------------------------------
class Odd(BaseException):
    """Not an Exception."""


class Mute(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


ERRORS = [
    (asyncio.CancelledError("mine"), r"StepCancelled: effect 'f' raised CancelledError, and refold did not cancel it"),
    (SystemExit(3), "SystemExit: 3"),
    (Odd("odd"), "Odd: odd"),
    (ExceptionGroup("g", [ValueError("a"), OSError("b")]), r"ExceptionGroup: g .*: ValueError: a; OSError: b"),
    (BaseExceptionGroup("g", [SystemExit(1)]), r"BaseExceptionGroup: g .*: SystemExit: 1"),
    (FileNotFoundError("bad \udcff name"), r"FileNotFoundError: bad \\udcff name"),
    (Mute(), r"Mute: \(its text cannot be had: RuntimeError\)"),
    (TimeoutError("mine"), "TimeoutError: mine"),
]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=lambda x: type(x).__name__ if not isinstance(x, str) else "")
def test_whatever_an_effects_coroutine_raises_is_its_outcome(go, error, said):
    async def fail() -> None:
        raise error

    async def handle(ctx: Context, n: int) -> None:
        await ctx.effect("f", fail, retry=TWICE)

    text, kinds = go(outcome(handle))
    assert _matches(text, f"effect 'f' failed: {said}")
    assert kinds == ["task_request", "effect_failed", "effect_failed", "error_report"]


@pytest.mark.parametrize(("error", "said"), ERRORS, ids=lambda x: type(x).__name__ if not isinstance(x, str) else "")
def test_whatever_a_handler_raises_is_the_outcome_of_an_attempt(go, error, said):
    async def handle(ctx: Context, n: int) -> None:
        raise error

    async def branches(ctx: Context, n: int) -> None:
        await ctx.gather(handle(ctx, n), ctx.effect("x", lambda: 1))

    for handler, what in ((handle, "the handler"), (branches, "branch 1.1 of ctx.gather")):
        text, kinds = go(outcome(handler))
        assert _matches(text, said.replace("effect 'f'", what))
        assert [k for k in kinds if k != "effect_completed"] == [
            "task_request", "attempt_failed", "dead_lettered", "error_report",
        ]  # fmt: skip


def _matches(text: str, pattern: str) -> bool:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)
    return True


def test_a_value_that_a_record_cannot_carry_is_a_failure_of_its_effect(go):
    async def handle(ctx: Context, n: int) -> list[str]:
        said = []
        for make in (object, lambda: "x" * 600_000, lambda: float("nan"), lambda: 2**70, lambda: "\udcff"):
            try:
                await ctx.effect("make", make, retry=TWICE)
            except EffectFailed as error:
                said.append(str(error))
        return said

    said, kinds = go(outcome(handle))
    wanted = ("JSON cannot carry 'object'", "the log takes 524288", "nan is not", "beyond 64 bits", "surrogate")
    for text, what in zip(said, wanted, strict=True):
        assert what in text
    assert kinds.count("effect_failed") == 9  # one that is too large is not tried again


# ---- what is refused at the call, and leaves nothing behind ----------------------------------------------------------
BAD_CALLS = {
    "an agent's name with a space": lambda ctx: ctx.request("bad name", 1),
    "a request to everybody": lambda ctx: ctx.request("*", 1),
    "a child of everybody": lambda ctx: ctx.spawn("*", 1),
    "a priority of 77": lambda ctx: ctx.request("echo", 1, priority=77),
    "a priority that is a text": lambda ctx: ctx.request("echo", 1, priority="high"),
    "a time limit of nan": lambda ctx: ctx.request("echo", 1, timeout=float("nan")),
    "a request that is too large": lambda ctx: ctx.request("echo", "x" * 600_000),
    "an effect named 5": lambda ctx: ctx.effect(5, print),
    "an effect without a name": lambda ctx: ctx.effect("", print),
    "an effect with a surrogate": lambda ctx: ctx.effect("\udcff", print),
    "an effect with a long name": lambda ctx: ctx.effect("x" * 257, print),
    "an effect's time limit of inf": lambda ctx: ctx.effect("x", print, timeout=float("inf")),
    "a sleep of nan": lambda ctx: ctx.sleep(float("nan")),
    "a sleep for ever": lambda ctx: ctx.sleep(float("inf")),
    "a receive of two words": lambda ctx: ctx.receive("two words"),
    "a receive of a request": lambda ctx: ctx.receive("task_request"),
    "a receive of the engine's": lambda ctx: ctx.receive("effect_completed"),
    "a receive until inf": lambda ctx: ctx.receive("x", timeout=float("inf")),
    "a gather of at most 0": lambda ctx: ctx.gather(limit=0),
    "a gather of at most -1": lambda ctx: ctx.gather(limit=-1),
    "a send to two words": lambda ctx: ctx.send("two words", 1),
    "a send of an answer": lambda ctx: ctx.send("echo", 1, kind="task_response"),
    "a send of a kind of two words": lambda ctx: ctx.send("echo", 1, kind="two words"),
    "a send that is too large": lambda ctx: ctx.send("echo", "x" * 600_000),
    "a send of an object": lambda ctx: ctx.send("echo", object()),
    "an update with a list": lambda ctx: ctx.update([1]),
    "an update that is too large": lambda ctx: ctx.update({"x": "x" * 600_000}),
}


@pytest.mark.parametrize("bad", BAD_CALLS)
def test_a_call_that_no_record_can_carry_is_refused_at_the_call_and_the_handler_may_go_on(go, bad):
    async def handle(ctx: Context, n: int) -> str:
        refused = ""
        try:
            step = BAD_CALLS[bad](ctx)
            if step is not None:
                await step
        except Exception as error:
            refused = type(error).__name__
        return f"{refused} {await ctx.effect('after', lambda: 1)}"

    text, kinds = go(outcome(handle))
    assert text in ("InvalidMessage 1", "HandlerError 1", "TooLarge 1")
    assert kinds == ["task_request", "effect_completed", "task_response"]


@pytest.mark.parametrize("answer", ["x" * 600_000, object(), [float("inf")]], ids=["large", "object", "inf"])
def test_an_answer_that_no_record_can_carry_fails_the_attempt(go, answer):
    async def handle(ctx: Context, n: int) -> Any:
        return answer

    text, kinds = go(outcome(handle))
    assert text.startswith(("TooLarge", "InvalidMessage"))
    assert kinds == ["task_request", "attempt_failed", "dead_lettered", "error_report"]


@pytest.mark.parametrize("to", ["*", "two words"])
def test_a_forward_to_nobody_in_particular_fails_the_attempt(go, to):
    async def handle(ctx: Context, n: int) -> Any:
        return ctx.forward(to, n)

    text, _ = go(outcome(handle))
    assert "InvalidMessage" in text or "HandlerError" in text


def test_outputs_beyond_one_append_take_several_and_the_mark_comes_last(go):
    async def handle(ctx: Context, n: int) -> int:
        for i in range(5):
            ctx.send("echo", [i, "x" * 400_000], kind="big")
        return 5

    got, kinds = go(outcome(handle))
    assert got == 5
    assert kinds == ["task_request", *["big"] * 5, "task_response"]


# ---- steps that are not awaited as they should -----------------------------------------------------------------------
def once(ctx: Context) -> Any:
    return ctx.effect("once", lambda: 1)


async def twice(ctx: Context, n: int) -> Any:
    step = once(ctx)
    return [await step, await step]


async def two_gathers(ctx: Context, n: int) -> Any:
    step = once(ctx)
    return [await ctx.gather(step), await ctx.gather(step)]


async def same_gather(ctx: Context, n: int) -> Any:
    step = once(ctx)
    return await ctx.gather(step, step)


async def gather_twice(ctx: Context, n: int) -> Any:
    both = ctx.gather(once(ctx))
    return [await both, await both]


@pytest.mark.parametrize("handle", [twice, two_gathers, same_gather, gather_twice])
def test_a_step_is_taken_once(go, handle):
    text, kinds = go(outcome(handle))
    assert "was awaited already" in text
    assert kinds.count("effect_completed") == 1


async def returned(ctx: Context, n: int) -> Any:
    return once(ctx)


async def gather_returned(ctx: Context, n: int) -> Any:
    return ctx.gather(once(ctx))


async def gather_forgotten(ctx: Context, n: int) -> Any:
    ctx.gather(once(ctx))


async def forgotten(ctx: Context, n: int) -> Any:
    once(ctx)
    ctx.sleep(1)


@pytest.mark.parametrize("handle", [returned, gather_returned, gather_forgotten, forgotten])
def test_a_step_that_is_never_awaited_is_an_error_and_is_not_taken(go, handle):
    text, kinds = go(outcome(handle))
    assert text.startswith("UnawaitedStep: never awaited: ")
    assert kinds == ["task_request", "attempt_failed", "dead_lettered", "error_report"]


# ---- tasks that are not the context's --------------------------------------------------------------------------------
async def in_a_task(ctx: Context, n: int) -> Any:
    return await asyncio.create_task(_use(ctx))


async def in_a_task_group(ctx: Context, n: int) -> Any:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_use(ctx))


async def shielded(ctx: Context, n: int) -> Any:
    return await asyncio.shield(ctx.effect("x", lambda: 1))


async def in_a_branch_beside_one_that_waits(ctx: Context, n: int) -> Any:
    return await ctx.gather(in_a_task(ctx, n), ctx.receive("never"))


async def forgotten_task(ctx: Context, n: int) -> Any:
    task = asyncio.create_task(_use(ctx))
    task.add_done_callback(lambda t: t.cancelled() or t.exception())
    await ctx.receive("never")
    await task


async def _use(ctx: Context) -> Any:
    return await ctx.effect("x", lambda: 1)


@pytest.mark.parametrize(
    "handle", [in_a_task, in_a_task_group, shielded, in_a_branch_beside_one_that_waits, forgotten_task]
)
def test_a_context_in_a_foreign_task_fails_the_attempt_with_a_text_that_names_gather(go, handle):
    text, kinds = go(outcome(handle))
    assert text.startswith("ForeignTask")
    assert "ctx.gather" in text
    assert "effect_completed" not in kinds
    assert kinds[-3:] == ["attempt_failed", "dead_lettered", "error_report"]


def test_a_context_in_the_thread_of_a_plain_effect_fails_the_attempt(go):
    async def handle(ctx: Context, n: int) -> Any:
        await ctx.effect("x", lambda: ctx.send("echo", 1))

    text, kinds = go(outcome(handle))
    assert text.startswith("ForeignTask: the context was used from a thread")
    assert "status_update" not in kinds


def test_a_step_inside_an_effects_function_fails_the_attempt_and_is_no_outcome_of_the_effect(go):
    async def handle(ctx: Context, n: int) -> Any:
        async def nested() -> int:
            return await ctx.effect("inner", lambda: 1)

        return await ctx.effect("outer", nested)

    text, kinds = go(outcome(handle))
    assert "steps do not nest" in text
    assert kinds == ["task_request", "attempt_failed", "dead_lettered", "error_report"]


# ---- asyncio's own limits around steps -------------------------------------------------------------------------------
async def timeout_around(ctx: Context, n: int) -> Any:
    async with asyncio.timeout(0.01):
        await ctx.receive("never")


async def timeout_swallowed(ctx: Context, n: int) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await ctx.effect("hangs", asyncio.sleep, 5)
    return "went on"


async def timeout_in_a_branch(ctx: Context, n: int) -> Any:
    return await ctx.gather(timeout_around(ctx, n), ctx.receive("never"))


async def group_around(ctx: Context, n: int) -> Any:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("the other task")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(fail())
        await ctx.receive("never")


@pytest.mark.parametrize("handle", [timeout_around, timeout_swallowed, timeout_in_a_branch, group_around])
def test_a_cancellation_of_a_step_that_is_not_refolds_fails_the_attempt_and_names_timeout(go, handle):
    text, kinds = go(outcome(handle))
    assert text.startswith("StepCancelled")
    assert "`timeout=`" in text
    assert ("ValueError: the other task" in text) == (handle is group_around)
    assert kinds[-3:] == ["attempt_failed", "dead_lettered", "error_report"]


def test_asyncio_inside_an_effect_and_beside_steps_is_nobodys_business(go):
    async def work() -> list[int]:
        async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(asyncio.sleep(0, i)) for i in range(3)]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(5), 0.01)
        return [t.result() for t in found] + await asyncio.gather(asyncio.sleep(0, 3))

    async def handle(ctx: Context, n: int) -> Any:
        async with asyncio.TaskGroup() as tasks:
            beside = tasks.create_task(asyncio.sleep(0, "beside"))
            x = await ctx.effect("work", work)
        return [*x, beside.result()]

    assert go(outcome(handle))[0] == [0, 1, 2, 3, "beside"]


# ---- failures that meet ----------------------------------------------------------------------------------------------
def test_causes_are_the_steps_whose_failure_escaped_and_no_others(go):
    def fail() -> None:
        raise OSError

    async def step(ctx: Context, name: str) -> None:
        await ctx.effect(name, fail, retry=RetryPolicy(attempts=1))

    async def caught_then_other(ctx: Context, n: int) -> None:
        with contextlib.suppress(EffectFailed):
            await step(ctx, "caught")
        raise Refuse("for another reason")

    async def wrapped(ctx: Context, n: int) -> None:
        try:
            await step(ctx, "wrapped")
        except EffectFailed as error:
            raise Refuse("because of it") from error

    async def in_finally(ctx: Context, n: int) -> None:
        try:
            await step(ctx, "first")
        finally:
            raise Refuse("in finally")

    async def several(ctx: Context, n: int) -> None:
        with contextlib.suppress(EffectFailed):
            await step(ctx, "caught")
        await ctx.gather(step(ctx, "x"), ctx.effect("fine", lambda: 1), step(ctx, "y"))

    async def causes(handle: Any) -> list[str]:
        agent = Agent("a")
        agent.on_task(handle)
        async with hosted(agent) as (bus, _):
            started = await bus.start(agent, 1)
            with pytest.raises(AgentError):
                await started.result(10)
            return list((await records(bus.broker, started.correlation_id))[-1].fact.causes)

    assert go(causes(caught_then_other)) == []
    assert go(causes(wrapped)) == ["1"]
    assert go(causes(in_finally)) == ["1"]
    assert go(causes(several)) == ["2.1.1", "2.3.1"]


def test_a_gather_in_a_gather_that_has_failed_takes_no_further_step(go):
    called: list[str] = []

    async def handle(ctx: Context, n: int) -> Any:
        failed = asyncio.Event()

        async def first(name: str) -> None:
            called.append(name)
            await failed.wait()

        async def slow(name: str) -> Any:
            await ctx.effect(f"{name} 1", first, name)
            return await ctx.effect(f"{name} 2", called.append, f"{name} again")

        async def inner() -> Any:
            got = await ctx.gather(slow("a"), slow("b"), slow("c"), limit=1)
            called.append(f"inner has {got}")

        async def bad() -> None:
            await ctx.effect("bad", lambda: None)
            failed.set()
            raise Refuse("bad")

        with contextlib.suppress(Refuse):
            await ctx.gather(bad(), inner())
        return called

    got, _ = go(outcome(handle))
    assert got == ["a"]


def test_a_gather_of_a_thousand_steps_and_nested_ones_with_a_limit_of_one(go):
    async def handle(ctx: Context, n: int) -> Any:
        async def inner(i: int) -> list[int]:
            return await ctx.gather(*(ctx.effect("e", lambda j=j: i * 3 + j) for j in range(3)), limit=1)

        nested = await ctx.gather(*(inner(i) for i in range(3)), limit=1)
        many = await ctx.gather(*(ctx.effect("m", _number, i) for i in range(1000)))
        return [[i for inner_ in nested for i in inner_], sum(many)]

    assert go(outcome(handle))[0] == [list(range(9)), 499500]


async def _number(i: int) -> int:
    return i


def test_coroutines_that_a_gather_never_starts_are_closed(go):
    async def handle(ctx: Context, n: int) -> Any:
        async def branch() -> int:
            return await ctx.effect("x", lambda: 1)

        async def bad() -> None:
            raise Refuse("at once")

        with contextlib.suppress(Refuse):
            await ctx.gather(bad(), branch(), ctx.gather(branch(), branch()), limit=1)
        return "done"

    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        unraised: list[Any] = []
        hook, sys.unraisablehook = sys.unraisablehook, unraised.append
        try:
            assert go(outcome(handle))[0] == "done"
        finally:
            sys.unraisablehook = hook
    assert unraised == []


# ---- divergence ------------------------------------------------------------------------------------------------------
async def recorded(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)
    ctx.send("echo", {"n": 1}, kind="note")
    await ctx.gather(ctx.effect("b", lambda: 2), ctx.effect("c", lambda: 3))


async def another_name(ctx: Context) -> None:
    await ctx.effect("z", lambda: 1)


async def another_kind(ctx: Context) -> None:
    await ctx.request("echo", 1)


async def other_arguments(ctx: Context) -> None:
    await ctx.effect("a", lambda x=1: 1, 1)


async def another_order(ctx: Context) -> None:
    ctx.send("echo", {"n": 1}, kind="note")
    await ctx.effect("a", lambda: 1)


async def other_payload(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)
    ctx.send("echo", {"n": 2}, kind="note")


async def other_branch(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)
    ctx.send("echo", {"n": 1}, kind="note")
    await ctx.gather(ctx.receive("never"), ctx.effect("d", lambda: 3))


async def a_branch_less(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)
    ctx.send("echo", {"n": 1}, kind="note")
    await ctx.gather(ctx.effect("b", lambda: 2))


async def a_step_less(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)


async def refuses_early(ctx: Context) -> None:
    await ctx.effect("a", lambda: 1)
    raise Refuse("no")


EDITS = {
    another_name: "step 1 is recorded as effect 'a'", another_kind: "step 1 is recorded as effect 'a'",
    other_arguments: "step 1 is recorded as effect 'a'", another_order: "step 1 is recorded as effect 'a'",
    other_payload: "step 2 is recorded as note 'send echo'", other_branch: "step 3.1 is recorded as effect 'b'",
    a_branch_less: "step 3.2 is recorded as effect 'c'", a_step_less: "asks for the end of the handling",
    refuses_early: "asks for the end of the handling",
}  # fmt: skip


@pytest.mark.parametrize("edited", EDITS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("way_out", ["code that fits", "retry --fresh"])
def test_code_that_does_not_fit_is_parked_and_goes_on_when_it_fits_or_is_told_to_start_anew(go, until, edited, way_out):
    async def main():
        def agent(body: Any, *, waits: bool) -> Agent:
            made = Agent("a", retry=QUICK)

            @made.on_task
            async def handle(ctx: Context, n: int) -> str:
                await body(ctx)
                if waits:
                    await ctx.receive("go")
                return "done"

            return made

        echo = Agent("echo")
        echo.on_task(lambda n: n)
        echo.on("note")(lambda n: None)
        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent(recorded, waits=True), echo):
                handle = await bus.start("a", 1, id="w")
                await until(lambda: _is(handle, Status.WAITING))
            fresh = way_out == "retry --fresh"
            async with working(broker, agent(edited, waits=False), echo):
                await handle.send("go on", kind="go")  # what was parked wakes, and finds that it does not fit
                await until(lambda: _is(handle, Status.BLOCKED))
                report = await handle.status()
                assert any("divergence" in why for why in report.blocked)
                parked = (await records(broker, "w"))[-1]
                assert parked.message_type == "attempt_failed"
                assert EDITS[edited] in parked.payload
                if fresh:
                    (again,) = await retry(bus, "w", fresh=True)
                    assert again.round == 1
                    if edited is refuses_early:
                        with pytest.raises(AgentError, match="Refuse: no"):
                            await handle.result(10)
                    elif edited is other_branch:
                        await until(lambda: _is(handle, Status.WAITING))
                    else:
                        assert await handle.result(10) == "done"
            if not fresh:
                async with working(broker, agent(recorded, waits=True), echo):
                    assert await handle.result(10) == "done"
                assert (await kinds_of(broker, "w")).count("effect_completed") == 3

    go(main())


async def _is(handle: Any, status: Status) -> bool:
    return (await handle.status()).status is status


def test_a_step_more_at_the_end_is_no_divergence(go, until):
    async def main():
        echo = Agent("echo")
        echo.on_task(lambda n: n)
        echo.on("note")(lambda n: None)
        first, second = Agent("a"), Agent("a")

        @first.on_task
        async def before(ctx: Context, n: int) -> None:
            await recorded(ctx)
            await ctx.receive("go")

        @second.on_task
        async def after(ctx: Context, n: int) -> int:
            await recorded(ctx)
            await ctx.receive("go")
            return await ctx.spawn("echo", 5)

        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, first, echo):
                handle = await bus.start("a", 1, id="w")
                await until(lambda: _is(handle, Status.WAITING))
            async with working(broker, second, echo):
                await handle.send(1, kind="go")
                assert await handle.result(10) == 5

    go(main())


def test_a_record_that_is_too_large_can_be_caught_at_its_call(go):
    async def handle(ctx: Context, n: int) -> str:
        try:
            await ctx.request("echo", "x" * 600_000)
        except TooLarge as error:
            return error.remedy
        return "?"

    assert "send a reference" in go(outcome(handle))[0]


def test_a_divergence_is_recorded_once_however_often_the_code_is_loaded(go, until):
    async def main():
        def agent(name: str) -> Agent:
            made = Agent("a", retry=QUICK)

            @made.on_task
            async def handle(ctx: Context, n: int) -> None:
                await ctx.effect(name, int)
                await ctx.receive("go")

            return made

        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent("old")):
                handle = await bus.start("a", 1, id="w")
                await until(lambda: _is(handle, Status.WAITING))
            await handle.send(kind="go")
            for _ in range(3):
                async with working(broker, agent("new")) as worker:
                    await until(lambda worker=worker: worker.handled == 1)
            assert (await kinds_of(broker, "w")).count("attempt_failed") == 1

    go(main())
