"""Puts measured figures into the docs: `python bench/report.py bench/results.json` writes the tables of
docs/performance.md and draws docs/growth.svg."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
GROWTH = {"append": "one append (us)", "takeover": "takeover (ms)", "ps": "refold ps (ms)", "show": "refold show (ms)"}
COLOURS = ("#0b6e99", "#c2410c", "#15803d", "#7e22ce")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 60, 50


def main() -> None:
    """Rewrite what lies between the marks of the page."""
    found = json.loads(Path(sys.argv[1]).read_text("utf-8"))["lines"]
    page = DOCS / "performance.md"
    text = page.read_text("utf-8")
    for name, lines in {
        "engine": [line for line in found if not line["row"].startswith(("peers", "growth", "nats_", "kafka_"))],
        "nats": [line for line in found if line["row"].startswith("nats_")],
        "kafka": [line for line in found if line["row"].startswith("kafka_")],
        "peers": [line for line in found if line["row"] == "peers"],
        "growth": [line for line in found if line["row"] == "growth"],
    }.items():
        mark = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = mark.sub(lambda m, lines=lines: m[1] + table(lines) + "\n" + m[2], text)  # type: ignore[misc]
    page.write_text(text, "utf-8")
    (DOCS / "growth.svg").write_text(plot([line for line in found if line["row"] == "growth"]), "utf-8")


def table(lines: list[dict[str, Any]]) -> str:
    """Return lines as Markdown."""
    out = ["| what | refold | compared with | ratio | spread | target | load |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        base = f"{line['base']} {number(line['raw'])} {line['unit']}" if line["raw"] is not None else ""
        ratio = f"{line['ratio']:.2f}" if line["ratio"] is not None else ""
        low, high = line["spread"]
        target = line["target"] + {True: ": met", False: ": **not met**", None: ""}[line["met"]]
        cells = [
            line["title"], f"{number(line['refold'])} {line['unit']}", base, ratio, f"{number(low)} to {number(high)}",
            target, f"{line['load']:.1f}",
        ]  # fmt: skip
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)


def number(value: float) -> str:
    """Return a number with three digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ---- the plot --------------------------------------------------------------------------------------------------------
def plot(lines: list[dict[str, Any]]) -> str:
    """Return an SVG: cost against the log's size, both axes logarithmic."""
    points = {
        key: sorted((int(line_key[len(key) :]), line["refold"]) for line in lines if (line_key := keyed(line, key)))
        for key in GROWTH
    }
    sizes = [size for series in points.values() for size, _ in series]
    costs = [cost for series in points.values() for _, cost in series]
    if not sizes:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>\n"
    x = axis(min(sizes), max(sizes), LEFT, WIDTH - 20)
    y = axis(min(costs), max(costs), HEIGHT - BOTTOM, 20)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"',
        ' font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
    ]
    out += [
        f'<line x1="{x(size):.0f}" x2="{x(size):.0f}" y1="20" y2="{HEIGHT - BOTTOM}" stroke="#dddddd"/>'
        f'<text x="{x(size):.0f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size:,}</text>'
        for size in sorted(set(sizes))
    ]
    powers = range(math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs))) + 1)
    out += [
        f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y(ten):.0f}" y2="{y(ten):.0f}" stroke="#dddddd"/>'
        f'<text x="{LEFT - 8}" y="{y(ten) + 4:.0f}" text-anchor="end">{ten:,}</text>'
        for power in powers
        if 20 <= y(ten := 10**power) <= HEIGHT - BOTTOM
    ]
    for colour, (key, title) in zip(COLOURS, GROWTH.items(), strict=True):
        series = points[key]
        if not series:
            continue
        path = " ".join(f"{x(size):.1f},{y(cost):.1f}" for size, cost in series)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(s):.1f}" cy="{y(c):.1f}" r="3" fill="{colour}"/>' for s, c in series]
        last = series[-1]
        out.append(
            f'<text x="{x(last[0]) - 6:.0f}" y="{y(last[1]) - 8:.0f}" text-anchor="end" fill="{colour}">{title}</text>'
        )
    out.append(f'<text x="{WIDTH / 2:.0f}" y="{HEIGHT - 10}" text-anchor="middle">records in the log</text></svg>')
    return "\n".join(out) + "\n"


def keyed(line: dict[str, Any], key: str) -> str:
    """Return the figure's key where it is one of that subject."""
    found: str = line["key"]
    return found if found.startswith(key) else ""


def axis(low: float, high: float, start: float, end: float) -> Any:
    """Return a function from a value to its place on a logarithmic axis."""
    a, b = math.log10(low), math.log10(high)
    b += 1e-9 if a == b else 0
    return lambda value: start + (math.log10(value) - a) / (b - a) * (end - start)


if __name__ == "__main__":
    main()
