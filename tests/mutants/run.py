"""The campaign: each seeded mistake is put into a copy of the product, and the tests must notice it."""

from __future__ import annotations

import argparse
import queue
import signal
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.copies import Copy, Mutant
from mutants.seeded import MUTANTS
from mutants.trial import DidNotRun, Trial, run_tests

SECONDS = 240.0
"""That the tests of one mutant may take."""


def chosen(words: list[str]) -> list[Mutant]:
    """Return the mutants whose names hold all of these words."""
    return [m for m in MUTANTS if all(word in m.name for word in words)]


def sound(copies: queue.Queue[Copy], tests: set[str], pool: ThreadPoolExecutor) -> bool:
    """The tests pass without a mistake: else their failures would mean nothing."""
    files = sorted({test.partition("::")[0] for test in tests})
    wanted = [sorted(t for t in tests if t.partition("::")[0] == file) for file in files]
    trials = list(pool.map(lambda some: _on_a_copy(copies, None, some), wanted))
    for file, trial in zip(files, trials, strict=True):
        if trial.caught:
            print(f"{file} fails without any mistake: {trial.by}\n{trial.output[-3000:]}")
    return not any(trial.caught for trial in trials)


def _on_a_copy(copies: queue.Queue[Copy], mutant: Mutant | None, tests: list[str]) -> Trial:
    copy = copies.get()
    try:
        if mutant is None:
            return run_tests(copy, tests, 2 * SECONDS)
        with copy.mistaken(mutant):
            return run_tests(copy, tests, SECONDS)
    finally:
        copies.put(copy)


def tried(copies: queue.Queue[Copy], mutant: Mutant) -> bool:
    """Try one mutant and say what came of it."""
    try:
        trial = _on_a_copy(copies, mutant, list(mutant.tests))
    except (DidNotRun, LookupError, SyntaxError) as error:
        print(f"ERROR     {mutant.name}: {error}", flush=True)
        return False
    how = f"{trial.by}{', by its deadline' if trial.late else ''}" if trial.caught else f"{', '.join(mutant.tests)}"
    print(f"{'caught' if trial.caught else 'SURVIVED'}    {mutant.name} ({trial.seconds:.0f} s): {how}", flush=True)
    return trial.caught


def main() -> int:
    """Run them all, or those whose names hold the given words. Returns 1 unless each was caught."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("words", nargs="*")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--unsound", action="store_true", help="do not run the tests without a mistake first")
    given = arguments.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job ignores it, and so would what tests start
    mutants = chosen(given.words)
    with tempfile.TemporaryDirectory(prefix="refold-mutants-") as folder, ThreadPoolExecutor(given.processes) as pool:
        copies: queue.Queue[Copy] = queue.Queue()
        for n in range(given.processes):
            copies.put(Copy(Path(folder) / str(n)))
        if not given.unsound and not sound(copies, {test for m in mutants for test in m.tests}, pool):
            return 1
        caught = sum(pool.map(lambda mutant: tried(copies, mutant), mutants))
    print(f"{caught} of {len(mutants)} caught")
    return 0 if mutants and caught == len(mutants) else 1


if __name__ == "__main__":
    sys.exit(main())
