"""The bill of the demo: where the crash fell is told by log and invoice."""

from __future__ import annotations

from typing import Any

from refold.demo.proof import Analysed, Cut, cut_of, numbers_in
from refold.projections.timeline import Attempt

KILLED, OTHER = 7, 8


def attempt(pid: int, outcome: str) -> Attempt:
    return Attempt("analyzer", "m", 1, "w", pid, "", 1, ("1",), outcome)


def analysed(key: str, recorded_by: int, *pids: int) -> Analysed:
    """A module whose opinion was recorded by a process; all attempts but the last one were cut off."""
    runs = [attempt(pid, "") for pid in pids[:-1]] + [attempt(pids[-1], "task_response")]
    history: Any = None
    return Analysed(f"{key}.py", False, False, history, runs, 1, {key: 500}, {key: recorded_by})


def test_the_bill_tells_for_each_cut_handling_whether_its_call_was_made_and_whether_it_was_recorded() -> None:
    modules = [
        analysed("done", KILLED, KILLED),
        analysed("others", OTHER, OTHER),
        analysed("before", OTHER, KILLED, OTHER),
        analysed("between", OTHER, KILLED, OTHER),
        analysed("between-2", OTHER, KILLED, OTHER),
        analysed("after", KILLED, KILLED, OTHER),
    ]
    called = {"done", "between", "between-2", "after"}
    assert cut_of(modules, called, KILLED) == Cut(before_the_call=1, between=2, after_the_record=1)
    assert cut_of(modules, called, 0) == Cut(0, 0, 0)


def test_the_numbers_of_a_report_are_those_of_its_lists_and_tables() -> None:
    text = """\
# Review of 2 things

| modules | lines |
| --- | --- |
| 3 | 40 |
| eval-exec | `a b/c1.py:12` `eval` |

### `c1.py`

- lines 40, functions 2
- complexity: `c1.py:5` `f2` 8, `c1.py:6` `g` 7

> 50/100. Calm.

## Unreadable

- `d.py`: line 2: invalid syntax
"""
    assert numbers_in(text) == 2 + 1 + 2 + 4
