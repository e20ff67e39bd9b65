"""The product's fold over a generated history."""

from __future__ import annotations

from collections.abc import Iterable

from histories import WORKFLOW, Claimed, Event

from refold.bus import codec
from refold.projections.verdict import Verdict
from refold.projections.workflow import Workflow


def step(w: Workflow, event: Event) -> Verdict | None:
    """Fold one event; None where it is no record of the workflow."""
    if isinstance(event, Claimed):
        w.view.claim(event.agent, event.kinds)
        return None
    return w.admit(codec.envelope(event.raw), event.position, event.listeners)


def folded(events: Iterable[Event]) -> Workflow:
    """Return the fold of a history, from its first event."""
    w = Workflow(WORKFLOW)
    for event in events:
        step(w, event)
    return w
