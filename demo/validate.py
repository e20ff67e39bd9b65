"""The validator's work: read the report back, line by line, and compare every number in it with the source."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from tokenize import TokenError

from .messages import MAX_TOP, RULES, Check, Checked, CheckReport, Module, Numbers, Objection
from .recount import recount

HEADING = re.compile(r"### `(.+)`")
PLACE = re.compile(r"- (complexity )?([\w-]+): `(.+):(\d+)` `(.+)`")
COUNTS = ("lines", "functions", "classes", "decisions", "worst")
Claims = dict[str, str]


def check_section(wanted: Check) -> Checked:
    """Count the modules of a section again and compare: each number, each place, and that none is missing."""
    said = dict(claims_of(Path(wanted.out, wanted.section.file).read_text(encoding="utf-8")))
    numbers, objections = 0, []
    for module in wanted.modules:
        found, wrong = _compare(wanted.root, module, said.pop(module.path, {}))
        numbers += found
        objections += wrong
    objections += [Objection(path, "module", "present", "not asked for") for path in said]
    return Checked(numbers, objections)


def claims_of(text: str) -> Iterator[tuple[str, Claims]]:
    """Read what a report says of each module: (path, what -> value); a place counts how often it is named."""
    for block in re.split(r"^(?=### `)", text, flags=re.MULTILINE):
        heading = HEADING.match(block)
        if heading is None:
            continue
        claims: Claims = {}
        for line in block.splitlines():
            _claim(line, heading[1], claims)
        yield heading[1], claims


def _claim(line: str, path: str, claims: Claims) -> None:
    place = PLACE.fullmatch(line)
    if place is not None:
        kind = f"complexity {place[2]}" if place[1] else place[2]
        _count(claims, f"{kind} at {place[3].removeprefix(path)}{place[4]} {place[5]}")
    elif line.startswith(("- lines ", "- findings: ")):
        for part in line.removeprefix("- ").removeprefix("findings: ").split(", "):
            what, _, value = part.partition(" ")
            claims[what] = value


def _count(claims: Claims, what: str) -> None:
    claims[what] = str(int(claims.get(what, "0")) + 1)


def _compare(root: str, module: Module, said: Claims) -> tuple[int, list[Objection]]:
    try:
        source = Path(root, module.path).read_bytes()
        counted = facts_of(recount(module.path, source))
    except (OSError, SyntaxError, TokenError) as error:
        return 0, [Objection(module.path, "source", "readable", str(error))]
    wrong = [
        Objection(module.path, what, said.get(what, "nothing"), counted.get(what, "nothing"))
        for what in sorted({*said, *counted})
        if said.get(what) != counted.get(what)
    ]
    return len(counted), wrong


def facts_of(numbers: Numbers) -> Claims:
    """Return numbers in the form of `claims_of`."""
    claims = {what: str(getattr(numbers, what)) for what in COUNTS}
    claims |= {rule: str(count) for rule, count in numbers.rules.items()}
    for f in numbers.top:
        _count(claims, f"complexity {f.complexity} at {f.line} {f.name}")
    for finding in numbers.findings:
        _count(claims, f"{finding.rule} at {finding.line} {finding.name}")
    return claims


def check_report(wanted: CheckReport) -> Checked:
    """Check that the report holds each section word for word and each module once, and that its tables are right."""
    text = Path(wanted.out, wanted.file).read_text(encoding="utf-8")
    modules = list(claims_of(text))
    objections = []
    for section in wanted.sections:
        part = Path(wanted.out, section.file).read_text(encoding="utf-8")
        if hashlib.sha256(part.encode()).hexdigest() != section.digest or part not in text:
            objections.append(Objection(section.file, "section", "complete", "changed or missing"))
    objections += [
        Objection(path, "module", f"{times} times", "once")
        for path, times in Counter(path for path, _ in modules).items() if times > 1
    ]  # fmt: skip
    rows = _rows(text.partition("\n## Modules\n")[0])
    due = _due_rows(modules, wanted)
    objections += [
        Objection(wanted.file, "row of a table", said or "nothing", row or "nothing")
        for said, row in zip_longest(rows, due)
        if said is None or row is None or not said.startswith(row)
    ]
    objections += [o for m in wanted.unreadable if (o := _readable(wanted.root, m)) is not None]
    return Checked(sum(row.count(" | ") + 1 for row in due), objections)


def _rows(head: str) -> list[str]:
    """Return the rows of all tables, without their headings."""
    tables = re.findall(r"^\| --- .*\n((?:\| .*\n?)*)", head, flags=re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


def _due_rows(modules: list[tuple[str, Claims]], wanted: CheckReport) -> list[str]:
    """Return how the rows of the report's tables must begin, by what its modules say."""
    sums: Counter[str] = Counter()
    functions = []
    for path, claims in modules:
        for what, value in claims.items():
            if what.startswith("complexity "):
                _, complexity, _, line, name = what.split(" ", 4)
                functions.append((-int(complexity), f"`{path}:{line}` `{name}`"))
            elif " " not in what:
                sums[what] += int(value)
    counts = [sum(s.modules for s in wanted.sections), *(sums[what] for what in COUNTS[:-1]), len(wanted.unreadable)]
    return [
        f"| {' | '.join(map(str, counts))} |",
        *(f"| {rule} | {sums[rule]} |" for rule in sorted(RULES) if sums[rule]),
        *(f"| {-complexity} | {where} |" for complexity, where in sorted(functions)[:MAX_TOP]),
    ]


def _readable(root: str, module: Module) -> Objection | None:
    """Python itself must refuse what the report calls unreadable."""
    try:
        compile(Path(root, module.path).read_bytes(), module.path, "exec", dont_inherit=True)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return Objection(module.path, "unreadable", module.error, "it can be compiled")
