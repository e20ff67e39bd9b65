"""One run of a handler: its branches, the order in which outcomes reach them, and what it appends.

A run is deterministic over its recorded steps: outcomes are delivered one at a time, in the order of the path, and
the next one only when every branch waits in the context or has ended. So a rerun takes the same turns.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from ..bus import codec, facts, ids, kinds
from ..bus.clock import Clock, Source
from ..bus.errors import Divergence, ForeignTask, PartitionLost, StepCancelled, TooLarge, UnawaitedStep, YourBug
from ..bus.message import AgentMessage, Envelope
from ..projections.verdict import Verdict
from ..projections.view import Handling, Step
from ..projections.workflow import Workflow
from .agent import Handler
from .calls import Call, EffectCall, OutputCall, RequestCall, TimerCall, describe, invoke, value_of
from .threads import Threads
from .writing import work_record

if TYPE_CHECKING:
    from .context import Gather, Pending

current_effect: ContextVar[str] = ContextVar("refold_effect")
"""Idempotency key of the effect whose function is being called."""


class Host(Protocol):
    """What a run needs of the worker: the fold, the log, slots and time."""

    clock: Clock
    source: Source
    threads: Threads
    max_record: int

    def workflow(self) -> Workflow:
        """Return the run's workflow as it is folded now."""
        ...

    def now(self) -> float:
        """Return wall time, never below the newest timestamp folded here."""
        ...

    async def append(self, records: Sequence[AgentMessage], *, outcome: bool = False) -> None:
        """Append in order; PartitionLost when fenced (an `outcome` never is)."""
        ...

    async def read(self, ref: tuple[int, int]) -> bytes:
        """Return a record's bytes."""
        ...

    async def may_call(self) -> None:
        """Return when the lease is good for a call; PartitionLost when it is gone."""
        ...

    def waits(self) -> None:
        """The run only waits now: its slot is free."""
        ...

    def wants_slot(self) -> None:
        """The run can go on: `Run.go_on` is called when a slot is free."""
        ...

    def wake_at(self, due: float, step: str) -> None:
        """Call `Run.wake(step)` at that time."""
        ...


class BranchStopped(asyncio.CancelledError):
    """Another branch of the gather has failed: this one takes no further step."""


class Group:
    """The branches of one gather."""

    def __init__(self, parent: Group | None) -> None:
        self.parent = parent
        self.stopped = False

    def is_stopped(self) -> bool:
        return self.stopped or (self.parent is not None and self.parent.is_stopped())


class Branch:
    """A line of steps: the handler itself, or one argument of a gather."""

    def __init__(self, prefix: str, group: Group | None) -> None:
        self.prefix = prefix
        self.group = group
        self.count = 0
        self.calling = False

    def next_path(self) -> str:
        self.count += 1
        return f"{self.prefix}{self.count}"


class Run:
    """One run of one handling. `over` says why it was ended from outside; then nothing is appended any more."""

    message: AgentMessage

    def __init__(self, host: Host, handler: Handler, h: Handling, w: Workflow, writer: str) -> None:
        self.host = host
        self.handler = handler
        self.message_id = h.message
        self.ref = h.ref
        self.version = h.version
        self.agent = h.agent
        self.correlation = w.correlation
        self.generation = w.generation
        self.round = h.round
        self.tries = h.tries
        self.writer = writer
        self.over = ""
        self.wants_slot = False
        self.finishing = False
        self.last_id = ""
        self.announce = ""
        self.budget = handler.timeout
        self.fault: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.active = 0
        self.calls = 0
        self.settling = 0
        self.has_slot = True
        self.outbox: list[AgentMessage] = []
        self.asked: set[str] = set()
        self.unawaited: set[Pending[Any]] = set()
        self.values: dict[tuple[int, int], bytes] = {}
        self._appending = asyncio.Lock()
        self._branches: dict[asyncio.Task[Any], Branch] = {}
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._ready: list[tuple[int, str]] = []
        self._pushed: set[str] = set()

    # ---- what the fold says ----------------------------------------------------------------------------------------
    def handling(self) -> Handling | None:
        """Return the handling as it is folded now."""
        return self.host.workflow().view.handling(self.agent, self.message_id)

    def known(self, path: str) -> Step | None:
        """Return what is recorded of a step."""
        h = self.handling()
        return h.steps.get(path) if h is not None else None

    def settled(self, path: str, raw: bytes | None) -> None:
        """The fold has the step's value (told by the worker, for each record that settles one)."""
        st = self.known(path)
        if st is None or not st.settled:
            return
        if raw is not None:
            self.values[st.value] = raw
        self._push(path, st.settled)

    def judged(self, r: Envelope, verdict: Verdict) -> None:
        """One of this run's own records was folded."""
        if verdict in (Verdict.INVALID, Verdict.CONFLICT) and not self.over:
            self.fail(YourBug(f"refold wrote a record that admission refuses: {r.message_type} is {verdict} ({r.id})"))
        elif r.message_type == kinds.EFFECT_FAILED and r.work is not None:
            self._push(r.work.step, self.host.workflow().version)

    def wake(self, path: str) -> None:
        """The time has come for the step's next try."""
        self._push(path, self.host.workflow().version)

    def _push(self, path: str, order: int) -> None:
        if path in self._waiters and path not in self._pushed:
            self._pushed.add(path)
            heapq.heappush(self._ready, (order, path))
            self.go_on()

    # ---- turns -----------------------------------------------------------------------------------------------------
    def go_on(self) -> None:
        """Deliver the next outcome, if every branch waits and the run has a slot."""
        if self.active or self.over or not self._ready:
            return
        if not self.has_slot:
            if not self.wants_slot:
                self.wants_slot = True
                self.host.wants_slot()
            return
        _, path = heapq.heappop(self._ready)
        self._pushed.discard(path)
        waiter = self._waiters.pop(path)
        if not waiter.done():
            self.active += 1
            waiter.set_result(None)

    async def quiet(self) -> None:
        """Every branch waits or has ended: append what was output, deliver the next outcome, or free the slot."""
        if self.outbox:
            await self.flush()
        self.go_on()
        if not (self.active or self.calls or self.settling or self._ready or self.finishing):
            self.host.waits()

    def branch(self) -> Branch:
        """Return the branch of the current task. Raises ForeignTask, and ends what is over."""
        if self.over:
            raise asyncio.CancelledError(self.over)
        if self.fault is not None:
            raise self.fault
        task = asyncio.current_task()
        branch = self._branches.get(task) if task is not None else None
        if branch is None:
            raise self._bug(
                ForeignTask(
                    "the context was used from a task that it did not start; run branches with "
                    "`await ctx.gather(...)` instead of asyncio.create_task, asyncio.gather or a TaskGroup"
                )
            )
        if branch.calling:
            raise self._bug(YourBug("the context was used inside an effect's function; steps do not nest"))
        if branch.group is not None and branch.group.is_stopped():
            raise BranchStopped
        return branch

    def _bug(self, error: YourBug) -> YourBug:
        self.fault = self.fault or error
        return error

    def fail(self, error: BaseException) -> None:
        """Fail the attempt from outside of the handler's code."""
        self.fault = self.fault or error
        if self.task is not None and not self.finishing:
            self.task.cancel()

    def end(self, why: str, *, let_calls_finish: bool = False) -> None:
        """End the run from outside: it appends nothing more, whatever its code does.

        `let_calls_finish`: a call in flight may end, and its outcome is still appended.
        """
        if not self.over:
            self.over = why
            if self.task is not None and not (self.calls and let_calls_finish):
                self.task.cancel()

    # ---- awaited steps ---------------------------------------------------------------------------------------------
    async def take(self, call: Call, path: str | None = None) -> Any:
        """Take a step: from the log if it is recorded, else by asking for it and waiting for the log to have it."""
        branch = self.branch()
        path = path or branch.next_path()
        st = self._compare(path, call)
        if st is not None and st.settled:
            await self._outcome(path, st.settled)
        elif isinstance(call, EffectCall):
            await self._effect(branch, path, call)
        else:
            if st is None:
                self.outbox.append(self._opening(path, call))
            await self._outcome(path)
        return await self._value(path, call)

    async def _outcome(self, path: str, order: int = 0) -> None:
        """Wait until it is this step's turn."""
        waiter = self._waiters[path] = asyncio.get_running_loop().create_future()
        if order:
            self._pushed.add(path)
            heapq.heappush(self._ready, (order, path))
        self.active -= 1
        try:
            if not self.active:
                await self.quiet()
            await waiter
        except BaseException as error:
            self._interrupted(path, waiter, error)
            raise

    def _interrupted(self, path: str, waiter: asyncio.Future[None], error: BaseException) -> None:
        """The wait ended without an outcome: the branch is active again."""
        if not waiter.done() or waiter.cancelled():
            self._waiters.pop(path, None)
            self.active += 1
        if isinstance(error, asyncio.CancelledError) and not self.over and self.fault is None:
            self.fault = StepCancelled(
                f"step {path} was cancelled by something that is not refold (asyncio.timeout, asyncio.wait_for?); "
                "use the step's own `timeout=`"
            )

    def _compare(self, path: str, call: Call) -> Step | None:
        self.asked.add(path)
        st = self.known(path)
        if st is not None and not call.same(st.kind, st.name, st.digest, st.child):
            raise self.diverged(path, describe(st.kind, st.name, st.digest, st.child), str(call))
        return st

    def diverged(self, path: str, recorded: str, now: str) -> Divergence:
        """Park the handling: the code does not fit what is recorded. Returns the error, which ends the run."""
        error = Divergence(f"step {path} is recorded as {recorded}, but the code now asks for {now}")
        self.fault = self.fault or error
        return error

    def _opening(self, path: str, call: Call) -> AgentMessage:
        fact = facts.Call(name=call.name, digest=call.digest)
        if isinstance(call, RequestCall):
            deadline = self.message.deadline
            if call.timeout is not None:
                mine = self.host.now() + call.timeout
                deadline = mine if deadline is None else min(deadline, mine)
            r = self.record(
                kinds.TASK_REQUEST, path, call.payload, receiver=call.receiver, fact=fact, asked=True,
                deadline=deadline, priority=self.message.priority if call.priority is None else call.priority,
            )  # fmt: skip
            if call.child:
                r = codec.with_changes(r, to=ids.child_correlation(r.id))
            return r
        assert isinstance(call, TimerCall)
        due = None if call.seconds is None else self.host.now() + call.seconds
        timer = facts.TimerSet(due=due, kind=call.receives, name=call.name, digest=call.digest)
        return self.record(kinds.TIMER_SET, path, None, fact=timer)

    async def _value(self, path: str, call: Call) -> Any:
        st = self.known(path)
        if st is None or not st.settled:
            raise asyncio.CancelledError(self.over or "the step is gone")
        raw = self.values.pop(st.value, None)
        if raw is None:
            raw = b'{"payload":null}' if st.value == (0, -1) else await self.host.read(st.value)
        try:
            return value_of(call, st.value_kind, raw)
        except Exception as error:
            error.step = path  # type: ignore[attr-defined]
            raise

    # ---- effects ---------------------------------------------------------------------------------------------------
    async def _effect(self, branch: Branch, path: str, call: EffectCall) -> None:
        while True:
            st = self.known(path)
            if st is not None and st.due is not None and st.due > self.host.now():
                self.host.wake_at(st.due, path)
                await self._outcome(path)
            await self._call(branch, path, call)
            st = self.known(path)
            if st is not None and st.settled:
                return

    async def _call(self, branch: Branch, path: str, call: EffectCall) -> None:
        """Call the function once, append its outcome, and wait for its turn."""
        self.calls += 1
        self.active -= 1
        branch.calling = True
        waiter = self._waiters[path] = asyncio.get_running_loop().create_future()
        try:
            if self.outbox:
                await self.flush()
            if not self.active:
                self.go_on()
            outcome = await self._try(path, call)
            await self._append([outcome], outcome=True)
            if self.over:
                raise asyncio.CancelledError(self.over)
        except BaseException as error:
            self._interrupted(path, waiter, error)
            raise
        finally:
            branch.calling = False
            self.calls -= 1
        self.settling += 1
        try:
            if not self.active:
                await self.quiet()
            await waiter
        except BaseException as error:
            self._interrupted(path, waiter, error)
            raise
        finally:
            self.settling -= 1

    async def _try(self, path: str, call: EffectCall) -> AgentMessage:
        w = self.host.workflow()
        st = self.known(path)
        key = st.effect if st is not None and st.effect else ""
        if not key:
            n = w.ledger.issue_number(w.view, self.agent, self.message_id, path)
            key = ids.effect_key(self.correlation, self.agent, self.message_id, path, n)
        await self.host.may_call()
        token = current_effect.set(key)
        try:
            value = codec.to_json(await invoke(call, key, self.host.threads))
            fact = facts.EffectCompleted(effect=key, name=call.name, digest=call.digest)
            done = self.record(kinds.EFFECT_COMPLETED, path, value, fact=fact)
            self.check_size(done)
        except Exception as error:  # noqa: BLE001 - whatever the user's function raises is its outcome
            tries = (st.tries if st is not None else 0) + 1
            final = tries >= call.retry.attempts or isinstance(error, TooLarge)
            due = None if final else self.host.now() + call.retry.delay(tries, self.host.source.jitter())
            failed = facts.EffectFailed(
                effect=key, name=call.name, digest=call.digest, final=final, error=type(error).__name__, due=due
            )
            return self.record(kinds.EFFECT_FAILED, path, describe_error(error), fact=failed)
        else:
            return done
        finally:
            current_effect.reset(token)

    # ---- gather ----------------------------------------------------------------------------------------------------
    async def gather(self, gather: Gather[Any]) -> list[Any]:
        """Run the branches; results in the order of the arguments."""
        parent = self.branch()
        path = parent.next_path()
        group = Group(parent.group)
        todo = list(enumerate(gather.arguments))[::-1]
        results: list[Any] = [None] * len(todo)
        errors: list[BaseException] = []
        if not todo:
            return []
        left = len(todo)

        async def branch(i: int, argument: Awaitable[Any]) -> None:
            nonlocal left
            task = asyncio.current_task()
            assert task is not None
            self._branches[task] = Branch(f"{path}.{i + 1}.", group)
            try:
                results[i] = await self._argument(argument, f"{path}.{i + 1}")
            except BranchStopped:
                pass
            except asyncio.CancelledError:
                group.stopped = True
                raise
            except Exception as error:  # noqa: BLE001 - delivered to the handler, in order
                results[i] = error
                if not gather.return_exceptions:
                    errors.append(error)
                    group.stopped = True
            finally:
                del self._branches[task]
                left -= 1
                while group.stopped and todo:
                    left -= 1
                    _discard(todo.pop()[1])
                if todo:
                    start()
                elif not left:
                    self.active += 1
                self.active -= 1
            if not self.active and not self.over:
                await self.quiet()

        def start() -> None:
            i, argument = todo.pop()
            self.active += 1
            tasks.create_task(branch(i, argument))

        self.active -= 1
        async with asyncio.TaskGroup() as tasks:
            for _ in range(min(gather.limit or len(todo), len(todo))):
                start()
        if errors:
            errors[0].also = errors[1:]  # type: ignore[attr-defined]
            raise errors[0]
        return results

    async def _argument(self, argument: Awaitable[Any], path: str) -> Any:
        from .context import Pending

        if isinstance(argument, Pending):
            self.unawaited.discard(argument)
            return await self.take(argument.call, path)
        return await argument

    # ---- records ---------------------------------------------------------------------------------------------------
    def output(self, call: OutputCall) -> None:
        """A plain call: append its record with the next append, unless it is recorded."""
        path = self.branch().next_path()
        if self._compare(path, call) is not None:
            return
        fact: facts.Fact
        if call.kind == kinds.STATE_CHANGED:
            fact = facts.StateChanged(name=call.name, digest=call.digest)
        else:
            fact = facts.Call(name=call.name, digest=call.digest)
        r = self.record(call.kind, path, call.payload, receiver=call.receiver, fact=fact, headers=call.headers)
        self.check_size(r)
        self.outbox.append(r)

    def next_number(self) -> str:
        """Take a number for a call that leaves no record (random, uuid)."""
        path = self.branch().next_path()
        self.asked.add(path)
        return path

    def record(
        self, kind: str, step: str, payload: Any, *, receiver: str = "*", done: bool = False, **fields: Any
    ) -> AgentMessage:
        """Make a record of this run; its id is derived, so that every run makes the same."""
        fields.setdefault("priority", self.message.priority)
        return work_record(
            self.host.workflow(), agent=self.agent, message=self.message_id, round=self.round,
            generation=self.generation, writer=self.writer, kind=kind, now=self.host.now(), step=step,
            payload=payload, receiver=receiver, done=done, **fields,
        )  # fmt: skip

    def check_size(self, r: AgentMessage) -> None:
        """Refuse a record that the log would refuse, at the call that makes it. Raises TooLarge."""
        size = len(codec.encode(r))
        if size > self.host.max_record:
            raise TooLarge(
                f"the record of {r.message_type} has {size} bytes, the log takes {self.host.max_record}",
                path="$.payload",
                remedy="store it elsewhere (a file, an object store) and send a reference",
            )

    async def flush(self) -> None:
        """Append what was output so far."""
        records, self.outbox = self.outbox, []
        await self._append(records)

    async def _append(self, records: list[AgentMessage], *, outcome: bool = False) -> None:
        if not records or (self.over and not outcome):
            return
        async with self._appending:
            try:
                await self.host.append(records, outcome=outcome)
            except PartitionLost as e:
                self.end(str(e))
                raise asyncio.CancelledError(self.over) from e
            except Exception as e:
                self.fault = self.fault or e
                if self.task is not asyncio.current_task():
                    self.fail(e)
                raise

    # ---- the handler itself ----------------------------------------------------------------------------------------
    def begin(self) -> None:
        """The current task is the handler's."""
        self.task = asyncio.current_task()
        assert self.task is not None
        self._branches[self.task] = Branch("", None)
        self.active = 1

    def finish(self) -> None:
        """The handler has returned: its steps must be those that are recorded. Raises UnawaitedStep, Divergence."""
        self.finishing = True
        if self.fault is not None:
            raise self.fault
        if self.unawaited:
            names = ", ".join(sorted(str(p.call) for p in self.unawaited))
            raise UnawaitedStep(f"never awaited: {names}; write `await ctx...`, or give it to ctx.gather")
        h = self.handling()
        missing = [p for p in (h.steps if h is not None else {}) if p not in self.asked]
        if missing and h is not None:
            st = h.steps[missing[0]]
            raise self.diverged(missing[0], describe(st.kind, st.name, st.digest, st.child), "the end of the handling")


def describe_error(error: BaseException) -> str:
    """Return an error's class and text, at most 2,000 characters."""
    text = str(error)
    return f"{type(error).__name__}: {text}"[:2000] if text else type(error).__name__


def causes_of(error: BaseException) -> tuple[str, ...]:
    """Return the paths of the step failures that escaped with this error, or are in its context."""
    found: dict[str, None] = {}
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        e = todo.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        if getattr(e, "step", ""):
            found[e.step] = None  # type: ignore[attr-defined]
        todo += [e.__cause__, e.__context__, *getattr(e, "also", ()), *getattr(e, "exceptions", ())]
    return tuple(sorted(found, key=lambda p: [int(x) for x in p.split(".")]))


def _discard(argument: Awaitable[Any]) -> None:
    close = getattr(argument, "close", None)
    if close is not None:
        close()
