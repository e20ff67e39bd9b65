"""Faults with real processes, judged by their history: one run of each by default, more of them when thorough."""

from __future__ import annotations

import asyncio
import json
import os
from types import SimpleNamespace

import pytest
from faults.campaign import run_once
from faults.check import Placed, acknowledged, answers, caused, dead, from_nowhere, once, ordered, planted, remade
from faults.logs import CannotPlay, left_out
from faults.scenarios import SCENARIOS

from refold.projections.verdict import Verdict

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
SERVERS = os.environ.get("REFOLD_SERVERS") == "thorough"
QUICK = (
    ("worker_killed", "sqlite"), ("worker_stopped", "sqlite"), ("disk_full", "sqlite"), ("broker_killed", "nats"),
    ("worker_killed", "kafka"),
)  # fmt: skip
"""Runs of the default tests. `make test-all` plays each scenario on SQLite, `make test-servers` on NATS and Kafka."""
ALL = tuple((name, broker) for name, scenario in SCENARIOS.items() for broker in scenario.brokers)
PLAYED = tuple(
    run for run in ALL if run in QUICK or (THOROUGH and run[1] == "sqlite") or (SERVERS and run[1] != "sqlite")
)


@pytest.mark.parametrize("seed", range(2) if THOROUGH or SERVERS else range(1))
@pytest.mark.parametrize(("scenario", "broker"), PLAYED)
@pytest.mark.timeout(300)
def test_no_promise_is_broken_under(scenario, broker, seed, tmp_path, request):
    """A run that did not see its fault does not count: another seed is played."""
    if broker != "sqlite":
        request.getfixturevalue(f"own_{broker}")
    for n in range(4):
        folder = tmp_path / str(n)
        folder.mkdir()
        try:
            outcome = asyncio.run(run_once(scenario, broker, seed + 100 * n, folder))
        except CannotPlay as error:
            left_out(error)
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


def test_the_judge_sees_a_call_that_was_recorded_and_is_made_again_by_a_later_owner(tmp_path):
    """By one that had taken the partition over before, it was not yet recorded for all it could know."""
    def owner(position: int, pid: int) -> Placed:
        fact = {"pid": pid, "group": "g", "epoch": position}
        return placed(position, f"owner {position}", message_type="owner", fact=fact)

    envelope = SimpleNamespace(message_type="effect_completed", id="done", fact=SimpleNamespace(effect="key"))
    history = SimpleNamespace(records=[SimpleNamespace(envelope=envelope, verdict=Verdict.ADMITTED)])
    (tmp_path / "ledger").write_text('{"key": "key", "pid": 7, "receipt": "a"}\n')
    assert remade([owner(1, 7), placed(2, "done")], [history], tmp_path) == []
    assert remade([owner(1, 6), placed(2, "done"), owner(3, 7)], [history], tmp_path)


def test_the_judge_sees_dead_letters_and_bytes_that_nobody_has_planted(tmp_path):
    letter = placed(1, "a", message_type="dead_lettered")
    assert dead([letter], frozenset({"w"})) == []
    assert dead([letter], frozenset())
    (tmp_path / "planted").write_text('{"digest": "x"}\n')
    assert planted({"x"}, tmp_path) == []
    assert planted({"x", "y"}, tmp_path)


def test_the_judge_sees_work_that_counts_twice():
    work = SimpleNamespace(message="m", round=0, attempt=0, step="1")
    envelope = SimpleNamespace(sender_id="a", message_type="handled", work=work)
    records = [SimpleNamespace(envelope=envelope, verdict=v) for v in (Verdict.ADMITTED, Verdict.VOID)]
    assert once([SimpleNamespace(correlation="w", records=records)]) == []
    assert once([SimpleNamespace(correlation="w", records=[*records, records[0]])])


def test_every_finding_is_a_sentence_that_can_be_written_down():
    lines = [said("append", "ok", id="a", partition=0, position=1)]
    assert json.loads(json.dumps(acknowledged(lines, []))) == ["append of a was acknowledged and is not in the log"]
