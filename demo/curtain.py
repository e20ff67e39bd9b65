"""The end of a run, for people: proof, timeline, bill, and the commands to look further."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..projections.timeline import Moment
from .messages import Report
from .proof import Bill, Killed, Proof
from .screen import dollars


class Outcome(Struct, frozen=True):
    """A whole run: what `refold demo --json` prints. `log` is the broker's URL, `out` the folder of all files."""

    ok: bool
    seconds: float
    modules_per_second: float
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
    parts: list[Any] = [
        "",
        Text(
            f"Report: {outcome.out}/{report.file}, {report.modules} modules in {outcome.seconds:.1f} s; "
            f"the validator compared {report.numbers} numbers with the source, {len(report.corrected)} were wrong"
        ),
        *(Text(f"  sent back and corrected: {objection}") for objection in report.corrected),
    ]
    if proof.moments:
        parts += ["", Text("The killed handling, from the log:", style="bold"), _timeline(proof.moments)]
    parts += ["", Text("Proof, from the log:", style="bold"), _claims(proof), "", _bill(proof.bill)]
    parts += ["", Text("Look further:", style="bold"), *(Text(f"  {line}") for line in commands(outcome))]
    return Group(*parts)


def commands(outcome: Outcome) -> list[str]:
    """Return the commands that read this run's log."""
    log = f"--broker {outcome.log}"
    shown = [f"refold show {outcome.proof.workflow} {log}"] if outcome.proof.workflow else []
    return [*shown, f"refold show {outcome.workflow} {log}", f"refold ps {log}", f"refold tail {log}"]


def _timeline(moments: list[Moment]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("after", justify="right")
    for column in ("record", "by", "pid", "step", "about"):
        table.add_column(column)
    for m in moments:
        after, pid = f"{m.after:.3f} s", str(m.pid or "")
        table.add_row(after, m.kind, m.member or m.agent, pid, m.step, m.about, style=_style(m))
    return table


def _style(moment: Moment) -> str:
    return "" if moment.verdict == "admitted" else "dim"


def _claims(proof: Proof) -> Table:
    table = Table.grid(padding=(0, 1))
    for claim in proof.claims:
        mark = Text("yes", style="green") if claim.ok else Text("NO", style="bold red")
        table.add_row(mark, Text.assemble(claim.text, "\n", (claim.seen, "dim")))
    return table


def _bill(bill: Bill) -> Text:
    others = bill.repeated - bill.repeated_by_the_kill
    return Text.assemble(
        ("Bill: ", "bold"),
        f"{bill.made} calls made, {bill.recorded} recorded; {bill.repeated_by_the_kill} repeated because the crash "
        f"fell between call and record, {others} for other reasons (the same key: free); "
        f"{dollars(bill.invoiced)} charged, {dollars(bill.in_the_log)} in the log",
    )
