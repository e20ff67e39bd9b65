"""The page of guarantees names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

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
