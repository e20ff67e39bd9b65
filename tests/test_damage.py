"""Damaged files: what is read is what was appended, or the log is refused, with what to do about it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import damage
from faults.logs import laid
from faults.stage import staged
from faults.writer import PARTITIONS, value_of

from refold.brokers.sqlite import SqliteBroker, leases
from refold.brokers.sqlite.appending import Tails
from refold.bus.broker import Item, LogSpec, Outgoing
from refold.bus.errors import LogCorrupt, RefoldError

Go = Callable[[Coroutine[Any, Any, Any]], Any]
TIMES = 1500 if os.environ.get("REFOLD_TESTS") == "thorough" else 150
LEFT_BEHIND = """
import asyncio, os, sys
from pathlib import Path
from faults import writer
from refold.brokers.sqlite import SqliteBroker
async def main():
    work = writer.Writer(Path(sys.argv[1]), int(sys.argv[2]), "FULL")
    await work.open_and_close()
    async with SqliteBroker(str(work.folder / "log.db")) as broker:
        await broker.ensure_log()
        for _ in range(40):
            await work.once(broker)
        os._exit(0)
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two logs whose writer was killed: a file of some pages, and a write-ahead log with the newest records."""
    folder = tmp_path_factory.mktemp("pristine")
    for n, name in enumerate(("log", "other")):
        (folder / name).mkdir()
        command = [sys.executable, "-c", LEFT_BEHIND, str(folder / name), str(n)]
        subprocess.run(command, check=True, cwd=Path(__file__).parent)
    return folder


def copy_of(pristine: Path, folder: Path) -> Path:
    """Return the path of a copy of the log; the write-ahead log of another one lies beside it."""
    shutil.copytree(pristine / "log", folder, ignore=shutil.ignore_patterns("*-shm"))
    shutil.copy(pristine / "other" / "log.db-wal", folder / "log.other-wal")
    return folder / "log.db"


def test_what_is_read_from_a_damaged_log_is_what_was_appended_or_the_log_is_refused(
    pristine: Path, tmp_path: Path
) -> None:
    spec = LogSpec(partitions=PARTITIONS)
    whole = asyncio.run(damage.everything(copy_of(pristine, tmp_path / "whole")))
    came: Counter[str] = Counter()
    for seed in range(TIMES):
        dice = random.Random(seed)
        path = copy_of(pristine, tmp_path / "damaged")
        how = dice.choice(damage.DAMAGES)(path, dice)
        try:
            what = asyncio.run(damage.judged(path, whole, spec))
        except RefoldError as error:
            pytest.fail(f"seed {seed}, {how}: {type(error).__name__} instead of LogCorrupt: {error}")
        except Exception as error:
            pytest.fail(f"seed {seed}, {how}: {type(error).__name__}: {error}")
        assert what in damage.ALLOWED, f"seed {seed}, {how}: {what}"
        came[what] += 1
        shutil.rmtree(path.parent)
    assert came.keys() >= {"whole", "refused", "earlier"}, f"damage that shows nothing: {came}"


def test_a_record_of_which_one_bit_has_changed_is_refused_with_its_place(
    pristine: Path, tmp_path: Path, go: Go
) -> None:
    path = copy_of(pristine, tmp_path / "log")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    number = next(n for n in range(1, 90) if value_of(n) in data)
    data[data.index(value_of(number)) + 20] ^= 1
    path.write_bytes(data)
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",), "SQLite itself sees nothing"

    async def read() -> None:
        async with SqliteBroker(str(path)) as broker:
            await broker.ensure_log()
            answers = await asyncio.gather(
                *(broker.read(partition) for partition in range(PARTITIONS)), return_exceptions=True
            )
            (error,) = (a for a in answers if isinstance(a, LogCorrupt))
            assert "is not what was appended" in str(error)
            assert "restore it from its backup" in str(error)
            with pytest.raises(LogCorrupt, match="is not what was appended"):
                await broker.read_workflow(f"key {number % 7}")
            assert not (await broker.health()).ok, "doctor sees it too"

    go(read())


def test_a_record_that_is_gone_from_the_middle_is_missed(pristine: Path, tmp_path: Path, go: Go) -> None:
    path = copy_of(pristine, tmp_path / "log")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM records WHERE at = (SELECT min(at) + 2 FROM records)")

    async def read() -> None:
        async with SqliteBroker(str(path)) as broker:
            await broker.ensure_log()
            with pytest.raises(LogCorrupt, match="partition 0 lacks the record at 3"):
                await broker.read(0)

    go(read())


@pytest.mark.parametrize(
    "wrong", ["UPDATE meta SET value = 5 WHERE name = 'partitions'", "DELETE FROM meta WHERE name = 'crc'"]
)
def test_a_log_that_says_of_itself_what_was_not_written_is_refused(
    pristine: Path, tmp_path: Path, go: Go, wrong: str
) -> None:
    path = copy_of(pristine, tmp_path / "log")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute(wrong)
    with pytest.raises(LogCorrupt, match="damaged"):
        go(SqliteBroker(str(path)).ensure_log())


@pytest.mark.parametrize(
    "wrong",
    [
        "UPDATE entries SET v = x'00' WHERE k = CAST('padding' AS BLOB)",
        "UPDATE entries SET v = 'text' WHERE k = CAST('padding' AS BLOB)",
        "UPDATE entries SET k = 'text' WHERE k = CAST('padding' AS BLOB)",
        "UPDATE entries SET crc = 'text' WHERE k = CAST('padding' AS BLOB)",
        "UPDATE checkpoints SET position = 'text'",
        "UPDATE checkpoints SET anchor = 'text'",
    ],
)
def test_a_checkpoint_that_was_changed_is_refused(pristine: Path, tmp_path: Path, go: Go, wrong: str) -> None:
    path = copy_of(pristine, tmp_path / "log")
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        assert db.execute(wrong).rowcount

    async def load() -> None:
        async with SqliteBroker(str(path)) as broker:
            await broker.ensure_log()
            for partition in range(PARTITIONS):
                await broker.checkpoint("group", partition)

    with pytest.raises(LogCorrupt, match="checkpoint"):
        go(load())


@pytest.mark.parametrize("gone", [True, False])
def test_the_write_ahead_log_of_a_file_that_is_gone_or_empty_is_not_thrown_away(
    pristine: Path, tmp_path: Path, go: Go, gone: bool
) -> None:
    path = copy_of(pristine, tmp_path / "log")
    path.unlink() if gone else path.write_bytes(b"")
    wal = Path(f"{path}-wal").read_bytes()
    with pytest.raises(LogCorrupt, match="restore both"):
        go(SqliteBroker(str(path)).ensure_log())
    assert Path(f"{path}-wal").read_bytes() == wal


def test_a_worker_whose_file_is_damaged_under_it_stops_and_says_so_and_is_refused_when_it_starts_again(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with laid("sqlite", tmp_path) as log, staged(tmp_path, 1, log) as stage:
            worker = stage.worker()
            client = stage.client("ann", 0, 8)
            await stage.until(lambda: stage.calls() > 3, 15, "work has begun")
            for name in ("log.db", "log.db-wal"):
                with (tmp_path / name).open("r+b") as file:  # in place: who has it open meets it
                    size = file.seek(0, os.SEEK_END)
                    file.seek(4096 if name == "log.db" else 0)
                    file.write(random.Random(1).randbytes(max(0, size - file.tell())))
            await stage.until(lambda: not worker.alive, 15, "the worker ends by itself")
            assert worker.child.returncode not in (0, -signal.SIGKILL)
            assert "restore it from its backup" in stage.last_words(worker)
            client.kill()
            again = stage.worker()
            await stage.until(lambda: not again.alive, 15, "the next one ends by itself")
            assert "restore it from its backup" in stage.last_words(again)

    asyncio.run(run())


def test_nothing_is_appended_behind_a_record_that_has_lost_its_time():
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE records(at INTEGER PRIMARY KEY, time)")
        tails = Tails()
        tails.begin(db)
        assert tails.take(db, 0, 1, 5.0) == (0, 5.0)
        db.execute("INSERT INTO records VALUES (1, NULL)")
        tails.begin(db)  # what was begun before has not been committed: the file is read again
        with pytest.raises(LogCorrupt, match="newest record of partition 0 has no time"):
            tails.take(db, 0, 1, 5.0)


class Stuck(sqlite3.Connection):
    """A connection to a file so damaged that nothing can be rolled back."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "ROLLBACK":
            raise sqlite3.OperationalError("the rollback failed")
        return super().execute(sql, *args)


@pytest.mark.parametrize("who", ["the writer", "the keeper of the leases"])
def test_who_cannot_roll_back_does_not_keep_the_write_lock(
    tmp_path: Path, go: Go, until: Callable[..., Awaitable[None]], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    path, failed = tmp_path / "log.db", list[int]()
    connect = sqlite3.connect

    def fails(db: sqlite3.Connection, *_: object) -> bool:
        failed.append(1)
        raise ValueError("in the middle of a transaction")

    def another_writes() -> None:
        with contextlib.closing(connect(path, isolation_level=None, timeout=5)) as db:
            db.execute("BEGIN IMMEDIATE")

    async def main() -> None:
        async with SqliteBroker(str(path)) as broker:
            await broker.ensure_log()
            monkeypatch.setattr(sqlite3, "connect", lambda *args, **given: connect(*args, factory=Stuck, **given))
            if who == "the writer":
                with pytest.raises(ValueError, match="in the middle"):
                    await broker.writer.do(fails)
                await asyncio.to_thread(another_writes)
                await broker.append([Item(0, "k", (Outgoing("a", b"{}"),))])
                return
            async with broker.subscribe("g", "m", lease=0.4):
                renew = leases.renew
                monkeypatch.setattr(leases, "renew", fails)
                await until(lambda: failed)
                monkeypatch.setattr(leases, "renew", renew)
                await asyncio.to_thread(another_writes)

    go(main())
