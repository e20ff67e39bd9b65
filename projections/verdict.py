"""What admission says of a record, and what kind of record it looks at."""

from __future__ import annotations

from enum import StrEnum

from ..bus.kinds import (
    ANSWERS,
    ATTEMPT_FAILED,
    ATTEMPT_STARTED,
    COMPENSATION_FAILED,
    COMPENSATION_STARTED,
    EFFECT_FAILED,
    EFFECT_INTENDED,
    EFFECT_UNKNOWN,
    ENGINE,
    TIMER_SET,
)
from ..bus.message import Envelope


class Verdict(StrEnum):
    """Pure function of the log before the record; the first verdict of an id is final."""

    ADMITTED = "admitted"
    DUPLICATE = "duplicate"
    STALE = "stale"
    CONFLICT = "conflict"
    LATE = "late"
    VOID = "void"
    INVALID = "invalid"
    LEDGER = "ledger"
    MISPLACED = "misplaced"


ADMITTED, DUPLICATE, STALE, LATE, VOID = Verdict.ADMITTED, Verdict.DUPLICATE, Verdict.STALE, Verdict.LATE, Verdict.VOID
CONFLICT, INVALID, LEDGER, MISPLACED = Verdict.CONFLICT, Verdict.INVALID, Verdict.LEDGER, Verdict.MISPLACED
"""What is asked several times of each record: to look for an enumeration's member takes as long as a call."""

PROVISIONAL = frozenset(
    {EFFECT_INTENDED, EFFECT_UNKNOWN, TIMER_SET, ATTEMPT_STARTED, ATTEMPT_FAILED, COMPENSATION_STARTED}
)


def is_reply(r: Envelope) -> bool:
    """A record that another workflow sent in reply; it is no input of this one."""
    return r.origin is not None and r.in_reply_to is not None


def is_foreign_answer(r: Envelope) -> bool:
    """The answer of another workflow to a request of this one: no handling of this workflow wrote it."""
    return is_reply(r) and r.work is None and r.message_type in ANSWERS


def is_outside(r: Envelope) -> bool:
    """An input of the workflow: written by nobody in it, neither control nor an answer from another workflow."""
    return r.generation is None and r.work is None and r.message_type not in ENGINE and not is_reply(r)


def is_final(r: Envelope) -> bool:
    """False for what is followed by more of the same step: intents, timers, starts, failures that are tried again."""
    if r.message_type in PROVISIONAL:
        return False
    return r.message_type not in (EFFECT_FAILED, COMPENSATION_FAILED) or bool(getattr(r.fact, "final", False))
