"""Workflows that completed lately: objects or bytes, they are found, and they are the same."""

from __future__ import annotations

from hosting import opened, records, working
from hypothesis import example, given, strategies as st

from refold import Agent, AgentMessage, MessageBus
from refold.bus import codec
from refold.projections import recent as recent_module
from refold.projections.frozen import encoded
from refold.projections.recent import OBJECTS, Recent
from refold.projections.workflow import Workflow


def completed(name: str) -> Workflow:
    """A workflow of one message, on which nobody works."""
    w = Workflow(name)
    hello = AgentMessage.request("nobody", name, correlation_id=name)
    w.admit(codec.envelope(codec.encode(hello)), 1, {})
    return w


@given(
    st.lists(st.tuples(st.sampled_from(["add", "get", "pop"]), st.integers(0, 40)), max_size=120),
    st.sampled_from([0, 1, OBJECTS, 30]),
)
@example([("pop", 0)], 30)
def test_what_is_kept_is_what_was_used_last_and_equals_what_was_given(steps, limit):
    recent, states, wanted = Recent(), dict[str, bytes](), dict[str, None]()
    for what, n in [*(("add", n) for n in range(OBJECTS + 9)), *steps]:
        name = str(n)
        if what == "add":
            w = completed(name)
            states[name] = encoded(w)
            recent.add(w)
            wanted[name] = wanted.pop(name, None)
        else:
            found = recent.get(name) if what == "get" else recent.pop(name)
            assert (found is not None) == (name in wanted)
            if found is not None:
                assert encoded(found) == states[name]
            if what == "pop":
                wanted.pop(name, None)
        recent.trim(limit)
        kept = set(recent)
        assert len(kept) == min(limit, len(wanted))
        assert kept <= set(wanted)
        if what == "add" and limit:
            assert name in kept, "the newest"
        wanted = {c: None for c in wanted if c in kept}


def test_what_is_used_again_is_not_forgotten_before_what_was_not():
    recent = Recent()
    for n in range(OBJECTS + 2):
        recent.add(completed(str(n)))
        recent.trim(100)
    assert recent.get("0") is not None
    recent.trim(OBJECTS)
    assert "0" in recent
    assert "1" not in recent


def test_a_workflow_that_completed_and_became_bytes_goes_on_as_if_nothing_had_happened(go, monkeypatch):
    monkeypatch.setattr(recent_module, "OBJECTS", 0)
    agent = Agent("echo")
    agent.on_task(lambda n: n)

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            handle = await bus.start("echo", 1, id="talk")
            assert await handle.result(5) == 1
            assert [await handle.request(n) for n in range(5)] == list(range(5))
            fold, again = worker.places[0].fold, (await records(broker, "talk"))[0]
            await broker.append_raw(0, [("talk", codec.encode(again))])
            assert await handle.request(9) == 9
            w = fold.recent.get("talk") or fold.find("talk")
            assert w is not None
            assert len(w.view.path) == len(await records(broker, "talk")) - 1, "the duplicate is not on the path"

    go(main())
