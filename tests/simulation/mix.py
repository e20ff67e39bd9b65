"""A pytest plugin: say which faults the simulated runs met, and fail the run where one of them never happened."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

import pytest

FAULTS = (
    "append refused", "append unknown", "append late", "append twice", "call refused", "call slow",
    "crash before a call", "crash after a call", "batch again", "batch in pieces", "page in pieces", "hint lost",
    "hint twice", "checkpoint not saved", "checkpoint lost", "checkpoint old", "checkpoint fenced", "copy elsewhere",
    "killed", "frozen beyond its lease", "frozen shortly", "cut off beyond its lease", "cut off shortly",
    "lease ran out", "partition lost alive", "takeover after a death", "write fenced", "stopped in good order",
    "another worker joins", "restarted under its name", "clock skew", "an agent appears late", "old record again",
    "message in a wrong partition", "message to a completed workflow", "cancelled", "redriven", "discarded",
    "rolled back", "rolled back meanwhile", "poison", "verdict duplicate", "verdict stale", "verdict late",
    "verdict misplaced", "verdict ledger", "folds compared",
)  # fmt: skip
"""What must have happened in a run, or it does not count."""
RARE = ("verdict void", "verdict conflict")
"""What must have happened in a thorough run."""
THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
SEEDS = 1000 if THOROUGH else 48
CHUNK = 25 if THOROUGH else 8
POISONED = 100 if THOROUGH else 8


def met(config: pytest.Config) -> tuple[int, Counter[str]]:
    """Return how many seeds were played, and what they met."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    seeds, found = 0, Counter[str]()
    for outcome in ("passed", "failed"):
        for report in reporter.getreports(outcome) if reporter is not None else ():
            for name, told in report.user_properties:
                if name == "simulation":
                    seeds += 1
                    found.update(json.loads(told))
    return seeds, found


def missing(config: pytest.Config) -> list[str]:
    """Return the faults that never happened, where enough seeds were played to say so."""
    seeds, found = met(config)
    demanded = FAULTS + RARE if THOROUGH else FAULTS
    return [fault for fault in demanded if not found[fault]] if seeds >= SEEDS + POISONED else []


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    seeds, found = met(config)
    if seeds:
        counts = ", ".join(f"{fault} {found[fault]}" for fault in FAULTS + RARE)
        terminalreporter.write_line(f"Simulation: {seeds} seeds played. Met: {counts}.")
    if never := missing(config):
        terminalreporter.write_line(f"Simulation: NEVER MET, so the run does not count: {', '.join(never)}.", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and missing(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
