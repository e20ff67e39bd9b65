"""The main job, staged: processes that review Python code over one log, one of them killed at work, and the proof."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import os
import shutil
import sys
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from ..agents.client import Handle, MessageBus
from ..agents.runtime import unwrapped
from ..brokers import open_broker
from ..bus.errors import ConfigError, Failure, LogLocked, RefoldError
from .curtain import Outcome, told
from .messages import Job, Report
from .picture import draw
from .processes import Child, Company
from .proof import USUAL, Killed, prove
from .provider import Provider, Status, counted, read_invoice
from .screen import Full, Lines, Row, Scene, Screen
from .signals import Interrupted, interruptible
from .survey import look, modules_of
from .team import AT_ONCE, review
from .watch import ANALYZERS, Watch

OUT = Path("refold-demo")
TIMEOUT = 600.0
"""Seconds until a run is given up."""
KILL_AFTER = 0.45
"""The share of the modules that the provider has answered for when one analyzer is killed."""
KILL_OWN = 0.3
"""The share that the killed one must have done itself where there are two: both are expected to do a fair share."""
CALLS = 6.0
"""Seconds that the calls of a run take together at least, if nobody is killed: long enough to watch."""
FASTEST, SLOWEST = 0.05, 1.0
"""Bounds of the mean latency of a call, in seconds."""
LOOK = 0.15
"""Seconds between two looks at the log."""
PARTS = (
    "refold.db", "refold.db-wal", "refold.db-shm", "refold.db-tidy", "invoice.jsonl", "report.md", "sections", "logs",
)  # fmt: skip
"""What a run leaves in its folder; the next one begins without it."""


class NoModules(RefoldError):
    """There is nothing to review; the text says why."""


class DemoRuns(LogLocked):
    """Another demo runs in the same folder."""


class ReviewFailed(Failure):
    """The review ended without a report."""


def perform(
    path: Path | None = None, *, sabotage: bool = False, analyzers: int = USUAL, latency: float | None = None,
    json: bool = False, svg: Path | None = None, out: Path = OUT, console: Console | None = None,
    broker: str | None = None,
) -> int:  # fmt: skip
    """Run the demo over the modules below `path` (default: refold itself); return the exit code.

    0: everything is proved; 1: something is not; 130, 143: interrupted. Writes only below `out`, and `svg`, a picture
    of the run, where one is asked for. `broker`: the URL of a log that nobody has written to, by default one in `out`.
    `latency`: mean seconds of a call of the pretend provider, by default so much
    that a run can be watched. What `console` raises where nobody reads it ends the run too.

    Raises NoModules, ConfigError, DemoRuns, and ReviewFailed where there is no report.
    """
    console = console or Console(highlight=False)
    root, title, total = subject(path)
    latency = pace(total, analyzers) if latency is None else latency
    if svg is not None:
        writable(svg)
    job = Job(str(root), os.path.abspath(out), title, sabotage)

    async def main() -> int:
        if broker is not None:
            await refuse_used(broker)
        with alone_in(out), told_well(out), unwrapped():
            screen = _screen(console, Scene(title, broker or f"sqlite:///{out}/refold.db", time.time()), json)
            outcome, peak = await run_on(screen, job, latency, out, analyzers)
        if json:
            print_json(outcome, console)
        else:
            console.print(told(outcome), crop=False)
        if svg is not None:
            draw(svg, peak, outcome)
        return 0 if outcome.ok else 1

    try:
        return asyncio.run(interruptible(main()))
    except Interrupted as signal:
        sys.stderr.write(f"refold demo: ended by {signal}; all its processes have ended, the log is in {out}\n")
        return signal.code


def subject(path: Path | None) -> tuple[Path, str, int]:
    """Return the folder, its title, and how many modules it has. Raises NoModules."""
    try:
        root = (path or Path(__file__).parent.parent).resolve()
        folder = root.is_dir()
    except (OSError, RuntimeError) as error:
        raise NoModules(f"{path} cannot be opened: {error}") from error
    if not folder:
        raise NoModules(f"{path} is no folder: give one with Python code in it, or none, for refold's own")
    if not os.access(root, os.R_OK | os.X_OK):
        raise NoModules(f"{path} cannot be read by you")
    found = modules_of(root)
    if all(look(str(root), module).error for module in found):
        raise NoModules(f"no Python module below {root} can be reviewed ({len(found)} found)")
    return root, root.name if path is not None else "refold", len(found)


async def refuse_used(url: str) -> None:
    """Raise ConfigError where the log holds records: the demo would take them for its own."""
    async with open_broker(url) as broker:
        await broker.ensure_log()
        if await broker.positions("begin") != await broker.positions("end"):
            raise ConfigError(f"{broker.url} holds records: name a log that is not there yet, the demo makes it")


def writable(file: Path) -> None:
    """Raise ConfigError where a file cannot be written, before anything else happens."""
    folder = file.absolute().parent
    if not folder.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        raise ConfigError(f"{file} cannot be written: give a file in a folder of yours")


def pace(modules: int, analyzers: int) -> float:
    """Return the mean latency of a call (s), so that a run can be watched, and many modules do not take for ever."""
    return min(SLOWEST, max(FASTEST, CALLS * analyzers * AT_ONCE[ANALYZERS] / modules))


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder for this run, without what an earlier one left. Raises ConfigError, DemoRuns."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"cannot write to {out} here: {error.strerror}; run the demo in a folder of yours") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoRuns(f"another demo runs in {out} now; wait for it, or start this one elsewhere") from None
        for name in PARTS:
            part = out / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        (out / "logs").mkdir()
        yield


@contextlib.contextmanager
def told_well(out: Path) -> Iterator[None]:
    """What ends a review early is one error that says where to look."""
    try:
        yield
    except (RefoldError, TimeoutError) as error:
        why = str(error) or f"no end in sight after {TIMEOUT:.0f} s"
        raise ReviewFailed(f"{why} (its processes' logs are in {out / 'logs'})") from error


def print_json(outcome: Outcome, console: Console) -> None:
    """Print one document on one line."""
    try:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        console.on_broken_pipe()


def _screen(console: Console, scene: Scene, json: bool) -> Screen:
    kind = Screen if json else Full if console.is_terminal and not console.is_dumb_terminal else Lines
    return kind(console, scene)


async def run_on(screen: Screen, job: Job, latency: float, out: Path, analyzers: int) -> tuple[Outcome, Scene]:
    """Play the whole run before a screen; return what came of it, and the scene soon after the kill."""
    scene, review_id = screen.scene, f"review-{uuid.uuid4().hex[:8]}"
    with screen:
        async with MessageBus.open(scene.log) as bus, Company(out, scene.log, analyzers) as company:
            screen.say(f"starting {analyzers} analyzers and one each of orchestrator, researcher, writer, validator")
            provider = await company.start(latency)
            watch = Watch(bus.broker, review_id)
            await company.ready(watch)
            began = time.monotonic()
            play = Play(screen, company, provider, bus, watch)
            handle, report = await play.act(job, review_id)
            seconds = time.monotonic() - began
            scene.stage = "reading the log"
            screen.say("done; the processes are told to stop")
            await company.end()
            proof = await prove(
                bus.broker, handle.correlation_id, report, (out / report.file).read_text(encoding="utf-8"),
                read_invoice(out / "invoice.jsonl"), play.killed, analyzers=analyzers, sabotage=job.sabotage,
            )  # fmt: skip
            scene.stage = "proved" if proof.ok else "NOT proved"
    return Outcome(
        proof.ok, round(seconds, 3), round(report.modules / seconds, 1), round(latency, 3), job.root, str(out),
        scene.log, handle.correlation_id, report, play.killed, proof,
    ), play.peak or scene  # fmt: skip


class Play:
    """The part between the start of the job and its answer."""

    def __init__(self, screen: Screen, company: Company, provider: Provider, bus: MessageBus, watch: Watch) -> None:
        self.screen = screen
        self.company = company
        self.provider = provider
        self.bus = bus
        self.watch = watch
        self.killed: Killed | None = None
        self.peak: Scene | None = None

    async def act(self, job: Job, id: str) -> tuple[Handle[Report], Report]:
        """Start the job, kill one analyzer at work, wait for the answer."""
        self.screen.scene.stage = "reviewing"
        await self.provider.hold_one(KILL_AFTER, KILL_OWN if self.company.analyzers == 2 else 0.0)
        async with asyncio.timeout(TIMEOUT), self._beside(self._kill_one(), self._draw()):
            handle = await self.bus.start(review, job, id=id)
            self.screen.say(f"the job is in the log, as workflow {id}")
            report: Report = await handle.result()
        await self._look()
        return handle, report

    @contextlib.asynccontextmanager
    async def _beside(self, *works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in works]
            yield
            for task in running:
                task.cancel()

    async def _kill_one(self) -> None:
        """Kill an analyzer by SIGKILL while the provider keeps the answer to one of its calls back."""
        held = await self.provider.held()
        member = await self.company.kill(held.pid)
        self.killed = Killed(held.pid, member, held.module, held.key, time.time())
        self.screen.say(f"kill -9 {held.pid}: {member} dies in a call about {held.module}", "kill")

    async def _draw(self) -> None:
        while True:
            self.company.check()
            await self._look()
            self.screen.update()
            await asyncio.sleep(LOOK)

    async def _look(self) -> None:
        scene, watch = self.screen.scene, self.watch
        news = await watch.look()
        scene.invoice = await self.provider.status()
        scene.total, scene.analysed, scene.sections, scene.validated = (
            watch.modules, watch.analysed, watch.sections, watch.validated
        )  # fmt: skip
        scene.rows = [self._row(child, scene.invoice) for child in self.company.children]
        for said in news:
            self.screen.say(said.text, said.kind)
        if any(said.kind == "again" for said in news):
            self.peak = copy.deepcopy(scene)

    def _row(self, child: Child, status: Status) -> Row:
        watch, member, killed = self.watch, child.member, child.pid in self.company.killed
        if child.group == ANALYZERS:
            at_work, queued, done = watch.at_work(member), watch.queued(member), watch.finished(member)
            calls = status.by_pid.get(child.pid, 0)
        elif child.group == "orchestrator":
            left = watch.spawned - watch.returned
            at_work, queued, done, calls = [f"waits for {counted(left, 'answer')}"] if left else [], 0, 0, -1
        else:
            desk = watch.desks[member]
            at_work, queued, done, calls = desk.open[:1], len(desk.open[1:]), desk.done, -1
        return Row(member, child.pid, killed, queued, at_work, done, calls)
