"""The real worker in a simulated world: virtual time, seeded scheduling, processes that die and wake up, a log that
fails, doubles, delays and reorders. Whatever happened: it ends as if nothing had, and no promise was broken meanwhile.

A seed that fails says how to play it again; its number belongs into KEPT when what it found is mended.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation.mix import CHUNK, POISONED, SEEDS
from simulation.story import Story

HERE = Path(__file__).parent
KEPT = (62, 66, 80, 92, 138, 166, 257, 458, 641, 835, 988)
"""Seeds that found something once, for `make test` too. What it was is in `test_found_in_simulation.py`."""


@pytest.fixture
def play(record_property):
    """Play seeds; fail with what went wrong in the first that does not end well."""

    def play(seeds, *, poison=False):
        before, wrong = logging.root.manager.disable, []
        logging.disable(logging.CRITICAL)
        gc.freeze()
        try:
            for seed in seeds:
                world = Story(seed, poison=poison).run()
                record_property("simulation", json.dumps(world.met))
                if world.wrong:
                    wrong.append((seed, world))
        finally:
            gc.unfreeze()
            logging.disable(before)
        if wrong:
            seed, world = wrong[0]
            pytest.fail(
                f"seeds {[s for s, _ in wrong]} fail; seed {seed}:\n" + "\n".join(world.wrong[:5])
                + "\n\nits last turns:\n" + "\n".join(line[:200] for line in world.trace[-40:])
                + f"\n\nplay it again: cd tests && python -m simulation {seed}{' poison' if poison else ''}",
                pytrace=False,
            )

    return play


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_whatever_happens_every_workflow_ends_as_if_nothing_had_happened(play, first):
    play(range(first, first + CHUNK))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, POISONED, CHUNK))
def test_a_message_that_kills_its_process_takes_no_innocent_with_it_in_any_partition(play, first):
    play(range(first, min(first + CHUNK, POISONED)), poison=True)


def test_seeds_that_once_found_something_stay_mended(play):
    play(KEPT)


@pytest.mark.parametrize("seed", [3, 11])
def test_a_seed_gives_the_same_trace_byte_for_byte_whatever_the_order_of_sets(seed):
    traces = []
    for order in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": order}
        command = [sys.executable, "-m", "simulation", str(seed)]
        done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        traces.append(done.stdout)
    assert traces[0].count("\n") > 1000
    assert traces[0] == traces[1]
