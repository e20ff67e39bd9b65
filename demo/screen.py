"""What people see of a run: live on a terminal, line by line elsewhere, nothing for programs."""

from __future__ import annotations

import time
from collections import deque
from typing import Self

from msgspec import Struct, field
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .provider import Status

LAST = 6
"""How many of the last events are on the screen."""


class Row(Struct, frozen=True):
    """A process: what it hosts, whether it was killed, its load, its calls of the provider (-1: makes none)."""

    group: str
    member: str
    pid: int
    killed: bool
    running: int
    queued: int
    waiting: int
    calls: int
    open_calls: int


class Scene(Struct):
    """What there is to see now."""

    title: str
    log: str
    started: float
    stage: str = "starting"
    total: int = 0
    answered: int = 0
    rows: list[Row] = field(default_factory=list)
    invoice: Status = field(default_factory=Status)
    events: deque[tuple[float, str]] = field(default_factory=lambda: deque(maxlen=LAST))


class Screen:
    """Shows nothing."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self.console = console
        self.scene = scene

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def say(self, text: str) -> None:
        """Something happened."""
        self.scene.events.append((time.time() - self.scene.started, text))

    def update(self) -> None:
        """The scene has changed."""


class Lines(Screen):
    """A line for each event: for pipes and files."""

    def say(self, text: str) -> None:
        """Print it."""
        super().say(text)
        self.console.print(f"{time.time() - self.scene.started:6.1f} s  {escape(text)}", soft_wrap=True)


class Full(Screen):
    """The whole scene, in place."""

    def __init__(self, console: Console, scene: Scene) -> None:
        super().__init__(console, scene)
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        self.update()
        return self

    def __exit__(self, *exc: object) -> None:
        self.update()
        self._live.__exit__(None, None, None)

    def say(self, text: str) -> None:
        """Put it among the last events."""
        super().say(text)
        self.update()

    def update(self) -> None:
        """Draw."""
        self._live.update(drawn(self.scene), refresh=True)


def drawn(scene: Scene) -> RenderableType:
    """Return the scene as it is drawn."""
    seconds = time.time() - scene.started
    head = Text.assemble(
        ("refold demo ", "bold"), f"{scene.title}  ", (f"{scene.log}  ", "dim"), f"{seconds:.1f} s  ",
        (scene.stage, "cyan"),
    )  # fmt: skip
    bar = Table.grid(padding=(0, 1))
    bar.add_row(
        ProgressBar(total=max(scene.total, 1), completed=scene.answered, width=40),
        f"{scene.answered} of {scene.total or '?'} modules analysed",
    )
    lines = [Text.assemble((f"{at:6.1f} s  ", "dim"), text) for at, text in scene.events]
    return Group(head, "", _processes(scene.rows), "", bar, _invoice(scene.invoice), "", *lines)


def _processes(rows: list[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("group", "process"):
        table.add_column(column)
    for column in ("pid", "running", "queued", "waiting", "calls", "unanswered"):
        table.add_column(column, justify="right")
    for row in rows:
        calls = (str(row.calls), str(row.open_calls)) if row.calls >= 0 else ("", "")
        load = (str(row.running), str(row.queued), str(row.waiting)) if not row.killed else ("kill -9", "", "")
        style = "red" if row.killed else ""
        table.add_row(row.group, row.member, str(row.pid), *load, *calls, style=style)
    return table


def _invoice(status: Status) -> Text:
    return Text(f"invoice: {status.calls} calls, {status.repeated} repeated (free), {dollars(status.billed)}")


def dollars(millionths: int) -> str:
    """Return an amount for people."""
    return f"${millionths / 1e6:.4f}"
