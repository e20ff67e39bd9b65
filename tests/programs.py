"""Random handlers: trees of steps that Hypothesis draws, and an interpreter that carries them out on a context."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from refold import AgentError, Context, EffectFailed, RetryPolicy

ONCE = RetryPolicy(attempts=1)
TWICE = RetryPolicy(attempts=2, initial=0.001, jitter=0)


@dataclass(frozen=True)
class Do:
    """One step. `kind` is what is asked of the context; `branches`, `limit` and `returns` are a gather's."""

    kind: str
    branches: tuple[tuple[Do, ...], ...] = ()
    limit: int | None = None
    returns: bool = True

    def __repr__(self) -> str:
        if not self.branches:
            return self.kind
        return f"{self.kind}[{self.limit or ''}{'' if self.returns else '!'}]{list(map(list, self.branches))}"


SIMPLE = (
    "effect", "plain effect", "failing effect", "flaky effect", "request", "failing request", "spawn", "sleep", "now",
    "send", "update", "random", "uuid", "order",
    "pause",
)  # fmt: skip


def gathers(steps: st.SearchStrategy[Do], returns: st.SearchStrategy[bool]) -> st.SearchStrategy[Do]:
    """Gathers of branches of these steps."""
    branch = st.lists(steps, min_size=1, max_size=3).map(tuple)
    branches = st.lists(branch, min_size=1, max_size=3).map(tuple)
    kinds = st.sampled_from(["gather", "gather of steps"])
    return st.builds(Do, kinds, branches, st.sampled_from([None, 1, 2]), returns)


def programs(returns: st.SearchStrategy[bool], *more: str) -> st.SearchStrategy[tuple[Do, ...]]:
    """Whole handlers; `returns`: what gathers have for `return_exceptions`; `more` kinds of steps."""
    step = st.recursive(st.sampled_from(SIMPLE + more).map(Do), lambda inner: gathers(inner, returns), max_leaves=8)
    return st.lists(step, min_size=1, max_size=4).map(tuple)


@dataclass
class World:
    """What is outside of the log: the calls that were made, and every value that a step ever had, by its place.

    `recorded` and `flaked` are the keys of effects whose outcome, or first failure, is in the log.
    """

    chance: random.Random
    calls: list[tuple[str, str]] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    recorded: set[str] = field(default_factory=set)
    flaked: set[str] = field(default_factory=set)

    async def call(self, place: str, kind: str, key: str, order: object = None) -> list[Any]:
        """A call that takes a while that nobody knows, and whose value is another one each time."""
        self.calls.append((place, key))
        if key in self.recorded:
            self.broken.append(f"{place} was called although its outcome is recorded")
        for _ in range(self.chance.randrange(4)):
            await asyncio.sleep(self.chance.choice((0, 0, 0.001)))
        if kind == "failing effect" or (kind == "flaky effect" and key not in self.flaked):
            raise OSError(place)
        return [place, len(self.calls)]

    def has(self, place: str, value: Any) -> Any:
        """A step has this value: it must have been the same in every run."""
        known = self.seen.setdefault(place, value)
        if (known, type(known)) != (value, type(value)):
            self.broken.append(f"{place} was {known!r} and is {value!r} now")
        return value


class Performer:
    """One run of a program. `order` is what its branches share: which steps have ended, in order."""

    def __init__(self, ctx: Context, world: World) -> None:
        self.ctx = ctx
        self.world = world
        self.order: list[str] = []

    def made(self, do: Do, place: str) -> Any:
        """An awaitable for a step that waits for the log."""
        ctx, world = self.ctx, self.world
        if do.kind == "plain effect":
            return ctx.effect("plain", lambda: [place, len(world.calls)])
        if do.kind == "order":  # the same call only where all that ended before has ended in the same order
            return ctx.effect("order", world.call, place, do.kind, ctx.idempotency_key, order=list(self.order))
        if do.kind.endswith("effect"):
            retry = TWICE if do.kind == "flaky effect" else ONCE
            return ctx.effect(do.kind, world.call, place, do.kind, ctx.idempotency_key, retry=retry)
        if do.kind.endswith("request"):
            return ctx.request("echo", {"place": place, "fail": do.kind == "failing request"})
        if do.kind == "spawn":
            return ctx.spawn("echo", {"place": place, "fail": False})
        return ctx.now() if do.kind == "now" else ctx.sleep(0.001)

    async def one(self, do: Do, place: str) -> Any:
        """Carry out a step; its value. Its failure is noted and raised."""
        ctx = self.ctx
        if do.kind.startswith("gather"):
            return await self.gathered(do, place)
        value: Any = None
        if do.kind == "send":
            ctx.send("echo", place, kind="note")
        elif do.kind == "update":
            ctx.update({place: 1})
        elif do.kind == "pause":  # the handler waits for something that is not the context's
            for _ in range(self.world.chance.randrange(8)):
                await asyncio.sleep(self.world.chance.choice((0, 0.0005)))
        elif do.kind == "random":
            value = ctx.random().random()
        elif do.kind == "uuid":
            value = str(ctx.uuid())
        else:
            try:
                value = await self.made(do, place)
            except (EffectFailed, AgentError) as error:
                self.world.has(place, f"{type(error).__name__} {error}")
                raise
            finally:
                self.order.append(place)
            if do.kind == "turn" and len(self.order) % 2:  # another program, depending on what ended before
                await self.made(Do("effect"), f"{place}+")
        return self.world.has(place, value)

    async def gathered(self, do: Do, place: str) -> Any:
        """A gather of branches, or of their first steps alone where they can be awaited without a branch."""
        arguments: list[Any] = []
        for i, branch in enumerate(do.branches):
            plain = branch[0].kind not in ("send", "update", "random", "uuid", "pause") and not branch[0].branches
            if do.kind == "gather of steps" and plain:
                arguments.append(self.made(branch[0], f"{place}.{i}"))
            else:
                arguments.append(self.carry_out(branch, f"{place}.{i}"))
        results = await self.ctx.gather(*arguments, limit=do.limit, return_exceptions=do.returns)
        return self.world.has(place, [type(r).__name__ if isinstance(r, Exception) else r for r in results])

    async def carry_out(self, steps: tuple[Do, ...], place: str) -> list[Any]:
        """Carry out steps in order; failures are values, but in a branch of a gather the last one escapes."""
        out: list[Any] = []
        for i, do in enumerate(steps):
            here = f"{place}.{i}"
            last_of_branch = place.count(".") > 0 and i == len(steps) - 1
            with contextlib.suppress(*(() if last_of_branch else (EffectFailed, AgentError))):
                out.append(await self.one(do, here))
                continue
            out.append("failed")
        return out
