"""What is played while the process dies: each scene runs on its own from any point to the same end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from refold import Agent, Context, MessageBus, RetryPolicy, Worker
from refold.agents import client, control
from refold.agents.client import Handle
from refold.brokers import open_broker
from refold.bus.broker import Appended, Broker, LogSpec
from refold.bus.errors import AgentError, WaitExpired
from refold.bus.message import AgentMessage
from refold.projections.costs import Costs
from refold.projections.runner import catch_up, rebuild
from refold.projections.status import Status
from refold.projections.store import ProjectionStore

from .place import url_of
from .wrapping import Crossings, wrapped_broker

client.LOOK_AGAIN = 0.05  # a client that comes back is not told of answers: it looks
WITHIN = 20.0
PARTITIONS = 2
Play = Callable[["Stage"], Awaitable[None]]


class Stage:
    """One process at the log in a folder, with a worker and a client on one wrapped broker."""

    broker: Broker
    bus: MessageBus

    def __init__(self, crossings: Crossings) -> None:
        self.crossings = crossings
        self.folder = crossings.folder
        self.agents = agents(self)

    @property
    def url(self) -> str:
        return url_of(self.folder)

    async def pay(self, name: str, key: str) -> str:
        """The effect of every scene."""
        self.crossings.effect(name, key)
        return name

    async def pay_again(self, name: str, key: str) -> str:
        """An effect whose first call ever fails."""
        await self.pay(name, key)
        flag = self.folder / f"tried {name}"
        if not flag.exists():
            flag.touch()
            raise OSError("the first time it fails")
        return name

    async def pay_when_repaired(self, name: str, key: str) -> str:
        await self.pay(name, key)
        if not self.is_repaired:
            raise OSError("broken")
        return name

    @property
    def is_repaired(self) -> bool:
        return (self.folder / "repaired").exists()

    def repair(self) -> None:
        (self.folder / "repaired").touch()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open the log, and a client."""
        async with wrapped_broker(self.crossings, open_broker(self.url)) as self.broker:
            await self.broker.ensure_log(LogSpec(partitions=PARTITIONS))
            async with MessageBus.open(self.broker) as self.bus:
                yield

    @contextlib.asynccontextmanager
    async def working(self) -> AsyncIterator[Worker]:
        """A worker for as long as the context is open."""
        worker = Worker(self.broker, self.agents, group="g", drain=5.0, lease=2.0)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(worker.run())
            try:
                yield worker
            finally:
                worker.stop()

    async def say(self, handle: Handle, id: str, kind: str, payload: Any, to: str) -> None:
        """Send a message under a fixed id: sent again after a crash, it is the same."""
        await self.bus.send_message(
            AgentMessage(
                id=id, sender_id="client", receiver_id=to, message_type=kind, payload=payload,
                correlation_id=handle.correlation_id,
            )
        )  # fmt: skip

    async def until(self, handle: Handle, *there: Status) -> None:
        """Wait until the workflow has got there."""
        async with asyncio.timeout(WITHIN):
            while (await handle.status()).status not in there:
                await asyncio.sleep(0.005)


# ---- agents ----------------------------------------------------------------------------------------------------------
def agents(stage: Stage) -> list[Agent]:
    greeter = Agent("greeter")
    asker = Agent("asker")
    parent = Agent("parent")
    shaky = Agent("shaky", retry=RetryPolicy(attempts=3, initial=0.01, jitter=0))
    broken = Agent("broken")
    sleeper = Agent("sleeper")
    once = RetryPolicy(attempts=1)
    twice = RetryPolicy(attempts=2, initial=0.01, jitter=0)

    @greeter.on_task
    async def greet(ctx: Context, name: str) -> str:
        ctx.update({"met": name})
        return f"hello {await ctx.effect('greet', stage.pay, f'greet {name}', ctx.idempotency_key)}"

    @asker.on_task
    async def ask(ctx: Context, question: str) -> list[Any]:
        await ctx.effect("mail", stage.pay, f"mail {question}", ctx.idempotency_key)
        answer = await ctx.receive("answer")
        return [answer, await ctx.effect("file", stage.pay, f"file {question}", ctx.idempotency_key)]

    @parent.on_task
    async def delegate(ctx: Context, name: str) -> list[str]:
        first = await ctx.spawn("greeter", f"{name} 1")
        return [first, await ctx.effect("sum", stage.pay, f"sum {name}", ctx.idempotency_key)]

    @shaky.on_task
    async def shake(ctx: Context, name: str) -> int:
        await ctx.effect("pay", stage.pay, f"pay {name}", ctx.idempotency_key)
        await ctx.effect("again", stage.pay_again, f"again {name}", ctx.idempotency_key, retry=twice)
        if ctx.attempt == 1:
            raise ValueError("the first attempt fails")
        return ctx.attempt

    @broken.on_task
    async def break_(ctx: Context, name: str) -> str:
        await ctx.effect("pay", stage.pay, f"pay {name}", ctx.idempotency_key)
        return await ctx.effect("fix", stage.pay_when_repaired, f"fix {name}", ctx.idempotency_key, retry=once)

    @sleeper.on_task
    async def sleep(ctx: Context, name: str) -> str:
        await ctx.sleep(0.03)
        try:
            await ctx.receive("never", timeout=0.03)
        except WaitExpired:
            await ctx.effect("wake", stage.pay, f"wake {name}", ctx.idempotency_key)
        return "awake"

    return [greeter, asker, parent, shaky, broken, sleeper, *faulty(stage)]


def faulty(stage: Stage) -> list[Agent]:
    """Handlers that break the rules: a campaign that does not notice them proves nothing."""
    volatile = Agent("volatile")
    keyless = Agent("keyless")

    @volatile.on_task
    async def remember(ctx: Context, name: str) -> int:
        await ctx.effect("pay", stage.pay, f"pay {name}", ctx.idempotency_key)
        return stage.crossings.armed == ""

    @keyless.on_task
    async def forget(ctx: Context, name: str) -> None:
        return await ctx.effect("pay", lambda: stage.crossings.effect(f"pay {name}", str(os.getpid())))

    return [volatile, keyless]


# ---- scenes ----------------------------------------------------------------------------------------------------------
async def hello(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("greeter", "you", id="w")
        assert await handle.result(WITHIN) == "hello greet you"


async def durable_wait(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("asker", "why", id="w")
        await stage.until(handle, Status.WAITING, Status.COMPLETED)
        await stage.say(handle, "answer-1", "answer", 42, to="asker")
        assert await handle.result(WITHIN) == [42, "file why"]


async def child(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("parent", "kid", id="w")
        assert await handle.result(WITHIN) == ["hello greet kid 1", "sum kid"]
        await stage.until(handle, Status.COMPLETED)


async def retry(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("shaky", "x", id="w")
        assert await handle.result(WITHIN) == 2


async def dead_letter(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("broken", "x", id="w")
        if not stage.is_repaired:
            with contextlib.suppress(AgentError):
                await handle.result(WITHIN)
            assert (await handle.status()).status is Status.FAILED
            stage.repair()
        await handle.follower.catch_up()
        h = handle.follower.workflow.view.handling("broken", handle.request_id)
        assert h is not None
        if not h.round:
            await control.redrive(stage.bus, "w", "broken", handle.request_id)
        assert await handle.result(WITHIN) == "fix x"


async def timer(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        handle = await stage.bus.start("sleeper", "x", id="w")
        assert await handle.result(WITHIN) == "awake"


async def takeover(stage: Stage) -> None:
    """Two workers, one after the other: the second one starts from the first one's checkpoint."""
    async with stage.opened():
        async with stage.working():
            handles = [await stage.bus.start("asker", f"why {n}", id=f"w{n}") for n in range(2)]
            for handle in handles:
                await stage.until(handle, Status.WAITING, Status.COMPLETED)
        async with stage.working():
            for n, handle in enumerate(handles):
                await stage.say(handle, f"answer-{n}", "answer", n, to="asker")
                assert await handle.result(WITHIN) == [n, f"file why {n}"]


async def rebuilding(stage: Stage) -> None:
    """A projection is built, kept up to date and built anew, beside what is read."""
    async with stage.opened():
        async with stage.working():
            handle = await stage.bus.start("greeter", "you", id="w")
            await handle.result(WITHIN)
        async with ProjectionStore.open(stage.folder / "views.db", stage.broker.meta.log_id) as made:
            store = stage.crossings.wrap(made, ProjectionStore, "store")
            await catch_up(stage.broker, store, Costs())
            async with stage.working():
                handle = await stage.bus.start("greeter", "me", id="w2")
                await handle.result(WITHIN)
            await catch_up(stage.broker, store, Costs())
            await rebuild(stage.broker, store, Costs())


async def forgetful(stage: Stage) -> None:
    """A broker that says of every 5th record that it has it, and has not."""
    count = itertools.count(1)
    async with open_broker(stage.url) as real:
        append = real.append

        async def lying(items: Any, fence: Any = None) -> Any:
            if next(count) == 5:
                return [Appended((1,)) for _ in items]
            return await append(items, fence)

        real.append = lying  # type: ignore[method-assign]
        stage.broker = stage.crossings.wrap(real, Broker, "log")
        await stage.broker.ensure_log(LogSpec(partitions=PARTITIONS))
        async with MessageBus.open(stage.broker) as stage.bus:
            await stage.bus.send("nobody", 1)
            await asyncio.gather(*(stage.bus.send("nobody", n) for n in range(5)))


async def volatile(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        await (await stage.bus.start("volatile", "x", id="w")).result(WITHIN)


async def keyless(stage: Stage) -> None:
    async with stage.opened(), stage.working():
        await (await stage.bus.start("keyless", "x", id="w")).result(WITHIN)


FAULTY: dict[str, Play] = {"forgetful": forgetful, "volatile": volatile, "keyless": keyless}
"""Scenes whose crashes must be found wrong."""

SCENES: dict[str, Play] = {
    "hello": hello, "a durable wait": durable_wait, "a child workflow": child, "a retry": retry,
    "a dead letter with redrive": dead_letter, "a timer": timer, "a takeover with checkpoint": takeover,
    "a rebuild": rebuilding,
}  # fmt: skip
