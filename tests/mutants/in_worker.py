"""Mistakes in what a worker does: calls and their outcomes, times, takeovers, deliveries, who runs when."""

from __future__ import annotations

from mutants.copies import Edit, Mutant
from mutants.in_fold import wrong

RUN = "agents/run.py"
OWNERSHIP = "agents/ownership.py"
FOLDING = "agents/folding.py"
CRASHES = "test_crash_points.py::test_wherever_the_process_dies_the_next_one_converges_to_the_crash_free_state"
SIMULATION = "test_simulation.py::test_whatever_happens_every_workflow_ends_as_if_nothing_had_happened"
POISON = "test_simulation.py::test_a_message_that_kills_its_process_takes_no_innocent_with_it_in_any_partition"
ENDED = "test_ended_runs.py::test_a_run_that_was_ended_appends_nothing_more_and_frees_its_slot"

IN_THE_WORKER = [
    wrong(
        "commit before effect: the outcome is recorded before the call is made",
        RUN,
        "            value = codec.to_json(await invoke(call, key, self.in_thread))\n",
        "            early = facts.EffectCompleted(effect=key, name=call.name, digest=call.digest)\n"
        "            await self._append([self.record(kinds.EFFECT_COMPLETED, path, None, fact=early)], outcome=True)\n"
        "            value = codec.to_json(await invoke(call, key, self.in_thread))\n",
        CRASHES,
    ),
    Mutant(
        "a call's value is used before the log has it",
        (
            Edit(
                RUN,
                "            await self._effect(branch, path, call)\n",
                "            await self._effect(branch, path, call)\n"
                "            if path in self.mine:\n"
                "                return value_of(call, kinds.EFFECT_COMPLETED, self.mine.pop(path))\n",
            ),
            Edit(
                RUN,
                "        while (st := self.known(path)) is None or not st.settled:\n",
                "        while path not in self.mine and ((st := self.known(path)) is None or not st.settled):\n",
            ),
            Edit(
                RUN,
                "        self.settling += 1\n        try:\n",
                "        if outcome is not None and isinstance(outcome.fact, facts.EffectCompleted):\n"
                "            self.mine[path] = codec.encode(outcome)\n"
                "            self._waiters.pop(path, None)\n"
                "            self.active += 1\n"
                "            return\n"
                "        self.settling += 1\n        try:\n",
            ),
            Edit(
                RUN,
                "        self._failures: dict[str, str] = {}\n",
                "        self._failures: dict[str, str] = {}\n        self.mine: dict[str, bytes] = {}\n",
            ),
        ),
        (
            "test_reruns.py::test_of_two_outcomes_of_one_call_the_first_in_the_log_is_its_value_also_for_who_made_"
            "the_second",
        ),
    ),
    wrong(
        "idempotency key without number",
        RUN,
        "            n = w.ledger.issue_number(w.view, self.agent, self.message_id, path)\n",
        "            n = 0\n",
        "test_raw_verbs.py",
        "test_steps.py",
        "test_reruns.py",
    ),
    wrong(
        "a recorded call is made again",
        RUN,
        "        if st is not None and st.settled:\n            await self._outcome(path, st.settled)\n",
        "        if st is not None and st.settled:\n            if isinstance(call, EffectCall):\n"
        "                await invoke(call, st.effect, self.in_thread)\n"
        "            await self._outcome(path, st.settled)\n",
        "test_steps.py::test_an_effect_is_recorded_and_a_rerun_takes_its_value_from_the_log",
    ),
    wrong(
        "a rerun takes a recorded value although it is not its turn",
        RUN,
        "        if st is not None and st.settled:\n            await self._outcome(path, st.settled)\n",
        "        if st is not None and st.settled and not isinstance(call, EffectCall):\n"
        "            await self._outcome(path, st.settled)\n",
        "test_reruns.py::test_a_rerun_takes_outcomes_in_the_order_of_the_log_not_of_its_branches",
    ),
    wrong(
        "a call is made although the lease may be gone",
        RUN,
        "        await self.host.may_call()\n",
        "",
        "test_found_in_simulation.py::test_a_call_whose_record_comes_while_it_waits_for_the_lease_is_not_made_again",
    ),
    wrong(
        "divergence not noticed: a step is taken for another one",
        RUN,
        "        if st is not None and not call.same(st.kind, st.name, st.digest, st.child):",
        "        if False:",
        "test_hostile_handlers.py::test_code_that_does_not_fit_is_parked_and_goes_on_when_it_fits_or_is_told_to_start_anew",
    ),
    wrong(
        "divergence not noticed at the end: recorded steps that nobody asks for",
        RUN,
        "            if path not in self.asked:",
        "            if False:",
        "test_hostile_handlers.py::test_code_that_does_not_fit_is_parked_and_goes_on_when_it_fits_or_is_told_to_start_anew",
    ),
    wrong(
        "outcomes reach the branches of a gather as they arrive",
        RUN,
        "        while self._ready and not (self.active or self.over or self.fault is not None):",
        "        while self._ready and not (self.over or self.fault is not None):",
        "test_reruns.py::test_a_branch_that_waits_for_something_else_keeps_its_turn",
    ),
    wrong(
        "a rerun takes recorded outcomes in the order of its branches",
        RUN,
        "            await self._outcome(path, st.settled)\n",
        "            await self._outcome(path, 1)\n",
        "test_reruns.py::test_a_rerun_takes_outcomes_in_the_order_of_the_log_not_of_its_branches",
    ),
    Mutant(
        "a run that was ended takes steps and appends",
        (
            Edit(RUN, "        if not records or (self.over and not outcome):", "        if not records:"),
            Edit(
                RUN,
                "        if self.over:\n            raise asyncio.CancelledError(self.over)\n"
                "        if self.fault is not None:\n            raise self.fault\n        try:\n",
                "        if self.fault is not None:\n            raise self.fault\n        try:\n",
            ),
        ),
        (ENDED,),
    ),
    wrong(
        "the fence is not sent",
        "agents/execution.py",
        "            fence = self.fence()\n",
        "            pass\n",
        "test_ownership.py::test_all_that_a_worker_appends_but_the_outcome_of_a_call_claims_its_right",
    ),
    wrong(
        "of several records the rest is given up when one is there already",
        "agents/execution.py",
        "        if isinstance(result, Duplicate) and len(outgoing) > 1:",
        "        if False:",
        "test_worker.py::test_a_record_that_is_there_already_takes_none_of_those_beside_it_with_it",
    ),
    wrong(
        "retries of a handler without limit",
        "agents/outcome.py",
        "    if tries >= policy.attempts:",
        "    if False:",
        "test_steps.py::test_a_handler_that_always_fails_is_dead_lettered_and_its_asker_told",
    ),
    wrong(
        "retries of a call without limit",
        RUN,
        "            final = tries >= call.retry.attempts or isinstance(error, TooLarge)",
        "            final = isinstance(error, TooLarge)",
        "test_steps.py::test_an_effect_is_retried_by_its_own_policy_and_then_fails_for_good",
    ),
    wrong(
        "a divergence is recorded each time that the code is loaded",
        "agents/outcome.py",
        "    if h is not None and h.parked:\n        return []\n",
        "",
        "test_hostile_handlers.py::test_a_divergence_is_recorded_once_however_often_the_code_is_loaded",
    ),
    wrong(
        "timers never fire",
        "agents/timers.py",
        "            if st.waits:\n",
        "            if False:\n",
        "test_steps.py::test_a_receive_that_nobody_answers_expires",
        "test_waits.py",
    ),
    wrong(
        "timers fire before their time",
        "agents/timers.py",
        "            if st.due is None or st.due > now:",
        "            if st.due is None:",
        "test_waits.py::test_when_one_wait_of_a_workflow_is_over_the_others_wait_on",
    ),
    wrong(
        "a timer fires again and again",
        "agents/place.py",
        "            if acted is not None and due <= acted:\n"
        "                due = acted + AGAIN  # its retry runs, or its record is on the way\n",
        "",
        "test_waits.py",
        "test_found_in_simulation.py",
        "test_failure_and_time.py",
    ),
    wrong(
        "the highest position seen is committed, not the one that was folded",
        OWNERSHIP,
        "    position, anchor = fold.position, fold.last_id.encode()\n",
        "    position, anchor = fold.position, fold.last_id.encode()\n"
        "    page = await worker.broker.read(place.partition, position + 1)\n"
        "    for seen in page.records[:10]:\n"
        "        position, anchor = seen.position, codec.envelope(seen.value).id.encode()\n",
        "test_ownership.py::test_whatever_was_saved_last_with_what_follows_it_is_the_fold_of_the_log",
    ),
    wrong(
        "checkpoint before state: the position is saved before the entries",
        OWNERSHIP,
        "        saved = await sub.save_checkpoint(place.partition, place.epoch, position, anchor, changed, gone)\n",
        "        await sub.save_checkpoint(place.partition, place.epoch, position, anchor, {}, [])\n"
        "        saved = await sub.save_checkpoint(place.partition, place.epoch, position, anchor, changed, gone)\n",
        "test_ownership.py::test_whatever_was_saved_last_with_what_follows_it_is_the_fold_of_the_log",
    ),
    wrong(
        "after a save that failed only what changed since is saved",
        OWNERSHIP,
        "        place.checkpoint_failed = True  # whether it was written is not known: all of it, next time\n"
        "        fold.changed |= before\n"
        "        fold.stale.update(gone)\n"
        "        raise\n",
        "        raise\n",
        "test_found_in_simulation.py::test_a_checkpoint_that_could_not_be_saved_leaves_nothing_of_what_is_complete",
        SIMULATION,
    ),
    wrong(
        "a takeover reads on behind its own record: what came before it is skipped",
        OWNERSHIP,
        "    sub.seek(partition, fold.position + 1)\n",
        "    fold.position = max(fold.position, place.owner_position - 1)\n"
        "    sub.seek(partition, fold.position + 1)\n",
        "test_worker.py",
        "test_steps.py",
    ),
    wrong(
        "the owner record is appended without a fence",
        OWNERSHIP,
        "    (result,) = await worker.broker.append([item], fence)\n",
        "    (result,) = await worker.broker.append([item])\n",
        "test_ownership.py::test_a_partition_that_was_lost_during_its_takeover_gets_no_owner_record",
    ),
    wrong(
        "who stops does not say so: its successor takes it for dead",
        OWNERSHIP,
        "    await worker.broker.append([item])\n",
        "",
        "test_ownership.py::test_who_comes_after_a_worker_that_stopped_hears_of_no_death_and_after_one_that_died_of_one",
    ),
    wrong(
        "handlers start before all that was acknowledged is folded",
        FOLDING,
        "        if fold.position >= place.owner_position >= 0:",
        "        if True:",
        "test_ownership.py::test_no_handler_starts_before_all_that_was_acknowledged_is_folded",
    ),
    wrong(
        "a partition that is lost is worked on",
        "agents/worker.py",
        '        self.end_place(place, "the partition goes to another worker")\n',
        "",
        "test_worker.py",
        "test_ended_runs.py",
    ),
    wrong(
        "answers and requests to other workflows are delivered without a mark",
        "agents/parcels.py",
        "        for items in (copies, marks):",
        "        for items in (copies,):",
        "test_steps.py::test_spawned_children_run_in_workflows_of_their_own",
        "test_bad_input.py",
        "test_found_in_simulation.py",
        "test_worker.py",
    ),
    wrong(
        "the mark is appended before what it says was delivered",
        "agents/parcels.py",
        "        for items in (copies, marks):",
        "        for items in (marks, copies):",
        "test_found_in_simulation.py::test_a_request_that_could_not_be_delivered_is_delivered_later",
    ),
    wrong(
        "a stray is marked as moved before it is",
        "agents/parcels.py",
        "[marked] if known else [moved, marked]",
        "[marked] if known else [marked, moved]",
        "test_found_in_simulation.py::test_a_stray_that_could_not_be_moved_is_moved_later",
    ),
    wrong(
        "a redrive removes the dead letter before it appends",
        "agents/control.py",
        "    round = h.round + 1\n",
        "    round = h.round + 1\n"
        "    gone = facts.Discarded(agent=h.agent, message=h.message, actor=actor, reason=reason)\n"
        "    await _say(bus, follower.correlation, kinds.DISCARDED, gone)\n",
        "test_failure_and_time.py::test_a_dead_letter_holds_up_its_own_workflow_and_agent_and_nobody_else",
    ),
    wrong(
        "starvation bound off",
        "agents/scheduler.py",
        "        if self._starts % FAIR_EVERY == 0:",
        "        if False:",
        "test_failure_and_time.py::test_a_message_starts_at_the_latest_after_so_many_starts_for_each_that_was_queued_before_it",
    ),
    wrong(
        "more handlers at once than there are slots",
        "agents/scheduler.py",
        "self.used < self.slots and ",
        "",
        "test_failure_and_time.py::test_at_most_so_many_handlers_run_at_once_and_the_log_is_read_on_meanwhile",
    ),
    wrong(
        "suspects start together",
        "agents/cohorts.py",
        "[] if others_running else list(self.waiting)[:1]",
        "[] if others_running else list(self.waiting)",
        "test_cohorts.py",
        POISON,
    ),
    wrong(
        "suspects start beside others",
        "agents/cohorts.py",
        "[] if others_running else list(self.waiting)[:1]",
        "list(self.waiting)[:1]",
        "test_cohorts.py",
        POISON,
    ),
    wrong(
        "a message that kills its process is never given up",
        "agents/crew.py",
        "        if h.lone_starts >= LONE_DEATHS:",
        "        if False:",
        POISON,
        "test_processes.py::test_a_message_that_kills_its_process_is_dead_lettered_and_takes_no_innocent_with_it",
    ),
    wrong(
        "a death is not noticed: all that ran starts again at once",
        FOLDING,
        "    died = place.after_death or (known is not None and known.after_death)\n",
        "    died = False\n",
        POISON,
        "test_processes.py::test_a_message_that_kills_its_process_is_dead_lettered_and_takes_no_innocent_with_it",
    ),
    wrong(
        "an agent handles messages of one workflow out of order",
        FOLDING,
        "    first = list(islice(w.agenda(agent), limit))\n",
        "    first = list(w.agenda(agent))[::-1][:limit]\n",
        "test_failure_and_time.py::test_an_agent_handles_so_many_messages_of_one_workflow_at_once_in_log_order",
        "test_cohorts.py",
    ),
    wrong(
        "a run that waits for a slot is parked",
        "agents/crew.py",
        "if run.wants_slot or run.over or run.fault is not None:",
        "if run.over or run.fault is not None:",
        "test_ownership.py::test_a_run_that_was_about_to_go_on_when_its_worker_stopped_goes_on",
    ),
    wrong(
        "what completes while others are cooled is put away as if it were open",
        "agents/worker.py",
        "if cold is None or other.ended or other.settle(cold):",
        "if cold is None or other.ended:",
        "test_many_open.py::test_what_completes_while_others_are_cooled_leaves_a_stub_and_no_entry",
    ),
    Mutant(
        "a run that could not append is parked",
        (
            Edit(
                "agents/crew.py",
                "if run.wants_slot or run.over or run.fault is not None:",
                "if run.wants_slot or run.over:",
            ),
            Edit(RUN, "self.appends or self.fault is not None)", "self.appends)"),
        ),
        ("test_found_in_simulation.py::test_a_run_whose_branch_could_not_append_is_not_parked_but_tried_again",),
    ),
    wrong(
        "a time limit is not passed on to what the callee asks",
        RUN,
        "            deadline = self.message.deadline\n            if call.timeout is not None:",
        "            deadline = None\n            if call.timeout is not None:",
        "test_waits.py::test_the_deadline_of_a_request_is_passed_on_to_what_its_callee_asks",
    ),
    wrong(
        "a run goes on after a rollback",
        FOLDING,
        '            end_all(worker, place, correlation, "rolled back")\n',
        "",
        "test_raw_verbs.py",
    ),
    wrong(
        "a run goes on although its handling is over",
        FOLDING,
        "(h is None or h.closed or h.round != run.round) and not run.finishing",
        "False",
        "test_ended_runs.py",
        "test_raw_verbs.py",
    ),
    wrong(
        "a client is told of an answer that does not count",
        FOLDING,
        "r.in_reply_to is not None and verdict is ADMITTED and",
        "r.in_reply_to is not None and",
        "test_client.py::test_a_worker_tells_of_an_answer_when_it_counts_and_only_then",
    ),
    wrong(
        "a client believes that a hint names its answer",
        "agents/client.py",
        "        if r.in_reply_to != self.request_id or r.correlation_id != self.correlation_id:\n"
        "            return None\n",
        "",
        "test_client.py::test_a_hint_that_names_another_record_is_not_believed",
    ),
    wrong(
        "a client believes a hint of an answer that a redrive has taken back",
        "agents/client.py",
        "self._look(told if asked_now else None)",
        "self._look(told)",
        "test_client.py::test_an_answer_that_was_taken_back_by_a_redrive_is_not_believed_because_its_hint_comes_late",
    ),
]
