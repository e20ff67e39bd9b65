"""Mistakes in the rules of admission, in what a record changes, and in the fold of a partition."""

from __future__ import annotations

from mutants.copies import Edit, Mutant

JUDGE = "projections/workflow.py"
VIEW = "projections/view.py"
LEDGER = "projections/ledger.py"
PARTITION = "projections/partition.py"
RECENT = "projections/recent.py"
MODEL = ("test_rules.py", "test_fold_model.py::test_product_and_model_agree_at_every_prefix_of_long_histories")
LATE = "test_invariants.py::test_nothing_that_was_written_under_an_older_generation_reaches_the_path_after_it_closed"


def wrong(name: str, file: str, old: str, new: str, *tests: str) -> Mutant:
    return Mutant(name, (Edit(file, old, new),), tests)


IN_THE_FOLD = [
    Mutant(
        "no dedupe: a record that comes again is judged, and folded, again",
        (
            Edit(JUDGE, "    if r.id in s.verdicts:\n", "    if False:\n"),
            Edit(JUDGE, "        known = id in self.verdicts\n", "        known = False\n"),
        ),
        ("test_invariants.py::test_delivering_any_record_again_anywhere_changes_nothing",),
    ),
    wrong(
        "generation not checked: what an overtaken run writes is admitted",
        JUDGE,
        "    if g is not None and g < s.generation:\n        return STALE\n",
        "",
        LATE,
    ),
    wrong(
        "expectation not checked",
        JUDGE,
        "    if r.expected is not None and not _expectation_holds(s, r):\n        return CONFLICT\n",
        "",
        *MODEL,
    ),
    wrong(
        "late answers are accepted",
        JUDGE,
        "    if r.in_reply_to is not None and v.late(r.in_reply_to):\n        return LATE\n",
        "",
        *MODEL,
    ),
    wrong(
        "a start that was cancelled before it came starts",
        JUDGE,
        "    if r.origin is not None and r.is_request and v.is_revoked(r.origin):\n        return LATE\n",
        "",
        *MODEL,
    ),
    wrong(
        "round not checked: a run from before a redrive writes on",
        JUDGE,
        "(h.closed or w.round != h.round)",
        "h.closed",
        *MODEL,
    ),
    wrong(
        "a handling that is over may write on",
        JUDGE,
        "(h.closed or w.round != h.round)",
        "w.round != h.round",
        *MODEL,
    ),
    wrong(
        "VOID not checked: a step is recorded twice",
        JUDGE,
        "        if w.step and v.taken(r):\n            return VOID\n",
        "",
        *MODEL,
    ),
    wrong(
        "a handling that owes an answer is done without one",
        JUDGE,
        "        if w.done and duty is not None and kind != kinds.EXPIRED:\n",
        "        if False:\n",
        *MODEL,
    ),
    wrong(
        "an effect is begun while a compensation is owed",
        JUDGE,
        "    if kind == kinds.EFFECT_INTENDED and s.ledger.barrier():\n        return False\n",
        "",
        *MODEL,
    ),
    wrong(
        "a rollback loses an irreversible effect unasked",
        JUDGE,
        "    return new if fact.force or not s.ledger.loses_irreversible(s.view, new) else None",
        "    return new",
        *MODEL,
    ),
    wrong(
        "a rollback forgets the answers to steps that stay",
        JUDGE,
        "        if is_foreign_answer(x) and x.in_reply_to is not None and not new.late(x.in_reply_to):",
        "        if False:",
        "test_rules.py::test_an_answer_to_a_step_that_stays_stays_after_a_rollback",
    ),
    wrong(
        "attempts not counted: a second failure has the id of the first",
        JUDGE,
        "            self.attempts[key] = self.attempts.get(key, 0) + 1",
        "            pass",
        *MODEL,
    ),
    wrong(
        "the outcome of an effect that was overtaken does not reach the ledger",
        JUDGE,
        "        if not admitted and r.message_type in kinds.OUTCOMES and not known:\n            verdict = LEDGER\n",
        "",
        "test_raw_verbs.py::test_the_outcome_of_an_effect_that_a_rollback_overtook_is_in_the_ledger_and_not_on_the_path",
    ),
    wrong(
        "compensations in the order of completion, not in reverse",
        LEDGER,
        "key=lambda e: -e.completed_at",
        "key=lambda e: e.completed_at",
        *MODEL,
    ),
    wrong(
        "an effect that was compensated is called again under its old key",
        LEDGER,
        '            n += gone or e.status in ("compensating", "compensated", "parked")\n',
        "            n += gone\n",
        *MODEL,
    ),
    wrong(
        "owed cancels are forgotten: a child that nobody waits for runs on",
        LEDGER,
        "        if not sent.judged and not sent.cancel_delivered:",
        "        if False:",
        *MODEL,
        "test_steps.py::test_cancel_ends_a_workflow_and_its_children",
    ),
    wrong(
        "what was delivered is owed for ever",
        LEDGER,
        "            sent.delivered = (*sent.delivered, fact.n)",
        "            pass",
        *MODEL,
    ),
    wrong(
        "a message that a receive took obliges its listener too",
        VIEW,
        "            if self._receive(given):\n                return\n",
        "            self._receive(given)\n",
        *MODEL,
    ),
    wrong(
        "a broadcast obliges its sender",
        VIEW,
        "if a != r.sender_id and r.message_type in wanted",
        "if r.message_type in wanted",
        "test_steps.py::test_notifications_reach_everybody_who_listens_but_the_sender",
    ),
    wrong(
        "a redrive keeps the steps that failed",
        VIEW,
        "            self._forget(h, path)\n",
        "            pass\n",
        *MODEL,
    ),
    wrong(
        "a dead letter does not hold up what comes after it",
        VIEW,
        "                self.holding[h.key] = None\n",
        "                pass\n",
        "test_failure_and_time.py::test_a_dead_letter_holds_up_its_own_workflow_and_agent_and_nobody_else",
    ),
    wrong(
        "what is over is not given up: its children wait for ever",
        VIEW,
        "        for path in list(h.pending) if h.pending else ():",
        "        for path in ():",
        *MODEL,
    ),
    wrong(
        "a handling that has begun expires",
        JUDGE,
        "        return h is not None and not h.begun\n",
        "        return h is not None\n",
        *MODEL,
    ),
    wrong(
        "stubs forgotten: a late record of a completed workflow starts it anew",
        PARTITION,
        "        if record_key(correlation) in self.stubs:\n            return True\n",
        "",
        "test_worker.py::test_a_late_message_to_a_completed_workflow_is_judged_with_its_history",
        "test_checkpoints.py",
    ),
    wrong(
        "a completed workflow that goes on is found as it was before, too",
        RECENT,
        "        kept = self._packed.pop(correlation, None)\n",
        "        kept = self._packed.get(correlation)\n",
        "test_recent.py",
    ),
    wrong(
        "records of a completed workflow are folded again although others listen by now",
        PARTITION,
        "            self.recent.listeners_change()\n",
        "",
        "test_recent.py",
    ),
    wrong(
        "records are kept of a workflow although more are to be folded by then",
        PARTITION,
        "            self._records.clear()\n",
        "",
        "test_recent.py",
    ),
    wrong(
        "a workflow that somebody is to claim is kept as records, of which no claim is one",
        RECENT,
        "        if w.view.unclaimed:\n            records = None",
        "        if False:\n            records = None",
        "test_recent.py",
    ),
    wrong(
        "epoch not compared: an old owner's release releases the new owner",
        PARTITION,
        "if known is not None and known.epoch == fact.epoch:",
        "if known is not None:",
        "test_partition_fold.py",
    ),
    wrong(
        "an older owner record counts",
        PARTITION,
        "if known is None or fact.epoch > known.epoch:",
        "if True:",
        "test_partition_fold.py",
    ),
    wrong(
        "a record under a foreign key is folded where it lies",
        PARTITION,
        "            if self.is_stray(r) or stored.key != correlation:",
        "            if False:",
        "test_worker.py::test_a_record_in_the_wrong_partition_is_moved_where_it_belongs",
    ),
    wrong(
        "a checkpoint leaves out the workflows that are open",
        "projections/checkpoint.py",
        "        if correlation in fold.entries or correlation in fold.live:",
        "        if correlation in fold.entries:",
        "test_checkpoints.py",
    ),
    wrong(
        "a checkpoint keeps what is complete",
        "projections/checkpoint.py",
        "            fold.stale |= {key, *fold.segments.pop(correlation, ())}",
        "            pass",
        "test_checkpoints.py",
    ),
    wrong(
        "what was stored when it was open is not removed from the next checkpoint",
        PARTITION,
        "        if w.first <= self.written:\n",
        "        if False:\n",
        "test_checkpoints.py::test_what_began_and_ended_between_two_checkpoints_is_removed_from_none",
    ),
    wrong(
        "a checkpoint keeps the segments of what is complete",
        "projections/checkpoint.py",
        "            fold.stale |= {key, *fold.segments.pop(correlation, ())}",
        "            fold.stale.add(key)",
        "test_segments.py",
    ),
    wrong(
        "a checkpoint keeps segments that no entry names any more",
        "projections/checkpoint.py",
        "    fold.stale |= before - found.keys\n",
        "",
        "test_segments.py",
    ),
    wrong(
        "after a save that failed the segments are taken for written",
        "projections/checkpoint.py",
        "    stored = NONE if whole else before",
        "    stored = before",
        "test_segments.py",
    ),
    wrong(
        "a checkpoint is believed whatever the log holds",
        "projections/checkpoint.py",
        "    if found != checkpoint.anchor.decode():",
        "    if False:",
        "test_worker.py::test_a_log_that_lost_records_stops_the_partition",
    ),
    wrong(
        "projections fold what was refused",
        "projections/runner.py",
        "            elif f.verdict is Verdict.ADMITTED and f.workflow is not None:",
        "            elif f.workflow is not None:",
        "test_projections.py",
        "test_projection_runner.py",
    ),
    wrong(
        "two runners of one projection overwrite each other",
        "projections/store.py",
        'require=[("SELECT count(*) FROM slots WHERE slot = ? AND turn = ?", (n, slot.turn), 1)],',
        'require=[("SELECT count(*) FROM slots WHERE slot = ?", (n,), 1)],',
        "test_projection_runner.py::test_two_runners_of_one_projection_never_count_a_record_twice",
    ),
]
