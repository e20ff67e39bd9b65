"""The tables of a log, how it is made, and how it is recognised."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable
from functools import lru_cache
from hashlib import blake2b
from zlib import crc32

from ...bus.broker import RULES, LogMeta, LogSpec
from ...bus.errors import LogCorrupt, LogMismatch, LogMissing, RulesTooNew
from ...bus.message import new_id

APPLICATION_ID = 0x7265666F
FORMAT = 1
DEFAULT_PARTITIONS = 16
SHIFT = 44
"""A record's rowid is partition << SHIFT | position: rows of a partition lie together, in order."""
MASK = (1 << SHIFT) - 1
MILLISECONDS = (1 << 41) - 1

TABLES = (
    "CREATE TABLE meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE records(at INTEGER PRIMARY KEY, hash INTEGER NOT NULL, id BLOB NOT NULL, time REAL NOT NULL,"
    " key TEXT, value BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE INDEX by_key ON records(hash, id)",
    "CREATE TABLE leases(grp TEXT, partition INTEGER, epoch INTEGER NOT NULL, owner TEXT NOT NULL,"
    " released INTEGER NOT NULL, PRIMARY KEY(grp, partition)) WITHOUT ROWID",
    "CREATE TABLE members(grp TEXT, member TEXT, token TEXT NOT NULL, counter INTEGER NOT NULL, pid INTEGER NOT NULL,"
    " started REAL NOT NULL, place TEXT NOT NULL, wanted TEXT, PRIMARY KEY(grp, member)) WITHOUT ROWID",
    "CREATE TABLE checkpoints(grp TEXT, partition INTEGER, position INTEGER NOT NULL, anchor BLOB NOT NULL,"
    " PRIMARY KEY(grp, partition)) WITHOUT ROWID",
    "CREATE TABLE entries(grp TEXT, partition INTEGER, k BLOB, v BLOB NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY(grp, partition, k)) WITHOUT ROWID",
    "CREATE TABLE presences(member TEXT PRIMARY KEY, grp TEXT NOT NULL, value BLOB NOT NULL, told REAL NOT NULL,"
    " ttl REAL NOT NULL) WITHOUT ROWID",
)


NAMES = {re.split(r"[ (]", statement, maxsplit=3)[2] for statement in TABLES}
META: dict[str, type | tuple[type, ...]] = {
    "format": int, "rules": int, "log_id": str, "created": (int, float), "partitions": int, "max_record": int,
    "max_append": int, "crc": int,
}  # fmt: skip


def place(partition: int, position: int) -> int:
    """Return the rowid of a position, or the nearest that the partition has."""
    return partition << SHIFT | min(max(position, 0), MASK)


@lru_cache(maxsize=16384)
def key_hash(partition: int, key: str | None) -> int:
    """Return what a workflow's records are found by; a partition's own have its number.

    Of an id that holds a time (UUIDv7) the milliseconds come first: workflows of one time lie together in the index, so
    a commit of 100 records rewrites a few of its pages instead of 100. Two workflows may have the same: compare keys.
    """
    if key is None:
        return partition
    digest = int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big", signed=True)
    if len(key) == 36 and key[14] == "7":
        try:
            return (int(key[:8] + key[9:13], 16) & MILLISECONDS) << 22 | digest & 0x3FFFFF
        except ValueError:
            return digest
    return digest


def id_hash(partition: int, key: str | None, id: str) -> bytes:
    """Return 16 bytes that stand for a record's id under its key in its partition."""
    return blake2b(f"{partition}\0{key or ''}\0{id}".encode(), digest_size=16).digest()


def crc_of(at: int, key: str | None, value: bytes) -> int:
    """Return what tells a record that was damaged, or is in another's place. SQLite has no checksums of its own."""
    return crc32(value, crc32(key.encode(), at & 0xFFFFFFFF) if key is not None else at & 0xFFFFFFFF)


def crc_of_meta(meta: Iterable[tuple[str, object]]) -> int:
    """Return the same for what the log says of itself."""
    return crc32(repr(sorted((name, value) for name, value in meta if name != "crc")).encode())


def create(db: sqlite3.Connection, spec: LogSpec, now: float) -> None:
    """Make the tables, unless another process has just made them. Inside a transaction."""
    if db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return
    for statement in TABLES:
        db.execute(statement)
    meta = {"format": FORMAT, "rules": RULES, "log_id": new_id(), "created": now}
    meta["partitions"] = spec.partitions or DEFAULT_PARTITIONS
    default = LogMeta(log_id="", partitions=1)
    for name in ("max_record", "max_append"):
        meta[name] = getattr(spec, name) or getattr(default, name)
    meta["crc"] = crc_of_meta(meta.items())
    db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def read_meta(db: sqlite3.Connection, path: str) -> LogMeta | None:
    """Return what the log says of itself; None where the database is empty. Raises LogCorrupt, RulesTooNew."""
    if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
        return None
    (application,) = db.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION_ID:
        raise LogCorrupt(f"{path} is a SQLite database, but no log of refold: choose another file")
    found = dict(db.execute("SELECT name, value FROM meta"))
    wrong = [name for name, kind in META.items() if not isinstance(found.get(name), kind)]
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'index')")}
    wrong += sorted(NAMES - tables)
    form = found.get("format")
    if not isinstance(form, int) or (form == FORMAT and wrong):
        raise LogCorrupt(f"{path} is damaged, it lacks {', '.join(wrong)}: restore it from its backup")
    if form > FORMAT or found["rules"] > RULES:
        raise RulesTooNew(
            f"{path} was written under format {form}, rules {found.get('rules')}; this release knows "
            f"format {FORMAT}, rules {RULES}: upgrade refold"
        )
    if found["crc"] != crc_of_meta(found.items()):
        raise LogCorrupt(f"{path} is damaged, it says of itself what was not written: restore it from its backup")
    return LogMeta(
        log_id=found["log_id"], partitions=found["partitions"], max_record=found["max_record"],
        max_append=found["max_append"], rules=found["rules"], created=found["created"],
    )  # fmt: skip


def verify(meta: LogMeta, spec: LogSpec, path: str) -> None:
    """Compare a log with what the caller needs. Raises LogMismatch, which names each difference."""
    wrong = [
        f"{name} is {getattr(meta, name)}, asked for {wanted}"
        for name in spec.__struct_fields__
        if (wanted := getattr(spec, name)) is not None and wanted != getattr(meta, name)
    ]
    if wrong:
        raise LogMismatch(f"{path} is not what was asked for: {'; '.join(wrong)}. A log is never changed: use another")


def missing(path: str) -> LogMissing:
    """Return the error of a log that is not there."""
    return LogMissing(
        f"there is no log at {path}: start a worker (`refold run app.py`) or send something to make one, or name "
        "another with --broker"
    )
