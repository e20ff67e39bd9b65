"""A broker of one's own: the log, its owners and all else are one journal, a file that every process folds.

Who wants to change anything takes the lock of the journal, reads what is new, decides, and appends lines. It is meant
to be read (docs/new-broker.md goes through it in eight steps); it keeps all records in memory, so use it for nothing
large. Judge it: cd examples && python -m journal_broker
"""

from __future__ import annotations

from .broker import JournalBroker


def from_url(url: str) -> JournalBroker:
    """`journal:///a/folder`: what an entry point of the group `refold.brokers` names."""
    return JournalBroker(url.removeprefix("journal://"))
