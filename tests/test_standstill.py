"""A handler that holds the event loop takes nothing of the running time of others."""

from __future__ import annotations

import asyncio
import time

import pytest
from hosting import QUICK, hosted, kinds_of

from refold import Agent, AgentError
from refold.agents.standstill import BEAT, Standstill


def test_time_in_which_the_loop_was_held_is_not_the_running_time_of_others(go):
    patient, rude = Agent("patient", retry=QUICK), Agent("rude", retry=QUICK)
    began, over = asyncio.Event(), asyncio.Event()

    @patient.on_task(timeout=0.6)
    async def wait(n: int) -> int:
        began.set()
        await over.wait()
        for _ in range(100):  # what is due meanwhile comes first
            await asyncio.sleep(0)
        return n

    @rude.on_task
    async def block(n: int) -> int:
        time.sleep(2.0)  # noqa: ASYNC251 - the mistake
        over.set()
        return n

    async def main():
        async with hosted(patient, rude) as (bus, _):
            handle = await bus.start(wait, 1, id="w")
            await began.wait()
            assert await bus.request(block, 2) == 2
            assert await handle.result() == 1
            assert await kinds_of(bus.broker, "w") == ["task_request", "task_response"]  # and no attempt that failed

    go(main())


def test_a_handler_that_hangs_beside_one_that_held_the_loop_is_out_of_time_all_the_same(go):
    hung, rude = Agent("hung", retry=QUICK), Agent("rude", retry=QUICK)
    began = asyncio.Event()

    @hung.on_task(timeout=0.3)
    async def hang(n: int) -> int:
        began.set()
        await asyncio.Event().wait()
        return n

    @rude.on_task
    async def block(n: int) -> int:
        time.sleep(1.0)  # noqa: ASYNC251 - the mistake
        return n

    async def main():
        async with hosted(hung, rude) as (bus, _):
            await bus.start(hang, 1, id="w")
            await began.wait()
            await bus.request(block, 2)
            handle = await bus.attach("w")
            with pytest.raises(AgentError, match=r"the handler ran for more than 0\.3 s"):
                await handle.result()

    go(main())


def test_beats_that_come_in_time_are_no_standstill_and_one_that_is_late_counts_once():
    clock = Standstill()
    assert clock.until(5.0) == 0.0
    for n in range(10):
        clock.beat(10 + n * BEAT * 1.9)
    assert clock.until(10 + 9 * BEAT * 1.9 + BEAT) == 0.0
    last = 10 + 9 * BEAT * 1.9
    assert clock.until(last + 3.0) == 3.0 - BEAT
    clock.beat(last + 3.0)
    assert clock.until(last + 3.0 + BEAT) == 3.0 - BEAT
