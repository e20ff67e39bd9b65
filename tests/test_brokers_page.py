"""The page that helps to choose a broker says what the code says: its tables are made again, without servers."""

from __future__ import annotations

import json
import re
import sys

import pytest
from broker_table import CASES, NAMES, PAGE, capabilities, cases_of, durability, filled, left_out, promises, unserved
from documents import ROOT

sys.path.append(str(ROOT / "bench"))
import sizing

TEXT = PAGE.read_text("utf-8")
FOUND = json.loads((ROOT / "bench" / "costs.json").read_text("utf-8"))


def test_the_classes_of_durability_are_what_the_adapters_say():
    assert filled(TEXT, "durability", durability()) == TEXT


def test_what_is_refused_early_is_what_the_brokers_claim():
    assert filled(TEXT, "capabilities", capabilities()) == TEXT


def test_every_case_of_the_suite_is_on_the_page_as_kept_or_not_claimed():
    assert filled(TEXT, "promises", promises({})) == TEXT
    assert all(f"| {case} |" in TEXT for case in CASES)


def test_nothing_is_left_unjudged_and_the_last_run_has_played_every_case_that_applies():
    subjects = unserved()
    assert {name: left_out(subject) for name, subject in subjects.items()} == {name: {} for name in NAMES}
    (said,) = re.findall(r"<!-- played -->\n(.*)\n<!-- end -->", TEXT)
    counts = [len(cases_of(subject)) for subject in subjects.values()]
    played = [(int(kept), int(all_)) for kept, all_ in re.findall(r" (\d+) of (\d+)", said)]
    assert played == [(n, n) for n in (*counts, *counts[2:])]


def test_a_broken_promise_would_be_seen_on_the_page():
    case = str(CASES[0])
    lines = promises({"Kafka": {case: "BROKEN"}})
    assert f"| {case} | yes | yes | yes | BROKEN |" in lines


def test_a_page_without_the_marks_of_a_table_is_refused():
    with pytest.raises(ValueError, match="durability"):
        filled("a page", "durability", [])


def test_the_sheet_and_the_measured_costs_are_what_the_script_computes():
    assert sizing.filled(TEXT, FOUND) == TEXT


def test_what_a_load_needs_grows_with_it_and_waits_do_not_cost_workers():
    costs = sizing.costs_of(FOUND, "nats")
    small, large, waiting = (sizing.need(sizing.Load(*load), costs) for load in ((100, 0), (10_000, 0), (100, 10**7)))
    assert large.cores == pytest.approx(100 * small.cores)
    assert large.workers > small.workers == waiting.workers
    assert waiting.takeover > small.takeover >= sizing.LEASE
    assert sizing.need(sizing.Load(10_000, 0, groups=3), costs).workers > large.workers
