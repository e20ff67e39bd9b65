"""Why a workflow stands where it stands, in lines for people, and what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import clock

if TYPE_CHECKING:
    from ..projections.history import History
    from ..projections.status import Report, Wait
    from ..projections.timeline import Attempt


def reasons(history: History, state: Report) -> list[str]:
    """Return what it waits for and what blocks it, the last error of each handling that failed, and the way out."""
    lines = [*state.blocked, *state.unclaimed, *map(wait, state.waits)]
    return lines + _errors(history) + _ways_out(history)


def wait(w: Wait) -> str:
    """Say what a handling waits for."""
    due = f" until {clock(w.due)}" if w.due is not None else ""
    targets = {"request": f"the answer of {w.target}", "message": f"a message {w.target!r}", "timer": "the time"}
    return f"{w.agent} waits for {targets.get(w.what, 'a retry')}{due}"


def _errors(history: History) -> list[str]:
    """Return what handlers failed with last, unless they have succeeded since."""
    from ..bus import codec, kinds

    told: dict[tuple[str, str], str] = {}
    for j in history.records:
        r = j.envelope
        if r.work is None:
            continue
        key = (r.sender_id, r.work.message)
        if r.message_type in (kinds.ATTEMPT_FAILED, kinds.DEAD_LETTERED, kinds.ERROR_REPORT):
            told[key] = f"{r.sender_id} failed: {codec.shown(j.value)}"
        elif r.work.done:
            told.pop(key, None)
    return list(told.values())


def _ways_out(history: History) -> list[str]:
    """Return the commands that help."""
    from ..projections.dead_letters import of

    id, lines = history.correlation, []
    if any(h.parked for h in history.workflow.open_handlings()):
        lines.append(f"it goes on by itself with code that fits its steps; to start it anew: refold retry {id} --fresh")
    for d in of(history):
        if d.holds:
            lines.append(f"to handle it again: refold dlq redrive {id} {d.agent} {d.message} (or discard it)")
        else:
            lines.append(f"to run it again: refold retry {id}")
    return lines


def outcome(t: Attempt) -> str:
    """Say how a run ended; one without outcome may have died, been released, or still be at work."""
    return t.outcome or (f"(no outcome: {t.fate})" if t.fate else "(no outcome)")
