"""What people see of a run: live on a terminal, line by line elsewhere, nothing for programs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Self

from msgspec import Struct, field
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .provider import Status, counted, dollars

LAST = 24
"""How many of the last events a tall screen shows."""
FEWEST = 3
"""How many it shows at least; where the screen is too low for them, some processes are left out."""
STYLES = {"kill": "bold red", "takeover": "yellow", "again": "yellow", "back": "magenta", "section": "green"}
"""News -> how it is written."""


REST = 9
"""Lines that are neither processes nor events."""


class Row(Struct, frozen=True):
    """A process: is it the killed one, what waits for it, what it does, what is done, calls (-1: it makes none)."""

    member: str
    pid: int
    killed: bool
    queued: int
    at_work: list[str]
    done: int
    calls: int


class Said(Struct, frozen=True):
    """An event: seconds since the start, its kind (of `STYLES`, or ""), its text."""

    at: float
    kind: str
    text: str


class Scene(Struct):
    """What there is to see now."""

    title: str
    log: str
    started: float
    stage: str = "starting"
    total: int = 0
    analysed: int = 0
    sections: int = 0
    validated: int = 0
    rows: list[Row] = field(default_factory=list)
    invoice: Status = field(default_factory=Status)
    events: deque[Said] = field(default_factory=lambda: deque(maxlen=LAST))
    seconds: float = 0.0


class Screen:
    """Shows nothing."""

    def __init__(self, console: Console, scene: Scene) -> None:
        self.console = console
        self.scene = scene

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        return

    def say(self, text: str, kind: str = "") -> None:
        """Something happened."""
        self.scene.events.append(Said(self._now(), kind, text))

    def update(self) -> None:
        """The scene has changed."""
        self._now()

    def _now(self) -> float:
        self.scene.seconds = time.time() - self.scene.started
        return self.scene.seconds


class Lines(Screen):
    """A line for each event: for pipes and files."""

    def say(self, text: str, kind: str = "") -> None:
        """Print it."""
        super().say(text, kind)
        self.console.print(f"{self.scene.seconds:6.1f} s  {escape(text)}", soft_wrap=True)


class Full(Screen):
    """The whole scene, in place."""

    def __init__(self, console: Console, scene: Scene) -> None:
        super().__init__(console, scene)
        self._live = Live(Drawn(scene), console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        self._live.__enter__()
        self.update()
        return self

    def __exit__(self, *exc: object) -> None:
        self.update()
        self._live.__exit__(None, None, None)

    def say(self, text: str, kind: str = "") -> None:
        """Put it among the last events."""
        super().say(text, kind)
        self.update()

    def update(self) -> None:
        """Draw."""
        super().update()
        self._live.refresh()


class Drawn:
    """The scene as it is drawn: it fits the screen."""

    def __init__(self, scene: Scene, height: int | None = None) -> None:
        self.scene = scene
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        scene, height = self.scene, (self._height or options.size.height) - 1
        events = _shown(scene.events, max(FEWEST, height - REST - len(scene.rows)))
        yield _head(scene)
        yield ""
        yield _processes(scene.rows, height - REST - FEWEST)
        yield ""
        yield _progress(scene, options.max_width)
        yield _invoice(scene)
        yield ""
        for said in events:
            text = Text.assemble((f"{said.at:6.1f} s  ", "dim"), (said.text, STYLES.get(said.kind, "")))
            text.truncate(options.max_width, overflow="ellipsis")
            yield text


def _shown(events: Iterable[Said], most: int) -> list[Said]:
    """The last events; the kill stays among them."""
    events = list(events)
    last = events[-most:]
    kills = [said for said in events[:-most] if said.kind == "kill"]
    return [*kills, *last[len(kills) :]]


def _head(scene: Scene) -> Table:
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    head.add_column(justify="right", no_wrap=True, min_width=len(f"{scene.stage} {scene.seconds:5.1f} s"))
    title = Text.assemble(("refold demo", "bold"), (f"  review of {scene.title}", "cyan"), (f"  {scene.log}", "dim"))
    style = {"proved": "bold green", "NOT proved": "bold red"}.get(scene.stage, "cyan")
    head.add_row(title, Text.assemble((scene.stage, style), f" {scene.seconds:5.1f} s"))
    return head


def _processes(rows: list[Row], most: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True, padding=(0, 2, 0, 0))
    table.add_column("agent", no_wrap=True)
    for column in ("pid", "queued", "done", "calls"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("at work on", no_wrap=True, overflow="ellipsis", ratio=1)
    shown = rows if len(rows) <= most else _most_telling(rows, max(1, most - 1))
    for row in shown:
        calls = str(row.calls) if row.calls >= 0 else ""
        table.add_row(row.member, str(row.pid), str(row.queued or ""), str(row.done or ""), calls, _now_of(row),
                      style="bold red" if row.killed else "")  # fmt: skip
    if len(shown) < len(rows):
        table.add_row(f"{len(rows) - len(shown)} more", style="dim")
    return table


def _most_telling(rows: list[Row], most: int) -> list[Row]:
    """The killed one and those at work, in their old order."""
    telling = sorted(rows, key=lambda row: (not row.killed, not row.at_work))[:most]
    return [row for row in rows if row in telling]


def _now_of(row: Row) -> Text:
    if row.killed:
        return Text("killed (kill -9)")
    if not row.at_work:
        return Text("-", style="dim")
    count = f"{len(row.at_work)}: " if len(row.at_work) > 1 else ""
    return Text(count + ", ".join(row.at_work))


def _progress(scene: Scene, width: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for what, done, total, how in (
        ("modules", scene.analysed, scene.total, "analysed"),
        ("sections", scene.validated, scene.sections, "written and validated"),
    ):
        bar = ProgressBar(
            total=max(total, 1), completed=done, width=max(10, min(40, width - 48)),
            complete_style="cyan", finished_style="green",
        )  # fmt: skip
        grid.add_row(Text(what, style="bold"), bar, Text(f"{done} of {total or '?'} {how}", no_wrap=True))
    return grid


def _invoice(scene: Scene) -> Text:
    status = scene.invoice
    waiting = sum(status.open_by_pid.values())
    return Text.assemble(
        ("invoice   ", "bold"),
        f"{counted(status.calls, 'call')}, {waiting} in flight, {status.repeated} made again (free), ",
        (dollars(status.billed), "bold"), no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
