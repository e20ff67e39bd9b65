"""The end of a run, for people: the killed handling, the proof, the bill, and the commands to look further."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..bus import kinds
from ..projections.timeline import Moment
from .messages import Report
from .proof import Bill, Killed, Proof
from .provider import counted, dollars

SAYS = {
    kinds.TASK_REQUEST: "the module is handed out",
    kinds.ATTEMPT_STARTED: "begins again, step 1 is in the log",
    kinds.TASK_RESPONSE: "the answer",
    kinds.DELIVERED: "handed to the orchestrator",
}


class Outcome(Struct, frozen=True):
    """A whole run: what `refold demo --json` prints. `log` is the broker's URL, `out` the folder of all files,
    `latency` the mean seconds of a call of the pretend provider."""

    ok: bool
    seconds: float
    modules_per_second: float
    latency: float
    root: str
    out: str
    log: str
    workflow: str
    report: Report
    killed: Killed | None
    proof: Proof


def told(outcome: Outcome) -> RenderableType:
    """Return what people are told."""
    report, proof = outcome.report, outcome.proof
    unreadable = f" and {report.unreadable} that cannot be read" if report.unreadable else ""
    parts: list[Any] = [
        "",
        Text.assemble(
            ("Report  ", "bold"), (f"{outcome.out}/{report.file}", "cyan"),
            f"  {counted(report.modules, 'module')}{unreadable}, in {outcome.seconds:.1f} s",
        ),
        *(Text(f"        sent back and corrected: {objection}", style="magenta") for objection in report.corrected),
    ]  # fmt: skip
    if proof.moments and outcome.killed:
        parts += ["", _title(outcome.killed), _timeline(proof, outcome.killed)]
    parts += ["", _verdict(proof), _claims(proof), "", *_bill(proof.bill)]
    lines = [Text(f"  {line}", no_wrap=True, overflow="ignore") for line in commands(outcome)]
    parts += ["", Text("Look further", style="bold"), *lines]
    return Group(*parts)


def commands(outcome: Outcome) -> list[str]:
    """Return the commands that read this run's log, one after the other, in the folder in which it ran."""
    shown = [f"refold show {outcome.proof.workflow}"] if outcome.proof.workflow else []
    return [
        f"export REFOLD_BROKER={outcome.log}", *shown, f"refold show {outcome.workflow}", "refold tail -n 40",
        "refold ps", "refold doctor",
    ]  # fmt: skip


def _title(killed: Killed) -> Text:
    return Text.assemble(("The killed handling", "bold"), f" of {killed.module}, as the log has it")


def _timeline(proof: Proof, killed: Killed) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("after", justify="right", no_wrap=True)
    for column in ("by", "pid", "record"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it says")
    start = proof.moments[0].time - proof.moments[0].after
    rows = [(m.after, m.member or m.agent, m.pid, m.kind, says(m), "") for m in proof.moments]
    rows.append((killed.time - start, killed.member, killed.pid, "", "kill -9 in the middle of a call", "bold red"))
    if proof.takeover:
        after, member, pid = proof.takeover
        rows.append((after, member, pid, "owner", "takes the partition over", "yellow"))
    for after, member, pid, kind, text, style in sorted(rows, key=lambda row: row[0]):
        table.add_row(f"{after:.3f} s", member, str(pid or ""), kind, text, style=style)
    return table


def says(moment: Moment) -> str:
    """Say in a few words what a record of a module's workflow is."""
    if moment.kind == kinds.EFFECT_COMPLETED:
        text = f"step {moment.step}, {moment.about}: recorded"
    else:
        text = SAYS.get(moment.kind, moment.about)
    return text if moment.verdict == "admitted" or moment.kind == kinds.DELIVERED else f"{text} ({moment.verdict})"


def _verdict(proof: Proof) -> Text:
    verdict = ("it holds", "bold green") if proof.ok else ("IT DOES NOT HOLD", "bold red")
    return Text.assemble(("Proof, from log, invoice and report: ", "bold"), verdict)


def _claims(proof: Proof) -> Table:
    table = Table.grid(padding=(0, 1))
    for claim in proof.claims:
        mark = Text("yes", style="green") if claim.ok else Text("NO", style="bold red")
        table.add_row(mark, Text.assemble(claim.text, "\n", (claim.seen, "dim")))
    return table


def _bill(bill: Bill) -> list[RenderableType]:
    cut, others = bill.cut, bill.repeated - bill.repeated_by_the_kill
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    rows: list[tuple[object, str]] = [
        (bill.made, "calls made (lines of the invoice)"),
        (bill.recorded, "recorded in the log: never made again, whatever happens"),
        (bill.repeated_by_the_kill, "made again because the crash fell between call and record: same key, not charged"),
    ]
    if others:
        rows.append((others, "made again for other reasons: same key, not charged"))
    for count, what in rows:
        table.add_row(str(count), what)
    held = cut.before_the_call + cut.between + cut.after_the_record
    crash = (
        f"Unfinished at the kill: {held}. The crash fell before the call in {cut.before_the_call}, between call and "
        f"record in {cut.between}, after the record in {cut.after_the_record}."
    )
    head = Text.assemble(
        ("Bill: ", "bold"), f"{dollars(bill.invoiced)} charged, {dollars(bill.in_the_log)} recorded in the log"
    )
    return [head, table, Text(crash)]
