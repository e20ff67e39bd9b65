"""One seed's story: workers that come, freeze and die, clients, an operator, and in the end a healed world."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Coroutine
from contextvars import copy_context
from typing import Any

from refold import Agent, AgentError, Context, MessageBus, RetryPolicy
from refold.agents import control
from refold.agents.worker import Worker
from refold.bus import codec, facts, kinds
from refold.bus.broker import LogSpec
from refold.bus.errors import (
    BrokerUnavailable,
    ConfigError,
    GroupConflict,
    NoSuchWorkflow,
    RequestTimeout,
    TryAgain,
    VerbRefused,
)  # fmt: skip
from refold.bus.message import AgentMessage, Expected
from refold.projections.follow import Follower
from refold.projections.verdict import is_outside

from .checks import check_all, check_worker, unfinished
from .loop import Process, StuckError, VirtualLoop, current
from .port import Port
from .programs import NOTES, TASKS, FailedError, Program, Writer, evaluate, is_loose, operations, play
from .world import LEASE, SimClock, SimSource, World

STORM = 45.0
"""Virtual seconds with faults; then the world is healed."""
PATIENCE = 1200.0
"""Virtual seconds within which a healed world must have done everything."""


class Inline:
    """Instead of threads: plain functions are called at once."""

    abandoned = 0

    async def run(self, function: Any, args: Any, kwargs: Any, *_: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    def close(self) -> None:
        pass


class Still:
    """Instead of the watchdog: virtual time does not stall."""

    stalls = 0

    def beat(self) -> None:
        pass

    def watch(self) -> Any:
        return contextlib.nullcontext()


class Order:
    """A workflow that a client has started, and what must come of it."""

    def __init__(self, id: str, agent: str, program: Program) -> None:
        self.id, self.agent, self.program = id, agent, program
        self.loose = is_loose(program)
        self.broken = any(op["do"] == "broken" for op in operations(program))
        self.kinds = [op["kind"] for op in operations(program) if op["do"] == "receive"]
        self.started = False
        self.outcome: Any = None
        self.done = False

    def expected(self) -> Any:
        try:
            return "ok", evaluate(self.program)
        except FailedError:
            return "error", None


class Story:
    """Plays one seed from its beginning to its end."""

    def __init__(self, seed: int, *, poison: bool = False) -> None:
        self.seed = seed
        self.random = random.Random(f"story {seed}")
        self.poison = poison
        self.loop = VirtualLoop(seed)
        self.world = World(
            self.loop, seed, refuses=self.random.random() < 0.5, partitions=self.random.choice((1, 2, 4, 7))
        )
        self.orders: list[Order] = []
        self.roots: dict[Process, asyncio.Task[Any]] = {}
        self.alive: dict[tuple[str, str], Process] = {}
        self.names = 0
        self.deadly: set[str] = set()
        self.acknowledged: list[tuple[str, str]] = []

    # ---- processes
    def start(self, name: str, work: Coroutine[Any, Any, Any], process: Process | None = None) -> Process:
        """Start a process. Its tasks, timers and futures belong to it from here on."""
        process = process or self.process(name)
        context = copy_context()
        context.run(current.set, process)
        self.roots[process] = self.loop.create_task(work, context=context)
        return process

    def process(self, name: str) -> Process:
        process = Process(name, len(self.world.processes) + 1)
        self.world.processes.append(process)
        return process

    def clock(self) -> SimClock:
        skew = self.random.choice((0.0, 0.0, 0.3, -0.3, 1.9, -1.9, 5.0, -5.0))
        if skew:
            self.world.meet("clock skew")
        return SimClock(self.loop, skew, self.random.uniform(0, 1e6))

    def agents(self, names: tuple[str, ...]) -> list[Agent]:
        return [self.agent(name) for name in names]

    def agent(self, name: str) -> Agent:
        """An agent that plays the programs it is sent."""
        world = self.world
        retry = RetryPolicy(attempts=4, initial=0.2, factor=2, jitter=0.5)
        agent = Agent(name, retry=retry, concurrency=2 if name == "cid" else 1, timeout=120)

        @agent.on_task
        async def task(ctx: Context, program: Any) -> Any:
            if program == "poison":
                world.meet("poison")
                await world.die_here()
            return await play(ctx, program, world)

        async def note(ctx: Context, token: Any) -> None:
            if str(token).startswith("bad") and not world.mended:
                raise RuntimeError("a bad note")
            await ctx.effect("note", world.pay, f"note {token} by {name}", ctx.idempotency_key, 0)

        for kind in NOTES if name != "bob" else NOTES[:1]:
            agent.on(kind)(note)
        return agent

    def hire(self, group: str, member: str | None = None) -> None:
        """Start a worker in a process of its own."""
        self.names += 1
        member = member or f"{group}-{self.names}"
        process = self.process(f"{member}#{self.names}")
        self.alive[group, member] = process
        self.start(member, self.work(process, group, member), process)

    async def work(self, process: Process, group: str, member: str) -> None:
        world, clock = self.world, self.clock()
        port = Port(world, process, clock)
        names = TASKS[:3] if group == "main" else TASKS[3:]
        worker = Worker(
            port, self.agents(names), group=group, member=member, clock=clock, lease=LEASE, stall_limit=8 * LEASE,
            source=SimSource(process.number + 1000 * self.seed, clock), drain=self.random.choice((0.0, 2.0, 10.0)),
            concurrency=self.random.choice((1, 3, 100)), max_live=self.random.choice((0, 2, 1000)),
        )  # fmt: skip
        worker.host, worker.pid = "sim", process.number
        worker.threads, worker.watchdog = Inline(), Still()  # type: ignore[assignment]
        world.workers[process] = worker
        try:
            code = await worker.run()
            world.note("ended", code)
        except BaseException as error:
            if process.dead or isinstance(error, asyncio.CancelledError):
                raise
            if hasattr(worker, "sub") or not _could_not_join(error):
                world.violation(f"the worker {member} ended with {error!r}")
                logging.getLogger("simulation").warning("%s", member, exc_info=error)
            world.note("ended with", type(error).__name__)
        finally:
            if not process.dead:
                if self.alive.get((group, member)) is process:
                    del self.alive[group, member]
                world.workers.pop(process, None)

    # ---- what is done to processes
    async def chaos(self) -> None:
        """Do something bad now and then, for as long as the storm lasts."""
        world, rnd = self.world, self.random
        deeds = [self._kill, self._freeze, self._cut, self._stop, self._join, self._check]
        while self.loop.time() < STORM:
            await asyncio.sleep(rnd.expovariate(1 / 3.0))
            living = [(key, p) for key, p in self.alive.items() if not p.dead]
            if living:
                rnd.choice(deeds)(*rnd.choice(living))
            world.index()

    def _kill(self, key: tuple[str, str], process: Process) -> None:
        self.world.meet("killed")
        self.world.kill(process)

    def _freeze(self, key: tuple[str, str], process: Process) -> None:
        if process.frozen:
            return
        long = self.random.random() < 0.6
        self.world.meet("frozen beyond its lease" if long else "frozen shortly")
        seconds = LEASE * (self.random.uniform(1.5, 5) if long else self.random.uniform(0.1, 1.0))
        process.frozen = True
        self.world.later(seconds, lambda: self._thaw(process))

    def _thaw(self, process: Process) -> None:
        self.world.note("thaws", process.name)
        process.frozen = False

    def _cut(self, key: tuple[str, str], process: Process) -> None:
        long = self.random.random() < 0.6
        self.world.meet("cut off beyond its lease" if long else "cut off shortly")
        seconds = LEASE * (self.random.uniform(1.5, 5) if long else self.random.uniform(0.1, 1.0))
        self.world.cut[process] = self.loop.time() + seconds

    def _stop(self, key: tuple[str, str], process: Process) -> None:
        worker = self.world.workers.get(process)
        if worker is not None:
            self.world.meet("stopped in good order")
            worker.stop()

    def _join(self, key: tuple[str, str], process: Process) -> None:
        if len(self.alive) < 5:
            self.world.meet("another worker joins")
            self.hire(key[0])

    def _check(self, key: tuple[str, str], process: Process) -> None:
        if worker := self.world.workers.get(process):
            check_worker(self.world, worker)

    async def supervise(self) -> None:
        """Start a worker again where one has died, under its name or another; at least one a group in the end."""
        world, rnd = self.world, self.random
        while True:
            await asyncio.sleep(rnd.uniform(0.5, 6.0))
            for key, process in list(self.alive.items()):
                if process.dead:
                    del self.alive[key]
                    same = rnd.random() < 0.5
                    if same:
                        world.meet("restarted under its name")
                    self.hire(key[0], key[1] if same else None)
            for group in ("main", "other"):
                late = group == "other" and self.loop.time() < self.late
                if not late and not any(g == group for g, _ in self.alive):
                    self.hire(group)

    # ---- clients
    async def client(self, n: int) -> None:
        """Start workflows, answer what they wait for, and ask until each has ended."""
        process, clock = current.get(), self.clock()
        bus = MessageBus(
            Port(self.world, process, clock), sender=f"client-{n}", clock=clock,
            source=SimSource(process.number + 1000 * self.seed, clock),
        )  # fmt: skip
        async with bus, asyncio.TaskGroup() as tasks:
            for i in range(self.random.randint(4, 12) if self.poison else self.random.randint(2, 5)):
                await asyncio.sleep(self.random.expovariate(1 / 4.0))
                order = self.order(f"w{n}-{i}")
                self.orders.append(order)
                tasks.create_task(self.see_through(bus, order))

    def order(self, id: str) -> Order:
        writer = Writer(self.random, id)
        if self.poison:
            program: Program = [{"do": "effect", "token": f"{id}.e", "fails": 0}]
            if self.random.random() < 0.25:
                self.deadly.add(id)
        else:
            program = writer.program(broken=self.random.random() < 0.1)
        return Order(id, self.random.choice(TASKS[:3] if self.poison else TASKS), program)

    async def see_through(self, bus: MessageBus, order: Order) -> None:
        rnd = self.random
        payload: Any = "poison" if order.id in self.deadly else order.program
        ttl = None
        if not self.poison and rnd.random() < 0.1:
            ttl, order.loose = rnd.choice((0.5, 5.0)), True
        handle = await _again(lambda: bus.start(order.agent, payload, id=order.id, ttl=ttl, priority=rnd.randint(0, 9)))
        order.started = True
        if not self.poison and rnd.random() < 0.1:
            order.loose = True
            self.loop.call_later(rnd.uniform(0, 20), lambda: self._cancel(bus, order))
        order.outcome = await self.result(handle)
        if order.broken:
            order.outcome = await self.mend(bus, order, handle)
        order.done = True
        if rnd.random() < 0.3:
            self.world.meet("message to a completed workflow")
            token = f"{'bad ' if rnd.random() < 0.2 else ''}{order.id}.late"
            to = rnd.choice((*TASKS, "*"))
            await _again(lambda: handle.send(token, kind="note", to=to))
            if not order.loose and not token.startswith("bad"):
                self.acknowledged.append((token, to))

    async def result(self, handle: Any) -> Any:
        while True:
            try:
                return "ok", await handle.result(20)
            except AgentError as error:
                return "error", str(error)
            except (RequestTimeout, TryAgain):
                await asyncio.sleep(0.5)

    async def talk(self) -> None:
        """Say what workflows wait for, again and again: it may have come before the handler that asks for it."""
        process, clock = current.get(), self.clock()
        source = SimSource(process.number + 1000 * self.seed, clock)
        bus = MessageBus(Port(self.world, process, clock), sender="person", clock=clock, source=source)
        while True:
            await asyncio.sleep(self.random.uniform(1, 20))
            for order in [o for o in self.orders if o.started]:
                for id in [order.id, *self.world.children(order.id)] if order.kinds else ():
                    follower = Follower(bus.broker, id)
                    with contextlib.suppress(TryAgain):
                        await follower.catch_up()
                        for kind in order.kinds:
                            if self.awaits(follower, kind) or self.random.random() < 0.02:
                                await bus.send("*", f"said {kind}", kind=kind, id=id)

    @staticmethod
    def awaits(follower: Follower, kind: str) -> bool:
        """Some handling of the workflow waits for a message of this kind."""
        return any(
            st.receives == kind and not st.settled
            for h in follower.workflow.open_handlings()
            for st in h.steps.values()
        )

    async def mend(self, bus: MessageBus, order: Order, handle: Any) -> Any:
        """The operator mends what was broken, and redrives what failed because of it."""
        outcome = order.outcome
        while outcome[0] == "error" and order.expected()[0] == "ok" and not order.loose:
            await asyncio.sleep(self.random.uniform(0, 5))
            self.world.mended = True
            try:
                await control.retry(bus, order.id)
                self.world.meet("redriven")
            except (TryAgain, VerbRefused) as error:
                self.world.note("retry", type(error).__name__)
            outcome = await self.result(handle)
        return outcome

    def _cancel(self, bus: MessageBus, order: Order) -> None:
        async def cancel() -> None:
            with contextlib.suppress(TryAgain, NoSuchWorkflow):
                await control.cancel(bus, order.id)
                self.world.meet("cancelled")

        self.start(f"cancels-{order.id}", cancel())

    # ---- rollbacks, written raw as their verb would
    async def roll_back(self) -> None:
        """Send some workflow back in time now and then; what came from outside is applied again."""
        process, clock = current.get(), self.clock()
        bus = MessageBus(Port(self.world, process, clock), clock=clock, source=SimSource(self.seed + 7, clock))
        while self.loop.time() < STORM:
            await asyncio.sleep(self.random.expovariate(1 / 12.0))
            started = [o.id for o in self.orders if not o.broken]
            ids = started + [c for o in started for c in self.world.children(o)]
            if not ids:
                continue
            with contextlib.suppress(TryAgain):
                follower = Follower(bus.broker, self.random.choice(ids))
                await follower.catch_up()
                record = self.rolled_back(bus, follower)
                if record is not None:
                    await bus.send_control(record)
                    await follower.catch_up()
                    if follower.workflow.verdicts[record.id] == "admitted":
                        self.world.meet("rolled back")

    async def roll_back_meanwhile(self, id: str | None) -> None:
        """A rollback comes between what a worker has decided and what it appends."""
        if any(id == o.id or id in self.world.children(o.id) for o in self.orders if not o.broken):
            follower = Follower(self.world.broker, id)
            await follower.catch_up()
            bus = MessageBus(self.world.broker, clock=self.world.clock, source=self.world.broker.source)
            record = self.rolled_back(bus, follower)
            if record is not None:
                await bus.send_control(record)

    def rolled_back(self, bus: MessageBus, follower: Follower) -> AgentMessage | None:
        w = follower.workflow
        if not w.version:
            return None
        to = self.random.randint(1, w.version)
        lost = [e.id for e in w.view.path[to:] if e.envelope is not None and is_outside(e.envelope)]
        fact = facts.RolledBack(to_version=to, op_id=bus.source.new_id(), reapply=tuple(lost), actor="operator")
        return AgentMessage(
            id=bus.source.new_id(), sender_id="operator", receiver_id="*", message_type=kinds.ROLLED_BACK,
            correlation_id=w.correlation, timestamp=bus.clock.now(), fact=fact,
            expected=Expected(generation=w.generation, inputs=w.view.inputs),
        )  # fmt: skip

    # ---- strangers
    async def strangers(self) -> None:
        """Others write to the log too: duplicates of anything, and messages in a partition that is not theirs."""
        world, rnd = self.world, self.random
        while self.loop.time() < STORM:
            await asyncio.sleep(rnd.expovariate(1 / 5.0))
            p = rnd.randrange(world.partitions)
            records = world.broker.log.partitions[p]
            if records and rnd.random() < 0.5:
                world.meet("old record again")
                old = rnd.choice(records)
                world.store(p, old.key, old.value)
            elif world.partitions > 1 and (started := [o for o in self.orders if o.started]):
                world.meet("message in a wrong partition")
                message = AgentMessage(
                    id=world.broker.source.new_id(), sender_id="stranger", receiver_id=rnd.choice(TASKS),
                    message_type="note", payload=f"stray {world.loop.time():.3f}",
                    correlation_id=rnd.choice(started).id, timestamp=world.clock.now(),
                )  # fmt: skip
                world.store(rnd.randrange(world.partitions), message.correlation_id, codec.encode(message))

    # ---- the whole
    def run(self) -> World:
        """Play it. What went wrong is in `world.wrong`."""
        try:
            self.loop.run_until_complete(self.main())
            told, self.loop.errors = self.loop.errors, []
            self.bury()
            told += [e for e in self.loop.errors if "never retrieved" in e.get("message", "")]
            self.world.wrong += [f"left behind: {e.get('message')} {e.get('exception')!r}" for e in told]
        except StuckError as error:
            self.world.wrong.append(str(error))
        return self.world

    async def main(self) -> None:
        world, rnd = self.world, self.random
        await world.broker.ensure_log(LogSpec(partitions=world.partitions))
        self.late = 0.0 if rnd.random() < 0.5 else rnd.uniform(5, 60)
        if self.late:
            world.meet("an agent appears late")
        for _ in range(rnd.randint(1, 3)):
            self.hire("main")
        if not self.late:
            self.hire("other")
        leases = asyncio.ensure_future(world.keep_leases())
        clients = [self.start(f"client-{n}", self.client(n)) for n in range(rnd.randint(1, 2))]
        if not self.poison:
            world.roll_back = self.roll_back_meanwhile
        else:
            world.rates = {k: r for k, r in world.rates.items() if not k.startswith("crash")}
        helpers = [self.start("supervisor", self.supervise()), self.start("people", self.talk())]
        bad = [] if self.poison else [self.chaos(), self.roll_back(), self.strangers()]
        trouble = [self.start("trouble", work) for work in bad]
        await asyncio.sleep(STORM)
        self.heal()
        for process in trouble:
            await self.roots[process]
        await self.settled(clients)
        for process in helpers:
            self.roots[process].cancel()
        await self.all_stop()
        leases.cancel()

    def heal(self) -> None:
        """No more faults: everybody is awake and connected."""
        world = self.world
        world.note("healed")
        world.healed = True
        world.cut.clear()
        for process in world.processes:
            if process.frozen:
                self._thaw(process)

    async def settled(self, clients: list[Process]) -> None:
        """Wait until every client has its answers and nothing is open in the log any more."""
        until = self.loop.time() + PATIENCE
        while self.loop.time() < until:
            await asyncio.sleep(2.0)
            waiting = [o.id for o in self.orders if not o.done]
            for p in clients:
                if self.roots[p].done() and (error := self.roots[p].exception()) is not None:
                    raise StuckError(f"{p} ended with {error!r}") from error
            if not waiting and all(self.roots[p].done() for p in clients):
                left = unfinished(self.world)
                if not left:
                    return
                await self.tidy(left)
        left = [o.id for o in self.orders if not o.done]
        raise StuckError(f"wedge: {PATIENCE} s after healing there is still open: {left or unfinished(self.world)}")

    async def tidy(self, left: list[str]) -> None:
        """The operator deals with dead letters that hold their place: discards them, or mends and redrives."""
        bus = MessageBus(self.world.broker, clock=self.world.clock, source=self.world.broker.source)
        for id in left:
            follower = Follower(self.world.broker, id)
            await follower.catch_up()
            for h in control.failed(follower.workflow):
                if (h.agent, h.message) not in follower.workflow.view.holding:
                    continue
                with contextlib.suppress(VerbRefused):
                    if self.random.random() < 0.5:
                        await control.discard(bus, id, h.agent, h.message)
                        self.world.meet("discarded")
                    else:
                        self.world.mended = True
                        await control.redrive(bus, id, h.agent, h.message)
                        self.world.meet("redriven")

    async def all_stop(self) -> None:
        """Stop every worker in good order, and see that nothing of it is left."""
        check_all(self)
        until = self.loop.time() + 60
        while self.loop.time() < until:
            for worker in self.world.workers.values():
                worker.stop()
            living = [self.roots[p] for p in self.world.processes if not p.dead and not self.roots[p].done()]
            if not living:
                break
            await asyncio.wait(living, timeout=5)
        for process in self.world.processes:
            root = self.roots[process]
            if not process.dead and not root.done():
                self.world.violation(f"{process} does not end")
            elif root.done() and not root.cancelled() and root.exception() is not None:
                self.world.violation(f"{process} ended with {root.exception()!r}")

    def bury(self) -> None:
        """Let what is left of the dead unwind (they reach nothing any more), and look for what was left behind."""
        loop, world = self.loop, self.world
        for process in world.processes:
            process.frozen = False
            if process.dead and not self.roots[process].done():
                self.roots[process].cancel()
        world.healed = True
        for process in world.processes:
            process.buried = True
        loop.run_until_complete(self._unwind())
        loop.close()

    async def _unwind(self) -> None:
        dead = [self.roots[p] for p in self.world.processes if not self.roots[p].done()]
        for _ in range(3):
            for task in dead:
                task.cancel()
            if dead:
                await asyncio.wait(dead, timeout=600)
            dead = [t for t in dead if not t.done()]
        left = asyncio.all_tasks(self.loop) - {asyncio.current_task()}
        for task in left:
            self.world.wrong.append(f"a task was left behind: {task!r}")
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=60)


def _could_not_join(error: BaseException) -> bool:
    """A worker that cannot join says so and ends; whoever runs it starts it again."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_could_not_join, error.exceptions))
    return isinstance(error, ConfigError | GroupConflict | BrokerUnavailable)


async def _again(call: Any) -> Any:
    """Do what a client does: try again with the same."""
    while True:
        try:
            return await call()
        except TryAgain:
            await asyncio.sleep(0.5)
