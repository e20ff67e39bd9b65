"""The writer's work: sections and the report, as Markdown; equal input gives equal text."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .messages import MAX_LISTED, MAX_TOP, RULES, Analysis, Assemble, Module, Section, Write

SECTIONS = "sections"
REPORT = "report.md"


def write_section(wanted: Write) -> Section:
    """Write one section into the folder `out`; the same one is written over."""
    text = "\n".join(module_text(analysis) for analysis in wanted.analyses)
    folder = Path(wanted.out, SECTIONS)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{wanted.number:04d}.md"
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
    if n.rules:
        rows.append("- findings: " + ", ".join(f"{rule} {count}" for rule, count in n.rules.items()))
    rows += [f"- complexity {f.complexity}: `{path}:{f.line}` `{f.name}`" for f in n.top]
    rows += [f"- {f.rule}: `{path}:{f.line}` `{f.name}`" for f in n.findings]
    unlisted = sum(n.rules.values()) - len(n.findings)
    if unlisted:
        rows.append(f"- (the first {MAX_LISTED} findings; {unlisted} more)")
    rows += ["", f"> {analysis.opinion.score}/100. {analysis.opinion.summary}", ""]
    return "\n".join(rows)


def write_report(wanted: Assemble) -> str:
    """Write `report.md` of the sections in `out`; return its name."""
    texts = [Path(wanted.out, section.file).read_text(encoding="utf-8") for section in wanted.sections]
    body = "\n".join(texts)
    parts = [f"# Review of {wanted.title}", "", *_summary(body, len(wanted.unreadable)), "", "## Modules", "", body]
    parts += _unreadable(wanted.unreadable)
    Path(wanted.out, REPORT).write_text("\n".join(parts), encoding="utf-8")
    return REPORT


def _summary(body: str, unreadable: int) -> list[str]:
    sums = dict.fromkeys(("lines", "functions", "classes", "decisions"), 0)
    rules = dict.fromkeys(RULES, 0)
    functions: list[tuple[int, str]] = []
    modules = 0
    for line in body.splitlines():
        if line.startswith("### "):
            modules += 1
        elif line.startswith("- lines "):
            for word, count in _pairs(line.removeprefix("- ")):
                if word in sums:
                    sums[word] += count
        elif line.startswith("- findings: "):
            for word, count in _pairs(line.removeprefix("- findings: ")):
                rules[word] += count
        elif line.startswith("- complexity "):
            complexity, _, where = line.removeprefix("- complexity ").partition(": ")
            functions.append((-int(complexity), where))
    return [
        *_table(("modules", *sums, "unreadable"), [(modules, *sums.values(), unreadable)]),
        "", "## Findings", "",
        *_table(("rule", "found", "what it is"), [(r, n, RULES[r]) for r, n in rules.items() if n]),
        "", "## Most complex functions", "",
        *_table(("complexity", "function"), [(-n, where) for n, where in sorted(functions)[:MAX_TOP]]),
    ]  # fmt: skip


def _pairs(text: str) -> list[tuple[str, int]]:
    return [(word, int(count)) for word, _, count in (part.partition(" ") for part in text.split(", "))]


def _table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> list[str]:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _unreadable(modules: list[Module]) -> list[str]:
    if not modules:
        return []
    return ["## Unreadable", "", *(f"- `{m.path}`: {m.error}" for m in modules), ""]
