"""What people see of the demo: it fits the terminal, and the kill stays in sight."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from refold.demo.provider import Status
from refold.demo.screen import FEWEST, Drawn, Lines, Row, Said, Scene


def scene(analyzers: int = 3, events: int = 30) -> Scene:
    """The middle of a run; analyzer-2 was killed early."""
    rows = [Row("orchestrator", 101, False, 0, ["waits for 60 analyses"], 0, -1)]
    rows += [
        Row(f"analyzer-{i}", 200 + i, i == 2, 0 if i == 2 else 12, ["a_module_with_a_name.py"] * 4, 9, 13)
        for i in range(1, analyzers + 1)
    ]
    found = Scene(
        "a project", "sqlite:///refold-demo/refold.db", 0.0, "reviewing", 139, 63, 6, 2, rows,
        Status(67, 4, 63100, {201: 30}, {201: 4}),
    )  # fmt: skip
    found.seconds = 8.3
    found.events.append(Said(4.1, "kill", "kill -9 202: analyzer-2 dies in a call about a_module_with_a_name.py"))
    for i in range(events):
        found.events.append(Said(5.0 + i, "section", f"section {i} of 6 is written and validated"))
    return found


def lines_of(drawn: Drawn, width: int, height: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, height=height, highlight=False).print(drawn)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("analyzers", [2, 3, 16])
@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (60, 16), (200, 50)])
def test_the_screen_fits_the_terminal_and_keeps_the_kill_in_sight(width: int, height: int, analyzers: int) -> None:
    lines = lines_of(Drawn(scene(analyzers, events=15)), width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "kill -9 202: analyzer-2 dies" in text
    assert "63 of 139 analysed" in text and "67 calls" in text and "reviewing   8.3 s" in text


def test_a_terminal_of_80_by_24_shows_agents_pids_queue_calls_and_invoice() -> None:
    assert [line.rstrip() for line in lines_of(Drawn(scene(events=2)), 80, 24)] == [
        "refold demo  review of a project  sqlite:///refold-demo/refol… reviewing   8.3 s",
        "",
        "agent         pid  queued  done  calls  at work on",
        "orchestrator  101                       waits for 60 analyses",
        "analyzer-1    201      12     9     13  4: a_module_with_a_name.py, a_module_wi…",
        "analyzer-2    202             9     13  killed (kill -9)",
        "analyzer-3    203      12     9     13  4: a_module_with_a_name.py, a_module_wi…",
        "",
        "modules   ━━━━━━━━━━━━━━╸                   63 of 139 analysed",
        "sections  ━━━━━━━━━━╸                       2 of 6 written and validated",
        "invoice   67 calls, 4 in flight, 4 made again (free), $0.0631",
        "",
        "   4.1 s  kill -9 202: analyzer-2 dies in a call about a_module_with_a_name.py",
        "   5.0 s  section 0 of 6 is written and validated",
        "   6.0 s  section 1 of 6 is written and validated",
    ]


def test_a_low_terminal_leaves_processes_out_and_says_how_many() -> None:
    lines = lines_of(Drawn(scene(16)), 80, 16)
    assert [line.split()[0] for line in lines[3:6]] == ["orchestrator", "analyzer-2", "15"]
    assert sum("section" in line or "kill -9 202" in line for line in lines[-FEWEST:]) == FEWEST


def test_a_pipe_gets_a_line_for_each_event_without_markup() -> None:
    out = io.StringIO()
    with Lines(Console(file=out, width=40), Scene("it", "log", 0.0)) as screen:
        screen.say("[red]a name[/red] that is longer than the forty columns of this pipe", "kill")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("s  [red]a name[/red] that is longer than the forty columns of this pipe")
