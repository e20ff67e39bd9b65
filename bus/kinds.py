"""The kinds of records: which strings `message_type` may hold, and what the engine reserves for itself."""

from __future__ import annotations

from enum import StrEnum


class MessageType(StrEnum):
    """The four kinds that agents speak with. Any string that `ENGINE` does not hold is a user's own kind."""

    TASK_REQUEST = "task_request"
    TASK_RESPONSE = "task_response"
    STATUS_UPDATE = "status_update"
    ERROR_REPORT = "error_report"


TASK_REQUEST = "task_request"
TASK_RESPONSE = "task_response"
STATUS_UPDATE = "status_update"
ERROR_REPORT = "error_report"

EFFECT_INTENDED = "effect_intended"
EFFECT_COMPLETED = "effect_completed"
EFFECT_FAILED = "effect_failed"
EFFECT_UNKNOWN = "effect_unknown"
HANDLED = "handled"
ATTEMPT_STARTED = "attempt_started"
ATTEMPT_FAILED = "attempt_failed"
TIMER_SET = "timer_set"
TIMER_FIRED = "timer_fired"
STATE_CHANGED = "state_changed"

DELIVERED = "delivered"
COMPENSATION_STARTED = "compensation_started"
COMPENSATION_COMPLETED = "compensation_completed"
COMPENSATION_FAILED = "compensation_failed"
COMPENSATION_WAIVED = "compensation_waived"

ROLLED_BACK = "rolled_back"
FORKED = "forked"
CANCELLED = "cancelled"
EXPIRED = "expired"
DEAD_LETTERED = "dead_lettered"
REDRIVEN = "redriven"
DISCARDED = "discarded"

OWNER = "owner"
OWNER_RELEASED = "owner_released"
RETIRED = "retired"
FORWARDED = "forwarded"

MESSAGES = frozenset({TASK_REQUEST, TASK_RESPONSE, STATUS_UPDATE, ERROR_REPORT})
ANSWERS = frozenset({TASK_RESPONSE, ERROR_REPORT})
OUTCOMES = frozenset({EFFECT_COMPLETED, EFFECT_FAILED})
JOURNAL = frozenset(
    {
        EFFECT_INTENDED,
        EFFECT_COMPLETED,
        EFFECT_FAILED,
        EFFECT_UNKNOWN,
        HANDLED,
        ATTEMPT_STARTED,
        ATTEMPT_FAILED,
        TIMER_SET,
        TIMER_FIRED,
        STATE_CHANGED,
    }
)
COMPENSATION = frozenset({COMPENSATION_STARTED, COMPENSATION_COMPLETED, COMPENSATION_FAILED, COMPENSATION_WAIVED})
LEDGER = COMPENSATION | {DELIVERED}
CONTROL = frozenset({ROLLED_BACK, FORKED, CANCELLED, EXPIRED, DEAD_LETTERED, REDRIVEN, DISCARDED})
PARTITION = frozenset({OWNER, OWNER_RELEASED, RETIRED, FORWARDED})
ENGINE = JOURNAL | LEDGER | CONTROL | PARTITION
"""Kinds that only refold writes."""
