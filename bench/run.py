"""Measures refold against hand-written loops: `python bench/run.py [ROW...] [--turns N] [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import measure

FOUND = [path.stem for path in sorted((measure.BENCH / "rows").glob("*.py"))]
BROKERS = ("nats", "kafka")
ON = ("append", "pipeline", "rebuild", "scaling", "workflow", "takeover", "waiting")
"""Rows of each of the two brokers, as in `nats_append`: `rows/on_append.py`."""
ROWS = [name for name in FOUND if not name.startswith("on_")] + [f"{kind}_{name}" for kind in BROKERS for name in ON]
ORDER = [
    "append", "promises", "pipeline", "latency", "processes", "child", "wakeup", "rebuild", "waiting", "takeover",
    "steps", "calls", "imports", "growth", "peers", *(f"{kind}_{name}" for kind in BROKERS for name in ON),
]  # fmt: skip


def main() -> int:
    """Measure the rows that were asked for; 1 where one of them could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(ORDER)}; all by default")
    parser.add_argument("--turns", type=int, help="how often each side is measured")
    parser.add_argument("--json", type=Path, help="write the figures to this file too (added to those of other rows)")
    parser.add_argument("--limit", type=float, default=3600.0, help="start no further row after so many seconds")
    parser.add_argument("--side", nargs=3, metavar=("ROW", "SIDE", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        name, side, folder = asked.side
        print(json.dumps(load(name).sides[side](Path(folder))))
        return 0
    return measure_all(asked)


def load(name: str) -> measure.Row:
    """Return the row of that name."""
    kind, _, subject = name.partition("_")
    module = importlib.import_module(f"rows.on_{subject}" if kind in BROKERS else f"rows.{name}")
    row: measure.Row = module.row(kind) if kind in BROKERS else module.ROW
    return row


def measure_all(asked: argparse.Namespace) -> int:
    """Measure, print and write."""
    unknown = sorted(set(asked.rows) - set(ROWS))
    if unknown:
        print(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}", file=sys.stderr)
        return 2
    started, lines, failed = time.monotonic(), [], []
    for name in [n for n in ORDER if n in ROWS and (not asked.rows or n in asked.rows)]:
        if time.monotonic() - started > asked.limit:
            failed.append(f"{name}: not begun within {asked.limit:.0f} s")
            continue
        print(f"... {name}", file=sys.stderr)
        try:
            lines += measure.measure(name, load(name), asked.turns)
        except Exception as error:  # noqa: BLE001 - the other rows are measured all the same
            failed.append(f"{name}: {error}")
    found = measure.versions()
    print(table(lines))
    print(", ".join(f"{k} {v}" for k, v in found.items()), f"load {os.getloadavg()[0]:.1f}", sep=", ")
    for text in failed:
        print(f"NOT MEASURED {text}", file=sys.stderr)
    if asked.json:
        write(asked.json, lines, found)
    return 1 if failed else 0


def write(path: Path, lines: list[dict[str, Any]], found: dict[str, str]) -> None:
    """Write lines, beside those of rows that were not measured now."""
    before = json.loads(path.read_text()) if path.exists() else {"lines": []}
    measured = {line["row"] for line in lines}
    kept = [line for line in before["lines"] if line["row"] not in measured]
    for line in lines:
        line["versions"] = found
    both = sorted(kept + lines, key=lambda line: ORDER.index(line["row"]) if line["row"] in ORDER else len(ORDER))
    path.write_text(json.dumps({"lines": both}, indent=1) + "\n")


def table(lines: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    out = ["| what | refold | raw | ratio | spread | target | met |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        ratio, (low, high) = line["ratio"], line["spread"]
        raw = f"{short(line['raw'])} {line['unit']}" if line["raw"] is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[line["met"]]
        ours = f"{short(line['refold'])} {line['unit']}"
        cells = [line["title"], ours, raw, "" if ratio is None else f"{ratio:.2f}", f"{short(low)}-{short(high)}"]
        out.append(f"| {' | '.join([*cells, line['target'], met])} |")
    return "\n".join(out)


def short(value: float) -> str:
    """Return a number with three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
