"""Faults with real processes, judged by their history: one run of each by default, more of them when thorough."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from faults.campaign import run_once
from faults.check import Placed, acknowledged, answers, caused, from_nowhere, ordered
from faults.scenarios import SCENARIOS

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
QUICK = (
    ("worker_killed", "sqlite"), ("worker_stopped", "sqlite"), ("disk_full", "sqlite"), ("broker_killed", "nats"),
    ("worker_killed", "kafka"),
)  # fmt: skip
"""Runs of the default tests; the thorough ones play each scenario on each of its brokers."""
ALL = tuple((name, broker) for name, scenario in SCENARIOS.items() for broker in scenario.brokers)


@pytest.mark.parametrize("seed", range(2) if THOROUGH else range(1))
@pytest.mark.parametrize(("scenario", "broker"), ALL if THOROUGH else QUICK)
@pytest.mark.timeout(300)
def test_no_promise_is_broken_under(scenario, broker, seed, tmp_path, request):
    """A run that did not see its fault does not count: another seed is played."""
    if broker != "sqlite":
        request.getfixturevalue(f"own_{broker}")
    for n in range(4):
        folder = tmp_path / str(n)
        folder.mkdir()
        outcome = asyncio.run(run_once(scenario, broker, seed + 100 * n, folder))
        assert outcome.findings == [], outcome
        if outcome.seen:
            return
    pytest.fail(f"{scenario} on {broker}: no run has seen its fault")


# ---- the judge is judged: each of these histories breaks a promise ---------------------------------------------------
def placed(position: int, id: str, **record: object) -> Placed:
    whole = {"id": id, "message_type": "remark", "correlation_id": "w", **record}
    return Placed(0, position, "w", whole)


def said(op: str, outcome: str, **more: object) -> dict[str, object]:
    return {"op": op, "outcome": outcome, "client": "ann", "pid": 1, "workflow": "w", **more}


def test_the_judge_misses_what_was_acknowledged_and_is_gone():
    lines = [said("append", "invoke", id="a"), said("append", "ok", id="a", partition=0, position=1)]
    assert acknowledged(lines, [placed(1, "a")]) == []
    assert acknowledged(lines, [placed(1, "b")])
    assert acknowledged(lines, [placed(2, "a")])


def test_the_judge_sees_what_comes_from_nowhere_and_two_values_in_one_place():
    lines = [said("append", "invoke", id="a")]
    assert from_nowhere(lines, [placed(1, "a")]) == []
    assert from_nowhere(lines, [placed(1, "b")])
    assert from_nowhere(lines, [placed(1, "a"), placed(1, "a")])


def test_the_judge_sees_what_is_out_of_order_and_what_precedes_its_cause():
    lines = [said("append", "ok", id=i, position=p) for i, p in (("a", 1), ("b", 2))]
    assert ordered(lines) == []
    assert ordered(lines[::-1])
    effect = {"message_type": "effect_completed", "causation_id": "a", "work": {"message": "a"}}
    assert caused([placed(1, "a"), placed(2, "b", **effect)]) == []
    assert caused([placed(1, "b", **effect), placed(2, "a")])


def test_the_judge_wants_one_answer_for_every_start_and_an_error_for_every_poison():
    start, done = said("start", "invoke"), said("result", "ok", answer="x")
    assert answers([start, done], frozenset()) == []
    assert answers([start], frozenset())
    assert answers([start, done, said("result", "ok", answer="y")], frozenset())
    assert answers([start, done], frozenset({"w"}))
    assert answers([start, said("result", "ok", error="poison")], frozenset({"w"})) == []


def test_every_finding_is_a_sentence_that_can_be_written_down():
    lines = [said("append", "ok", id="a", partition=0, position=1)]
    assert json.loads(json.dumps(acknowledged(lines, []))) == ["append of a was acknowledged and is not in the log"]
