"""The product's fold against an independent model, over generated histories and at each of their prefixes."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from folding import step
from histories import WORKFLOW, Appended, Event, Move, Story, random_tape, tapes
from hypothesis import given, settings
from model import Model

from refold.bus import codec, kinds
from refold.projections.status import next_due, report
from refold.projections.verdict import Verdict
from refold.projections.view import View
from refold.projections.workflow import Workflow

pytestmark = pytest.mark.timeout(600)  # the thorough run takes minutes
THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
examples = settings(
    max_examples=4000 if THOROUGH else 150, deadline=None, derandomize=not THOROUGH, print_blob=True
)


def seen(w: Workflow) -> dict[str, Any]:
    """What is compared of the product's fold."""
    v, now = w.view, w.open_handlings()
    return {
        "generation": w.generation,
        "version": w.version,
        "path": [e.id for e in v.path],
        "inputs": v.inputs,
        "open": sorted((h.version, h.agent, h.message, h.round, h.begun, bool(h.parked)) for h in now),
        "order": [h.version for h in now],
        "agenda": {agent: [h.message for h in w.agenda(agent)] for agent in v.agenda},
        "holding": sorted(v.holding),
        "unclaimed": sorted(u.id for u in v.all_unclaimed()),
        "requests": {q.id: not v.late(q.id) for q in v.requests.values()},
        "owed": w.ledger.owed(),
        "unresolved": sorted(w.ledger.unresolved()),
        "effects": {key: e.status for key, e in w.ledger.effects.items()},
        "duties": sorted((d.what, d.subject, d.n) for d in w.duties()),
        "steps": {(*h.key, path): call(w, v, *h.key, path) for h in now for path in h.steps},
        "complete": w.is_complete(),
        "status": report(w).status.value,
    }


def dues(w: Workflow) -> list[float]:
    """When something is due, looked up one by one."""
    now = w.open_handlings()
    steps = [st.due for h in now for st in h.steps.values() if not st.settled]
    handlings = [h.due for h in now] + [h.expires for h in now if not h.begun]
    return [due for due in [*steps, *handlings] if due is not None]


def call(w: Workflow, v: View, agent: str, message: str, path: str) -> tuple[Any, ...]:
    """What is compared of one step: its next attempt and effect number, what it waits for, and its value."""
    h = v.handlings[message][agent]
    st = h.steps[path]
    assert (path in h.pending) == (not st.settled)
    value = next((e.id for e in v.path if e.ref == st.value), "") if st.settled else None
    return w.attempt(agent, message, path), w.ledger.issue_number(v, agent, message, path), st.waits, value


def expected(m: Model) -> dict[str, Any]:
    """The same, as the model sees it."""
    v, now = m.now, m.now.open()
    in_order = sorted(now, key=lambda k: m.now.at[k[1]])
    return {
        "generation": m.generation,
        "version": v.version,
        "path": m.path,
        "inputs": v.inputs,
        "open": sorted((v.at[k[1]], *k, v.rounds.get(k, 0), k in v.begun, k in v.parked) for k in now),
        "order": [v.at[k[1]] for k in in_order],
        "agenda": {a: [k[1] for k in in_order if k[0] == a] for a in {agent for agent, _ in now}},
        "holding": sorted(v.holding_its_place()),
        "unclaimed": sorted(v.unclaimed()),
        "requests": {q: not v.late(q) for q in v.requests},
        "owed": m.ledger.owed(),
        "unresolved": sorted(m.ledger.unresolved()),
        "effects": {key: e.status for key, e in m.ledger.effects.items()},
        "duties": sorted(m.ledger.duties()),
        "steps": {
            (*key, path): (
                m.attempt(*key, v.rounds.get(key, 0), path), m.ledger.issues(*key, path), c.waits,
                c.settled.id if c.settled else None,
            )
            for (key, path), c in v.calls.items()
            if key in now
        },
        "complete": m.complete(),
        "status": m.status(),
    }  # fmt: skip


def check_against_model(tape: list[Move]) -> Workflow:
    """Play a history; compare after each of its events. Returns the product's fold."""
    w = Workflow(WORKFLOW)

    def compare(event: Event, verdict: str | None) -> None:
        assert step(w, event) == verdict, event
        assert seen(w) == expected(story.model), event
        assert next_due(w) == min(dues(w), default=None), event

    story = Story(compare)
    story.play(tape)
    return w


@given(tapes)
@examples
def test_product_and_model_agree_at_every_prefix(tape: list[Move]) -> None:
    check_against_model(tape)


@pytest.mark.parametrize("block", range(4))
def test_product_and_model_agree_at_every_prefix_of_long_histories(block: int) -> None:
    for seed in range(block, 2000 if THOROUGH else 120, 4):
        check_against_model(random_tape(seed))


def possible(kind: str) -> set[Verdict]:
    """The verdicts that the rules leave for a kind."""
    v = Verdict
    if kind in kinds.OUTCOMES:
        return {v.ADMITTED, v.DUPLICATE, v.LEDGER}
    if kind in kinds.LEDGER:
        return {v.LEDGER, v.DUPLICATE, v.INVALID}
    if kind in kinds.PARTITION:
        return {v.INVALID}
    return {v.ADMITTED, v.DUPLICATE, v.STALE, v.CONFLICT, v.LATE, v.VOID, v.INVALID}


def test_the_histories_meet_every_verdict_with_every_kind_that_can_have_it() -> None:
    met: Counter[tuple[str, str]] = Counter()

    def compare(event: Event, verdict: str | None) -> None:
        assert step(w, event) == verdict, event
        if isinstance(event, Appended):
            met[codec.envelope(event.raw).message_type, str(verdict)] += 1

    for seed in range(2500 if THOROUGH else 400):
        w = Workflow(WORKFLOW)
        Story(compare).play(random_tape(seed))
    _show(met)
    written = {kind for kind, _ in met}
    assert written >= {*kinds.MESSAGES, *kinds.ENGINE} - (kinds.PARTITION - {"retired"})
    never = {(k, str(v)) for k in written for v in possible(k) if not met[k, v]}
    assert never == set()
    impossible = {(k, v) for (k, v) in met if k not in kinds.PARTITION and v not in possible(k)}
    assert impossible == set()
    for kind in kinds.CONTROL - {"forked"}:
        refused = sum(n for (k, v), n in met.items() if k == kind and v not in ("admitted", "duplicate"))
        assert met[kind, "admitted"] >= 20, kind
        assert refused >= 10, kind


def _show(met: Counter[tuple[str, str]]) -> None:
    """Print the mix: run with -s to see it."""
    verdicts = [v for v in Verdict if v is not Verdict.MISPLACED]
    print("\n" + "".join(f"{v:>10}" for v in ["", "", *verdicts]))
    for kind in sorted({k for k, _ in met}):
        print(f"{kind:>20}" + "".join(f"{met[kind, v]:>10}" for v in verdicts))
