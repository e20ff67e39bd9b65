"""The examples, run as a reader runs them; what they claim is checked against ledgers that refold does not write."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def play(name: str, folder: Path, *words: str) -> str:
    """Run an example from a folder of the test; its output."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


def test_hello_shows_the_answer_and_the_log_that_it_came_from(tmp_path):
    assert play("hello", tmp_path) == """\
Tides come twice a day and tides follow the moon.

what the log holds of it:
  task_request     client -> writer
  task_request     writer -> researcher
  effect_completed researcher -> *
  task_response    researcher -> writer
  task_response    writer -> client
"""


def test_a_wait_for_a_person_outlives_the_process_that_waits(tmp_path):
    assert play("approval", tmp_path) == """\
the workflow waits for a decision; its worker is killed with SIGKILL
Ada decides while no worker runs; the decision is in the log
refund of 250: granted, says Ada
the workflow is completed
"""


def test_what_was_recorded_is_not_paid_again_and_what_was_not_is_repeated_with_the_same_key(tmp_path):
    assert play("never_twice", tmp_path, str(tmp_path)) == """\
killed after the record: 1 call(s) with 1 key, billed 1 time(s)
killed between the call and the record, where the provider
  honours the key: 2 call(s) with 1 key, billed 1 time(s)
  ignores the key: 2 call(s) with 1 key, billed 2 time(s)
"""
    bills = {name: _invoice(tmp_path / f"{name}.jsonl") for name in ("book", "lamp", "desk")}
    assert [[line["billed"] for line in lines] for lines in bills.values()] == [[True], [True, False], [True, True]]
    assert all(len({line["key"] for line in lines}) == 1 for lines in bills.values())
    assert len({line["key"] for lines in bills.values() for line in lines}) == 3


def _invoice(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_conversation_is_one_workflow_whose_turns_know_of_each_other_over_a_restart(tmp_path):
    assert play("conversation", tmp_path) == """\
guide: hello Ada
guide: Ada, that was turn 2
(everything in memory is gone: what follows knows only the log)
guide: Ada, that was turn 3
one workflow, 10 records, completed
"""


def test_a_fan_out_runs_each_child_once_and_never_more_at_once_than_its_limit(tmp_path):
    answer, calls = play("fan_out", tmp_path).splitlines()
    assert answer == "{'pages': 20, 'words': 2190, 'first': 100, 'last': 119}"
    assert re.fullmatch("20 calls, at most [1-4] at once", calls)


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_every_example_is_played_here_and_says_how_to_run_it(example):
    assert f'play("{Path(example).stem}"' in Path(__file__).read_text("utf-8")
    assert f"Run it: python examples/{example}" in (EXAMPLES / example).read_text("utf-8").partition('"""\n\n')[0]
