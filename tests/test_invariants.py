"""What is true of every history whatsoever (semantics, section 8): each test is one of its invariants."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec
import pytest
from folding import folded, step
from histories import WORKFLOW, Appended, Claimed, Event, Story, random_tape
from model import Line, Picture, Rec, corrections
from scripted import Scripted

from refold.agents.folding import may_run
from refold.bus import codec, facts, kinds
from refold.bus.message import AgentMessage, Envelope
from refold.projections.frozen import freeze, thaw
from refold.projections.handling import Entry, Handling
from refold.projections.status import report
from refold.projections.verdict import Verdict
from refold.projections.workflow import NeedsHistory, Workflow

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
SEEDS = range(10_000, 10_000 + (600 if THOROUGH else 75))
every_history = pytest.mark.parametrize("seeds", [SEEDS[i::3] for i in range(3)], ids=["a", "b", "c"])


@lru_cache(maxsize=32)
def history(seed: int) -> list[Event]:
    return Story().play(random_tape(seed, 60))


def essence(w: Workflow, **changes: Any) -> bytes:
    """All of a fold, as a checkpoint keeps it."""
    return freeze(msgspec.structs.replace(w, **changes), idle=False)


@every_history
def test_the_closed_paths_of_a_workflow_are_never_shortened_or_edited(seeds: range) -> None:
    """I1, I10: a point of the past is the same for ever."""
    for seed in seeds:
        w, seen = Workflow(WORKFLOW), dict[tuple[int, int], list[tuple[str, tuple[int, int]]]]()
        for event in history(seed):
            step(w, event)
            for (g, v), before in seen.items():
                assert [(e.id, e.ref) for e in w.path_at(g, v)] == before
            seen[w.generation, w.version] = [(e.id, e.ref) for e in w.path_at(w.generation, w.version)]


@every_history
def test_any_two_readers_of_the_same_prefix_give_the_same_verdicts_and_the_same_state(seeds: range) -> None:
    """I2, I6: one reads on, one is stopped and goes on from its checkpoint, one folds from zero."""
    for seed in seeds:
        events = history(seed)
        reader, stopped = Workflow(WORKFLOW), Workflow(WORKFLOW)
        for i, event in enumerate(events):
            verdict = step(reader, event)
            stopped = thaw(essence(stopped))
            try:
                assert step(stopped, event) == verdict
            except NeedsHistory:
                stopped = folded(events[: i + 1])
            assert essence(stopped) == essence(reader)
            assert report(stopped) == report(reader)
            if i % 8 == 0:
                assert essence(folded(events[: i + 1])) == essence(reader)
                assert folded(events[: i + 1]).verdicts == reader.verdicts


@every_history
def test_delivering_any_record_again_anywhere_changes_nothing(seeds: range) -> None:
    """I3: not what is true, nor the verdict of any record after it."""
    for seed in seeds:
        events = history(seed)
        once, often = Workflow(WORKFLOW), Workflow(WORKFLOW)
        for i, event in enumerate(events):
            assert step(often, event) == step(once, event)
            for old in events[i % 5 : i + 1 : 5]:
                if isinstance(old, Appended):
                    assert often.admit(codec.envelope(old.raw), 10_000 + i, event_listeners(event)) == "duplicate"
            same = {"counts": {}, "last": 0, "first": 0}
            assert essence(often, **same) == essence(once, **same)


def event_listeners(event: Event) -> dict[str, tuple[str, ...]]:
    return event.listeners if isinstance(event, Appended) else {}


@every_history
def test_nothing_that_was_written_under_an_older_generation_reaches_the_path_after_it_closed(seeds: range) -> None:
    """I4."""
    late = 0
    for seed in seeds:
        w = Workflow(WORKFLOW)
        for event in history(seed):
            generation, path = w.generation, [e.id for e in w.view.path]
            verdict = step(w, event)
            if isinstance(event, Claimed):
                continue
            r = codec.envelope(event.raw)
            if r.generation is not None and r.generation < generation:
                late += 1
                assert verdict in (Verdict.STALE, Verdict.DUPLICATE, Verdict.LEDGER, Verdict.INVALID)
                assert [e.id for e in w.view.path] == path
    assert late > 3, "the histories held no late record"


@every_history
def test_a_rollback_keeps_the_path_up_to_its_point_then_answers_then_inputs(seeds: range) -> None:
    """I5."""
    met = 0
    for seed in seeds:
        w = Workflow(WORKFLOW)
        for event in history(seed):
            old, generation = list(w.view.path), w.generation
            verdict = step(w, event)
            if w.generation == generation or isinstance(event, Claimed):
                continue
            met += 1
            assert verdict is Verdict.ADMITTED
            check_new_path(w, old, Rec.read(event.raw))
    assert met > 5, "the histories held no rollback"


def check_new_path(w: Workflow, old: list[Entry], r: Rec) -> None:
    to, fixes = r.fact["to_version"], corrections(r) or []
    new = [e.id for e in w.view.path]
    inputs = [*r.fact.get("reapply", ()), *(x.id for x in fixes)]
    kept, answers = new[:to], new[to : len(new) - len(inputs)]
    assert kept == [e.id for e in old[:to]]
    assert new[len(new) - len(inputs) :] == inputs
    lost = {e.id: e for e in old[to:]}
    assert all(e.envelope is not None for e in lost.values())
    assert answers == [id for id in lost if id in answers], "not in old order"
    for id in answers:
        x = lost[id].envelope
        assert x is not None
        assert x.origin is not None
        assert x.in_reply_to in kept
    assert [w.view.at[id] for id in new] == list(range(1, len(new) + 1))


@every_history
def test_work_that_was_completed_before_a_rollbacks_point_is_not_done_again(seeds: range) -> None:
    """I5: what was over at that point is over, and its steps have the values that they had."""
    met = 0
    for seed in seeds:
        w, story = Workflow(WORKFLOW), Story()
        for event in story.play(random_tape(seed, 60)):
            generation, lines = w.generation, list(w.view.path)
            step(w, event)
            if w.generation == generation or isinstance(event, Claimed):
                continue
            to = Rec.read(event.raw).fact["to_version"]
            before = then(lines[:to])
            for key, end in before.shut.items():
                h = w.view.handling(*key)
                assert h is not None or end.work is None
                assert h is None or h.closed or key[1] in before.requests
                met += 1
            for (key, path), call in before.calls.items():
                h = w.view.handling(*key)
                assert h is not None
                if call.settled is not None and not call.given_up_by_own_closing and path in h.steps:
                    assert h.steps[path].settled <= to
    assert met > 5


def then(path: list[Entry]) -> Picture:
    """What the model sees in this path."""
    return Picture([Line(Rec.read(codec.encode(plain(e))), e.obliges) for e in path])


def plain(e: Entry) -> Any:
    assert e.envelope is not None
    return AgentMessage(**{name: getattr(e.envelope, name) for name in Envelope.__struct_fields__})


@every_history
def test_a_checkpoint_at_any_record_and_the_tail_equal_the_fold_from_zero(seeds: range) -> None:
    """I6, I11: wherever a reader crashed, however old the checkpoint it finds."""
    for seed in seeds:
        events = history(seed)
        whole = essence(folded(events))
        for at in range(seed % 7, len(events), 7):
            w = thaw(essence(folded(events[:at])))
            for i, event in enumerate(events[at:], at):
                try:
                    step(w, event)
                except NeedsHistory:
                    w = folded(events[: i + 1])
            assert essence(w, whole=False) == whole


@every_history
def test_handlings_of_an_agent_start_in_log_order_and_none_behind_a_dead_letter(seeds: range) -> None:
    """I13: for one at a time; a call made inside the workflow does not queue behind what only waits."""
    waited = blocked = 0
    for seed in seeds:
        w = Workflow(WORKFLOW)
        for event in history(seed):
            step(w, event)
            for agent in ("ann", "bob", "cid"):
                mine = sorted((h for h in w.open_handlings() if h.agent == agent), key=lambda h: h.version)
                walls = [w.view.at[m] for a, m in w.view.holding if a == agent]
                first = [h for h in mine if not walls or h.version <= min(walls)]
                allowed = [h.message for h in first[:1]]
                while len(allowed) < len(first) and all(h.waits for h in first[: len(allowed)]):
                    if not first[len(allowed)].inside or first[len(allowed)].kind != "task_request":
                        break
                    allowed.append(first[len(allowed)].message)
                found = [h.message for h in may_run(w, agent, 1, lambda h: h.waits)]
                assert found[: len(allowed)] == allowed
                extra = [w.view.handlings[m][agent] for m in found[len(allowed) :]]
                assert all(h.inside and h.kind == "task_request" for h in extra)
                waited += len(mine) > 1
                blocked += len(first) < len(mine)
    assert waited > 10
    assert blocked > 0


def intend(s: Scripted, h: Handling) -> None:
    s.settle_effects()
    s.intend(h)


Way = Callable[[Scripted, Handling], None]
WAYS: dict[str, Way] = {
    "go on": lambda s, h: s.step_on(h),
    "complete": lambda s, h: s.end(h),
    "be dead-lettered": lambda s, h: s.dead_letter(h),
    "be cancelled": lambda s, h: s.accepted(s.control(kinds.CANCELLED, facts.Cancelled())),
    "begin an effect once nothing is owed": intend,
}


@every_history
@pytest.mark.parametrize("way", WAYS)
def test_whatever_happened_an_open_handling_can(way: str, seeds: range) -> None:
    """I16: no wedge."""
    tried = 0
    for seed in seeds:
        events = history(seed)
        w = Workflow(WORKFLOW)
        for i, event in enumerate(events):
            step(w, event)
            if i % 9 != seed % 9 and i != len(events) - 1:
                continue
            entry = essence(w)
            for h in w.open_handlings():
                scripted = Scripted(thaw(entry))
                here = scripted.w.view.handlings[h.message][h.agent]
                WAYS[way](scripted, here)
                tried += 1
                assert bool(here.closed) == (way not in ("go on", "begin an effect once nothing is owed"))
    assert tried > 20


@every_history
def test_whatever_happened_a_workflow_can_come_to_its_end(seeds: range) -> None:
    """I16: its owner does what the fold asks for, and is done."""
    for seed in seeds:
        events = history(seed)
        for at in {len(events), len(events) * 2 // 3, len(events) // 3}:
            scripted = Scripted(thaw(essence(folded(events[:at]))))
            scripted.finish()
            assert report(scripted.w).status.value in ("completed", "failed", "cancelled")
