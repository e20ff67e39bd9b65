"""One run of a handler: its branches, the order in which outcomes reach them, and what it appends.

A run is deterministic over its recorded steps: outcomes are delivered one at a time, in the order of the path, and
the next one only when every branch waits in the context or has ended. So a rerun takes the same turns.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from ..bus import codec, facts, ids, kinds
from ..bus.clock import Clock, Source
from ..bus.errors import (
    Divergence,
    ForeignTask,
    HandlerTimeout,
    PartitionLost,
    StepCancelled,
    TooLarge,
    TryAgain,
    UnawaitedStep,
    YourBug,
)
from ..bus.message import AgentMessage, Envelope
from ..projections.verdict import Verdict
from ..projections.view import NOWHERE, Handling, Step
from ..projections.workflow import Workflow
from .agent import Handler
from .branches import Branch, BranchStopped, Gathering
from .calls import Call, EffectCall, OutputCall, RequestCall, TimerCall, describe, invoke, value_of
from .causes import as_failure, describe_error, is_own
from .threads import NoThread, Threads
from .writing import work_record

if TYPE_CHECKING:
    from .context import Gather, Once

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

    def append(self, records: Sequence[AgentMessage], *, outcome: bool = False) -> Awaitable[None]:
        """Append in order; PartitionLost when fenced (an `outcome` never is)."""
        ...

    async def read(self, ref: tuple[int, int]) -> bytes:
        """Return a record's bytes."""
        ...

    async def may_call(self) -> None:
        """Return when the lease is good for a call; PartitionLost when it is gone."""
        ...

    def waits(self, run: Run) -> None:
        """The run only waits now: its slot is free."""
        ...

    def wants_slot(self, run: Run) -> None:
        """The run can go on: `Run.go_on` is called when a slot is free."""
        ...

    def told_to_end(self, run: Run) -> None:
        """The run's task was cancelled, or has an error that ends it: see to it that it ends."""
        ...

    def wake_at(self, run: Run, due: float, step: str) -> None:
        """Call `Run.wake(step)` at that time."""
        ...


class Run:
    """One run of one handling. `over` says why it was ended from outside; then nothing is appended any more."""

    __slots__ = (
        "_appending", "_failures", "_pushed", "_ready", "_waiters", "active", "agent", "announce", "appends", "asked",
        "branches", "budget", "calls", "correlation", "expires", "fault", "finishing", "generation", "handler",
        "has_slot", "host", "last_id", "message", "message_id", "outbox", "over", "ref", "reruns", "round", "settling",
        "stops_after_calls", "task", "tries", "unawaited", "values", "version", "wants_slot", "writer",
    )  # fmt: skip
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
        self.reruns = bool(h.steps)
        self.expires = None if h.begun else h.expires
        self.writer = writer
        self.over = ""
        self.wants_slot = False
        self.finishing = False
        self.last_id = ""
        self.stops_after_calls = False
        self.announce = ""
        self.budget = handler.timeout
        self.fault: BaseException | None = None
        self.task: asyncio.Task[None] | None = None
        self.active = 0
        self.calls = 0
        self.settling = 0
        self.appends = 0
        self.has_slot = True
        self.outbox: list[AgentMessage] = []
        self.asked: set[str] = set()
        self.unawaited: set[Once] = set()
        self.values: dict[tuple[int, int], bytes] = {}
        self._appending = asyncio.Lock()
        self.branches: dict[asyncio.Task[Any], Branch] = {}
        self._waiters: dict[str, asyncio.Future[None]] = {}
        self._ready: list[tuple[int, str]] = []
        self._pushed: set[str] = set()
        self._failures: dict[str, str] = {}

    # ---- what the fold says ----------------------------------------------------------------------------------------
    def handling(self) -> Handling | None:
        """Return the handling as it is folded now."""
        by_agent = self.host.workflow().view.handlings.get(self.message_id)
        return by_agent.get(self.agent) if by_agent is not None else None

    def known(self, path: str) -> Step | None:
        """Return what is recorded of a step."""
        by_agent = self.host.workflow().view.handlings.get(self.message_id)
        h = by_agent.get(self.agent) if by_agent is not None else None
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
        elif r.id in self._failures:
            self._push(self._failures.pop(r.id), self.host.workflow().version)

    def awaits(self, id: str) -> bool:
        """The run goes on when a record with this id is folded, whoever wrote it."""
        return id == self.last_id or id in self._failures

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
        while self._ready and not (self.active or self.over or self.fault is not None):
            if not self.has_slot:
                if not self.wants_slot:
                    self.wants_slot = True
                    self.host.wants_slot(self)
                return
            _, path = heapq.heappop(self._ready)
            self._pushed.discard(path)
            waiter = self._waiters.pop(path, None)
            if waiter is not None and not waiter.done():
                self.active += 1
                waiter.set_result(None)

    async def quiet(self) -> None:
        """Every branch waits or has ended: append what was output, deliver the next outcome, or free the slot."""
        if self.outbox:
            await self.flush()
        self.go_on()
        if not (self.busy or self._ready or self.finishing):
            self.host.waits(self)

    @property
    def busy(self) -> bool:
        """A branch goes on, or a call, or an append (without which what it waits for is not recorded), or its end."""
        return bool(self.active or self.calls or self.settling or self.appends or self.fault is not None)

    def branch(self) -> Branch:
        """Return the branch of the current task. Raises ForeignTask, and ends what is over."""
        if self.over:
            raise asyncio.CancelledError(self.over)
        if self.fault is not None:
            raise self.fault
        try:
            task = asyncio.current_task()
        except RuntimeError:
            raise self.bug(
                ForeignTask("the context was used from a thread; it belongs to its handler's task")
            ) from None
        branch = self.branches.get(task) if task is not None else None
        if branch is None:
            raise self.bug(
                ForeignTask(
                    "the context was used from a task that it did not start; run branches with "
                    "`await ctx.gather(...)` instead of asyncio.create_task, asyncio.gather or a TaskGroup, "
                    "and bound a step with its own `timeout=` instead of asyncio.wait_for"
                )
            )
        if branch.calling:
            raise self.bug(YourBug("the context was used inside an effect's function; steps do not nest"))
        if branch.group is not None and branch.group.is_stopped():
            raise BranchStopped
        return branch

    # ---- ending it from outside of its code --------------------------------------------------------------------------
    def bug(self, error: YourBug) -> YourBug:
        """Fail the attempt with a mistake of the handler's code, which shall raise it. Returns it."""
        self.fault = self.fault or error
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return error
        if task is self.task:
            self.host.told_to_end(self)
        elif not self.finishing:
            self._stop(let_calls_finish=True)  # its branches may wait for ever
        return error

    def fail(self, error: BaseException) -> None:
        """Fail the attempt from outside of the handler's code."""
        self.fault = self.fault or error
        if not self.finishing:
            self._stop()

    def end(self, why: str, *, let_calls_finish: bool = False) -> None:
        """End the run from outside: it appends nothing more, whatever its code does.

        `let_calls_finish`: a call in flight may end, and its outcome is still appended.
        """
        if not self.over:
            self.over = why
            self._stop(let_calls_finish=let_calls_finish)

    def _stop(self, *, let_calls_finish: bool = False) -> None:
        self.stops_after_calls = let_calls_finish and self.calls > 0
        if self.task is not None and not self.stops_after_calls:
            self.task.cancel()
            self.host.told_to_end(self)

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
        await self._turn(path, waiter)

    async def _turn(self, path: str, waiter: asyncio.Future[None]) -> None:
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
            self.bug(
                StepCancelled(
                    f"step {path} was cancelled by something that is not refold (asyncio.timeout, asyncio.wait_for, a "
                    "TaskGroup whose other task failed?); to bound a step use its own `timeout=`"
                )
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
        self.bug(error)
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
            self.check_size(r)
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
            raw = await self._read(st.value)
        try:
            return value_of(call, st.value_kind, raw)
        except Exception as error:
            error.step = path  # type: ignore[attr-defined]
            raise

    async def _read(self, ref: tuple[int, int]) -> bytes:
        if ref == NOWHERE:
            return b'{"payload":null}'
        try:
            return await self.host.read(ref)
        except TryAgain as error:  # the log is out of reach: nothing that the handler did
            self.fail(error)
            raise

    # ---- effects ---------------------------------------------------------------------------------------------------
    async def _effect(self, branch: Branch, path: str, call: EffectCall) -> None:
        while (st := self.known(path)) is None or not st.settled:
            if st is not None and st.due is not None and st.due > self.host.now():
                self.host.wake_at(self, st.due, path)
                await self._outcome(path)
            else:
                await self._call(branch, path, call)

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
            if outcome is not None:
                await self._append_outcome(path, outcome)
        except BaseException as error:
            self._interrupted(path, waiter, error)
            raise
        finally:
            branch.calling = False
            self._called()
        self.settling += 1
        try:
            await self._turn(path, waiter)
        finally:
            self.settling -= 1

    def _called(self) -> None:
        """A call has ended: the last one ends a run that was told to end after its calls."""
        self.calls -= 1
        if not self.calls and self.stops_after_calls:
            self._stop()

    async def _append_outcome(self, path: str, outcome: AgentMessage) -> None:
        if isinstance(outcome.fact, facts.EffectFailed) and not outcome.fact.final:
            self._failures[outcome.id] = path
        await self._append([outcome], outcome=True)
        if self.over:
            raise asyncio.CancelledError(self.over)
        w = self.host.workflow()
        if outcome.id in self._failures and outcome.id in w.verdicts:
            self._push(self._failures.pop(outcome.id), w.version)  # an append whose end was not known had worked

    async def _try(self, path: str, call: EffectCall) -> AgentMessage | None:
        """Call the function and return its outcome; None where the log has one since."""
        await self.host.may_call()
        w, st = self.host.workflow(), self.known(path)
        if st is not None and st.settled:
            return None  # an append whose end was not known had worked
        key = st.effect if st is not None and st.effect else ""
        if not key:
            n = w.ledger.issue_number(w.view, self.agent, self.message_id, path)
            key = ids.effect_key(self.correlation, self.agent, self.message_id, path, n)
        token = current_effect.set(key)
        try:
            value = codec.to_json(await invoke(call, key, self.in_thread))
            fact = facts.EffectCompleted(effect=key, name=call.name, digest=call.digest)
            done = self.record(kinds.EFFECT_COMPLETED, path, value, fact=fact)
            self.check_size(done)
        except BaseException as error:
            if error is self.fault or not is_own(error):
                raise
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise asyncio.CancelledError from error  # no outcome of the function's: it was ended
            error = as_failure(error, f"effect {call.name!r}")
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

    async def in_thread(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None
    ) -> Any:
        """Call a plain function of the handler's in a thread. Raises Late after `timeout` seconds."""

        def late() -> bool:
            return isinstance(self.fault, HandlerTimeout)

        try:
            return await self.host.threads.run(function, args, kwargs, timeout, late)
        except NoThread as error:  # no outcome of the function's, and nothing that a record can say
            self.fail(error)
            raise

    # ---- gather ----------------------------------------------------------------------------------------------------
    async def gather(self, gather: Gather[Any]) -> list[Any]:
        """Run the branches; results in the order of the arguments."""
        try:
            parent = self.branch()
            path = parent.next_path()
        except BaseException:
            gather.drop()
            raise
        branches = Gathering(self, gather.arguments, gather.limit, gather.return_exceptions, path, parent.group)
        return await branches.results_of_all()

    async def argument(self, argument: Awaitable[Any], path: str) -> Any:
        """Return the value of a gather's argument; a plain step has exactly its branch's path."""
        from .context import Pending

        if isinstance(argument, Pending):
            return await self.take(argument.claim(), path)
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
        if "priority" not in fields:
            fields["priority"] = self.message.priority
        return work_record(
            self.host.workflow(), agent=self.agent, message=self.message_id, round=self.round,
            generation=self.generation, writer=self.writer, kind=kind, now=self.host.now(), step=step,
            payload=payload, receiver=receiver, done=done, **fields,
        )  # fmt: skip

    def check_size(self, r: AgentMessage) -> None:
        """Refuse a record that the log would refuse, at the call that makes it. Raises TooLarge."""
        size = len(codec.keep(r))
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
        self.appends += 1
        try:
            async with self._appending:
                await self.host.append(records, outcome=outcome)
        except PartitionLost as e:
            self.end(str(e))
            raise asyncio.CancelledError(self.over) from e
        except Exception as e:
            self.fault = self.fault or e
            if self.task is not asyncio.current_task():
                self.fail(e)
            raise
        finally:
            self.appends -= 1

    # ---- the handler itself ----------------------------------------------------------------------------------------
    def begin(self) -> None:
        """The current task is the handler's."""
        self.task = asyncio.current_task()
        assert self.task is not None
        self.branches[self.task] = Branch("", None)
        self.active = 1

    def finish(self) -> None:
        """The handler has returned: its steps must be those that are recorded. Raises UnawaitedStep, Divergence."""
        if self.over:
            raise asyncio.CancelledError(self.over)
        self.finishing = True
        if self.fault is not None:
            raise self.fault
        if self.unawaited:
            raise self.never_awaited()
        self.check_all_asked()

    def never_awaited(self) -> UnawaitedStep:
        """Return the error that names the steps which were made and not taken."""
        names = ", ".join(sorted(str(step) for step in self.unawaited))
        return UnawaitedStep(f"never awaited: {names}; write `await ctx...`, or give it to ctx.gather")

    def check_all_asked(self) -> None:
        """Raise Divergence where the handling is about to end without having asked for what is recorded."""
        h = self.handling()
        for path, st in h.steps.items() if h is not None else ():
            if path not in self.asked:
                raise self.diverged(path, describe(st.kind, st.name, st.digest, st.child), "the end of the handling")
