"""The main job, staged: processes that review Python code over one log, one of them killed at work, and the proof."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
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
from ..bus import kinds
from ..bus.broker import Presence
from ..bus.errors import RefoldError
from ..projections.verdict import Verdict
from .curtain import Outcome, told
from .messages import Job, Report
from .processes import Child, Company
from .proof import Killed, prove
from .provider import Provider, Status, read_invoice
from .screen import Full, Lines, Row, Scene, Screen, drawn
from .survey import look, modules_of
from .team import review

OUT = Path("refold-demo")
TIMEOUT = 600.0
"""Seconds until a run is given up."""
KILL_AFTER = 0.45
"""The share of the modules that is begun when one analyzer is killed."""
MANY = 64
"""With more modules than this, a few that cannot be parsed do not move the kill."""
PARTS = ("refold.db", "refold.db-wal", "refold.db-shm", "invoice.jsonl", "report.md", "sections", "logs")
"""What a run leaves in its folder; the next one begins without it."""


class CannotStart(RefoldError):
    """The user must change something first; the text says what."""


async def perform(
    path: Path | None = None, *, sabotage: bool = False, analyzers: int = 3, json: bool = False, out: Path = OUT,
    picture: Path | None = None,
) -> int:  # fmt: skip
    """Run the demo over the modules below `path` (default: refold itself); return the exit code.

    0: everything is proved; 1: something is not, or the run failed; 2: there is nothing to do here. Writes only below
    `out` (and `picture`, an SVG of the end of the run, where one is asked for).
    """
    console, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        root, title, total = subject(path)
        with alone_in(out), unwrapped():
            scene = Scene(title, f"sqlite:///{out}/refold.db", time.time())
            job = Job(str(root), os.path.abspath(out), title, sabotage)
            outcome = await run_on(_screen(console, scene, json), job, total, out, analyzers)
    except CannotStart as error:
        errors.print(f"refold demo: {error}", markup=False)
        return 2
    except (RefoldError, TimeoutError) as error:
        errors.print(f"refold demo: {str(error) or 'no end in sight, given up'} (logs are in {out}/logs)", markup=False)
        return 1
    if json:
        sys.stdout.write(msgspec.json.encode(outcome).decode() + "\n")
    else:
        console.print(told(outcome), soft_wrap=True)
    if picture is not None:
        draw(picture, scene, outcome)
    return 0 if outcome.ok else 1


def subject(path: Path | None) -> tuple[Path, str, int]:
    """Return the folder, its title, and how many modules it has that can be parsed. Raises CannotStart."""
    root = (path or Path(__file__).parent.parent).resolve()
    if not root.is_dir():
        raise CannotStart(f"{path} is no folder")
    found = modules_of(root)
    good = len(found) if len(found) > MANY else sum(not look(str(root), module).error for module in found)
    if not good:
        raise CannotStart(f"no Python module below {root} can be reviewed ({len(found)} found)")
    return root, root.name if path is not None else "refold", good


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Hold the folder for this run, without what an earlier one left. Raises CannotStart."""
    try:
        (out / "logs").mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise CannotStart(f"cannot write to {out}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CannotStart(f"another demo runs in {out} now; wait for it, or start this one elsewhere") from None
        for name in PARTS:
            part = out / name
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
        (out / "logs").mkdir()
        yield


def _screen(console: Console, scene: Scene, json: bool) -> Screen:
    kind = Screen if json else Full if console.is_terminal else Lines
    return kind(console, scene)


async def run_on(screen: Screen, job: Job, total: int, out: Path, analyzers: int) -> Outcome:
    """Play the whole run before a screen."""
    scene = screen.scene
    with screen:
        async with MessageBus.open(scene.log) as bus, Company(out, scene.log, analyzers) as company:
            screen.say(f"starting {analyzers} analyzers and one each of orchestrator, researcher, writer, validator")
            provider = await company.start()
            await company.ready(bus.broker)
            began = time.monotonic()
            play = Play(screen, company, provider, bus)
            handle, report = await play.act(job, total)
            seconds = time.monotonic() - began
            scene.stage = "reading the log"
            screen.say("done; the processes are told to stop")
            await company.end()
            proof = await prove(
                bus.broker, handle.correlation_id, report, (out / report.file).read_text(encoding="utf-8"),
                read_invoice(out / "invoice.jsonl"), play.killed, sabotage=job.sabotage,
            )  # fmt: skip
            scene.stage = "proved" if proof.ok else "NOT proved"
    return Outcome(
        proof.ok, round(seconds, 3), round(report.modules / seconds, 1), job.root, str(out), scene.log,
        handle.correlation_id, report, play.killed, proof,
    )  # fmt: skip


class Play:
    """The part between the start of the job and its answer."""

    def __init__(self, screen: Screen, company: Company, provider: Provider, bus: MessageBus) -> None:
        self.screen = screen
        self.company = company
        self.provider = provider
        self.bus = bus
        self.killed: Killed | None = None

    async def act(self, job: Job, total: int) -> tuple[Handle, Report]:
        """Start the job, kill one analyzer at work, wait for the answer."""
        self.screen.scene.stage = "reviewing"
        async with asyncio.timeout(TIMEOUT), self._beside(self._kill_one(total), self._draw()):
            handle = await self.bus.start(review, job, id=f"review-{uuid.uuid4().hex[:8]}")
            self.screen.say(f"started workflow {handle.correlation_id}")
            async with self._beside(self._follow(handle)):
                report: Report = await handle.result()
        return handle, report

    @contextlib.asynccontextmanager
    async def _beside(self, *works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(work) for work in works]
            yield
            for task in running:
                task.cancel()

    async def _kill_one(self, total: int) -> None:
        """Kill an analyzer by SIGKILL while the provider keeps the answer to one of its calls back."""
        held = await self.provider.hold_one(int(total * KILL_AFTER), total)
        member = next(c.member for c in self.company.children if c.pid == held.pid)
        await self.company.kill(held.pid)
        self.killed = Killed(held.pid, member, held.module, held.key, time.time())
        self.screen.say(f"kill -9 {held.pid} ({member}), which waited for the provider's answer about {held.module}")

    async def _draw(self) -> None:
        while True:
            self.company.check()
            await self._look()
            self.screen.update()
            await asyncio.sleep(0.2)

    async def _look(self) -> None:
        scene = self.screen.scene
        scene.invoice = status = await self.provider.status()
        load = {m.presence.pid: m.presence for m in await self.bus.broker.members()}
        scene.rows = [_row(c, self.company, load.get(c.pid), status) for c in self.company.children]

    async def _follow(self, handle: Handle) -> None:
        scene = self.screen.scene
        async for event in handle.events():
            message = event.message
            if event.verdict is not Verdict.ADMITTED:
                continue
            if message.message_type == kinds.TASK_RESPONSE and message.origin is not None:
                scene.answered += 1
            elif message.message_type == "progress":
                self._progress(message.payload)

    def _progress(self, said: dict[str, object]) -> None:
        if "modules" in said:
            self.screen.scene.total = int(str(said["modules"]))
            self.screen.say(f"the researcher found {said['modules']} modules")
        elif said.get("wrong"):
            self.screen.say(f"the validator sends section {said['section']} back: {said['wrong']}")
        else:
            self.screen.say(f"section {said['section']} is written and validated")


def _row(child: Child, company: Company, load: Presence | None, status: Status) -> Row:
    makes_calls = child.group == "analyzers"
    return Row(
        child.group, child.member, child.pid, child.pid in company.killed,
        load.running if load else 0, load.queued if load else 0, load.waiting if load else 0,
        status.by_pid.get(child.pid, 0) if makes_calls else -1, status.open_by_pid.get(child.pid, 0),
    )  # fmt: skip


def draw(picture: Path, scene: Scene, outcome: Outcome) -> None:
    """Save the last scene and what was told as an SVG."""
    console = Console(record=True, file=io.StringIO(), width=120, highlight=False)
    console.print(drawn(scene), told(outcome))
    console.save_svg(str(picture), title="refold demo")
