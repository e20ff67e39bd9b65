"""The product's fold against an independent model, over generated histories and at each of their prefixes."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

from histories import WORKFLOW, Appended, Claimed, Event, Move, Story, random_tape, tapes
from hypothesis import given, settings
from model import Model

from refold.bus import codec
from refold.projections.frozen import freeze, thaw
from refold.projections.verdict import Verdict
from refold.projections.workflow import NeedsHistory, Workflow

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
examples = settings(
    max_examples=4000 if THOROUGH else 150, deadline=None, derandomize=not THOROUGH, print_blob=True
)


def histories_of(tape: list[Move]) -> list[Event]:
    return Story().play(tape)


def step(w: Workflow, event: Event) -> Verdict | None:
    """Fold one event of a history."""
    if isinstance(event, Claimed):
        w.view.claim(event.agent, event.kinds)
        return None
    return w.admit(codec.envelope(event.raw), event.position, event.listeners)


def folded(events: list[Event]) -> Workflow:
    w = Workflow(WORKFLOW)
    for event in events:
        step(w, event)
    return w


def seen(w: Workflow) -> dict[str, Any]:
    """What is compared of the product's fold."""
    now = w.open_handlings()
    return {
        "generation": w.generation,
        "version": w.version,
        "path": [e.id for e in w.view.path],
        "open": sorted((h.agent, h.message, h.round) for h in now),
        "holding": sorted(w.view.holding),
        "owed": w.ledger.owed(w.view),
        "unresolved": sorted(w.ledger.unresolved(w.view)),
        "duties": sorted((d.what, d.subject, d.n) for d in w.duties()),
        "steps": sorted(
            (*h.key, path, w.attempt(*h.key, path), w.ledger.issue_number(w.view, *h.key, path), bool(st.settled))
            for h in now
            for path, st in h.steps.items()
        ),
        "complete": w.is_complete(),
    }


def expected(m: Model) -> dict[str, Any]:
    """The same, as the model sees it."""
    v, now = m.now, m.now.open()
    return {
        "generation": m.generation,
        "version": v.version,
        "path": m.path,
        "open": sorted((*key, v.rounds.get(key, 0)) for key in now),
        "holding": sorted(v.holding_its_place()),
        "owed": m.ledger.owed(),
        "unresolved": sorted(m.ledger.unresolved()),
        "duties": sorted(m.ledger.duties()),
        "steps": sorted(
            (*key, path, m.attempt(*key, v.rounds.get(key, 0), path), m.ledger.issues(*key, path), call.settled is not None)
            for (key, path), call in v.calls.items()
            if key in now
        ),
        "complete": m.complete(),
    }


def check_against_model(events: list[Event]) -> None:
    w, m = Workflow(WORKFLOW), Model()
    for event in events:
        verdict = step(w, event)
        if isinstance(event, Claimed):
            m.claim(event.agent, event.kinds)
        else:
            assert verdict == m.admit(event.raw, event.listeners), event
        assert seen(w) == expected(m), event


@given(tapes)
@examples
def test_product_and_model_agree_at_every_prefix(tape: list[Move]) -> None:
    check_against_model(histories_of(tape))
