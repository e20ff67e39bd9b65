"""`Worker`: hosts agents. It folds the partitions that it owns, and from the fold it knows what to do."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from msgspec import Struct

from ..bus import facts
from ..bus.broker import Assigned, Batch, Broker, Event, Lost, Presence, Revoked
from ..bus.clock import Clock, Source
from ..bus.errors import LogTruncated, PartitionLost, TryAgain
from ..bus.message import AgentMessage
from ..bus.outage import Outage
from ..bus.stall import EXIT_STALLED
from ..projections.checkpoint import read_history
from ..projections.workflow import Workflow
from .agent import Agent, by_name
from .cohorts import Cohorts
from .crew import Crew
from .folding import fold_batch, settle, start_cohort
from .leaving import leave, see_off
from .ownership import save_checkpoint, say_released, take_over
from .parcels import deliver, forward_strays
from .place import Place, RunKey
from .presence import join
from .records import Records
from .run import Run
from .scheduler import Scheduler
from .standstill import BEAT
from .threads import Threads
from .timers import fire
from .watchdog import Watchdog

log = logging.getLogger("refold.worker")

CHECKPOINT_SECONDS = 5.0
CHECKPOINT_RECORDS = 10_000
BACKLOG_PAUSE = 0.01
"""Seconds between two looks at whether there is room for what may run later."""
LIVE_WORKFLOWS = 2_000
"""Open workflows kept as objects; beyond it those that only wait are kept as bytes."""


class Handling(Struct, frozen=True):
    """One handling that ended, or an attempt of it: what `on_handled` is told. `seconds` includes waiting."""

    workflow: str
    agent: str
    message: str
    kind: str
    attempt: int
    outcome: str
    seconds: float
    steps: int


class Worker:
    """A process's consumer: hosts `agents` in `group`.

    `concurrency` is how many handlers run at once, `max_live` how many that only wait keep their run, `lease` seconds
    after which others take over what this worker owned when it fell silent, `drain` seconds that running handlers get
    to end at `stop`. Use `run`; it returns an exit code after `stop`.
    """

    def __init__(
        self, broker: Broker, agents: Sequence[Agent], *, group: str, member: str | None = None, app: str = "",
        concurrency: int = 100, max_live: int = 1000, lease: float = 8.0, stall_limit: float = 30.0,
        drain: float = 20.0, threads: int = 16, clock: Clock | None = None, source: Source | None = None,
        on_handled: Callable[[Handling], None] | None = None,
    ) -> None:  # fmt: skip
        self.broker = broker
        self.agents = by_name(agents)
        self.group = group
        self.host, self.pid = socket.gethostname(), os.getpid()
        self.member = member or f"{self.host}-{self.pid}-{os.urandom(2).hex()}"
        self.app = app
        self.lease, self.stall_limit, self.drain_time = lease, stall_limit, drain
        self.clock = clock or Clock()
        self.source = source or Source()
        self.threads = Threads(threads, self._threads_exhausted)
        self.scheduler = Scheduler(concurrency, self._quiet)
        self.cohorts = Cohorts()
        self.records = Records(broker)
        self.crew = Crew(self, max_live)
        self.watchdog = Watchdog()
        self.places: dict[int, Place] = {}
        self.truncated: dict[int, str] = {}
        self.strays: set[int] = set()
        self.hints: list[tuple[str, bytes]] = []
        self.folded = self.fenced = self.handled = 0
        self.draining = False
        self.reached = True
        self.exit_code = 0
        self.caught_up = asyncio.Event()
        self._on_handled = on_handled
        self.on_stuck: Callable[[], None] = lambda: None
        self.stopping = asyncio.Event()
        self.stopped = False
        self._taking: dict[int, asyncio.Task[None]] = {}
        self.saying: set[asyncio.Task[None]] = set()
        self._unwanted: set[tuple[int, int]] = set()
        self._owed: dict[Place, dict[str, None]] = {}
        self._parcel_bell = asyncio.Event()
        self._timer_bell = asyncio.Event()
        self._checkpoint_bell = asyncio.Event()
        self._backlog_bell = asyncio.Event()
        self._later: dict[tuple[Place, str], None] = {}
        self._later_called = False
        self._warm: OrderedDict[tuple[Place, str], None] = OrderedDict()
        self._unsaved = 0
        self._outages = defaultdict[str, dict[type[Exception], Outage]](dict)

    # ---- life --------------------------------------------------------------------------------------------------------
    async def run(self) -> int:
        """Work until `stop`. Returns the exit code: 0, or 70 where too many threads hang.

        Raises GroupConflict at once where the group hosts other agents.
        """
        self.loop = asyncio.get_running_loop()
        try:
            async with (
                join(self),
                self.broker.subscribe(
                    self.group, self.member, lease=self.lease, stall_limit=self.stall_limit
                ) as self.sub,
                asyncio.TaskGroup() as self._tasks,
            ):
                loops = (self._heart, self._timers, self._checkpoints, self._parcels, self._backlog)
                tasks = [self._tasks.create_task(loop()) for loop in loops]
                stopper = self._tasks.create_task(leave(self))
                try:
                    await self._read()
                finally:
                    self._let_go()
                for task in [*tasks, stopper]:
                    task.cancel()
                await see_off(self)
        finally:
            self.threads.close()
        return self.exit_code

    def stop(self) -> None:
        """Start nothing more, let running handlers end (`drain` seconds at most), save, and leave."""
        self.stopping.set()

    def _let_go(self) -> None:
        """Nothing is read any more: what still runs ends, and appends nothing (a cancelled step is no failed one)."""
        self.draining = True
        for place in list(self.places.values()):
            self.end_place(place, "the worker was ended", let_calls_finish=False)

    def _threads_exhausted(self) -> None:
        log.error("too many threads hang: this worker ends, others take over")
        self.exit_code = EXIT_STALLED
        self.loop.call_soon_threadsafe(self.stop)

    async def _give_up(self, place: Place) -> None:
        """Another worker is to have the partition: say so, and give it up."""
        self.end_place(place, "revoked")
        await self._carefully(say_released(self, place), "that a partition is given up")
        await self._release(place.partition, place.epoch)

    async def _told(self, place: Place) -> None:
        """The partition was lost alive: say so, for whoever reads the log."""
        await self._carefully(say_released(self, place), "that a partition was lost")

    async def _release(self, partition: int, epoch: int) -> None:
        """Give the partition up; where that fails, again: nobody else can work on it before."""
        failures = 0
        while self.sub.owned().get(partition) == epoch and not self.stopped:
            if await self._carefully(self.sub.release(partition, epoch), "a release"):
                return
            failures += 1
            await self.clock.sleep(pause(failures))

    # ---- the read loop: the only way into the fold -------------------------------------------------------------------
    async def _read(self) -> None:
        failures = 0
        while not self.stopped:
            try:
                events = await self.sub.fetch(max_wait=0.05 if self.draining else 0.5)
                failures = 0
            except TryAgain as error:
                failures += 1
                wait = pause(failures)
                log.warning("the log cannot be read (%s); trying again in %.1f s", error, wait)
                await self.clock.sleep(wait)
                continue
            for event in events:
                try:
                    await self._take(event)
                except PartitionLost:  # what took it away has told of it
                    continue

    async def _take(self, event: Event) -> None:
        if isinstance(event, Batch):
            place = self.places.get(event.partition)
            if place is not None and place.epoch == event.epoch and not place.ended:
                await fold_batch(self, place, event.records)
                self._folded(len(event.records))
        elif isinstance(event, Assigned):
            if not self.draining and not (event.resumed and event.partition in self.places):
                self._taking[event.partition] = self._say(self._take_over(event))
        else:
            await self._lose(event)

    def _folded(self, records: int) -> None:
        """So many records more are folded: a checkpoint, or a delivery, may be due."""
        self._unsaved += records
        if self._unsaved >= CHECKPOINT_RECORDS:
            self._checkpoint_bell.set()
        if self.strays:
            self._parcel_bell.set()

    async def _take_over(self, event: Assigned) -> None:
        place = None
        try:
            place = await take_over(self, self.sub, event)
        except LogTruncated as error:
            self.truncated[event.partition] = str(error)
            log.error("%s", error)
            return
        except PartitionLost as error:
            log.debug("%s", error)
        except TryAgain as error:
            log.warning("partition %d could not be taken over (%s): it is given up", event.partition, error)
        finally:
            self._taking.pop(event.partition, None)
        unwanted = self.is_unwanted(event)
        self._unwanted.discard((event.partition, event.epoch))
        if place is None:
            await self._release(event.partition, event.epoch)
        elif unwanted:
            await self._give_up(place)
        elif self.sub.owned().get(event.partition) == event.epoch:
            self._begin(place)

    def is_unwanted(self, event: Assigned) -> bool:
        """The partition is to be given up although it is still being taken over."""
        return self.draining or (event.partition, event.epoch) in self._unwanted

    def _begin(self, place: Place) -> None:
        self.places[place.partition] = place
        self.sub.seek(place.partition, place.fold.position + 1)

    async def _lose(self, event: Revoked | Lost) -> None:
        task = self._taking.get(event.partition)
        if task is not None and isinstance(event, Revoked):
            self._unwanted.add((event.partition, event.epoch))  # its `owner` may be in the log: not without its end
            return
        if task is not None:
            task.cancel()
        place = self.places.get(event.partition)
        if place is None or place.epoch != event.epoch:
            if isinstance(event, Revoked):
                self._say(self._release(event.partition, event.epoch))
            return
        self.end_place(place, "the partition goes to another worker")
        if isinstance(event, Revoked):
            self._say(self._give_up(place))
        else:
            self._say(self._told(place))

    def end_place(self, place: Place, why: str, *, let_calls_finish: bool = True) -> None:
        """Work on a partition no more; with `let_calls_finish` what is in a call may finish that."""
        place.ended = True
        self.places.pop(place.partition, None)
        self._owed.pop(place, None)
        self.crew.end_all(place, why, let_calls_finish=let_calls_finish)
        self.cohorts.drop(place)
        self._quiet()

    # ---- what the fold asks for --------------------------------------------------------------------------------------
    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task of this worker's own."""
        return self._tasks.create_task(work)

    def _say(self, words: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Tell the log who owns what, beside everything else."""
        task = self.spawn(words)
        self.saying.add(task)
        task.add_done_callback(self.saying.discard)
        return task

    async def restore(self, place: Place, correlation: str) -> None:
        """Read a workflow's earlier records by key and fold them again. Raises PartitionLost where the place ends."""
        failures = 0
        while True:
            try:
                records = await read_history(self.broker, correlation)
            except TryAgain as error:
                if place.ended:
                    raise PartitionLost("the partition has gone to another worker") from error
                failures += 1
                log.warning("the records of %s cannot be read (%s); trying again", correlation, error)
                await self.clock.sleep(pause(failures))
            else:
                place.fold.restore(correlation, records)
                return

    def deliver(self, place: Place, correlation: str) -> None:
        """The workflow owes something to another one."""
        self._owed.setdefault(place, {})[correlation] = None
        self._parcel_bell.set()

    def due_at(self, due: float | None) -> None:
        """Something is due then: look at the clock again."""
        if due is not None:
            self._timer_bell.set()

    def later(self, place: Place, correlation: str) -> None:
        """Look at the workflow again when the current turn is over."""
        self._later[place, correlation] = None
        if not self._later_called:
            self._later_called = True
            self.loop.call_soon(self._look_again)

    def _look_again(self) -> None:
        self._later_called = False
        todo, self._later = self._later, {}
        for place, correlation in todo:
            if not place.ended and place.active:
                self._look_at(place, correlation)

    def _look_at(self, place: Place, correlation: str) -> None:
        place.touch(correlation)
        w = place.find(correlation)
        if w is not None:
            settle(self, place, w)

    def consider_after(self, seconds: float, place: Place, correlation: str) -> None:
        """Look at the workflow again after that time."""
        self.loop.call_later(seconds, self.later, place, correlation)

    def rest(self, seconds: float, place: Place, key: RunKey) -> None:
        """Start this handling no sooner than after that time; look at it then."""

        def over() -> None:
            place.resting.discard(key)
            self.later(place, key[0])

        place.resting.add(key)
        self.loop.call_later(seconds, over)

    def passed(self, place: Place, key: RunKey) -> None:
        """After a death: this message was not its cause."""
        if self.cohorts.passed((place, key)):
            self._quiet()

    def _quiet(self) -> None:
        self.loop.call_soon(start_cohort, self)

    async def lease_good(self, place: Place) -> None:
        """Return when more than a quarter of the lease is left. Raises PartitionLost."""
        while not place.ended:
            if self.sub.deadline(place.partition) - self.clock.monotonic() > self.lease / 4:
                return
            await self.clock.sleep(self.lease / 40)
        raise PartitionLost("the partition has gone to another worker")

    def trim(self, place: Place, w: Workflow) -> None:
        """Keep the workflows that were touched last as objects, the rest as bytes where they only wait."""
        warm = self._warm
        key = (place, w.correlation)
        if key in warm:
            warm.move_to_end(key)
            return
        warm[key] = None
        for _ in range(min(len(warm) - LIVE_WORKFLOWS, 4)):
            (other, correlation), _ = warm.popitem(last=False)
            cold = other.fold.live.get(correlation)
            if cold is None or other.ended or other.settle(cold):  # the batch that completed it is not at its end
                continue
            if correlation not in other.runs and other.may_freeze(cold, set(self.agents)):
                other.fold.park(cold)
                other.idle.pop(correlation, None)
            elif correlation not in other.runs and self._queued(other, cold):
                other.fold.park(cold, idle=False)
            else:
                warm[other, correlation] = None

    def _queued(self, place: Place, w: Workflow) -> bool:
        """What has to run of a workflow waits for a slot: it is thawed when it gets one."""
        if w.correlation in place.idle or w.duties():
            return False
        hosted = [h for h in w.open_handlings() if h.agent in self.agents]
        return all(self.scheduler.is_queued((place, (w.correlation, h.agent, h.message))) for h in hosted)

    @property
    def live_share(self) -> int:
        """How many workflows of a partition are kept as objects while it is folded."""
        return max(LIVE_WORKFLOWS // self.broker.meta.partitions, 16)

    def catch_up_later(self, place: Place) -> None:
        """The place was taken over: what only waits there, as far as the log tells, runs again when there is time."""
        if place.backlog:
            self._backlog_bell.set()

    async def _backlog(self) -> None:
        """Run again what seems to wait only, a call of it may have been in flight; never more than fill the slots."""
        while True:
            await self._backlog_bell.wait()
            self._backlog_bell.clear()
            while any(place.backlog for place in self.places.values()):
                for place in list(self.places.values()):
                    while place.backlog and self.scheduler.queued < self.scheduler.slots and not self.draining:
                        self._look_at(place, place.backlog.popleft())
                await self.clock.sleep(BACKLOG_PAUSE)

    def on_active(self, place: Place) -> None:
        """A partition was taken over and is folded."""
        log.debug("partition %d is owned in epoch %d", place.partition, place.epoch)
        self.caught_up.set()

    def on_handled(self, run: Run, records: list[AgentMessage], seconds: float) -> None:
        """A handling, or an attempt of it, ended."""
        self.handled += 1
        if self._on_handled is None or not records:
            return
        last = records[-1]
        self._on_handled(
            Handling(
                run.correlation, run.agent, run.message_id, run.message.message_type, run.tries + 1,
                outcome_of(last), seconds, len(run.asked),
            )
        )  # fmt: skip

    # ---- loops -------------------------------------------------------------------------------------------------------
    async def _heart(self) -> None:
        """Tell the lease that this loop turns; tell the log of stalls."""
        with self.watchdog.watch():
            while True:
                self.sub.turned()
                self.watchdog.beat()
                self.crew.standstill.beat(self.loop.time())
                self.crew.look_at_times()
                await self.clock.sleep(BEAT)

    async def _timers(self) -> None:
        while True:
            self._timer_bell.clear()
            wait = self._until_next_due()
            try:
                async with asyncio.timeout(wait):
                    await self._timer_bell.wait()
            except TimeoutError:
                pass
            for place in list(self.places.values()):
                if place.active and not place.ended:
                    await self._carefully(fire(self, place), "a timer")

    def _until_next_due(self) -> float | None:
        waits = [
            due - place.now(self.clock.now())
            for place in self.places.values()
            if place.active and (due := place.next_due()) is not None
        ]
        return max(0.0, min(waits)) if waits else None

    async def _checkpoints(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECKPOINT_SECONDS):
                    await self._checkpoint_bell.wait()
            except TimeoutError:
                pass
            self._checkpoint_bell.clear()
            self._unsaved = 0
            for place in list(self.places.values()):
                if place.active and not place.ended:
                    await self._carefully(self.save(place), "a checkpoint")

    async def save(self, place: Place) -> None:
        """Write a checkpoint of a partition. Raises as the log does."""
        if not await save_checkpoint(self, self.sub, place):
            log.info("partition %d: the checkpoint is refused, another worker owns it", place.partition)

    async def _parcels(self) -> None:
        while True:
            await self._parcel_bell.wait()
            self._parcel_bell.clear()
            owed, self._owed = self._owed, {}
            for place, correlations in owed.items():
                if place.ended or not await self._carefully(deliver(self, place, correlations), "a delivery"):
                    self._again(place, correlations)
            for partition in sorted(self.strays):
                self.strays.discard(partition)  # before: another one may come meanwhile
                owned = self.places.get(partition)
                if owned is not None and owned.active:
                    if not await self._carefully(forward_strays(self, owned), "a stray"):
                        self.strays.add(partition)

    def _again(self, place: Place, correlations: Iterable[str]) -> None:
        for correlation in correlations:
            if not place.ended:
                self.consider_after(0.5, place, correlation)

    async def _carefully(self, work: Coroutine[Any, Any, None], what: str) -> bool:
        """Do it; what fails because of the log is done again later."""
        return await self.tried(work, what) is None

    async def tried(self, work: Coroutine[Any, Any, None], what: str) -> Exception | None:
        """Do it; return and tell what it failed by: less and less often, where the log stays out of reach."""
        try:
            await work
        except PartitionLost as error:
            log.info("%s: %s", what, error)
            return error
        except TryAgain as error:
            again = "" if self.draining else "; it will be tried again"
            outage = self._outages[what].setdefault(type(error), Outage(self.clock.monotonic))
            level = logging.WARNING if outage.is_news() else logging.DEBUG
            log.log(level, "%s could not be written: %s%s", what, error, again)
            self.loop.call_later(1.0, self._ring)
            return error
        except Exception as error:  # one workflow's must not be the end of all others'
            log.exception("%s failed; it will be tried again", what)
            self.loop.call_later(1.0, self._ring)
            return error
        self._outages[what].clear()
        return None

    def _ring(self) -> None:
        self._timer_bell.set()
        self._parcel_bell.set()

    def presence(self) -> Presence:
        """Return what this worker tells of itself."""
        return Presence(
            member=self.member, group=self.group, app=self.app, pid=self.pid, host=self.host,
            agents={name: agent.kinds for name, agent in self.agents.items()},
            capabilities={name: agent.capabilities for name, agent in self.agents.items() if agent.capabilities},
            partitions=tuple(sorted(self.places)), running=self.scheduler.used, queued=self.scheduler.queued,
            waiting=len(self.crew.waiting), draining=self.draining,
        )  # fmt: skip


def pause(failures: int) -> float:
    """Return the seconds to wait after the log could not be reached so often in a row."""
    return float(min(0.1 * 2.0 ** min(failures, 10), 10.0))


def outcome_of(last: AgentMessage) -> str:
    """Return the kind of the record that ended an attempt, with its error."""
    error = getattr(last.fact, "error", "") if isinstance(last.fact, facts.Fact) else ""
    return f"{last.message_type} {error}".rstrip()
