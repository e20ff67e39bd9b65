"""The page of guarantees names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

from faults.table import merged

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "guarantees.md"


def test_every_promise_stands_beside_tests_that_exist():
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    promises = [line for line in rows if not line.startswith(("| promise", "| scenario"))]
    missing = []
    for line in promises:
        named = re.findall(r"`(\w+): (test_\w+)`", line)
        if "test_" not in line:
            continue
        assert named, line
        missing += [f"{file}: {test}" for file, test in named if not exists(file, test)]
    assert missing == []
    assert len(promises) > 25


def exists(file: str, test: str) -> bool:
    path = HERE / f"test_{file}.py"
    return path.exists() and f"def {test}(" in path.read_text(encoding="utf-8")


def test_runs_on_servers_are_added_to_the_line_of_their_scenario():
    page = "# Runs\n| `cut`: what | nats | a | 1..2 | 2 | 0 | 10 | 1 | 0 | 0 | 0 | 1.0, 1.5 |\n" + (
        "| `cut`: what | kafka | a | 1..2 | 2 | 0 | 1,990 | 3 | 0 | 0 | 0 | 1.0, 2.0 |\nEnd"
    )
    row = {
        "scenario": "cut", "broker": "kafka", "commit": "b", "seeds": "7..8", "n": 2, "broken": 1, "acknowledged": 10,
        "calls": 2, "repeated": 1, "deaths": 0, "late": 4, "healed_median": 3.0, "healed_max": 4.04,
    }  # fmt: skip
    assert merged(page, [row, row | {"seeds": "9..9", "n": 1}]).split("\n")[1:] == [
        "| `cut`: what | nats | a | 1..2 | 2 | 0 | 10 | 1 | 0 | 0 | 0 | 1.0, 1.5 |",
        "| `cut`: what | kafka | a, b | 1..2, 7..8, 9..9 | 5 | 2 | 2,010 | 7 | 2 | 0 | 8 | 2.2, 4.0 |",
        "End",
    ]
