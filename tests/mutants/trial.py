"""Running tests on a copy of the product: do they notice?"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import psutil
from mutants.copies import Copy

PASSED, FAILED = 0, 1
"""Exit codes of pytest; every other one says that the tests did not run."""


class Trial(NamedTuple):
    """What came of it: `by` is the test that failed, "" where all passed."""

    caught: bool
    by: str
    late: bool
    seconds: float
    output: str


class DidNotRun(Exception):
    """The tests could not be run at all: nothing is known of the mutant."""


def run_tests(copy: Copy, tests: Sequence[str], seconds: float) -> Trial:
    """Run tests until the first fails. A test that does not end within its time has failed."""
    command = [
        sys.executable, "-m", "pytest", "-x", "-q", "-p", "mutants.inside", "-p", "no:cacheprovider",
        "--timeout", str(seconds / 2), "--timeout-method=signal", "--inline-snapshot=disable", *tests,
    ]  # fmt: skip
    environment = os.environ | {
        "PYTHONPATH": str(copy.folder), "REFOLD_MUTANT": str(copy.package), "PYTHONHASHSEED": "0",
    }  # fmt: skip
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=copy.package / "tests", env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        output, process.returncode = _end(process), FAILED
        return Trial(True, "no test ended in time", True, time.monotonic() - began, output)
    took = time.monotonic() - began
    if process.returncode not in (PASSED, FAILED):
        raise DidNotRun(f"pytest ended with {process.returncode}\n{output[-3000:]}")
    late = "from pytest-timeout" in output
    return Trial(process.returncode == FAILED, "" if process.returncode == PASSED else who(output), late, took, output)


def _end(process: subprocess.Popen[str]) -> str:
    """End the tests and the processes that they have started."""
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return process.communicate()[0]


def who(output: str) -> str:
    """Return the test that failed, as pytest's summary names it."""
    found = re.search(r"^(?:FAILED|ERROR) (\S+::[^\s-]+)", output, re.MULTILINE)
    return found.group(1) if found is not None else "a test"
