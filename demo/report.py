"""The writer's work: sections and the report, as Markdown; equal input gives equal text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .messages import MAX_FIRST, MAX_TOP, MISSING, RANK, RULES, Analysis, Assemble, Module, Section, Write

SECTIONS = "sections"
REPORT = "report.md"
COUNTS = ("lines", "functions", "classes", "decisions")
HOW = (
    "Every number below was counted twice, by two programs that share no code. A decision is an `if`, `elif`, `for`, "
    "`while`, `except`, `and`, `or` or `case`; the complexity of a function is 1 + its decisions. The quoted opinions "
    "are those of the demo's pretend model: deterministic, and nobody's."
)
PLACE = re.compile(r"`([^`]+):(\d+)` `([^`]+)`(?: (\d+))?")


class Place(NamedTuple):
    """A place that a section names: how it is ranked, where it is, what stands there."""

    rank: int
    path: str
    line: int
    name: str
    what: str


def write_section(wanted: Write) -> Section:
    """Write one section into the folder `out`; the same one is written over."""
    text = "\n".join(module_text(analysis) for analysis in wanted.analyses)
    folder = Path(wanted.out, SECTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{wanted.number + 1:04d}.md"
    file.write_text(text, encoding="utf-8")
    return Section(f"{SECTIONS}/{file.name}", len(wanted.analyses), hashlib.sha256(text.encode()).hexdigest())


def module_text(analysis: Analysis) -> str:
    """Return what the report says of one module."""
    n, path = analysis.numbers, analysis.path
    rows = [
        f"### `{path}`",
        "",
        f"- lines {n.lines}, functions {n.functions}, classes {n.classes}, decisions {n.decisions}, worst {n.worst}",
    ]
    if n.top:
        rows.append("- complexity: " + ", ".join(f"`{path}:{f.line}` `{f.name}` {f.complexity}" for f in n.top))
    for rule, count in n.rules.items():
        places = ", ".join(f"`{path}:{f.line}` `{f.name}`" for f in n.findings if f.rule == rule)
        rows.append(f"- {rule} {count}: {places}" if places else f"- {rule} {count}")
    unlisted = sum(n.rules.values()) - len(n.findings)
    if unlisted:
        rows.append(f"- unlisted {unlisted}: of so many places in one module only the first are named")
    rows += ["", f"> {analysis.opinion.score}/100. {analysis.opinion.summary}", ""]
    return "\n".join(rows)


def write_report(wanted: Assemble) -> str:
    """Write `report.md` of the sections in `out`; return its name."""
    texts = [Path(wanted.out, section.file).read_text(encoding="utf-8") for section in wanted.sections]
    body = "\n".join(texts)
    parts = [f"# Review of {wanted.title}", "", HOW, "", *_summary(body, len(wanted.unreadable))]
    parts += ["", "## Modules", "", body, *_unreadable(wanted.unreadable)]
    Path(wanted.out, REPORT).write_text("\n".join(parts), encoding="utf-8")
    return REPORT


def _summary(body: str, unreadable: int) -> list[str]:
    """Add up what the sections say: the writer has nothing else."""
    sums, rules = dict.fromkeys(COUNTS, 0), dict.fromkeys(RULES, 0)
    functions: list[Place] = []
    findings: list[Place] = []
    modules = 0
    for line in body.splitlines():
        word, _, rest = line.removeprefix("- ").partition(" ")
        if line.startswith("### "):
            modules += 1
        elif line.startswith("- lines "):
            for count in line.removeprefix("- ").split(", "):
                what, _, number = count.partition(" ")
                if what in sums:
                    sums[what] += int(number)
        elif line.startswith("- complexity: "):
            functions += (Place(-int(c), path, int(at), name, c) for path, at, name, c in PLACE.findall(rest))
        elif line.startswith("- ") and word in RULES:
            rules[word] += int(rest.partition(":")[0])
            if word != MISSING:
                findings += (Place(RANK[word], path, int(at), name, word) for path, at, name, _ in PLACE.findall(rest))
    return [
        *_table(("modules", *COUNTS, "unreadable"), [(modules, *sums.values(), unreadable)]),
        "", "## Findings", "",
        *_table(("rule", "found", "what it is"), [(r, n, RULES[r]) for r, n in rules.items() if n]),
        "", f"## Where to look first (at most {MAX_FIRST} places)", "",
        *_table(("finding", "where"), _ranked(findings, MAX_FIRST)),
        "", "## Most complex functions", "",
        *_table(("complexity", "function"), _ranked(functions, MAX_TOP)),
    ]  # fmt: skip


def _ranked(places: Iterable[Place], limit: int) -> list[tuple[object, ...]]:
    return [(p.what, f"`{p.path}:{p.line}` `{p.name}`") for p in sorted(places)[:limit]]


def _table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    if not rows:
        return ["None."]
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _unreadable(modules: list[Module]) -> list[str]:
    if not modules:
        return []
    return ["## Unreadable", "", *(f"- `{m.path}`: {m.error}" for m in modules), ""]
