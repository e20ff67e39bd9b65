"""Five stages in one process, agents that do nothing, 100 workflows at once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import promised as limit
import raw as hand
from measure import Figure, Row

AT_ONCE, WORKFLOWS = 100, 6000


async def nothing(payload: Any) -> Any:
    """An agent by hand."""
    return payload


def agents() -> list[Any]:
    """Five agents of refold: each forwards to the next, the last one answers."""
    from refold import Agent

    made = [Agent(f"stage{i}") for i in range(1, hand.STAGES + 1)]

    def between(agent: Agent, target: str) -> None:
        @agent.on_task
        async def handle(ctx, payload):  # type: ignore[no-untyped-def]
            return ctx.forward(target, payload)

    for agent, after in itertools.pairwise(made):
        between(agent, after.name)

    @made[-1].on_task
    async def last(payload):  # type: ignore[no-untyped-def]
        return payload

    return made


async def flood(request: Any, workflows: int | Iterable[Any], at_once: int) -> float:
    """Keep that many workflows open; return workflows per second."""
    todo = iter(range(workflows) if isinstance(workflows, int) else workflows)
    done = 0

    async def client() -> None:
        nonlocal done
        for _ in todo:
            await request()
            done += 1

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(at_once)))
    return done / (time.perf_counter() - started)


def lasting(seconds: float) -> Iterator[None]:
    """What a flood does for so long."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        yield None


def by_hand(pipeline: type[hand.Pipeline], folder: Path) -> dict[str, float]:
    """Measure a hand-written pipeline."""

    async def main() -> float:
        async with hand.opened(str(folder / "raw.db")) as log:
            loop = pipeline(log, {f"stage{i}": nothing for i in range(1, hand.STAGES + 1)})
            task = asyncio.create_task(loop.run())
            request = lambda: loop.request(str(uuid.uuid4()))
            await flood(request, 500, AT_ONCE)
            rate = await flood(request, WORKFLOWS, AT_ONCE)
            task.cancel()
            return rate

    rate = asyncio.run(main())
    return {"engine": rate, "answers": rate}


def raw(folder: Path) -> dict[str, float]:
    """A task for each message, as agents that wait need it; appends share commits."""
    return by_hand(hand.Pipeline, folder)


def lockstep(folder: Path) -> dict[str, float]:
    """One message after another, one commit a round: the fastest loop, but an agent that waits stops all others."""
    return by_hand(hand.LockstepPipeline, folder)


class FoldingPipeline(hand.Pipeline):
    """The loop by hand, which asks admission what is true, and does nothing else of what refold does."""

    def __init__(self, *args: Any) -> None:
        from refold.projections.partition import PartitionFold

        super().__init__(*args)
        self.fold = PartitionFold(0, 1)

    def look_at(self, rows: list[tuple[int, bytes]]) -> None:
        from refold.bus.broker import Stored

        fold, touched = self.fold, {}
        for at, value in rows:
            r = fold.open_envelope(Stored(at, None, value, 0.0))
            assert r is not None
            folded = fold.fold(Stored(at, r.correlation_id, value, 0.0), r)
            assert folded.verdict == "admitted"
            touched[r.correlation_id] = folded.workflow
        for w in touched.values():
            fold.settle(w)


def folding(folder: Path) -> dict[str, float]:
    """The loop by hand with refold's fold in it."""
    return by_hand(FoldingPipeline, folder)


def promised(folder: Path) -> dict[str, float]:
    """A small engine by hand with refold's promises: see `bench/promised.py`."""

    async def main() -> float:
        log = limit.PromisedLog(str(folder / "raw.db"))
        with contextlib.closing(log):
            async with limit.Promised(log, nothing).running() as request:
                await flood(request, 500, AT_ONCE)
                return await flood(request, WORKFLOWS, AT_ONCE)

    rate = asyncio.run(main())
    return {"engine": rate, "answers": rate}


def refold(folder: Path) -> dict[str, float]:
    """Engine: a workflow is over when its last stage has ended. Answers: a client waits for each answer."""
    return asyncio.run(refold_at(f"sqlite:///{folder}/refold.db", lambda: 500, lambda: WORKFLOWS))


async def refold_at(url: str, before: Callable[[], Any], workflows: Callable[[], Any]) -> dict[str, float]:
    """Measure refold on the log of that URL; `before` and `workflows` give what a flood does."""
    from refold import AgentMessage, run

    ended = asyncio.Queue[None]()

    def on_handled(handling: Any) -> None:
        if handling.agent == f"stage{hand.STAGES}":
            ended.put_nowait(None)

    async with run(*agents(), broker=url, on_handled=on_handled) as bus:

        async def one() -> None:
            await bus.send_message(AgentMessage.request("stage1", hand.PAYLOAD))
            await ended.get()

        async def answered() -> None:
            await bus.request("stage1", hand.PAYLOAD)
            await ended.get()

        await flood(one, before(), AT_ONCE)
        engine = await flood(one, workflows(), AT_ONCE)
        return {"engine": engine, "answers": await flood(answered, workflows(), AT_ONCE)}


ROW = Row(
    "5-stage pipeline in one process, 100 workflows at once",
    [
        Figure("engine", "", "workflows/s", "ratio >= 0.7"),
        Figure("answers", "a client waits for each answer", "workflows/s"),
        Figure("engine", "beside the loop by hand with admission", "workflows/s", base="folding"),
        Figure("answers", "beside a small engine by hand with the same promises", "workflows/s", base="promised"),
        Figure("engine", "against a loop in lockstep (an agent that waits stops all)", "workflows/s", base="lockstep"),
    ],
    {"raw": raw, "folding": folding, "promised": promised, "refold": refold, "lockstep": lockstep},
)
