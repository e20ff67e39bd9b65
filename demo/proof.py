"""The proof, from the log alone: what was killed, who went on, that nothing was lost, and what it cost."""

from __future__ import annotations

import re
from collections import Counter

from msgspec import Struct

from ..bus import codec, facts, kinds
from ..bus.broker import Broker
from ..projections.history import History, read_workflow
from ..projections.timeline import Attempt, Moment, attempts, timeline
from ..projections.verdict import Verdict
from .messages import PLANTED, Analyze, Opinion, Report
from .provider import Invoiced, counted, dollars
from .watch import ANALYZERS

FAIR_SHARE = 0.2
USUAL = 3
"""With more analyzers than this, the share that is expected of two of them is smaller by as much."""
FEW = 50
"""With fewer modules than this, chance decides who gets how many: no share of the work is expected."""


class Killed(Struct, frozen=True):
    """What the stage saw when it killed a process: which, and which call the provider held for it."""

    pid: int
    member: str
    module: str
    key: str
    time: float


class Claim(Struct, frozen=True):
    """One claim, and whether the log bears it out."""

    text: str
    ok: bool
    seen: str


class Cut(Struct, frozen=True):
    """What became of the handlings that the killed process had begun and not finished: their calls were not yet made,
    made and not recorded (`between`: made again), or recorded (never made again)."""

    before_the_call: int
    between: int
    after_the_record: int


class Bill(Struct, frozen=True):
    """Calls in the invoice, their values in the log, those called again (by the kill or not), sums in millionths of a
    dollar."""

    made: int
    recorded: int
    repeated: int
    repeated_by_the_kill: int
    invoiced: int
    in_the_log: int
    cut: Cut


class Proof(Struct, frozen=True):
    """`ok` if all claims hold; `workflow` is the killed handling's, `attempts` its runs, `moments` its records, and
    `takeover` who owned its partition next, and when (seconds after its first record)."""

    ok: bool
    claims: list[Claim]
    bill: Bill
    shares: dict[int, int]
    workflow: str
    attempts: list[Attempt]
    moments: list[Moment]
    takeover: tuple[float, str, int] | None


class Analysed(Struct, frozen=True):
    """The child workflow of one module, read back: who answered, what was paid (key -> price), and which process
    recorded it (key -> pid)."""

    path: str
    again: bool
    planted: bool
    history: History
    runs: list[Attempt]
    answers: int
    paid: dict[str, int]
    recorded_by: dict[str, int]


async def prove(
    broker: Broker, correlation: str, report: Report, text: str, invoice: list[Invoiced], killed: Killed | None,
    *, analyzers: int = USUAL, sabotage: bool = False,
) -> Proof:  # fmt: skip
    """Read the review's workflow and those of its modules, and judge the run. `text` is the report's."""
    parent = await read_workflow(broker, correlation)
    analysed = [await _analysed(broker, child) for child in children_of(parent)]
    theirs = next((a for a in analysed if killed is not None and killed.key in a.paid), None)
    bill = _bill(analysed, invoice, killed)
    shares = Counter(run.pid for a in analysed for run in a.runs if run.outcome == kinds.TASK_RESPONSE)
    claims = [
        _went_on(theirs, killed),
        _once(analysed, report, text),
        _shared(shares, len(analysed), analyzers),
        _charged_once(bill, analysed, invoice),
        _repeated(killed, invoice),
        _compared(report, text),
    ]
    if sabotage:
        claims.append(_caught(analysed, report))
    return Proof(
        all(claim.ok for claim in claims), claims, bill, dict(shares),
        theirs.history.correlation if theirs else "", theirs.runs if theirs else [],
        timeline(theirs.history) if theirs else [], _takeover(theirs, killed),
    )  # fmt: skip


def children_of(parent: History) -> list[str]:
    """Return the workflows that a workflow has spawned."""
    return [
        j.envelope.to
        for j in parent.records
        if j.verdict is Verdict.ADMITTED and j.envelope.message_type == kinds.TASK_REQUEST and j.envelope.to
    ]


async def _analysed(broker: Broker, correlation: str) -> Analysed:
    history = await read_workflow(broker, correlation)
    task = codec.payload_as(history.records[0].value, Analyze)
    admitted = [j for j in history.records if j.verdict is Verdict.ADMITTED]
    paid: dict[str, int] = {}
    recorded_by: dict[str, int] = {}
    for j, moment in zip(history.records, timeline(history), strict=True):
        fact = j.envelope.fact
        if j.verdict is Verdict.ADMITTED and isinstance(fact, facts.EffectCompleted) and fact.name == "opinion":
            paid[fact.effect] = codec.payload_as(j.value, Opinion).price
            recorded_by[fact.effect] = moment.pid
    answers = sum(j.envelope.message_type == kinds.TASK_RESPONSE for j in admitted)
    runs = attempts(history)
    return Analysed(task.module.path, bool(task.objections), task.sabotage, history, runs, answers, paid, recorded_by)


def _went_on(theirs: Analysed | None, killed: Killed | None) -> Claim:
    claim = "the killed handling: an attempt without outcome, and another process finished it"
    if killed is None:
        return Claim(claim, False, "no analyzer was killed while it held an unfinished handling")
    if theirs is None:
        return Claim(claim, False, f"the log knows nothing of {killed.module}'s opinion")
    lost = [i for i, r in enumerate(theirs.runs) if r.pid == killed.pid]
    later = theirs.runs[lost[-1] + 1 :] if lost else []
    ok = bool(later) and not any(theirs.runs[i].outcome for i in lost) and later[-1].outcome == kinds.TASK_RESPONSE
    return Claim(claim, ok, f"{theirs.path}: {'; '.join(map(_run, theirs.runs))}")


def _run(run: Attempt) -> str:
    return f"attempt {run.number} by pid {run.pid}: {run.outcome or 'no outcome'}"


def _takeover(theirs: Analysed | None, killed: Killed | None) -> tuple[float, str, int] | None:
    """Who owned the partition of the killed handling next."""
    if theirs is None or killed is None:
        return None
    owners = theirs.history.owners.values()
    claims = [(r.timestamp, r.fact) for r in owners if isinstance(r.fact, facts.Owner) and r.fact.group == ANALYZERS]
    at = next((i for i, (_, fact) in enumerate(claims) if fact.pid == killed.pid), len(claims))
    for time, fact in claims[at + 1 :]:
        return time - theirs.history.records[0].time, fact.member, fact.pid
    return None


def _once(analysed: list[Analysed], report: Report, text: str) -> Claim:
    headings = Counter(re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE))
    asked = Counter(a.path for a in analysed if not a.again)
    wrong = [path for path in {*headings, *asked} if headings[path] != 1 or asked[path] != 1]
    wrong += [a.path for a in analysed if a.answers != 1]
    ok = not wrong and len(headings) == report.modules
    seen = f"{counted(len(headings), 'module')}, {sum(a.answers for a in analysed)} answered, {len(analysed)} asked for"
    return Claim("every module was answered once and is reported once", ok, f"{seen}{_named(wrong)}")


def _shared(shares: Counter[int], modules: int, analyzers: int) -> Claim:
    fair = FAIR_SHARE * min(1, USUAL / analyzers)
    claim = f"at least two analyzers did {fair:.0%} or more each"
    seen = ", ".join(f"pid {pid}: {n} ({n / modules:.0%})" for pid, n in shares.most_common())
    if modules < FEW:
        return Claim(f"{claim} (not asked for: fewer than {FEW} modules)", True, seen)
    return Claim(claim, sum(n >= fair * modules for n in shares.values()) >= 2, seen)


def _bill(analysed: list[Analysed], invoice: list[Invoiced], killed: Killed | None) -> Bill:
    keys = {key: price for a in analysed for key, price in a.paid.items()}
    pid = killed.pid if killed else 0
    by_the_kill = {line.key for line in invoice if line.pid == pid}
    repeats = [line for line in invoice if line.repeated]
    return Bill(
        made=len(invoice), recorded=len(keys), repeated=len(repeats),
        repeated_by_the_kill=sum(line.key in by_the_kill for line in repeats),
        invoiced=sum(line.price for line in invoice), in_the_log=sum(keys.values()),
        cut=cut_of(analysed, by_the_kill, pid),
    )  # fmt: skip


def cut_of(analysed: list[Analysed], called: set[str], pid: int) -> Cut:
    """Tell by log and invoice where the crash fell, in each handling that the killed process left without outcome."""
    cut = [a for a in analysed if any(r.pid == pid and not r.outcome for r in a.runs)]
    recorded = sum(pid in a.recorded_by.values() for a in cut)
    between = sum(any(key in called and by != pid for key, by in a.recorded_by.items()) for a in cut)
    return Cut(len(cut) - recorded - between, between, recorded)


def _charged_once(bill: Bill, analysed: list[Analysed], invoice: list[Invoiced]) -> Claim:
    """What the log has recorded was charged once; no call was charged that the log does not know."""
    recorded = {key for a in analysed for key in a.paid}
    charged = Counter(line.key for line in invoice if not line.repeated)
    wrong = [key for key in {*recorded, *charged} if key not in recorded or charged[key] != 1]
    seen = f"{bill.recorded} recorded, {len(charged)} charged, {bill.repeated} called again under the same key, free"
    ok = not wrong and bill.invoiced == bill.in_the_log
    return Claim("every recorded call was charged exactly once", ok, seen + _named(wrong))


def _repeated(killed: Killed | None, invoice: list[Invoiced]) -> Claim:
    lines = [line for line in invoice if killed is not None and line.key == killed.key]
    ok = len(lines) > 1 and killed is not None and lines[0].pid == killed.pid and lines[-1].pid != killed.pid
    seen = "; ".join(f"pid {x.pid}: {'repeated, free' if x.repeated else dollars(x.price)}" for x in lines)
    free = all(line.repeated and not line.price for line in lines[1:])
    return Claim("the call that the kill cut off was made again under the same key, free", ok and free, seen or "none")


def _compared(report: Report, text: str) -> Claim:
    there = numbers_in(text)
    seen = f"{report.numbers} compared, {there} in the report, {len(report.corrected)} sent back"
    return Claim("the validator compared every number of the report with the source", report.numbers == there, seen)


def numbers_in(text: str) -> int:
    """Count the numbers that a report states: those of its tables and lists, lines of places included."""
    stated = [x for x in text.partition("\n## Unreadable\n")[0].splitlines() if x.startswith(("- ", "| "))]
    return sum(len(re.findall(r"\d+", re.sub(r"`[^`]*?(:\d+)?`", r"\1", line))) for line in stated)


def _caught(analysed: list[Analysed], report: Report) -> Claim:
    """The planted one is the only one of its module; of others, that somebody has edited meanwhile, there may be."""
    planted = {a.path for a in analysed if a.planted}
    found = [o for o in report.corrected if o.path in planted]
    ok = len(found) == 1 and found[0].counted.isdigit() and found[0].reported == str(int(found[0].counted) + PLANTED)
    seen = "; ".join(map(str, found)) or "no objection"
    return Claim("the one planted error was sent back and corrected", ok, seen)


def _named(wrong: list[str]) -> str:
    return f"; wrong: {', '.join(sorted(wrong)[:5])}" if wrong else ""
