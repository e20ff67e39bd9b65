"""Carrying out a run: load what it needs, call the handler, append how it ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from ..bus import codec, facts, kinds
from ..bus.broker import Appended, Duplicate, Fence, Fenced, Item, Outgoing
from ..bus.clock import Clock, Source
from ..bus.errors import (
    Divergence,
    Failure,
    HandlerTimeout,
    PartitionLost,
    StepCancelled,
    TryAgain,
    UnawaitedStep,
    UndecodableRecord,
)
from ..bus.message import AgentMessage
from ..projections.patch import merge_patch
from ..projections.view import NOWHERE, Ref
from ..projections.workflow import Workflow
from .calls import typed
from .causes import as_failure, describe_error, is_own, text_of
from .context import Context, PlainFacts
from .outcome import completion, ended, failure
from .place import Place, RunKey
from .run import Run
from .threads import Late, Threads

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")


COARSE = 5.0
"""Seconds: longer running times are looked at when the worker's heart beats, shorter ones have timers of their own."""


class Doing(Struct, frozen=True):
    """What the current task works on; log handlers add it to every line logged inside a handler."""

    workflow: str
    agent: str
    message: str
    attempt: int


doing: ContextVar[Doing | None] = ContextVar("refold_doing", default=None)


class RunHost:
    """What one run sees of its worker. It does not know its run: a cycle would leave each for the garbage collector."""

    __slots__ = ("_since", "_stood", "_timer", "clock", "key", "max_record", "place", "source", "threads", "worker")

    def __init__(self, worker: Worker, place: Place, key: RunKey) -> None:
        self.worker = worker
        self.place = place
        self.key = key
        self.clock: Clock = worker.clock
        self.source: Source = worker.source
        self.threads: Threads = worker.threads
        self.max_record = worker.broker.meta.max_record
        self._timer: asyncio.TimerHandle | None = None
        self._since = self._stood = 0.0

    def workflow(self) -> Workflow:
        """Return the workflow as it is folded now."""
        place, correlation = self.place, self.key[0]
        w = place.fold.live.get(correlation) or place.find(correlation) or place.fold.recent.get(correlation)
        if w is None:
            raise asyncio.CancelledError("the workflow is complete")
        return w

    def now(self) -> float:
        """Return wall time, never below the newest timestamp folded here."""
        return self.place.now(self.clock.now())

    def append(self, records: Sequence[AgentMessage], *, outcome: bool = False) -> Coroutine[Any, Any, None]:
        """Append in order; as few appends as `max_append` allows."""
        place, fence = self.place, None
        if not outcome:
            if place.ended:
                raise PartitionLost("the partition has gone to another worker")
            fence = self.fence()
        return append_records(self.worker, place.partition, self.key[0], records, fence)

    def fence(self) -> Fence:
        """Return whose right this run's appends claim."""
        return self.place.fence(self.worker.group)

    async def read(self, ref: Ref) -> bytes:
        """Return a record's bytes."""
        return await self.worker.records.read(self.place.partition, ref)

    async def may_call(self) -> None:
        """Wait until the lease has more than a quarter left."""
        await self.worker.lease_good(self.place)

    # ---- slot and running time -------------------------------------------------------------------------------------
    def started(self, run: Run) -> None:
        """The run has a slot: its running time counts."""
        crew = self.worker.crew
        self._since = now = crew.time()
        self._stood = crew.standstill.until(now)
        self._arm(run)

    def _arm(self, run: Run) -> None:
        """See to it that `out_of_time` is called when the run's budget is spent."""
        if run.budget > COARSE:
            self.worker.crew.timed[run] = self
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(max(self.due(run), loop.time()), self.out_of_time, run)

    def due(self, run: Run) -> float:
        """Return when the run's time is over, by the loop's clock, unless nothing can run meanwhile."""
        return self._since + run.budget

    def stopped(self, run: Run) -> None:
        """The run has no slot any more: what is left of its time is for when it has one again."""
        if self.disarm(run):
            now = self.worker.crew.time()
            run.budget -= now - self._since - (self.worker.crew.standstill.until(now) - self._stood)

    def disarm(self, run: Run) -> bool:
        """The run's time does not count any more; False where it did not."""
        timed = self.worker.crew.timed.pop(run, None) is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer, timed = None, True
        return timed

    def out_of_time(self, run: Run) -> None:
        """The handler has run for as long as it may, but for the time in which nothing could run."""
        crew = self.worker.crew
        stood = crew.standstill.until(crew.time())
        more = stood - self._stood
        if more > 0:
            self._since, self._stood = self._since + more, stood
            self._arm(run)
        elif not run.finishing:
            run.fail(HandlerTimeout(f"the handler ran for more than {run.handler.timeout} s; see `timeout=`"))

    def told_to_end(self, run: Run) -> None:
        """The run's task was cancelled, or has an error that ends it: see to it that it ends."""
        self.worker.crew.watch(self.place, self.key, run, self)

    def waits(self, run: Run) -> None:
        """The run only waits now."""
        if run.has_slot:
            run.has_slot = False
            self.stopped(run)
            self.worker.crew.waits(self.place, self.key, run)

    def wants_slot(self, run: Run) -> None:
        """The run can go on."""
        self.worker.scheduler.resume(self.key, lambda: self._resume(run))

    def _resume(self, run: Run) -> None:
        run.wants_slot = False
        if run.over or run.has_slot:
            self.worker.scheduler.release()
            return
        run.has_slot = True
        self.worker.crew.waiting.pop(run, None)
        self.started(run)
        run.go_on()
        if not run.busy:
            self.waits(run)

    def wake_at(self, run: Run, due: float, step: str) -> None:
        """Call `Run.wake(step)` at that time."""
        asyncio.get_running_loop().call_later(max(0.0, due - self.now()), self._wake, run, step)

    def _wake(self, run: Run, step: str) -> None:
        if not run.over:
            run.wake(step)


async def append_records(
    worker: Worker, partition: int, correlation: str, records: Sequence[AgentMessage], fence: Fence | None
) -> None:
    """Append records of one workflow in order, each append within `max_append`. PartitionLost when fenced."""
    broker = worker.broker
    for outgoing in batches(records, broker.meta.max_append):
        (result,) = await broker.append([Item(partition, correlation, outgoing)], fence)
        if isinstance(result, Fenced):
            worker.fenced += 1
            raise PartitionLost("the partition has gone to another worker")
        if isinstance(result, Duplicate) and len(outgoing) > 1:
            for record in outgoing:  # the broker refused all of them for one: admission sorts out the rest
                await broker.append([Item(partition, correlation, (record,))], fence)
        assert isinstance(result, Appended | Duplicate)


def batches(records: Sequence[AgentMessage], limit: int) -> list[tuple[Outgoing, ...]]:
    """Return the records as they are appended: together, as far as so many bytes go."""
    out = [Outgoing(r.id, codec.encode(r)) for r in records]
    if len(out) == 1 or sum(len(record.value) for record in out) <= limit:
        return [tuple(out)]
    some: list[tuple[Outgoing, ...]] = []
    size = limit
    for record in out:
        size += len(record.value)
        if size > limit:
            some.append(())
            size = len(record.value)
        some[-1] += (record,)
    return some


async def execute(run: Run, host: RunHost) -> None:
    """Run the handler to its end, and append how it ended. Never raises but to be cancelled."""
    try:
        await load(run, host)
    except UndecodableRecord as error:  # no attempt would be better: it gives up at once
        if run.over:
            return
        run.finishing = True
        await conclude(run, host, ended(run, error, dead=True), 0.0)
        return
    if run.over:
        return
    if run.announce or run.expires is not None:
        await _announce(run, host)
    token = doing.set(Doing(run.correlation, run.agent, run.message_id, run.tries + 1))
    started = host.clock.monotonic()
    host.started(run)
    run.begin()
    try:
        records = completion(run, await call_handler(run, host))
    except BaseException as error:
        if run.over and is_own(error):
            return
        if run.over or isinstance(error, KeyboardInterrupt | GeneratorExit) or not (run.fault or is_own(error)):
            raise
        records = _failed(run, _reason(run, error))
    finally:
        doing.reset(token)
        host.disarm(run)
    await conclude(run, host, records, host.clock.monotonic() - started)


async def conclude(run: Run, host: RunHost, records: list[AgentMessage], seconds: float) -> None:
    """Append how a run, or an attempt, ended."""
    if records:
        run.last_id = records[-1].id
        await host.append(records)
    host.worker.on_handled(run, records, seconds)


def _reason(run: Run, error: BaseException) -> BaseException:
    """Return why the attempt failed: what refold found, else what the handler raised."""
    fault = run.fault
    if isinstance(fault, StepCancelled) and isinstance(error, Exception) and not isinstance(error, TimeoutError):
        if error is not fault:  # what cancelled the step, most likely
            return StepCancelled(f"{fault}. The handler raised {describe_error(error)}")
    if fault is None and run.unawaited and isinstance(error, TypeError | AttributeError):  # a step used as its value
        unawaited = UnawaitedStep(f"{run.never_awaited()}. The handler raised {describe_error(error)}")
        unawaited.__cause__ = error
        return unawaited
    return fault or as_failure(error, "the handler")


def _failed(run: Run, error: BaseException) -> list[AgentMessage]:
    run.finishing = True
    if isinstance(error, Failure):  # it ends the handling for good
        try:
            run.check_all_asked()
        except Divergence as divergence:
            error = divergence
    if isinstance(error, TryAgain) and not isinstance(error, HandlerTimeout) and run.fault is error:
        raise error  # the log could not be reached: no record can say so, the worker tries again
    log.log(
        logging.WARNING, "%s failed on %s: %s", run.agent, run.message.message_type, text_of(error),
        exc_info=error if log.isEnabledFor(logging.DEBUG) else None,
    )  # fmt: skip
    return failure(run, error)


async def load(run: Run, host: RunHost) -> None:
    """Read the message, and the recorded values of a rerun in one go. Raises UndecodableRecord: what can be read of
    the message is there."""
    worker, place = host.worker, host.place
    raw = worker.records.at_hand(place.partition, run.ref)
    if raw is None:
        raw = await host.read(run.ref)
    try:
        run.message = codec.reopen(raw)
    except UndecodableRecord:
        run.message = codec.bare(raw)
        raise
    h = run.handling() if run.reruns else None
    if h is None:
        return
    refs = [st.value for st in h.steps.values() if st.settled and st.value != NOWHERE]
    run.values = await worker.records.read_many(place.partition, refs)


async def _announce(run: Run, host: RunHost) -> None:
    """Record the start where somebody must know of it: after a death, and where a time to live ends by it."""
    h = run.handling()
    if h is None or not (run.announce or (h.expires is not None and not h.begun)):
        return
    fact = facts.AttemptStarted(alone=run.announce == "alone")
    await host.append([run.record(kinds.ATTEMPT_STARTED, "", None, receiver=run.agent, fact=fact)])


async def _state(run: Run, host: RunHost, patches: list[Ref]) -> dict[str, Any]:
    """Return the workflow's state at the message's place."""
    state: dict[str, Any] = {}
    values = await host.worker.records.read_many(host.place.partition, patches)
    for ref in patches:
        state = merge_patch(state, codec.payload(values[ref]))
    return state


async def call_handler(run: Run, host: RunHost) -> Any:
    handler = run.handler
    state: dict[str, Any] = {}
    if handler.takes_context and (all_patches := host.workflow().view.patches):
        state = await _state(run, host, [ref for version, ref in all_patches if version <= run.version])
    payload = typed(codec.encode(run.message), handler.payload_type)
    if handler.is_async:
        args = (Context(run, run.message, state), payload) if handler.takes_context else (payload,)
        result = await handler.function(*args)
    else:
        plain = PlainFacts(run.message, run.agent, run.tries + 1, state)
        given = (plain, payload) if handler.takes_context else (payload,)
        result = await _in_thread(run, host, given)
    run.finish()
    return result


async def _in_thread(run: Run, host: RunHost, given: tuple[Any, ...]) -> Any:
    host.stopped(run)  # a `def` handler's time counts from when a thread has it
    try:
        return await run.in_thread(run.handler.function, given, {}, run.budget)
    except Late as late:
        raise HandlerTimeout(str(late)) from None
