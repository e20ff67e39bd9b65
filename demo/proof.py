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
from .messages import Analyze, Opinion, Report
from .provider import Invoiced

FAIR_SHARE = 0.2
FEW = 10
"""With fewer modules than this, no share of the work is expected."""


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


class Bill(Struct, frozen=True):
    """Calls in the invoice, their values in the log, those called again (by the kill or not), sums in millionths of a
    dollar."""

    made: int
    recorded: int
    repeated: int
    repeated_by_the_kill: int
    invoiced: int
    in_the_log: int


class Proof(Struct, frozen=True):
    """`ok` if all claims hold; `workflow` is the killed handling's, `attempts` its runs, `moments` its records."""

    ok: bool
    claims: list[Claim]
    bill: Bill
    shares: dict[int, int]
    workflow: str
    attempts: list[Attempt]
    moments: list[Moment]


class Analysed(Struct, frozen=True):
    """The child workflow of one module, read back: who answered, and what was paid (key -> price)."""

    path: str
    again: bool
    history: History
    runs: list[Attempt]
    answers: int
    paid: dict[str, int]


async def prove(
    broker: Broker, correlation: str, report: Report, text: str, invoice: list[Invoiced], killed: Killed | None,
    *, sabotage: bool = False,
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
        _shared(shares, len(analysed)),
        _charged_once(bill, analysed, invoice),
    ]
    if sabotage:
        claims.append(_caught(report))
    return Proof(
        all(claim.ok for claim in claims), claims, bill, dict(shares),
        theirs.history.correlation if theirs else "", theirs.runs if theirs else [],
        timeline(theirs.history) if theirs else [],
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
    paid = {
        j.envelope.fact.effect: codec.payload_as(j.value, Opinion).price
        for j in admitted
        if isinstance(j.envelope.fact, facts.EffectCompleted) and j.envelope.fact.name == "opinion"
    }
    answers = sum(j.envelope.message_type == kinds.TASK_RESPONSE for j in admitted)
    return Analysed(task.module.path, bool(task.objections), history, attempts(history), answers, paid)


def _went_on(theirs: Analysed | None, killed: Killed | None) -> Claim:
    claim = "the killed handling: attempt 1 left no outcome, attempt 2 in another process finished it"
    if killed is None or theirs is None:
        return Claim(claim, False, "no analyzer was killed while it held a call that the log knows")
    first = [r for r in theirs.runs if r.pid == killed.pid]
    rest = [r for r in theirs.runs if r.pid != killed.pid]
    seen = "; ".join(f"attempt {r.number} by pid {r.pid}: {r.outcome or 'no outcome'}" for r in theirs.runs)
    ok = bool(first) and not any(r.outcome for r in first) and bool(rest) and rest[-1].outcome == kinds.TASK_RESPONSE
    return Claim(claim, ok and theirs.runs[0].pid == killed.pid, f"{theirs.path}: {seen}")


def _once(analysed: list[Analysed], report: Report, text: str) -> Claim:
    headings = Counter(re.findall(r"^### `(.+)`$", text, flags=re.MULTILINE))
    asked = Counter(a.path for a in analysed if not a.again)
    wrong = [path for path in {*headings, *asked} if headings[path] != 1 or asked[path] != 1]
    wrong += [a.path for a in analysed if a.answers != 1]
    ok = not wrong and len(headings) == report.modules
    seen = f"{len(headings)} modules, {sum(a.answers for a in analysed)} answers, {len(analysed)} asked for"
    return Claim("every module was answered once and is reported once", ok, f"{seen}{_named(wrong)}")


def _shared(shares: Counter[int], modules: int) -> Claim:
    claim = f"at least two analyzers did {FAIR_SHARE:.0%} or more each"
    seen = ", ".join(f"pid {pid}: {n} ({n / modules:.0%})" for pid, n in shares.most_common())
    if modules < FEW:
        return Claim(f"{claim} (not asked of fewer than {FEW} modules)", True, seen)
    return Claim(claim, sum(n >= FAIR_SHARE * modules for n in shares.values()) >= 2, seen)


def _bill(analysed: list[Analysed], invoice: list[Invoiced], killed: Killed | None) -> Bill:
    keys = {key: price for a in analysed for key, price in a.paid.items()}
    pid = killed.pid if killed else 0
    by_the_kill = {line.key for line in invoice if line.pid == pid}
    repeats = [line for line in invoice if line.repeated]
    return Bill(
        made=len(invoice), recorded=len(keys), repeated=len(repeats),
        repeated_by_the_kill=sum(line.key in by_the_kill for line in repeats),
        invoiced=sum(line.price for line in invoice), in_the_log=sum(keys.values()),
    )  # fmt: skip


def _charged_once(bill: Bill, analysed: list[Analysed], invoice: list[Invoiced]) -> Claim:
    """What the log has recorded was charged once; no call was charged that the log does not know."""
    recorded = {key for a in analysed for key in a.paid}
    charged = Counter(line.key for line in invoice if not line.repeated)
    wrong = [key for key in {*recorded, *charged} if key not in recorded or charged[key] != 1]
    seen = f"{bill.recorded} recorded, {len(charged)} charged, {bill.repeated} called again under the same key, free"
    ok = not wrong and bill.invoiced == bill.in_the_log
    return Claim("every recorded call was charged exactly once", ok, seen + _named(wrong))


def _caught(report: Report) -> Claim:
    seen = "; ".join(map(str, report.corrected)) or "no objection"
    return Claim("the one planted error was sent back and corrected", len(report.corrected) == 1, seen)


def _named(wrong: list[str]) -> str:
    return f"; wrong: {', '.join(sorted(wrong)[:5])}" if wrong else ""
