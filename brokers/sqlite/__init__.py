"""The embedded log: one SQLite file, shared by any number of processes of one machine. The default."""

from __future__ import annotations

from .broker import SqliteBroker, from_url

__all__ = ["SqliteBroker", "from_url"]
