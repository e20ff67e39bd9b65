"""What the members of the review team say to each other: payloads of requests and answers, and the rules' names."""

from __future__ import annotations

from msgspec import Struct, field

MAX_LISTED = 100
"""Findings listed per module, the most serious first; their numbers per rule are complete."""
MAX_TOP = 10
"""Functions listed per module, and in all, the most complex first."""
COMPLEX = 6
"""From this complexity on a function is listed."""
MAX_FIRST = 20
"""Places named at the top of the report."""
MAX_BYTES = 1_000_000
"""Size of a file above which nobody reads it."""

PLANTED = 7
"""By how much `--sabotage` makes one number wrong."""

RULES = {
    "eval-exec": "a call of `eval` or `exec`",
    "shell-true": "`shell=True` in a call",
    "unpickle": "a call of `pickle.load` or `pickle.loads`",
    "bare-except": "an `except` without a type also catches KeyboardInterrupt",
    "mutable-default": "a list, dict or set as default of a parameter is shared by all calls",
    "none-comparison": "`== None` or `!= None` where `is` is meant",
    "star-import": "`from ... import *`",
    "swallowed-error": "an `except` whose whole body is `pass`",
    "broad-except": "`except Exception` (or BaseException) catches bugs too",
    "no-docstring": "a public module, class or function without a docstring",
}
"""Rule -> what it finds, the most serious first. What stands inside an f-string is not looked at."""
RANK = {rule: rank for rank, rule in enumerate(RULES)}
MISSING = "no-docstring"


class Finding(Struct, frozen=True, array_like=True, order=True):
    """A place in a module (line from 1) that breaks a rule; `name` is what stands there."""

    line: int
    rule: str
    name: str


class Function(Struct, frozen=True, array_like=True):
    """A `def`: its line, its dotted name, and 1 + the decision points in its body (those of inner defs are theirs)."""

    line: int
    name: str
    complexity: int


class Numbers(Struct, frozen=True):
    """What is counted in one module.

    A decision point is an `if`, `elif`, `for`, `while`, `except`, `and`, `or`, or a `case`, also in an expression.
    `worst` is the highest complexity of a function, 0 without any; `top` and `findings` are the first of their kind
    (`MAX_TOP`, `MAX_LISTED`).
    """

    lines: int
    functions: int
    classes: int
    decisions: int
    worst: int
    rules: dict[str, int]
    top: list[Function]
    findings: list[Finding]


class Module(Struct, frozen=True):
    """A file below the root (`path` with slashes); `error` says why it is no Python that can be read."""

    path: str
    size: int
    digest: str
    error: str = ""


class Survey(Struct, frozen=True):
    """To the researcher: list the modules below `root` whose path comes after `after`, at most `limit`."""

    root: str
    after: str = ""
    limit: int = 500


class Surveyed(Struct, frozen=True):
    """The researcher's answer; `more`: ask again, after the last one."""

    modules: list[Module]
    more: bool


class Opinion(Struct, frozen=True):
    """What the provider thinks of a module: a score (0 to 100), a sentence, the price in millionths of a dollar."""

    score: int
    summary: str
    price: int


class Analyze(Struct, frozen=True):
    """To an analyzer, in a workflow of its own: count a module (one `of` so many), and buy an opinion unless there is
    one. `objections` are why the validator sent it back; `sabotage` plants one wrong number.
    """

    root: str
    module: Module
    of: int
    objections: list[str] = field(default_factory=list)
    opinion: Opinion | None = None
    sabotage: bool = False


class Analysis(Struct, frozen=True):
    """The analyzer's answer."""

    path: str
    digest: str
    numbers: Numbers
    opinion: Opinion


class Write(Struct, frozen=True, tag=True):
    """To the writer: one section of the report, into the folder `out`."""

    out: str
    number: int
    analyses: list[Analysis]


class Section(Struct, frozen=True):
    """A section that is written: its file, its modules, and the digest of its text."""

    file: str
    modules: int
    digest: str


class Assemble(Struct, frozen=True, tag=True):
    """To the writer: the report of these sections; `unreadable` are modules that nobody could parse."""

    out: str
    title: str
    sections: list[Section]
    unreadable: list[Module]


class Check(Struct, frozen=True, tag=True):
    """To the validator: count again what a section, in the folder `out`, says of these modules."""

    root: str
    out: str
    section: Section
    modules: list[Module]


class CheckReport(Struct, frozen=True, tag=True):
    """To the validator: the report `file` in `out` must hold every section, each module once, and right sums."""

    root: str
    out: str
    file: str
    sections: list[Section]
    unreadable: list[Module]


class Objection(Struct, frozen=True):
    """A number of the report that is not what the source says."""

    path: str
    what: str
    reported: str
    counted: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what} is reported as {self.reported}, counted as {self.counted}"


class Checked(Struct, frozen=True):
    """The validator's answer: how many numbers it compared, and which were wrong."""

    numbers: int
    objections: list[Objection]


class Job(Struct, frozen=True):
    """To the orchestrator: review the modules below `root`, write into `out`."""

    root: str
    out: str
    title: str
    sabotage: bool = False


class Report(Struct, frozen=True):
    """The orchestrator's answer. `corrected` are the validator's objections, each of them settled."""

    file: str
    modules: int
    unreadable: int
    numbers: int
    corrected: list[Objection]
