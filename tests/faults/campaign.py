"""The fault campaign. Run in tests/ as: python -m faults.campaign [SCENARIO ...] [--runs N] [--seed S] [--table FILE]

Each run has a seed of its own. A run counts only if it has seen its fault. A run that breaks a promise is kept on disk,
and the campaign ends with exit code 1.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from .check import Checked, check
from .scenarios import SCENARIOS
from .stage import NoProgress, staged


class Outcome(msgspec.Struct):
    """What came of one run."""

    scenario: str
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


async def run_once(scenario: str, seed: int, folder: Path) -> Outcome:
    """Play one run in a folder, and judge it."""
    began = time.monotonic()
    findings: list[str] = []
    checked: Checked | None = None
    async with staged(folder, seed) as stage:
        try:
            async with asyncio.timeout(240):
                await SCENARIOS[scenario](stage)
        except (NoProgress, TimeoutError) as error:
            findings.append(f"no progress: {error}")
        stage.end()
        if not findings:
            checked = await check(folder, failed=stage.failed)
            findings += checked.findings
        made = Outcome(scenario, seed, time.monotonic() - began, stage.seen, findings, str(folder))
    if checked is not None:
        for name in ("records", "acknowledged", "calls", "repeated", "deaths", "late"):
            setattr(made, name, getattr(checked, name))
        made.seen += checked.late if stage.late_counts else 0
    return made


def in_new_folder(scenario: str, seed: int) -> Outcome:
    """Play one run; its folder stays only where a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix=f"refold-{scenario}-{seed}-"))
    outcome = asyncio.run(run_once(scenario, seed, folder))
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
        f"{o.scenario} seed {o.seed}: {what}{seen}; {o.seconds:.1f} s, {o.records} records, {o.calls} calls, "
        f"{o.repeated} repeated, {o.deaths} deaths, {o.late} late"
    )


def summary(outcomes: list[Outcome]) -> list[dict[str, Any]]:
    """Return a row for each scenario."""
    rows = []
    for name in dict.fromkeys(o.scenario for o in outcomes):
        mine = [o for o in outcomes if o.scenario == name]
        counted = [o for o in mine if o.seen]
        rows.append({
            "scenario": name, "commit": commit(), "seeds": f"{mine[0].seed}..{mine[-1].seed}", "runs": len(mine),
            "n": len(counted), "broken": sum(bool(o.findings) for o in mine),
            **{k: sum(getattr(o, k) for o in counted) for k in ("acknowledged", "calls", "repeated", "deaths", "late")},
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs with faults, judged by their history.")
    parser.add_argument("scenarios", nargs="*", choices=[*SCENARIOS, []], help="all of them without any")
    parser.add_argument("--runs", type=int, default=10, help="runs of each scenario that must have seen their fault")
    parser.add_argument("--seed", type=int, default=1, help="the first seed; each run takes the next")
    parser.add_argument("--table", type=Path, help="add the rows to this file, as JSON lines")
    options = parser.parse_args()
    outcomes: list[Outcome] = []
    for name in options.scenarios or SCENARIOS:
        seed, counted, spare = options.seed, 0, options.runs
        while counted < options.runs and spare >= 0:
            outcome = in_new_folder(name, seed)
            outcomes.append(outcome)
            counted += bool(outcome.seen)
            spare -= not outcome.seen
            seed += 1
            sys.stdout.write(line_of(outcome) + "\n")
            for finding in outcome.findings[:10]:
                sys.stdout.write(f"    {finding}\n")
            sys.stdout.flush()
    rows = summary(outcomes)
    if options.table is not None:
        with options.table.open("a", encoding="utf-8") as table:
            table.writelines(msgspec.json.encode(row).decode() + "\n" for row in rows)
    for row in rows:
        sys.stdout.write(", ".join(f"{k} {v}" for k, v in row.items()) + "\n")
    short = [r["scenario"] for r in rows if r["n"] < options.runs]
    if short:
        sys.stdout.write(f"too few runs saw their fault: {', '.join(short)}\n")
    return 1 if short or any(r["broken"] for r in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
