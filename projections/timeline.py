"""What happened in a workflow, for people: moment by moment, and attempt by attempt with the process that made it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from ..bus import codec, facts, kinds
from ..bus.message import Envelope
from .history import History

ENGINE_RUN = "#0"
"""How the writer of a record that no run of a handler wrote (a timer, an expiry) ends."""


class Moment(Struct, frozen=True):
    """One record. `pid` and `member` are of the worker that wrote it (0, "" from outside); `after` is in seconds since
    the workflow's first record."""

    position: int
    time: float
    after: float
    kind: str
    agent: str
    to: str
    verdict: str
    step: str
    about: str
    payload: str
    writer: str
    pid: int
    member: str


class Attempt(Struct, frozen=True):
    """One run of a handling: which process, what it recorded, how it ended ("": it left no outcome).

    `fate` says why there is no outcome. died: its process lost the partition without giving it up, and another run
    followed; released: its process gave the partition up; resumed: the same process went on in another run, after a
    wait; "" where it may still go on. A run that recorded nothing at all is not here.
    """

    agent: str
    message: str
    number: int
    writer: str
    pid: int
    member: str
    records: int
    steps: tuple[str, ...]
    outcome: str
    fate: str = ""


def timeline(history: History) -> list[Moment]:
    """Return the workflow's records in log order."""
    start = history.records[0].time
    out = []
    for j in history.records:
        r = j.envelope
        pid, member = _process(history, r)
        out.append(
            Moment(
                j.position, j.time, j.time - start, r.message_type, r.sender_id, r.receiver_id, str(j.verdict),
                r.work.step if r.work else "", _about(r), _short(codec.shown(j.value)),
                r.work.writer if r.work else "", pid, member,
            )
        )  # fmt: skip
    return out


def attempts(history: History) -> list[Attempt]:
    """Return the runs of every handling that recorded something, in the order of their first records."""
    runs: dict[tuple[str, str], dict[str, list[Envelope]]] = {}
    for j in history.records:
        r = j.envelope
        if r.work is not None and r.work.writer and not r.work.writer.endswith(ENGINE_RUN):
            runs.setdefault((r.sender_id, r.work.message), {}).setdefault(r.work.writer, []).append(r)
    out = []
    for (agent, message), by_writer in runs.items():
        writers = list(by_writer)
        for number, (writer, records) in enumerate(by_writer.items(), 1):
            pid, member = _process(history, records[0])
            steps = tuple(dict.fromkeys(r.work.step for r in records if r.work and r.work.step))
            ends = [r for r in records if r.work and (r.work.done or r.message_type == kinds.ATTEMPT_FAILED)]
            outcome = ends[-1].message_type if ends else ""
            fate = _fate(history, writer, writers[number:]) if not outcome else ""
            out.append(Attempt(agent, message, number, writer, pid, member, len(records), steps, outcome, fate))
    return out


def _fate(history: History, writer: str, later: list[str]) -> str:
    """Say what became of a run without outcome, by who owned the partition afterwards."""
    id = writer.partition("#")[0]
    owner = history.owners.get(id)
    if not later or owner is None or not isinstance(owner.fact, facts.Owner):
        return ""
    if later[0].partition("#")[0] == id:
        return "resumed"
    claim = owner.fact
    released = any(
        isinstance(r.fact, facts.OwnerReleased) and (r.fact.group, r.fact.epoch) == (claim.group, claim.epoch)
        for r in history.owners.values()
    )
    return "released" if released else "died"


def _process(history: History, r: Envelope) -> tuple[int, str]:
    owner = history.owners.get(r.work.writer.partition("#")[0]) if r.work else None
    if owner is None or not isinstance(owner.fact, facts.Owner):
        return 0, ""
    return owner.fact.pid, owner.fact.member


def _about(r: Envelope) -> str:
    fact = r.fact
    parts = [getattr(fact, name, "") for name in ("name", "error", "parked", "reason")]
    return " ".join(str(p) for p in parts if p)


def _short(value: Any, width: int = 80) -> str:
    text = value if isinstance(value, str) else codec.canonical(value).decode() if value is not None else ""
    return text if len(text) <= width else text[: width - 1] + "…"
