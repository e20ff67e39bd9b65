"""Judges anybody's broker: every promise of the port (`refold.bus.broker`) as a case, to be run by any test runner.

How to judge your own broker, with pytest or without:

    from refold.brokers.conformance import Subject, cases_of, left_out

    def new_log():                                  # a log of its own, which is not there yet ...
        name = uuid.uuid4().hex
        return lambda: MyBroker(f"my://localhost/{name}")       # ... and what each process that works on it opens

    MINE = Subject("mine", new_log, lease=1.0)

    @pytest.mark.parametrize("case", cases_of(MINE), ids=str)
    def test_my_broker(case):
        asyncio.run(case.run(MINE))

    def test_what_is_not_judged():
        assert left_out(MINE) == {}

A case is a sentence (`str(case)`), the methods whose promise it is (`case.proves`), and what it needs: a capability
that the broker claims (`case.claims`) or does not claim (`case.disclaims`: it is proved not to happen), and hooks of
the subject (`case.hooks`: `kill` and `stall`, see `Subject`). `cases_of` returns those that apply and can be run,
`left_out` those that apply and cannot, with the hook that is missing: nobody has proved them.
Two cases start another Python that opens the broker by its URL, so register its scheme (entry points
`refold.brokers`), or name a function that makes it as `Subject(opener="module:function")`.

A broken promise raises `PromiseBroken`, an AssertionError. Each case has a log of its own; nothing is left running.
Not judged, since nobody outlives it here: what happens at `stall_limit`, when the power fails, when the disk is full.
"""

from __future__ import annotations

from . import appending, checkpoints, delivery, hints, log, ownership, presence, processes, reading, refusing
from .case import Case, NotApplicable
from .promise import PromiseBroken
from .subject import Subject

CASES: tuple[Case, ...] = tuple(
    case
    for part in (log, appending, refusing, reading, ownership, delivery, checkpoints, presence, hints, processes)
    for case in part.CASES
)
"""All of them, whether they apply or not."""


def cases_of(subject: Subject) -> list[Case]:
    """Return the cases that apply to a broker that claims what this one claims, and that can be run on it."""
    return [case for case in CASES if case.why_not(subject) is None]


def left_out(subject: Subject) -> dict[str, str]:
    """Return the cases that apply but cannot be run, for want of a hook, and what is missing."""
    found = ((str(case), case.why_not(subject, claimed=True)) for case in CASES)
    return {case: why for case, why in found if why is not None}


__all__ = ["CASES", "Case", "NotApplicable", "PromiseBroken", "Subject", "cases_of", "left_out"]
