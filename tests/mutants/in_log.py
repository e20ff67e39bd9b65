"""Mistakes in the log itself: what is durable, who may append, who owns what."""

from __future__ import annotations

from mutants.copies import Edit, Mutant
from mutants.in_fold import wrong

APPENDING = "brokers/sqlite/appending.py"
KEEPER = "brokers/sqlite/keeper.py"
KEEPING = "brokers/keeping.py"
LEASES = "brokers/sqlite/leases.py"
MEMORY = "brokers/memory.py"
PORT = "test_conformance.py::test_every_promise_of_the_port_is_kept"
TWICE = "test_kafka_twice.py::test_of_several_records_at_one_offset_the_first_is_there_and_the_others_are_known"

IN_THE_LOG = [
    wrong(
        "no dedupe in the file: an append that is repeated is stored twice",
        APPENDING,
        "            if at is not None:\n                return Duplicate(at & MASK)\n",
        "",
        PORT,
    ),
    wrong(
        "no dedupe in memory",
        MEMORY,
        "            if known is not None:\n                return Duplicate(known)\n",
        "",
        PORT,
    ),
    wrong(
        "the fence is not looked at",
        APPENDING,
        "            if epoch != a.fence.epoch:",
        "            if epoch is None:",
        PORT,
    ),
    wrong(
        "an append that expects no newer record is taken whatever came",
        APPENDING,
        "            if last is not None and last > item.after:",
        "            if False:",
        PORT,
    ),
    wrong(
        "an append is acknowledged before it is committed",
        "brokers/sqlite/writer.py",
        "            return carry_out(db, [request.job for request in batch])\n",
        "            results = carry_out(db, [request.job for request in batch])\n"
        "            for request, result in zip(batch, results, strict=True):\n"
        "                self._loop.call_soon_threadsafe(\n"
        "                    lambda r=request, x=result: None if r.done.done() else r.done.set_result(x)\n"
        "                )\n"
        "            return results\n",
        "test_sqlite.py::test_a_full_disk_refuses_the_append_and_the_log_goes_on_when_there_is_space",
        "test_power_loss.py",
        PORT,
    ),
    wrong(
        "synchronous OFF: what was acknowledged is in the system's memory only",
        "brokers/sqlite/connection.py",
        '        db.execute(f"PRAGMA synchronous={synchronous}")\n',
        '        db.execute("PRAGMA synchronous=OFF")\n',
        "test_power_loss.py",
    ),
    wrong(
        "part of an append is stored when it fails",
        "brokers/sqlite/connection.py",
        '                    db.execute("ROLLBACK")\n',
        '                    db.execute("COMMIT")\n',
        "test_sqlite.py",
    ),
    wrong(
        "an owner that was fenced may replace the checkpoint",
        "brokers/sqlite/checkpoints.py",
        "        if current_epoch(db, self._group, self._partition) != self._epoch:\n            return False\n",
        "",
        PORT,
    ),
    Mutant(
        "the position of a checkpoint is committed before its entries",
        (
            Edit(
                "brokers/sqlite/checkpoints.py",
                '        db.executemany("DELETE FROM entries WHERE grp=? AND partition=? AND k=?", self._gone)\n',
                '        db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", self._position)\n'
                '        db.execute("COMMIT")\n'
                '        db.execute("BEGIN IMMEDIATE")\n'
                '        db.executemany("DELETE FROM entries WHERE grp=? AND partition=? AND k=?", self._gone)\n',
            ),
        ),
        ("test_sqlite.py::test_the_position_of_a_checkpoint_moves_with_its_entries_or_not_at_all",),
    ),
    wrong(
        "leases are never renewed",
        LEASES,
        "UPDATE members SET counter = counter + 1 WHERE",
        "UPDATE members SET counter = counter WHERE",
        "test_processes.py::test_a_handler_that_blocks_the_loop_for_three_leases_keeps_its_lease_and_runs_once",
        "test_sqlite.py",
    ),
    wrong(
        "a lease is taken although its owner has renewed meanwhile",
        LEASES,
        "        if before != seen.leases.get(p) or (before is not None and before.owner in renewed):",
        "        if before != seen.leases.get(p):",
        "test_leases.py",
    ),
    wrong(
        "a lease is taken although another has taken it meanwhile",
        LEASES,
        "        if before != seen.leases.get(p) or (before is not None and before.owner in renewed):",
        "        if before is not None and before.owner in renewed:",
        "test_leases.py",
    ),
    wrong(
        "a takeover keeps the epoch",
        LEASES,
        "        epoch = before.epoch + 1 if before is not None else 1\n",
        "        epoch = before.epoch if before is not None else 1\n",
        "test_leases.py",
    ),
    wrong(
        "a release of an older epoch releases the newer one (in the file)",
        LEASES,
        "        \"UPDATE leases SET released=1, owner='' WHERE grp=? AND partition=? AND epoch=? AND owner=?\",\n"
        "        (group, partition, epoch, me),\n",
        "        \"UPDATE leases SET released=1, owner='' WHERE grp=? AND partition=? AND owner=?\",\n"
        "        (group, partition, me),\n",
        "test_leases.py",
    ),
    wrong(
        "a release of an older epoch releases the newer one (in memory)",
        MEMORY,
        "        if self.holds.get(partition) == epoch:\n            self._drop(partition)",
        "        if partition in self.holds:\n            self._drop(partition)",
        PORT,
    ),
    wrong(
        "an owner is not told what it has lost",
        KEEPING,
        "            self._tell(Lost(partition, epoch))\n",
        "            pass\n",
        "test_sqlite.py::test_an_owner_that_was_stopped_beyond_its_lease_cannot_append_hears_of_the_loss_and_lives_on",
        "test_sqlite.py::test_an_epoch_ends_for_its_owner_when_another_takes_it",
    ),
    wrong(
        "who takes over is not told of a death",
        KEEPER,
        "after_death=not lease.released",
        "after_death=False",
        PORT,
        "test_sqlite.py",
    ),
    wrong(
        "a loop that does not turn keeps its leases for ever",
        KEEPING,
        "        if now - self.turned <= self.stall_limit:",
        "        if True:",
        "test_sqlite.py::test_a_loop_that_does_not_turn_is_ended_with_its_stack_in_the_log",
    ),
    wrong(
        "a subscription skips what others appended in between",
        "brokers/sqlite/subscription.py",
        "            if records[0].position > start or records[-1].position - records[0].position >= len(records):",
        "            if False:",
        "test_sqlite.py::test_what_others_appended_is_not_skipped_although_nobody_rang",
    ),
    wrong(
        "a file that was replaced is written to",
        "brokers/sqlite/writer.py",
        "            same_file(self._path, self._opened)\n",
        "",
        "test_sqlite.py::test_a_file_that_was_removed_or_replaced_takes_nothing_more",
    ),
    wrong(
        "of several records at one offset of Kafka the last is there",
        "brokers/kafka/wire.py",
        "        if raw.offset > newest:\n",
        "        if raw.offset >= newest:\n",
        TWICE,
    ),
    wrong(
        "that Kafka has several records at one offset goes unnoticed",
        "brokers/kafka/wire.py",
        "            twice = twice or bool(records and records[0].offset < following)\n",
        "",
        TWICE,
    ),
]
