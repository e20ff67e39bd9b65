"""Workflows that completed lately: objects, records or bytes, they are found, and they are the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

import pytest
from hosting import kinds_of, opened, records, working
from hypothesis import example, given, strategies as st

from refold import Agent, AgentMessage, MessageBus
from refold.bus import codec, facts, kinds
from refold.bus.broker import Stored
from refold.bus.message import Work
from refold.projections import partition as partition_module, recent as recent_module
from refold.projections.frozen import encoded
from refold.projections.partition import PartitionFold
from refold.projections.recent import OBJECTS, Recent
from refold.projections.workflow import Workflow


def folded(name: str, records: Sequence[Stored]) -> Workflow:
    w = Workflow(name)
    for s in records:
        w.admit(codec.envelope(s.value), s.position, {})
    return w


def hello(name: str) -> list[Stored]:
    """The records of a workflow of one message, on which nobody works."""
    return [Stored(1, name, codec.encode(AgentMessage.request("nobody", name, correlation_id=name)), 0.0)]


def completed(name: str) -> Workflow:
    return folded(name, hello(name))


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "add records", "get", "pop", "listeners change"]), st.integers(0, 40)),
        max_size=120,
    ),
    st.sampled_from([0, 1, OBJECTS, 30]),
)
@example([("pop", 0)], 30)
@example([*(("add records", n) for n in range(40)), ("get", 20), ("listeners change", 0)], 30)
def test_what_is_kept_is_what_was_used_last_and_equals_what_was_given(steps, limit):
    recent, states, wanted = Recent(folded), dict[str, bytes](), dict[str, None]()
    for what, n in [*(("add", n) for n in range(OBJECTS + 9)), *steps]:
        name = str(n)
        if what == "listeners change":
            recent.listeners_change()
        elif what.startswith("add"):
            records = hello(name)
            w = folded(name, records)
            states[name] = encoded(w)
            recent.add(w, records if what == "add records" else None)
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
        if what.startswith("add") and limit:
            assert name in kept, "the newest"
        wanted = {c: None for c in wanted if c in kept}


def test_what_is_used_again_is_not_forgotten_before_what_was_not():
    recent = Recent(folded)
    for n in range(OBJECTS + 2):
        recent.add(completed(str(n)))
        recent.trim(100)
    assert recent.get("0") is not None
    recent.trim(OBJECTS)
    assert "0" in recent
    assert "1" not in recent


@pytest.mark.parametrize("short", [0, 100])
def test_a_workflow_that_completed_and_was_packed_goes_on_as_if_nothing_had_happened(go, monkeypatch, short):
    monkeypatch.setattr(recent_module, "OBJECTS", 0)
    monkeypatch.setattr(partition_module, "SHORT", short)
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


def test_what_waits_for_an_agent_that_nobody_hosts_is_kept_as_a_state_for_the_claim_is_no_record_of_the_workflow():
    w = completed("w")
    w.view.unclaimed["later"] = []
    recent = Recent(folded)
    recent.add(w, hello("w"))
    for n in range(OBJECTS):
        recent.add(completed(str(n)))
    recent.trim(100)
    found = recent.get("w")
    assert found is not None
    assert found.view.unclaimed == {"later": []}


@pytest.mark.parametrize("ends", ["before the owner comes", "after it has come"])
def test_who_listens_only_since_then_is_obliged_by_nothing_that_was_complete(monkeypatch, ends):
    """The same records, folded again for a late message when it listens, would oblige it."""
    monkeypatch.setattr(recent_module, "OBJECTS", 0)
    fold, written = PartitionFold(0, 1), list[Stored]()

    def put(kind: str, key: str | None, **fields: Any) -> None:
        fields = {"id": f"r{len(written)}", "sender_id": "ann", "receiver_id": "*"} | fields
        m = AgentMessage(message_type=kind, correlation_id=key or "", timestamp=1.0, **fields)
        written.append(Stored(len(written) + 1, key, codec.encode(m), 1.0))
        r = fold.open_envelope(written[-1])
        assert r is not None
        for correlation in fold.missing(r):
            fold.restore(correlation, [s for s in written[:-1] if s.key in (None, correlation)])
        w = fold.fold(written[-1], r).workflow
        if w is not None:
            fold.settle(w)

    def owner(epoch: int, agents: dict[str, tuple[str, ...]]) -> None:
        put(kinds.OWNER, None, fact=facts.Owner(group=f"g{epoch}", epoch=epoch, agents=agents))

    owner(1, {"worker": ()})
    put("task_request", "w", id="ask", receiver_id="worker", asked=True)
    put("remark", "w")
    if ends == "after it has come":
        owner(2, {"listener": ("remark",)})
    put("task_response", "w", sender_id="worker", receiver_id="ann", in_reply_to="ask", generation=0,
        work=Work(message="ask", done=True))  # fmt: skip
    assert "w" not in fold.live
    if ends == "before the owner comes":
        assert "w" in fold.recent
        owner(2, {"listener": ("remark",)})
    put("status_update", "w", receiver_id="ann")
    w = fold.find("w") or fold.recent.get("w")
    assert w is not None
    assert len(w.view.path) == 4
    assert not w.view.open


@pytest.mark.parametrize("short", [0, 100])
def test_a_call_that_outlives_its_cancelled_workflow_is_recorded_although_others_own_and_many_complete(
    go, until, monkeypatch, short
):
    monkeypatch.setattr(partition_module, "SHORT", short)
    gate, begun = asyncio.Event(), asyncio.Event()
    pay, echo = Agent("pay"), Agent("echo")
    echo.on_task(lambda n: n)

    async def charge() -> str:
        begun.set()
        while not gate.is_set():  # it finishes what it has begun
            with contextlib.suppress(asyncio.CancelledError):
                await gate.wait()
        return "charged"

    @pay.on_task
    async def task(ctx, n: int) -> str:
        return await ctx.effect("charge", charge)

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, pay, echo) as worker:
            try:
                assert await bus.request("echo", 0) == 0
                money = await bus.start("pay", 1, id="money")
                await begun.wait()
                await money.cancel("stop")
                fold = worker.places[0].fold
                await until(lambda: "money" not in fold.live)
                for n in range(OBJECTS + 4):
                    assert await bus.request("echo", n) == n
                other = facts.Owner(group="other", epoch=1, agents={"third": ("task_request",)})
                owner = AgentMessage(
                    sender_id="x", receiver_id="*", message_type=kinds.OWNER, correlation_id="", fact=other
                )
                await broker.append_raw(0, [(None, codec.encode(owner))])
                await until(lambda: "other" in fold.groups)
            finally:
                gate.set()
            await until(lambda: found(broker))

    async def found(broker) -> bool:
        return kinds.EFFECT_COMPLETED in await kinds_of(broker, "money")

    go(main())
