"""The fault campaign. Run in tests/ as: python -m faults.campaign [SCENARIO ...] [--broker B] [--runs N] [--seed S]
[--table FILE]

Each run has a seed of its own. A run counts only if it has seen its fault. A run that breaks a promise is kept on disk,
and the campaign ends with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from .check import Checked, check
from .logs import KINDS, CannotPlay, laid
from .scenarios import SCENARIOS
from .stage import Broken, staged


class Outcome(msgspec.Struct):
    """What came of one run."""

    scenario: str
    broker: str
    seed: int
    seconds: float
    seen: int
    findings: list[str]
    folder: str
    records: int = 0
    acknowledged: int = 0
    calls: int = 0
    repeated: int = 0
    deaths: int = 0
    late: int = 0
    healed: float = 0.0


async def run_once(scenario: str, broker: str, seed: int, folder: Path) -> Outcome:
    """Play one run in a folder, and judge it."""
    began, played = time.monotonic(), SCENARIOS[scenario]
    findings: list[str] = []
    checked: Checked | None = None
    ground = laid(broker, folder, played.nodes, played.disk, played.network)
    async with ground as log, staged(folder, seed, log) as stage:
        try:
            async with asyncio.timeout(240):
                await played.play(stage)
        except (Broken, TimeoutError) as error:
            findings.append(f"{type(error).__name__}: {error}")
        stage.end()
        if not findings and stage.judged:
            checked = await check(folder, failed=stage.failed)
            findings += checked.findings
        made = Outcome(scenario, broker, seed, time.monotonic() - began, stage.seen, findings, str(folder))
        made.healed = max(stage.healed, default=0.0)
    if checked is not None:
        for name in ("records", "acknowledged", "calls", "repeated", "deaths", "late"):
            setattr(made, name, getattr(checked, name))
        made.seen += checked.late if stage.late_counts else 0
    return made


def in_new_folder(scenario: str, broker: str, seed: int) -> Outcome:
    """Play one run; its folder stays only where a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix=f"refold-{scenario}-{broker}-{seed}-"))
    outcome = asyncio.run(run_once(scenario, broker, seed, folder))
    if not outcome.findings:
        shutil.rmtree(folder)
    return outcome


def commit() -> str:
    """Return the commit that is tested, with a + where files were changed since."""
    def git(*words: str) -> str:
        here = Path(__file__).parent
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False, cwd=here).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def line_of(o: Outcome) -> str:
    """Say what came of a run, for people."""
    what = "ok" if not o.findings else f"BROKEN, kept in {o.folder}"
    seen = "" if o.seen else " (did not see its fault: does not count)"
    return (
        f"{o.scenario} on {o.broker}, seed {o.seed}: {what}{seen}; {o.seconds:.1f} s, {o.records} records, "
        f"{o.calls} calls, {o.repeated} repeated, {o.deaths} deaths, {o.late} late, "
        f"through {o.healed:.1f} s after healing"
    )


def summary(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each scenario."""
    rows = []
    for name, broker in dict.fromkeys((o.scenario, o.broker) for o in outcomes):
        mine = [o for o in outcomes if (o.scenario, o.broker) == (name, broker)]
        counted = [o for o in mine if o.seen]
        healed = [round(o.healed, 1) for o in counted] or [0.0]
        rows.append({
            "scenario": name, "broker": broker, "commit": commit(), "seeds": f"{mine[0].seed}..{mine[-1].seed}",
            "runs": len(mine), "n": len(counted), "broken": sum(bool(o.findings) for o in mine),
            **{k: sum(getattr(o, k) for o in counted) for k in ("acknowledged", "calls", "repeated", "deaths", "late")},
            "healed_median": round(statistics.median(healed), 2), "healed_max": max(healed),
        })  # fmt: skip
    return rows


def many(name: str, broker: str, runs: int, seed: int) -> list[Outcome]:
    """Play a scenario until so many runs have seen their fault; half of all may not."""
    outcomes: list[Outcome] = []
    spare = runs
    while sum(bool(o.seen) for o in outcomes) < runs and spare >= 0:
        try:
            outcome = in_new_folder(name, broker, seed + len(outcomes))
        except CannotPlay as error:
            sys.stdout.write(f"{name} on {broker}: NOT PLAYED: {error}\n")
            return outcomes
        outcomes.append(outcome)
        spare -= not outcome.seen
        sys.stdout.write(line_of(outcome) + "\n")
        for finding in outcome.findings[:10]:
            sys.stdout.write(f"    {finding}\n")
        sys.stdout.flush()
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs with faults, judged by their history.")
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all of them without any")
    parser.add_argument("--broker", choices=KINDS, action="append", help="all that a scenario has without any")
    parser.add_argument("--runs", type=int, default=10, help="runs of each scenario that must have seen their fault")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; each run takes the next")
    parser.add_argument("--table", type=Path, help="add the rows to this file, as JSON lines")
    options = parser.parse_args()
    rows, missing = [], list[str]()
    for name in options.scenarios or SCENARIOS:
        for broker in SCENARIOS[name].brokers:
            if options.broker is None or broker in options.broker:
                found = summary(many(name, broker, options.runs, options.seed))
                missing += [] if found else [f"{name} on {broker}"]
                rows += found
                if options.table is not None:
                    with options.table.open("a", encoding="utf-8") as table:
                        table.writelines(msgspec.json.encode(row).decode() + "\n" for row in found)
    for row in rows:
        sys.stdout.write(", ".join(f"{k} {v}" for k, v in row.items()) + "\n")
    short = missing + [f"{r['scenario']} on {r['broker']}" for r in rows if r["n"] < options.runs]
    if short:
        sys.stdout.write(f"too few runs saw their fault: {', '.join(short)}\n")
    return 1 if short or any(r["broken"] for r in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
