"""Who gets the slots, start by start."""

from __future__ import annotations

from refold.agents.scheduler import FAIR_EVERY, Scheduler


class Slots:
    """A scheduler whose grants are written down."""

    def __init__(self, slots: int = 1) -> None:
        self.went: list[str] = []
        self.quiet: list[int] = []
        self.s = Scheduler(slots, lambda: self.quiet.append(self.s.used))

    def start(self, key: str, priority: int = 5) -> None:
        self.s.start(key, priority, lambda: self.went.append(key))

    def resume(self, key: str) -> None:
        self.s.resume(key, lambda: self.went.append(key))


def test_every_eighth_start_takes_the_one_that_has_waited_longest_and_all_others_the_most_urgent():
    slots = Slots()
    slots.start("first")
    slots.start("patient", 1)
    for n in range(3 * FAIR_EVERY):
        slots.start(f"urgent {n}", 9)
    slots.start("last", 1)
    for _ in range(3 * FAIR_EVERY + 2):
        slots.s.release()
    assert slots.went.index("patient") == FAIR_EVERY - 1
    assert slots.went[:8] == ["first", *(f"urgent {n}" for n in range(6)), "patient"]
    assert slots.went[8:] == [*(f"urgent {n}" for n in range(6, 24)), "last"]
    assert slots.s.queued == 0


def test_a_key_is_queued_once_and_a_forgotten_one_never_goes():
    slots = Slots()
    for key in ("running", "a", "b", "a", "c"):
        slots.start(key)
    assert (slots.s.queued, slots.s.is_queued("a"), slots.s.is_queued("running")) == (3, True, False)
    slots.s.forget("a")
    slots.s.forget("never heard of")
    for _ in range(2):
        slots.s.release()
    assert slots.went == ["running", "b", "c"]
    slots.start("a")
    slots.s.release()
    assert slots.went == ["running", "b", "c", "a"]


def test_a_forgotten_key_is_passed_over_where_it_would_be_the_longest_waiting():
    slots = Slots()
    slots.start("running")
    for n in range(12):
        slots.start(str(n))
    slots.s.forget("6")
    for _ in range(11):
        slots.s.release()
    assert slots.went == ["running", *(str(n) for n in range(12) if n != 6)]


def test_what_goes_on_comes_first_and_in_its_order():
    slots = Slots()
    slots.start("running")
    slots.start("new", 9)
    slots.resume("a")
    slots.resume("b")
    for _ in range(3):
        slots.s.release()
    assert slots.went == ["running", "a", "b", "new"]


def test_nothing_is_granted_while_something_must_run_alone():
    slots = Slots(2)
    slots.start("a")
    slots.start("b")
    slots.s.hold()
    slots.start("c")
    slots.resume("d")
    slots.s.release()
    assert (slots.went, slots.quiet) == (["a", "b"], [])
    slots.s.release()
    assert (slots.went, slots.quiet) == (["a", "b"], [0])
    slots.s.take()
    slots.s.take()
    assert slots.s.used == 2
    slots.s.release()
    slots.s.release()
    assert slots.quiet == [0, 0]
    slots.s.unhold()
    assert slots.went == ["a", "b", "d", "c"]


def test_as_many_run_as_there_are_slots_also_when_one_that_goes_asks_for_more():
    slots = Slots(2)

    def go() -> None:
        slots.went.append("asks")
        slots.start("x", 9)
        slots.start("y", 9)

    slots.s.start("asks", 5, go)
    assert slots.went == ["asks", "x"]
    assert (slots.s.used, slots.s.queued) == (2, 1)
    slots.s.release()
    assert slots.went == ["asks", "x", "y"]
    assert slots.quiet == []


def test_a_grant_that_fails_leaves_the_scheduler_working():
    slots = Slots(2)

    def fails() -> None:
        raise RuntimeError("no")

    try:
        slots.s.start("fails", 5, fails)
    except RuntimeError:
        slots.s.release()
    slots.start("next")
    assert (slots.went, slots.s.used) == (["next"], 1)


def test_a_slot_is_taken_at_once_only_where_nothing_waits_for_one():
    slots = Slots(2)
    assert slots.s.take_free()
    assert slots.s.take_free()
    assert not slots.s.take_free(), "none is free"
    slots.start("waits")
    slots.s.release()
    assert slots.went == ["waits"]
    assert not slots.s.take_free()
    slots.s.hold()
    slots.start("later")
    slots.s.release()
    assert not slots.s.take_free(), "something must run alone"
    slots.s.unhold()
    assert slots.went == ["waits", "later"]
    assert (slots.s.used, slots.s.queued) == (2, 0)
