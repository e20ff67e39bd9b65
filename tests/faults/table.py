"""Adds runs to the table of docs/guarantees.md. Run in tests/ as: python -m faults.table FILE ...

Each file has the rows that `faults.campaign --table` has written, of runs on servers that are in no table yet: numbers
are added to those of the scenario's row. A median of medians is weighted by runs, so it is a hint.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guarantees.md"
SUMS = ("acknowledged", "calls", "repeated", "deaths", "late")
FIELDS = ("commit", "seeds", "n", "broken", *SUMS)


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def added(cells: list[str], row: dict[str, Any]) -> list[str]:
    """Return the cells of a line with the runs of a row: name, broker, then FIELDS, then the times."""
    old = dict(zip(FIELDS, cells[2:], strict=False))
    median, most = (float(text) for text in cells[-1].split(","))
    n = int(old["n"].replace(",", ""))
    out = {
        "commit": ", ".join(dict.fromkeys([*old["commit"].split(", "), row["commit"]])),
        "seeds": f"{old['seeds']}, {row['seeds']}",
    }
    for name in ("n", "broken", *SUMS):
        out[name] = f"{int(old[name].replace(',', '')) + row[name]:,}"
    median = (median * n + row["healed_median"] * row["n"]) / max(n + row["n"], 1)
    times = f"{median:.1f}, {max(most, row['healed_max']):.1f}"
    return [*cells[:2], *(out[name] for name in FIELDS), times]


def merged(page: str, rows: list[dict[str, Any]]) -> str:
    """Return the page with the rows' runs. Raises KeyError where a scenario has no line yet."""
    lines = page.split("\n")
    places = {}
    for i, line in enumerate(lines):
        cells = cells_of(line) if line.startswith("| `") else []
        if len(cells) == 3 + len(FIELDS):
            places[cells[0].split("`")[1], cells[1]] = i
    for row in rows:
        i = places[row["scenario"], row["broker"]]
        lines[i] = f"| {' | '.join(added(cells_of(lines[i]), row))} |"
    return "\n".join(lines)


def main() -> int:
    rows = [msgspec.json.decode(line) for file in sys.argv[1:] for line in Path(file).read_text().splitlines()]
    PAGE.write_text(merged(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
