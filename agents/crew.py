"""The runs of a worker: started when a slot is free, parked while they only wait, ended from outside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import TYPE_CHECKING

from ..bus.errors import Divergence, PartitionLost, PoisonMessage, TryAgain, UndecodableRecord
from ..projections.view import Handling
from ..projections.workflow import Workflow
from . import outcome
from .agent import Handler, missing_handler
from .cohorts import LONE_DEATHS
from .execution import RunHost, conclude, execute, load
from .place import Place, RunKey
from .run import Run
from .standstill import Standstill

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")

ABANDONED_AFTER = 5.0
"""Seconds after which a run that was ended, and goes on regardless, counts as abandoned."""


class Crew:
    """What runs now, and what waits. One per worker."""

    def __init__(self, worker: Worker, max_live: int) -> None:
        self.worker = worker
        self.max_live = max_live
        self.waiting: OrderedDict[Run, tuple[Place, RunKey]] = OrderedDict()
        self.ending: set[asyncio.Task[None]] = set()
        self.abandoned = 0
        self.timed: dict[Run, RunHost] = {}
        self.standstill = Standstill()

    def look_at_times(self) -> None:
        """End the handlers that have run for as long as they may."""
        now = self.time()
        for run, host in [(run, host) for run, host in self.timed.items() if host.due(run) <= now]:
            del self.timed[run]
            host.out_of_time(run)

    def time(self) -> float:
        """Return the loop's time (seconds), by which running times are measured."""
        return self.worker.loop.time()

    # ---- starting ----------------------------------------------------------------------------------------------------
    def queue(self, place: Place, key: RunKey, w: Workflow, h: Handling) -> None:
        """Start the handling when a slot is free."""
        worker, round = self.worker, h.round
        if worker.cohorts.running and worker.cohorts.running.get((place, key)):
            worker.scheduler.take()
            self._begin(place, key, w, h)
        elif worker.scheduler.take_free():
            self._begin(place, key, w, h)
        else:
            worker.scheduler.start((place, key), h.priority, lambda: self._go(place, key, round))

    def _go(self, place: Place, key: RunKey, round: int) -> None:
        """There is a slot: begin, if the handling is still to be started."""
        worker = self.worker
        w = place.find(key[0])
        h = w.view.handling(key[1], key[2]) if w is not None else None
        gone = w is None or h is None or h.closed or h.round != round or place.run_of(key[0], h) is not None
        if gone or place.ended or worker.draining:
            worker.scheduler.release()
            worker.passed(place, key)
            return
        assert w is not None
        assert h is not None
        self._begin(place, key, w, h)

    def _begin(self, place: Place, key: RunKey, w: Workflow, h: Handling) -> None:
        worker = self.worker
        run = Run(host := RunHost(worker, place, key), self._handler(h), h, w, place.writer())
        place.add(key, run)
        work = self._on_trial if worker.cohorts.running else execute
        run.task = worker.spawn(self._carry_out(run, host, work))

    def _handler(self, h: Handling) -> Handler:
        agent = self.worker.agents[h.agent]
        return agent.handlers.get(h.kind) or missing_handler(agent, h.kind)

    async def _carry_out(self, run: Run, host: RunHost, work: Callable[[Run, RunHost], Awaitable[None]]) -> None:
        """Run it to its end, whatever that is."""
        place, key = host.place, host.key
        wait = 0.0
        try:
            await work(run, host)
        except asyncio.CancelledError:
            if not run.over:
                raise
        except PartitionLost as error:
            run.end(str(error))
        except TryAgain as error:
            wait = place.backoff(key)
            log.warning("%s: %s; trying again in %.1f s", run.agent, error, wait)
        except Exception:
            wait = place.backoff(key)
            log.exception("%s: the end of a handling could not be recorded; trying again in %.1f s", run.agent, wait)
        finally:
            self._ended(place, key, run, wait)

    async def _on_trial(self, run: Run, host: RunHost) -> None:
        """After a death each start is recorded; a message that has killed its process too often is not started."""
        h, alone = run.handling(), self.worker.cohorts.running.get((host.place, host.key))
        if h is not None and alone is not None:
            if h.lone_starts >= LONE_DEATHS:
                error = PoisonMessage(f"its handling ended the process {h.lone_starts} times, with nothing beside it")
                with contextlib.suppress(UndecodableRecord):  # it gives up anyway
                    await load(run, host)
                records = outcome.ended(run, error, dead=True)
                run.finishing, run.last_id = True, records[-1].id
                await host.append(records)
                return
            run.announce = "alone" if alone else "in a cohort"
        await execute(run, host)

    def _ended(self, place: Place, key: RunKey, run: Run, wait: float) -> None:
        """The task is over; the run itself is, when its last record is folded."""
        worker = self.worker
        if asyncio.current_task() is not run.task:
            return  # it was abandoned, and has ended after all
        self.waiting.pop(run, None)
        if isinstance(run.fault, Divergence):
            place.diverges(key, run.round)
        self._free(run)
        if run.last_id and not wait and (run.finishing or not run.over):
            return
        still_there = place.remove(key, run)
        if wait:
            worker.rest(wait, place, key)
        elif not place.ended:
            worker.passed(place, key)
            if still_there:  # else its last record was folded after it, and what follows was looked at then
                worker.later(place, key[0])

    # ---- waiting -----------------------------------------------------------------------------------------------------
    def waits(self, place: Place, key: RunKey, run: Run) -> None:
        """The run only waits: its slot is free; beyond `max_live` the one that has waited longest is parked."""
        worker = self.worker
        worker.scheduler.release()
        self.waiting[run] = (place, key)
        worker.passed(place, key)
        worker.later(place, key[0])
        if worker.draining:
            self.park(run)
        while len(self.waiting) > self.max_live:
            self.park(next(iter(self.waiting)))

    def park(self, run: Run) -> None:
        """Drop a run that only waits; what it waits for starts its handling again."""
        place, key = self.waiting.pop(run)
        if run.wants_slot or run.over or run.fault is not None:
            return  # it goes on, or ends: nothing that it waits for would start it again
        place.idle.setdefault(key[0], set()).add(key)
        self.end(place, key, run, "parked")

    # ---- ending ------------------------------------------------------------------------------------------------------
    def under_way(self, places: Collection[Place]) -> str:
        """Say what has not come to its end; "" where everything has."""
        if not self.worker.scheduler.used and not any(place.runs for place in places):
            return ""
        runs = [run for place in places for _, run in place.all_runs()]
        some = [f"{run.agent} of {run.correlation}{' (its end is in no fold yet)' * run.finishing}" for run in runs[:5]]
        more = [f"{len(runs) - 5} more"] if len(runs) > 5 else []
        return ", ".join([*some, *more]) or "handlers that were ended and go on"

    def end(self, place: Place, key: RunKey, run: Run, why: str, *, let_calls_finish: bool = False) -> None:
        """End a run from outside; its slot is free at once, unless its call may finish."""
        self.waiting.pop(run, None)
        run.end(why, let_calls_finish=let_calls_finish)
        if let_calls_finish and run.calls:
            return
        place.remove(key, run)
        self._free(run)
        if not place.ended:
            self.worker.passed(place, key)  # its task may not have begun, and then never does

    def _free(self, run: Run) -> None:
        """The run's slot is free."""
        if run.has_slot:
            run.has_slot = False
            self.worker.scheduler.release()

    def watch(self, place: Place, key: RunKey, run: Run, host: RunHost) -> None:
        """The run's task was told to end: look later whether it has."""
        task = run.task
        if task is None or task.done() or task in self.ending:
            return
        self.ending.add(task)
        task.add_done_callback(self.ending.discard)
        asyncio.get_running_loop().call_later(ABANDONED_AFTER, self._look, place, key, run, host, task)

    def _look(self, place: Place, key: RunKey, run: Run, host: RunHost, task: asyncio.Task[None]) -> None:
        if task.done() or run.finishing:
            return
        self.abandoned += 1
        task.cancel()
        why = run.over or str(run.fault)
        log.error("a run of %s was ended (%s) and goes on regardless: it is abandoned", run.agent, why)
        self._free(run)
        if run.over:
            place.remove(key, run)
        elif run.fault is not None:
            run.over, run.finishing = "abandoned", True
            records = outcome.failure(run, run.fault)
            end = partial(conclude, records=records, seconds=0.0)
            run.task = self.worker.spawn(self._carry_out(run, host, end))

    def end_all(self, place: Place, why: str, *, let_calls_finish: bool) -> None:
        """The place has gone; `let_calls_finish`: what is in a call may finish that."""
        for key, run in place.all_runs():
            self.end(place, key, run, why, let_calls_finish=let_calls_finish)
