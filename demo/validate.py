"""The validator's work: read the report back, line by line, and compare every number in it with the source."""

from __future__ import annotations

import hashlib
import re
from ast import PyCF_ONLY_AST
from collections import Counter
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from tokenize import TokenError

from .messages import (
    MAX_BYTES,
    MAX_FIRST,
    MAX_TOP,
    MISSING,
    RULES,
    Check,
    Checked,
    CheckReport,
    Module,
    Numbers,
    Objection,
)
from .recount import recount, words_of

HEADING = re.compile(r"### `(.+)`")
CLAIM = re.compile(r"- ([a-z-]+)(?: (\d+))?(?:: (.*))?")
PLACE = re.compile(r"`([^`]+):(\d+)` `([^`]+)`(?: (\d+))?")
COUNTS = ("lines", "functions", "classes", "decisions", "worst")
Claims = dict[str, str]
NO_PYTHON = (SyntaxError, TokenError, ValueError, LookupError)
"""What reading the tokens of a file raises where they are none."""


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
    said = CLAIM.fullmatch(line)
    if line.startswith("- lines "):
        for part in line.removeprefix("- ").split(", "):
            what, _, value = part.partition(" ")
            claims[what] = value
    elif said is not None:
        if said[2]:
            claims[said[1]] = said[2]
        for file, at, name, complexity in PLACE.findall(said[3] or ""):
            elsewhere = "" if file == path else file
            _count(claims, f"{said[1]} {complexity} at {elsewhere}{at} {name}")
    elif line.startswith("- "):
        claims[line] = "not understood"


def _count(claims: Claims, what: str) -> None:
    claims[what] = str(int(claims.get(what, "0")) + 1)


def _compare(root: str, module: Module, said: Claims) -> tuple[int, list[Objection]]:
    try:
        source = Path(root, module.path).read_bytes()
        counted = facts_of(recount(module.path, source))
    except (OSError, *NO_PYTHON) as error:
        return 0, [Objection(module.path, "source", "readable", str(error))]
    wrong = [
        Objection(module.path, what, said.get(what, "nothing"), counted.get(what, "nothing"))
        for what in sorted({*said, *counted})
        if said.get(what) != counted.get(what)
    ]
    return sum(_numbers_in(what, value) for what, value in counted.items()), wrong


def _numbers_in(what: str, value: str) -> int:
    """A count is one number; a place is one, its line, and with a complexity two, each time that it is named."""
    if " at " not in what:
        return 1
    return int(value) * (2 if what.startswith("complexity ") else 1)


def facts_of(numbers: Numbers) -> Claims:
    """Return numbers in the form of `claims_of`."""
    claims = {what: str(getattr(numbers, what)) for what in COUNTS}
    claims |= {rule: str(count) for rule, count in numbers.rules.items()}
    if unlisted := sum(numbers.rules.values()) - len(numbers.findings):
        claims["unlisted"] = str(unlisted)
    for f in numbers.top:
        _count(claims, f"complexity {f.complexity} at {f.line} {f.name}")
    for finding in numbers.findings:
        _count(claims, f"{finding.rule}  at {finding.line} {finding.name}")
    return claims


def check_report(wanted: CheckReport) -> Checked:
    """Check that the report holds each section word for word and each module once, and that its tables are right."""
    text = Path(wanted.out, wanted.file).read_text(encoding="utf-8")
    head, _, rest = text.partition("\n## Modules\n")
    body, _, tail = rest.partition("\n## Unreadable\n")
    modules = list(claims_of(body))
    objections = []
    for section in wanted.sections:
        part = Path(wanted.out, section.file).read_text(encoding="utf-8")
        if hashlib.sha256(part.encode()).hexdigest() != section.digest or part not in text:
            objections.append(Objection(section.file, "section", "complete", "changed or missing"))
    objections += [
        Objection(path, "module", f"{times} times", "once")
        for path, times in Counter(path for path, _ in modules).items() if times > 1
    ]  # fmt: skip
    rows = _rows(head)
    due = _due_rows(modules, wanted)
    objections += [
        Objection(wanted.file, "row of a table", said or "nothing", row or "nothing")
        for said, row in zip_longest(rows, due)
        if said is None or row is None or not said.startswith(row)
    ]
    if re.findall(r"^- `(.+?)`: ", tail, flags=re.MULTILINE) != [m.path for m in wanted.unreadable]:
        objections.append(Objection(wanted.file, "unreadable", "another list", "that of the researcher"))
    objections += [o for m in wanted.unreadable if (o := _readable(wanted.root, m)) is not None]
    return Checked(sum(len(re.findall(r"(?<=[ :])\d+(?=[ `])", row)) for row in due), objections)


def _rows(head: str) -> list[str]:
    """Return the rows of all tables, without their headings."""
    tables = re.findall(r"^\| --- .*\n((?:\| .*\n?)*)", head, flags=re.MULTILINE)
    return [row for table in tables for row in table.splitlines()]


def _due_rows(modules: list[tuple[str, Claims]], wanted: CheckReport) -> list[str]:
    """Return how the rows of the report's tables must begin, by what its modules say."""
    sums: Counter[str] = Counter()
    places: list[tuple[str, str, int, str]] = []
    for path, claims in modules:
        for what, value in claims.items():
            kind, at, place = what.partition(" at ")
            if at:
                line, _, name = place.partition(" ")
                places += [(kind.strip(), path, int(line), name)] * int(value)
            else:
                sums[what] += int(value)
    counts = [sum(s.modules for s in wanted.sections), *(sums[what] for what in COUNTS[:-1]), len(wanted.unreadable)]
    return [
        f"| {' | '.join(map(str, counts))} |",
        *(f"| {rule} | {sums[rule]} |" for rule in RULES if sums[rule]),
        *_first_findings(places),
        *_most_complex(places),
    ]


def _first_findings(places: list[tuple[str, str, int, str]]) -> list[str]:
    by_rule = [sorted(place for place in places if place[0] == rule) for rule in RULES if rule != MISSING]
    first = [place for found in by_rule for place in found][:MAX_FIRST]
    return [f"| {rule} | `{path}:{line}` `{name}` |" for rule, path, line, name in first]


def _most_complex(places: list[tuple[str, str, int, str]]) -> list[str]:
    functions = [(int(kind.split()[1]), *rest) for kind, *rest in places if kind.startswith("complexity ")]
    functions.sort(key=lambda f: (-int(str(f[0])), *f[1:]))
    return [f"| {worth} | `{path}:{line}` `{name}` |" for worth, path, line, name in functions[:MAX_TOP]]


def _readable(root: str, module: Module) -> Objection | None:
    """Python itself must refuse what the report calls unreadable, or it must be too large."""
    file = Path(root, module.path)
    try:
        if file.stat().st_size > MAX_BYTES:
            return None
        source = file.read_bytes()
        words_of(source)
        compile(source, module.path, "exec", PyCF_ONLY_AST, dont_inherit=True)
    except (OSError, *NO_PYTHON, RecursionError, MemoryError):
        return None
    return Objection(module.path, "unreadable", module.error, "it can be compiled")
