"""Judges the broker: what it claims is proved, and what it does not claim is proved not to happen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refold.brokers.conformance import Subject, cases_of, left_out

from .broker import JournalBroker


def killed(broker: Any) -> None:
    """Its members vanish without a word."""
    broker.die()


@contextlib.contextmanager
def stalled(broker: Any) -> Iterator[None]:
    """Its members renew nothing, and go on afterwards."""
    for sub in broker.subscriptions:
        sub.silent = True
    yield
    for sub in broker.subscriptions:
        sub.silent = False


def subject(folder: Path) -> Subject:
    """What the conformance suite must know to judge it."""
    def new_log() -> Callable[[], JournalBroker]:
        place = folder / os.urandom(8).hex()
        return lambda: JournalBroker(place)

    return Subject(
        "journal", new_log, lease=0.6, kill=killed, stall=stalled, opener="journal_broker:from_url"
    )  # fmt: skip


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        journal = subject(Path(folder))
        for case in cases_of(journal):
            asyncio.run(case.run(journal))
            print("kept:", case)
        print(f"{len(cases_of(journal))} promises kept, {len(left_out(journal))} not judged")


if __name__ == "__main__":
    main()
