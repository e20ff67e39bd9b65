"""Mutants that a program makes, of the fold, the scheduler and the ownership code: a random sample, tried by mutmut."""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mutants.copies import LEFT_OUT, ROOT

FILES = (
    "projections/workflow.py", "projections/view.py", "projections/ledger.py", "projections/verdict.py",
    "projections/partition.py", "agents/scheduler.py", "agents/cohorts.py", "agents/ownership.py",
    "brokers/shares.py", "brokers/sqlite/leases.py",
)  # fmt: skip
TESTS = (
    "rules", "fold_model", "partition_fold", "invariants", "checkpoints", "cohorts", "failure_and_time", "worker",
    "found_in_simulation", "ownership", "raw_verbs", "history", "scheduler", "leases", "sqlite",
)  # fmt: skip
TOO_SLOW = ("fold_model", "test_the_histories_meet_every_verdict_with_every_kind_that_can_have_it")
ROOMS = ("agents", "brokers", "bus", "cli", "demo", "projections")
SURVIVED, NO_TEST = 0, 33
"""Exit codes in mutmut's notes; every other one is of a mutant that a test (or its time) has caught."""


def lay_out(folder: Path) -> None:
    """Copy the tree as mutmut wants it: the package below `src`, the tests beside."""
    package = folder / "src" / "refold"
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=LEFT_OUT)
    for file in ("__init__.py", "py.typed"):
        shutil.copy(ROOT / file, package / file)
    for beside in ("tests", "examples", "docs"):
        shutil.copytree(ROOT / beside, folder / beside, ignore=LEFT_OUT)
    text = re.sub(r"(?m)^settings\.register_profile\(\"quick\", .*$", QUICK, (ROOT / "tests/conftest.py").read_text())
    (folder / "tests" / "conftest.py").write_text(text)
    shutil.copy(ROOT / "README.md", folder)
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings())
    (folder / "mutants" / "src").mkdir(parents=True)  # Python forgets a folder on its path that is not there at first


QUICK = """from hypothesis import Phase
settings.register_profile("quick", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])"""
"""A failing example is not shrunk: that it fails is enough."""


def settings() -> str:
    """Return what mutmut reads in pyproject.toml."""
    lists = {
        "source_paths": ["src"],
        "only_mutate": [f"src/refold/{file}" for file in FILES],
        "also_copy": ["examples", "docs", "README.md"],
        "pytest_add_cli_args_test_selection": [f"tests/test_{test}.py" for test in TESTS],
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "--deselect", "tests/test_{}.py::{}".format(*TOO_SLOW)],
    }
    return "\n[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in lists.items())


def mutmut(folder: Path, *words: str, quiet: bool = False) -> str:
    """Run mutmut there; return what it printed where it is `quiet`."""
    environment = os.environ | {"PYTHONPATH": str(folder / "mutants" / "src")}
    out = subprocess.PIPE if quiet else None
    command = [sys.executable, "-m", "mutmut", *words]
    return subprocess.run(command, cwd=folder, env=environment, stdout=out, text=True, check=False).stdout or ""


def results(folder: Path) -> dict[str, int | None]:
    """Return the exit code of each mutant; None where it was not tried."""
    out: dict[str, int | None] = {}
    for notes in sorted(folder.glob("mutants/src/**/*.meta")):
        out |= json.loads(notes.read_text())["exit_code_by_key"]
    return out


def try_all(folder: Path, wanted: Sequence[str], processes: int) -> dict[str, int | None]:
    """Try those that were not tried yet. A mutant can end mutmut itself: the others are tried without it."""
    codes, last = results(folder), -1
    while (left := [name for name in wanted if codes[name] is None]) and len(left) != last:
        last = len(left)
        mutmut(folder, "run", "--max-children", str(processes), *left)
        codes, wanted = results(folder), wanted[::-1]
    return {name: codes[name] for name in wanted}


def interval(caught: int, of: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, p = 1.96, caught / of
    middle, half = p + z * z / (2 * of), z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def survivors(folder: Path, tried: dict[str, int | None]) -> Iterator[str]:
    """Yield what each survivor changed."""
    for name, code in tried.items():
        if code in (SURVIVED, NO_TEST):
            yield f"\n{mutmut(folder, 'show', name, quiet=True)}"


def main() -> int:
    """Lay out, make the mutants, try a sample. Returns 1 where less than nine of ten were caught."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path, help="made, and kept: a second call tries more in it")
    arguments.add_argument("--sample", type=int, default=300)
    arguments.add_argument("--seed", type=int, default=4)
    arguments.add_argument("--processes", type=int, default=2)
    given = arguments.parse_args()
    folder = given.folder.resolve()
    if not folder.exists():
        lay_out(folder)
        mutmut(folder, "run", "none-of-them", quiet=True)  # only makes them
    names = sorted(results(folder))
    random.Random(given.seed).shuffle(names)
    tried = try_all(folder, names[: given.sample], given.processes)
    for name in [name for name, code in tried.items() if code is None]:
        print(f"{name} ended mutmut itself: judge it by hand")
    print(*survivors(folder, tried))
    caught = sum(code not in (None, SURVIVED, NO_TEST) for code in tried.values())
    low, high = interval(caught, len(tried))
    print(f"{caught} of {len(tried)} killed ({caught / len(tried):.1%}, 95 %: {low:.1%} to {high:.1%}) of {len(names)}")
    return 0 if caught >= 0.9 * len(tried) else 1


if __name__ == "__main__":
    sys.exit(main())
